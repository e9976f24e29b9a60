-- What people and other programs do to a run that they do not hold: ask something of it, or delete it.
--
-- A request reads the run, decides (durable.requests), and sends change_run with what follows from it in one transaction,
-- whole. Nobody decides with a lock held, and no decision is made for a run that is not as it was read. The transaction
-- locks one run, does not wait for it, and then inserts rows that nobody else can have: it waits for nobody, so it is in no
-- deadlock.

-- name: asked_run
-- $1 shard, $2 run. In the columns of get_runs, without payloads that no decision needs; last the number of wakes.
SELECT r.id, r.state, r.created_at, r.started_at, r.ended_at, r.ready_at, r.key, r.tags::text, r.reason, r.requested,
       r.owner, r.claim, r.takeovers, r.shard, routes.workflow, routes.version,
       routes.queue, r.priority, r.limit_key, r.concurrency_key, r.parent, r.linked, r.schedule, r.tick, NULL, NULL, r.error, '', r.wakes
FROM durable.runs AS r JOIN durable.routes ON routes.id = r.route
WHERE r.shard = $1::smallint AND r.id = $2::uuid

-- name: latest_request
-- $1 shard, $2 run. In the columns of `history`. A range of the primary key, however long the history is.
SELECT run_id, seq, key, kind, at, data, failed, attempt, duration, begun, compensable, due_at, worker
FROM durable.history
WHERE shard = $1::smallint AND run_id = $2::uuid AND key >= '/request/' AND key < '/request0'
ORDER BY seq DESC
LIMIT 1

-- name: change_run
-- $1 shard, $2 run. As it was read: $3 state, $4 owner, $5 claim, $6 wakes, $7 requested. What becomes of it: $8 state,
-- $9 requested, $10 reason, $11 error, $12 flags: 1 ended, 2 ready now, 4 not ready, 8 its history changes, 16 takeovers
-- are forgiven. Answers whether it was locked, and whether it was as it was read.
--
-- Nothing that a decision looks at changes without one of the five: a claim raises the number, what a worker commits
-- changes state or owner, a request raises the wakes; the history of a run that nobody holds changes with its row only.
-- They are compared on the row that is locked, which may be newer than the snapshot. A flush that holds it is not waited
-- for; one that comes while this holds it is answered busy, and then finds what is requested.
WITH run AS MATERIALIZED (
    SELECT (r.state, r.owner, r.claim, r.wakes, r.requested)
           IS NOT DISTINCT FROM ($3::text, $4::uuid, $5::integer, $6::integer, $7::text) AS same
    FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = $2::uuid
    FOR NO KEY UPDATE SKIP LOCKED
), changed AS (
    UPDATE durable.runs AS r
    SET state = $8::text, requested = $9::text, reason = $10::text, error = $11::text,
        ended_at = CASE WHEN $12::integer & 1 <> 0 THEN now() END,
        ready_at = CASE WHEN $12 & 2 <> 0 THEN now() WHEN $12 & 4 = 0 THEN r.ready_at END,
        claim = CASE WHEN $12 & 8 <> 0 THEN r.claim + 1 ELSE r.claim END,
        takeovers = CASE WHEN $12 & 16 <> 0 THEN 0 ELSE r.takeovers END,
        wakes = r.wakes + 1
    WHERE r.shard = $1::smallint AND r.id = $2::uuid AND EXISTS (SELECT FROM run WHERE same)
    RETURNING 1
)
SELECT EXISTS (SELECT FROM run), EXISTS (SELECT FROM changed)

-- name: add_request
-- $1 shard, $2 run, $3 data. The record of a request that change_run has carried out: only if it has (xmin). A statement of
-- its own, whose snapshot is newer than the lock, so the last seq is the last one.
INSERT INTO durable.history (shard, run_id, seq, key, kind, at, data, failed, attempt, duration, begun, compensable)
SELECT r.shard, r.id, last.seq + 1, '/request/' || last.seq + 1, 'request', now(), $3::text, false, 1, 0, 0, false
FROM durable.runs AS r
CROSS JOIN LATERAL (
    SELECT coalesce(max(h.seq), 0) AS seq FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
) AS last
WHERE r.shard = $1::smallint AND r.id = $2::uuid AND r.xmin = pg_current_xact_id_if_assigned()::xid

-- name: tell_worker
-- $1 shard, $2 run. Of a request that change_run has stored: only if it has. Its commit shows the row and what is
-- requested at once, and the holder's next claim finds both.
INSERT INTO durable.requests (shard, worker, run_id, wakes)
SELECT r.shard, r.owner, r.id, r.wakes
FROM durable.runs AS r
WHERE r.shard = $1::smallint AND r.id = $2::uuid AND r.owner IS NOT NULL
  AND r.xmin = pg_current_xact_id_if_assigned()::xid

-- name: ended_before
-- $1 shard, $2 after this id, $3 up to this id, $4 before. One look of bounded length along the primary key, from the
-- oldest: runs have no index on their end. Answers the ids that were found; where the look ended, null when the range
-- did before; the first end among the others, if any; the time.
WITH looked AS MATERIALIZED (
    SELECT r.id, r.ended_at, (r.ended_at < $4::timestamptz) IS TRUE AS found
    FROM durable.runs AS r
    WHERE r.shard = $1::smallint AND r.id > $2::uuid AND r.id <= $3::uuid
    ORDER BY r.id
    LIMIT 5000
)
SELECT ARRAY(SELECT id FROM looked WHERE found ORDER BY id), (SELECT id FROM looked ORDER BY id OFFSET 4999),
       (SELECT min(ended_at) FROM looked WHERE NOT found), now()

-- name: delete_runs
-- $1 shard, $2 ids, $3 before. Those that are terminal since before then, with all that belongs to them; answers their ids.
--
-- It locks in the order of ids and passes by what somebody holds. After the runs it deletes rows that only a holder of
-- their run's lock touches; for a wait it may wait for match_events, which holds no run and passes by what this holds (a
-- signal that comes meanwhile is left over: forget_signals). So it is in no deadlock, although runs come before keys here; a
-- trigger that waits for a deleted key waits for this transaction alone.
-- A run is taken only as the very row that the snapshot shows (ctid): then its history, which nobody writes without
-- changing the run, is complete in the snapshot too. A run that was retried at this moment is another row, and stays.
-- Never prepared: on a small table the places are looked for in a scan of all.
WITH locked AS MATERIALIZED (
    SELECT run.*
    FROM (SELECT n.id FROM unnest($2::uuid[]) AS n (id) ORDER BY n.id) AS n
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place FROM durable.runs AS x WHERE x.shard = $1::smallint AND x.id = n.id LIMIT 1
    ) AS seen
    CROSS JOIN LATERAL (
        SELECT r.id, r.ctid AS place, r.key, r.route, r.schedule, r.tick FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = n.id AND (r.ctid = seen.place AND r.ended_at < $3::timestamptz) IS TRUE
        FOR UPDATE SKIP LOCKED
    ) AS run
), records AS (
    DELETE FROM durable.history WHERE ctid = ANY (ARRAY(
        SELECT h.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.history AS x WHERE x.shard = $1::smallint AND x.run_id = l.id OFFSET 0
        ) AS h
    ))
), inbox AS (
    DELETE FROM durable.signals WHERE ctid = ANY (ARRAY(
        SELECT s.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.signals AS x WHERE x.shard = $1::smallint AND x.run_id = l.id OFFSET 0
        ) AS s
    ))
), waits AS (
    DELETE FROM durable.awaited WHERE ctid = ANY (ARRAY(
        SELECT w.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.awaited AS x WHERE x.shard = $1::smallint AND x.run_id = l.id OFFSET 0
        ) AS w
    ))
), log AS (
    DELETE FROM durable.emits WHERE ctid = ANY (ARRAY(
        SELECT e.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.emits AS x WHERE x.shard = $1::smallint AND x.run_id = l.id OFFSET 0
        ) AS e
    ))
), effects AS (
    DELETE FROM durable.effects WHERE ctid = ANY (ARRAY(
        SELECT e.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.effects AS x WHERE x.shard = $1::smallint AND x.run_id = l.id OFFSET 0
        ) AS e
    ))
), keys AS (
    DELETE FROM durable.keys WHERE ctid = ANY (ARRAY(
        SELECT k.ctid FROM locked AS l
        CROSS JOIN LATERAL (SELECT x.workflow FROM durable.routes AS x WHERE x.id = l.route LIMIT 1) AS route
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.keys AS x
            WHERE x.shard = $1::smallint AND x.workflow = route.workflow AND x.key = l.key AND (x.run_id = l.id) IS TRUE
            LIMIT 1
        ) AS k
        WHERE l.key IS NOT NULL
    ))
), ticks AS (
    DELETE FROM durable.ticks WHERE ctid = ANY (ARRAY(
        SELECT t.ctid FROM locked AS l
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.ticks AS x
            WHERE x.shard = $1::smallint AND x.schedule = l.schedule AND x.at = l.tick AND (x.run_id = l.id) IS TRUE LIMIT 1
        ) AS t
        WHERE l.schedule IS NOT NULL
    ))
)
DELETE FROM durable.runs WHERE ctid = ANY (ARRAY(SELECT place FROM locked)) RETURNING id
