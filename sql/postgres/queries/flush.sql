-- The hot statement: everything that one flush does to runs. Sent between BEGIN and COMMIT with one sync.

-- name: commit_writes
-- $1 worker. $2 to $9 and $25 to $27: changes, at most one for each run. $10 to $22, $28 and $29: records. $23 and $24:
-- what separates the texts of a column, and stands for NULL in it.
-- Answers a row for each write that was not applied, and nothing otherwise; a null id stands for all of them.
--
-- lane    the fence: without the worker's row nothing below finds a row to write. KEY SHARE, which a heartbeat does
--         not wait for and the reaper does.
-- locked  the runs that change: locked in one order, and none is waited for.
-- fenced  the records, each with whether its run is this execution's and, when the run changes too, was locked.
-- applied has one possible plan, a probe of the primary key for each row. An UPDATE … FROM would do, and was planned
--         as a hash join with a scan of all runs when it was prepared on a small table.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = 'flush' FOR KEY SHARE
), change AS MATERIALIZED (
    SELECT c.shard, c.id, c.claim, c.state, c.keep, to_timestamp(c.ready_at) AS ready_at, c.ready_now, c.wakes,
           c.result, c.error, c.reason
    FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::text[], $6::boolean[], $7::float8[], $8::boolean[],
                $9::integer[], string_to_array($25, $23, $24), string_to_array($26, $23, $24),
                string_to_array($27, $23, $24))
         AS c (shard, id, claim, state, keep, ready_at, ready_now, wakes, result, error, reason)
), locked AS MATERIALIZED (
    SELECT c.*, run.wakes IS DISTINCT FROM c.wakes AND c.wakes IS NOT NULL AS woken, run.route, run.seed,
           run.input_hash
    FROM (SELECT change.* FROM change CROSS JOIN lane ORDER BY shard, id) AS c
    CROSS JOIN LATERAL (
        SELECT r.wakes, r.route, r.seed, r.input_hash FROM durable.runs AS r
        WHERE r.shard = c.shard AND r.id = c.id AND (r.owner = $1::uuid AND r.claim = c.claim) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), fenced AS MATERIALIZED (
    SELECT r.*, mine.yes IS NOT NULL AND (NOT r.changes OR r.run_id IN (SELECT id FROM locked)) AS writable
    FROM unnest($10::smallint[], $11::uuid[], $12::integer[], $13::boolean[], $14::integer[], $15::text[],
                $16::float8[], $17::boolean[], $18::integer[], $19::float8[], $20::integer[], $21::boolean[],
                $22::float8[], string_to_array($28, $23, $24), string_to_array($29, $23, $24))
         AS r (shard, run_id, claim, changes, seq, kind, at, failed, attempt, duration, begun, compensable, due_at,
               key, data)
    CROSS JOIN lane
    LEFT JOIN LATERAL (
        SELECT true AS yes FROM durable.runs AS x
        WHERE x.shard = r.shard AND x.id = r.run_id AND (x.owner = $1::uuid AND x.claim = r.claim) IS TRUE
        LIMIT 1
    ) AS mine ON true
), inserted AS (
    INSERT INTO durable.history (shard, run_id, seq, key, kind, at, data, failed, attempt, duration, begun,
                                 compensable, due_at, worker)
    SELECT shard, run_id, seq, key, kind, to_timestamp(at), data, failed, attempt, duration, begun, compensable,
           to_timestamp(due_at), $1::uuid
    FROM fenced WHERE writable
    ON CONFLICT (shard, run_id, key) DO NOTHING
    RETURNING 1
), applied AS (
    INSERT INTO durable.runs AS run (shard, id, route, seed, input_hash, state, owner, ready_at, ended_at, result,
                                     error, reason)
    SELECT shard, id, route, seed, input_hash, state, CASE WHEN keep THEN $1::uuid END,
           CASE WHEN ready_now OR woken THEN now() ELSE ready_at END,
           CASE WHEN state IN ('completed', 'failed', 'compensated', 'cancelled', 'dead_letter') THEN now() END,
           result, error, reason
    FROM locked
    ON CONFLICT (shard, id) DO UPDATE
    SET state = excluded.state, owner = excluded.owner, ready_at = excluded.ready_at, ended_at = excluded.ended_at,
        result = coalesce(excluded.result, run.result), error = coalesce(excluded.error, run.error),
        reason = excluded.reason
)
SELECT NULL::uuid AS id, 'lease_lost' AS outcome WHERE NOT EXISTS (SELECT FROM lane)
UNION ALL
-- Not locked: by the snapshot it is mine, so somebody holds the row; or it is not.
SELECT c.id, CASE WHEN run.mine THEN 'busy' ELSE 'lease_lost' END
FROM change AS c
LEFT JOIN LATERAL (
    SELECT r.owner = $1::uuid AND r.claim = c.claim AS mine FROM durable.runs AS r
    WHERE r.shard = c.shard AND r.id = c.id LIMIT 1
) AS run ON true
WHERE NOT (c.id IN (SELECT id FROM locked))
UNION ALL
SELECT run_id, 'lease_lost' FROM fenced WHERE NOT writable AND NOT changes
UNION ALL
-- Sent again: what is stored must be what was sent. Otherwise the cast fails, and with it the whole transaction:
-- the caller finds the write, and answers it alone.
SELECT f.run_id, ('stored with other contents: ' || f.key)::integer::text
FROM fenced AS f
CROSS JOIN LATERAL (
    SELECT h.seq, h.kind, h.data, h.failed, h.attempt FROM durable.history AS h
    WHERE h.shard = f.shard AND h.run_id = f.run_id AND h.key = f.key LIMIT 1
) AS h
WHERE (SELECT count(*) FROM inserted) < (SELECT count(*) FROM fenced WHERE writable) AND f.writable
  AND (h.seq, h.kind, h.data, h.failed, h.attempt) IS DISTINCT FROM (f.seq, f.kind, f.data, f.failed, f.attempt)

-- name: stored_runs
-- $1 shards, $2 ids.
SELECT n.id, r.claim, r.owner, r.state
FROM unnest($1::smallint[], $2::uuid[]) AS n (shard, id)
CROSS JOIN LATERAL (SELECT x.* FROM durable.runs AS x WHERE x.shard = n.shard AND x.id = n.id LIMIT 1) AS r

-- name: stored_records
-- $1 shards, $2 run ids, $3 and $4 marks, $5 keys.
SELECT n.run_id, h.seq, h.key, h.kind, h.data, h.failed, h.attempt
FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4)) AS n (shard, run_id, key)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.history AS x WHERE x.shard = n.shard AND x.run_id = n.run_id AND x.key = n.key LIMIT 1
) AS h
