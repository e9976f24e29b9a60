-- Signals, and what a flush does beside its records and changes.

-- name: signal
-- signals: [[run id, id, name, data], …]. One statement is a transaction of its own.
INSERT INTO durable_signals (run, id, name, data, at)
SELECT r.n, w.value ->> 1, w.value ->> 2, w.value ->> 3, :now
FROM json_each(:signals) AS w
CROSS JOIN durable_runs AS r
WHERE r.id = w.value ->> 0 AND r.ended_at IS NULL
ON CONFLICT (run, id) DO NOTHING

-- name: signals_sent
-- An answer for each: true when it is stored, false when the run is there and it is not, else null.
SELECT json_group_array(CASE
    WHEN r.n IS NULL THEN NULL
    WHEN EXISTS (SELECT 1 FROM durable_signals AS s WHERE s.run = r.n AND s.id = w.value ->> 1) THEN json('true')
    ELSE json('false')
END)
FROM json_each(:signals) AS w
LEFT JOIN durable_runs AS r ON r.id = w.value ->> 0

-- name: claimed_signals
-- Of runs that were claimed: [[n, [id, name, data, at]], …] in the order of arrival.
SELECT json_group_array(json_array(s.run, json_array(s.id, s.name, s.data, s.at)))
FROM json_each(:runs) AS w
CROSS JOIN durable_signals AS s INDEXED BY durable_signals_unread
WHERE s.run = w.value AND s.consumed = 0

-- name: signalled
-- Of the runs that the worker holds, those that got signals which it has not asked for.
SELECT json_group_array(r.id)
FROM durable_signalled AS m
CROSS JOIN durable_runs AS r
WHERE m.worker = :worker AND r.n = m.run AND r.owner = m.worker AND r.claim = m.claim

-- name: heard
DELETE FROM durable_signalled
WHERE worker = :worker AND run IN (
    SELECT r.n FROM json_each(:ids) AS w CROSS JOIN durable_runs AS r WHERE r.id = w.value)

-- name: unread
-- [[run id, wakes, [[id, name, data, at], …]], …]: the counter and the signals of one moment.
SELECT json_group_array(json_array(r.id, r.wakes, (
    SELECT json_group_array(json_array(s.id, s.name, s.data, s.at))
    FROM durable_signals AS s INDEXED BY durable_signals_unread
    WHERE s.run = r.n AND s.consumed = 0)))
FROM json_each(:ids) AS w
CROSS JOIN durable_runs AS r
WHERE r.id = w.value AND r.owner = :worker AND EXISTS (SELECT 1 FROM durable_workers WHERE id = :worker)

-- name: session_also_new
-- The runs of this flush whose write passes the fence, and was not applied before.
CREATE TEMP TABLE also_new (
    id TEXT PRIMARY KEY,
    run INTEGER NOT NULL
) WITHOUT ROWID

-- name: session_also_effects
CREATE TEMP TABLE also_effects (
    key TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    step TEXT NOT NULL,
    kept INTEGER NOT NULL
) WITHOUT ROWID

-- name: session_flush_also_view
-- also: {run id: [claim, [record key, …], children, [signal id, …], [[topic, key, since], …], [[key, step, kept], …],
-- [[key, at, data], …]]}; children: a document as `creating` takes it, or null; the last are the records to log.
-- All before it as in `flush`, which knows nothing of this: most flushes have none of it.
CREATE TEMP VIEW flush_also AS
SELECT NULL AS now, NULL AS worker, NULL AS claims, NULL AS records, NULL AS changes, NULL AS also

-- name: session_flush_also
CREATE TEMP TRIGGER flush_also_into INSTEAD OF INSERT ON flush_also BEGIN
    DELETE FROM also_new;
    DELETE FROM also_effects;

    -- What came with records that are all there came with them. The fence is the flush's own; nobody writes in between.
    INSERT INTO also_new (id, run)
    SELECT r.id, r.n
    FROM json_each(NEW.also) AS w
    CROSS JOIN durable_runs AS r
    WHERE r.id = w.key AND r.owner = NEW.worker AND r.claim = w.value ->> 0
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker)
        AND (w.value -> 1 = '[]' OR EXISTS (
            SELECT 1
            FROM json_each(w.value, '$[1]') AS k
            WHERE NOT EXISTS (SELECT 1 FROM durable_records AS h WHERE h.run = r.n AND h.key = k.value)));

    INSERT INTO durable_emits (run, key, at, data)
    SELECT a.run, e.value ->> 0, e.value ->> 1, e.value ->> 2
    FROM json_each(NEW.also) AS w
    CROSS JOIN also_new AS a
    CROSS JOIN json_each(w.value, '$[6]') AS e
    WHERE a.id = w.key
        AND NOT EXISTS (SELECT 1 FROM durable_records AS h WHERE h.run = a.run AND h.key = e.value ->> 0);

    -- Before the change: when it ends the run, what the run has not kept is free for others. Another run of this flush
    -- may speak of the same effect without having it.
    INSERT INTO also_effects (key, run, step, kept)
    SELECT d.key, d.run, d.step, e.value ->> 2
    FROM json_each(NEW.also) AS w
    CROSS JOIN also_new AS a
    CROSS JOIN json_each(w.value, '$[5]') AS e
    CROSS JOIN durable_effects AS d
    WHERE a.id = w.key AND d.key = e.value ->> 0 AND d.run = a.run AND d.step = e.value ->> 1
    ON CONFLICT (key) DO UPDATE SET kept = excluded.kept;

    UPDATE durable_effects SET
        ended_at = NEW.now,
        kept = (SELECT e.kept FROM also_effects AS e WHERE e.key = durable_effects.key)
    WHERE key IN (SELECT key FROM also_effects);

    INSERT INTO flush (now, worker, claims, records, changes)
    VALUES (NEW.now, NEW.worker, NEW.claims, NEW.records, NEW.changes);

    UPDATE durable_effects SET data = (
        SELECT h.body ->> 3 FROM durable_records AS h WHERE h.run = durable_effects.run AND h.key = durable_effects.step)
    WHERE key IN (SELECT key FROM also_effects WHERE kept)
        AND (run, step) = (SELECT e.run, e.step FROM also_effects AS e WHERE e.key = durable_effects.key);

    UPDATE durable_signals SET consumed = 1
    WHERE n IN (
        SELECT s.n
        FROM json_each(NEW.also) AS w
        CROSS JOIN also_new AS a
        CROSS JOIN json_each(w.value, '$[3]') AS c
        CROSS JOIN durable_signals AS s
        WHERE a.id = w.key AND s.run = a.run AND s.id = c.value);

    INSERT INTO creating (now, runs)
    SELECT NEW.now, w.value ->> 2
    FROM json_each(NEW.also) AS w
    CROSS JOIN also_new AS a
    WHERE a.id = w.key AND w.value ->> 2 IS NOT NULL;

    -- After the change: what is there already wakes a run that this very flush parks.
    INSERT INTO durable_awaited (run, topic, key, since, at)
    SELECT a.run, e.value ->> 0, e.value ->> 1, e.value ->> 2, NEW.now
    FROM json_each(NEW.also) AS w
    CROSS JOIN also_new AS a
    CROSS JOIN json_each(w.value, '$[4]') AS e
    WHERE a.id = w.key;
END

-- name: flush_also
INSERT INTO flush_also (now, worker, claims, records, changes, also) VALUES (?, ?, ?, ?, ?, ?)
