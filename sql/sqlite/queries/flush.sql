-- The committer's flush.
--
-- A writing verb is one INSERT into a temporary view, whose trigger does everything. So the whole transaction
-- is one step of SQLite: it begins, writes and commits without Python in between. Several statements, or
-- executemany, wait for the interpreter's lock each time; with a busy event loop that was 9 ms more for a flush
-- of five statements, and 2.4 s for 500 rows one by one, all with the write lock held.

-- name: session_flush_held
CREATE TEMP TABLE flush_held (
    id TEXT PRIMARY KEY,
    run INTEGER NOT NULL,
    claim INTEGER NOT NULL,
    takeovers INTEGER NOT NULL,
    requested TEXT,
    asked TEXT  -- the verb of what is requested
) WITHOUT ROWID

-- name: session_flush_changed
CREATE TEMP TABLE flush_changed (
    run INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    keep INTEGER NOT NULL,
    terminal INTEGER NOT NULL,
    ready_at INTEGER,
    wakes INTEGER,
    result TEXT,
    error TEXT,
    reason TEXT,
    aside TEXT,      -- keys of the records that are set aside
    requested TEXT,  -- what is still requested afterwards
    instead TEXT     -- the run is given back: {state: the state that this leads to}
)

-- name: session_flush_view
-- claims: {run id: claim}; records: {run id: {key: body}};
-- changes: {run id: [state, keep, terminal, ready_at, wakes, result, error, reason, aside, instead]}; instead is
-- there when the change carries out a request to pause: what to do when that is not open any more
CREATE TEMP VIEW flush AS SELECT NULL AS now, NULL AS worker, NULL AS claims, NULL AS records, NULL AS changes

-- name: session_flush
CREATE TEMP TRIGGER flush_into INSTEAD OF INSERT ON flush BEGIN
    DELETE FROM flush_held;
    DELETE FROM flush_changed;

    -- the fence: everything below writes only about these runs
    INSERT INTO flush_held (id, run, claim, takeovers, requested, asked)
    SELECT r.id, r.n, r.claim, r.takeovers, r.requested, r.requested ->> 'verb'
    FROM json_each(NEW.claims) AS w
    CROSS JOIN durable_runs AS r
    WHERE r.id = w.key AND r.owner = NEW.worker AND r.claim = w.value
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker);

    -- progress forgives takeovers; the document is read again only when some run has any
    UPDATE durable_runs SET takeovers = 0
    WHERE n IN (
        SELECT h.run
        FROM json_each(
            CASE WHEN (SELECT max(takeovers) FROM flush_held) > 0 THEN NEW.records ELSE '{}' END) AS w
        CROSS JOIN flush_held AS h
        WHERE h.id = w.key AND h.takeovers > 0);

    -- sent again: nothing. Another record under the same key: nothing of this transaction
    INSERT INTO durable_records (run, key, body)
    SELECT h.run, r.key, r.value
    FROM json_each(NEW.records) AS w
    CROSS JOIN flush_held AS h
    CROSS JOIN json_each(w.value) AS r
    WHERE h.id = w.key
    ON CONFLICT (run, key) DO UPDATE SET run = raise(ABORT, 'durable: record exists')
        WHERE durable_records.body <> excluded.body;

    -- An end ends every request, also one that came too late; a pause ends one to pause.
    INSERT INTO flush_changed (
        run, state, keep, terminal, ready_at, wakes, result, error, reason, aside, requested, instead)
    SELECT h.run, w.value ->> 0, w.value ->> 1, w.value ->> 2, w.value ->> 3, w.value ->> 4,
        w.value ->> 5, w.value ->> 6, w.value ->> 7, w.value ->> 8,
        CASE WHEN NOT (w.value ->> 2 OR w.value ->> 0 = 'paused' AND h.asked = 'pause') THEN h.requested END,
        CASE WHEN h.asked IS NOT 'pause' THEN w.value ->> 9 END
    FROM json_each(NEW.changes) AS w
    CROSS JOIN flush_held AS h
    WHERE h.id = w.key;

    UPDATE durable_records SET key = '/' || (SELECT claim FROM flush_held AS h WHERE h.run = durable_records.run)
        || '/' || key
    WHERE rowid IN (
        SELECT r.rowid
        FROM flush_changed AS c
        CROSS JOIN json_each(c.aside) AS a
        CROSS JOIN durable_records AS r
        WHERE c.aside IS NOT NULL AND r.run = c.run AND r.key = a.value);

    -- Not UPDATE … FROM: the planner is then free to scan all runs for it (680 µs a run with 3,000 runs).
    UPDATE durable_runs SET (state, owner, ready_at, ended_at, result, error, reason, requested) = (
        SELECT coalesce(c.instead ->> durable_runs.state, c.state),
            CASE WHEN c.keep THEN owner END,
            CASE
                WHEN c.instead IS NOT NULL THEN NEW.now
                WHEN c.keep OR c.terminal OR c.state = 'paused' THEN NULL
                WHEN c.requested IS NOT NULL OR c.wakes <> durable_runs.wakes THEN NEW.now
                ELSE c.ready_at
            END,
            CASE WHEN c.terminal THEN NEW.now END,
            coalesce(c.result, durable_runs.result),
            coalesce(c.error, durable_runs.error),
            CASE WHEN c.instead IS NULL THEN c.reason END,
            c.requested
        FROM flush_changed AS c
        WHERE c.run = n)
    WHERE n IN (SELECT run FROM flush_changed);
END

-- name: flush
INSERT INTO flush (now, worker, claims, records, changes) VALUES (?, ?, ?, ?, ?)

-- name: flush_count
SELECT count(*) FROM flush_held

-- name: flush_applied
SELECT json_group_array(id) FROM flush_held

-- name: flush_sent_before
-- Of writes that were not applied: those that an earlier sending has applied, and that ended the claim.
-- The worker's row still stands, so nobody else took the run from it.
SELECT json_group_array(r.id)
FROM json_each(:claims) AS c
CROSS JOIN durable_runs AS r
LEFT JOIN json_each(:changes) AS w ON w.key = c.key
WHERE r.id = c.key AND r.claim = c.value AND r.owner IS NULL
    AND EXISTS (SELECT 1 FROM durable_workers WHERE id = :worker)
    AND (w.key IS NULL OR w.value ->> 1 OR r.state = w.value ->> 0
        OR NOT (w.value ->> 2 OR r.ended_at IS NOT NULL))
    AND NOT EXISTS (
        SELECT 1
        FROM json_each(:records) AS d
        CROSS JOIN json_each(d.value) AS x
        LEFT JOIN durable_records AS h ON h.run = r.n AND h.key IN (x.key, '/' || c.value || '/' || x.key)
        WHERE d.key = c.key AND h.body IS NOT x.value)

-- name: flush_contradicted
-- Runs for which the store holds another record under the key of one of these records.
SELECT json_group_array(r.id)
FROM json_each(:claims) AS c
CROSS JOIN durable_runs AS r
WHERE r.id = c.key
    AND EXISTS (
        SELECT 1
        FROM json_each(:records) AS d
        CROSS JOIN json_each(d.value) AS x
        CROSS JOIN durable_records AS h
        WHERE d.key = c.key AND h.run = r.n AND h.key = x.key AND h.body <> x.value)
