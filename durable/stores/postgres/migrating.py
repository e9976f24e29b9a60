"""Brings the schema to the version of the code, from any number of processes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncConnection, AsyncCursor, errors

from durable.errors import ConfigurationError, SchemaTooNew
from durable.sql import Migration

_LOCK_PATIENCE = "60s"  # for another process that is migrating


async def version(connection: AsyncConnection[Any], schema: str) -> int:
    """The version of the schema, 0 when there is none. One read, no lock."""
    try:
        table = await _one(connection, "SELECT to_regclass($1)::text", f'"{schema}".migrations')
        if table is None:
            return 0
        return int(await _one(connection, f'SELECT coalesce(max(version), 0) FROM "{schema}".migrations'))  # noqa: S608
    except errors.InsufficientPrivilege as error:
        raise ConfigurationError(
            f"this role may not use schema {schema!r} ({error.diag.message_primary}): "
            "sql/postgres/grants.sql has the rights that it needs"
        ) from None


async def migrate(connection: AsyncConnection[Any], schema: str, migrations: Sequence[Migration]) -> None:
    """Apply what is missing, in one transaction, under a lock that others wait for.

    Raises:
        SchemaTooNew: The schema is newer than this code.
        ConfigurationError: The role may not change the schema.
    """
    async with connection.transaction():
        await _run(connection, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        await _run(connection, f"SET LOCAL lock_timeout = '{_LOCK_PATIENCE}'; SET LOCAL statement_timeout = 0")
        await _run(connection, "SELECT pg_advisory_xact_lock(hashtext('durable migrations'), hashtext($1))", schema)
        present = await version(connection, schema)
        check(present, len(migrations), schema)
        try:
            await _apply(connection, schema, migrations[present:])
        except errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                f"this role may not migrate schema {schema!r} ({error.diag.message_primary}): it needs "
                "GRANT CREATE ON DATABASE, or to own the schema; or let another role migrate and set auto_migrate=False"
            ) from None


def check(present: int, latest: int, schema: str) -> None:
    """Raises SchemaTooNew when the schema is ahead of this code."""
    if present > latest:
        raise SchemaTooNew(
            f"schema {schema!r} has version {present}, this code knows up to {latest}: deploy a newer durable"
        )


async def _apply(connection: AsyncConnection[Any], schema: str, missing: Sequence[Migration]) -> None:
    if missing and missing[0].version == 1:
        await _create_schema(connection, schema)
    for migration in missing:
        await _run(connection, migration.sql)
        record = f'INSERT INTO "{schema}".migrations (version, name) VALUES ($1, $2)'  # noqa: S608
        await _run(connection, record, str(migration.version), migration.name)


def script(schema: str, missing: Sequence[Migration]) -> str:
    """What ``migrate`` does, for psql: nothing of it when a part fails, or when others have done it meanwhile."""
    if not missing:
        return ""
    lock = f"SELECT pg_advisory_xact_lock(hashtext('durable migrations'), hashtext('{schema}'));"
    parts = ["\\set ON_ERROR_STOP on", "BEGIN ISOLATION LEVEL READ COMMITTED;", lock]
    if missing[0].version == 1:
        parts += [f'CREATE SCHEMA IF NOT EXISTS "{schema}";', f"{_table(schema)};"]
    for migration in missing:
        record = (
            f"INSERT INTO \"{schema}\".migrations (version, name) VALUES ({migration.version}, '{migration.name}');"  # noqa: S608
        )
        parts += [migration.sql.rstrip(), record]
    return "\n\n".join((*parts, "COMMIT;\n"))


async def _create_schema(connection: AsyncConnection[Any], schema: str) -> None:
    # Not IF NOT EXISTS at once: that asks for the right to create even when there is nothing to create.
    if await _one(connection, "SELECT 1 FROM pg_namespace WHERE nspname = $1", schema) is None:
        await _run(connection, f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    await _run(connection, _table(schema))


def _table(schema: str) -> str:
    return (
        f'CREATE TABLE IF NOT EXISTS "{schema}".migrations '
        "(version integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )


async def _one(connection: AsyncConnection[Any], sql: str, *parameters: str) -> Any:
    row = await (await _run(connection, sql, *parameters)).fetchone()
    return None if row is None else row[0]


async def _run(connection: AsyncConnection[Any], sql: str, *parameters: str) -> AsyncCursor[Any]:
    # Encoded, for the driver's types want a text to be a literal; without parameters it may be several statements.
    return await connection.execute(sql.encode(), parameters or None, prepare=False)
