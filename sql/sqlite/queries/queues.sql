-- Limits of queues: what is stored, and what a claim makes of them. Whose turn it is when something is free again is
-- said by the tables (0003_queues.sql).

-- name: session_putting_changed
CREATE TEMP TABLE putting_changed (name TEXT PRIMARY KEY) WITHOUT ROWID

-- name: session_putting_view
-- queues: [[name, concurrency, per_key, rate, rate_per, rate_interval, key_rate, key_rate_per, key_rate_interval,
-- unlimited], …], each name once
CREATE TEMP VIEW putting AS SELECT NULL AS queues

-- name: session_putting
CREATE TEMP TRIGGER putting_into INSTEAD OF INSERT ON putting BEGIN
    DELETE FROM putting_changed;

    INSERT INTO putting_changed (name)
    SELECT w.value ->> 0
    FROM json_each(NEW.queues) AS w
    LEFT JOIN durable_queues AS q ON q.name = w.value ->> 0
    WHERE CASE WHEN w.value ->> 9 OR q.name IS NULL THEN NOT (w.value ->> 9 AND q.name IS NULL) ELSE
        (q.concurrency, q.per_key) IS NOT (w.value ->> 1, w.value ->> 2)
        OR (q.rate, q.rate_per) IS NOT (w.value ->> 3, w.value ->> 4)
        OR (q.key_rate, q.key_rate_per) IS NOT (w.value ->> 6, w.value ->> 7) END;

    DELETE FROM durable_queues WHERE name IN (SELECT name FROM putting_changed);

    INSERT INTO durable_queues (
        name, concurrency, per_key, rate, rate_per, rate_interval, key_rate, key_rate_per, key_rate_interval)
    SELECT w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, w.value ->> 4, w.value ->> 5,
        w.value ->> 6, w.value ->> 7, w.value ->> 8
    FROM json_each(NEW.queues) AS w
    WHERE w.value ->> 0 IN (SELECT name FROM putting_changed) AND NOT w.value ->> 9;

    -- Full buckets, and all that is blocked is looked at anew.
    DELETE FROM durable_buckets WHERE queue IN (SELECT name FROM putting_changed);

    UPDATE durable_runs SET ready_at = (SELECT b.due_at FROM durable_blocked AS b WHERE b.run = durable_runs.n)
    WHERE n IN (
        SELECT b.run
        FROM putting_changed AS c
        CROSS JOIN durable_blocked AS b INDEXED BY durable_blocked_order
        WHERE b.queue = c.name);

    DELETE FROM durable_blocked
    WHERE run IN (
        SELECT b.run
        FROM putting_changed AS c
        CROSS JOIN durable_blocked AS b INDEXED BY durable_blocked_order
        WHERE b.queue = c.name);
END

-- name: put_queues
INSERT INTO putting (queues) VALUES (:queues)

-- name: queues
SELECT json_group_array(json_array(name, concurrency, per_key, rate, rate_per, key_rate, key_rate_per))
FROM (SELECT * FROM durable_queues ORDER BY name)

-- name: session_admitting_runs
-- What a claim would take of limited queues, in its order. `keyed`: a limit of its key has to be looked at.
CREATE TEMP TABLE admitting_runs (
    pos INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    queue TEXT NOT NULL,
    limit_key TEXT,
    keyed INTEGER NOT NULL,
    refused INTEGER NOT NULL DEFAULT 0  -- 1: its key has not enough; 2: and has nothing left: it is blocked
)

-- name: session_admitting_shares
-- Of each key: how many more runs of it may be held, and how many tokens it has.
CREATE TEMP TABLE admitting_shares (
    queue TEXT NOT NULL,
    limit_key TEXT NOT NULL,
    places INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    PRIMARY KEY (queue, limit_key)
) WITHOUT ROWID

-- name: session_admitting_view
CREATE TEMP VIEW admitting AS SELECT NULL AS now, NULL AS at_most

-- name: session_admitting
CREATE TEMP TRIGGER admitting_into INSTEAD OF INSERT ON admitting BEGIN
    DELETE FROM admitting_shares;

    -- What is in `claimed` and has an owner is of an earlier sending of the claim. A look-up for each, not a join: see
    -- claimed_runs.
    INSERT INTO admitting_runs (pos, run, queue, limit_key, keyed)
    SELECT pos, run, doc ->> 0, doc ->> 1, doc ->> 2
    FROM (
        SELECT c.pos, c.run, (
            SELECT json_array(
                r.queue, r.limit_key, r.limit_key IS NOT NULL AND coalesce(q.per_key, q.key_rate) IS NOT NULL)
            FROM durable_runs AS r
            CROSS JOIN durable_queues AS q
            WHERE r.n = c.run AND r.owner IS NULL AND q.name = r.queue) AS doc
        FROM claimed AS c)
    WHERE doc IS NOT NULL;

    INSERT INTO admitting_shares (queue, limit_key, places, tokens)
    SELECT q.name, s.limit_key,
        CASE WHEN q.per_key IS NULL THEN 1000000000 ELSE q.per_key - (
            SELECT count(*) FROM durable_places AS p WHERE p.queue = q.name AND p.limit_key = s.limit_key) END,
        CASE WHEN q.key_rate IS NULL THEN 1000000000 ELSE q.key_rate - coalesce((
            SELECT (max(b.spent - NEW.now, 0) + q.key_rate_interval - 1) / q.key_rate_interval
            FROM durable_buckets AS b WHERE b.queue = q.name AND b.name = 'k' || s.limit_key), 0) END
    FROM (SELECT DISTINCT queue, limit_key FROM admitting_runs WHERE keyed) AS s
    CROSS JOIN durable_queues AS q
    WHERE q.name = s.queue;

    UPDATE admitting_runs SET refused = 1
    WHERE pos IN (
        SELECT o.pos
        FROM (
            SELECT pos, queue, limit_key, row_number() OVER (PARTITION BY queue, limit_key ORDER BY pos) AS nth
            FROM admitting_runs
            WHERE keyed) AS o
        CROSS JOIN admitting_shares AS s
        WHERE s.queue = o.queue AND s.limit_key = o.limit_key AND o.nth > min(s.places, s.tokens));

    DELETE FROM claimed WHERE pos IN (SELECT pos FROM admitting_runs WHERE refused);

    -- More than the queue has: they stay where they are, and their queue is passed over until it has again.
    DELETE FROM claimed
    WHERE pos IN (
        SELECT o.pos
        FROM (
            SELECT pos, queue, row_number() OVER (PARTITION BY queue ORDER BY pos) AS nth
            FROM admitting_runs
            WHERE NOT refused) AS o
        CROSS JOIN durable_queues AS q
        WHERE q.name = o.queue AND (
            o.nth > q.concurrency - (SELECT count(*) FROM durable_places AS p WHERE p.queue = q.name)
            OR o.nth > q.rate - coalesce((
                SELECT (max(b.spent - NEW.now, 0) + q.rate_interval - 1) / q.rate_interval
                FROM durable_buckets AS b WHERE b.queue = q.name AND b.name = ''), 0)));

    -- The probe has looked at more than was asked for.
    DELETE FROM claimed
    WHERE pos IN (
        SELECT c.pos
        FROM claimed AS c
        WHERE (SELECT r.owner IS NULL FROM durable_runs AS r WHERE r.n = c.run)
        ORDER BY c.pos
        LIMIT -1 OFFSET NEW.at_most);

    INSERT INTO durable_places (run, queue, limit_key)
    SELECT a.run, a.queue, a.limit_key FROM admitting_runs AS a WHERE a.pos IN (SELECT pos FROM claimed);

    DELETE FROM durable_blocked WHERE run IN (SELECT a.run FROM admitting_runs AS a WHERE a.pos IN (SELECT pos FROM claimed));

    INSERT INTO durable_buckets (queue, name, spent)
    SELECT q.name, '', NEW.now + count(*) * q.rate_interval
    FROM admitting_runs AS a
    CROSS JOIN durable_queues AS q
    WHERE a.pos IN (SELECT pos FROM claimed) AND q.name = a.queue AND q.rate IS NOT NULL
    GROUP BY q.name
    ON CONFLICT (queue, name) DO UPDATE SET spent = max(spent, NEW.now) + (excluded.spent - NEW.now);

    INSERT INTO durable_buckets (queue, name, spent)
    SELECT q.name, 'k' || a.limit_key, NEW.now + count(*) * q.key_rate_interval
    FROM admitting_runs AS a
    CROSS JOIN durable_queues AS q
    WHERE a.pos IN (SELECT pos FROM claimed) AND a.keyed AND q.name = a.queue AND q.key_rate IS NOT NULL
    GROUP BY q.name, a.limit_key
    ON CONFLICT (queue, name) DO UPDATE SET spent = max(spent, NEW.now) + (excluded.spent - NEW.now);

    UPDATE admitting_shares SET (places, tokens) = (
        SELECT admitting_shares.places - count(*), admitting_shares.tokens - count(*)
        FROM admitting_runs AS a
        WHERE a.queue = admitting_shares.queue AND a.limit_key = admitting_shares.limit_key
            AND a.pos IN (SELECT pos FROM claimed));

    -- Only where nothing is left: what could not be taken for another reason has its chance in the next claim.
    UPDATE admitting_runs SET refused = 2
    WHERE refused AND (
        SELECT s.places <= 0 OR s.tokens <= 0 FROM admitting_shares AS s
        WHERE s.queue = admitting_runs.queue AND s.limit_key = admitting_runs.limit_key);

    INSERT INTO durable_blocked (run, queue, limit_key, workflow, version, waiting, priority, due_at)
    SELECT r.n, r.queue, r.limit_key, r.workflow, r.version, 1, r.priority, r.ready_at
    FROM admitting_runs AS a
    CROSS JOIN durable_runs AS r
    WHERE a.refused = 2 AND r.n = a.run
    ON CONFLICT (run) DO UPDATE SET waiting = 1;

    UPDATE durable_runs SET ready_at = NULL WHERE n IN (SELECT run FROM admitting_runs WHERE refused = 2);

    INSERT INTO durable_going_on (queue, limit_key, workflow, version, tokens)
    SELECT g.queue, g.limit_key, g.workflow, g.version, s.tokens
    FROM admitting_shares AS s
    CROSS JOIN durable_blocked_routes AS g
    WHERE g.queue = s.queue AND g.limit_key = s.limit_key AND s.places > 0;

    DELETE FROM durable_buckets
    WHERE (queue, name) IN (SELECT queue, name FROM durable_buckets WHERE spent <= NEW.now LIMIT 20);
END

-- name: admitted
-- How many runs the batch holds, when another look is worth while: this one has passed something over, and has taken or
-- blocked something. Else null.
SELECT CASE
    WHEN EXISTS (SELECT 1 FROM admitting_runs WHERE pos NOT IN (SELECT pos FROM claimed))
        AND EXISTS (SELECT 1 FROM admitting_runs WHERE refused = 2 OR pos IN (SELECT pos FROM claimed))
    THEN (SELECT count(*) FROM claimed)
END
