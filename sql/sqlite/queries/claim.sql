-- Claims, and what becomes of them when a worker goes.

-- name: session_claimed
CREATE TEMP TABLE claimed (
    pos INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    claim INTEGER NOT NULL
)

-- name: session_full
-- Queues of which nothing can be taken now.
CREATE TEMP TABLE full_queues (name TEXT PRIMARY KEY) WITHOUT ROWID

-- name: session_claiming_view
-- routes: [[workflow, version, queue], …]; done: [batch, …]; ahead: where there are limits, look at so many more than
-- at_most, since what cannot be taken may stand in front; more: look on, beyond what the batch was given; one: the only
-- run to claim, or null
CREATE TEMP VIEW claiming AS
SELECT NULL AS now, NULL AS worker, NULL AS batch, NULL AS routes, NULL AS at_most, NULL AS done, NULL AS ahead,
    NULL AS more, NULL AS one

-- name: session_claiming
CREATE TEMP TRIGGER claiming_into INSTEAD OF INSERT ON claiming BEGIN
    DELETE FROM claimed;
    DELETE FROM full_queues;
    DELETE FROM admitting_runs;

    INSERT INTO full_queues (name)
    SELECT q.name
    FROM durable_queues AS q
    WHERE q.name IN (SELECT w.value ->> 2 FROM json_each(NEW.routes) AS w)
        AND ((SELECT count(*) FROM durable_places AS p WHERE p.queue = q.name) >= q.concurrency
            OR (SELECT b.spent FROM durable_buckets AS b WHERE b.queue = q.name AND b.name = '')
                > NEW.now + (q.rate - 1) * q.rate_interval);

    -- sent again: what the batch was given, as far as the worker still has it
    INSERT INTO claimed (run, claim)
    SELECT r.n, r.claim
    FROM durable_claims AS b
    CROSS JOIN json_each(b.runs) AS j
    CROSS JOIN durable_runs AS r
    WHERE b.worker = NEW.worker AND b.batch = NEW.batch
        AND r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = NEW.worker;

    -- One index probe per priority and route, in order of ready_at, ended by the LIMIT: CROSS JOIN and INDEXED BY leave
    -- the planner no choice. An ORDER BY would make it sort everything that is due; of a table of priorities it expects
    -- a million rows, and reads the whole index for a Bloom filter. Whether the worker holds a suspect is asked once,
    -- and only when the probe has met one.
    INSERT INTO claimed (run, claim)
    SELECT r.n, r.claim + 1
    FROM json_each('[0,1,2,3,4,5,6,7,8,9]') AS p
    CROSS JOIN json_each(NEW.routes) AS w
    CROSS JOIN durable_runs AS r INDEXED BY durable_runs_ready
    WHERE NEW.one IS NULL
        AND r.workflow = w.value ->> 0 AND r.version = w.value ->> 1 AND r.queue = w.value ->> 2
        AND r.priority = p.value AND r.ready_at <= NEW.now
        AND w.value ->> 2 NOT IN (SELECT name FROM full_queues)
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker)
        AND (NEW.more OR NOT EXISTS (SELECT 1 FROM durable_claims WHERE worker = NEW.worker AND batch = NEW.batch))
        AND (r.takeovers < 2 OR NOT EXISTS (
            SELECT 1
            FROM durable_claims AS b
            CROSS JOIN json_each(b.runs) AS j
            WHERE b.worker = NEW.worker AND (
                SELECT h.takeovers >= 2 FROM durable_runs AS h
                WHERE h.n = j.value ->> 0 AND h.claim = j.value ->> 1 AND h.owner = NEW.worker)))
    LIMIT NEW.at_most + CASE
        WHEN NEW.at_most > 0 AND EXISTS (
            SELECT 1 FROM durable_queues WHERE name IN (SELECT v.value ->> 2 FROM json_each(NEW.routes) AS v))
        THEN NEW.ahead ELSE 0
    END;

    -- The same of one run, by its id. It may be a suspect when the worker holds no other.
    INSERT INTO claimed (run, claim)
    SELECT r.n, r.claim + 1
    FROM json_each(NEW.routes) AS w
    CROSS JOIN durable_runs AS r
    WHERE NEW.one IS NOT NULL
        AND r.id = NEW.one AND r.ready_at <= NEW.now
        AND r.workflow = w.value ->> 0 AND r.version = w.value ->> 1 AND r.queue = w.value ->> 2
        AND w.value ->> 2 NOT IN (SELECT name FROM full_queues)
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker)
        AND (NEW.more OR NOT EXISTS (SELECT 1 FROM durable_claims WHERE worker = NEW.worker AND batch = NEW.batch))
        AND (r.takeovers < 2 OR NOT EXISTS (
            SELECT 1
            FROM durable_claims AS b
            CROSS JOIN json_each(b.runs) AS j
            WHERE b.worker = NEW.worker AND (
                SELECT h.takeovers >= 2 FROM durable_runs AS h
                WHERE h.n = j.value ->> 0 AND h.claim = j.value ->> 1 AND h.owner = NEW.worker)));

    -- Of the suspects only the first. A look-up for each, not a join: see claimed_runs.
    DELETE FROM claimed
    WHERE pos IN (
        SELECT c.pos
        FROM claimed AS c
        WHERE (SELECT r.owner IS NULL AND r.takeovers >= 2 FROM durable_runs AS r WHERE r.n = c.run)
        ORDER BY c.pos
        LIMIT -1 OFFSET 1);

    INSERT INTO admitting (now, at_most)
    SELECT NEW.now, NEW.at_most WHERE EXISTS (SELECT 1 FROM durable_queues);

    -- a run of a resent batch is owned already, and stays as it is
    UPDATE durable_runs SET
        owner = NEW.worker,
        claim = claim + 1,
        ready_at = NULL,
        state = CASE state WHEN 'compensating' THEN state ELSE 'running' END,
        started_at = coalesce(started_at, NEW.now),
        linked = linked OR n IN (SELECT run FROM durable_places)
    WHERE n IN (SELECT run FROM claimed) AND owner IS NULL;

    INSERT INTO durable_claims (worker, batch, runs)
    SELECT NEW.worker, NEW.batch, json_group_array(json_array(run, claim)) FROM claimed HAVING count(*) > 0
    ON CONFLICT (worker, batch) DO UPDATE SET runs = excluded.runs;

    -- A batch is forgotten only when nothing in it is held: it is the reaper's only way to the runs.
    DELETE FROM durable_claims
    WHERE worker = NEW.worker AND batch IN (SELECT value FROM json_each(NEW.done))
        AND NOT EXISTS (
            SELECT 1
            FROM json_each(durable_claims.runs) AS j
            CROSS JOIN durable_runs AS r
            WHERE r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = NEW.worker);
END

-- name: session_starting_view
-- runs: [id, …], which this transaction has created
CREATE TEMP VIEW starting AS SELECT NULL AS now, NULL AS worker, NULL AS batch, NULL AS runs

-- name: session_starting
-- Runs that their trigger has a slot for, claimed before anybody has seen them. What is delayed, or of a queue with limits,
-- is left to the claims; without the worker's row everything is.
CREATE TEMP TRIGGER starting_into INSTEAD OF INSERT ON starting BEGIN
    DELETE FROM claimed;

    INSERT INTO claimed (run, claim)
    SELECT r.n, 1
    FROM json_each(NEW.runs) AS j
    CROSS JOIN durable_runs AS r
    WHERE r.id = j.value AND r.claim = 0 AND r.owner IS NULL AND r.ready_at <= NEW.now
        AND NOT EXISTS (SELECT 1 FROM durable_queues AS q WHERE q.name = r.queue)
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker);

    UPDATE durable_runs SET owner = NEW.worker, claim = 1, ready_at = NULL, state = 'running', started_at = NEW.now
    WHERE n IN (SELECT run FROM claimed);

    -- Two halves of a large document have one batch.
    INSERT INTO durable_claims (worker, batch, runs)
    SELECT NEW.worker, NEW.batch, json_group_array(json_array(run, claim)) FROM claimed HAVING count(*) > 0
    ON CONFLICT (worker, batch) DO UPDATE SET runs = (
        SELECT json_group_array(json(value))
        FROM (SELECT value FROM json_each(runs) UNION ALL SELECT value FROM json_each(excluded.runs)));
END

-- name: start
INSERT INTO starting (now, worker, batch, runs) VALUES (?, ?, ?, ?)

-- name: claim
INSERT INTO claiming (now, worker, batch, routes, at_most, done, ahead, more, one) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: claimed_runs
-- Read after the claim's own transaction: what somebody else has reaped in between is not ours to show.
-- One look-up for each, not a join: with statistics of a full table SQLite read all of it for a Bloom filter.
SELECT json_group_array(json(doc)) FILTER (WHERE doc IS NOT NULL)
FROM (
    SELECT (SELECT d.doc FROM run_docs AS d WHERE d.n = c.run AND d.claim = c.claim AND d.owner IS NOT NULL) AS doc
    FROM claimed AS c)

-- name: claimed_records
SELECT '[' || coalesce(group_concat('[' || r.run || ',' || json_quote(r.key) || ',' || r.body || ']'), '') || ']'
FROM json_each(:runs) AS w
CROSS JOIN durable_records AS r
WHERE r.run = w.value

-- name: requests
-- What is asked of the runs that the worker holds. The index holds nothing else, and the planner no choice.
SELECT json_group_array(json_array(id, requested))
FROM durable_runs INDEXED BY durable_runs_requested
WHERE owner = :worker AND requested IS NOT NULL

-- name: next_ready
-- When something will be due, or the next token of a queue in which something is due.
SELECT min(at)
FROM (
    SELECT (
        SELECT r.ready_at
        FROM durable_runs AS r INDEXED BY durable_runs_ready
        WHERE r.workflow = w.value ->> 0 AND r.version = w.value ->> 1 AND r.queue = w.value ->> 2
            AND r.priority = p.value AND r.ready_at > :now
        ORDER BY r.ready_at
        LIMIT 1) AS at
    FROM json_each(:routes) AS w
    CROSS JOIN json_each('[0,1,2,3,4,5,6,7,8,9]') AS p
    UNION ALL
    SELECT b.spent - (q.rate - 1) * q.rate_interval
    FROM json_each(:routes) AS w
    CROSS JOIN durable_queues AS q
    CROSS JOIN durable_buckets AS b
    WHERE q.name = w.value ->> 2 AND q.rate IS NOT NULL AND b.queue = q.name AND b.name = ''
        AND b.spent - (q.rate - 1) * q.rate_interval > :now
        AND EXISTS (
            SELECT 1
            FROM json_each('[0,1,2,3,4,5,6,7,8,9]') AS p
            CROSS JOIN durable_runs AS r INDEXED BY durable_runs_ready
            WHERE r.workflow = w.value ->> 0 AND r.version = w.value ->> 1 AND r.queue = w.value ->> 2
                AND r.priority = p.value AND r.ready_at <= :now))

-- name: owned
SELECT json_group_array(json_array(r.shard, r.id, r.claim, r.linked))
FROM durable_claims AS b
CROSS JOIN json_each(b.runs) AS j
CROSS JOIN durable_runs AS r
WHERE b.worker = :worker AND r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = b.worker

-- name: register
INSERT INTO durable_workers (id, expires_at, host, pid, started_at) VALUES (:worker, :expires_at, :host, :pid, :now)
ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at

-- name: renew
UPDATE durable_workers SET expires_at = :expires_at WHERE id = :worker

-- name: next_expiry
SELECT min(expires_at) FROM durable_workers WHERE id <> :worker

-- name: session_gone
CREATE TEMP TABLE gone (worker TEXT PRIMARY KEY) WITHOUT ROWID

-- name: session_lost
-- dead_letter: [id, workflow] of a run that is given up. Taken while the write lock is held: afterwards an operator may
-- have retried the run, or deleted it.
CREATE TEMP TABLE lost (
    run INTEGER PRIMARY KEY,
    worker TEXT NOT NULL,
    dead_letter TEXT
)

-- name: session_reaping_view
-- worker: the one that says goodbye, or NULL for those whose lease has expired. dead_letter: takeovers that end a run
CREATE TEMP VIEW reaping AS SELECT NULL AS now, NULL AS worker, NULL AS dead_letter

-- name: session_reaping
CREATE TEMP TRIGGER reaping_into INSTEAD OF INSERT ON reaping BEGIN
    DELETE FROM gone;
    DELETE FROM lost;

    INSERT INTO gone (worker)
    SELECT id FROM durable_workers WHERE CASE WHEN NEW.worker IS NULL THEN expires_at <= NEW.now ELSE id = NEW.worker END;

    INSERT OR IGNORE INTO gone (worker)
    SELECT worker FROM durable_claims
    WHERE NEW.worker IS NULL AND worker NOT IN (SELECT id FROM durable_workers);

    INSERT OR IGNORE INTO lost (run, worker)
    SELECT r.n, b.worker
    FROM gone AS g
    CROSS JOIN durable_claims AS b
    CROSS JOIN json_each(b.runs) AS j
    CROSS JOIN durable_runs AS r
    WHERE b.worker = g.worker AND r.n = j.value ->> 0 AND r.claim = j.value ->> 1 AND r.owner = b.worker;

    INSERT INTO durable_records (run, key, body)
    SELECT r.n, '/takeover/' || r.claim, json_array(
        1 + coalesce((SELECT max(h.body ->> 0) FROM durable_records AS h WHERE h.run = r.n), 0),
        'takeover', NEW.now, NULL, json('false'), 1, 0.0, 0, json('false'), NULL, l.worker)
    FROM lost AS l
    CROSS JOIN durable_runs AS r
    WHERE r.n = l.run AND NEW.worker IS NULL
    ON CONFLICT DO NOTHING;

    UPDATE durable_runs SET
        owner = NULL,
        takeovers = takeovers + (NEW.worker IS NULL),
        state = CASE state WHEN 'compensating' THEN state ELSE 'pending' END,
        ready_at = NEW.now
    WHERE n IN (SELECT run FROM lost);

    -- A run that was being compensated keeps the error that it failed with.
    UPDATE durable_runs SET
        state = 'dead_letter',
        requested = NULL,
        ready_at = NULL,
        ended_at = NEW.now,
        error = coalesce(error, json_object(
            'error_type', 'durable.errors.RunDeadLettered',
            'message', printf('%d workers in a row lost their lease with this run and without a new record: '
                || 'the last one was %s', takeovers, (SELECT worker FROM lost WHERE run = n)),
            'traceback', '', 'classes', json_array(), 'step', NULL,
            'undone', json_array(), 'not_undone', json_array()))
    WHERE NEW.worker IS NULL AND n IN (SELECT run FROM lost) AND takeovers >= NEW.dead_letter;

    UPDATE lost SET dead_letter = (
        SELECT json_array(r.id, r.workflow) FROM durable_runs AS r WHERE r.n = lost.run AND r.state = 'dead_letter');

    DELETE FROM durable_claims WHERE worker IN (SELECT worker FROM gone);
    DELETE FROM durable_workers WHERE id IN (SELECT worker FROM gone);
END

-- name: reap
INSERT INTO reaping (now, worker, dead_letter) VALUES (?, ?, ?)

-- name: reaped
-- [how many runs were released, [[id, workflow] of each that was given up]]
SELECT json_array(count(*), json_group_array(json(dead_letter)) FILTER (WHERE dead_letter IS NOT NULL)) FROM lost

-- name: anything_to_reap
SELECT EXISTS (SELECT 1 FROM durable_workers WHERE expires_at <= :now)
    OR EXISTS (SELECT 1 FROM durable_claims WHERE worker NOT IN (SELECT id FROM durable_workers))
