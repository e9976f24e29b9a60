-- Triggers and reads. "Marks": what separates the texts of a column, and stands for NULL in it.

-- name: add_keys
-- $1 shards, $2 run ids, $3 and $4 marks, $5 workflows, $6 keys, $7 requests. First in its transaction and in one
-- order; a key that another transaction has inserted and not committed is waited for, at most lock_timeout. A run id
-- that its user chose and that exists already gets no key. Sub-selects: see claim.sql.
INSERT INTO durable.keys (shard, workflow, key, run_id)
SELECT n.shard, n.workflow, n.key, n.id
FROM unnest((SELECT $1::smallint[]), (SELECT $2::uuid[]), (SELECT string_to_array($5, $3, $4)),
            (SELECT string_to_array($6, $3, $4)), (SELECT string_to_array($7, $3, $4)))
     WITH ORDINALITY AS n (shard, id, workflow, key, request, place)
LEFT JOIN LATERAL (
    SELECT true AS found, r.request, r.key FROM durable.runs AS r WHERE r.shard = n.shard AND r.id = n.id LIMIT 1
) AS run ON true
WHERE run.found IS NULL OR run.key = n.key AND run.request IS NOT DISTINCT FROM n.request
ORDER BY n.shard, n.workflow, n.key, n.place
ON CONFLICT (shard, workflow, key) DO NOTHING

-- name: add_runs
-- $1 shards, $2 ids, $3 routes, $4 times ready, $5 delays, $6 and $7 marks, $8 workflows, $9 keys, $10 seeds,
-- $11 input hashes, $12 requests, $13 tags, $14 inputs, $15 priorities, $16 limit keys, $17 concurrency keys, $18 parents, $19 the
-- keys of their calls, $20 debounce keys, $21 schedules, $22 ticks. A statement after add_keys, take_turns, merge_trigger and
-- write_schedules: in the same one, what they did could not be seen. Answers the ids that were inserted. A plain run asks
-- nothing: the probes stand behind OR, since as outer joins they cost each run 1.3 µs of 14.5.
INSERT INTO durable.runs (shard, id, route, key, ready_at, seed, input_hash, request, tags, input, priority, limit_key,
                          concurrency_key, parent, parent_key, linked, schedule, tick)
SELECT n.shard, n.id, n.route, n.key,
       CASE WHEN n.concurrency_key IS NOT NULL AND (
                SELECT t.waits FROM durable.turns AS t WHERE t.shard = n.shard AND t.run_id = n.id LIMIT 1) THEN NULL
            ELSE coalesce(timestamptz 'epoch' + n.ready_at * interval '1 us', now() + make_interval(secs => n.delay)) END,
       coalesce(n.seed, ''), coalesce(n.input_hash, ''), n.request, n.tags::jsonb, n.input, n.priority, n.limit_key,
       n.concurrency_key, n.parent::uuid, n.parent_key, n.parent IS NOT NULL OR n.concurrency_key IS NOT NULL,
       n.schedule, timestamptz 'epoch' + n.tick * interval '1 us'
FROM unnest($1::smallint[], $2::uuid[], $3::integer[], $4::bigint[], $5::float8[], string_to_array($8, $6, $7),
            string_to_array($9, $6, $7), string_to_array($10, $6, $7), string_to_array($11, $6, $7),
            string_to_array($12, $6, $7), string_to_array($13, $6, $7), string_to_array($14, $6, $7), $15::smallint[],
            string_to_array($16, $6, $7), string_to_array($17, $6, $7), string_to_array($18, $6, $7),
            string_to_array($19, $6, $7), string_to_array($20, $6, $7), string_to_array($21, $6, $7), $22::bigint[])
     AS n (shard, id, route, ready_at, delay, workflow, key, seed, input_hash, request, tags, input, priority, limit_key,
           concurrency_key, parent, parent_key, debounce, schedule, tick)
WHERE (n.key IS NULL OR n.id = (
        SELECT k.run_id FROM durable.keys AS k
        WHERE k.shard = n.shard AND k.workflow = n.workflow AND k.key = n.key LIMIT 1))
  AND (n.concurrency_key IS NULL OR (
        SELECT t.waits FROM durable.turns AS t WHERE t.shard = n.shard AND t.run_id = n.id LIMIT 1) IS NOT NULL)
  AND (n.debounce IS NULL OR n.id = (
        SELECT d.run_id FROM durable.debounces AS d
        WHERE d.shard = n.shard AND d.workflow = n.workflow AND d.key = n.debounce LIMIT 1))
  AND (n.tick IS NULL OR n.id = (
        SELECT t.run_id FROM durable.ticks AS t
        WHERE t.shard = n.shard AND t.schedule = n.schedule AND t.at = timestamptz 'epoch' + n.tick * interval '1 us'
        LIMIT 1))
ORDER BY n.shard, n.id
ON CONFLICT (shard, id) DO NOTHING
RETURNING id

-- name: start_runs
-- $1 worker, $2 the limits of queues that the client knows, $3 batch, $4 shards, $5 ids, $6 routes, $7 and $8 marks, $9 workflows,
-- $10 keys, $11 seeds, $12 input hashes, $13 requests, $14 tags, $15 inputs, $16 priorities, $17 limit keys. As add_runs, for runs
-- that are due at once and stand in nobody's line or queue with limits, by a worker that has slots for them: they are inserted
-- already claimed, and never stand in the claim index. Answers the ids that were inserted, whether they are claimed, and when.
--
-- lane     the fence. Without the worker's row, or with other limits, the same rows are inserted for whoever claims them:
--          the trigger is good in any case. KEY SHARE keeps the reaper from deleting the row until this has committed, and
--          what it releases then it finds by the row in claims, in a later statement. A row of its own, since the claims of
--          this worker lock theirs on another connection at the same time.
-- A key that is waited for (add_keys) is waited for before the fence is held.
WITH lane AS MATERIALIZED (
    SELECT true AS held FROM durable.workers
    WHERE id = $1::uuid AND lane = 'start' AND limits IS NOT DISTINCT FROM $2::uuid FOR KEY SHARE
), inserted AS (
    INSERT INTO durable.runs (shard, id, route, key, ready_at, seed, input_hash, request, tags, input, priority, limit_key,
                              state, owner, claim, started_at)
    SELECT n.shard, n.id, n.route, n.key, CASE WHEN lane.held THEN NULL ELSE now() END,
           coalesce(n.seed, ''), coalesce(n.input_hash, ''), n.request, n.tags::jsonb, n.input, n.priority, n.limit_key,
           CASE WHEN lane.held THEN 'running' ELSE 'pending' END, CASE WHEN lane.held THEN $1::uuid END,
           CASE WHEN lane.held THEN 1 ELSE 0 END, CASE WHEN lane.held THEN now() END
    FROM unnest($4::smallint[], $5::uuid[], $6::integer[], string_to_array($9, $7, $8), string_to_array($10, $7, $8),
                string_to_array($11, $7, $8), string_to_array($12, $7, $8), string_to_array($13, $7, $8),
                string_to_array($14, $7, $8), string_to_array($15, $7, $8), $16::smallint[], string_to_array($17, $7, $8))
         AS n (shard, id, route, workflow, key, seed, input_hash, request, tags, input, priority, limit_key)
    LEFT JOIN lane ON true
    LEFT JOIN LATERAL (
        SELECT k.run_id FROM durable.keys AS k
        WHERE k.shard = n.shard AND k.workflow = n.workflow AND k.key = n.key LIMIT 1
    ) AS winner ON true
    WHERE n.key IS NULL OR winner.run_id = n.id
    ORDER BY n.shard, n.id
    ON CONFLICT (shard, id) DO NOTHING
    RETURNING shard, id, owner
), recorded AS (
    INSERT INTO durable.claims (worker, batch, shard, run_ids, replay, inbox)
    SELECT $1::uuid, $3::uuid, min(shard), array_agg(id), '{}', '{}' FROM inserted WHERE owner IS NOT NULL
    HAVING count(*) > 0
)
SELECT id, owner IS NOT NULL, now() FROM inserted

-- name: standing
-- $1 shards, $2 ids, $3 and $4 marks, $5 workflows, $6 keys. What stands in the place of runs that were not inserted: the run that holds
-- the key, or the run of that id. With its input when that has no hash: it was triggered in SQL.
SELECT n.id, run.id AS run_id, run.request, routes.workflow, run.input_hash, run.key,
       CASE WHEN run.input_hash = '' THEN run.input END
FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4), string_to_array($6, $3, $4))
     AS n (shard, id, workflow, key)
LEFT JOIN LATERAL (
    SELECT k.run_id FROM durable.keys AS k
    WHERE k.shard = n.shard AND k.workflow = n.workflow AND k.key = n.key LIMIT 1
) AS winner ON true
CROSS JOIN LATERAL (
    SELECT r.id, r.request, r.route, r.input_hash, r.key, r.input FROM durable.runs AS r
    WHERE r.shard = n.shard AND r.id = coalesce(winner.run_id, n.id) LIMIT 1
) AS run
JOIN durable.routes ON routes.id = run.route

-- name: get_runs
-- $1 shard, $2 ids.
SELECT r.id, r.state, r.created_at, r.started_at, r.ended_at, r.ready_at, r.key, r.tags::text, r.reason, r.requested,
       r.owner, r.claim, CASE WHEN r.takeovers > 0 AND EXISTS (
           SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
           AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) THEN 0 ELSE r.takeovers END AS takeovers,
       r.shard, routes.workflow, routes.version,
       routes.queue, r.priority, r.limit_key, r.concurrency_key, r.parent, r.linked, r.schedule, r.tick, r.input, r.result, r.error, r.seed
FROM unnest($2::uuid[]) AS n (id)
CROSS JOIN LATERAL (SELECT x.* FROM durable.runs AS x WHERE x.shard = $1::smallint AND x.id = n.id LIMIT 1) AS r
JOIN durable.routes ON routes.id = r.route

-- name: ended_runs
-- $1 shard, $2 ids.
SELECT r.id, r.state, r.created_at, r.started_at, r.ended_at, r.ready_at, r.key, r.tags::text, r.reason, r.requested,
       r.owner, r.claim, CASE WHEN r.takeovers > 0 AND EXISTS (
           SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
           AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) THEN 0 ELSE r.takeovers END AS takeovers,
       r.shard, routes.workflow, routes.version,
       routes.queue, r.priority, r.limit_key, r.concurrency_key, r.parent, r.linked, r.schedule, r.tick, NULL, r.result, r.error, r.seed
FROM unnest($2::uuid[]) AS n (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.runs AS x WHERE x.shard = $1::smallint AND x.id = n.id AND (x.ended_at IS NOT NULL) IS TRUE
    LIMIT 1
) AS r
JOIN durable.routes ON routes.id = r.route

-- name: find_key
-- $1 shard, $2 workflow, $3 key.
SELECT run_id FROM durable.keys WHERE shard = $1::smallint AND workflow = $2::text AND key = $3::text

-- name: list_runs
-- $1 shard, $2 below this id, $3 workflow, $4 version, $5 state, $6 tags, $7 created after, $8 created before, $9 limit,
-- $10 queue, $11 parent, $12 schedule.
-- Walks the primary key from its end: ids are UUIDv7, so that is newest first. Never prepared: without the value of the
-- limit the planner expects a tenth of the table, and sorts it.
SELECT r.id, r.state, r.created_at, r.started_at, r.ended_at, r.ready_at, r.key, r.tags::text, r.reason, r.requested,
       r.owner, r.claim, CASE WHEN r.takeovers > 0 AND EXISTS (
           SELECT FROM durable.history AS h WHERE h.shard = r.shard AND h.run_id = r.id
           AND h.seq > r.takeover_seq AND h.kind <> 'takeover' AND h.worker IS NOT NULL) THEN 0 ELSE r.takeovers END AS takeovers,
       r.shard, routes.workflow, routes.version,
       routes.queue, r.priority, r.limit_key, r.concurrency_key, r.parent, r.linked, r.schedule, r.tick
FROM durable.runs AS r JOIN durable.routes ON routes.id = r.route
WHERE r.shard = $1::smallint AND r.id < $2::uuid
  AND ($3::text IS NULL OR routes.workflow = $3) AND ($4::text IS NULL OR routes.version = $4)
  AND ($5::text IS NULL OR r.state = $5) AND ($6::jsonb IS NULL OR r.tags @> $6)
  AND ($7::timestamptz IS NULL OR r.created_at >= $7) AND ($8::timestamptz IS NULL OR r.created_at < $8)
  AND ($10::text IS NULL OR routes.queue = $10) AND ($11::uuid IS NULL OR r.parent = $11)
  AND ($12::text IS NULL OR r.schedule = $12)
ORDER BY r.id DESC
LIMIT $9::integer

-- name: history
-- $1 shard, $2 run.
SELECT run_id, seq, key, kind, at, data, failed, attempt, duration, begun, compensable, due_at, worker
FROM durable.history WHERE shard = $1::smallint AND run_id = $2::uuid ORDER BY seq

-- name: notify
-- $1 channel, $2 payload.
SELECT pg_notify($1::text, $2::text)

-- name: server_now
SELECT now()
