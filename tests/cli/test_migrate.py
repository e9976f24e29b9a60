"""``durable migrate``: by itself, by hand, and only asked."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import psycopg
import pytest

from durable import Engine
from durable.testing.postgres import PostgresServer
from tests.cli.command import Command
from tests.cli.flows import run

_numbers = count(1)


@pytest.fixture
def empty(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database."""
    name = f"durable_migrate_{os.getpid()}_{next(_numbers)}"
    yield postgres_server.database(name)
    postgres_server.drop_database(name)


def test_a_schema_is_checked_made_and_found_up_to_date(durable: Command, empty: str) -> None:
    latest = latest_of(empty)
    assert durable("migrate", "--check", "-d", empty, code=1).out == (
        f"The schema has version 0, this code needs {latest}: run durable migrate.\n"
    )
    assert durable("migrate", "-d", empty).out == f"The schema was made: version {latest}.\n"
    for arguments in (("migrate",), ("migrate", "--check")):
        assert durable(*arguments, "-d", empty).out == f"The schema is up to date: version {latest}.\n"
    answer = durable("migrate", "--sql", "-d", empty)
    assert answer.out == ""
    assert "nothing to do" in answer.err


def test_a_schema_that_is_newer_than_the_code_is_refused(durable: Command, empty: str) -> None:
    durable("migrate", "-d", empty)
    with psycopg.connect(empty) as connection:
        connection.execute("INSERT INTO durable.migrations (version, name) VALUES (9999, '9999_of_tomorrow')")
    for arguments in ((), ("--check",), ("--sql",)):
        assert "deploy a newer" in durable("migrate", *arguments, "-d", empty, code=1).err


@pytest.mark.parametrize("schema", ["durable", "other_place"])
def test_the_sql_does_what_migrating_does_on_postgres(durable: Command, empty: str, schema: str) -> None:
    script = durable("migrate", "--sql", "-d", empty, "--schema", schema).out
    assert script == durable("migrate", "--sql", "--from", "0", "-d", "postgresql://nowhere/x", "--schema", schema).out
    assert script.startswith("\\set ON_ERROR_STOP on\n"), "psql goes on after an error unless it is told not to"
    by_hand = script.partition("\n")[2].encode()
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(by_hand)
        with pytest.raises(psycopg.Error):  # twice: nothing of it
            connection.execute(by_hand)
        connection.execute("ROLLBACK")
        made = shape(connection, schema)
        connection.execute(f'DROP SCHEMA "{schema}" CASCADE'.encode())
        durable("migrate", "-d", empty, "--schema", schema)
        assert made == shape(connection, schema)
    assert len(made) > 50


def test_the_sql_goes_on_from_the_version_that_is_there(durable: Command, empty: str) -> None:
    steps = [durable("migrate", "--sql", "--from", str(n), "-d", empty).out for n in range(latest_of(empty))]
    assert all(later in earlier for earlier, later in zip(map(body, steps), map(body, steps[1:]), strict=False))
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(steps[0].replace(body(steps[1]), "").partition("\n")[2].encode())  # the first one alone
    assert "has version 1" in durable("migrate", "--check", "-d", empty, code=1).out
    assert durable("migrate", "--sql", "-d", empty).out == steps[1]
    assert durable("migrate", "-d", empty).out == f"The schema was migrated from version 1 to {len(steps)}.\n"


def test_the_sql_does_what_migrating_does_on_sqlite(durable: Command) -> None:
    by_hand, by_itself = durable.directory / "hand.db", durable.directory / "itself.db"
    script = durable("migrate", "--sql", "-d", f"sqlite:///{by_hand}").out
    with sqlite3.connect(by_hand) as connection:
        connection.executescript(script)
    durable("migrate", "-d", f"sqlite:///{by_itself}")
    assert "up to date" in durable("migrate", "--check", "-d", f"sqlite:///{by_hand}").out
    assert sqlite_shape(by_hand) == sqlite_shape(by_itself)
    assert by_itself.stat().st_mode & 0o777 == 0o600


def test_misuse_is_told(durable: Command) -> None:
    assert "exclude each other" in durable("migrate", "--sql", "--check", code=2).err
    assert "--from goes with --sql" in durable("migrate", "--from", "1", code=2).err
    assert "and not 99" in durable("migrate", "--sql", "--from", "99", code=1).err
    down = durable("migrate", "-d", "postgresql://me:geheim@127.0.0.1:1/app", code=75)
    assert "cannot connect to postgresql://me:***@127.0.0.1:1/app" in down.err
    assert "geheim" not in down.err
    missing = durable.directory / "missing.db"
    assert "there is no file" in durable("migrate", "--check", "-d", f"sqlite:///{missing}", code=1).err
    assert not missing.exists()


def latest_of(url: str) -> int:
    return run(Engine(url).schema_version())[1]


def body(script: str) -> str:
    """The migrations in it."""
    return re.split(r"\n\n", script.partition("pg_advisory_xact_lock")[2], maxsplit=1)[1].removesuffix("COMMIT;\n")


def shape(connection: psycopg.Connection[tuple[str, ...]], schema: str) -> list[tuple[str, ...]]:
    """All columns, indexes, constraints and functions."""
    return connection.execute(
        """
        SELECT table_name, column_name, data_type || coalesce(column_default, '') || is_nullable
          FROM information_schema.columns WHERE table_schema = %(s)s
        UNION ALL SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = %(s)s
        UNION ALL SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = %(s)s::regnamespace
        UNION ALL SELECT proname, '', prosrc FROM pg_proc WHERE pronamespace = %(s)s::regnamespace
        UNION ALL SELECT relname, '', reloptions::text FROM pg_class WHERE relnamespace = %(s)s::regnamespace
        ORDER BY 1, 2, 3
        """,
        {"s": schema},
    ).fetchall()


def sqlite_shape(path: Path) -> list[tuple[str, ...]]:
    with sqlite3.connect(path) as connection:
        found: list[tuple[str, ...]] = connection.execute(
            "SELECT type, name, sql FROM sqlite_master ORDER BY 2"
        ).fetchall()
        return found + connection.execute("SELECT version, name FROM durable_schema").fetchall()
