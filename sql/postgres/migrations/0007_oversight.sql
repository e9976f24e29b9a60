-- What operators look at: runs that rest, where workers are, and the tokens of the HTTP runtime.

-- True while nobody holds the run and it is not due by time alone: it waits, is paused, or another run comes first. With
-- runs_ready and the claims this finds every run that has not ended, however many have (census). It is generated, for a
-- completion neither sets nor changes it (null before and after), and so stays on its page (HOT): an index on `state` or
-- `ended_at`, in its columns or its condition, would cost every completion an entry. A park without a time gets one now.
-- Adding it rewrites the table: seconds for each million runs, in which workers wait.
ALTER TABLE durable.runs ADD COLUMN resting boolean GENERATED ALWAYS AS (
    CASE WHEN ended_at IS NULL AND owner IS NULL AND ready_at IS NULL THEN true END) STORED;

CREATE INDEX runs_resting ON durable.runs (shard, route) WHERE resting;

-- What rewriting an empty table has taken away: see the end of 0001.
INSERT INTO durable.runs (shard, id, seed, input_hash)
SELECT -1, gen_random_uuid(), repeat('x', 100), repeat('x', 100) FROM generate_series(1, 400);
DELETE FROM durable.runs WHERE shard = -1;

-- For people; nothing relies on it.
ALTER TABLE durable.workers ADD COLUMN host text NOT NULL DEFAULT '';
ALTER TABLE durable.workers ADD COLUMN pid integer NOT NULL DEFAULT 0;
ALTER TABLE durable.workers ADD COLUMN started_at timestamptz NOT NULL DEFAULT now();

-- Of a token's secret there is the SHA-256 alone. It is looked up by the beginning of that.
CREATE TABLE durable.tokens (
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    name       text        COLLATE "C" PRIMARY KEY,
    prefix     text        COLLATE "C" NOT NULL,
    digest     text        NOT NULL,
    scopes     text        NOT NULL              -- with a space between two
);

CREATE INDEX tokens_prefix ON durable.tokens (prefix);
