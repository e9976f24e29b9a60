-- The hot statement: everything that one flush does to runs. Sent between BEGIN and COMMIT with one sync.

-- name: commit_writes
-- $1 worker. $2 to $8 and $22 to $24: changes, at most one for each run. $9 to $19, $25 and $26: records. $20 and $21:
-- what separates the texts of a column, and stands for NULL in it. $27 the lane. Flags of a change: 1 the lease is kept,
-- 2 ready now, 4 terminal, 8 paused, 16 a pause that was asked for. Flags of a record: 1 failed, 2 compensable, 4 its run
-- changes too.
-- Times are microseconds since 1970; as seconds in float8 they would be inexact from 2106 on.
-- Answers a row for each write that was not applied, and nothing otherwise; a null id stands for all of them.
--
-- lane     the fence: without the worker's row nothing below finds a row to write. KEY SHARE, which a heartbeat does
--          not wait for and the reaper does. A worker sends two flushes at once, each under a row of its own: two that lock
--          one row make a multixact. Neither touches a run of the other; all else is as between two workers.
-- locked   the runs that change: locked in one order, and none is waited for. What is requested is read from the row that
--          is locked, so a request is either seen here, or finds the run as this leaves it.
-- applied  finds the locked rows by their places (ctid): 2 µs a run less than by the primary key once more (ON CONFLICT DO
--          UPDATE), of 21. A row that somebody has changed since the snapshot was locked in its new version, which an
--          update does not see: it stays as it is, and its write is answered busy. One plan is possible: the sub-selects of
--          `change` hide how many changes there are, so ten are expected, and the table always has enough pages (0008) for
--          ten places to cost less than reading it. A run that leaves with a request open is ready at once; an end
--          ends every request, a pause one to pause. A pause that was asked for, and is not asked for any more, gives the
--          run back.
-- inserted the records whose run is this execution's; when it changes too, that is known, if the change was applied (a
--          probe of the run costs 2.4 µs). A record that is there already breaks the transaction (23505) and the caller
--          looks: DO NOTHING costs 2.4 µs a record of 8.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = $27::text FOR KEY SHARE
), change AS MATERIALIZED (
    SELECT c.shard, c.id, c.claim, c.state, c.flags, timestamptz 'epoch' + c.ready_at * interval '1 us' AS ready_at,
           c.wakes, c.result, c.error, c.reason
    FROM unnest((SELECT $2::smallint[]), (SELECT $3::uuid[]), (SELECT $4::integer[]), (SELECT $5::text[]),
                (SELECT $6::integer[]), (SELECT $7::bigint[]), (SELECT $8::integer[]),
                (SELECT string_to_array($22, $20, $21)), (SELECT string_to_array($23, $20, $21)),
                (SELECT string_to_array($24, $20, $21)))
         AS c (shard, id, claim, state, flags, ready_at, wakes, result, error, reason)
), locked AS MATERIALIZED (
    SELECT c.*, run.place, run.requested, run.wakes <> c.wakes AS woken, run.state AS was,
           (run.requested::json ->> 'verb' = 'pause') IS TRUE AS to_pause
    FROM (SELECT change.* FROM change CROSS JOIN lane ORDER BY shard, id) AS c
    CROSS JOIN LATERAL (
        SELECT r.ctid AS place, r.wakes, r.requested, r.state FROM durable.runs AS r
        WHERE r.shard = c.shard AND r.id = c.id AND (r.owner = $1::uuid AND r.claim = c.claim) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), applied AS (
    UPDATE durable.runs AS run
    SET state = CASE WHEN NOT l.overtaken THEN l.state WHEN l.was = 'compensating' THEN 'compensating' ELSE 'pending' END,
        owner = CASE WHEN l.flags & 1 <> 0 THEN $1::uuid END,
        ready_at = CASE WHEN l.overtaken THEN now() WHEN l.flags & (1 | 4 | 8) <> 0 THEN NULL
                        WHEN l.flags & 2 <> 0 OR l.woken OR l.requested IS NOT NULL THEN now() ELSE l.ready_at END,
        ended_at = CASE WHEN l.flags & 4 <> 0 THEN now() END,
        result = coalesce(l.result, run.result), error = coalesce(l.error, run.error),
        reason = CASE WHEN NOT l.overtaken THEN l.reason END,
        requested = CASE WHEN l.flags & 4 = 0 AND NOT (l.flags & 8 <> 0 AND l.to_pause) THEN l.requested END
    FROM (SELECT *, flags & 16 <> 0 AND NOT to_pause AS overtaken FROM locked) AS l
    WHERE run.ctid = l.place
    RETURNING run.id
), inserted AS (
    INSERT INTO durable.history (shard, run_id, seq, key, kind, at, data, failed, attempt, duration, begun,
                                 compensable, due_at, worker)
    SELECT r.shard, r.run_id, r.seq, r.key, r.kind, timestamptz 'epoch' + r.at * interval '1 us', r.data,
           r.flags & 1 <> 0, r.attempt, r.duration, r.begun, r.flags & 2 <> 0,
           timestamptz 'epoch' + r.due_at * interval '1 us', $1::uuid
    FROM unnest($9::smallint[], $10::uuid[], $11::integer[], $12::integer[], $13::text[], $14::bigint[],
                $15::integer[], $16::integer[], $17::float8[], $18::integer[], $19::bigint[],
                string_to_array($25, $20, $21), string_to_array($26, $20, $21))
         AS r (shard, run_id, claim, seq, kind, at, flags, attempt, duration, begun, due_at, key, data)
    CROSS JOIN lane
    WHERE CASE WHEN r.flags & 4 = 0 THEN EXISTS (
        SELECT FROM durable.runs AS x
        WHERE x.shard = r.shard AND x.id = r.run_id AND (x.owner = $1::uuid AND x.claim = r.claim) IS TRUE
    ) ELSE r.run_id IN (SELECT id FROM applied) END
    RETURNING run_id
)
SELECT NULL::uuid AS id, 'lease_lost' AS outcome WHERE NOT EXISTS (SELECT FROM lane)
UNION ALL
-- Not applied: by the snapshot it is mine, so somebody holds the row, or has changed it since; or it is not.
SELECT c.id, CASE WHEN run.mine THEN 'busy' ELSE 'lease_lost' END
FROM change AS c
LEFT JOIN LATERAL (
    SELECT r.owner = $1::uuid AND r.claim = c.claim AS mine FROM durable.runs AS r
    WHERE r.shard = c.shard AND r.id = c.id LIMIT 1
) AS run ON true
WHERE (SELECT count(*) FROM applied) < cardinality($3::uuid[]) AND NOT (c.id IN (SELECT id FROM applied))
UNION ALL
-- Records whose run is not mine.
SELECT DISTINCT r.run_id, 'lease_lost'
FROM unnest($10::uuid[], $15::integer[]) AS r (run_id, flags)
WHERE (SELECT count(*) FROM inserted) < cardinality($10::uuid[]) AND r.flags & 4 = 0
  AND NOT (r.run_id IN (SELECT run_id FROM inserted))

-- name: stored_runs
-- $1 shards, $2 ids.
SELECT n.id, r.claim, r.owner, r.state
FROM unnest($1::smallint[], $2::uuid[]) AS n (shard, id)
CROSS JOIN LATERAL (SELECT x.* FROM durable.runs AS x WHERE x.shard = n.shard AND x.id = n.id LIMIT 1) AS r

-- name: stored_records
-- $1 shards, $2 run ids, $3 and $4 marks, $5 keys.
SELECT n.run_id, h.key, h.seq, h.kind, h.data, h.failed, h.attempt
FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4)) AS n (shard, run_id, key)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.history AS x WHERE x.shard = n.shard AND x.run_id = n.run_id AND x.key = n.key LIMIT 1
) AS h

-- name: outlines
-- $1 shards, $2 run ids. Histories without what the records hold, but for requests, in the columns of `history`: enough
-- to decide which records are set aside, and what was asked of the run.
SELECT h.run_id, h.seq, h.key, h.kind, h.at, CASE WHEN h.kind = 'request' THEN h.data END, h.failed, h.attempt,
       h.duration, h.begun, h.compensable, h.due_at, h.worker
FROM unnest($1::smallint[], $2::uuid[]) AS n (shard, run_id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.history AS x WHERE x.shard = n.shard AND x.run_id = n.run_id ORDER BY x.seq OFFSET 0
) AS h

-- name: set_aside
-- $1 shards, $2 run ids, $3 claim numbers, $4 and $5 marks, $6 keys. After commit_writes or change_run, in the same
-- transaction and only when some records are to be set aside. It touches the runs that this transaction has written
-- (xmin), so none whose change was refused; their rows are locked, and with that their histories. Its snapshot is newer
-- than the rows that commit_writes has inserted. The rows are found by probes, and then by their place (ctid). Never
-- prepared: on a small table that is planned as a scan.
UPDATE durable.history AS h
SET key = '/' || ($3::integer[])[array_position($2::uuid[], h.run_id)] || '/' || h.key
WHERE h.ctid = ANY (ARRAY(
    SELECT found.ctid
    FROM unnest($1::smallint[], $2::uuid[], string_to_array($6, $4, $5)) AS n (shard, run_id, key)
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = n.shard AND r.id = n.run_id AND (r.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE LIMIT 1
    ) AS written
    CROSS JOIN LATERAL (
        SELECT x.ctid FROM durable.history AS x
        WHERE x.shard = n.shard AND x.run_id = n.run_id AND x.key = n.key LIMIT 1
    ) AS found
))
