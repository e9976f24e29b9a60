-- Published events, runs that await them, and the log of what runs emit.
--
-- Publishing and beginning to wait are writes only: the row, and one of `stirred` in the same transaction. Later
-- somebody's claim compares (match_events), in a transaction of its own. Of an event and a wait, one commits its row of `stirred`
-- last; whoever drains that one has a snapshot that shows both, so neither misses the other, and nobody waits.

-- name: add_events
-- $1 shard, $2 retentions in seconds, $3 and $4 marks, $5 topics, $6 keys, $7 ids, $8 payloads. The clock's time, not the
-- transaction's: it is compared with the time since which a run waits, and may be behind its commit, not much. Those of
-- one call differ, in their order.
WITH inserted AS (
    INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at)
    SELECT $1::smallint, n.topic, coalesce(n.key, ''), n.id, n.data, n.at, n.at + make_interval(secs => n.retention)
    FROM (
        SELECT e.topic, e.key, e.id, e.data, e.retention, present.at + e.place * interval '1 us' AS at
        FROM (SELECT clock_timestamp() AS at OFFSET 0) AS present
        CROSS JOIN unnest((SELECT $2::float8[]), (SELECT string_to_array($5, $3, $4)), (SELECT string_to_array($6, $3, $4)),
                          (SELECT string_to_array($7, $3, $4)), (SELECT string_to_array($8, $3, $4)))
             WITH ORDINALITY AS e (retention, topic, key, id, data, place)
    ) AS n
    ORDER BY n.topic COLLATE "C", coalesce(n.key, '') COLLATE "C", n.id COLLATE "C"
    ON CONFLICT (shard, topic, key, id) DO NOTHING
    RETURNING topic, key
)
INSERT INTO durable.stirred (shard, topic, key) SELECT DISTINCT $1::smallint, topic, key FROM inserted

-- name: await_events
-- $1 worker. Of each wait's write: $2 shards, $3 runs, $4 claim numbers, $5 whether it changes its run, $6 and $7 marks, $8
-- first records. $9 since when, $10 topics, $11 keys. After commit_writes; when it was applied: see signals.sql.
WITH inserted AS (
    INSERT INTO durable.awaited (shard, run_id, since, topic, key)
    SELECT n.shard, n.run_id, timestamptz 'epoch' + n.since * interval '1 us', n.topic, coalesce(n.key, '')
    FROM unnest($2::smallint[], $3::uuid[], $4::integer[], $5::boolean[], string_to_array($8, $6, $7), $9::bigint[],
                string_to_array($10, $6, $7), string_to_array($11, $6, $7))
         WITH ORDINALITY AS n (shard, run_id, claim, changes, record, since, topic, key, place)
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = n.shard AND r.id = n.run_id AND (CASE
            WHEN n.record IS NOT NULL THEN EXISTS (
                SELECT FROM durable.history AS h WHERE h.shard = n.shard AND h.run_id = n.run_id AND h.key = n.record
                AND h.xmin = pg_current_xact_id_if_assigned()::xid)
            WHEN n.changes THEN r.xmin = pg_current_xact_id_if_assigned()::xid
            ELSE r.owner = $1::uuid AND r.claim = n.claim
                 AND EXISTS (SELECT FROM durable.workers AS w WHERE w.id = $1::uuid AND w.lane = 'flush') END) IS TRUE
        LIMIT 1
    ) AS written
    ORDER BY n.place
    RETURNING shard, id, topic, key
)
INSERT INTO durable.stirred (shard, topic, key, after, until) SELECT shard, topic, key, id - 1, id FROM inserted

-- name: match_events
-- $1 shard. Compares what was stirred, gives each wait the first event that it may have, and leaves what it did not get to.
-- It waits for nobody but, in the order of the primary key, for a signal with an event's id that somebody sends at this
-- moment. Answers whether waits have ended, whether something was left, and whether it got on. Never prepared: planned for what
-- there is.
--
-- waits      a wait ends with one event, so after an event has been compared nobody waits for it any more; what is left of
--            an event's waits is small. Still no more than 500 for each row; then "after" moves on.
-- first      the oldest event that it may have. One that the wait's own snapshot does not show came after it, and
--            counts whatever `since` and the retention say; else both do. Not one that the run's inbox knows.
-- chosen     a run gets an event once, for its oldest wait. The other wait is looked at again.
-- locked     a wait that another drain holds, or has ended since this snapshot, is looked at again.
-- given      what was there already since this snapshot is looked at again.
WITH due AS MATERIALIZED (
    SELECT s.ctid AS place, s.* FROM durable.stirred AS s
    WHERE s.shard = $1::smallint ORDER BY s.id LIMIT 100 FOR UPDATE SKIP LOCKED
), waits AS MATERIALIZED (
    SELECT d.id AS stir, d.topic, d.key, wait.*
    FROM due AS d
    CROSS JOIN LATERAL (
        SELECT w.id, w.run_id, w.since, w.at, w.seen FROM durable.awaited AS w
        WHERE w.shard = $1::smallint AND w.topic = d.topic AND w.key = d.key AND w.id > d.after AND w.id <= d.until
        ORDER BY w.id LIMIT 500
    ) AS wait
), first AS MATERIALIZED (
    SELECT DISTINCT ON (w.id) w.id, w.run_id, w.topic, w.key, event.id AS event, event.data
    FROM waits AS w
    CROSS JOIN LATERAL (
        SELECT e.id, e.data FROM durable.events AS e
        WHERE e.shard = $1::smallint AND e.topic = w.topic AND e.key = w.key
          AND e.at >= least(w.since, w.at - interval '1 minute')
          AND (e.at >= w.since AND e.expires_at > w.at OR NOT pg_visible_in_snapshot(e.xact, w.seen))
          AND NOT EXISTS (SELECT FROM durable.signals AS s WHERE s.shard = $1::smallint AND s.run_id = w.run_id AND s.id = e.id)
        ORDER BY e.at LIMIT 1
    ) AS event
    ORDER BY w.id
), chosen AS MATERIALIZED (
    SELECT DISTINCT ON (run_id, event) * FROM first ORDER BY run_id, event, id
), locked AS MATERIALIZED (
    SELECT c.*, wait.place
    FROM (SELECT * FROM chosen ORDER BY id) AS c
    CROSS JOIN LATERAL (
        SELECT w.ctid AS place FROM durable.awaited AS w
        WHERE w.shard = $1::smallint AND w.topic = c.topic AND w.key = c.key AND w.id = c.id
        FOR UPDATE SKIP LOCKED
    ) AS wait
), given AS (
    INSERT INTO durable.signals (shard, run_id, id, name, data)
    SELECT $1::smallint, run_id, event, 'event/' || topic || '/' || key, data FROM locked ORDER BY run_id, event
    ON CONFLICT (shard, run_id, id) DO NOTHING
    RETURNING run_id, id
), woken AS (
    INSERT INTO durable.wakes (shard, run_id) SELECT DISTINCT $1::smallint, run_id FROM given
), over AS (
    DELETE FROM durable.awaited WHERE ctid = ANY (ARRAY(
        SELECT l.place FROM locked AS l JOIN given AS g ON g.run_id = l.run_id AND g.id = l.event))
), rest AS MATERIALIZED (
    SELECT d.id, d.place, least(again.after, more.after) AS after
    FROM due AS d
    LEFT JOIN (
        SELECT w.stir, min(w.id) - 1 AS after
        FROM waits AS w JOIN first AS f ON f.id = w.id
        LEFT JOIN (SELECT l.id FROM locked AS l JOIN given AS g ON g.run_id = l.run_id AND g.id = l.event) AS ok ON ok.id = w.id
        WHERE ok.id IS NULL
        GROUP BY w.stir
    ) AS again ON again.stir = d.id
    LEFT JOIN (SELECT w.stir, max(w.id) AS after FROM waits AS w GROUP BY w.stir HAVING count(*) = 500) AS more ON more.stir = d.id
), moved AS (
    UPDATE durable.stirred AS s SET after = r.after FROM rest AS r
    WHERE s.shard = $1::smallint AND s.id = r.id AND r.after IS NOT NULL
), done AS (
    DELETE FROM durable.stirred WHERE ctid = ANY (ARRAY(SELECT r.place FROM rest AS r WHERE r.after IS NULL))
)
SELECT EXISTS (SELECT FROM given),
       EXISTS (SELECT FROM rest WHERE after IS NOT NULL) OR (SELECT count(*) FROM due) = 100,
       EXISTS (SELECT FROM rest AS r JOIN due AS d ON d.id = r.id WHERE r.after IS DISTINCT FROM d.after)

-- name: forget_events
-- $1 shard, $2 limit. Events whose retention is over. For a minute more they stay, for a wait may have begun before and be
-- committed a little later; and as long as something about their topic has not been compared. Never prepared.
DELETE FROM durable.events WHERE ctid = ANY (ARRAY(
    SELECT e.ctid FROM durable.events AS e
    WHERE e.shard = $1::smallint AND e.expires_at < now() - interval '1 minute'
      AND NOT EXISTS (
          SELECT FROM durable.stirred AS s WHERE s.shard = $1::smallint AND s.topic = e.topic AND s.key = e.key)
    ORDER BY e.expires_at LIMIT $2::integer FOR UPDATE SKIP LOCKED
))

-- name: log_emits
-- $1 shards, $2 runs, $3 and $4 marks, $5 keys. After commit_writes: those records that it has inserted just now (xmin).
INSERT INTO durable.emits (shard, run_id, key, n, at, data)
SELECT n.shard, n.run_id, n.key, n.place, record.at, coalesce(record.data, 'null')
FROM unnest($1::smallint[], $2::uuid[], string_to_array($5, $3, $4)) WITH ORDINALITY AS n (shard, run_id, key, place)
CROSS JOIN LATERAL (
    SELECT h.at, h.data FROM durable.history AS h
    WHERE h.shard = n.shard AND h.run_id = n.run_id AND h.key = n.key
      AND (h.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE
    LIMIT 1
) AS record
ORDER BY n.place

-- name: emitted
-- $1 shard, $2 and $3 the cursor: a transaction, and a place in it; $4 limit. Whatever has a smaller transaction id than the
-- oldest one that runs has ended: nothing is ever added before what is shown. What comes later waits for that one.
SELECT e.xact::text, e.n, e.run_id, e.key, e.at, e.data
FROM durable.emits AS e
WHERE e.shard = $1::smallint AND (e.xact, e.n) > ($2::text::xid8, $3::integer)
  AND e.xact < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY e.xact, e.n
LIMIT $4::integer
