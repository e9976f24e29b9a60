-- Limits of queues over all workers. A claim that names a limited queue sends, in its transaction and in this order:
-- hold_queues, promote_keys (limits per key only), claim_limited in the place of claim_runs, the rest of a claim, and
-- limits_rest. Claims that name none send what they always sent.
--
-- Never over: the row of the queue is locked in a statement before the one that counts its places, so that the count's
-- snapshot is newer than every claim that held the row before; places are inserted by holders of the row alone. Who
-- leaves deletes its own place without the row: a count can only be too high, and what could have been taken is found by
-- the next claim. A queue whose row another claim holds is passed by, and looked at again 20 ms later.
-- "Held by this transaction" is xmin: hold_queues updates the row. (Locking it twice would not do: a second look could
-- get a row that was released after the snapshot.)
--
-- Nothing stays blocked: runs are blocked only by holders of the queue's row. Who leaves inserts a row in `freed` and
-- waits for nobody. The claim that removes it, a holder too, sees in the same statement every run that was blocked
-- before: those who blocked later have seen that place free, or another one's `freed` row is still to come.
-- What time frees, a token, stands in limit_keys.due.
--
-- Locks: workers, then limits, then runs; the flush takes none of limits. limit_keys and blocked are written by holders of
-- the queue's row alone.

-- name: limits
-- The version of the limits, and each queue's; last whether it has blocked runs, also from limits that it had before.
SELECT v.version, l.queue, l.concurrency, l.per_key, l.rate, l.rate_per, l.key_rate, l.key_per,
       EXISTS (SELECT FROM durable.limit_keys AS k WHERE k.shard = 0 AND k.queue = l.queue AND k.cause > 0)
FROM (SELECT (SELECT version FROM durable.limits_version) AS version) AS v
LEFT JOIN durable.limits AS l ON l.shard = 0
ORDER BY l.queue

-- name: new_limits
-- $1 version. First in put_queues: a worker that registers at this moment waits for it, and gets the new one.
INSERT INTO durable.limits_version (version) VALUES ($1::uuid) ON CONFLICT (single) DO UPDATE SET version = excluded.version

-- name: put_limits
-- $1 concurrency, $2 per key, $3 rate, $4 its seconds, $5 its interval, $6 to $8 the same of a key's rate, $9 and $10 marks,
-- $11 queues. Waits for claims that hold one of them, a millisecond each. Buckets begin full.
INSERT INTO durable.limits (shard, queue, concurrency, per_key, rate, rate_per, rate_interval, key_rate, key_per, key_interval)
SELECT 0, q.queue, q.concurrency, q.per_key, q.rate, q.rate_per, q.rate_interval, q.key_rate, q.key_per, q.key_interval
FROM unnest($1::integer[], $2::integer[], $3::integer[], $4::float8[], $5::bigint[], $6::integer[], $7::float8[], $8::bigint[],
            string_to_array($11, $9, $10))
     AS q (concurrency, per_key, rate, rate_per, rate_interval, key_rate, key_per, key_interval, queue)
ORDER BY q.queue
ON CONFLICT (shard, queue) DO UPDATE
SET concurrency = excluded.concurrency, per_key = excluded.per_key, rate = excluded.rate, rate_per = excluded.rate_per,
    rate_interval = excluded.rate_interval, key_rate = excluded.key_rate, key_per = excluded.key_per,
    key_interval = excluded.key_interval, spent = now()

-- name: look_again
-- $1 and $2 marks, $3 queues. With other limits other runs may start: every key that has blocked runs is due, so what was
-- noted as freed says nothing more. A queue without limits is kept until it has no blocked runs.
WITH freed AS (
    DELETE FROM durable.freed WHERE queue = ANY (string_to_array($3, $1, $2))
), full_ones AS (
    DELETE FROM durable.limit_keys WHERE queue = ANY (string_to_array($3, $1, $2)) AND cause = 0
), unlimited AS (
    DELETE FROM durable.limits AS l
    WHERE l.queue = ANY (string_to_array($3, $1, $2)) AND num_nonnulls(l.concurrency, l.per_key, l.rate, l.key_rate) = 0
      AND NOT EXISTS (SELECT FROM durable.limit_keys AS k WHERE k.queue = l.queue AND k.cause > 0)
)
UPDATE durable.limit_keys SET due = now(), spent = now(), cause = 2
WHERE queue = ANY (string_to_array($3, $1, $2)) AND cause > 0

-- name: tell_workers
-- $1 version. Claims that are on their way do not wait for it, and are not waited for: those that begin later see it.
UPDATE durable.workers SET limits = $1::uuid WHERE lane IN ('claim', 'start')

-- name: hold_queues
-- $1 worker, $2 shard, $3 the limits known, $4 and $5 marks, $6 queues. Locks what nobody else holds. Answers each queue and
-- whether it is held.
WITH lane AS MATERIALIZED (
    SELECT 1 FROM durable.workers
    WHERE id = $1::uuid AND lane = 'claim' AND limits IS NOT DISTINCT FROM $3::uuid FOR KEY SHARE
), free AS MATERIALIZED (
    SELECT l.queue FROM lane CROSS JOIN LATERAL (
        SELECT x.queue FROM durable.limits AS x
        WHERE x.shard = $2::smallint AND x.queue = ANY ((SELECT string_to_array($6, $4, $5))::text[])
        ORDER BY x.queue
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS l
), held AS (
    UPDATE durable.limits AS l SET held_at = now()
    FROM free WHERE l.shard = $2::smallint AND l.queue = free.queue
    RETURNING l.queue
)
SELECT x.queue, x.queue IN (SELECT queue FROM held)
FROM lane CROSS JOIN durable.limits AS x
WHERE x.shard = $2::smallint AND x.queue = ANY ((SELECT string_to_array($6, $4, $5))::text[])

-- name: promote_keys
-- $1 shard, $2 and $3 marks, $4 queues. Runs that were blocked and may start become ready again, with the time at which
-- they were due. Looks at a bounded number of keys: those that somebody has left, and those whose time has come.
--
-- room     how many runs of each of these keys could start. One that has blocked runs has a row in limit_keys.
-- front    its first runs that are still blocked, as many for each route, since nobody may execute one of them; and one more,
--          which says that there are others. What is too much is blocked again when it is met.
-- stale    runs before those that are not blocked any more: an operator has paused or resumed them, or they have ended.
-- judged   keys whose room was not used up, as somebody held a run or changed it, are looked at again at once.
WITH queue AS MATERIALIZED (
    SELECT l.* FROM durable.limits AS l
    WHERE l.shard = $1::smallint AND l.queue = ANY ((SELECT string_to_array($4, $2, $3))::text[])
      AND (l.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE
), freed AS (
    DELETE FROM durable.freed WHERE ctid = ANY (ARRAY(
        SELECT f.ctid FROM queue AS q CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.freed AS x WHERE x.shard = $1::smallint AND x.queue = q.queue
            ORDER BY x.key, x.run_id LIMIT 200
        ) AS f
    ))
    RETURNING queue, key
), due AS MATERIALIZED (
    SELECT k.* FROM queue AS q CROSS JOIN generate_series(0, 2) AS c (cause) CROSS JOIN LATERAL (
        SELECT x.queue, x.key FROM durable.limit_keys AS x
        WHERE x.shard = $1::smallint AND x.queue = q.queue AND x.cause = c.cause::smallint AND x.due <= now()
        ORDER BY x.due LIMIT 50
    ) AS k
), room AS MATERIALIZED (
    SELECT s.queue, s.key, q.key_rate, q.key_interval, k.place, k.spent, bucket.tokens,
           greatest(0, least(200, q.per_key - held.count, bucket.tokens))::integer AS room
    FROM (SELECT queue, key FROM freed UNION SELECT queue, key FROM due) AS s
    JOIN queue AS q ON q.queue = s.queue
    CROSS JOIN LATERAL (
        SELECT count(*) FROM durable.places AS p
        WHERE p.shard = $1::smallint AND p.queue = s.queue AND p.key = s.key AND q.per_key IS NOT NULL
    ) AS held
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place, x.spent FROM durable.limit_keys AS x
        WHERE x.shard = $1::smallint AND x.queue = s.queue AND x.key = s.key LIMIT 1
    ) AS k
    CROSS JOIN LATERAL (
        SELECT q.key_rate - ceil(extract(epoch FROM greatest(k.spent, now()) - now()) * 1000000 / q.key_interval) AS tokens
    ) AS bucket
), front AS MATERIALIZED (
    SELECT r.queue, r.key, r.room, route.id AS route, b.*
    FROM room AS r
    JOIN durable.routes AS route ON route.queue = r.queue
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place, x.run_id, x.ready_at, row_number() OVER (ORDER BY x.priority, x.ready_at, x.run_id) AS number
        FROM durable.blocked AS x
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS run
            WHERE run.shard = $1::smallint AND run.id = x.run_id AND (run.ready_at IS NULL AND run.owner IS NULL
                  AND run.ended_at IS NULL AND run.state <> 'paused') IS TRUE LIMIT 1
        ) AS blocked
        WHERE x.shard = $1::smallint AND x.queue = r.queue AND x.key = r.key AND x.route = route.id
        ORDER BY x.priority, x.ready_at, x.run_id
        LIMIT r.room + 1
    ) AS b
), locked AS MATERIALIZED (
    SELECT f.place, f.run_id, f.ready_at
    FROM front AS f
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = f.run_id
          AND (r.ready_at IS NULL AND r.owner IS NULL AND r.ended_at IS NULL AND r.state <> 'paused') IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
    WHERE f.number <= f.room
), stale AS MATERIALIZED (
    SELECT b.place
    FROM room AS r
    JOIN durable.routes AS route ON route.queue = r.queue
    LEFT JOIN front AS f ON f.queue = r.queue AND f.key = r.key AND f.route = route.id AND f.number = 1
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place FROM durable.blocked AS x
        WHERE x.shard = $1::smallint AND x.queue = r.queue AND x.key = r.key AND x.route = route.id
        ORDER BY x.priority, x.ready_at, x.run_id LIMIT 1
    ) AS head
    CROSS JOIN LATERAL (
        SELECT x.ctid AS place, x.run_id FROM durable.blocked AS x
        WHERE x.shard = $1::smallint AND x.queue = r.queue AND x.key = r.key AND x.route = route.id
          AND f.place IS DISTINCT FROM head.place
        ORDER BY x.priority, x.ready_at, x.run_id LIMIT 500
    ) AS b
    WHERE NOT EXISTS (
        SELECT FROM durable.runs AS run
        WHERE run.shard = $1::smallint AND run.id = b.run_id AND (run.ready_at IS NULL AND run.owner IS NULL
              AND run.ended_at IS NULL AND run.state <> 'paused') IS TRUE)
), unblocked AS (
    DELETE FROM durable.blocked WHERE ctid = ANY (ARRAY(SELECT place FROM locked UNION ALL SELECT place FROM stale))
), promoted AS (
    INSERT INTO durable.runs AS run (shard, id, ready_at) SELECT $1::smallint, run_id, ready_at FROM locked
    ON CONFLICT (shard, id) DO UPDATE SET ready_at = excluded.ready_at
), judged AS MATERIALIZED (
    SELECT r.*, EXISTS (
        SELECT FROM front AS f WHERE f.queue = r.queue AND f.key = r.key
        AND NOT EXISTS (SELECT FROM locked AS l WHERE l.run_id = f.run_id)) AS waiting, EXISTS (
        SELECT FROM front AS f WHERE f.queue = r.queue AND f.key = r.key AND f.number <= f.room
        AND NOT EXISTS (SELECT FROM locked AS l WHERE l.run_id = f.run_id)) AS wasted
    FROM room AS r
), settled AS (
    DELETE FROM durable.limit_keys WHERE ctid = ANY (ARRAY(
        SELECT place FROM judged WHERE NOT waiting AND (key_rate IS NULL OR spent <= now())
    ))
)
INSERT INTO durable.limit_keys (shard, queue, key, spent, cause, due)
SELECT $1::smallint, j.queue, j.key, j.spent,
       CASE WHEN NOT j.waiting THEN 0 WHEN j.wasted OR j.tokens < 1 THEN 2 ELSE 1 END,
       CASE WHEN NOT j.waiting THEN j.spent WHEN j.wasted THEN now()
            WHEN j.tokens < 1 THEN j.spent - (j.key_rate - 1) * j.key_interval * interval '1 us'
            ELSE now() + interval '5 s' END
FROM judged AS j
WHERE j.waiting OR (j.key_rate IS NOT NULL AND j.spent > now())
ORDER BY j.queue, j.key
ON CONFLICT (shard, queue, key) DO UPDATE SET cause = excluded.cause, due = excluded.due

-- name: claim_limited
-- As claim_runs, with $9 the limits known, for routes of which some are of limited queues.
--
-- room     for each limited queue whether this transaction holds it, and how many of its runs may be taken.
-- slot     a queue that is used up, or held by another claim, is not probed.
-- picked   locked by probes as in claim_runs, and some more, for those that are blocked.
-- key_room how many runs of each key that was met may be taken.
-- ranked   a run is blocked when more of its key come before it than may be taken.
-- The answer ends with a row without an id when runs were set aside, or not all were looked at: there may be more.
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
), route AS MATERIALIZED (
    SELECT r.route, r.turn, x.queue
    FROM unnest((SELECT $3::integer[])) WITH ORDINALITY AS r (route, turn)
    CROSS JOIN LATERAL (SELECT y.queue FROM durable.routes AS y WHERE y.id = r.route LIMIT 1) AS x
), room AS MATERIALIZED (
    SELECT l.*, (l.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE AS mine,
           l.per_key IS NOT NULL OR l.key_rate IS NOT NULL AS keyed,
           least(l.concurrency - held.count,
                 l.rate - ceil(extract(epoch FROM greatest(l.spent, now()) - now()) * 1000000 / l.rate_interval),
                 2000000000) AS free
    FROM (SELECT DISTINCT queue FROM route) AS q
    CROSS JOIN LATERAL (
        SELECT x.*, x.xmin FROM durable.limits AS x WHERE x.shard = $2::smallint AND x.queue = q.queue LIMIT 1
    ) AS l
    CROSS JOIN LATERAL (
        SELECT count(*) FROM durable.places AS p
        WHERE p.shard = $2::smallint AND p.queue = l.queue AND l.concurrency IS NOT NULL
    ) AS held
), slot AS MATERIALIZED (
    SELECT p.priority::smallint AS priority, r.route, r.queue, m.queue IS NOT NULL AS limited, coalesce(m.keyed, false) AS keyed,
           CASE WHEN m.keyed THEN $4::integer + 200 ELSE least($4::integer, m.free) END AS most
    FROM lane CROSS JOIN generate_series(0, 9) AS p (priority)
    CROSS JOIN route AS r
    LEFT JOIN room AS m ON m.queue = r.queue
    WHERE (m.queue IS NULL OR m.mine AND m.free >= 1)
      AND NOT EXISTS (SELECT FROM durable.claims WHERE worker = $1::uuid AND batch = $5::uuid)
    ORDER BY p.priority, r.turn
), picked AS MATERIALIZED (
    SELECT run.*, slot.queue, slot.limited, slot.keyed AND coalesce(run.limit_key, '') <> '' AS keyed,
           row_number() OVER () AS place
    FROM slot
    CROSS JOIN LATERAL (
        SELECT r.shard, r.id, r.priority, r.route, r.ready_at, r.limit_key, run.suspect
        FROM durable.runs AS r
        CROSS JOIN LATERAL (
            SELECT r.takeovers >= 2 AND NOT EXISTS (
                SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
                AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) AS suspect
        ) AS run
        WHERE r.shard = $2::smallint AND r.route = slot.route AND r.priority = slot.priority AND r.ready_at <= now() /* only this run */
          AND NOT (run.suspect AND (SELECT a_suspect FROM held))
        ORDER BY r.ready_at
        LIMIT slot.most
        FOR NO KEY UPDATE OF r SKIP LOCKED
    ) AS run
    LIMIT (SELECT $4::integer + 200)
), key_room AS MATERIALIZED (
    SELECT c.queue, c.limit_key, m.key_rate, m.key_interval, k.cause, greatest(k.spent, now()) AS spent, bucket.tokens,
           least(m.per_key - held.count, bucket.tokens) AS free
    FROM (SELECT DISTINCT queue, limit_key FROM picked WHERE keyed) AS c
    JOIN room AS m ON m.queue = c.queue
    CROSS JOIN LATERAL (
        SELECT count(*) FROM durable.places AS p
        WHERE p.shard = $2::smallint AND p.queue = c.queue AND p.key = c.limit_key AND m.per_key IS NOT NULL
    ) AS held
    LEFT JOIN LATERAL (
        SELECT x.spent, x.cause FROM durable.limit_keys AS x
        WHERE x.shard = $2::smallint AND x.queue = c.queue AND x.key = c.limit_key LIMIT 1
    ) AS k ON true
    CROSS JOIN LATERAL (
        SELECT m.key_rate - ceil(extract(epoch FROM greatest(k.spent, now()) - now()) * 1000000 / m.key_interval) AS tokens
    ) AS bucket
), ranked AS MATERIALIZED (
    SELECT p.*, p.keyed AND row_number() OVER (PARTITION BY p.queue, p.limit_key, p.keyed ORDER BY p.place) > k.free AS blocked
    FROM picked AS p
    LEFT JOIN key_room AS k ON p.keyed AND k.queue = p.queue AND k.limit_key = p.limit_key
    WHERE NOT p.suspect OR p.place = (SELECT min(place) FROM picked WHERE suspect)
), chosen AS MATERIALIZED (
    SELECT f.shard, f.id, f.queue, f.limit_key, f.limited, f.keyed
    FROM (
        SELECT r.*, row_number() OVER (PARTITION BY r.queue ORDER BY r.place) AS number FROM ranked AS r
        WHERE r.blocked IS NOT TRUE
    ) AS f
    LEFT JOIN room AS m ON m.queue = f.queue
    WHERE f.number <= coalesce(m.free, 2000000000)
    ORDER BY f.place
    LIMIT (SELECT $4::integer)
), aside AS (
    INSERT INTO durable.blocked (shard, run_id, queue, key, route, priority, ready_at)
    SELECT shard, id, queue, limit_key, route, priority, ready_at FROM ranked WHERE blocked
    ON CONFLICT (shard, run_id) DO NOTHING
), set_aside AS (
    INSERT INTO durable.runs AS run (shard, id) SELECT shard, id FROM ranked WHERE blocked
    ON CONFLICT (shard, id) DO UPDATE SET ready_at = NULL
), unblocked AS (
    DELETE FROM durable.blocked WHERE ctid = ANY (ARRAY(
        SELECT b.ctid FROM chosen AS c CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.blocked AS x WHERE x.shard = c.shard AND x.run_id = c.id LIMIT 1
        ) AS b
        WHERE c.keyed
    ))
), key_change AS MATERIALIZED (
    SELECT k.queue, k.limit_key, k.key_rate, k.key_interval, k.tokens - taken.count AS rest,
           k.spent + coalesce(taken.count * k.key_interval, 0) * interval '1 us' AS spent,
           aside.count > 0 OR coalesce(k.cause, 0) > 0 AS waiting
    FROM key_room AS k
    CROSS JOIN LATERAL (
        SELECT count(*) FROM chosen AS c WHERE c.keyed AND c.queue = k.queue AND c.limit_key = k.limit_key
    ) AS taken
    CROSS JOIN LATERAL (
        SELECT count(*) FROM ranked AS r WHERE r.blocked AND r.queue = k.queue AND r.limit_key = k.limit_key
    ) AS aside
    WHERE aside.count > 0 OR (taken.count > 0 AND k.key_rate IS NOT NULL)
), keys AS (
    INSERT INTO durable.limit_keys AS k (shard, queue, key, spent, cause, due)
    SELECT $2::smallint, queue, limit_key, spent,
           CASE WHEN NOT waiting THEN 0 WHEN rest < 1 THEN 2 ELSE 1 END,
           CASE WHEN NOT waiting THEN spent
                WHEN rest < 1 THEN spent - (key_rate - 1) * key_interval * interval '1 us' ELSE now() + interval '5 s' END
    FROM key_change ORDER BY queue, limit_key
    ON CONFLICT (shard, queue, key) DO UPDATE
    SET spent = excluded.spent,
        cause = CASE WHEN k.cause > 0 AND k.due < excluded.due THEN k.cause ELSE excluded.cause END,
        due = CASE WHEN k.cause > 0 THEN least(k.due, excluded.due) ELSE excluded.due END
), spent AS (
    UPDATE durable.limits AS l SET spent = greatest(l.spent, now()) + c.count * l.rate_interval * interval '1 us'
    FROM (SELECT queue, count(*) FROM chosen WHERE limited GROUP BY queue) AS c
    WHERE l.shard = $2::smallint AND l.queue = c.queue AND l.rate IS NOT NULL
), placed AS (
    INSERT INTO durable.places (shard, queue, key, run_id)
    SELECT shard, queue, coalesce(limit_key, ''), id FROM chosen WHERE limited
    ON CONFLICT (shard, queue, key, run_id) DO NOTHING
), taken AS (
    INSERT INTO durable.runs AS run (shard, id, owner, linked)
    SELECT shard, id, $1::uuid, limited FROM chosen
    ON CONFLICT (shard, id) DO UPDATE
    SET state = CASE run.state WHEN 'compensating' THEN 'compensating' ELSE 'running' END,
        owner = excluded.owner, claim = run.claim + 1, ready_at = NULL, started_at = coalesce(run.started_at, now()),
        linked = run.linked OR excluded.linked,
        takeovers = CASE WHEN run.takeovers > 0 AND EXISTS (
            SELECT FROM durable.history AS h WHERE h.shard = run.shard AND h.run_id = run.id
            AND h.seq > run.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) THEN 0 ELSE run.takeovers END
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
SELECT t.id, t.shard, t.route, t.state, t.created_at, t.started_at, t.key, t.tags::text, t.claim, t.takeovers, t.wakes,
       t.input, t.error, t.seed, t.requested, t.priority, t.limit_key, t.concurrency_key, t.parent, t.linked,
       t.schedule, t.tick
FROM taken AS t
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
WHERE EXISTS (SELECT FROM ranked WHERE blocked) OR (SELECT count(*) FROM picked) >= $4::integer + 200

-- name: limits_rest
-- $1 shard, $2 routes, $3 and $4 marks, $5 queues. When a token that is missing comes: a key's, or a queue's of which something
-- is due by then.
SELECT min(due)
FROM (
    SELECT l.due
    FROM (
        SELECT x.queue, x.spent - (x.rate - 1) * x.rate_interval * interval '1 us' AS due FROM durable.limits AS x
        WHERE x.shard = $1::smallint AND x.queue = ANY ((SELECT string_to_array($5, $3, $4))::text[]) AND x.rate IS NOT NULL
    ) AS l
    WHERE l.due > now() AND EXISTS (
        SELECT FROM unnest((SELECT $2::integer[])) AS r (id)
        CROSS JOIN LATERAL (SELECT FROM durable.routes AS x WHERE x.id = r.id AND x.queue = l.queue LIMIT 1) AS route
        CROSS JOIN generate_series(0, 9) AS p (priority)
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS x
            WHERE x.shard = $1::smallint AND x.route = r.id AND x.priority = p.priority::smallint AND x.ready_at <= l.due
            LIMIT 1
        ) AS run
    )
    UNION ALL
    SELECT k.due
    FROM durable.limits AS l
    CROSS JOIN LATERAL (
        SELECT x.due FROM durable.limit_keys AS x
        WHERE x.shard = l.shard AND x.queue = l.queue AND x.cause = 2 ORDER BY x.due LIMIT 1
    ) AS k
    WHERE l.shard = $1::smallint AND l.queue = ANY ((SELECT string_to_array($5, $3, $4))::text[])
) AS next

-- name: leave_queues
-- $1 shards, $2 ids, $3 whether also those of dead workers. After what may have given these runs back, in its
-- transaction: only if it has (xmin). Their places are free, and the turns of those that ended are to be passed on. The
-- place of a held run is deleted by its holder alone, or by the reaper when there is none any more: nobody is waited for.
WITH gone AS MATERIALIZED (
    SELECT r.*, route.queue, route.workflow
    FROM (
        SELECT shard, id FROM unnest((SELECT $1::smallint[]), (SELECT $2::uuid[])) AS n (shard, id)
        UNION
        SELECT c.shard, u.id FROM durable.claims AS c CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
        WHERE $3::boolean AND NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = c.worker)
    ) AS n
    CROSS JOIN LATERAL (
        SELECT x.shard, x.id, x.route, x.limit_key, x.concurrency_key, x.ended_at FROM durable.runs AS x
        WHERE x.shard = n.shard AND x.id = n.id
          AND (x.xmin = pg_current_xact_id_if_assigned()::xid AND x.owner IS NULL) IS TRUE LIMIT 1
    ) AS r
    CROSS JOIN LATERAL (SELECT x.queue, x.workflow FROM durable.routes AS x WHERE x.id = r.route LIMIT 1) AS route
), place AS (
    DELETE FROM durable.places WHERE ctid = ANY (ARRAY(
        SELECT p.ctid FROM gone AS g CROSS JOIN LATERAL (
            SELECT x.ctid FROM durable.places AS x
            WHERE x.shard = g.shard AND x.queue = g.queue AND x.key = coalesce(g.limit_key, '') AND x.run_id = g.id LIMIT 1
        ) AS p
    ))
    RETURNING shard, queue, key, run_id
), freed AS (
    -- Who gives the queue such a limit at this moment has its blocked keys looked at again anyway.
    INSERT INTO durable.freed (shard, queue, key, run_id)
    SELECT p.shard, p.queue, p.key, p.run_id FROM place AS p
    WHERE p.key <> '' AND EXISTS (
        SELECT FROM durable.limits AS l WHERE l.shard = p.shard AND l.queue = p.queue AND l.per_key IS NOT NULL)
    ON CONFLICT (shard, queue, key, run_id) DO NOTHING
)
INSERT INTO durable.passed (shard, run_id, workflow, key)
SELECT shard, id, workflow, concurrency_key FROM gone WHERE ended_at IS NOT NULL AND concurrency_key IS NOT NULL
ON CONFLICT (shard, run_id) DO NOTHING
