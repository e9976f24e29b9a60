-- Leases: register, renew, unregister, reap.

-- name: register
-- $1 worker, $2 seconds, $3 lanes, $4 host, $5 process. The version of the limits is locked: who changes it at this moment is waited
-- for, or waits, and then finds this row.
INSERT INTO durable.workers (id, lane, expires_at, host, pid, limits)
SELECT $1::uuid, lane, now() + make_interval(secs => $2::float8), $4::text, $5::integer,
       (SELECT version FROM durable.limits_version FOR SHARE)
FROM unnest($3::text[]) AS l (lane)
ON CONFLICT (id, lane) DO NOTHING

-- name: renew
-- $1 worker, $2 seconds. The rows are locked in one order. Answers how many lanes live, the server's time, and the
-- next expiry of another worker.
WITH lanes AS MATERIALIZED (
    SELECT id, lane FROM durable.workers WHERE id = $1::uuid ORDER BY lane FOR NO KEY UPDATE
), renewed AS (
    UPDATE durable.workers AS w SET expires_at = now() + make_interval(secs => $2::float8)
    FROM lanes AS l WHERE w.id = l.id AND w.lane = l.lane
    RETURNING 1
)
SELECT (SELECT count(*) FROM renewed), now(), (SELECT min(expires_at) FROM durable.workers WHERE id <> $1::uuid)

-- name: delete_worker
-- $1 worker. Waits for a transaction that holds the fence, at most lock_timeout.
WITH lanes AS MATERIALIZED (
    SELECT id, lane FROM durable.workers WHERE id = $1::uuid ORDER BY lane FOR UPDATE
)
DELETE FROM durable.workers AS w USING lanes AS l WHERE w.id = l.id AND w.lane = l.lane

-- name: leave_orderly
-- $1 worker.
UPDATE durable.claims SET orderly = true WHERE worker = $1::uuid

-- name: delete_expired
-- A worker is dead when all its lanes have expired and none is held by a transaction: its rows expire together, and
-- a row that is being renewed or written under is skipped.
WITH expired AS MATERIALIZED (
    SELECT id, lane FROM durable.workers WHERE expires_at <= now() ORDER BY id, lane FOR UPDATE SKIP LOCKED
), dead AS MATERIALIZED (
    SELECT e.id FROM expired AS e GROUP BY e.id
    HAVING count(*) = (SELECT count(*) FROM durable.workers AS w WHERE w.id = e.id)
)
DELETE FROM durable.workers AS w USING dead WHERE w.id = dead.id

-- name: release_orphans
-- $1 takeovers at which a run is given up, $2 the error it then gets, $3 the worker that says goodbye: only its runs;
-- null: those of every worker without a row. A statement after the deletion: in the same one
-- it would miss the runs of a claim that the deletion had to wait for. Runs that somebody holds are skipped, and
-- found again by the next sweep, for their claims row stays.
--
-- Answers how many runs it released, and [[id, workflow], …] of those it gave up. Each is in one answer only: of two
-- sweeps at once one holds the row and the other skips it; one that comes after its commit compares the owner on the
-- row as it is then, and there is none any more. That is also why a goodbye sweeps nobody else's runs: it would give up
-- some that nobody is told of.
WITH orphan AS MATERIALIZED (
    SELECT c.worker, c.shard, r.id, bool_and(c.orderly) AS orderly
    FROM durable.claims AS c CROSS JOIN LATERAL unnest(c.run_ids) AS r (id)
    WHERE NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = c.worker)
      AND ($3::uuid IS NULL OR c.worker = $3::uuid)
    GROUP BY c.worker, c.shard, r.id
), locked AS MATERIALIZED (
    SELECT o.*, run.claim, run.state, run.takeovers, run.takeover_seq
    FROM (SELECT * FROM orphan ORDER BY shard, id) AS o
    CROSS JOIN LATERAL (
        SELECT r.claim, r.state, r.takeovers, r.takeover_seq FROM durable.runs AS r
        WHERE r.shard = o.shard AND r.id = o.id AND (r.owner = o.worker) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), counted AS MATERIALIZED (
    SELECT l.*, h.seq,
           CASE WHEN l.orderly THEN l.takeovers WHEN h.new_seq > l.takeover_seq THEN 1 ELSE l.takeovers + 1 END AS count
    FROM locked AS l
    CROSS JOIN LATERAL (
        SELECT coalesce(max(x.seq), 0) AS seq, coalesce(max(x.seq) FILTER (WHERE x.kind <> 'takeover' AND x.worker IS NOT NULL), 0) AS new_seq
        FROM durable.history AS x WHERE x.shard = l.shard AND x.run_id = l.id
    ) AS h
), recorded AS (
    INSERT INTO durable.history (shard, run_id, seq, key, kind, at, failed, attempt, duration, begun, compensable, worker)
    SELECT shard, id, seq + 1, '/takeover/' || claim, 'takeover', now(), false, 1, 0, 0, false, worker
    FROM counted WHERE NOT orderly
    ON CONFLICT (shard, run_id, key) DO NOTHING
), released AS (
    INSERT INTO durable.runs AS run (shard, id, takeovers, takeover_seq, state, ready_at, ended_at, error)
    SELECT shard, id, count, CASE WHEN orderly THEN takeover_seq ELSE seq + 1 END,
           CASE WHEN given_up THEN 'dead_letter' WHEN state = 'compensating' THEN 'compensating' ELSE 'pending' END,
           CASE WHEN NOT given_up THEN now() END, CASE WHEN given_up THEN now() END, CASE WHEN given_up THEN $2 END
    FROM (SELECT *, NOT orderly AND count >= $1::integer AS given_up FROM counted) AS c
    ON CONFLICT (shard, id) DO UPDATE
    SET state = excluded.state, owner = NULL, ready_at = excluded.ready_at, ended_at = excluded.ended_at,
        error = coalesce(run.error, excluded.error), takeovers = excluded.takeovers,
        takeover_seq = excluded.takeover_seq,
        requested = CASE WHEN excluded.ended_at IS NULL THEN run.requested END
    RETURNING run.id, run.route, run.ended_at IS NOT NULL AS given_up
), dead_letters AS (
    SELECT r.id, w.workflow
    FROM released AS r
    CROSS JOIN LATERAL (SELECT x.workflow FROM durable.routes AS x WHERE x.id = r.route LIMIT 1) AS w
    WHERE r.given_up
)
SELECT (SELECT count(*) FROM released),
       (SELECT coalesce(json_agg(json_build_array(id, workflow) ORDER BY id), '[]')::text FROM dead_letters)

-- name: forget_claims
-- The claims of dead workers whose runs have all been released.
WITH dead AS MATERIALIZED (
    SELECT * FROM durable.claims AS c WHERE NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = c.worker)
), held AS MATERIALIZED (
    SELECT d.worker, d.batch
    FROM dead AS d CROSS JOIN LATERAL unnest(d.run_ids) AS u (id)
    CROSS JOIN LATERAL (
        SELECT r.owner FROM durable.runs AS r WHERE r.shard = d.shard AND r.id = u.id LIMIT 1
    ) AS run
    WHERE run.owner = d.worker
)
DELETE FROM durable.claims AS c USING dead AS d
WHERE c.worker = d.worker AND c.batch = d.batch
  AND NOT EXISTS (SELECT FROM held AS h WHERE h.worker = d.worker AND h.batch = d.batch)

-- name: forget_requests
-- What dead workers were to be told; whoever claims their runs is told anew. Two sweeps at once share the rows.
WITH gone AS MATERIALIZED (
    SELECT q.* FROM durable.requests AS q
    WHERE NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = q.worker)
    ORDER BY q.shard, q.worker, q.run_id, q.wakes
    FOR UPDATE SKIP LOCKED
)
DELETE FROM durable.requests AS q USING gone AS g
WHERE q.shard = g.shard AND q.worker = g.worker AND q.run_id = g.run_id AND q.wakes = g.wakes

-- name: stuck_workers
-- $1 seconds. Expired for so long and still there: a transaction holds the row.
SELECT count(*) FROM durable.workers WHERE expires_at <= now() - make_interval(secs => $1::float8)

-- name: lock_expired
-- Waits, on purpose, for whoever holds an expired worker's row: pg_blocking_pids then names it.
SELECT id FROM durable.workers WHERE expires_at <= now() ORDER BY id, lane FOR UPDATE

-- name: end_blockers
-- $1 pid of the backend that waits.
SELECT pid, pg_terminate_backend(pid) FROM unnest(pg_blocking_pids($1::integer)) AS b (pid)
