-- The first schema. Times are integers: microseconds since 1970-01-01 UTC, so that they round-trip exactly.
-- All names begin with durable_, so that the tables can live beside an application's own in one file.
--
-- `shard` leads no key here: one file is never split over machines, and the column would only make the two
-- hot indexes larger. It is stored with the run, which hands it back unchanged.

-- One row per applied migration; the highest version is the schema's.
CREATE TABLE durable_schema (
    version INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_at INTEGER NOT NULL
) STRICT;

-- A live worker. Its runs are its own as long as the row exists, also past expires_at until it is reaped.
CREATE TABLE durable_workers (
    id TEXT PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- A run. `n` is its short name inside this file: with the id as text in every record, a flush of 500 runs with
-- fifty records each took 9.5 µs a record instead of 5.7.
CREATE TABLE durable_runs (
    n INTEGER PRIMARY KEY AUTOINCREMENT,   -- never given twice: durable_claims still names what was deleted
    id TEXT NOT NULL UNIQUE,
    shard INTEGER NOT NULL,
    workflow TEXT NOT NULL,
    version TEXT NOT NULL,
    queue TEXT NOT NULL DEFAULT 'default',
    priority INTEGER NOT NULL DEFAULT 0 CHECK (priority BETWEEN 0 AND 9),
    state TEXT NOT NULL CHECK (state IN (
        'pending', 'running', 'sleeping', 'waiting', 'paused', 'compensating',
        'completed', 'failed', 'compensated', 'cancelled', 'dead_letter')),
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    ready_at INTEGER,                      -- when it may be claimed; NULL: leased, or not by time alone
    owner TEXT,                            -- the worker that holds it
    requested TEXT,                        -- cancel or pause, asked for and not carried out yet; a JSON object
    claim INTEGER NOT NULL DEFAULT 0,      -- rises with every claim, and when an operator changes the history
    wakes INTEGER NOT NULL DEFAULT 0,      -- rises with everything that can wake it
    takeovers INTEGER NOT NULL DEFAULT 0,  -- expired leases since its last new record
    key TEXT,
    request TEXT,                          -- the trigger that made it, when the caller chose the id
    input_hash TEXT NOT NULL,
    seed TEXT NOT NULL,
    reason TEXT,
    tags TEXT NOT NULL,                    -- a JSON object
    limit_key TEXT,                        -- whose share of its queue's limits it uses
    concurrency_key TEXT,                  -- at most one run of the workflow with this key is active
    parent TEXT,                           -- id of the run that called it
    parent_key TEXT,                       -- the key of the record of that call
    linked INTEGER NOT NULL DEFAULT 0,     -- its end concerns others
    schedule TEXT,                         -- whose tick it is for
    tick INTEGER,                          -- the tick's nominal time
    result TEXT,
    error TEXT,
    CHECK (owner IS NULL OR ready_at IS NULL)
) STRICT;

-- What is due: one probe per route and priority. It holds no run that waits for anything but time.
CREATE INDEX durable_runs_ready ON durable_runs (workflow, version, queue, priority, ready_at)
WHERE ready_at IS NOT NULL;

-- What is asked of the runs of a worker, which it reads with every claim; next to nothing is in here.
CREATE INDEX durable_runs_requested ON durable_runs (owner) WHERE requested IS NOT NULL;

-- What can be pruned, oldest first.
CREATE INDEX durable_runs_ended ON durable_runs (ended_at) WHERE ended_at IS NOT NULL;

-- Inputs stand apart: an UPDATE rewrites its whole row, and a run is updated at every claim, park and end.
CREATE TABLE durable_inputs (
    run INTEGER PRIMARY KEY,
    input TEXT NOT NULL
) STRICT;

-- History, written once. The body is the record as one JSON array; read it through durable_history. Taking twelve
-- values out of the document for each record cost 5.4 of 10 µs; generated columns would be computed at every
-- INSERT, for 2.7 of 7.5 µs.
CREATE TABLE durable_records (
    run INTEGER NOT NULL,
    key TEXT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (run, key)
) STRICT;

-- The records as people read them, for the sqlite3 shell.
CREATE VIEW durable_history AS
SELECT r.id AS run_id, h.body ->> 0 AS seq, h.key, h.body ->> 1 AS kind, h.body ->> 2 AS at, h.body ->> 3 AS data,
    h.body ->> 4 AS failed, h.body ->> 5 AS attempt, h.body ->> 6 AS duration, h.body ->> 7 AS begun,
    h.body ->> 8 AS compensable, h.body ->> 9 AS due_at, h.body ->> 10 AS worker
FROM durable_records AS h
JOIN durable_runs AS r ON r.n = h.run;

-- Which run holds a key.
CREATE TABLE durable_keys (
    workflow TEXT NOT NULL,
    key TEXT NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (workflow, key)
) STRICT, WITHOUT ROWID;

-- What each claim handed out, as a JSON array of [n, claim]. The way from a worker to its runs: an index on
-- durable_runs.owner would be changed twice for every claim.
CREATE TABLE durable_claims (
    worker TEXT NOT NULL,
    batch TEXT NOT NULL,
    runs TEXT NOT NULL,
    PRIMARY KEY (worker, batch)
) STRICT, WITHOUT ROWID;
