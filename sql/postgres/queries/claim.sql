-- A claim: drain_wakes (signals.sql), claim_runs, claim_histories, claim_signals and claim_rest in one transaction and one
-- round trip. Histories and signals are read by later statements, whose snapshots are newer than every row that claim_runs
-- took: read by the same one, a record could be missing, and its step would run twice without any crash; or a signal that
-- the counter of wakes counts already, and the run would park and not be woken.
-- Numbers and arrays stand in sub-selects, which hide their size from the planner: where it counts on small ones, a plan
-- for these very parameters looks cheaper than the general one, and it plans anew each time (2 ms against 0.3).

-- name: claim_runs
-- $1 worker, $2 shard, $3 routes, $4 limit, $5 batch, $6 and $7 warm runs and the claim numbers seen, $8 batches done,
-- $9 the limits of queues that the client knows: with others the fence does not hold (see queues.sql).
-- One probe of runs_ready for each priority and route; the outer LIMIT stops the probes, so no more rows are locked
-- than taken. A batch that is sent again takes nothing and answers what it took.
--
-- held     whether the worker holds a suspect: asked once, and only when a probe has met one.
-- picked   runs that are no suspects, and suspects when the worker holds none; of those, chosen takes the first.
--          A run's takeovers stand in its row until it is claimed or reaped again; what it has recorded since makes
--          it none.
-- taken    by their places: see commit_writes. A row that somebody has changed since the snapshot is passed by, and in the
--          answer a row of nulls says so at the end: the claim was short for no lack of runs, and the next one comes at once.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers
    WHERE id = $1::uuid AND lane = 'claim' AND limits IS NOT DISTINCT FROM $9::uuid FOR KEY SHARE
), forgotten AS (
    DELETE FROM durable.claims WHERE worker = $1::uuid AND batch = ANY ((SELECT $8::uuid[])::uuid[])
), held AS MATERIALIZED (
    SELECT EXISTS (
        SELECT FROM durable.claims AS c
        CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
        CROSS JOIN LATERAL (
            SELECT EXISTS (
                SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
                AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) AS progress
            FROM durable.runs AS r
            WHERE r.shard = c.shard AND r.id = u.id AND (r.owner = $1::uuid) IS TRUE AND r.takeovers >= 2 LIMIT 1
        ) AS run
        WHERE c.worker = $1::uuid AND NOT run.progress
    ) AS a_suspect
), picked AS MATERIALIZED (
    SELECT run.*
    FROM (
        SELECT p.priority::smallint AS priority, r.route
        FROM lane CROSS JOIN generate_series(0, 9) AS p (priority)
        CROSS JOIN unnest((SELECT $3::integer[])) WITH ORDINALITY AS r (route, turn)
        WHERE NOT EXISTS (SELECT FROM durable.claims WHERE worker = $1::uuid AND batch = $5::uuid)
        ORDER BY p.priority, r.turn
    ) AS slot
    CROSS JOIN LATERAL (
        SELECT r.ctid AS place, r.id, run.suspect
        FROM durable.runs AS r
        CROSS JOIN LATERAL (
            SELECT r.takeovers >= 2 AND NOT EXISTS (
                SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
                AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) AS suspect
        ) AS run
        WHERE r.shard = $2::smallint AND r.route = slot.route AND r.priority = slot.priority AND r.ready_at <= now() /* only this run */
          AND NOT (run.suspect AND (SELECT a_suspect FROM held))
        ORDER BY r.ready_at
        LIMIT (SELECT $4::integer)
        FOR NO KEY UPDATE OF r SKIP LOCKED
    ) AS run
    LIMIT (SELECT $4::integer)
), chosen AS (
    SELECT place, id, row_number() OVER () AS turn
    FROM (
        SELECT place, id FROM picked WHERE NOT suspect
        UNION ALL
        (SELECT place, id FROM picked WHERE suspect LIMIT 1)
    ) AS p
), taken AS (
    UPDATE durable.runs AS run
    SET state = CASE run.state WHEN 'compensating' THEN 'compensating' ELSE 'running' END,
        owner = $1::uuid, claim = run.claim + 1, ready_at = NULL, started_at = coalesce(run.started_at, now()),
        takeovers = CASE WHEN run.takeovers > 0 AND EXISTS (
            SELECT FROM durable.history AS h WHERE h.shard = run.shard AND h.run_id = run.id
            AND h.seq > run.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) THEN 0 ELSE run.takeovers END
    WHERE run.ctid = ANY (ARRAY(SELECT place FROM chosen))
    RETURNING run.*
), recorded AS (
    INSERT INTO durable.claims (worker, batch, shard, run_ids, replay, inbox)
    SELECT $1::uuid, $5::uuid, $2::smallint, array_agg(t.id),
           coalesce(array_agg(t.id) FILTER (WHERE t.claim > 1 AND w.id IS NULL), '{}'),
           coalesce(array_agg(t.id) FILTER (WHERE t.wakes > 0), '{}')
    FROM taken AS t
    LEFT JOIN unnest((SELECT $6::uuid[]), (SELECT $7::integer[])) AS w (id, claim) ON w.id = t.id AND w.claim = t.claim - 1
    HAVING count(*) > 0
), told AS (
    -- Asked before it was claimed. Seen by claim_rest, whose snapshot is newer.
    INSERT INTO durable.requests (shard, worker, run_id, wakes)
    SELECT t.shard, $1::uuid, t.id, t.wakes FROM taken AS t WHERE t.requested IS NOT NULL
    ON CONFLICT (shard, worker, run_id, wakes) DO NOTHING
)
(
    SELECT t.id, t.shard, t.route, t.state, t.created_at, t.started_at, t.key, t.tags::text, t.claim, t.takeovers, t.wakes,
           t.input, t.error, t.seed, t.requested, t.priority, t.limit_key, t.concurrency_key, t.parent, t.linked,
           t.schedule, t.tick
    FROM taken AS t JOIN chosen AS c ON c.id = t.id
    ORDER BY c.turn
)
UNION ALL
SELECT r.id, r.shard, r.route, r.state, r.created_at, r.started_at, r.key, r.tags::text, r.claim, r.takeovers, r.wakes,
       r.input, r.error, r.seed, r.requested, r.priority, r.limit_key, r.concurrency_key, r.parent, r.linked,
       r.schedule, r.tick
FROM durable.claims AS c
CROSS JOIN lane
CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.runs AS x WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = $1::uuid) IS TRUE LIMIT 1
) AS r
WHERE c.worker = $1::uuid AND c.batch = $5::uuid
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
       NULL, NULL
WHERE (SELECT count(*) FROM taken) < (SELECT count(*) FROM chosen)

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

-- name: claim_rest
-- $1 shard, $2 routes, $3 worker, $4 batch. The server's time; when the next of these routes' runs becomes due; what is
-- asked of the worker's runs: {run id: request}; which of them got signals that it has not asked for; whether events or
-- waits for them are to be compared; and which limits of queues the worker has to know.
--
-- asked    a probe of an empty index when nothing is.
-- over     rows whose run has left, or whose request was withdrawn; or about signals that this very claim has brought with
--          the run (xmin: a claim that is sent again has not). Nobody else deletes or locks them but unread_runs, which does
--          not wait: another claim of this worker waits for no row of this one (its lane is one connection), and the reaper
--          touches them only when the lane's row is gone, which claim_runs holds. A request that is stored at this moment
--          has another number of wakes, so it is a new row: what this snapshot takes for settled cannot be about that one.
WITH asked AS MATERIALIZED (
    SELECT q.shard, q.run_id, q.wakes, q.signalled, run.requested, run.held, run.brought
    FROM (SELECT FROM durable.workers WHERE id = $3::uuid AND lane = 'claim') AS lane
    CROSS JOIN LATERAL (
        SELECT x.* FROM durable.requests AS x WHERE x.shard = $1::smallint AND x.worker = $3::uuid OFFSET 0
    ) AS q
    LEFT JOIN LATERAL (
        SELECT r.requested, true AS held, (r.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE AND EXISTS (
            SELECT FROM durable.claims AS c
            WHERE c.worker = $3::uuid AND c.batch = $4::uuid AND r.id = ANY (c.run_ids)) AS brought
        FROM durable.runs AS r
        WHERE r.shard = q.shard AND r.id = q.run_id AND (r.owner = $3::uuid) IS TRUE LIMIT 1
    ) AS run ON true
), over AS (
    DELETE FROM durable.requests AS q USING asked AS a
    WHERE CASE WHEN a.signalled THEN a.held IS NULL OR a.brought ELSE a.requested IS NULL END
      AND q.shard = $1::smallint AND q.worker = $3::uuid AND q.run_id = a.run_id AND q.wakes = a.wakes
)
SELECT now(), min(next.ready_at),
       (SELECT json_object_agg(run_id, requested)::text FROM asked WHERE requested IS NOT NULL AND NOT signalled),
       ARRAY(SELECT DISTINCT run_id FROM asked WHERE signalled AND held AND NOT brought ORDER BY run_id),
       (SELECT true FROM durable.stirred AS s WHERE s.shard = $1::smallint ORDER BY s.id LIMIT 1) IS TRUE,
       (SELECT coalesce(limits::text, '') FROM durable.workers WHERE id = $3::uuid AND lane = 'claim')
FROM generate_series(0, 9) AS p (priority)
CROSS JOIN unnest((SELECT $2::integer[])) AS route (id)
CROSS JOIN LATERAL (
    SELECT r.ready_at FROM durable.runs AS r
    WHERE r.shard = $1::smallint AND r.route = route.id AND r.priority = p.priority::smallint AND r.ready_at > now()
    ORDER BY r.ready_at
    LIMIT 1
) AS next

-- name: look
-- $1 shard, $2 routes, $3 worker, $4 the limits of queues that the client knows. Whether a claim of these routes, none of
-- whose queues has limits, would find nothing and do nothing; and when the next of their runs becomes due.
-- One statement in the place of a claim's seven, for workers that look without a reason: most of the time it reads four empty
-- tables, a row of its own and the ends of an index. It locks nothing and promises nothing: what is committed after its snapshot is for the
-- next look, as it would be for a claim.
SELECT (next.ready_at > now()) IS NOT FALSE
       AND (SELECT true FROM durable.wakes AS x WHERE x.shard = $1::smallint ORDER BY x.id LIMIT 1) IS NULL
       AND (SELECT true FROM durable.stirred AS x WHERE x.shard = $1::smallint ORDER BY x.id LIMIT 1) IS NULL
       AND (SELECT true FROM durable.passed AS x WHERE x.shard = $1::smallint ORDER BY x.run_id LIMIT 1) IS NULL
       AND NOT EXISTS (SELECT FROM durable.requests AS x WHERE x.shard = $1::smallint AND x.worker = $3::uuid)
       AND EXISTS (
           SELECT FROM durable.workers AS x
           WHERE x.id = $3::uuid AND x.lane = 'claim' AND x.limits IS NOT DISTINCT FROM $4::uuid),
       next.ready_at
FROM (
    SELECT min(first.ready_at) AS ready_at
    FROM generate_series(0, 9) AS p (priority)
    CROSS JOIN unnest((SELECT $2::integer[])) AS route (id)
    CROSS JOIN LATERAL (
        SELECT r.ready_at FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.route = route.id AND r.priority = p.priority::smallint AND r.ready_at IS NOT NULL
        ORDER BY r.ready_at
        LIMIT 1
    ) AS first
) AS next

-- name: owned
-- $1 worker.
SELECT DISTINCT r.shard, r.id, r.claim, r.linked
FROM durable.claims AS c
CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
CROSS JOIN LATERAL (
    SELECT x.shard, x.id, x.claim, x.linked FROM durable.runs AS x
    WHERE x.shard = c.shard AND x.id = u.id AND (x.owner = $1::uuid) IS TRUE LIMIT 1
) AS r
WHERE c.worker = $1::uuid

-- name: routes
SELECT id, workflow, version, queue FROM durable.routes

-- name: add_routes
-- $1 and $2 marks, $3 workflows, $4 versions, $5 queues.
INSERT INTO durable.routes (workflow, version, queue)
SELECT * FROM unnest(string_to_array($3, $1, $2), string_to_array($4, $1, $2), string_to_array($5, $1, $2))
              AS r (workflow, version, queue)
ORDER BY workflow, version, queue
ON CONFLICT (workflow, version, queue) DO NOTHING
