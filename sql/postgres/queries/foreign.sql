-- On connections of the user's own: calls of the functions of 0006_functions.sql, when the connection is to this database.
-- Whether it is, decides before the function is called, which is given the row that says so.

-- name: database
-- Which database this is, and whether one may ask which server.
SELECT d.oid::text, has_function_privilege('pg_catalog.pg_control_system()', 'execute')
FROM pg_catalog.pg_database AS d WHERE d.datname = current_database()

-- name: server
SELECT system_identifier::text FROM pg_catalog.pg_control_system()

-- name: trigger_here
-- $1 database, $2 server, $3 id, $4 workflow, $5 version, $6 queue, $7 key, $8 request, $9 input, $10 its hash, $11 seed, $12
-- tags, $13 time ready in microseconds, $14 delay, $15 priority, $16 limit key, $17 concurrency key, $18 whether it
-- may wait for its turn.
SELECT made.run_id::text, made.created, made.busy, made.request, made.workflow, made.input_hash, made.key, made.input
FROM (SELECT 1 AS one WHERE durable.is_here($1::oid, $2::text) OFFSET 0) AS here
CROSS JOIN LATERAL durable.add_run(
    CASE here.one WHEN 1 THEN $3::uuid END, $4::text, $5::text, $6::text, $7::text, $8::text, $9::text, $10::text, $11::text,
    $12::jsonb, timestamptz 'epoch' + $13::bigint * interval '1 us', $14::float8, $15::integer, $16::text,
    $17::text, $18::boolean) AS made

-- name: signal_here
-- $1 database, $2 server, $3 run, $4 id, $5 name, $6 payload.
SELECT sent.answer
FROM (SELECT 1 AS one WHERE durable.is_here($1::oid, $2::text) OFFSET 0) AS here
CROSS JOIN LATERAL durable.add_signal(CASE here.one WHEN 1 THEN $3::uuid END, $4::text, $5::text, $6::text) AS sent (answer)
