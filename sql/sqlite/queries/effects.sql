-- Effects that runs share.

-- name: session_taking_run
CREATE TEMP TABLE taking_run (run INTEGER PRIMARY KEY)

-- name: session_taking_view
CREATE TEMP VIEW taking AS SELECT NULL AS worker, NULL AS id, NULL AS claim, NULL AS key, NULL AS step

-- name: session_taking
CREATE TEMP TRIGGER taking_into INSTEAD OF INSERT ON taking BEGIN
    DELETE FROM taking_run;

    INSERT INTO taking_run (run)
    SELECT n FROM durable_runs
    WHERE id = NEW.id AND owner = NEW.worker AND claim = NEW.claim
        AND EXISTS (SELECT 1 FROM durable_workers WHERE id = NEW.worker);

    -- The same step asks again: it has not heard the answer, or its record was set aside.
    INSERT INTO durable_effects (key, run, step)
    SELECT NEW.key, run, NEW.step FROM taking_run WHERE true
    ON CONFLICT (key) DO UPDATE SET ended_at = NULL, kept = 0, data = NULL
        WHERE run = excluded.run AND step = excluded.step;

    UPDATE durable_runs SET linked = 1
    WHERE n IN (SELECT run FROM taking_run) AND NOT linked
        AND EXISTS (SELECT 1 FROM durable_effects AS e WHERE e.key = NEW.key AND e.run = durable_runs.n);
END

-- name: take_effect
INSERT INTO taking (worker, id, claim, key, step) VALUES (?, ?, ?, ?, ?)

-- name: taking_held
SELECT count(*) FROM taking_run

-- name: effect_taken
-- One row, or none when whoever made it has let go of it just now.
SELECT json_array(e.run = t.run AND e.step = :step, r.id, e.ended_at IS NOT NULL, e.data)
FROM taking_run AS t
CROSS JOIN durable_effects AS e
CROSS JOIN durable_runs AS r
WHERE e.key = :key AND r.n = e.run
