-- What reaches a run from outside, and what runs share.
--
-- The rules that hold whoever writes (a statement of the store's, an application's own connection, another rule) are
-- triggers of the tables: what is in the inbox has woken its run, and nobody who ends or deletes a run can forget
-- what that means to others. One writer at a time: of two things that must not miss each other, an event and a wait,
-- a signal and a park, the later one sees the earlier one.

-- The inbox of every run. A consumed signal stays, so that its id is known for as long as the run is.
CREATE TABLE durable_signals (
    n INTEGER PRIMARY KEY,                 -- the order of arrival
    run INTEGER NOT NULL,
    id TEXT NOT NULL,
    name TEXT NOT NULL,                    -- approval; child/<key>; event/<topic>/<key>
    data TEXT NOT NULL,
    at INTEGER NOT NULL,
    consumed INTEGER NOT NULL DEFAULT 0,
    UNIQUE (run, id)
) STRICT;

-- A parent of 10,000 children reads what is unread with each of its claims, not what it was ever sent.
CREATE INDEX durable_signals_unread ON durable_signals (run) WHERE consumed = 0;

-- Runs that got signals while a worker held them, until it asks for them. One of an earlier claim does not count.
CREATE TABLE durable_signalled (
    worker TEXT NOT NULL,
    run INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    PRIMARY KEY (worker, run)
) STRICT, WITHOUT ROWID;

-- Only a run that waits becomes ready: one that is delayed, backs off, sleeps or is paused has its own time.
CREATE TRIGGER durable_signals_wake AFTER INSERT ON durable_signals BEGIN
    UPDATE durable_runs SET
        wakes = wakes + 1,
        ready_at = CASE
            WHEN state = 'waiting' AND owner IS NULL AND (ready_at IS NULL OR ready_at > NEW.at) THEN NEW.at
            ELSE ready_at
        END
    WHERE n = NEW.run;

    INSERT INTO durable_signalled (worker, run, claim)
    SELECT owner, n, claim FROM durable_runs WHERE n = NEW.run AND owner IS NOT NULL
    ON CONFLICT (worker, run) DO UPDATE SET claim = excluded.claim;
END;

CREATE TRIGGER durable_signalled_of_a_worker AFTER DELETE ON durable_workers BEGIN
    DELETE FROM durable_signalled WHERE worker = OLD.id;
END;

-- A batch is forgotten when its worker holds nothing of it any more.
CREATE TRIGGER durable_signalled_of_a_batch AFTER DELETE ON durable_claims BEGIN
    DELETE FROM durable_signalled
    WHERE worker = OLD.worker AND NOT EXISTS (
        SELECT 1 FROM durable_runs AS r
        WHERE r.n = durable_signalled.run AND r.owner = OLD.worker AND r.claim = durable_signalled.claim);
END;

-- The children of a run.
CREATE INDEX durable_runs_parent ON durable_runs (parent, id) WHERE parent IS NOT NULL;

-- A child has ended, by whomever: a commit, a reaper, a request. A parent that has ended gets the signal too: an operator
-- may have it go on. The document is put together as text, since SQLite's own JSON ends at a depth of 1,000.
CREATE TRIGGER durable_runs_child_ended AFTER UPDATE OF ended_at ON durable_runs
WHEN NEW.parent IS NOT NULL AND NEW.ended_at IS NOT NULL AND OLD.ended_at IS NULL
BEGIN
    INSERT INTO durable_signals (run, id, name, data, at)
    SELECT p.n, NEW.id, 'child/' || NEW.parent_key,
        '{"state":"' || NEW.state || '","result":' || coalesce(NEW.result, 'null')
            || ',"error":' || coalesce(NEW.error, 'null') || '}',
        NEW.ended_at
    FROM durable_runs AS p
    WHERE p.id = NEW.parent
    ON CONFLICT (run, id) DO NOTHING;
END;

-- Events that a run which begins to wait still gets.
CREATE TABLE durable_events (
    n INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    data TEXT NOT NULL,
    at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;

CREATE INDEX durable_events_topic ON durable_events (topic, key, at);
CREATE INDEX durable_events_expiry ON durable_events (expires_at);

-- Who waits for which event: a row for each wait, until an event has come.
CREATE TABLE durable_awaited (
    n INTEGER PRIMARY KEY,
    run INTEGER NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    since INTEGER NOT NULL,
    at INTEGER NOT NULL                    -- when the wait was stored
) STRICT;

CREATE INDEX durable_awaited_topic ON durable_awaited (topic, key, run);
CREATE INDEX durable_awaited_run ON durable_awaited (run);

-- Each run gets the event once, for its oldest wait; another wait of the same run is for the next event.
CREATE TRIGGER durable_events_published AFTER INSERT ON durable_events BEGIN
    INSERT INTO durable_signals (run, id, name, data, at)
    SELECT DISTINCT a.run, NEW.id, 'event/' || NEW.topic || '/' || NEW.key, NEW.data, NEW.at
    FROM durable_awaited AS a
    WHERE a.topic = NEW.topic AND a.key = NEW.key
    ON CONFLICT (run, id) DO NOTHING;

    DELETE FROM durable_awaited
    WHERE n IN (
        SELECT min(a.n)
        FROM durable_awaited AS a
        WHERE a.topic = NEW.topic AND a.key = NEW.key
        GROUP BY a.run);
END;

-- The oldest event that was published in time and that the run has not been given; changes() counts within the trigger.
CREATE TRIGGER durable_awaited_published AFTER INSERT ON durable_awaited BEGIN
    INSERT INTO durable_signals (run, id, name, data, at)
    SELECT NEW.run, e.id, 'event/' || e.topic || '/' || e.key, e.data, NEW.at
    FROM durable_events AS e
    WHERE e.topic = NEW.topic AND e.key = NEW.key AND e.at >= NEW.since AND e.expires_at > NEW.at
        AND NOT EXISTS (SELECT 1 FROM durable_signals AS s WHERE s.run = NEW.run AND s.id = e.id)
    ORDER BY e.at, e.n
    LIMIT 1;

    DELETE FROM durable_awaited WHERE n = NEW.n AND changes() > 0;
END;

-- The log of ctx.emit. A number is given with the write lock held, and never twice: the log grows at its end only.
CREATE TABLE durable_emits (
    n INTEGER PRIMARY KEY AUTOINCREMENT,
    run INTEGER NOT NULL,
    key TEXT NOT NULL,
    at INTEGER NOT NULL,
    data TEXT NOT NULL
) STRICT;

CREATE INDEX durable_emits_run ON durable_emits (run);

-- Effects that runs share: the step that makes one, or has made it.
CREATE TABLE durable_effects (
    key TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    step TEXT NOT NULL,
    ended_at INTEGER,                      -- NULL: it is being made
    kept INTEGER NOT NULL DEFAULT 0,       -- 0: free for others; such a row is gone at once
    data TEXT
) STRICT;

CREATE INDEX durable_effects_run ON durable_effects (run);

-- Each run that waits asks again. As with any event, it ends the oldest of a run's waits.
CREATE TRIGGER durable_effects_ended AFTER UPDATE OF ended_at ON durable_effects
WHEN NEW.ended_at IS NOT NULL
BEGIN
    DELETE FROM durable_effects WHERE key = NEW.key AND NOT NEW.kept;

    INSERT INTO durable_signals (run, id, name, data, at)
    SELECT a.run, lower(hex(randomblob(16))), 'event//effect/' || NEW.key, 'null', NEW.ended_at
    FROM (SELECT DISTINCT run FROM durable_awaited WHERE topic = '/effect' AND key = NEW.key) AS a;

    DELETE FROM durable_awaited
    WHERE n IN (
        SELECT min(a.n)
        FROM durable_awaited AS a
        WHERE a.topic = '/effect' AND a.key = NEW.key
        GROUP BY a.run);
END;

-- It has ended since the run was told that somebody else makes it.
CREATE TRIGGER durable_awaited_effect AFTER INSERT ON durable_awaited
WHEN NEW.topic = '/effect' AND NOT EXISTS (
    SELECT 1 FROM durable_effects AS e WHERE e.key = NEW.key AND e.ended_at IS NULL)
BEGIN
    DELETE FROM durable_awaited WHERE n = NEW.n;

    INSERT INTO durable_signals (run, id, name, data, at)
    VALUES (NEW.run, lower(hex(randomblob(16))), 'event//effect/' || NEW.key, 'null', NEW.at);
END;

-- Whoever was making effects makes them no more; what it has made stays made.
CREATE TRIGGER durable_runs_maker_ended AFTER UPDATE OF ended_at ON durable_runs
WHEN NEW.linked AND NEW.ended_at IS NOT NULL
BEGIN
    UPDATE durable_effects SET ended_at = NEW.ended_at WHERE run = NEW.n AND ended_at IS NULL;
END;

-- What belongs to a run goes with it.
CREATE TRIGGER durable_runs_deleted AFTER DELETE ON durable_runs BEGIN
    DELETE FROM durable_signals WHERE run = OLD.n;
    DELETE FROM durable_awaited WHERE run = OLD.n;
    DELETE FROM durable_emits WHERE run = OLD.n;
    DELETE FROM durable_effects WHERE run = OLD.n;
END;
