-- Events for whoever awaits them, and the log of what runs emit.

-- name: session_publishing_view
-- events: [[id, topic, key, data, retention], …]
CREATE TEMP VIEW publishing AS SELECT NULL AS now, NULL AS events

-- name: session_publishing
CREATE TEMP TRIGGER publishing_into INSTEAD OF INSERT ON publishing BEGIN
    INSERT INTO durable_events (id, topic, key, data, at, expires_at)
    SELECT w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, NEW.now, NEW.now + (w.value ->> 4)
    FROM json_each(NEW.events) AS w
    WHERE true
    ON CONFLICT (id) DO NOTHING;

    -- Who publishes clears away: more than comes in, and never so much that it holds other writers up.
    DELETE FROM durable_events
    WHERE n IN (
        SELECT n FROM durable_events INDEXED BY durable_events_expiry
        WHERE expires_at <= NEW.now
        LIMIT 100 + 2 * json_array_length(NEW.events));
END

-- name: publish
INSERT INTO publishing (now, events) VALUES (?, ?)

-- name: emitted
SELECT json_group_array(json_array(n, run_id, key, at, data))
FROM (
    SELECT e.n, r.id AS run_id, e.key, e.at, e.data
    FROM durable_emits AS e
    CROSS JOIN durable_runs AS r
    WHERE e.n > :after AND r.n = e.run
    ORDER BY e.n
    LIMIT :at_most)
