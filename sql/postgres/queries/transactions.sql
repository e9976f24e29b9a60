-- The transaction of a user's function: its own statements, and at the end, in one message with COMMIT, the record of the
-- step. Whatever goes wrong in the last statement is an error, so that COMMIT is skipped without a look at the answer.

-- name: begin_transaction
-- $1 a token, $2 a number, both new for each transaction. The token is gone with the transaction, so at its end it tells
-- whether it is the same one. The lock is how another connection waits for its end: held from its first statement, which
-- was answered, until its effects can be seen or never will. And being a query, it settles the isolation: with a snapshot
-- that is older than the loss of a lease, the fence would hold for ever.
SELECT set_config('durable_transaction.token', $1::text, true), pg_advisory_xact_lock($2::bigint)

-- name: record_in_transaction
-- $1 worker, $2 token, $3 shard, $4 run, $5 claim; the record: $6 seq, $7 key, $8 kind, $9 time in microseconds, $10 data,
-- $11 failed, $12 attempt, $13 duration, $14 begun, $15 compensable, $16 due. $17 a lane.
-- The fence, as in commit_writes, under a lane that no other transaction has at this moment (several that lock one row make a
-- multixact each: 0.7 with ten at once): last, so that heartbeats and the reaper
-- never wait for a user's function, and so that a lease which was lost while it ran is found out. A row without a key is
-- refused when the transaction is not the one that was begun, one without a seq when the run is not this execution's.
WITH this AS MATERIALIZED (
    SELECT current_setting('durable_transaction.token', true) = $2::text AS one
), lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = $17::text AND (SELECT one FROM this) FOR KEY SHARE
), mine AS MATERIALIZED (
    SELECT 1 FROM lane CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = $3::smallint AND r.id = $4::uuid AND (r.owner = $1::uuid AND r.claim = $5::integer) IS TRUE
        LIMIT 1
    ) AS run
)
INSERT INTO durable.history (shard, run_id, seq, key, kind, at, data, failed, attempt, duration, begun, compensable,
                             due_at, worker)
SELECT $3::smallint, $4::uuid, CASE WHEN this.one IS NOT TRUE OR EXISTS (SELECT FROM mine) THEN $6::integer END,
       CASE WHEN this.one THEN $7::text END, $8::text, timestamptz 'epoch' + $9::bigint * interval '1 us', $10::text,
       $11::boolean, $12::integer, $13::float8, $14::integer, $15::boolean,
       timestamptz 'epoch' + $16::bigint * interval '1 us', $1::uuid
FROM this

-- name: await_transaction
-- $1 the number of a transaction whose connection was lost: returns when it is over. What it has written, if it has,
-- can be seen by the next statement: it becomes visible before its locks are given back.
SELECT pg_advisory_xact_lock($1::bigint)
