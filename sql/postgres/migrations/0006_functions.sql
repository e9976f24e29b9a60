-- What triggers, pg_cron, other languages and applications call inside transactions of their own. Each runs with the rights
-- of its caller, who needs those of a runtime role, and nobody may execute one until it is granted: see grants.sql. Names
-- are resolved in pg_catalog alone, whatever the caller's search_path: the tables are spelled with their schema.
--
-- They insert, and lock no run: a transaction that stays open is in nobody's way, but for who wants the same key. So there
-- is neither the policy "replace" nor debouncing. A new route is inserted too, once for each (queue, workflow, version).

-- Whether every character can be seen, as far as can be told here: no control or formatting character, no unusual space, no
-- private use. (Python also refuses what its version of Unicode has not assigned.)
CREATE FUNCTION durable.printable(value text) RETURNS boolean
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on
AS $$
    SELECT value COLLATE "C" !~ ('[\u0001-\u001f\u007f-\u00a0\u00ad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u1680'
        '\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff\ufeff\ufff0-\ufffb\ufffe\uffff\U000110bd\U000110cd'
        '\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0001-\U000e007f\U000f0000-\U0010ffff]')
$$;

-- The value itself, or an error that says what is wrong with it. A name is at most 200 bytes without # [ ] and /.
CREATE FUNCTION durable.checked(value text, what text, is_name boolean) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    most integer := CASE WHEN is_name THEN 200 ELSE 512 END;
BEGIN
    IF value IS NULL THEN
        RAISE 'durable: % is null', what USING ERRCODE = 'null_value_not_allowed';
    ELSIF value = '' THEN
        RAISE 'durable: % is empty', what USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(value) > most THEN
        RAISE 'durable: % is longer than % bytes', what, most USING ERRCODE = 'invalid_parameter_value';
    ELSIF NOT durable.printable(value) THEN
        RAISE 'durable: % contains an unprintable character', what USING ERRCODE = 'invalid_parameter_value';
    ELSIF is_name AND value ~ '[][#/]' THEN
        RAISE 'durable: % contains one of # [ ] /, which are reserved for record keys', what
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN value;
END $$;

-- The text of a JSON value that Python can read and give back exactly, or an error. jsonb refuses \u0000 and halves of
-- surrogate pairs; a number beyond a double would be read as infinite; more than 200 levels are not read at all.
CREATE FUNCTION durable.checked_json(value json, what text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found text := value::text;
    parsed jsonb;
BEGIN
    IF octet_length(found) > 4194304 THEN
        RAISE 'durable: % takes % bytes as JSON, above the limit of 4194304', what, octet_length(found)
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    parsed := found::jsonb;
    IF octet_length(found) > 400 AND jsonb_path_exists(parsed, '$.**{201}') THEN
        RAISE 'durable: % is nested more than 200 levels deep', what USING ERRCODE = 'invalid_parameter_value';
    ELSIF found ~ '[0-9][eE]|[0-9]{155}[0-9]{154}' AND jsonb_path_exists(
        parsed, '$.** ? (@.type() == "number" && (@ > 1.7976931348623157e308 || @ < -1.7976931348623157e308))'
    ) THEN
        RAISE 'durable: % contains a number beyond those that a double holds', what
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN found;
END $$;

-- Tags, or an error: at most 64 names, with texts of at most 512 bytes.
CREATE FUNCTION durable.checked_tags(value jsonb) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    tag record;
BEGIN
    IF value IS NULL THEN
        RETURN '{}';
    ELSIF jsonb_typeof(value) <> 'object' THEN
        RAISE 'durable: tags are a JSON object, not %', jsonb_typeof(value) USING ERRCODE = 'invalid_parameter_value';
    ELSIF (SELECT count(*) FROM jsonb_object_keys(value)) > 64 THEN
        RAISE 'durable: a run has at most 64 tags' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    FOR tag IN SELECT t.key, t.value FROM jsonb_each(value) AS t (key, value) LOOP
        PERFORM durable.checked(tag.key, 'a tag', true);
        IF jsonb_typeof(tag.value) <> 'string' THEN
            RAISE 'durable: the value of tag % is no text', quote_literal(tag.key) USING ERRCODE = 'invalid_parameter_value';
        ELSIF tag.value <> '""' THEN
            PERFORM durable.checked(tag.value #>> '{}', 'the value of tag ' || quote_literal(tag.key), false);
        END IF;
    END LOOP;
    RETURN value;
END $$;

-- A new UUIDv7 (RFC 9562, section 5.7): the milliseconds in front of a random UUID, whose variant is right already.
CREATE FUNCTION durable.new_id() RETURNS uuid
LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT encode(set_byte(v.id, 6, (get_byte(v.id, 6) & 15) | 112), 'hex')::uuid
    FROM (
        SELECT overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(t.at) FROM 3) FROM 1 FOR 6) AS id
        FROM (SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint AS at) AS t
    ) AS v
$$;

-- Tells every process of the schema's when this transaction commits; the channel is the schema's name.
CREATE FUNCTION durable.tell() RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$ SELECT pg_notify(split_part(replace('durable.runs', '"', ''), '.', 1), 'W sql') $$;

-- Whether this is the database with this oid, on the server with this identifier (null: not known).
CREATE FUNCTION durable.is_here(database oid, system text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_database AS d WHERE d.datname = current_database() AND d.oid = database) THEN
        RETURN false;
    END IF;
    RETURN system IS NULL OR (SELECT c.system_identifier::text FROM pg_control_system() AS c) = system;
END $$;

-- Creates a run whose arguments were checked, and says what stands: this run, or the one that has its key or id, with what
-- a caller needs to see whether that is the same (its input where it has no hash to compare), or the active one under its
-- concurrency key.
--
-- The keys come first, as in every transaction that creates runs; one that somebody has inserted, or locked, and not
-- committed is waited for. What was in the way and is gone by then (it was pruned) is tried again; each statement here has
-- its own snapshot. Where the caller's isolation shows one snapshot only, that can fail, and is an error of that isolation.
-- A concurrency key is refused there: a turn could wait for a run that has ended since. See queries/turns.sql: when the
-- active run ends while this transaction holds the key, who sweeps after its commit passes the turn on.
CREATE FUNCTION durable.add_run(
    new_id uuid, new_workflow text, new_version text, new_queue text, new_key text, new_request text, new_input text,
    new_input_hash text, new_seed text, new_tags jsonb, new_ready_at timestamptz, new_delay float8, new_priority integer,
    new_limit_key text, new_concurrency_key text, may_wait boolean,
    OUT run_id uuid, OUT created boolean, OUT busy boolean, OUT request text, OUT workflow text, OUT input_hash text,
    OUT key text, OUT input text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    new_route integer;
    ready timestamptz := coalesce(new_ready_at, clock_timestamp() + make_interval(secs => new_delay));
    active uuid;
    keyed boolean := false;
BEGIN
    IF new_concurrency_key IS NOT NULL AND current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'durable: a concurrency key needs a transaction that is READ COMMITTED' USING ERRCODE = 'feature_not_supported';
    END IF;
    FOR turn IN 1 .. 10 LOOP
        SELECT r.id INTO new_route FROM durable.routes AS r
        WHERE r.workflow = new_workflow AND r.version = new_version AND r.queue = new_queue;
        IF new_route IS NULL THEN
            INSERT INTO durable.routes (workflow, version, queue) VALUES (new_workflow, new_version, new_queue)
            ON CONFLICT (workflow, version, queue) DO NOTHING;
            CONTINUE;
        END IF;
        run_id := new_id;
        created := false;
        busy := false;
        IF NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.shard = 0 AND r.id = new_id) THEN
            IF new_key IS NOT NULL THEN
                INSERT INTO durable.keys (shard, workflow, key, run_id) VALUES (0, new_workflow, new_key, new_id)
                ON CONFLICT (shard, workflow, key) DO NOTHING;
                keyed := FOUND;
                SELECT k.run_id INTO run_id FROM durable.keys AS k
                WHERE k.shard = 0 AND k.workflow = new_workflow AND k.key = new_key;
            END IF;
            IF run_id = new_id AND new_concurrency_key IS NOT NULL THEN
                INSERT INTO durable.turn_keys (shard, workflow, key, held_at)
                VALUES (0, new_workflow, new_concurrency_key, now())
                ON CONFLICT (shard, workflow, key) DO UPDATE SET held_at = excluded.held_at;
                SELECT t.run_id INTO active FROM durable.turns AS t
                JOIN durable.runs AS r ON r.shard = t.shard AND r.id = t.run_id AND r.ended_at IS NULL
                WHERE t.shard = 0 AND t.workflow = new_workflow AND t.key = new_concurrency_key
                ORDER BY t.number LIMIT 1;
                IF active IS NOT NULL AND NOT may_wait THEN
                    IF keyed THEN
                        DELETE FROM durable.keys AS k
                        WHERE k.shard = 0 AND k.workflow = new_workflow AND k.key = new_key AND k.run_id = new_id;
                    END IF;
                    run_id := active;
                    busy := true;
                    RETURN;
                END IF;
                INSERT INTO durable.turns (shard, run_id, workflow, key, waits, ready_at)
                VALUES (0, new_id, new_workflow, new_concurrency_key, active IS NOT NULL, ready)
                ON CONFLICT (shard, run_id) DO NOTHING;
            END IF;
            IF run_id = new_id THEN
                INSERT INTO durable.runs (shard, id, route, key, ready_at, seed, input_hash, request, tags, input, priority,
                                          limit_key, concurrency_key, linked)
                VALUES (0, new_id, new_route, new_key, CASE WHEN active IS NULL THEN ready END, new_seed, new_input_hash,
                        new_request, new_tags, new_input, new_priority, new_limit_key, new_concurrency_key,
                        new_concurrency_key IS NOT NULL)
                ON CONFLICT (shard, id) DO NOTHING;
                created := FOUND;
            END IF;
        END IF;
        SELECT r.request, o.workflow, r.input_hash, r.key, CASE WHEN '' IN (r.input_hash, new_input_hash) THEN r.input END
        INTO request, workflow, input_hash, key, input
        FROM durable.runs AS r JOIN durable.routes AS o ON o.id = r.route WHERE r.shard = 0 AND r.id = run_id;
        IF FOUND THEN
            PERFORM durable.tell();
            RETURN;
        END IF;
    END LOOP;
    RAISE 'durable: what was in the way cannot be seen here: another transaction has it' USING ERRCODE = 'serialization_failure';
END $$;

-- Sends a signal whose arguments were checked: 'accepted', 'finished' or 'not found'.
CREATE FUNCTION durable.add_signal(to_run uuid, new_id text, new_name text, new_data text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    has_ended boolean;
BEGIN
    IF EXISTS (SELECT FROM durable.signals AS s WHERE s.shard = 0 AND s.run_id = to_run AND s.id = new_id) THEN
        RETURN 'accepted';
    END IF;
    SELECT r.ended_at IS NOT NULL INTO has_ended FROM durable.runs AS r WHERE r.shard = 0 AND r.id = to_run;
    IF has_ended IS NOT FALSE THEN
        RETURN CASE WHEN has_ended THEN 'finished' ELSE 'not found' END;
    END IF;
    INSERT INTO durable.signals (shard, run_id, id, name, data) VALUES (0, to_run, new_id, new_name, new_data)
    ON CONFLICT (shard, run_id, id) DO NOTHING;
    IF FOUND THEN
        INSERT INTO durable.wakes (shard, run_id) VALUES (0, to_run);
        PERFORM durable.tell();
    END IF;
    RETURN 'accepted';
END $$;

-- Creates a run, which exists when the transaction commits; the id of the run that stands.
--
--     SELECT durable.trigger('order', '{"sku": "tea"}', key => 'ORD-123', tags => '{"tenant": "acme"}');
--
-- input null: none, which is not the JSON value null. key: one (workflow, key) is one run; with another input that is an
-- error (23505). run_id: a UUIDv7 of the caller's; again with the same is the same run. at: not before then; or delay: not
-- before so long from now. priority: 0 (first) to 9 (last). limit_key: whose share of the queue's limits it uses.
-- concurrency_key: at most one run of the workflow with this key is active; concurrency_policy: what becomes of a further
-- one: 'reject' is an error (55006), 'existing' gives the active run's id, 'queue' starts it when those before it have ended.
CREATE FUNCTION durable.trigger(
    workflow text, input json DEFAULT NULL, key text DEFAULT NULL, version text DEFAULT '1', queue text DEFAULT 'default',
    priority integer DEFAULT 5, at timestamptz DEFAULT NULL, delay interval DEFAULT NULL, tags jsonb DEFAULT NULL,
    run_id uuid DEFAULT NULL, limit_key text DEFAULT NULL, concurrency_key text DEFAULT NULL,
    concurrency_policy text DEFAULT 'reject')
RETURNS uuid
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made record;
    what text;
BEGIN
    IF priority IS NULL OR NOT priority BETWEEN 0 AND 9 THEN
        RAISE 'durable: priority is a whole number from 0 (first) to 9 (last)' USING ERRCODE = 'invalid_parameter_value';
    ELSIF at IS NOT NULL AND delay IS NOT NULL THEN
        RAISE 'durable: give at or delay, not both' USING ERRCODE = 'invalid_parameter_value';
    ELSIF at IS NOT NULL AND NOT at BETWEEN '0001-01-01 00:00:00+00' AND '9999-12-31 00:00:00+00' THEN
        RAISE 'durable: at is not in the years 1 to 9999' USING ERRCODE = 'invalid_parameter_value';
    ELSIF delay < '0' OR delay > '100 years' THEN
        RAISE 'durable: delay is negative, or more than 100 years' USING ERRCODE = 'invalid_parameter_value';
    ELSIF run_id IS NOT NULL AND (get_byte(uuid_send(run_id), 6) >> 4 <> 7 OR get_byte(uuid_send(run_id), 8) >> 6 <> 2) THEN
        RAISE 'durable: run_id % is not a UUIDv7; an identity of your own goes into key', run_id
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF (concurrency_policy IN ('reject', 'existing', 'queue')) IS NOT TRUE THEN
        RAISE 'durable: concurrency_policy is reject, existing or queue in a transaction of your own'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    made := durable.add_run(
        coalesce(run_id, durable.new_id()), durable.checked(workflow, 'the workflow''s name', true),
        durable.checked(version, 'the workflow''s version', true), durable.checked(queue, 'the queue''s name', true),
        CASE WHEN key IS NOT NULL THEN durable.checked(key, 'key', false) END,
        NULL, durable.checked_json(input, 'the input'), '', replace(gen_random_uuid()::text, '-', ''),
        durable.checked_tags(tags), at, coalesce(extract(epoch FROM delay)::float8, 0), priority,
        CASE WHEN limit_key IS NOT NULL THEN durable.checked(limit_key, 'limit_key', false) END,
        CASE WHEN concurrency_key IS NOT NULL THEN durable.checked(concurrency_key, 'concurrency_key', false) END,
        concurrency_policy = 'queue');
    IF made.busy AND concurrency_policy = 'reject' THEN
        RAISE 'durable: run % of workflow % is active under this concurrency key', made.run_id, quote_literal(workflow)
            USING ERRCODE = 'object_in_use';
    ELSIF made.created OR made.busy THEN
        RETURN made.run_id;
    END IF;
    what := CASE WHEN made.workflow <> trigger.workflow THEN 'belongs to workflow ' || quote_literal(made.workflow)
                 WHEN made.key IS DISTINCT FROM trigger.key THEN 'was triggered with another key'
                 WHEN made.input::jsonb IS DISTINCT FROM trigger.input::jsonb THEN 'was triggered with another input' END;
    IF what IS NOT NULL THEN
        RAISE 'durable: run %, which has this %, %', made.run_id, CASE WHEN made.run_id = run_id THEN 'id' ELSE 'key' END, what
            USING ERRCODE = 'unique_violation';
    END IF;
    RETURN made.run_id;
END $$;

-- Sends a signal to a run, when the transaction commits. signal_id: two signals to a run with the same id are one.
--
--     SELECT durable.signal('01890a5d-ac96-774b-bcce-b302099a8057', 'approval', '{"by": "ann"}');
CREATE FUNCTION durable.signal(run_id uuid, name text, payload json DEFAULT 'null', signal_id text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    sent text;
BEGIN
    sent := durable.add_signal(
        run_id,
        CASE WHEN signal_id IS NULL THEN durable.new_id()::text ELSE durable.checked(signal_id, 'signal_id', false) END,
        durable.checked(name, 'the signal''s name', true),
        coalesce(durable.checked_json(payload, 'the payload'), 'null'));
    IF sent = 'not found' THEN
        RAISE 'durable: there is no run %', coalesce(run_id::text, 'null') USING ERRCODE = 'no_data_found';
    ELSIF sent = 'finished' THEN
        RAISE 'durable: run % has ended: a signal would reach nobody', run_id
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
END $$;

-- Publishes an event for every run that waits for it, when the transaction commits; runs that begin to wait later still get
-- it for the retention.
CREATE FUNCTION durable.publish(topic text, payload json DEFAULT 'null', key text DEFAULT '', retention interval DEFAULT '1 hour')
RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    now timestamptz := clock_timestamp();
    named text := durable.checked(topic, 'the topic', true);
    keyed text := CASE WHEN key = '' THEN '' ELSE durable.checked(key, 'key', false) END;
BEGIN
    IF retention IS NULL OR retention < '0' OR retention > '100 years' THEN
        RAISE 'durable: retention is null, negative or more than 100 years' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at)
    VALUES (0, named, keyed, durable.new_id()::text, coalesce(durable.checked_json(payload, 'the payload'), 'null'), now,
            now + retention);
    INSERT INTO durable.stirred (shard, topic, key) VALUES (0, named, keyed);
    PERFORM durable.tell();
END $$;

REVOKE ALL ON FUNCTION durable.printable, durable.checked, durable.checked_json, durable.checked_tags, durable.new_id,
    durable.tell, durable.is_here, durable.add_run, durable.add_signal, durable.trigger, durable.signal, durable.publish
FROM PUBLIC;
