"""``durable bench``: figures of the configured database, and nothing left in it."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from durable.cli.bench import Figures
from durable.testing.postgres import PostgresServer
from tests.cli.command import Command, exit_code


def test_it_measures_a_file_beside_the_users_own(durable: Command) -> None:
    before = files(durable.directory)
    found = durable("bench", "--seconds", "0.1", "--json").json(Figures)
    assert found["database"] == durable.url
    assert [figure["unit"] for figure in found["figures"]] == ["ms", "ms", "steps/s", "runs/s", "runs/s"]
    assert all(figure["value"] > 0 for figure in found["figures"])
    assert files(durable.directory) == before


def test_it_measures_postgres_in_a_schema_that_it_drops(durable: Command, postgres_server: PostgresServer) -> None:
    name = f"durable_bench_{os.getpid()}"
    url = postgres_server.database(name)
    answer = durable("bench", "--seconds", "0.1", "-d", url)
    assert "steps/s" in answer.out
    password = url.split("@")[0].rpartition(":")[2]
    assert password not in answer.out + answer.err
    with psycopg.connect(url) as connection:
        left = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'durable%'").fetchall()
    postgres_server.drop_database(name)
    assert left == []


def test_a_bench_that_is_broken_off_leaves_nothing_either(durable: Command) -> None:
    before = files(durable.directory)
    terminal = durable.terminal("bench", "--seconds", "60")
    terminal.expect("Measuring")
    terminal.sendintr()
    assert exit_code(terminal) == 130
    assert files(durable.directory) == before


def test_a_database_that_does_not_answer_is_named(durable: Command) -> None:
    answer = durable("bench", "-d", "postgresql://me:geheim@127.0.0.1:1/app", code=75)
    assert "cannot connect to postgresql://me:***@127.0.0.1:1/app" in answer.err
    assert "left behind" not in answer.err


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {"runs.db-wal", "runs.db-shm"}
