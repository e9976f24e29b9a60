-- The schema's version. These two may meet a file that holds no table of ours.

-- name: has_schema
SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'durable_schema')

-- name: schema_version
SELECT coalesce(max(version), 0) FROM durable_schema

-- name: migrated
INSERT INTO durable_schema (version, name, applied_at) VALUES (:version, :name, :now)

-- name: data_version
PRAGMA data_version
