"""What the store says about its file: what the census costs, and what may be wrong there."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from durable import Engine
from durable.errors import SchemaOutdated
from durable.model import State
from durable.reports import Finding
from durable.sql import migrations
from durable.stores.sqlite import SQLiteStore, oversight
from durable.testing.conformance.harness import ROUTE, Worker, create, new_run
from tests.sqlite.test_plans import Counted

MANY, FEW = 20_000, 200


async def of(store: SQLiteStore, check: str) -> Finding:
    (found,) = [one for one in await store.examine() if one.check == check]
    return found


# -- what it costs --------------------------------------------------------------------------------


async def _costs(path: Path, finished: int) -> tuple[int, int]:
    """Instructions of a census, and of a claim of one run, beside so many runs that have ended and a few others."""
    store = SQLiteStore(path)
    await store.open()
    await store.migrate()
    ids = await create(store, *(new_run() for _ in range(30)))
    worker = await Worker.start(store)
    _, waiting, *_ = (await worker.claim(limit=10)).runs
    await worker.wait(waiting)
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(
        "INSERT INTO durable_runs (id, shard, workflow, version, state, created_at, ended_at, input_hash, seed, tags) "
        "SELECT 'done' || value, 0, 'order', '1', 'completed', 0, value, 'h', 's', '{}' "
        f"FROM (WITH RECURSIVE i (value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM i WHERE value < {finished}) "
        "SELECT value FROM i)"
    )
    connection.close()
    counted = Counted(store)
    census = await counted.cost(store.census())
    expected = {("order", State.PENDING): 20, ("order", State.RUNNING): 9, ("order", State.WAITING): 1}
    assert dict((await store.census()).runs) == expected
    claim = await counted.cost(store.claim_run(worker.id, ROUTE, ids[-1], "b", {}))
    await store.close()
    return census, claim


async def test_P45_a_census_and_a_claim_of_one_run_cost_nothing_for_what_has_ended(tmp_path: Path) -> None:
    few, many = await _costs(tmp_path / "few.db", FEW), await _costs(tmp_path / "many.db", MANY)
    for small, large in zip(few, many, strict=True):
        assert large < small + 300, (few, many)


async def test_P45_a_claim_of_one_run_does_not_look_at_others_that_are_ready(tmp_path: Path) -> None:
    costs: list[int] = []
    for number in (FEW, 5_000):
        store = SQLiteStore(tmp_path / f"{number}.db")
        await store.open()
        await store.migrate()
        ids = await create(store, *(new_run() for _ in range(number)))
        worker = await Worker.start(store)
        costs.append(await Counted(store).cost(store.claim_run(worker.id, ROUTE, ids[-1], "b", {})))
        assert len(await store.owned(worker.id)) == 1
        await store.close()
    assert costs[1] < costs[0] + 500, costs


# -- the file -------------------------------------------------------------------------------------


async def test_a_file_without_a_schema_or_with_an_old_one_is_a_finding(path: Path) -> None:
    engine = Engine(f"sqlite:///{path}")
    assert "there is no schema" in (await engine.diagnose())[-1].message
    with pytest.raises(SchemaOutdated, match="durable migrate"):
        await engine.repair()
    await engine.migrate()
    assert {one.severity for one in await engine.diagnose()} == {"ok"}
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("DELETE FROM durable_schema WHERE version = (SELECT max(version) FROM durable_schema)")
    connection.close()
    latest = len(migrations("sqlite"))
    (*_, last) = await engine.diagnose()
    assert last.message == f"the schema has version {latest - 1}, and this code needs version {latest}"


async def test_a_file_that_cannot_be_opened_is_a_finding(tmp_path: Path) -> None:
    (finding,) = await Engine(f"sqlite:///{tmp_path / 'none' / 'durable.db'}").diagnose()
    assert (finding.check, finding.severity) == ("connectivity", "error")
    assert "does not exist" in finding.message
    (tmp_path / "text.db").write_text("no database at all, whatever its name says" * 100)
    (finding,) = await Engine(f"sqlite:///{tmp_path / 'text.db'}").diagnose()
    assert "not a SQLite database" in finding.message


async def test_parts_of_the_schema_that_are_missing_are_made_anew(store: SQLiteStore, path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    before = connection.execute(query).fetchall()
    for part in ("INDEX durable_runs_resting", "TRIGGER durable_signals_wake", "INDEX durable_tokens_prefix"):
        connection.execute(f"DROP {part}")
    finding = await of(store, "indexes")
    assert (finding.severity, finding.repairable, finding.count) == ("error", True, 3)
    assert "durable_signals_wake" in finding.message
    assert (await Engine(f"sqlite:///{path}").diagnose())[-1] == finding  # what needs the indexes is not asked
    done = await store.repair()
    assert len(done) == 3
    assert connection.execute(query).fetchall() == before
    connection.close()
    assert (await of(store, "indexes")).severity == "ok"


async def test_every_index_and_trigger_of_the_schema_is_known_to_the_check(store: SQLiteStore, path: Path) -> None:
    connection = sqlite3.connect(path)
    query = "SELECT name FROM sqlite_master WHERE type IN ('index', 'trigger') AND sql IS NOT NULL"
    assert {name for (name,) in connection.execute(query)} == set(oversight._parts())
    connection.close()


async def test_a_damaged_file_is_a_finding(store: SQLiteStore, path: Path) -> None:
    assert (await of(store, "integrity")).severity == "ok"
    await create(store, *(new_run(input='"' + "x" * 3000 + '"') for _ in range(100)))
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    ((page,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'durable_keys'").fetchall()
    connection.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    finding = await of(store, "integrity")
    assert (finding.severity, finding.repairable) == ("error", False)
    assert "restore a backup" in finding.remedy


async def test_a_log_that_somebody_keeps_from_being_taken_back_is_a_finding(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await of(store, "transactions")).severity == "ok"
    await create(store)
    monkeypatch.setattr(oversight, "_LARGE_LOG", 1000)
    finding = await of(store, "transactions")
    assert (finding.severity, finding.repairable) == ("warning", False)
