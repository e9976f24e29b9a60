-- Creating, finding and reading runs. Every read gives one row with one JSON document: for each row that Python
-- fetches it lets go of the interpreter's lock, and gets it back from a busy event loop 5 ms later.

-- name: session_summary_docs
CREATE TEMP VIEW summary_docs AS
SELECT id, workflow, version, state, created_at, tags, queue, parent, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked) AS doc
FROM durable_runs

-- name: session_run_docs_without_input
CREATE TEMP VIEW run_docs_without_input AS
SELECT n, id, ended_at, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked,
    NULL, result, error, seed, wakes, n) AS doc
FROM durable_runs

-- name: session_run_docs
CREATE TEMP VIEW run_docs AS
SELECT n, id, owner, claim, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked,
    (SELECT input FROM durable_inputs WHERE run = n), result, error, seed, wakes, n) AS doc
FROM durable_runs

-- name: session_creating_view
-- runs: [[id, shard, workflow, version, ready_at, delay, key, request, input_hash, seed, tags, input, queue, limit_key,
-- concurrency_key, parent, parent_key, priority], …]
CREATE TEMP VIEW creating AS SELECT NULL AS now, NULL AS runs

-- name: session_creating
CREATE TEMP TRIGGER creating_into INSTEAD OF INSERT ON creating BEGIN
    -- In order, so that of two triggers with one key in one call the first wins. A run that exists gets no key.
    INSERT INTO durable_keys (workflow, key, run_id)
    SELECT w.value ->> 2, w.value ->> 6, w.value ->> 0
    FROM json_each(NEW.runs) AS w
    WHERE w.value ->> 6 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE id = w.value ->> 0)
    ON CONFLICT DO NOTHING;

    INSERT INTO durable_runs (
        id, shard, workflow, version, state, created_at, ready_at, key, request, input_hash, seed, tags, queue,
        limit_key, concurrency_key, parent, parent_key, priority, linked)
    SELECT w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, 'pending', NEW.now,
        coalesce(w.value ->> 4, NEW.now + (w.value ->> 5)),
        w.value ->> 6, w.value ->> 7, w.value ->> 8, w.value ->> 9, w.value ->> 10, w.value ->> 12,
        w.value ->> 13, w.value ->> 14, w.value ->> 15, w.value ->> 16, w.value ->> 17,
        w.value ->> 14 IS NOT NULL OR w.value ->> 15 IS NOT NULL
    FROM json_each(NEW.runs) AS w
    WHERE w.value ->> 6 IS NULL OR w.value ->> 0 = (
        SELECT run_id FROM durable_keys WHERE workflow = w.value ->> 2 AND key = w.value ->> 6)
    ON CONFLICT DO NOTHING;

    INSERT INTO durable_inputs (run, input)
    SELECT r.n, w.value ->> 11
    FROM json_each(NEW.runs) AS w
    CROSS JOIN durable_runs AS r
    WHERE w.value ->> 11 IS NOT NULL AND r.id = w.value ->> 0 AND r.input_hash = w.value ->> 8
    ON CONFLICT DO NOTHING;
END

-- name: create
INSERT INTO creating (now, runs) VALUES (?, ?)

-- name: created
-- For each trigger the run that stands: the key's, else that of the id.
SELECT json_group_array(json_array(r.id, r.request, r.workflow, r.key, r.input_hash))
FROM json_each(:runs) AS w
LEFT JOIN durable_runs AS r ON r.id = coalesce(
    (SELECT run_id FROM durable_keys WHERE workflow = w.value ->> 2 AND key = w.value ->> 6), w.value ->> 0)

-- name: exists
SELECT EXISTS (SELECT 1 FROM durable_runs WHERE id = :id)

-- name: get_runs
SELECT json_group_array(json(d.doc)) FROM json_each(:ids) AS w CROSS JOIN run_docs AS d WHERE d.id = w.value

-- name: ended
SELECT json_group_array(json(d.doc))
FROM json_each(:ids) AS w
CROSS JOIN run_docs_without_input AS d
WHERE d.id = w.value AND d.ended_at IS NOT NULL

-- name: find_key
SELECT run_id FROM durable_keys WHERE workflow = :workflow AND key = :key

-- name: list_runs
SELECT json_group_array(json(doc))
FROM (
    SELECT d.doc
    FROM summary_docs AS d
    WHERE d.id < :before
        AND (:workflow IS NULL OR d.workflow = :workflow)
        AND (:version IS NULL OR d.version = :version)
        AND (:state IS NULL OR d.state = :state)
        AND (:queue IS NULL OR d.queue = :queue)
        AND (:created_after IS NULL OR d.created_at >= :created_after)
        AND (:created_before IS NULL OR d.created_at < :created_before)
        AND NOT EXISTS (
            SELECT 1 FROM json_each(:tags) AS t
            WHERE NOT EXISTS (SELECT 1 FROM json_each(d.tags) AS x WHERE x.key = t.key AND x.value = t.value))
    ORDER BY d.id DESC
    LIMIT :at_most)

-- name: list_children
-- The same for the children of one run, by their own index.
SELECT json_group_array(json(doc))
FROM (
    SELECT d.doc
    FROM summary_docs AS d
    WHERE d.parent = :parent AND d.id < :before
        AND (:workflow IS NULL OR d.workflow = :workflow)
        AND (:version IS NULL OR d.version = :version)
        AND (:state IS NULL OR d.state = :state)
        AND (:queue IS NULL OR d.queue = :queue)
        AND (:created_after IS NULL OR d.created_at >= :created_after)
        AND (:created_before IS NULL OR d.created_at < :created_before)
        AND NOT EXISTS (
            SELECT 1 FROM json_each(:tags) AS t
            WHERE NOT EXISTS (SELECT 1 FROM json_each(d.tags) AS x WHERE x.key = t.key AND x.value = t.value))
    ORDER BY d.id DESC
    LIMIT :at_most)

-- name: history
SELECT '[' || coalesce(group_concat('[' || r.run || ',' || json_quote(r.key) || ',' || r.body || ']'), '') || ']'
FROM durable_runs AS u
CROSS JOIN durable_records AS r
WHERE u.id = :id AND r.run = u.n
