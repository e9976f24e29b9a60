-- Creating, finding and reading runs. Every read gives one row with one JSON document: for each row that Python
-- fetches it lets go of the interpreter's lock, and gets it back from a busy event loop 5 ms later.

-- name: session_summary_docs
CREATE TEMP VIEW summary_docs AS
SELECT id, workflow, version, state, created_at, tags, queue, parent, schedule, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked,
    schedule, tick) AS doc
FROM durable_runs

-- name: session_run_docs_without_input
CREATE TEMP VIEW run_docs_without_input AS
SELECT n, id, ended_at, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked,
    schedule, tick, NULL, result, error, seed, wakes, n) AS doc
FROM durable_runs

-- name: session_run_docs
CREATE TEMP VIEW run_docs AS
SELECT n, id, owner, claim, json_array(
    id, workflow, version, state, created_at, key, json(tags), started_at, ended_at, ready_at,
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked,
    schedule, tick, (SELECT input FROM durable_inputs WHERE run = n), result, error, seed, wakes, n) AS doc
FROM durable_runs

-- name: session_creating_view
-- runs: [[id, shard, workflow, version, ready_at, delay, key, request, input_hash, seed, tags, input, queue, limit_key,
-- concurrency_key, parent, parent_key, priority, alone, debounce, schedule, tick], …]; alone: its concurrency key, when it
-- is refused while another run has it; debounce: [key, delay, max_delay], or null
CREATE TEMP VIEW creating AS SELECT NULL AS now, NULL AS runs

-- name: session_creating
CREATE TEMP TRIGGER creating_into INSTEAD OF INSERT ON creating BEGIN
    -- In order, so that of two triggers with one key in one call the first wins. A run that exists gets no key.
    INSERT INTO durable_keys (workflow, key, run_id)
    SELECT w.value ->> 2, w.value ->> 6, w.value ->> 0
    FROM json_each(NEW.runs) AS w
    WHERE w.value ->> 6 IS NOT NULL AND NOT EXISTS (SELECT 1 FROM durable_runs WHERE id = w.value ->> 0)
        AND NOT EXISTS (SELECT 1 FROM durable_lines WHERE workflow = w.value ->> 2 AND key = w.value ->> 18)
    ON CONFLICT DO NOTHING;

    INSERT INTO durable_runs (
        id, shard, workflow, version, state, created_at, ready_at, key, request, input_hash, seed, tags, queue,
        limit_key, concurrency_key, parent, parent_key, priority, linked, schedule, tick)
    SELECT w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, 'pending', NEW.now,
        coalesce(w.value ->> 4, NEW.now + (w.value ->> 5)),
        w.value ->> 6, w.value ->> 7, w.value ->> 8, w.value ->> 9, w.value ->> 10, w.value ->> 12,
        w.value ->> 13, w.value ->> 14, w.value ->> 15, w.value ->> 16, w.value ->> 17,
        w.value ->> 14 IS NOT NULL OR w.value ->> 15 IS NOT NULL, w.value ->> 20, w.value ->> 21
    FROM json_each(NEW.runs) AS w
    WHERE (w.value ->> 6 IS NULL OR w.value ->> 0 = (
            SELECT run_id FROM durable_keys WHERE workflow = w.value ->> 2 AND key = w.value ->> 6))
        AND NOT EXISTS (SELECT 1 FROM durable_lines WHERE workflow = w.value ->> 2 AND key = w.value ->> 18)
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

-- name: session_debouncing_runs
-- The runs that absorb a trigger, with what they were blocked as.
CREATE TEMP TABLE debouncing_runs (
    pos INTEGER PRIMARY KEY,  -- of the trigger in the document
    run INTEGER NOT NULL,
    queue TEXT NOT NULL,
    limit_key TEXT,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL
)

-- name: session_debouncing_view
-- runs: as for `creating`, each workflow and debounce key once
CREATE TEMP VIEW debouncing AS SELECT NULL AS now, NULL AS runs

-- name: session_debouncing
CREATE TEMP TRIGGER debouncing_into INSTEAD OF INSERT ON debouncing BEGIN
    DELETE FROM debouncing_runs;

    INSERT INTO debouncing_runs (pos, run, queue, limit_key, workflow, version)
    SELECT w.key, r.n, r.queue, r.limit_key, r.workflow, r.version
    FROM json_each(NEW.runs) AS w
    CROSS JOIN durable_debounces AS d
    CROSS JOIN durable_runs AS r
    WHERE d.workflow = w.value ->> 2 AND d.key = w.value ->> '$[19][0]'
        AND r.n = d.run AND r.started_at IS NULL AND r.ended_at IS NULL
        AND NOT EXISTS (SELECT 1 FROM durable_absorbed WHERE id = w.value ->> 0)
        AND NOT EXISTS (SELECT 1 FROM durable_keys WHERE workflow = w.value ->> 2 AND key = w.value ->> 6);

    INSERT INTO durable_absorbed (id, run)
    SELECT w.value ->> 0, d.run FROM debouncing_runs AS d CROSS JOIN json_each(NEW.runs) AS w WHERE w.key = d.pos;

    DELETE FROM durable_blocked WHERE run IN (SELECT run FROM debouncing_runs);

    UPDATE durable_runs SET (version, input_hash, tags, ready_at) = (
        SELECT w.value ->> 3, w.value ->> 8, w.value ->> 10,
            CASE WHEN durable_runs.state <> 'paused' THEN min(
                NEW.now + (w.value ->> '$[19][1]'),
                coalesce(durable_runs.created_at + (w.value ->> '$[19][2]'), NEW.now + (w.value ->> '$[19][1]')))
            END
        FROM debouncing_runs AS d
        CROSS JOIN json_each(NEW.runs) AS w
        WHERE d.run = durable_runs.n AND w.key = d.pos)
    WHERE n IN (SELECT run FROM debouncing_runs);

    INSERT INTO durable_going_on (queue, limit_key, workflow, version, tokens)
    SELECT queue, limit_key, workflow, version, 1 FROM debouncing_runs WHERE limit_key IS NOT NULL;

    DELETE FROM durable_inputs WHERE run IN (SELECT run FROM debouncing_runs);

    INSERT INTO durable_inputs (run, input)
    SELECT d.run, w.value ->> 11
    FROM debouncing_runs AS d
    CROSS JOIN json_each(NEW.runs) AS w
    WHERE w.key = d.pos AND w.value ->> 11 IS NOT NULL;

    INSERT INTO creating (now, runs)
    SELECT NEW.now, '[' || group_concat(w.value) || ']'
    FROM json_each(NEW.runs) AS w
    WHERE NOT EXISTS (SELECT 1 FROM durable_absorbed WHERE id = w.value ->> 0)
    HAVING count(*) > 0;

    INSERT INTO durable_debounces (workflow, key, run)
    SELECT r.workflow, w.value ->> '$[19][0]', r.n
    FROM json_each(NEW.runs) AS w
    CROSS JOIN durable_runs AS r
    WHERE r.id = w.value ->> 0 AND w.value ->> '$[19][0]' IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM durable_absorbed WHERE id = w.value ->> 0)
    ON CONFLICT (workflow, key) DO UPDATE SET run = excluded.run;

    INSERT INTO durable_absorbed (id, run)
    SELECT r.id, r.n
    FROM json_each(NEW.runs) AS w
    CROSS JOIN durable_runs AS r
    WHERE r.id = w.value ->> 0 AND w.value ->> '$[19][0]' IS NOT NULL
    ON CONFLICT DO NOTHING;
END

-- name: debounce
INSERT INTO debouncing (now, runs) VALUES (?, ?)

-- name: line
-- Who stands in the line of a concurrency key, the active one first.
SELECT json_group_array(id)
FROM (
    SELECT (SELECT id FROM durable_runs WHERE n = l.run) AS id
    FROM durable_lines AS l INDEXED BY durable_lines_key
    WHERE l.workflow = :workflow AND l.key = :key
    ORDER BY l.pos)

-- name: created
-- For each trigger the run that stands: the key's, else that of the id; the one that has absorbed it; and when none
-- stands, the one that is active under its concurrency key.
SELECT json_group_array(json_array(r.id, r.request, r.workflow, r.key, r.input_hash, CASE
    WHEN w.value ->> '$[19][0]' IS NOT NULL THEN (
        SELECT id FROM durable_runs WHERE n = (SELECT run FROM durable_absorbed WHERE id = w.value ->> 0))
    END, CASE
    WHEN r.id IS NULL THEN (
        SELECT id FROM durable_runs WHERE n = (
            SELECT run FROM durable_lines WHERE workflow = w.value ->> 2 AND key = w.value ->> 18
            ORDER BY pos
            LIMIT 1))
    END))
FROM json_each(:runs) AS w
LEFT JOIN durable_runs AS r ON r.id = coalesce(
    (SELECT run_id FROM durable_keys WHERE workflow = w.value ->> 2 AND key = w.value ->> 6), w.value ->> 0)

-- name: exists
SELECT EXISTS (SELECT 1 FROM durable_runs WHERE id = :id)

-- name: existing
SELECT json_group_array(r.id) FROM json_each(:runs) AS w CROSS JOIN durable_runs AS r WHERE r.id = w.value

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
        AND (:schedule IS NULL OR d.schedule = :schedule)
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

-- name: list_scheduled
-- The same for the runs of one schedule, by their own index.
SELECT json_group_array(json(doc))
FROM (
    SELECT d.doc
    FROM summary_docs AS d
    WHERE d.schedule = :schedule AND d.id < :before
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
