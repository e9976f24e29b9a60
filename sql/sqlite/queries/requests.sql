-- What people and other programs do to a run that they do not hold: ask something of it, or delete it.

-- name: session_requesting_run
CREATE TEMP TABLE requesting_run (
    run INTEGER PRIMARY KEY,
    claim INTEGER NOT NULL
)

-- name: session_requesting_view
-- seen: [state, owner, claim, wakes] of the run that the plan was made for; nothing that matters to a plan changes
-- without one of them. plan: [state, requested, reason, error, ended, ready, rests, record, forgive];
-- record: the data of the REQUEST record; aside: [key, …]
CREATE TEMP VIEW requesting AS SELECT NULL AS now, NULL AS id, NULL AS seen, NULL AS plan, NULL AS aside

-- name: session_requesting
CREATE TEMP TRIGGER requesting_into INSTEAD OF INSERT ON requesting BEGIN
    DELETE FROM requesting_run;

    INSERT INTO requesting_run (run, claim)
    SELECT n, claim
    FROM durable_runs
    WHERE id = NEW.id AND state = NEW.seen ->> 0 AND owner IS NEW.seen ->> 1
        AND claim = NEW.seen ->> 2 AND wakes = NEW.seen ->> 3;

    UPDATE durable_records SET key = '/' || (SELECT claim FROM requesting_run) || '/' || key
    WHERE run = (SELECT run FROM requesting_run) AND key IN (SELECT value FROM json_each(NEW.aside));

    INSERT INTO durable_records (run, key, body)
    SELECT run, '/request/' || seq, json_array(
        seq, 'request', NEW.now, NEW.plan ->> 7, json('false'), 1, 0.0, 0, json('false'), NULL, NULL)
    FROM (
        SELECT q.run, 1 + coalesce((SELECT max(h.body ->> 0) FROM durable_records AS h WHERE h.run = q.run), 0) AS seq
        FROM requesting_run AS q)
    WHERE NEW.plan ->> 7 IS NOT NULL;

    UPDATE durable_runs SET
        state = NEW.plan ->> 0,
        requested = NEW.plan ->> 1,
        reason = NEW.plan ->> 2,
        error = NEW.plan ->> 3,
        ended_at = CASE WHEN NEW.plan ->> 4 THEN NEW.now END,
        ready_at = CASE WHEN NEW.plan ->> 5 THEN NEW.now WHEN NOT NEW.plan ->> 6 THEN ready_at END,
        claim = claim + (NEW.plan ->> 7 IS NOT NULL),
        takeovers = CASE WHEN NEW.plan ->> 8 THEN 0 ELSE takeovers END,
        wakes = wakes + 1
    WHERE n = (SELECT run FROM requesting_run);
END

-- name: request
INSERT INTO requesting (now, id, seen, plan, aside) VALUES (?, ?, ?, ?, ?)

-- name: request_applied
SELECT count(*) FROM requesting_run

-- name: request_seen
-- One row, or none: what a request is decided on.
SELECT json_array(json(doc)) FROM run_docs_without_input WHERE id = :id

-- name: session_deleted
CREATE TEMP TABLE deleted (
    run INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    workflow TEXT NOT NULL,
    key TEXT
)

-- name: session_deleting_view
-- id: one run; or NULL for up to at_most runs that ended before
CREATE TEMP VIEW deleting AS SELECT NULL AS id, NULL AS before, NULL AS at_most

-- name: session_deleting
CREATE TEMP TRIGGER deleting_into INSTEAD OF INSERT ON deleting BEGIN
    DELETE FROM deleted;

    INSERT INTO deleted (run, id, workflow, key)
    SELECT n, id, workflow, key FROM durable_runs WHERE id = NEW.id AND ended_at IS NOT NULL;

    INSERT INTO deleted (run, id, workflow, key)
    SELECT n, id, workflow, key
    FROM durable_runs INDEXED BY durable_runs_ended
    WHERE NEW.id IS NULL AND ended_at < NEW.before
    ORDER BY ended_at
    LIMIT NEW.at_most;

    DELETE FROM durable_records WHERE run IN (SELECT run FROM deleted);
    DELETE FROM durable_inputs WHERE run IN (SELECT run FROM deleted);
    DELETE FROM durable_keys
    WHERE (workflow, key) IN (SELECT workflow, key FROM deleted) AND run_id IN (SELECT id FROM deleted);
    DELETE FROM durable_runs WHERE n IN (SELECT run FROM deleted);
END

-- name: delete
INSERT INTO deleting (id, before, at_most) VALUES (?, ?, ?)

-- name: deleted
SELECT count(*) FROM deleted
