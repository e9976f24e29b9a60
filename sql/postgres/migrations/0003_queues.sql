-- Flow control: limits of queues over all workers, turns of concurrency keys, debounced triggers. How they are used, and
-- why nothing is lost between two transactions, is said beside the statements, in queries/queues.sql and turns.sql.

-- Which limits a worker's claims have to know: a claim that knows others takes nothing. It stands in the row that every
-- claim locks anyway, so a new limit holds from its commit on and costs an unlimited queue nothing.
ALTER TABLE durable.workers ADD COLUMN limits uuid;

-- One row: the present limits' version.
CREATE TABLE durable.limits_version (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    version uuid    NOT NULL
);

INSERT INTO durable.limits_version (version) VALUES (gen_random_uuid());

-- The limits of a queue, and its bucket of tokens: `spent` is when it will be full (see model.Rate). A claim that takes runs
-- of the queue holds this row.
CREATE TABLE durable.limits (
    held_at      timestamptz NOT NULL DEFAULT now(), -- holding it is an update
    spent        timestamptz NOT NULL DEFAULT now(),
    rate_interval bigint,                            -- microseconds between two tokens
    key_interval bigint,
    rate_per     float8,                             -- seconds, as they were given
    key_per      float8,
    concurrency  integer,
    per_key      integer,
    rate         integer,
    key_rate     integer,                            -- of each key
    shard        smallint NOT NULL,
    queue        text     COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, queue)
) WITH (fillfactor = 20, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- A row for each run that was claimed while its queue had limits, as long as it is held: counted, never added up. The key of
-- a run without one is empty.
CREATE TABLE durable.places (
    run_id  uuid     NOT NULL,
    shard   smallint NOT NULL,
    queue   text     COLLATE "C" NOT NULL,
    key     text     COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, queue, key, run_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Keys of which a run has left, until the queue's next claim has seen it. Only ever inserted by those who leave.
CREATE TABLE durable.freed (
    run_id uuid     NOT NULL,
    shard  smallint NOT NULL,
    queue  text     COLLATE "C" NOT NULL,
    key    text     COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, queue, key, run_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- Due runs whose key has no free place, or no token: they stand here instead of in runs_ready.
CREATE TABLE durable.blocked (
    run_id   uuid        NOT NULL,
    shard    smallint    NOT NULL,
    priority smallint    NOT NULL,
    route    integer     NOT NULL,
    ready_at timestamptz NOT NULL,                   -- as it was
    queue    text        COLLATE "C" NOT NULL,
    key      text        COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, run_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.01);

CREATE INDEX blocked_line ON durable.blocked (shard, queue, key, route, priority, ready_at, run_id);

-- The keys of a queue that have blocked runs, or a bucket that is not full.
CREATE TABLE durable.limit_keys (
    spent timestamptz NOT NULL,
    due   timestamptz NOT NULL,                      -- when to look at it next
    shard smallint    NOT NULL,
    cause smallint    NOT NULL,                      -- 0 its bucket is full then; it has blocked runs: 1 in any case, 2 a token
    queue text        COLLATE "C" NOT NULL,
    key   text        COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, queue, key)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

CREATE INDEX limit_keys_due ON durable.limit_keys (shard, queue, cause, due);

-- A concurrency key while some run has a turn under it: what is locked before its turns are read.
CREATE TABLE durable.turn_keys (
    held_at  timestamptz NOT NULL,                   -- locking it is an update
    shard    smallint    NOT NULL,
    workflow text        COLLATE "C" NOT NULL,
    key      text        COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, workflow, key)
) WITH (fillfactor = 50, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The runs under a concurrency key in their order. The first that has not ended is the active one.
CREATE TABLE durable.turns (
    number   bigint      GENERATED ALWAYS AS IDENTITY,
    run_id   uuid        NOT NULL,
    ready_at timestamptz NOT NULL,                   -- when it may start, as far as time is concerned
    shard    smallint    NOT NULL,
    waits    boolean     NOT NULL,                   -- it is not ready because others come before it
    replaces boolean     NOT NULL DEFAULT false,     -- those before it are to be asked to cancel
    workflow text        COLLATE "C" NOT NULL,
    key      text        COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, run_id)
) WITH (fillfactor = 70, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.01);

CREATE UNIQUE INDEX turns_line ON durable.turns (shard, workflow, key, number);

-- Runs that have ended and had a turn, until it was passed on. Only ever inserted by those who end.
CREATE TABLE durable.passed (
    run_id   uuid     NOT NULL,
    shard    smallint NOT NULL,
    workflow text     COLLATE "C" NOT NULL,
    key      text     COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, run_id)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);

-- The run that the next trigger with this debounce key changes, if no worker has claimed it.
CREATE TABLE durable.debounces (
    run_id   uuid     NOT NULL,
    shard    smallint NOT NULL,
    workflow text     COLLATE "C" NOT NULL,
    key      text     COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, workflow, key)
) WITH (fillfactor = 50, vacuum_truncate = off);

CREATE INDEX debounces_run ON durable.debounces (shard, run_id);

-- Triggers that changed a run instead of making one, by the id that they brought: sent again they change nothing.
CREATE TABLE durable.merged (
    id     uuid     NOT NULL,
    run_id uuid     NOT NULL,
    shard  smallint NOT NULL,
    PRIMARY KEY (shard, id)
) WITH (vacuum_truncate = off);

CREATE INDEX merged_run ON durable.merged (shard, run_id);

-- Some pages each, so that an index probe is the cheapest plan from the beginning: see 0001_runs.sql. More of them than there:
-- what is deleted by its place (ctid) is expected to be ten rows, which cost as much as 40 pages.
INSERT INTO durable.places (shard, queue, key, run_id)
SELECT -1, 'x', repeat('x', 1900), gen_random_uuid() FROM generate_series(1, 300);
DELETE FROM durable.places WHERE shard = -1;

INSERT INTO durable.freed (shard, queue, key, run_id)
SELECT -1, 'x', repeat('x', 1900), gen_random_uuid() FROM generate_series(1, 300);
DELETE FROM durable.freed WHERE shard = -1;

INSERT INTO durable.blocked (shard, run_id, priority, route, ready_at, queue, key)
SELECT -1, gen_random_uuid(), 5, 0, now(), 'x', repeat('x', 1900) FROM generate_series(1, 300);
DELETE FROM durable.blocked WHERE shard = -1;

INSERT INTO durable.limit_keys (shard, queue, key, spent, due, cause)
SELECT -1, 'x', repeat('x', 1900) || n, now(), now(), 0 FROM generate_series(1, 300) AS n;
DELETE FROM durable.limit_keys WHERE shard = -1;

INSERT INTO durable.turn_keys (shard, workflow, key, held_at)
SELECT -1, 'x', repeat('x', 1900) || n, now() FROM generate_series(1, 300) AS n;
DELETE FROM durable.turn_keys WHERE shard = -1;

INSERT INTO durable.turns (shard, workflow, key, run_id, ready_at, waits)
SELECT -1, 'x', repeat('x', 1900), gen_random_uuid(), now(), false FROM generate_series(1, 300);
DELETE FROM durable.turns WHERE shard = -1;

INSERT INTO durable.passed (shard, workflow, key, run_id)
SELECT -1, 'x', repeat('x', 1900), gen_random_uuid() FROM generate_series(1, 300);
DELETE FROM durable.passed WHERE shard = -1;

INSERT INTO durable.debounces (shard, workflow, key, run_id)
SELECT -1, 'x', repeat('x', 1900) || n, gen_random_uuid() FROM generate_series(1, 300) AS n;
DELETE FROM durable.debounces WHERE shard = -1;

INSERT INTO durable.merged (shard, id, run_id)
SELECT -1, gen_random_uuid(), gen_random_uuid() FROM generate_series(1, 2000);
DELETE FROM durable.merged WHERE shard = -1;
