-- Effects that runs share under one key: who makes one, what came of it, and that whoever waits for it hears of it.
--
-- A row belongs to one step of one run, and only writes about that run change it: its worker's, or those that end the run.
-- Others lock it for the moment in which they ask. Everybody locks runs before effects, waits for no run, and holds no
-- more than one effect while it waits for another one's, the flush excepted, which holds those of its own runs. So
-- there is no deadlock.

-- name: take_effect
-- $1 worker, $2 shard, $3 run, $4 claim, $5 key, $6 step. Answers whether the run was locked, and whether it is this
-- execution's by the snapshot: somebody holds it then. The run is locked first, as a flush does it, and is linked from now
-- on. An effect that another transaction has inserted and not committed is waited for, at most lock_timeout.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = 'effect' FOR KEY SHARE
), locked AS MATERIALIZED (
    SELECT run.linked FROM lane CROSS JOIN LATERAL (
        SELECT r.linked FROM durable.runs AS r
        WHERE r.shard = $2::smallint AND r.id = $3::uuid AND (r.owner = $1::uuid AND r.claim = $4::integer) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), linked AS (
    INSERT INTO durable.runs AS run (shard, id) SELECT $2::smallint, $3::uuid FROM locked WHERE NOT linked
    ON CONFLICT (shard, id) DO UPDATE SET linked = true
), taken AS (
    INSERT INTO durable.effects AS e (shard, key, run_id, step)
    SELECT $2::smallint, $5::text, $3::uuid, $6::text FROM locked
    ON CONFLICT (shard, key) DO UPDATE SET done = false, data = NULL
    WHERE e.run_id = excluded.run_id AND e.step = excluded.step AND e.done
)
SELECT EXISTS (SELECT FROM locked), EXISTS (
    SELECT FROM lane CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = $2::smallint AND r.id = $3::uuid AND (r.owner = $1::uuid AND r.claim = $4::integer) IS TRUE
        LIMIT 1
    ) AS run
)

-- name: effect_taken
-- $1 shard, $2 key. After take_effect, in its transaction: in the same statement the winner of a conflict would not be seen.
-- It is locked by then, and stays as it is.
SELECT run_id, step, done, data FROM durable.effects WHERE shard = $1::smallint AND key = $2::text

-- name: end_effects
-- $1 worker. Of each end's write: $2 shards, $3 runs, $4 claim numbers, $5 whether it changes its run, $6 and $7 marks, $8
-- first records. $9 whether it is kept, $10 keys, $11 steps. $12 topic and $13 retention of what is told. After
-- commit_writes; when it was applied: see signals.sql. What was done before is told to nobody: nobody waits for it.
-- Deleted by their places: an effect's row changes with its run only, and that is this execution's.
WITH ended AS MATERIALIZED (
    SELECT n.shard, n.key, n.run_id, n.step, n.kept, effect.done AS was_done, effect.place, made.data
    FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::boolean[], string_to_array($8, $6, $7), $9::boolean[],
                string_to_array($10, $6, $7), string_to_array($11, $6, $7))
         AS n (shard, run_id, claim, changes, record, kept, key, step)
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = n.shard AND r.id = n.run_id AND (CASE
            WHEN n.record IS NOT NULL THEN EXISTS (
                SELECT FROM durable.history AS h WHERE h.shard = n.shard AND h.run_id = n.run_id AND h.key = n.record
                AND h.xmin = pg_current_xact_id_if_assigned()::xid)
            WHEN n.changes THEN r.xmin = pg_current_xact_id_if_assigned()::xid
            ELSE r.owner = $1::uuid AND r.claim = n.claim
                 AND EXISTS (SELECT FROM durable.workers AS w WHERE w.id = $1::uuid AND w.lane = 'flush') END) IS TRUE
        LIMIT 1
    ) AS written
    CROSS JOIN LATERAL (
        SELECT e.done, e.ctid AS place FROM durable.effects AS e
        WHERE e.shard = n.shard AND e.key = n.key AND (e.run_id = n.run_id AND e.step = n.step) IS TRUE LIMIT 1
    ) AS effect
    LEFT JOIN LATERAL (
        SELECT h.data FROM durable.history AS h
        WHERE h.shard = n.shard AND h.run_id = n.run_id AND h.key = n.step LIMIT 1
    ) AS made ON true
), kept AS (
    INSERT INTO durable.effects AS e (shard, key, run_id, step, done, data)
    SELECT shard, key, run_id, step, true, data FROM ended WHERE kept ORDER BY shard, key
    ON CONFLICT (shard, key) DO UPDATE SET done = true, data = excluded.data
), freed AS (
    DELETE FROM durable.effects WHERE ctid = ANY (ARRAY(SELECT place FROM ended WHERE NOT kept))
), told AS (
    INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at)
    SELECT n.shard, $12::text, n.key, gen_random_uuid()::text, 'null', n.at, n.at + make_interval(secs => $13::float8)
    FROM (SELECT e.*, clock_timestamp() AS at FROM ended AS e WHERE NOT e.was_done) AS n
    RETURNING shard, topic, key
)
INSERT INTO durable.stirred (shard, topic, key) SELECT shard, topic, key FROM told

-- name: free_effects
-- $1 shards, $2 runs, $3 whether also those that this transaction has taken from dead workers, $4 topic and $5 retention of
-- what is told. Of the linked runs that this transaction has ended (xmin): what they were making may be made by others,
-- what they have made stays. As tell_parents, after end_effects.
WITH ended AS MATERIALIZED (
    SELECT n.shard, n.id
    FROM (
        SELECT shard, id FROM unnest($1::smallint[], $2::uuid[]) AS n (shard, id)
        UNION
        SELECT c.shard, u.id FROM durable.claims AS c CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
        WHERE $3::boolean AND NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = c.worker)
    ) AS n
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = n.shard AND r.id = n.id
          AND (r.xmin = pg_current_xact_id_if_assigned()::xid AND r.ended_at IS NOT NULL AND r.linked) IS TRUE
        LIMIT 1
    ) AS run
), freed AS (
    DELETE FROM durable.effects WHERE ctid = ANY (ARRAY(
        SELECT e.place FROM ended AS n
        CROSS JOIN LATERAL (
            SELECT x.ctid AS place FROM durable.effects AS x
            WHERE x.shard = n.shard AND x.run_id = n.id AND NOT x.done OFFSET 0
        ) AS e
    ))
    RETURNING shard, key
), told AS (
    INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at)
    SELECT n.shard, $4::text, n.key, gen_random_uuid()::text, 'null', n.at, n.at + make_interval(secs => $5::float8)
    FROM (SELECT f.*, clock_timestamp() AS at FROM freed AS f) AS n
    RETURNING shard, topic, key
)
INSERT INTO durable.stirred (shard, topic, key) SELECT shard, topic, key FROM told
