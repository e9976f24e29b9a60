-- What a role needs to run workflows, without any right to change the schema. Run it as the role that migrates, with
-- the name of your role in place of durable_app, after each migration that adds a table.

GRANT USAGE ON SCHEMA durable TO durable_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA durable TO durable_app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA durable TO durable_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA durable GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO durable_app;
ALTER DEFAULT PRIVILEGES IN SCHEMA durable GRANT USAGE ON SEQUENCES TO durable_app;

-- What an application's role needs beside that to trigger and signal in transactions of its own: with connection=…, or in
-- SQL (durable.trigger, durable.signal, durable.publish). The functions run with the rights of who calls them.
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA durable TO durable_app;

-- What the role that migrates needs: GRANT CREATE ON DATABASE app TO durable_owner;
-- or a schema that it owns: CREATE SCHEMA durable AUTHORIZATION durable_owner;
