-- Concurrency keys and debounced triggers. "Marks": what separates the texts of a column, and stands for NULL in it.
--
-- A trigger locks the row of its concurrency key first (hold_turns), and reads who has a turn in a later statement: so two
-- triggers come one after the other, and the second sees the turn of the first. It may wait, as for any key.
-- Who ends a run waits for nobody. It inserts a row in `passed` (leave_queues); stir_turns locks the keys of such rows that
-- are free, and pass_turns, a later statement, makes the first run under each of them ready. A key that a trigger holds
-- is passed by, and its `passed` row stays: that trigger may have seen the run before it ended, so somebody has to look
-- again after it has committed. Everybody who ends a run of this kind does, and each claiming worker once a second.

-- name: hold_turns
-- $1 shards, $2 and $3 marks, $4 workflows, $5 keys; of new runs also: $6 schedules, $7 ids, $8 ticks. In one order. A key
-- that is not there is inserted, which locks it too. Not for a run whose tick is another's: nobody waits for nothing.
INSERT INTO durable.turn_keys (shard, workflow, key, held_at)
SELECT DISTINCT n.shard, n.workflow, n.key, now()
FROM unnest((SELECT $1::smallint[]), (SELECT string_to_array($4, $2, $3)), (SELECT string_to_array($5, $2, $3)),
            (SELECT string_to_array($6, $2, $3)), (SELECT $7::uuid[]), (SELECT $8::bigint[]))
     AS n (shard, workflow, key, schedule, id, tick)
LEFT JOIN LATERAL (
    SELECT t.run_id FROM durable.ticks AS t
    WHERE n.tick IS NOT NULL AND t.shard = n.shard AND t.schedule = n.schedule
      AND t.at = timestamptz 'epoch' + n.tick * interval '1 us' LIMIT 1
) AS ticked ON true
WHERE n.tick IS NULL OR ticked.run_id = n.id
ORDER BY n.shard, n.workflow, n.key
ON CONFLICT (shard, workflow, key) DO UPDATE SET held_at = excluded.held_at

-- name: take_turns
-- $1 shards, $2 ids, $3 what each would rather do than be refused: 1 wait, 2 replace the others too; $4 times ready, $5 delays, $6 and $7 marks,
-- $8 workflows, $9 concurrency keys, $10 keys, $11 debounce keys, $12 schedules, $13 ticks. A turn for each run that may be created; answers the id
-- of each other one with the id of the run that is active. Runs that add_runs would not insert for other reasons have none.
--
-- active   the first run under the key that has not ended, committed or of an earlier trigger: its turn may not have been
--          passed on yet.
WITH new AS MATERIALIZED (
    SELECT n.*
    FROM unnest((SELECT $1::smallint[]), (SELECT $2::uuid[]), (SELECT $3::smallint[]), (SELECT $4::bigint[]),
                (SELECT $5::float8[]), (SELECT string_to_array($8, $6, $7)), (SELECT string_to_array($9, $6, $7)),
                (SELECT string_to_array($10, $6, $7)), (SELECT string_to_array($11, $6, $7)),
                (SELECT string_to_array($12, $6, $7)), (SELECT $13::bigint[]))
         WITH ORDINALITY AS n (shard, id, policy, ready_at, delay, workflow, turn, key, debounce, schedule, tick, place)
    LEFT JOIN LATERAL (
        SELECT true AS found FROM durable.runs AS r WHERE r.shard = n.shard AND r.id = n.id LIMIT 1
    ) AS run ON true
    LEFT JOIN LATERAL (
        SELECT k.run_id FROM durable.keys AS k
        WHERE k.shard = n.shard AND k.workflow = n.workflow AND k.key = n.key LIMIT 1
    ) AS winner ON true
    LEFT JOIN LATERAL (
        SELECT d.run_id FROM durable.debounces AS d
        WHERE d.shard = n.shard AND d.workflow = n.workflow AND d.key = n.debounce LIMIT 1
    ) AS debounced ON true
    LEFT JOIN LATERAL (
        SELECT t.run_id FROM durable.ticks AS t
        WHERE n.tick IS NOT NULL AND t.shard = n.shard AND t.schedule = n.schedule
          AND t.at = timestamptz 'epoch' + n.tick * interval '1 us' LIMIT 1
    ) AS ticked ON true
    WHERE run.found IS NULL AND (n.key IS NULL OR winner.run_id = n.id) AND (n.debounce IS NULL OR debounced.run_id = n.id)
      AND (n.tick IS NULL OR ticked.run_id = n.id)
), active AS MATERIALIZED (
    SELECT k.shard, k.workflow, k.turn, first.run_id
    FROM (SELECT DISTINCT shard, workflow, turn FROM new) AS k
    LEFT JOIN LATERAL (
        SELECT t.run_id FROM durable.turns AS t
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS r
            WHERE r.shard = t.shard AND r.id = t.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
        ) AS live
        WHERE t.shard = k.shard AND t.workflow = k.workflow AND t.key = k.turn
        ORDER BY t.number LIMIT 1
    ) AS first ON true
), ranked AS MATERIALIZED (
    SELECT n.*, coalesce(a.run_id, first_value(n.id) OVER (PARTITION BY n.shard, n.workflow, n.turn ORDER BY n.place)) AS active
    FROM new AS n JOIN active AS a ON a.shard = n.shard AND a.workflow = n.workflow AND a.turn = n.turn
), entered AS (
    INSERT INTO durable.turns (shard, run_id, workflow, key, waits, replaces, ready_at)
    SELECT shard, id, workflow, turn, active <> id, active <> id AND policy = 2,
           coalesce(timestamptz 'epoch' + ready_at * interval '1 us', now() + make_interval(secs => delay))
    FROM ranked WHERE active = id OR policy > 0
    ORDER BY place
    ON CONFLICT (shard, run_id) DO NOTHING
)
SELECT id, active FROM ranked WHERE active <> id AND policy = 0

-- name: forget_keys
-- $1 shards, $2 ids, $3 and $4 marks, $5 workflows, $6 keys. Last in its transaction: keys that add_keys has inserted for runs
-- that add_runs did not. Nobody has seen them. Never prepared, as forget_merged: rare, and found by their place.
DELETE FROM durable.keys WHERE ctid = ANY (ARRAY(
    SELECT k.ctid
    FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4), string_to_array($6, $3, $4))
         AS n (shard, id, workflow, key)
    CROSS JOIN LATERAL (
        SELECT x.ctid FROM durable.keys AS x
        WHERE x.shard = n.shard AND x.workflow = n.workflow AND x.key = n.key
          AND (x.run_id = n.id AND x.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE LIMIT 1
    ) AS k
    WHERE NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = n.shard AND r.id = n.id)
))

-- name: turns_before
-- $1 shard, $2 runs. For each the runs under its concurrency key that come before it and have not ended, and whether they are
-- still to be asked to cancel.
SELECT mine.run_id, b.run_id, mine.replaces
FROM unnest($2::uuid[]) AS n (id)
CROSS JOIN LATERAL (SELECT x.* FROM durable.turns AS x WHERE x.shard = $1::smallint AND x.run_id = n.id LIMIT 1) AS mine
CROSS JOIN LATERAL (
    SELECT t.run_id, t.number FROM durable.turns AS t
    WHERE t.shard = mine.shard AND t.workflow = mine.workflow AND t.key = mine.key AND t.number < mine.number
) AS b
CROSS JOIN LATERAL (
    SELECT FROM durable.runs AS r
    WHERE r.shard = mine.shard AND r.id = b.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
) AS live
ORDER BY b.number

-- name: have_replaced
-- $1 shard, $2 runs. They have asked them: sent again they ask nobody. In the order in which take_turns inserts.
UPDATE durable.turns SET replaces = false WHERE ctid = ANY (ARRAY(
    SELECT mine.place
    FROM (SELECT DISTINCT u.id FROM unnest($2::uuid[]) AS u (id) ORDER BY u.id) AS n
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place FROM durable.turns AS x
        WHERE x.shard = $1::smallint AND x.run_id = n.id AND x.replaces FOR NO KEY UPDATE SKIP LOCKED
    ) AS mine
))

-- name: keep_turn
-- $1 shard, $2 run. After change_run, and only if it has changed the run (xmin): a run that was paused while others come
-- before it is not ready when it is resumed; one that had ended gets a new turn, the last, when it is retried. hold_turns
-- came first, so nobody else gets a turn or passes one on meanwhile.
WITH run AS MATERIALIZED (
    SELECT r.shard, r.id, r.concurrency_key AS key, r.ready_at, route.workflow
    FROM durable.runs AS r
    CROSS JOIN LATERAL (SELECT x.workflow FROM durable.routes AS x WHERE x.id = r.route LIMIT 1) AS route
    WHERE r.shard = $1::smallint AND r.id = $2::uuid
      AND (r.xmin = pg_current_xact_id_if_assigned()::xid AND r.ended_at IS NULL AND r.concurrency_key IS NOT NULL
           AND r.ready_at IS NOT NULL) IS TRUE
), turn AS MATERIALIZED (
    SELECT run.*, mine.waits
    FROM run LEFT JOIN LATERAL (
        SELECT t.waits FROM durable.turns AS t WHERE t.shard = run.shard AND t.run_id = run.id LIMIT 1
    ) AS mine ON true
), other AS MATERIALIZED (
    SELECT EXISTS (
        SELECT FROM turn AS m
        CROSS JOIN LATERAL (
            SELECT x.run_id FROM durable.turns AS x
            WHERE x.shard = m.shard AND x.workflow = m.workflow AND x.key = m.key OFFSET 0
        ) AS t
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS r
            WHERE r.shard = m.shard AND r.id = t.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
        ) AS live
        WHERE t.run_id <> m.id
    ) AS there
), entered AS (
    INSERT INTO durable.turns (shard, run_id, workflow, key, waits, ready_at)
    SELECT t.shard, t.id, t.workflow, t.key, o.there, t.ready_at FROM turn AS t CROSS JOIN other AS o WHERE t.waits IS NULL
    ON CONFLICT (shard, run_id) DO NOTHING
), later AS (
    UPDATE durable.turns SET ready_at = (SELECT ready_at FROM turn)
    WHERE shard = $1::smallint AND run_id = $2::uuid AND waits AND EXISTS (SELECT FROM turn)
)
UPDATE durable.runs AS r SET ready_at = NULL
WHERE r.shard = $1::smallint AND r.id = $2::uuid
  AND EXISTS (SELECT FROM turn AS t CROSS JOIN other AS o WHERE t.waits OR t.waits IS NULL AND o.there)

-- name: stir_turns
-- $1 shard. Locks the keys of `passed` rows that nobody else holds. A key that is gone has no turns left.
WITH free AS MATERIALIZED (
    SELECT k.*
    FROM (
        SELECT DISTINCT p.workflow, p.key
        FROM (SELECT x.workflow, x.key FROM durable.passed AS x WHERE x.shard = $1::smallint LIMIT 1000) AS p
        ORDER BY p.workflow, p.key
    ) AS p
    CROSS JOIN LATERAL (
        SELECT x.shard, x.workflow, x.key FROM durable.turn_keys AS x
        WHERE x.shard = $1::smallint AND x.workflow = p.workflow AND x.key = p.key
        FOR UPDATE SKIP LOCKED
    ) AS k
)
INSERT INTO durable.turn_keys AS k (shard, workflow, key, held_at)
SELECT shard, workflow, key, now() FROM free ORDER BY shard, workflow, key
ON CONFLICT (shard, workflow, key) DO UPDATE SET held_at = excluded.held_at

-- name: pass_turns
-- $1 shard. For the keys that stir_turns has locked: the turns of runs that have ended are over, and the first run under the
-- key that has not ended becomes ready, unless it is paused or its time has not come. One that somebody holds is looked
-- at again later. Answers how many became ready, and whether some rows stay: then somebody has to look again soon.
WITH mine AS MATERIALIZED (
    SELECT p.place, p.run_id, p.workflow, p.key
    FROM (
        SELECT x.ctid AS place, x.run_id, x.workflow, x.key FROM durable.passed AS x WHERE x.shard = $1::smallint LIMIT 1000
    ) AS p
    CROSS JOIN LATERAL (
        SELECT FROM durable.turn_keys AS k
        WHERE k.shard = $1::smallint AND k.workflow = p.workflow AND k.key = p.key
          AND (k.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE LIMIT 1
    ) AS held
), ended AS (
    -- By its run, not by its place: have_replaced may write the row at this moment, without the key, and it moves then.
    DELETE FROM durable.turns AS t WHERE t.shard = $1::smallint AND t.run_id = ANY (ARRAY(
        SELECT m.run_id FROM mine AS m
        WHERE NOT EXISTS (
            SELECT FROM durable.runs AS r
            WHERE r.shard = $1::smallint AND r.id = m.run_id AND (r.ended_at IS NULL) IS TRUE)
    ))
), first AS MATERIALIZED (
    SELECT k.workflow, k.key, t.*
    FROM (SELECT DISTINCT workflow, key FROM mine) AS k
    LEFT JOIN LATERAL (
        SELECT x.ctid AS place, x.run_id, x.waits, x.ready_at FROM durable.turns AS x
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS r
            WHERE r.shard = x.shard AND r.id = x.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
        ) AS live
        WHERE x.shard = $1::smallint AND x.workflow = k.workflow AND x.key = k.key
        ORDER BY x.number LIMIT 1
    ) AS t ON true
), locked AS MATERIALIZED (
    SELECT f.*, run.startable
    FROM first AS f
    CROSS JOIN LATERAL (
        SELECT r.state <> 'paused' AND r.ready_at IS NULL AND r.owner IS NULL AND r.ended_at IS NULL AS startable
        FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = f.run_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
    WHERE f.waits
), moved AS (
    INSERT INTO durable.turns AS t (shard, run_id, workflow, key, waits, ready_at)
    SELECT $1::smallint, run_id, workflow, key, false, ready_at FROM locked
    ON CONFLICT (shard, run_id) DO UPDATE SET waits = false
), ready AS (
    INSERT INTO durable.runs AS run (shard, id, ready_at) SELECT $1::smallint, run_id, ready_at FROM locked WHERE startable
    ON CONFLICT (shard, id) DO UPDATE SET ready_at = excluded.ready_at
    RETURNING 1
), unused AS (
    DELETE FROM durable.turn_keys WHERE ctid = ANY (ARRAY(
        SELECT k.ctid FROM first AS f
        CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.turn_keys AS x
            WHERE x.shard = $1::smallint AND x.workflow = f.workflow AND x.key = f.key LIMIT 1
        ) AS k
        WHERE f.run_id IS NULL
    ))
), over AS (
    DELETE FROM durable.passed WHERE ctid = ANY (ARRAY(
        SELECT m.place FROM mine AS m JOIN first AS f ON f.workflow = m.workflow AND f.key = m.key
        WHERE f.waits IS NOT TRUE OR f.run_id IN (SELECT run_id FROM locked)
    ))
    RETURNING 1
)
SELECT (SELECT count(*) FROM ready),
       (SELECT count(*) FROM (SELECT FROM durable.passed AS x WHERE x.shard = $1::smallint LIMIT 1000) AS p)
       > (SELECT count(*) FROM over)

-- name: hold_debounce
-- $1 shard, $2 run, $3 workflow, $4 key. Locks the key; the run is the first one with it, unless merge_trigger says else.
INSERT INTO durable.debounces AS d (shard, workflow, key, run_id)
VALUES ($1::smallint, $3::text, $4::text, $2::uuid)
ON CONFLICT (shard, workflow, key) DO UPDATE SET run_id = d.run_id

-- name: merge_trigger
-- $1 shard, $2 run, $3 workflow, $4 debounce key, $5 seconds, $6 seconds at most or null, $7 key or null, $8 version, $9 input,
-- $10 its hash, $11 tags. A statement after hold_debounce, whose lock all triggers with this key take. The run that stands
-- is changed, if no worker ever claimed it; else the new one takes its place. Answers the id of the run that stands, null
-- when somebody holds that one at this moment: a claim that takes it, most likely.
--
-- again    this trigger was merged before.
-- new      neither its id nor its key is known: add_runs would insert it.
-- route    the run keeps its queue. A route that is missing is made; one that another makes at this moment is not seen yet,
--          and then the answer is null too.
WITH d AS MATERIALIZED (
    SELECT x.run_id FROM durable.debounces AS x
    WHERE x.shard = $1::smallint AND x.workflow = $3::text AND x.key = $4::text
), again AS MATERIALIZED (
    SELECT x.run_id FROM durable.merged AS x WHERE x.shard = $1::smallint AND x.id = $2::uuid
), new AS MATERIALIZED (
    SELECT 1
    WHERE NOT EXISTS (SELECT FROM again)
      AND NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = $2::uuid)
      AND NOT EXISTS (
          SELECT FROM durable.keys AS k
          WHERE k.shard = $1::smallint AND k.workflow = $3::text AND k.key = $7::text AND k.run_id <> $2::uuid)
), standing AS MATERIALIZED (
    SELECT d.run_id, run.queue
    FROM new CROSS JOIN d CROSS JOIN LATERAL (
        SELECT route.queue FROM durable.runs AS r JOIN durable.routes AS route ON route.id = r.route
        WHERE r.shard = $1::smallint AND r.id = d.run_id AND (r.started_at IS NULL AND r.ended_at IS NULL) IS TRUE LIMIT 1
    ) AS run
), made AS (
    INSERT INTO durable.routes (workflow, version, queue) SELECT $3::text, $8::text, queue FROM standing
    ON CONFLICT (workflow, version, queue) DO NOTHING
    RETURNING id
), route AS MATERIALIZED (
    SELECT id FROM made
    UNION ALL
    SELECT x.id FROM standing AS s
    JOIN durable.routes AS x ON x.workflow = $3::text AND x.version = $8::text AND x.queue = s.queue
), locked AS MATERIALIZED (
    SELECT s.run_id, route.id AS route, run.*
    FROM standing AS s CROSS JOIN (SELECT id FROM route LIMIT 1) AS route CROSS JOIN LATERAL (
        SELECT least(now() + make_interval(secs => $5::float8), r.created_at + make_interval(secs => $6::float8)) AS at
        FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = s.run_id AND (r.started_at IS NULL AND r.ended_at IS NULL) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), queued AS MATERIALIZED (
    SELECT FROM locked AS l JOIN durable.turns AS t ON t.shard = $1::smallint AND t.run_id = l.run_id WHERE t.waits
), merged AS (
    UPDATE durable.runs AS r
    SET input = $9::text, input_hash = $10::text, tags = $11::jsonb, route = (SELECT route FROM locked),
        ready_at = CASE WHEN r.state <> 'paused' AND NOT EXISTS (SELECT FROM queued) THEN (SELECT at FROM locked) END
    WHERE r.shard = $1::smallint AND r.id = (SELECT run_id FROM locked)
), later AS (
    UPDATE durable.turns AS t SET ready_at = (SELECT at FROM locked)
    WHERE t.shard = $1::smallint AND t.run_id = (SELECT run_id FROM locked) AND t.waits
), remembered AS (
    INSERT INTO durable.merged (shard, id, run_id) SELECT $1::smallint, $2::uuid, run_id FROM locked
    ON CONFLICT (shard, id) DO NOTHING
), replaced AS (
    UPDATE durable.debounces AS x SET run_id = $2::uuid
    WHERE x.shard = $1::smallint AND x.workflow = $3::text AND x.key = $4::text AND x.run_id <> $2::uuid
      AND EXISTS (SELECT FROM new) AND NOT EXISTS (SELECT FROM standing)
)
SELECT CASE WHEN EXISTS (SELECT FROM again) THEN (SELECT run_id FROM again)
            WHEN NOT EXISTS (SELECT FROM standing) THEN $2::uuid
            ELSE (SELECT run_id FROM locked) END

-- name: forget_merged
-- $1 shard, $2 runs that the statement before has deleted.
WITH debounced AS (
    DELETE FROM durable.debounces WHERE ctid = ANY (ARRAY(
        SELECT d.ctid FROM unnest($2::uuid[]) AS n (id)
        CROSS JOIN LATERAL (SELECT x.ctid FROM durable.debounces AS x WHERE x.shard = $1::smallint AND x.run_id = n.id) AS d
        WHERE NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = n.id)
    ))
)
DELETE FROM durable.merged WHERE ctid = ANY (ARRAY(
    SELECT m.ctid FROM unnest($2::uuid[]) AS n (id)
    CROSS JOIN LATERAL (SELECT x.ctid FROM durable.merged AS x WHERE x.shard = $1::smallint AND x.run_id = n.id) AS m
    WHERE NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = n.id)
))
