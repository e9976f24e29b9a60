-- Effects that runs share. As in 0001 every key begins with `shard`, texts in indexes are in collation C, and the table
-- begins with some pages, for the reason that stands at the end of 0001; more of them than there, for a few rows are deleted
-- by their places (ctid), and planned for less than 40 pages that would be a scan.

-- Who makes an effect, or has made it, until the run is pruned.
CREATE TABLE durable.effects (
    run_id uuid     NOT NULL,
    shard  smallint NOT NULL,
    done   boolean  NOT NULL DEFAULT false,          -- it was made, and data is its result
    key    text     COLLATE "C" NOT NULL,
    step   text     NOT NULL,                        -- the key of its record in the run
    data   text,                                     -- kept here too: that record may be set aside
    PRIMARY KEY (shard, key)
) WITH (vacuum_truncate = off);

CREATE INDEX effects_run ON durable.effects (shard, run_id);

INSERT INTO durable.effects (shard, run_id, key, step)
SELECT -1, gen_random_uuid(), n::text, repeat('x', 1900) FROM generate_series(1, 300) AS n;
DELETE FROM durable.effects WHERE shard = -1;
