"""The statements have plans that stay good, whatever the statistics said when they were prepared.

A worker prepares a statement once and keeps its plan until statistics change, while the table grows from nothing
to 20,000 rows. So each is prepared (as a generic plan, which is what a connection ends up with) on an empty, a
queued and a finished table, and its plan may only probe indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from durable import states
from durable.model import RunFilter, RunWrite, State
from durable.sql import statements
from durable.stores.postgres.wire import Call
from durable.testing.conformance.harness import Worker, create, new_run, record
from tests.postgres.conftest import Postgres

ROWS = 20_000
LARGE = {
    *("runs", "history", "keys", "places", "freed", "blocked", "limit_keys", "turns", "turn_keys", "debounces"),
    *("signals", "wakes", "events", "awaited", "emits", "effects", "schedules", "ticks"),
}
TABLES = (*sorted(LARGE), "passed", "stirred", "claims", "requests", "workers", "routes")
HOT = [
    "commit_writes",
    "stored_runs",
    "stored_records",
    "claim_runs",
    "claim_histories",
    "claim_rest",
    "look",
    "owned",
    "renew",
    "release_orphans",
    "forget_claims",
    "add_keys",
    "add_runs",
    "standing",
    "outlines",
    "asked_run",
    "latest_request",
    "change_run",
    "add_request",
    "tell_worker",
    "get_runs",
    "ended_runs",
    "find_key",
    "history",
    "hold_queues",
    "promote_keys",
    "claim_limited",
    "limits_rest",
    "leave_queues",
    "hold_turns",
    "take_turns",
    "keep_turn",
    "stir_turns",
    "pass_turns",
    "hold_debounce",
    "merge_trigger",
    "take_effect",
    "effect_taken",
    "end_effects",
    "free_effects",
    "record_in_transaction",
    "drain_wakes",
    "claim_signals",
    "unread_runs",
    "unread_signals",
    "add_signals",
    "sent",
    "add_first_signal",
    "add_children",
    "consume_signals",
    "lost_runs",
    "tell_parents",
    "add_events",
    "await_events",
    "log_emits",
    "emitted",
]

FILL = {
    "empty": "",
    "queued": "INSERT INTO durable.runs (shard, id, route, ready_at) "
    f"SELECT 0, gen_random_uuid(), n % 3 + 1, now() - n * interval '1 s' FROM generate_series(1, {ROWS}) AS n",
    "finished": "INSERT INTO durable.runs (shard, id, route, state, ended_at, owner, claim) "
    f"SELECT 0, gen_random_uuid(), n % 3 + 1, 'completed', now(), NULL, 1 FROM generate_series(1, {ROWS}) AS n",
}
RECORDS = """
    INSERT INTO durable.history (shard, run_id, failed, compensable, seq, at, duration, attempt, begun, kind, key)
    SELECT shard, id, false, false, 1, now(), 0, 1, 0, 'step', 'charge' FROM durable.runs;
    INSERT INTO durable.keys SELECT shard, 'order', id::text, id FROM durable.runs;
    INSERT INTO durable.signals (shard, run_id, id, name, data)
    SELECT shard, id, 's1', 'approval', '1' FROM durable.runs;
    INSERT INTO durable.wakes (shard, run_id) SELECT shard, id FROM durable.runs LIMIT 20000;
    INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at)
    SELECT shard, 'paid', 'order', id::text, '1', now(), now() FROM durable.runs LIMIT 20000;
    INSERT INTO durable.awaited (shard, run_id, topic, key, since)
    SELECT shard, id, 'paid', 'order', now() FROM durable.runs LIMIT 20000;
    INSERT INTO durable.emits (shard, run_id, n, key, at, data)
    SELECT shard, id, row_number() OVER (), 'e', now(), '1' FROM durable.runs LIMIT 20000;
    INSERT INTO durable.claims (worker, batch, shard, run_ids, replay)
    SELECT gen_random_uuid(), gen_random_uuid(), 0, array_agg(id), '{}' FROM (SELECT id FROM durable.runs LIMIT 500) r;
"""


def parameters(sql: str) -> int:
    return max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def faults(plan: dict[str, Any]) -> list[str]:
    """What in ``plan`` would grow with the tables."""
    found: list[str] = []
    for node in nodes(plan):
        kind = node["Node Type"]
        inside = list(nodes(node))
        large = {inner.get("Relation Name") for inner in inside} & LARGE
        few = any(i["Node Type"] in {"Function Scan", "CTE Scan"} or i.get("Relation Name") == "claims" for i in inside)
        if kind == "Seq Scan" and node["Relation Name"] in LARGE:
            found.append(f"scans all of {node['Relation Name']}")
        if kind in {"Hash Join", "Merge Join", "Hash"} and large:
            found.append(f"{kind} over {large}")
        if kind == "Sort" and large and not few and "seq" not in "".join(node["Sort Key"]):
            found.append(f"sorts {large}")
        if kind.endswith("Index Scan") and "Index Cond" not in node:
            found.append(f"reads all of index {node['Index Name']}")
    return found


class Session:
    """A connection that has prepared every statement, and keeps the plans it then made."""

    def __init__(self, url: str, schema: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self._connection.execute("SET plan_cache_mode = force_generic_plan")
        self._counts: dict[str, int] = {}
        for name, sql in statements("postgres", schema).items():
            self._connection.execute(f"PREPARE {name} AS {sql}".encode())
            self._counts[name] = max((int(number) for number in re.findall(r"\$(\d+)", sql)), default=0)
            self.plan(name)

    def plan(self, name: str) -> dict[str, Any]:
        return self._explain("", name, ["NULL"] * self._counts[name])

    def run(self, name: str, *values: str) -> dict[str, Any]:
        """Execute and undo it; the plan with what it really read."""
        with self._connection.transaction(force_rollback=True):
            return self._explain("ANALYZE, BUFFERS, ", name, [f"'{value}'" for value in values])

    def _explain(self, options: str, name: str, values: list[str]) -> dict[str, Any]:
        arguments = f"({', '.join(values)})" if values else ""
        row = self._connection.execute(f"EXPLAIN ({options}FORMAT JSON) EXECUTE {name}{arguments}".encode()).fetchone()
        assert row is not None
        plan: dict[str, Any] = row[0][0]["Plan"]
        return plan

    def close(self) -> None:
        self._connection.close()


def fill(postgres: Postgres, situation: str) -> None:
    if FILL[situation]:
        postgres.rows(FILL[situation])
        postgres.rows(RECORDS)


@pytest.fixture
async def still(apart: Postgres) -> Postgres:
    """A new schema whose statistics change only when a test says so."""
    await apart.fresh()
    apart.rows("INSERT INTO durable.routes (workflow, version) SELECT 'w' || n, '1' FROM generate_series(1, 3) AS n")
    for table in TABLES:
        apart.rows(f"ALTER TABLE durable.{table} SET (autovacuum_enabled = false)")
    return apart


def analyze(postgres: Postgres) -> None:
    for table in TABLES:
        postgres.rows(f"VACUUM ANALYZE durable.{table}")


@pytest.mark.parametrize("situation", FILL)
async def test_P45_hot_statements_probe_indexes_only(still: Postgres, situation: str) -> None:
    fill(still, situation)
    analyze(still)
    session = Session(still.url, still.schema)
    found = {name: faults(session.plan(name)) for name in HOT}
    session.close()
    assert {name: fault for name, fault in found.items() if fault} == {}


@pytest.mark.parametrize("situation", ["queued", "finished"])
async def test_P45_a_plan_made_on_empty_tables_reads_little_of_full_ones(still: Postgres, situation: str) -> None:
    analyze(still)
    session = Session(still.url, still.schema)
    fill(still, situation)
    worker, batch = str(uuid4()), str(uuid4())
    ((limits,),) = still.rows(
        "INSERT INTO durable.workers SELECT %s, unnest(ARRAY['claim', 'flush']), now() + interval '1 h', version "
        "FROM durable.limits_version RETURNING limits::text",
        worker,
    )[:1]
    claim = session.run("claim_runs", worker, "0", "{1,2,3}", "10", batch, "{}", "{}", "{}", limits)
    next_ = session.run("claim_rest", "0", "{1,2,3}", worker, batch)
    session.close()
    assert claim["Actual Rows"] == (10 if situation == "queued" else 0)
    assert claim["Shared Hit Blocks"] + claim["Shared Read Blocks"] < 700
    assert next_["Shared Hit Blocks"] + next_["Shared Read Blocks"] < 300


@pytest.mark.parametrize("situation", ["queued", "finished"])
async def test_P49_a_page_of_a_list_walks_the_primary_key(still: Postgres, situation: str) -> None:
    fill(still, situation)
    analyze(still)
    store = await still.another()
    found = await store.list_runs(RunFilter(), 100, None)
    assert [run.id for run in found] == sorted((run.id for run in found), reverse=True)
    text = statements("postgres", still.schema)["list_runs"]
    values = {1: "0", 2: "ffffffff-ffff-ffff-ffff-ffffffffffff", 9: "100"}
    for number in range(12, 0, -1):
        text = text.replace(f"${number}", f"'{values[number]}'" if number in values else "NULL")
    ((explained,),) = still.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
    assert faults(explained[0]["Plan"]) == []
    assert len(found) == 100
    assert explained[0]["Plan"]["Shared Hit Blocks"] < 1000


@pytest.mark.parametrize("situation", ["queued", "finished"])
async def test_P45_what_is_never_prepared_is_planned_well_with_old_statistics(still: Postgres, situation: str) -> None:
    """Pruning, deleting and setting aside are planned for the tables as they are, and reading stays in bounds."""
    analyze(still)  # empty
    fill(still, situation)
    ((ids,),) = still.rows(
        "SELECT array_agg(id::text) FROM (SELECT id FROM durable.runs WHERE shard = 0 LIMIT 100) AS r"
    )
    some, zeros = "{" + ",".join(ids) + "}", "{" + ",".join(["0"] * 100) + "}"
    keys = "\x1e".join(["charge"] * 100)
    first, last = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"
    blocks = {
        "ended_before": _read(still, "ended_before", "0", first, last, "2100-01-01"),
        "delete_runs": _read(still, "delete_runs", "0", some, "2100-01-01"),
        "set_aside": _read(still, "set_aside", zeros, some, zeros, "\x1e", "\x1d", keys),
    }
    assert blocks["ended_before"] < 6_000  # a page for each of 5,000 runs, whose ids are random here
    assert blocks["delete_runs"] < 6_000  # 60 a run at most
    assert blocks["set_aside"] < 6_000


def _read(postgres: Postgres, name: str, *values: str) -> int:
    """How many pages the statement touches, planned for these values; undone."""
    text = statements("postgres", postgres.schema)[name]
    for number, value in reversed(list(enumerate(values, 1))):
        text = text.replace(f"${number}", f"'{value}'")
    with postgres.sql.transaction(force_rollback=True):
        ((explained,),) = postgres.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
    plan: dict[str, Any] = explained[0]["Plan"]
    assert faults(plan) == []
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_P45_what_a_worker_is_told_costs_a_probe_whatever_others_are_told(still: Postgres) -> None:
    analyze(still)
    session = Session(still.url, still.schema)
    fill(still, "queued")
    worker = str(uuid4())
    still.rows("INSERT INTO durable.workers SELECT %s, unnest(ARRAY['claim', 'flush']), now() + interval '1 h'", worker)
    told = "INSERT INTO durable.requests (shard, worker, run_id, wakes)"
    still.rows(f"{told} SELECT 0, gen_random_uuid(), id, 1 FROM durable.runs")
    still.rows(f"{told} SELECT 0, %s, id, 1 FROM durable.runs LIMIT 10", worker)
    rest = session.run("claim_rest", "0", "{}", worker, str(uuid4()))
    session.close()
    assert rest["Shared Hit Blocks"] + rest["Shared Read Blocks"] < 200


async def test_P45_a_drain_reads_little_of_many_wakes_and_nothing_of_those_that_are_gone(still: Postgres) -> None:
    """With the plan of an empty table, and without a vacuum: what a scan found dead, the next one does not look at."""
    analyze(still)
    session = Session(still.url, still.schema)
    fill(still, "queued")
    full = session.run("drain_wakes", "0")
    still.rows("DELETE FROM durable.wakes")
    session.run("drain_wakes", "0")
    empty = session.run("drain_wakes", "0")
    session.close()
    assert full["Shared Hit Blocks"] + full["Shared Read Blocks"] < 40 * 500
    assert empty["Shared Hit Blocks"] + empty["Shared Read Blocks"] < 1000  # of 20,000


async def test_P45_an_inbox_is_read_without_what_was_consumed(still: Postgres) -> None:
    """The parent of thousands of children reads what is new, with every claim, and marks each that it consumes."""
    analyze(still)
    session = Session(still.url, still.schema)
    run_id = str(uuid4())
    still.rows(
        "INSERT INTO durable.signals (shard, run_id, id, name, data, consumed) "
        "SELECT 0, %s, n::text, 'child/c', '1', n > 5 FROM generate_series(1, 20000) AS n",
        run_id,
    )
    unread = session.run("unread_signals", "0", f"{{{run_id}}}")
    still.rows("UPDATE durable.signals SET consumed = false WHERE shard = 0")
    worker, zeros, some = str(uuid4()), "{" + ",".join(["0"] * 1000) + "}", "{" + ",".join([run_id] * 1000) + "}"
    still.rows("INSERT INTO durable.runs (shard, id, owner) VALUES (0, %s, %s)", run_id, worker)
    still.rows("INSERT INTO durable.workers SELECT %s, 'flush', now() + interval '1 h'", worker)
    nothing, texts = "\x1e".join(["\x1d"] * 1000), "\x1e".join(str(n) for n in range(1, 1001))
    flags = "{" + ",".join(["false"] * 1000) + "}"
    consumed = session.run("consume_signals", worker, zeros, some, zeros, flags, "\x1e", "\x1d", nothing, texts)
    session.close()
    assert consumed["Tuples Inserted"] == 0
    assert consumed["Conflicting Tuples"] == 1000
    assert consumed["Shared Hit Blocks"] + consumed["Shared Read Blocks"] < 60 * 1000
    assert unread["Actual Rows"] == 5
    assert unread["Shared Hit Blocks"] + unread["Shared Read Blocks"] < 50


async def test_P45_hot_statements_are_planned_once(apart: Postgres) -> None:
    """After the first five uses the general plan has to look as cheap as one for the present parameters."""
    store = await apart.fresh()
    worker = await Worker.start(store)
    for turn in range(24):
        count = (1, 2, 40, 1)[turn % 4]
        await create(store, *(new_run(key=str(uuid4())) for _ in range(count)))
        warm = {str(uuid4()): 1} if turn % 3 == 0 else {}
        runs = (await worker.claim((0, 1, 1000)[turn % 3], warm=warm, done=[str(uuid4())])).runs
        change = (states.complete(State.RUNNING, "1"), states.release(State.RUNNING))[turn % 2]
        await worker.commit(*(RunWrite(one.ref, [record(turn, f"{one.run.claim}")], change) for one in runs))
        await worker.claim(limit=0, routes=[])
    counts = Call(b"SELECT statement, custom_plans FROM pg_prepared_statements WHERE generic_plans + custom_plans > 12")
    for lane in (store._use.claim, store._use.flushes["flush"], store._use.create):
        [rows] = await lane.transaction(counts)
        assert len(rows) >= 3
        assert [row for row in rows if row[1] > 7] == []
