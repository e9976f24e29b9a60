-- Limits of queues, concurrency keys, debouncing.
--
-- As in 0002, what holds whoever writes is a trigger: nobody who ends a run, pauses it or takes it from its worker can
-- forget whose turn it is then. Places are rows, and are counted: a number that is raised and lowered goes wrong with
-- the first thing that is sent again. One writer at a time, so what a claim has counted stays true until its commit.

-- The limits, over all workers. A queue without any is not in here.
CREATE TABLE durable_queues (
    name TEXT PRIMARY KEY,
    concurrency INTEGER,
    per_key INTEGER,
    rate INTEGER,                          -- so many tokens …
    rate_per REAL,                         -- … in so many seconds,
    rate_interval INTEGER,                 -- one in so many microseconds
    key_rate INTEGER,                      -- the same for each limit key
    key_rate_per REAL,
    key_rate_interval INTEGER
) STRICT, WITHOUT ROWID;

-- A run that was claimed in a queue with limits, as long as its worker holds it.
CREATE TABLE durable_places (
    run INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    limit_key TEXT
) STRICT;

CREATE INDEX durable_places_share ON durable_places (queue, limit_key);

-- When a bucket of tokens will be full again; a full one needs no row. The bucket of a key is named 'k' and the key,
-- that of the queue as a whole has no name.
CREATE TABLE durable_buckets (
    queue TEXT NOT NULL,
    name TEXT NOT NULL,
    spent INTEGER NOT NULL,
    PRIMARY KEY (queue, name)
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_buckets_spent ON durable_buckets (spent);

-- Runs whose limit key had no place or no token when a claim met them, until they are claimed. Those that wait have no
-- ready_at, so that they stand in nobody's way; the others have been let go on, and the next claim looks at them again.
CREATE TABLE durable_blocked (
    run INTEGER PRIMARY KEY,
    queue TEXT NOT NULL,
    limit_key TEXT NOT NULL,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    waiting INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    due_at INTEGER NOT NULL                -- its age: kept when it is blocked again
) STRICT;

CREATE INDEX durable_blocked_order
ON durable_blocked (queue, limit_key, workflow, version, waiting, priority, due_at, run);

-- Which workflows and versions a key has blocked runs of. Each goes on by itself: one that nobody executes any more
-- would else keep the place that is free from all others.
CREATE TABLE durable_blocked_routes (
    queue TEXT NOT NULL,
    limit_key TEXT NOT NULL,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (queue, limit_key, workflow, version)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER durable_blocked_route AFTER INSERT ON durable_blocked BEGIN
    INSERT INTO durable_blocked_routes (queue, limit_key, workflow, version)
    VALUES (NEW.queue, NEW.limit_key, NEW.workflow, NEW.version)
    ON CONFLICT DO NOTHING;
END;

CREATE TRIGGER durable_blocked_no_route AFTER DELETE ON durable_blocked
WHEN NOT EXISTS (
    SELECT 1 FROM durable_blocked AS b
    WHERE b.queue = OLD.queue AND b.limit_key = OLD.limit_key
        AND b.workflow = OLD.workflow AND b.version = OLD.version)
BEGIN
    DELETE FROM durable_blocked_routes
    WHERE queue = OLD.queue AND limit_key = OLD.limit_key AND workflow = OLD.workflow AND version = OLD.version;
END;

-- Let the first of a key and a route go on: as many as the key has places, of a key with a rate as many as there are
-- tokens, and at least one, which waits for the next token.
CREATE VIEW durable_going_on AS
SELECT NULL AS queue, NULL AS limit_key, NULL AS workflow, NULL AS version, NULL AS tokens;

CREATE TRIGGER durable_going_on_into INSTEAD OF INSERT ON durable_going_on BEGIN
    UPDATE durable_blocked SET waiting = 0
    WHERE run IN (
        SELECT b.run
        FROM durable_blocked AS b INDEXED BY durable_blocked_order
        WHERE b.queue = NEW.queue AND b.limit_key = NEW.limit_key
            AND b.workflow = NEW.workflow AND b.version = NEW.version AND b.waiting = 1
        ORDER BY b.priority, b.due_at, b.run
        LIMIT coalesce((
            SELECT max(0, min(
                CASE WHEN q.per_key IS NULL THEN 1000000000 ELSE q.per_key - (
                    SELECT count(*) FROM durable_places AS p WHERE p.queue = q.name AND p.limit_key = NEW.limit_key)
                END,
                CASE WHEN q.key_rate IS NULL THEN 1000000000 ELSE max(1, NEW.tokens) END
            ) - (
                SELECT count(*)
                FROM durable_blocked AS g
                WHERE g.queue = NEW.queue AND g.limit_key = NEW.limit_key
                    AND g.workflow = NEW.workflow AND g.version = NEW.version AND g.waiting = 0))
            FROM durable_queues AS q
            WHERE q.name = NEW.queue), 0));
END;

CREATE TRIGGER durable_blocked_goes_on AFTER UPDATE OF waiting ON durable_blocked
WHEN OLD.waiting = 1 AND NEW.waiting = 0
BEGIN
    UPDATE durable_runs SET ready_at = max(NEW.due_at, coalesce((
        SELECT b.spent - (q.key_rate - 1) * q.key_rate_interval
        FROM durable_queues AS q
        CROSS JOIN durable_buckets AS b
        WHERE q.name = NEW.queue AND q.key_rate IS NOT NULL AND b.queue = NEW.queue AND b.name = 'k' || NEW.limit_key),
        NEW.due_at))
    WHERE n = NEW.run AND owner IS NULL AND ready_at IS NULL;
END;

-- It became ready for another reason (a signal, a request): the next claim looks at it again.
CREATE TRIGGER durable_runs_blocked_ready AFTER UPDATE OF ready_at ON durable_runs
WHEN NEW.limit_key IS NOT NULL AND OLD.ready_at IS NULL AND NEW.ready_at IS NOT NULL
BEGIN
    UPDATE durable_blocked SET waiting = 0 WHERE run = NEW.n AND waiting = 1;
END;

-- Whoever leaves its worker, in whatever way, gives its place back; the next of its key goes on.
CREATE TRIGGER durable_runs_place_left AFTER UPDATE OF owner ON durable_runs
WHEN NEW.linked AND OLD.owner IS NOT NULL AND NEW.owner IS NULL
BEGIN
    DELETE FROM durable_places WHERE run = NEW.n;
END;

CREATE TRIGGER durable_places_free AFTER DELETE ON durable_places WHEN OLD.limit_key IS NOT NULL BEGIN
    INSERT INTO durable_going_on (queue, limit_key, workflow, version, tokens)
    SELECT queue, limit_key, workflow, version, 1
    FROM durable_blocked_routes
    WHERE queue = OLD.queue AND limit_key = OLD.limit_key;
END;

-- Whoever is paused or ends before it is claimed leaves what it might have used to the next one.
CREATE TRIGGER durable_runs_blocked_withdrawn AFTER UPDATE OF state ON durable_runs
WHEN NEW.limit_key IS NOT NULL AND OLD.owner IS NULL AND NEW.owner IS NULL AND NEW.state <> OLD.state
    AND (NEW.state = 'paused' OR NEW.ended_at IS NOT NULL)
BEGIN
    DELETE FROM durable_blocked WHERE run = NEW.n;

    INSERT INTO durable_going_on (queue, limit_key, workflow, version, tokens)
    VALUES (NEW.queue, NEW.limit_key, NEW.workflow, NEW.version, 1);
END;

-- Who stands in line for a concurrency key, from its creation to its end. All but the first are queued, and have no
-- ready_at, whatever happens to them; `turn` is the one that they would have.
CREATE TABLE durable_lines (
    pos INTEGER PRIMARY KEY,
    run INTEGER NOT NULL UNIQUE,
    workflow TEXT NOT NULL,
    key TEXT NOT NULL,
    queued INTEGER NOT NULL,
    turn INTEGER
) STRICT;

CREATE INDEX durable_lines_key ON durable_lines (workflow, key, pos);

CREATE TRIGGER durable_runs_line AFTER INSERT ON durable_runs WHEN NEW.concurrency_key IS NOT NULL BEGIN
    INSERT INTO durable_lines (run, workflow, key, queued, turn)
    SELECT NEW.n, NEW.workflow, NEW.concurrency_key, EXISTS (
        SELECT 1 FROM durable_lines WHERE workflow = NEW.workflow AND key = NEW.concurrency_key), NEW.ready_at;

    UPDATE durable_runs SET ready_at = NULL
    WHERE n = NEW.n AND EXISTS (SELECT 1 FROM durable_lines WHERE run = NEW.n AND queued);
END;

-- An operator has it go on after its end: at the end of the line.
CREATE TRIGGER durable_runs_line_again AFTER UPDATE OF ended_at ON durable_runs
WHEN NEW.concurrency_key IS NOT NULL AND OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL
BEGIN
    INSERT INTO durable_lines (run, workflow, key, queued, turn)
    SELECT NEW.n, NEW.workflow, NEW.concurrency_key, EXISTS (
        SELECT 1 FROM durable_lines WHERE workflow = NEW.workflow AND key = NEW.concurrency_key), NEW.ready_at;

    UPDATE durable_runs SET ready_at = NULL
    WHERE n = NEW.n AND EXISTS (SELECT 1 FROM durable_lines WHERE run = NEW.n AND queued);
END;

CREATE TRIGGER durable_runs_line_ready AFTER UPDATE OF ready_at ON durable_runs
WHEN NEW.concurrency_key IS NOT NULL AND NEW.ready_at IS NOT NULL
    AND EXISTS (SELECT 1 FROM durable_lines WHERE run = NEW.n AND queued)
BEGIN
    UPDATE durable_lines SET turn = NEW.ready_at WHERE run = NEW.n;
    UPDATE durable_runs SET ready_at = NULL WHERE n = NEW.n;
END;

CREATE TRIGGER durable_runs_line_paused AFTER UPDATE OF state ON durable_runs
WHEN NEW.concurrency_key IS NOT NULL AND NEW.state = 'paused'
BEGIN
    UPDATE durable_lines SET turn = NULL WHERE run = NEW.n AND queued;
END;

CREATE TRIGGER durable_runs_line_left AFTER UPDATE OF ended_at ON durable_runs
WHEN NEW.concurrency_key IS NOT NULL AND OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL
BEGIN
    DELETE FROM durable_lines WHERE run = NEW.n;

    UPDATE durable_lines SET queued = 0
    WHERE queued AND pos = (
        SELECT min(pos) FROM durable_lines WHERE workflow = NEW.workflow AND key = NEW.concurrency_key);
END;

CREATE TRIGGER durable_lines_turn AFTER UPDATE OF queued ON durable_lines WHEN OLD.queued AND NOT NEW.queued BEGIN
    UPDATE durable_runs SET ready_at = NEW.turn WHERE n = NEW.run AND NEW.turn IS NOT NULL;
END;

-- The latest run of each debounce key.
CREATE TABLE durable_debounces (
    workflow TEXT NOT NULL,
    key TEXT NOT NULL,
    run INTEGER NOT NULL,
    PRIMARY KEY (workflow, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_debounces_run ON durable_debounces (run);

-- Which run got the input of a debounced trigger: one that is sent again changes nothing.
CREATE TABLE durable_absorbed (
    id TEXT PRIMARY KEY,
    run INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_absorbed_run ON durable_absorbed (run);

CREATE TRIGGER durable_runs_debounced_deleted AFTER DELETE ON durable_runs BEGIN
    DELETE FROM durable_debounces WHERE run = OLD.n;
    DELETE FROM durable_absorbed WHERE run = OLD.n;
END;
