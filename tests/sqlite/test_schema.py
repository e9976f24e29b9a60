"""The schema against the state machine, the migrations, and the statements against both."""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path

import pytest

from durable.errors import ConfigurationError, SchemaTooNew
from durable.model import State
from durable.sql import Migration, migrations, statements
from durable.states import CLAIMABLE, EXECUTING, Event, after
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import ROUTE, new_runs


def database(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def insert(connection: sqlite3.Connection, run_id: str, state: str, owner: str | None = None) -> None:
    connection.execute(
        "INSERT INTO durable_runs (id, shard, workflow, version, state, created_at, ready_at, owner, claim, "
        "input_hash, seed, tags) VALUES (?, 0, 'order', '1', ?, 0, ?, ?, 1, 'h', 's', '{}')",
        (run_id, state, None if owner else 0, owner),
    )


async def test_the_check_constraint_knows_exactly_the_states(store: SQLiteStore, path: Path) -> None:
    connection = database(path)
    for state in State:
        insert(connection, state, state)
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        insert(connection, "other", "queued")
    connection.close()


async def test_a_claim_makes_the_transitions_of_the_table(store: SQLiteStore, path: Path) -> None:
    connection = database(path)
    for state in CLAIMABLE:
        insert(connection, state, state)
    connection.close()
    await store.register("w", 60)
    runs = [one.run for one in (await store.claim("w", [ROUTE], 100, "b", {})).runs]
    assert {run.id: run.state for run in runs} == {state: after(state, Event.CLAIM) for state in CLAIMABLE}


@pytest.mark.parametrize(("limit", "event"), [(5, Event.TAKEOVER), (1, Event.GIVE_UP), (None, Event.RELEASE)], ids=str)
async def test_a_lost_lease_makes_the_transitions_of_the_table(
    store: SQLiteStore, path: Path, limit: int | None, event: Event
) -> None:
    connection = database(path)
    for state in EXECUTING:
        insert(connection, state, state, "w")
    connection.execute(
        "INSERT INTO durable_claims SELECT 'w', 'b', json_group_array(json_array(n, 1)) FROM durable_runs"
    )
    connection.close()
    await store.register("w", -1)
    if limit is None:
        await store.unregister("w")
    else:
        assert (await store.reap(limit)).released == len(EXECUTING)
    runs = await store.get_runs(list(EXECUTING))
    assert {run.id: run.state for run in runs} == {state: after(state, event) for state in EXECUTING}


async def test_the_history_is_readable_in_the_shell(store: SQLiteStore, path: Path) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    await store.register("w", 0)
    await store.claim("w", [ROUTE], 1, "b", {})
    await store.reap()
    connection = database(path)
    found = connection.execute("SELECT run_id, seq, key, kind, failed, worker FROM durable_history").fetchall()
    connection.close()
    assert found == [(new.id, 1, "/takeover/1", "takeover", 0, "w")]


async def test_P42_a_migration_that_fails_leaves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(2, "0002_broken", "CREATE TABLE half (n INTEGER);\nCREATE TABLE half (n INTEGER);")
    store = SQLiteStore(path)
    await store.open()
    with monkeypatch.context() as patch:
        with_broken = [*migrations("sqlite"), broken]
        patch.setattr("durable.stores.sqlite.store.migrations", {"sqlite": with_broken}.get)
        with pytest.raises(ConfigurationError, match="already exists"):
            await store.migrate()
    assert await store.schema_version() == 0
    connection = database(path)
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()
    await store.migrate()
    assert await store.schema_version() == store.latest_version
    await store.close()


async def test_P42_a_newer_schema_is_refused(store: SQLiteStore, path: Path) -> None:
    connection = database(path)
    connection.execute("INSERT INTO durable_schema VALUES (99, '0099_future', 0)")
    connection.close()
    with pytest.raises(SchemaTooNew, match="99"):
        await store.migrate()
    assert await store.schema_version() == 99


async def test_asking_for_the_version_waits_for_no_writer(store: SQLiteStore, path: Path) -> None:
    connection = database(path)
    connection.execute("BEGIN IMMEDIATE")
    assert await store.schema_version() == store.latest_version
    connection.close()


async def test_our_tables_live_beside_an_applications_own(path: Path) -> None:
    connection = database(path)
    connection.execute("CREATE TABLE runs (id TEXT)")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    store = SQLiteStore(path)
    await store.open()
    assert await store.schema_version() == 0
    await store.migrate()
    (new,) = new_runs(1)
    assert (await store.create_runs([new]))[0].created
    await store.close()
    connection = database(path)
    names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE sql IS NOT NULL")}
    assert {name for name in names if not name.startswith(("durable_", "sqlite_"))} == {"runs"}
    assert connection.execute("PRAGMA user_version").fetchone() == (7,)
    connection.close()


async def test_every_statement_compiles(store: SQLiteStore) -> None:
    assert store._connection is not None
    raw = store._connection._raw
    for name, sql in statements("sqlite").items():
        if name.startswith("session_"):
            kind, created = sql[sql.index("CREATE TEMP ") :].split(maxsplit=4)[2:4]
            found = raw.execute("SELECT type FROM sqlite_temp_master WHERE name = ?", (created,)).fetchone()
            assert found == (kind.lower(),), name
        elif not sql.startswith("PRAGMA"):
            assert raw.execute(f"EXPLAIN {sql}", _nulls(sql)).fetchall(), name


def _nulls(sql: str) -> tuple[None, ...] | dict[str, None]:
    if positional := sql.count("?"):
        return (None,) * positional
    return dict.fromkeys(re.findall(r":(\w+)", sql))
