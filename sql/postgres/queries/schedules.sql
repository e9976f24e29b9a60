-- Schedules: one write that compares, and what is due. "Marks": what separates the texts of a column, and stands for NULL in
-- it. Times are in microseconds since 1970, exactly.
--
-- A write is hold_schedules, write_schedules, what a trigger sends (hold_turns, take_turns, add_runs) and settle_ticks, in one
-- transaction that is sent whole: who dies in the middle of it leaves nothing.
-- Of those who write one schedule the second waits in hold_schedules for the first. write_schedules is a later statement,
-- whose snapshot shows what the first has written: its comparison fails, or it finds that it is the same write, sent again
-- while its first sending was still under way. It puts the ticks of what it applies into `ticks`; the statements after it
-- create a run only where that row names it. So a refused write needs no decision of the client, and holds no key.
-- The order of locks: schedules by name, ticks, concurrency keys, then inserts. No run is locked; settle_ticks, the last,
-- waits for nobody. So it is in no deadlock.

-- name: hold_schedules
-- $1 shard, $2 and $3 marks, $4 names. In one order; of those that exist.
SELECT count(*)
FROM (SELECT DISTINCT n.name COLLATE "C" AS name FROM unnest(string_to_array($4, $2, $3)) AS n (name) ORDER BY 1) AS n
CROSS JOIN LATERAL (
    SELECT FROM durable.schedules AS s WHERE s.shard = $1::smallint AND s.name = n.name FOR NO KEY UPDATE
) AS held

-- name: write_schedules
-- $1 shard, $2 and $3 marks. Of each schedule: $4 name, $5 specification, $6 a sign and the note of its pause, $7 skipped, $8 next,
-- $9 due, $10 created, $11 updated, $12 last, $13 fired, $14 revision, $15 whether its runs may overlap. As it was read: $16 whether
-- it was there, $17 created, $18 revision, $19 next. Of each run: $20 its schedule, $21 id, $22 tick. Answers the names of what is
-- applied, now or before.
--
-- again    some tick of the write has its run: it was applied before.
-- made     one that somebody else makes at this moment is waited for, and then is there.
WITH given AS MATERIALIZED (
    SELECT n.name, n.spec, substr(n.paused, 2) AS paused, n.skipped, n.fired, n.revision, n.overlapping, n.known,
           timestamptz 'epoch' + n.next_at * interval '1 us' AS next_at,
           timestamptz 'epoch' + n.due_at * interval '1 us' AS due_at,
           timestamptz 'epoch' + n.created_at * interval '1 us' AS created_at,
           timestamptz 'epoch' + n.updated_at * interval '1 us' AS updated_at,
           timestamptz 'epoch' + n.last_at * interval '1 us' AS last_at,
           stored.found, (stored.created_at, stored.revision, stored.next_at) IS NOT DISTINCT FROM (
               timestamptz 'epoch' + n.was_created * interval '1 us', n.was_revision,
               timestamptz 'epoch' + n.was_next * interval '1 us') AS same
    FROM unnest(string_to_array($4, $2, $3), string_to_array($5, $2, $3), string_to_array($6, $2, $3),
                string_to_array($7, $2, $3), $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],
                $13::bigint[], $14::integer[], $15::boolean[], $16::boolean[], $17::bigint[], $18::integer[], $19::bigint[])
         AS n (name, spec, paused, skipped, next_at, due_at, created_at, updated_at, last_at, fired, revision, overlapping, known,
               was_created, was_revision, was_next)
    LEFT JOIN LATERAL (
        SELECT true AS found, s.created_at, s.revision, s.next_at FROM durable.schedules AS s
        WHERE s.shard = $1::smallint AND s.name = n.name LIMIT 1
    ) AS stored ON true
), fire AS MATERIALIZED (
    SELECT r.name, r.id, timestamptz 'epoch' + r.tick * interval '1 us' AS at
    FROM unnest(string_to_array($20, $2, $3), $21::uuid[], $22::bigint[]) AS r (name, id, tick)
), again AS MATERIALIZED (
    SELECT DISTINCT f.name
    FROM fire AS f
    CROSS JOIN LATERAL (
        SELECT t.run_id FROM durable.ticks AS t
        WHERE t.shard = $1::smallint AND t.schedule = f.name AND t.at = f.at LIMIT 1
    ) AS ticked
    WHERE ticked.run_id = f.id
), made AS (
    INSERT INTO durable.schedules (shard, name, spec, paused, skipped, next_at, due_at, created_at, updated_at, last_at, fired,
                                   revision, overlapping)
    SELECT $1::smallint, name, spec, paused, skipped, next_at, due_at, created_at, updated_at, last_at, fired, revision, overlapping
    FROM given WHERE NOT known AND found IS NULL AND NOT name IN (SELECT name FROM again)
    ORDER BY name COLLATE "C"
    ON CONFLICT (shard, name) DO NOTHING
    RETURNING name
), changed AS (
    INSERT INTO durable.schedules AS s (shard, name, spec, paused, skipped, next_at, due_at, created_at, updated_at, last_at, fired,
                                        revision, overlapping)
    SELECT $1::smallint, name, spec, paused, skipped, next_at, due_at, created_at, updated_at, last_at, fired, revision, overlapping
    FROM given WHERE known AND found AND same AND NOT name IN (SELECT name FROM again)
    ORDER BY name COLLATE "C"
    ON CONFLICT (shard, name) DO UPDATE
    SET spec = excluded.spec, paused = excluded.paused, skipped = excluded.skipped, next_at = excluded.next_at,
        due_at = excluded.due_at, created_at = excluded.created_at, updated_at = excluded.updated_at,
        last_at = excluded.last_at, fired = excluded.fired, revision = excluded.revision, overlapping = excluded.overlapping
    RETURNING s.name
), applied AS MATERIALIZED (
    SELECT name FROM made UNION ALL SELECT name FROM changed
), ticked AS (
    INSERT INTO durable.ticks (shard, schedule, at, run_id)
    SELECT $1::smallint, f.name, f.at, f.id FROM fire AS f JOIN applied AS a ON a.name = f.name
    ORDER BY f.name COLLATE "C", f.at
    ON CONFLICT (shard, schedule, at) DO NOTHING
)
SELECT name FROM applied UNION ALL SELECT name FROM again

-- name: settle_ticks
-- $1 shard, $2 and $3 marks, $4 names. Last: what stands for a run that has ended is marked, so that the next who looks for
-- runs that have not ended meets few that have. Of schedules that this transaction has written (xmin), so by one at a time.
-- A row is taken only as the very one that the snapshot shows (ctid), for its run was looked at in the same snapshot: a
-- retry of that run changes the row (reopen_tick).
UPDATE durable.ticks SET ended = true WHERE ctid = ANY (ARRAY(
    SELECT tick.place
    FROM unnest(string_to_array($4, $2, $3)) AS n (name)
    CROSS JOIN LATERAL (
        SELECT FROM durable.schedules AS s
        WHERE s.shard = $1::smallint AND s.name = n.name AND (s.xmin = pg_current_xact_id_if_assigned()::xid) IS TRUE LIMIT 1
    ) AS written
    CROSS JOIN LATERAL (
        SELECT t.ctid AS place, t.at, t.run_id FROM durable.ticks AS t
        WHERE t.shard = $1::smallint AND t.schedule = n.name AND NOT t.ended ORDER BY t.run_id LIMIT 20000
    ) AS seen
    CROSS JOIN LATERAL (
        SELECT FROM durable.runs AS r
        WHERE r.shard = $1::smallint AND r.id = seen.run_id AND (r.ended_at IS NOT NULL) IS TRUE LIMIT 1
    ) AS over
    CROSS JOIN LATERAL (
        SELECT t.ctid AS place FROM durable.ticks AS t
        WHERE t.shard = $1::smallint AND t.schedule = n.name AND t.at = seen.at AND (t.ctid = seen.place) IS TRUE
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS tick
))

-- name: reopen_tick
-- $1 shard, $2 schedule, $3 tick, $4 run. After change_run, of a run that goes on after its end. Always a new row: settle_ticks.
UPDATE durable.ticks SET ended = false
WHERE shard = $1::smallint AND schedule = $2::text AND at = timestamptz 'epoch' + $3::bigint * interval '1 us'
  AND run_id = $4::uuid

-- name: delete_schedule
-- $1 shard, $2 name.
DELETE FROM durable.schedules WHERE shard = $1::smallint AND name = $2::text RETURNING name

-- name: found_schedules
-- $1 shard, $2 and $3 marks, $4 names of some; and with $7 > 0 those that are due: at most so many, behind $5 time and $6 name. Each
-- with its runs that have not ended: those that have started or may, and those that are under their concurrency key but not
-- the first there. By the order of due times.
SELECT s.spec, s.next_at, s.due_at, s.created_at, s.updated_at, s.paused, s.last_at, s.fired, s.skipped, s.revision,
       coalesce(open.active, '{}'), coalesce(open.queued, '{}')
FROM (
    SELECT named.*
    FROM (SELECT DISTINCT n.name FROM unnest(string_to_array($4, $2, $3)) AS n (name)) AS n
    CROSS JOIN LATERAL (
        SELECT x.* FROM durable.schedules AS x WHERE x.shard = $1::smallint AND x.name = n.name LIMIT 1
    ) AS named
    UNION ALL
    (
        SELECT x.* FROM durable.schedules AS x
        WHERE x.shard = $1::smallint AND x.due_at <= now() AND (x.due_at, x.name) > ($5::timestamptz, $6::text)
        ORDER BY x.due_at, x.name
        LIMIT $7::integer
    )
) AS s
LEFT JOIN LATERAL (
    SELECT array_agg(o.run_id ORDER BY o.run_id) FILTER (WHERE NOT o.queued) AS active,
           array_agg(o.run_id ORDER BY o.run_id) FILTER (WHERE o.queued) AS queued
    FROM (
        SELECT t.run_id, (first.run_id <> t.run_id) IS TRUE AS queued
        FROM (
            SELECT x.run_id FROM durable.ticks AS x
            WHERE x.shard = s.shard AND x.schedule = s.name AND NOT x.ended AND NOT s.overlapping OFFSET 0
        ) AS t
        CROSS JOIN LATERAL (
            SELECT FROM durable.runs AS r WHERE r.shard = s.shard AND r.id = t.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
        ) AS live
        LEFT JOIN LATERAL (
            SELECT u.workflow, u.key FROM durable.turns AS u WHERE u.shard = s.shard AND u.run_id = t.run_id LIMIT 1
        ) AS turn ON true
        LEFT JOIN LATERAL (
            SELECT u.run_id FROM durable.turns AS u
            CROSS JOIN LATERAL (
                SELECT FROM durable.runs AS r
                WHERE r.shard = u.shard AND r.id = u.run_id AND (r.ended_at IS NULL) IS TRUE LIMIT 1
            ) AS live
            WHERE u.shard = s.shard AND u.workflow = turn.workflow AND u.key = turn.key
            ORDER BY u.number LIMIT 1
        ) AS first ON true
    ) AS o
) AS open ON true
ORDER BY s.due_at, s.name

-- name: schedules_rest
-- $1 shard. In the transaction of found_schedules, whose time it tells; when the next one is due. And runs that were created a
-- while ago and have not asked those whose place they take to cancel: whoever created them did not come to it.
SELECT now(),
       (SELECT s.due_at FROM durable.schedules AS s
        WHERE s.shard = $1::smallint AND s.due_at > now() ORDER BY s.due_at LIMIT 1),
       ARRAY(
           SELECT t.run_id FROM durable.turns AS t
           CROSS JOIN LATERAL (
               SELECT FROM durable.runs AS r
               WHERE r.shard = t.shard AND r.id = t.run_id AND (r.created_at < now() - interval '10 s') IS TRUE LIMIT 1
           ) AS old
           WHERE t.shard = $1::smallint AND t.replaces AND t.waits
           ORDER BY t.run_id LIMIT 100)

-- name: list_schedules
-- $1 shard, $2 after this name, $3 limit.
SELECT s.spec, s.next_at, s.due_at, s.created_at, s.updated_at, s.paused, s.last_at, s.fired, s.skipped, s.revision
FROM durable.schedules AS s
WHERE s.shard = $1::smallint AND s.name > $2::text
ORDER BY s.name
LIMIT $3::integer

-- name: ticks
-- $1 shard, $2 schedule, $3 since, $4 before, $5 limit.
SELECT t.at, t.run_id
FROM durable.ticks AS t
WHERE t.shard = $1::smallint AND t.schedule = $2::text AND t.at >= timestamptz 'epoch' + $3::bigint * interval '1 us'
  AND t.at < timestamptz 'epoch' + $4::bigint * interval '1 us'
ORDER BY t.at
LIMIT $5::integer
