-- A flush and a claim find the runs that they have locked by their places (ctid). That is planned for ten of them, which
-- cost as much as 40 pages read in order: so the table has twice as many from now on. See the end of 0001.
INSERT INTO durable.runs (shard, id, seed, input_hash)
SELECT -1, gen_random_uuid(), repeat('x', 100), repeat('x', 100) FROM generate_series(1, 800);
DELETE FROM durable.runs WHERE shard = -1;
