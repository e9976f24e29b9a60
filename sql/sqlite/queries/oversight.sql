-- Looking after the system: workers, counts, tokens, and what may be wrong. As with runs one row with one document.

-- name: workers
SELECT json_group_array(json_array(id, host, pid, started_at, expires_at, held))
FROM (
    SELECT w.*, (
        SELECT count(*)
        FROM durable_claims AS b
        CROSS JOIN json_each(b.runs) AS j
        CROSS JOIN durable_runs AS r
        WHERE b.worker = w.id AND r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = w.id) AS held
    FROM durable_workers AS w
    ORDER BY w.id)

-- name: census
-- What has not ended is due by time, rests or is held: three indexes, and no choice for the planner.
-- [[queue, workflow, state, runs, ready, when the oldest of them became ready], …]
WITH live (queue, workflow, state, ready_at) AS (
    SELECT queue, workflow, state, ready_at
    FROM durable_runs INDEXED BY durable_runs_ready
    WHERE ready_at IS NOT NULL
    UNION ALL
    SELECT queue, workflow, state, NULL
    FROM durable_runs INDEXED BY durable_runs_resting
    WHERE ready_at IS NULL AND owner IS NULL AND ended_at IS NULL
    UNION ALL
    SELECT r.queue, r.workflow, r.state, NULL
    FROM durable_claims AS b
    CROSS JOIN json_each(b.runs) AS j
    CROSS JOIN durable_runs AS r
    WHERE r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = b.worker)
SELECT json_group_array(json_array(queue, workflow, state, runs, ready, oldest))
FROM (
    SELECT queue, workflow, state, count(*) AS runs, count(*) FILTER (WHERE ready_at <= :now) AS ready,
        min(ready_at) FILTER (WHERE ready_at <= :now) AS oldest
    FROM live
    GROUP BY queue, workflow, state)

-- name: put_token
INSERT INTO durable_tokens (name, prefix, digest, scopes, created_at, expires_at)
SELECT w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, w.value ->> 4, w.value ->> 5
FROM json_each(json_array(json(:token))) AS w
WHERE true
ON CONFLICT (name) DO NOTHING

-- name: tokens
SELECT json_group_array(json_array(name, scopes, created_at, expires_at, digest))
FROM (SELECT * FROM durable_tokens ORDER BY name)

-- name: find_tokens
SELECT json_group_array(json_array(name, scopes, created_at, expires_at, digest))
FROM durable_tokens
WHERE prefix = :prefix

-- name: named_token
SELECT digest FROM durable_tokens WHERE name = :name

-- name: delete_token
DELETE FROM durable_tokens WHERE name = :name

-- name: stranded_runs
-- Runs that rest and that nothing will wake: not paused, not in a line behind others, not blocked by a limit, and
-- nothing of their history waits, no signal, event or child, and no effect that another run makes.
SELECT json_group_array(id)
FROM (
    SELECT r.id
    FROM durable_runs AS r INDEXED BY durable_runs_resting
    WHERE r.ready_at IS NULL AND r.owner IS NULL AND r.ended_at IS NULL AND r.state <> 'paused'
        AND NOT EXISTS (SELECT 1 FROM durable_lines AS l WHERE l.run = r.n AND l.queued)
        AND NOT EXISTS (SELECT 1 FROM durable_blocked AS b WHERE b.run = r.n AND b.waiting)
        AND NOT (r.state IN ('waiting', 'compensating') AND (
            EXISTS (SELECT 1 FROM durable_awaited AS a WHERE a.run = r.n)
            OR EXISTS (
                SELECT 1
                FROM durable_records AS h
                WHERE h.run = r.n AND h.body ->> 1 IN ('wait', 'call') AND h.key NOT LIKE '/%'
                    AND NOT EXISTS (
                        SELECT 1 FROM durable_records AS w WHERE w.run = h.run AND w.key = h.key || '/woke'))))
    ORDER BY r.id)

-- name: free_stranded
-- Those of the runs that still rest.
UPDATE durable_runs SET ready_at = :now, state = CASE state WHEN 'running' THEN 'pending' ELSE state END
WHERE id IN (SELECT value FROM json_each(:runs))
    AND ready_at IS NULL AND owner IS NULL AND ended_at IS NULL AND state <> 'paused'

-- name: expired_leases
-- [workers, the runs that they hold]
SELECT json_array(count(*), coalesce(sum(held), 0))
FROM (
    SELECT (
        SELECT count(*)
        FROM durable_claims AS b
        CROSS JOIN json_each(b.runs) AS j
        CROSS JOIN durable_runs AS r
        WHERE b.worker = w.id AND r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = w.id) AS held
    FROM durable_workers AS w
    WHERE w.expires_at <= :now)

-- name: parts
-- The indexes, triggers, tables and views that there are.
SELECT json_group_array(name) FROM sqlite_master WHERE name LIKE 'durable!_%' ESCAPE '!'

-- name: quick_check
-- Reads the whole file: asked on a connection of its own.
PRAGMA quick_check(1)
