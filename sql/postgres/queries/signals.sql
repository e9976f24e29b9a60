-- Signals, and how they reach their runs.
--
-- A sender inserts a signal and a row of `wakes`, and locks nothing that exists. A claim drains `wakes` in the first statement
-- of its transaction. So whoever reads the counter of a run before its signals has, with each number, all signals that
-- made it: a signal is visible from the commit on that shows its row of `wakes`, which is before any drain counts it.
-- A park compares the counter on the locked row. If the drain came before, it differs, and the run is ready; if the park
-- was first, the drain finds the run waiting, and makes it ready; if it meets the park, the row of `wakes` stays for the
-- next drain.

-- name: add_signals
-- $1 shards, $2 run ids, $3 and $4 marks, $5 ids, $6 names, $7 payloads. To runs that have not ended. Answers how many were
-- inserted. Inserted in the order of the primary key, for a signal that another transaction has inserted and not committed
-- is waited for; read in the order in which they were given (place). Sub-selects: see claim.sql.
WITH given AS MATERIALIZED (
    SELECT n.*, nextval('durable.signals_place_seq') AS place
    FROM unnest((SELECT $1::smallint[]), (SELECT $2::uuid[]), (SELECT string_to_array($5, $3, $4)),
                (SELECT string_to_array($6, $3, $4)), (SELECT string_to_array($7, $3, $4)))
         AS n (shard, run_id, id, name, data)
), inserted AS (
    INSERT INTO durable.signals (shard, run_id, id, name, data, place)
    SELECT g.shard, g.run_id, coalesce(g.id, ''), coalesce(g.name, ''), g.data, g.place
    FROM given AS g
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r WHERE r.shard = g.shard AND r.id = g.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
    ) AS live
    ORDER BY g.shard, g.run_id, coalesce(g.id, '') COLLATE "C", g.place
    ON CONFLICT (shard, run_id, id) DO NOTHING
    RETURNING shard, run_id
), woken AS (
    INSERT INTO durable.wakes (shard, run_id) SELECT DISTINCT shard, run_id FROM inserted
)
SELECT count(*) FROM inserted

-- name: sent
-- $1 shards, $2 run ids, $3 and $4 marks, $5 ids. For each: whether the inbox has it, and whether the run has ended; null:
-- there is no such run.
SELECT signal.found IS TRUE, run.ended
FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4)) WITH ORDINALITY AS n (shard, run_id, id, place)
LEFT JOIN LATERAL (
    SELECT true AS found FROM durable.signals AS s
    WHERE s.shard = n.shard AND s.run_id = n.run_id AND s.id = coalesce(n.id, '') LIMIT 1
) AS signal ON true
LEFT JOIN LATERAL (
    SELECT r.ended_at IS NOT NULL AS ended FROM durable.runs AS r WHERE r.shard = n.shard AND r.id = n.run_id LIMIT 1
) AS run ON true
ORDER BY n.place

-- name: add_first_signal
-- $1 shard, $2 run, $3 id, $4 name, $5 payload. To a run that this transaction has inserted (xmin): a run that was there
-- may be another one than its caller thinks. Its counter says to the first claim that there is something to read.
WITH run AS (
    UPDATE durable.runs AS r SET wakes = 1
    WHERE r.shard = $1::smallint AND r.id = $2::uuid AND r.xmin = pg_current_xact_id_if_assigned()::xid
    RETURNING r.shard, r.id
)
INSERT INTO durable.signals (shard, run_id, id, name, data) SELECT shard, id, $3, $4, $5 FROM run

-- name: drain_wakes
-- $1 shard. First in each claim's transaction, so that what it makes ready can be claimed by the next statement.
-- Nobody waits in it: rows that another claim drains are passed by, and so are runs that somebody holds at this moment;
-- what is about them stays. So it is in no deadlock, although it locks runs before its claim locks the worker: the
-- reaper, which may hold that one, waits for no run either. Answers whether something stayed, and runs that are not there.
-- With nothing to do it costs a claim 60 µs (and claim_signals 20) of 560; 500 rows of it take 30 ms.
--
-- due      the next rows: a probe of an index that is empty as a rule.
-- locked   their runs as they are now, which may be newer than the snapshot.
-- raised   once for each run, however many signals came. Only a run that waits becomes ready: a delay, a backoff, a sleep
--          and a pause end in their own time, and a held run when it leaves.
-- told     a holder hears of it with its claims, until it asks (unread_runs).
-- done     by their places, which do not change: nobody updates a row of `wakes`.
WITH due AS MATERIALIZED (
    SELECT w.ctid AS place, w.run_id FROM durable.wakes AS w
    WHERE w.shard = $1::smallint ORDER BY w.id LIMIT 500 FOR UPDATE SKIP LOCKED
), locked AS MATERIALIZED (
    SELECT run.*
    FROM (SELECT DISTINCT run_id FROM due ORDER BY run_id) AS d
    CROSS JOIN LATERAL (
        SELECT r.id, r.owner, r.wakes + 1 AS wakes FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = d.run_id
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS run
), raised AS (
    INSERT INTO durable.runs AS run (shard, id) SELECT $1::smallint, id FROM locked
    ON CONFLICT (shard, id) DO UPDATE
    SET wakes = run.wakes + 1,
        ready_at = CASE WHEN run.state = 'waiting' AND run.owner IS NULL AND (run.ready_at > now()) IS NOT FALSE
                        THEN now() ELSE run.ready_at END
), told AS (
    INSERT INTO durable.requests (shard, worker, run_id, wakes, signalled)
    SELECT $1::smallint, owner, id, wakes, true FROM locked WHERE owner IS NOT NULL
    ON CONFLICT (shard, worker, run_id, wakes) DO NOTHING
), done AS (
    DELETE FROM durable.wakes WHERE ctid = ANY (ARRAY(SELECT d.place FROM due AS d WHERE d.run_id IN (SELECT id FROM locked)))
), missed AS MATERIALIZED (
    SELECT DISTINCT d.run_id, run.id IS NULL AS gone
    FROM due AS d
    LEFT JOIN LATERAL (
        SELECT r.id FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = d.run_id LIMIT 1
    ) AS run ON true
    WHERE NOT d.run_id IN (SELECT id FROM locked)
)
SELECT EXISTS (SELECT FROM missed WHERE NOT gone) OR (SELECT count(*) FROM due) = 500,
       ARRAY(SELECT run_id FROM missed WHERE gone)

-- name: forget_signals
-- $1 shard, $2 runs that were not there: a signal was sent while its run was pruned, and nobody else would delete it. With
-- the rows of `wakes` by which they were found. A run that has the same id since keeps what it has. Never prepared: rare.
WITH gone AS MATERIALIZED (
    SELECT n.id FROM unnest($2::uuid[]) AS n (id)
    WHERE NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = $1::smallint AND r.id = n.id)
), wakes AS (
    DELETE FROM durable.wakes WHERE ctid = ANY (ARRAY(
        SELECT w.ctid FROM durable.wakes AS w
        WHERE w.shard = $1::smallint AND w.run_id IN (SELECT id FROM gone) FOR UPDATE SKIP LOCKED
    ))
)
DELETE FROM durable.signals WHERE ctid = ANY (ARRAY(
    SELECT s.ctid FROM durable.signals AS s WHERE s.shard = $1::smallint AND s.run_id IN (SELECT id FROM gone)
    ORDER BY s.run_id, s.id FOR UPDATE SKIP LOCKED
))

-- name: claim_signals
-- $1 worker, $2 batch. A statement after claim_runs, whose counters are older than what this one sees. Of a batch that was
-- taken before (xmin), everything: its runs may have got signals since.
SELECT s.run_id, s.id, s.name, s.data, s.at
FROM durable.claims AS c
CROSS JOIN LATERAL unnest(
    CASE WHEN c.xmin = pg_current_xact_id_if_assigned()::xid THEN c.inbox ELSE c.run_ids END) AS r (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.signals AS x
    WHERE x.shard = c.shard AND x.run_id = r.id AND NOT x.consumed ORDER BY x.place OFFSET 0
) AS s
WHERE c.worker = $1::uuid AND c.batch = $2::uuid

-- name: unread_runs
-- $1 shard, $2 worker, $3 runs. The counters of those that it holds, before their signals are read, and an end to telling
-- of them: a row that this snapshot shows is about a number that it shows too. A row that the claim of this moment deletes
-- (claim_rest, over) is not waited for; that one may wait for this.
WITH held AS MATERIALIZED (
    SELECT n.id, run.wakes
    FROM unnest($3::uuid[]) AS n (id)
    CROSS JOIN LATERAL (
        SELECT r.wakes FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = n.id AND (r.owner = $2::uuid) IS TRUE LIMIT 1
    ) AS run
), told AS MATERIALIZED (
    SELECT q.*
    FROM (SELECT id FROM held ORDER BY id) AS h
    CROSS JOIN LATERAL (
        SELECT x.run_id, x.wakes FROM durable.requests AS x
        WHERE x.shard = $1::smallint AND x.worker = $2::uuid AND x.run_id = h.id AND x.signalled
        ORDER BY x.wakes FOR UPDATE SKIP LOCKED
    ) AS q
), heard AS (
    DELETE FROM durable.requests AS q USING told AS t
    WHERE q.shard = $1::smallint AND q.worker = $2::uuid AND q.run_id = t.run_id AND q.wakes = t.wakes
)
SELECT id, wakes FROM held

-- name: unread_signals
-- $1 shard, $2 runs. After unread_runs.
SELECT s.run_id, s.id, s.name, s.data, s.at
FROM unnest($2::uuid[]) AS n (id)
CROSS JOIN LATERAL (
    SELECT x.* FROM durable.signals AS x
    WHERE x.shard = $1::smallint AND x.run_id = n.id AND NOT x.consumed ORDER BY x.place OFFSET 0
) AS s

-- What a flush does beside records and changes. These follow commit_writes in its transaction, when a write asks for it, and
-- do it only for writes that were applied. That is seen by what commit_writes has written just now (xmin): the write's
-- first record, which was inserted with all the others; without records its run's row; without a change either, the run
-- has to be this execution's. A record that was there before breaks the transaction, so nothing is done twice.

-- name: add_children
-- $1 worker. Of each child's write: $2 shards, $3 runs, $4 claim numbers, $5 whether it changes its run, $6 and $7 marks, $8
-- first records. Of the child: $9 ids, $10 routes, $11 times ready, $12 delays, $13 priorities, $14 seeds, $15 input hashes,
-- $16 requests, $17 tags, $18 inputs, $19 limit keys, $20 parents, $21 the keys of their calls.
INSERT INTO durable.runs (shard, id, route, ready_at, priority, seed, input_hash, request, tags, input, limit_key,
                          parent, parent_key, linked)
SELECT n.shard, n.id, n.route, coalesce(timestamptz 'epoch' + n.ready_at * interval '1 us', now() + make_interval(secs => n.delay)),
       n.priority, coalesce(n.seed, ''), coalesce(n.input_hash, ''), n.request, n.tags::jsonb, n.input, n.limit_key,
       n.parent::uuid, n.parent_key, true
FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::boolean[], string_to_array($8, $6, $7), $9::uuid[], $10::integer[],
            $11::bigint[], $12::float8[], $13::smallint[], string_to_array($14, $6, $7), string_to_array($15, $6, $7),
            string_to_array($16, $6, $7), string_to_array($17, $6, $7), string_to_array($18, $6, $7),
            string_to_array($19, $6, $7), string_to_array($20, $6, $7), string_to_array($21, $6, $7))
     AS n (shard, run_id, claim, changes, record, id, route, ready_at, delay, priority, seed, input_hash, request, tags,
           input, limit_key, parent, parent_key)
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
ORDER BY n.shard, n.id
ON CONFLICT (shard, id) DO NOTHING

-- name: consume_signals
-- $1 worker. Of each signal's write: $2 shards, $3 runs, $4 claim numbers, $5 whether it changes its run, $6 and $7 marks, $8
-- first records. $9 ids. An update in the shape that has one plan, a probe for each row: see commit_writes. Nobody else
-- updates a signal, and who deletes it holds its run, which has ended then. IS TRUE keeps the probe from signals_unread,
-- which would read the whole inbox for each: 20 s for a parent that hears of 10,000 children at once.
INSERT INTO durable.signals AS s (shard, run_id, id, place, name, data)
SELECT n.shard, n.run_id, stored.id, stored.place, '', ''
FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::boolean[], string_to_array($8, $6, $7),
            string_to_array($9, $6, $7)) AS n (shard, run_id, claim, changes, record, id)
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
    SELECT x.id, x.place FROM durable.signals AS x
    WHERE x.shard = n.shard AND x.run_id = n.run_id AND x.id = coalesce(n.id, '') AND (NOT x.consumed) IS TRUE LIMIT 1
) AS stored
ORDER BY n.shard, n.run_id, stored.id
ON CONFLICT (shard, run_id, id) DO UPDATE SET consumed = true

-- name: lost_runs
-- $1 worker, $2 shards, $3 runs, $4 claim numbers. Writes with neither records nor a change, about which commit_writes says
-- nothing: those whose run is not this execution's, in its answer's columns.
SELECT n.id, 'lease_lost'
FROM unnest($2::smallint[], $3::uuid[], $4::integer[]) AS n (shard, id, claim)
LEFT JOIN LATERAL (
    SELECT true AS held FROM durable.runs AS r
    WHERE r.shard = n.shard AND r.id = n.id AND (r.owner = $1::uuid AND r.claim = n.claim) IS TRUE LIMIT 1
) AS run ON true
WHERE run.held IS NULL

-- name: tell_parents
-- $1 shards, $2 runs, $3 whether also those that this transaction has taken from dead workers. Of the linked runs that
-- this transaction has ended (xmin), the parents hear of it. It locks no parent: the signal's row and the one of `wakes`
-- do what a sender's do. A parent that is gone gets nothing. Result and error stand in it as they are stored.
WITH ended AS MATERIALIZED (
    SELECT run.*
    FROM (
        SELECT shard, id FROM unnest($1::smallint[], $2::uuid[]) AS n (shard, id)
        UNION
        SELECT c.shard, u.id FROM durable.claims AS c CROSS JOIN LATERAL unnest(c.run_ids) AS u (id)
        WHERE $3::boolean AND NOT EXISTS (SELECT FROM durable.workers AS w WHERE w.id = c.worker)
    ) AS n
    CROSS JOIN LATERAL (
        SELECT r.shard, r.id, r.parent, r.parent_key, r.state, r.result, r.error FROM durable.runs AS r
        WHERE r.shard = n.shard AND r.id = n.id AND (r.xmin = pg_current_xact_id_if_assigned()::xid
            AND r.ended_at IS NOT NULL AND r.parent IS NOT NULL) IS TRUE
        LIMIT 1
    ) AS run
), heard AS (
    INSERT INTO durable.signals (shard, run_id, id, name, data)
    SELECT e.shard, e.parent, e.id::text, 'child/' || e.parent_key,
           '{"state": "' || e.state || '", "result": ' || coalesce(e.result, 'null')
           || ', "error": ' || coalesce(e.error, 'null') || '}'
    FROM ended AS e
    CROSS JOIN LATERAL (SELECT FROM durable.runs AS p WHERE p.shard = e.shard AND p.id = e.parent LIMIT 1) AS parent
    ORDER BY e.shard, e.parent, e.id::text COLLATE "C"
    ON CONFLICT (shard, run_id, id) DO NOTHING
    RETURNING shard, run_id
)
INSERT INTO durable.wakes (shard, run_id) SELECT DISTINCT shard, run_id FROM heard
