-- Looking after the system: workers, counts, tokens, and what may be wrong.

-- name: workers
-- A worker is one row for each lane, which expire together.
SELECT w.id, w.host, w.pid, w.started_at, w.expires_at, w.expires_at > now(), (
    SELECT count(DISTINCT u.id)
    FROM durable.claims AS c
    CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS x
        WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = w.id) IS TRUE LIMIT 1
    ) AS held
    WHERE c.worker = w.id)
FROM (
    SELECT id, max(host) AS host, max(pid) AS pid, min(started_at) AS started_at, max(expires_at) AS expires_at
    FROM durable.workers GROUP BY id
) AS w
ORDER BY w.id

-- name: census
-- $1 shard. What has not ended is due by time (runs_ready), rests (runs_resting) or is held (claims), and only one of these.
-- A run can stand in two claims: of the worker that lost it, and of the one that has it. The answer's first row is without
-- a queue, so that it has the time even when there are no runs.
WITH live AS (
    SELECT r.route, r.state, r.ready_at FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.ready_at IS NOT NULL
    UNION ALL
    SELECT r.route, r.state, NULL FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.resting
    UNION ALL
    SELECT held.route, held.state, NULL
    FROM (
        SELECT DISTINCT c.shard, u.id FROM durable.claims AS c CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
        WHERE c.shard = $1::smallint
    ) AS n
    CROSS JOIN LATERAL (
        SELECT x.route, x.state FROM durable.runs AS x
        WHERE x.shard = n.shard AND x.id = n.id AND (x.owner IS NOT NULL) IS TRUE LIMIT 1
    ) AS held
)
SELECT now(), NULL AS queue, NULL AS workflow, NULL AS state, 0, 0, NULL
UNION ALL
SELECT now(), o.queue, o.workflow, l.state, l.count, l.ready, l.oldest
FROM (
    SELECT route, state, count(*), count(*) FILTER (WHERE ready_at <= now()) AS ready,
           min(ready_at) FILTER (WHERE ready_at <= now()) AS oldest
    FROM live GROUP BY route, state
) AS l
JOIN durable.routes AS o ON o.id = l.route

-- name: put_token
-- $1 name, $2 prefix, $3 digest, $4 scopes, $5 created at, $6 expires at. The later statement sees what was in its way.
INSERT INTO durable.tokens (name, prefix, digest, scopes, created_at, expires_at)
VALUES ($1::text, $2::text, $3::text, $4::text, $5::timestamptz, $6::timestamptz)
ON CONFLICT (name) DO NOTHING

-- name: list_tokens
SELECT name, scopes, created_at, expires_at, digest FROM durable.tokens ORDER BY name

-- name: find_tokens
-- $1 prefix.
SELECT name, scopes, created_at, expires_at, digest FROM durable.tokens WHERE prefix = $1::text

-- name: named_token
-- $1 name.
SELECT digest FROM durable.tokens WHERE name = $1::text

-- name: delete_token
-- $1 name.
DELETE FROM durable.tokens WHERE name = $1::text RETURNING name

-- name: stranded_runs
-- $1 shard. Runs that rest and that nothing will wake: they are not paused, no turn and no place is ahead of them, and of
-- their history nothing waits: no signal, event or child that it has called, no effect that another makes. What was sent and
-- has not been drained yet will wake its run.
SELECT r.id
FROM durable.runs AS r
WHERE r.shard = $1::smallint AND r.resting AND r.state <> 'paused'
  AND NOT EXISTS (SELECT FROM durable.turns AS t WHERE t.shard = r.shard AND t.run_id = r.id AND t.waits)
  AND NOT EXISTS (SELECT FROM durable.blocked AS b WHERE b.shard = r.shard AND b.run_id = r.id)
  AND NOT EXISTS (SELECT FROM durable.wakes AS w WHERE w.shard = r.shard AND w.run_id = r.id)
  AND NOT (r.state IN ('waiting', 'compensating') AND (
      EXISTS (SELECT FROM durable.awaited AS a WHERE a.shard = $1::smallint AND a.run_id = r.id)
      OR EXISTS (
          SELECT FROM durable.history AS h
          WHERE h.shard = r.shard AND h.run_id = r.id AND h.kind IN ('wait', 'call') AND h.key NOT LIKE '/%'
            AND NOT EXISTS (
                SELECT FROM durable.history AS w
                WHERE w.shard = h.shard AND w.run_id = h.run_id AND w.key = h.key || '/woke'))))
ORDER BY r.id

-- name: free_stranded
-- $1 shard, $2 runs that were found. Only those that still rest: whoever woke one since has changed that.
INSERT INTO durable.runs AS run (shard, id)
SELECT r.shard, r.id
FROM unnest($2::uuid[]) AS n (id)
CROSS JOIN LATERAL (
    SELECT x.shard, x.id FROM durable.runs AS x
    WHERE x.shard = $1::smallint AND x.id = n.id AND x.resting AND (x.state <> 'paused') IS TRUE
    FOR NO KEY UPDATE SKIP LOCKED
) AS r
ON CONFLICT (shard, id) DO UPDATE
SET ready_at = now(), state = CASE run.state WHEN 'running' THEN 'pending' ELSE run.state END
RETURNING run.id

-- name: expired_leases
-- Workers whose every lane has expired, and the runs that they held.
SELECT count(*), coalesce(sum(held.count), 0)
FROM (SELECT id FROM durable.workers GROUP BY id HAVING max(expires_at) <= now()) AS w
CROSS JOIN LATERAL (
    SELECT count(DISTINCT u.id)
    FROM durable.claims AS c
    CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS x
        WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = w.id) IS TRUE LIMIT 1
    ) AS run
    WHERE c.worker = w.id
) AS held

-- name: usable_indexes
-- $1 schema.
SELECT c.relname
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND i.indisvalid AND i.indisready

-- name: missing_rights
-- $1 schema. What this role may not do: [what, name]. The migrations are only read. CASE, for conditions side by side are
-- asked in any order, and what is no sequence cannot be asked about as one.
SELECT CASE c.relkind WHEN 'S' THEN 'sequence' ELSE 'table' END, c.relname
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1::text AND c.relname <> 'migrations' AND CASE
    WHEN c.relkind IN ('r', 'p') THEN NOT (
        has_table_privilege(c.oid, 'SELECT') AND has_table_privilege(c.oid, 'INSERT')
        AND has_table_privilege(c.oid, 'UPDATE') AND has_table_privilege(c.oid, 'DELETE'))
    WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'USAGE')
    ELSE false END
ORDER BY 1, 2

-- name: long_transactions
-- $1 seconds. Of this database, the oldest first: [pid or name, whose, seconds]. Such a transaction keeps vacuum from
-- removing what has died since it began. What others do is only shown to roles with pg_read_all_stats: whether this one is.
SELECT a.pid::text, coalesce(nullif(a.application_name, ''), 'an unnamed application'),
       extract(epoch FROM now() - a.xact_start)::float8
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
  AND a.xact_start < now() - make_interval(secs => $1::float8)
UNION ALL
SELECT p.gid, 'a prepared transaction', extract(epoch FROM now() - p.prepared)::float8
FROM pg_prepared_xacts AS p
WHERE p.database = current_database() AND p.prepared < now() - make_interval(secs => $1::float8)
ORDER BY 3 DESC

-- name: settings
-- For the whole server, this database or this role, whichever says it last.
SELECT current_setting('synchronous_commit'), current_setting('fsync'), current_setting('full_page_writes'),
       pg_has_role('pg_read_all_stats', 'USAGE')
