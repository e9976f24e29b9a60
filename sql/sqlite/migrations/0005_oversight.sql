-- What operators look at: runs that rest, where workers are, and the tokens of the HTTP runtime.

-- Nobody holds the run and it is not due by time alone: it waits, is paused, or another run comes first. With what is
-- ready and what is held this finds every run that has not ended, however many have. Claims and completions neither
-- enter nor leave it.
CREATE INDEX durable_runs_resting ON durable_runs (queue, workflow, state)
WHERE ready_at IS NULL AND owner IS NULL AND ended_at IS NULL;

-- For people; nothing relies on it.
ALTER TABLE durable_workers ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE durable_workers ADD COLUMN pid INTEGER NOT NULL DEFAULT 0;
ALTER TABLE durable_workers ADD COLUMN started_at INTEGER NOT NULL DEFAULT 0;

-- Of a token's secret there is the SHA-256 alone. It is looked up by the beginning of that.
CREATE TABLE durable_tokens (
    name TEXT PRIMARY KEY,
    prefix TEXT NOT NULL,
    digest TEXT NOT NULL,
    scopes TEXT NOT NULL,                  -- with a space between two
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX durable_tokens_prefix ON durable_tokens (prefix);
