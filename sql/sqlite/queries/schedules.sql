-- Schedules: one write that compares, and what is due.

-- name: session_scheduled
-- Which writes apply; `again`: it was applied before.
CREATE TEMP TABLE scheduled (
    pos INTEGER PRIMARY KEY,
    again INTEGER NOT NULL
)

-- name: session_scheduling_view
-- writes: [[[name, spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision],
-- [created_at, revision, next_at] as it was read or null, runs as for `creating`], …], each name once
CREATE TEMP VIEW scheduling AS SELECT NULL AS now, NULL AS writes

-- name: session_scheduling
CREATE TEMP TRIGGER scheduling_into INSTEAD OF INSERT ON scheduling BEGIN
    DELETE FROM scheduled;

    INSERT INTO scheduled (pos, again)
    SELECT w.key, 1
    FROM json_each(NEW.writes) AS w
    WHERE EXISTS (
        SELECT 1
        FROM json_each(w.value, '$[2]') AS t
        CROSS JOIN durable_runs AS r
        WHERE r.id = t.value ->> 0 AND r.schedule = t.value ->> 20 AND r.tick = t.value ->> 21);

    -- Written with the write lock held: nobody can change what was compared before the commit.
    INSERT INTO scheduled (pos, again)
    SELECT w.key, 0
    FROM json_each(NEW.writes) AS w
    LEFT JOIN durable_schedules AS s ON s.name = w.value ->> '$[0][0]'
    WHERE w.key NOT IN (SELECT pos FROM scheduled)
        AND CASE WHEN w.value ->> 1 IS NULL OR s.name IS NULL THEN w.value ->> 1 IS NULL AND s.name IS NULL ELSE
            (s.created_at, s.revision, s.next_at)
                IS (w.value ->> '$[1][0]', w.value ->> '$[1][1]', w.value ->> '$[1][2]') END;

    INSERT INTO durable_schedules (
        name, spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision)
    SELECT w.value ->> '$[0][0]', w.value ->> '$[0][1]', w.value ->> '$[0][2]', w.value ->> '$[0][3]',
        w.value ->> '$[0][4]', w.value ->> '$[0][5]', w.value ->> '$[0][6]', w.value ->> '$[0][7]',
        w.value ->> '$[0][8]', w.value ->> '$[0][9]', w.value ->> '$[0][10]'
    FROM json_each(NEW.writes) AS w
    CROSS JOIN scheduled AS a
    WHERE a.pos = w.key AND NOT a.again
    ON CONFLICT (name) DO UPDATE SET
        spec = excluded.spec, next_at = excluded.next_at, due_at = excluded.due_at, created_at = excluded.created_at,
        updated_at = excluded.updated_at, paused = excluded.paused, last_at = excluded.last_at,
        fired = excluded.fired, skipped = excluded.skipped, revision = excluded.revision;

    -- A tick that has its run is passed over by the ON CONFLICT DO NOTHING of `creating`.
    INSERT INTO creating (now, runs)
    SELECT NEW.now, '[' || group_concat(t.value) || ']'
    FROM json_each(NEW.writes) AS w
    CROSS JOIN scheduled AS a
    CROSS JOIN json_each(w.value, '$[2]') AS t
    WHERE a.pos = w.key AND NOT a.again
    HAVING count(*) > 0;
END

-- name: schedule
INSERT INTO scheduling (now, writes) VALUES (?, ?)

-- name: scheduled
SELECT json_group_array(json_array(pos, again)) FROM scheduled

-- name: unschedule
DELETE FROM durable_schedules WHERE name = :name

-- name: session_schedule_docs
CREATE TEMP VIEW schedule_docs AS
SELECT name, due_at, json_array(
    spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision) AS doc
FROM durable_schedules

-- name: session_found_docs
-- With [id, whether it is queued] of its runs that have not ended; the index leaves the planner no choice. It is asked
-- for the rows that are shown only.
CREATE TEMP VIEW found_docs AS
SELECT name, due_at, json_array(
    json_array(spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision),
    CASE WHEN spec ->> 'overlap' <> 'allow' THEN (
        SELECT json_group_array(json_array(id, EXISTS (
            SELECT 1 FROM durable_lines AS l WHERE l.run = n AND l.queued)))
        FROM (
            SELECT r.n, r.id
            FROM durable_runs AS r INDEXED BY durable_runs_schedule_open
            WHERE r.schedule = durable_schedules.name AND r.ended_at IS NULL
            ORDER BY r.id))
    ELSE json_array() END) AS doc
FROM durable_schedules

-- name: find_schedules
SELECT json_group_array(json(d.doc)) FROM json_each(:names) AS w CROSS JOIN found_docs AS d WHERE d.name = w.value

-- name: list_schedules
SELECT json_group_array(json(doc))
FROM (SELECT d.doc FROM schedule_docs AS d WHERE d.name > :after ORDER BY d.name LIMIT :at_most)

-- name: due_schedules
-- [[what is due, in order], when the next one is]
SELECT json_array(
    (
        SELECT json_group_array(json(doc))
        FROM (
            SELECT d.doc
            FROM found_docs AS d
            WHERE d.due_at <= :now AND (d.due_at, d.name) > (:after, :after_name)
            ORDER BY d.due_at, d.name
            LIMIT :at_most)),
    (SELECT min(due_at) FROM durable_schedules WHERE due_at > :now))

-- name: ticks
SELECT json_group_array(json_array(tick, id))
FROM (
    SELECT r.tick, r.id
    FROM durable_runs AS r INDEXED BY durable_runs_tick
    WHERE r.schedule = :name AND r.tick >= :since AND r.tick < :until
    ORDER BY r.tick
    LIMIT :at_most)
