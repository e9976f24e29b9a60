-- Schedules, and the runs of their ticks.
--
-- A tick needs no row of its own: it lives as long as its run, which holds the schedule's name and the tick's nominal
-- time. Nothing refers to the schedule itself: its runs and their ticks outlive it.

CREATE TABLE durable_schedules (
    name TEXT PRIMARY KEY,
    spec TEXT NOT NULL,                    -- what was declared, a JSON object
    next_at INTEGER,                       -- the next tick's nominal time
    due_at INTEGER,                        -- when it is fired; NULL: never
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    paused TEXT,                           -- an operator's note
    last_at INTEGER,                       -- the nominal time of the last tick that was fired
    fired INTEGER NOT NULL,
    skipped TEXT NOT NULL,                 -- how many ticks, by reason; a JSON object
    revision INTEGER NOT NULL              -- rises with every write
) STRICT;

-- What is due, and when something will be: the cost of looking does not depend on how many schedules there are.
CREATE INDEX durable_schedules_due ON durable_schedules (due_at, name) WHERE due_at IS NOT NULL;

-- Each tick once, whoever fires it. The other indexes hold the runs of schedules alone, too.
CREATE UNIQUE INDEX durable_runs_tick ON durable_runs (schedule, tick) WHERE schedule IS NOT NULL;

-- Those of a schedule that have not ended, which are few; and all of them, as lists show them.
CREATE INDEX durable_runs_schedule_open ON durable_runs (schedule, id) WHERE schedule IS NOT NULL AND ended_at IS NULL;
CREATE INDEX durable_runs_schedule ON durable_runs (schedule, id) WHERE schedule IS NOT NULL;
