-- The first schema. Every key of a table that belongs to runs begins with `shard` (0 on a single Postgres), so that
-- the same statements work where the tables are distributed by it. No foreign keys to runs: they would lock the run
-- for every record, and make multixacts. Texts in indexes are in collation C: the order of the bytes, which is quick to
-- compare and does not change with the operating system's locales.

-- What a worker can execute, as a small number that stands in every run and in the claim index.
CREATE TABLE durable.routes (
    id       integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    queue    text COLLATE "C" NOT NULL DEFAULT 'default',
    workflow text COLLATE "C" NOT NULL,
    version  text COLLATE "C" NOT NULL,
    UNIQUE (workflow, version, queue)
);

-- One row per run. vacuum_truncate is off and the table is made some pages long below: see the end of this file.
CREATE TABLE durable.runs (
    id           uuid        NOT NULL,
    shard        smallint    NOT NULL,
    priority     smallint    NOT NULL DEFAULT 5 CHECK (priority BETWEEN 0 AND 9),
    route        integer     NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL DEFAULT now(),
    started_at   timestamptz,
    ended_at     timestamptz,
    ready_at     timestamptz,                        -- when it may be claimed; null: leased, or not by time alone
    owner        uuid,                               -- the worker that holds it
    parent       uuid,                               -- the run that called it, in the same shard
    claim        integer     NOT NULL DEFAULT 0,     -- rises with every claim; with owner it fences every write
    wakes        integer     NOT NULL DEFAULT 0,     -- rises with everything that can wake the run
    takeover_seq integer     NOT NULL DEFAULT 0,     -- seq of its last takeover record
    takeovers    smallint    NOT NULL DEFAULT 0,     -- leases that expired in a row, without a new record
    linked       boolean     NOT NULL DEFAULT false, -- when it leaves or ends, others are concerned: see commit_writes
    state        text        NOT NULL DEFAULT 'pending' CHECK (state IN (
        'pending', 'running', 'sleeping', 'waiting', 'paused', 'compensating',
        'completed', 'failed', 'compensated', 'cancelled', 'dead_letter')),
    seed         text        NOT NULL DEFAULT '',    -- these defaults are for updates spelled as upserts
    input_hash   text        NOT NULL DEFAULT '',
    request      text,                               -- made by the client for a run id that its user chose
    key          text,
    tags         jsonb       NOT NULL DEFAULT '{}',
    input        text,
    result       text,
    error        text,
    reason       text,
    requested    text,                               -- cancel or pause, asked for and not carried out yet: JSON
    parent_key   text,                               -- the key of the record under which its parent called it
    limit_key    text,                               -- whose share of its queue's limits it uses
    concurrency_key text,                            -- at most one run of the workflow with this key is active
    tick         timestamptz,                        -- the nominal time of the tick that it is for
    schedule     text COLLATE "C",                   -- of this schedule
    PRIMARY KEY (shard, id)
) WITH (
    fillfactor = 50,                                 -- every completion stays on its page (HOT)
    vacuum_truncate = off,
    autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0.05
);

-- What may start for no other reason than time. It names nothing that a completion writes, or completions would
-- have to touch it (no HOT: 7.5 µs a run against 5.1).
CREATE INDEX runs_ready ON durable.runs (shard, route, priority, ready_at) WHERE ready_at IS NOT NULL;

-- The children of a run, for lists. Neither column changes.
CREATE INDEX runs_children ON durable.runs (shard, parent, id) WHERE parent IS NOT NULL;

-- The runs of a schedule, for lists; as little.
CREATE INDEX runs_scheduled ON durable.runs (shard, schedule, id) WHERE schedule IS NOT NULL;

-- Append-only: one row per record, written once.
CREATE TABLE durable.history (
    run_id      uuid        NOT NULL,
    shard       smallint    NOT NULL,
    failed      boolean     NOT NULL,
    compensable boolean     NOT NULL,
    seq         integer     NOT NULL,
    at          timestamptz NOT NULL,
    due_at      timestamptz,
    duration    float8      NOT NULL,
    attempt     integer     NOT NULL,
    begun       integer     NOT NULL,
    worker      uuid,
    kind        text        NOT NULL,
    key         text        COLLATE "C" NOT NULL,
    data        text,
    PRIMARY KEY (shard, run_id, key)
) WITH (vacuum_truncate = off, autovacuum_analyze_scale_factor = 0.05);

-- One (workflow, key) is one run.
CREATE TABLE durable.keys (
    shard    smallint NOT NULL,
    workflow text     COLLATE "C" NOT NULL,
    key      text     COLLATE "C" NOT NULL,
    run_id   uuid     NOT NULL,
    PRIMARY KEY (shard, workflow, key)
) WITH (vacuum_truncate = off);

-- A worker's lease: one row per connection that writes under it, so that each can be locked on its own.
-- (One row shared by three of them made 8,000 multixacts in 3 s.)
CREATE TABLE durable.workers (
    id         uuid        NOT NULL,
    lane       text        COLLATE "C" NOT NULL,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (id, lane)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- One row per claim that took runs, until none of them is held any more: how a worker's runs are found without an
-- index on runs.owner, and how the second statement of a claim finds its histories.
CREATE TABLE durable.claims (
    worker  uuid     NOT NULL,
    batch   uuid     NOT NULL,
    shard   smallint NOT NULL,
    run_ids uuid[]   NOT NULL,
    replay  uuid[]   NOT NULL,                       -- those whose histories the worker needs
    orderly boolean  NOT NULL DEFAULT false,         -- the worker left in order: releasing is no takeover
    PRIMARY KEY (worker, batch)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- What a worker is told by its claims: which of its runs something is asked of. A row for each request that was stored
-- while the worker held the run, and for each claim of a run with a request; `wakes`, which rises with every request,
-- makes them different. The claim that finds that a row says nothing any more deletes it. (Not an index on
-- runs.requested: every completion would have to touch it.)
CREATE TABLE durable.requests (
    worker uuid     NOT NULL,
    run_id uuid     NOT NULL,
    shard  smallint NOT NULL,
    wakes  integer  NOT NULL,
    PRIMARY KEY (shard, worker, run_id, wakes)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- A worker prepares its statements once, and the plan of each is kept until statistics change, a minute later or
-- more. On an empty table of no pages the planner takes a sequential scan for free and keeps it while 50,000 runs
-- arrive. So the tables begin with a few pages, never to be given back (vacuum_truncate): from 10 pages on, an
-- index probe is the cheapest plan whatever the statistics say, without planner settings, which a transaction
-- pooler would lose.
INSERT INTO durable.runs (shard, id, seed, input_hash)
SELECT -1, gen_random_uuid(), repeat('x', 100), repeat('x', 100) FROM generate_series(1, 400);
DELETE FROM durable.runs WHERE shard = -1;

INSERT INTO durable.history (shard, run_id, failed, compensable, seq, at, duration, attempt, begun, kind, key)
SELECT -1, gen_random_uuid(), false, false, 0, now(), 0, 0, 0, 'step', repeat('x', 200) FROM generate_series(1, 600);
DELETE FROM durable.history WHERE shard = -1;

INSERT INTO durable.keys (shard, workflow, key, run_id)
SELECT -1, repeat('x', 200), n::text, gen_random_uuid() FROM generate_series(1, 600) AS n;
DELETE FROM durable.keys WHERE shard = -1;

INSERT INTO durable.requests (shard, worker, run_id, wakes)
SELECT -1, gen_random_uuid(), gen_random_uuid(), 0 FROM generate_series(1, 2000);
DELETE FROM durable.requests WHERE shard = -1;
