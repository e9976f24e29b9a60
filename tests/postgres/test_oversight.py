"""What the store says about its database: what the census costs, and what may be wrong there."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import pytest

from durable import Engine
from durable.clock import HostClock
from durable.errors import ConfigurationError, SchemaTooNew
from durable.model import State
from durable.reports import Finding
from durable.sql import statements
from durable.stores.postgres import PostgresStore, literals, oversight
from durable.testing._servers import url_with
from durable.testing.conformance.harness import Worker, claimed, create, new_run, read
from durable.testing.postgres import runtime_role
from tests.postgres.conftest import Postgres

FINISHED = 50_000


async def of(store: PostgresStore, check: str) -> Finding:
    (found,) = [one for one in await store.examine() if one.check == check]
    return found


# -- what it costs --------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", ["old", "new"])
async def test_P45_a_census_reads_nothing_of_what_has_ended(apart: Postgres, statistics: str) -> None:
    """With the statistics of an empty table too: those that are there when a backlog has just been worked off."""
    store = await apart.fresh()
    apart.rows("ALTER TABLE durable.runs SET (autovacuum_enabled = false)")
    apart.rows("ANALYZE durable.runs")
    worker = await Worker.start(store)
    await create(store, *(new_run() for _ in range(30)))
    held, waiting, *_ = (await worker.claim(limit=10)).runs
    await worker.wait(waiting)
    apart.rows(
        "INSERT INTO durable.runs (shard, id, route, state, ended_at, claim) "
        f"SELECT 0, gen_random_uuid(), 1, 'completed', now(), 1 FROM generate_series(1, {FINISHED}) AS n"
    )
    if statistics == "new":
        apart.rows("VACUUM ANALYZE durable.runs")
    census = await store.census()
    assert dict(census.runs) == {("order", State.PENDING): 20, ("order", State.RUNNING): 9, ("order", State.WAITING): 1}
    text = statements("postgres", apart.schema)["census"].replace("$1", "'0'")
    ((explained,),) = apart.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
    plan: dict[str, Any] = explained[0]["Plan"]
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 400  # of more than 1,500 pages
    assert (await read(store, held.run.id)).state is State.RUNNING


async def test_a_schema_with_runs_from_before_is_counted_after_its_migration(apart: Postgres) -> None:
    store = await apart.bare()
    now, store._migrations = store._migrations, store._migrations[:6]
    await store.migrate()
    apart.rows("INSERT INTO durable.routes (workflow, version) VALUES ('order', '1')")
    for values in (
        "'waiting', NULL, NULL",
        "'paused', NULL, NULL",
        "'completed', NULL, now()",
        "'pending', now(), NULL",
    ):
        apart.rows(
            "INSERT INTO durable.runs (shard, id, route, state, ready_at, ended_at) "
            f"SELECT 0, gen_random_uuid(), id, {values} FROM durable.routes"
        )
    store._migrations = now
    await store.migrate()
    assert await store.schema_version() == store.latest_version
    expected = {("order", State.WAITING): 1, ("order", State.PAUSED): 1, ("order", State.PENDING): 1}
    assert dict((await store.census()).runs) == expected


# -- transactions ---------------------------------------------------------------------------------


async def test_a_transaction_that_stays_open_is_named_with_how_to_end_it(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await postgres.fresh()
    assert (await of(store, "transactions")).severity == "ok"
    monkeypatch.setattr(oversight, "_LONG", 0.0)
    with postgres.sql.transaction():
        ((pid,),) = postgres.rows("SELECT pg_backend_pid()")
        finding = await of(store, "transactions")
        assert (finding.severity, finding.count) == ("warning", 1)
        assert f"pg_terminate_backend({pid})" in finding.remedy
    assert (await of(store, "transactions")).severity == "ok"


async def test_a_role_that_is_not_shown_what_others_do_says_so(postgres: Postgres) -> None:
    await postgres.fresh()
    with runtime_role(postgres.url, postgres.schema) as url:
        store = await postgres.another(url)
        assert "pg_read_all_stats" in (await of(store, "transactions")).message


# -- the role -------------------------------------------------------------------------------------


async def test_rights_that_are_missing_are_named(apart: Postgres) -> None:
    await apart.fresh()
    with runtime_role(apart.url, apart.schema) as url:
        store = await apart.another(url)
        assert (await store.examine())[0] == Finding("role", "ok", "the role has the rights that it needs")
        ((user,),) = apart.rows(
            "SELECT DISTINCT grantee FROM information_schema.table_privileges "
            "WHERE table_schema = %s AND grantee <> current_user",
            apart.schema,
        )
        apart.rows(f"REVOKE DELETE ON durable.tokens FROM {user}")
        apart.rows(f"REVOKE USAGE ON SEQUENCE durable.signals_place_seq FROM {user}")
        (finding,) = await store.examine()
        assert (finding.check, finding.severity, finding.count) == ("role", "error", 2)
        assert "table tokens" in finding.message
        assert "sequence signals_place_seq" in finding.message
        assert "grants.sql" in finding.remedy


async def test_a_role_that_may_not_even_look_is_a_finding(postgres: Postgres) -> None:
    await postgres.fresh()
    with runtime_role(postgres.url, "elsewhere") as url:
        findings = await Engine(url, schema=postgres.schema).diagnose()
    postgres.rows("DROP SCHEMA elsewhere")
    assert [(one.check, one.severity) for one in findings] == [("connectivity", "ok"), ("role", "error")]


# -- the schema -----------------------------------------------------------------------------------


async def test_a_schema_that_is_missing_old_or_too_new_is_a_finding(apart: Postgres) -> None:
    store = await apart.bare()
    engine = Engine(apart.url, schema=apart.schema)

    async def schema() -> Finding:
        return (await engine.diagnose())[-1]

    assert "there is no schema" in (await schema()).message
    known, store._migrations = store._migrations, store._migrations[:6]
    await store.migrate()
    assert (await schema()).message == f"the schema has version 6, and this code needs version {len(known)}"
    assert "durable migrate" in (await schema()).remedy
    store._migrations = known
    await store.migrate()
    apart.rows("INSERT INTO durable.migrations (version, name) SELECT max(version) + 1, 'x' FROM durable.migrations")
    assert "deploy a newer version" in (await schema()).remedy
    with pytest.raises(SchemaTooNew, match="deploy a newer version"):
        await engine.repair()


async def test_indexes_that_are_missing_or_unusable_are_made_anew(apart: Postgres) -> None:
    store = await apart.fresh()
    definitions = "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = %s ORDER BY 1"
    before = apart.rows(definitions, apart.schema)
    apart.rows("DROP INDEX durable.runs_ready, durable.tokens_prefix")
    unusable = f"{apart.schema}.awaited_run"
    apart.rows("UPDATE pg_index SET indisvalid = false WHERE indexrelid = %s::regclass", unusable)
    finding = await of(store, "indexes")
    assert (finding.severity, finding.repairable, finding.count) == ("error", True, 3)
    assert finding.message.endswith("awaited_run, runs_ready, tokens_prefix")
    with runtime_role(apart.url, apart.schema) as url:
        weak = await apart.another(url)
        with pytest.raises(ConfigurationError, match="as the role that migrates"):
            await weak.repair()
    done = await store.repair()
    assert done == [f"made the index {name} anew" for name in ("awaited_run", "runs_ready", "tokens_prefix")]
    assert (await of(store, "indexes")).severity == "ok"
    assert apart.rows(definitions, apart.schema) == before


async def test_every_index_of_the_schema_is_known_to_the_check(apart: Postgres) -> None:
    store = await apart.fresh()
    made = apart.rows(
        "SELECT c.relname FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid "
        "WHERE c.relnamespace = %s::regnamespace AND NOT EXISTS "
        "(SELECT FROM pg_constraint AS k WHERE k.conindid = c.oid)",
        apart.schema,
    )
    assert {name for (name,) in made} == set(store._indexes())


# -- the server -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["on", "off"])
async def test_commits_that_are_not_synced_are_a_finding(postgres: Postgres, value: str) -> None:
    await postgres.fresh()
    store = await postgres.another(url_with(postgres.url, query=f"options=-csynchronous_commit%3D{value}"))
    finding = await of(store, "durability")
    assert ("synchronous_commit=off" in finding.message) == (value == "off")
    if value == "off":
        assert finding.severity in ("warning", "error")
        assert "on" in finding.remedy


@pytest.mark.parametrize("shift", [90, -90])
async def test_a_clock_that_is_off_is_a_finding(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    store = await postgres.fresh()
    assert (await of(store, "clock")).severity == "ok"

    class Off(HostClock):
        def now(self) -> datetime:
            return super().now() + timedelta(seconds=shift)

    monkeypatch.setattr(oversight, "HostClock", Off)
    finding = await of(store, "clock")
    assert finding.severity == "warning"
    assert "NTP" in finding.remedy


# -- repairing beside others ----------------------------------------------------------------------


async def test_a_repair_waits_for_nobody(postgres: Postgres) -> None:
    store = await postgres.fresh()
    _, one = await claimed(store)
    postgres.rows("UPDATE durable.runs SET owner = NULL, state = 'pending' WHERE id = %s", one.run.id)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", one.run.id)
        async with asyncio.timeout(4):  # less than any lock_timeout
            assert list(await store.repair()) == []
    assert len(list(await store.repair())) == 1


async def test_two_repairs_at_once_free_a_run_once(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), await postgres.another()]
    for _ in range(5):
        _, one = await claimed(stores[0])
        postgres.rows("UPDATE durable.runs SET owner = NULL, state = 'pending' WHERE id = %s", one.run.id)
        done = await asyncio.gather(*(store.repair() for store in stores))
        assert sum(len(lines) for lines in done) == 1
        worker = await Worker.start(stores[0])
        assert (await worker.take()).run.id == one.run.id


async def test_a_run_that_is_woken_before_its_repair_is_left_alone(postgres: Postgres) -> None:
    store = await postgres.fresh()
    _, one = await claimed(store)
    postgres.rows("UPDATE durable.runs SET owner = NULL, state = 'pending' WHERE id = %s", one.run.id)
    found = await store._stranded()
    assert found == [one.run.id]
    worker = await Worker.start(store)
    postgres.rows("UPDATE durable.runs SET ready_at = now() WHERE id = %s", one.run.id)
    again = await worker.take()
    (freed,) = await store._use.write("free_stranded", store._use.call("free_stranded", "0", literals.ids(found)))
    assert freed == []
    assert (await read(store, one.run.id)).owner == worker.id == again.run.owner
