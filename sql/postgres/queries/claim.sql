-- A claim: claim_runs, claim_histories and claim_next in one transaction and one round trip. The histories are read by a
-- second statement, whose snapshot is newer than every row that the first one took: read by the first, a record
-- could be missing, and its step would run twice without any crash.

-- name: claim_runs
-- $1 worker, $2 shard, $3 routes, $4 limit, $5 batch, $6 and $7 warm runs and the claim numbers seen, $8 batches done.
-- One probe of runs_ready for each priority and route; the outer LIMIT stops the probes, so no more rows are locked
-- than taken. A batch that is sent again takes nothing and answers what it took.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = 'claim' FOR KEY SHARE
), forgotten AS (
    DELETE FROM durable.claims WHERE worker = $1::uuid AND batch = ANY ($8::uuid[])
), picked AS MATERIALIZED (
    SELECT run.*
    FROM (
        SELECT p.priority::smallint AS priority, r.route
        FROM lane CROSS JOIN generate_series(0, 9) AS p (priority)
        CROSS JOIN unnest($3::integer[]) WITH ORDINALITY AS r (route, turn)
        WHERE NOT EXISTS (SELECT FROM durable.claims WHERE worker = $1::uuid AND batch = $5::uuid)
        ORDER BY p.priority, r.turn
    ) AS slot
    CROSS JOIN LATERAL (
        SELECT r.shard, r.id FROM durable.runs AS r
        WHERE r.shard = $2::smallint AND r.route = slot.route AND r.priority = slot.priority AND r.ready_at <= now()
        ORDER BY r.ready_at
        LIMIT $4::integer
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
    LIMIT $4::integer
), taken AS (
    INSERT INTO durable.runs AS run (shard, id, owner)
    SELECT shard, id, $1::uuid FROM picked
    ON CONFLICT (shard, id) DO UPDATE
    SET state = CASE run.state WHEN 'compensating' THEN 'compensating' ELSE 'running' END,
        owner = excluded.owner, claim = run.claim + 1, ready_at = NULL, started_at = coalesce(run.started_at, now()),
        takeovers = CASE WHEN run.takeovers > 0 AND EXISTS (
            SELECT FROM durable.history AS h WHERE h.shard = run.shard AND h.run_id = run.id
            AND h.seq > run.takeover_seq AND h.kind <> 'takeover') THEN 0 ELSE run.takeovers END
    RETURNING run.*
), recorded AS (
    INSERT INTO durable.claims (worker, batch, shard, run_ids, replay)
    SELECT $1::uuid, $5::uuid, $2::smallint, array_agg(t.id),
           coalesce(array_agg(t.id) FILTER (WHERE t.claim > 1 AND w.id IS NULL), '{}')
    FROM taken AS t
    LEFT JOIN unnest($6::uuid[], $7::integer[]) AS w (id, claim) ON w.id = t.id AND w.claim = t.claim - 1
    HAVING count(*) > 0
)
SELECT t.id, t.shard, t.route, t.state, t.created_at, t.started_at, t.key, t.tags::text, t.claim, t.takeovers, t.wakes,
       t.input, t.error, t.seed
FROM taken AS t
UNION ALL
SELECT r.id, r.shard, r.route, r.state, r.created_at, r.started_at, r.key, r.tags::text, r.claim, r.takeovers, r.wakes,
       r.input, r.error, r.seed
FROM durable.claims AS c
CROSS JOIN lane
CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.runs AS x WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = $1::uuid) IS TRUE LIMIT 1
) AS r
WHERE c.worker = $1::uuid AND c.batch = $5::uuid

-- name: claim_histories
-- $1 worker, $2 batch. A first claim has no history, and a warm run's is in the worker's memory: neither is read.
SELECT h.run_id, h.seq, h.key, h.kind, h.at, h.data, h.failed, h.attempt, h.duration, h.begun, h.compensable,
       h.due_at, h.worker
FROM durable.claims AS c
CROSS JOIN LATERAL unnest(c.replay) AS r (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.history AS x WHERE x.shard = c.shard AND x.run_id = r.id ORDER BY x.seq OFFSET 0
) AS h
WHERE c.worker = $1::uuid AND c.batch = $2::uuid

-- name: claim_next
-- $1 shard, $2 routes. The server's time, and when the next of these routes' runs becomes due.
SELECT now(), min(next.ready_at)
FROM generate_series(0, 9) AS p (priority)
CROSS JOIN unnest($2::integer[]) AS route (id)
CROSS JOIN LATERAL (
    SELECT r.ready_at FROM durable.runs AS r
    WHERE r.shard = $1::smallint AND r.route = route.id AND r.priority = p.priority::smallint AND r.ready_at > now()
    ORDER BY r.ready_at
    LIMIT 1
) AS next

-- name: owned
-- $1 worker.
SELECT DISTINCT r.shard, r.id, r.claim
FROM durable.claims AS c
CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
CROSS JOIN LATERAL (
    SELECT x.shard, x.id, x.claim FROM durable.runs AS x
    WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = $1::uuid) IS TRUE LIMIT 1
) AS r
WHERE c.worker = $1::uuid

-- name: routes
SELECT id, workflow, version FROM durable.routes

-- name: add_routes
-- $1 and $2 marks, $3 workflows, $4 versions.
INSERT INTO durable.routes (workflow, version)
SELECT * FROM unnest(string_to_array($3, $1, $2), string_to_array($4, $1, $2)) AS r (workflow, version)
ORDER BY workflow, version
ON CONFLICT (workflow, version, queue) DO NOTHING
