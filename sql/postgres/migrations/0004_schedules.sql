-- Schedules and their ticks. As in 0001 every key begins with `shard` (a schedule's runs lie in its shard), texts in indexes
-- are in collation C, and tables begin with some pages, for the reason that stands at the end of 0001.

CREATE TABLE durable.schedules (
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    next_at    timestamptz,                          -- the next tick's nominal time
    due_at     timestamptz,                          -- when it is fired; null: never
    last_at    timestamptz,                          -- the nominal time of the last tick that was fired
    fired      bigint      NOT NULL,
    revision   integer     NOT NULL,                 -- rises with every write
    shard      smallint    NOT NULL,
    overlapping boolean    NOT NULL,                 -- its runs may be beside each other: nobody asks for them
    name       text        COLLATE "C" NOT NULL,
    spec       text        NOT NULL,                 -- what was declared: JSON
    skipped    text        NOT NULL,                 -- how many ticks, by reason: JSON
    paused     text,                                 -- an operator's note
    PRIMARY KEY (shard, name)
) WITH (fillfactor = 70, vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 500);

-- What is due, and when something will be: the cost of looking does not depend on how many schedules there are.
CREATE INDEX schedules_due ON durable.schedules (shard, due_at, name) WHERE due_at IS NOT NULL;

-- Ticks that were fired: each once, whoever fires it. A row goes with its run; a schedule that is deleted leaves them.
CREATE TABLE durable.ticks (
    at       timestamptz NOT NULL,                   -- nominal
    run_id   uuid        NOT NULL,
    shard    smallint    NOT NULL,
    ended    boolean     NOT NULL DEFAULT false,     -- the run has ended, as some later write has found
    schedule text        COLLATE "C" NOT NULL,
    PRIMARY KEY (shard, schedule, at)
) WITH (vacuum_truncate = off, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- The runs of a schedule that may not have ended. Not an index of runs: their end would have to touch it.
CREATE INDEX ticks_open ON durable.ticks (shard, schedule, run_id) WHERE NOT ended;

-- Runs that have not asked yet those whose place they take: see schedules_rest.
CREATE INDEX turns_replacing ON durable.turns (shard, run_id) WHERE replaces;

INSERT INTO durable.schedules (shard, name, created_at, updated_at, fired, revision, overlapping, spec, skipped)
SELECT -1, n::text, now(), now(), 0, 0, false, repeat('x', 200), '' FROM generate_series(1, 1200) AS n;
DELETE FROM durable.schedules WHERE shard = -1;

-- More of them: they are deleted by their place (ctid), see 0003.
INSERT INTO durable.ticks (shard, schedule, at, run_id)
SELECT -1, repeat('x', 1900) || n, now(), gen_random_uuid() FROM generate_series(1, 300) AS n;
DELETE FROM durable.ticks WHERE shard = -1;
