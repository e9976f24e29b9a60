"""Signals, events, children and effects cost with 10,000 runs what they cost with 500; see ``test_plans``."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from durable import states
from durable.model import (
    Also,
    Awaited,
    ClaimedRun,
    Effect,
    EffectEnd,
    Kind,
    NewRun,
    NewSignal,
    Outcome,
    Published,
    RunFilter,
    RunWrite,
    Sent,
    State,
)
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import ROUTE, new_runs, step
from tests.sqlite.test_plans import BATCH, EVERY, Counted, built_once, filled

MANY, FEW = 10_000, 500

# What every run has, of each kind: read and unread signals, a wait, an entry of the log, an effect, a child.
FILL = """
    INSERT INTO durable_signals (run, id, name, data, at, consumed)
        SELECT n, 'read', 'go', '1', 0, 1 FROM durable_runs UNION ALL
        SELECT n, 'unread', 'go', '1', 0, 0 FROM durable_runs;
    DELETE FROM durable_signalled;
    INSERT INTO durable_signalled SELECT 'other', n, 1 FROM durable_runs;
    INSERT INTO durable_events (id, topic, key, data, at, expires_at)
        SELECT 'old' || n, 'kept', 'k' || n % 100, '1', n, 9000000000000000 FROM durable_runs;
    INSERT INTO durable_awaited (run, topic, key, since, at)
        SELECT n, 'awaited', 'k' || n, 0, 0 FROM durable_runs;
    INSERT INTO durable_emits (run, key, at, data) SELECT n, 'told', 0, '1' FROM durable_runs;
    INSERT INTO durable_effects (key, run, step, ended_at, kept, data)
        SELECT 'e' || n, n, 's', 0, 1, '1' FROM durable_runs;
    UPDATE durable_runs SET parent = printf('%08x-filled', n / 10 + 1), parent_key = 'c' || n, linked = 1;
"""


async def fill(path: Path, count: int, statistics: str) -> None:
    counted = await filled(path, count, "none")
    await counted.store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    if statistics == "empty":
        connection.execute("ANALYZE")
    connection.executescript(f"BEGIN; {FILL} COMMIT;")
    if statistics == "full":
        connection.execute("ANALYZE")
    connection.close()


def name(n: int) -> str:
    return f"{n:08x}-filled"


def write(run: ClaimedRun, seq: int, also: Also, counted: Counted) -> RunWrite:
    return RunWrite(run.ref, step(run.ref, seq, counted.store.clock.now()).records, also=also)


async def send(counted: Counted) -> int:
    """To runs that wait, that are ready, and that have ended."""
    signals = [NewSignal(name(n), "s", "go", "1") for n in range(1, 51)]
    cost = await counted.cost(counted.store.send_signals(signals))
    assert await counted.store.send_signals(signals) == [
        Sent.FINISHED if n % 5 == 3 else Sent.ACCEPTED for n in range(1, 51)
    ]
    return cost


async def hear(counted: Counted) -> int:
    """With a claim, and while held."""
    cost = await counted.cost(counted.take())
    ids = await _held(counted)
    await counted.store.send_signals([NewSignal(run_id, "s", "go", "1") for run_id in ids])
    cost += await counted.cost(counted.store.claim("w", [ROUTE], 0, "b", {}))
    cost += await counted.cost(counted.store.unread("w", ids))
    unread = await counted.store.unread("w", ids)
    assert [[signal.id for signal in unread[run_id].signals] for run_id in ids] == [["unread", "s"]] * BATCH
    return cost


async def _held(counted: Counted) -> list[str]:
    return [ref.id for ref in await counted.store.owned("w")]


async def publish(counted: Counted) -> int:
    events = [Published(f"new{n}", "awaited", f"k{n}", "1", 0) for n in range(1, 51)]
    cost = await counted.cost(counted.store.publish(events))
    cost += await counted.cost(counted.store.publish([Published("x", "nobody", "", "1", 0)]))
    assert counted.raw.execute("SELECT count(*) FROM durable_signals WHERE id LIKE 'new%'").fetchone() == (50,)
    return cost


async def wait_for_what_was_published(counted: Counted) -> int:
    """The oldest of many events of its topic and key that is not too old: none, and then one."""
    runs, now = await counted.take(), counted.store.clock.now()
    await counted.store.publish([Published("new", "kept", "k7", "1", 60)])
    writes = [write(run, 1, Also(awaited=[Awaited("kept", "k7", now)]), counted) for run in runs]
    cost = await counted.cost(counted.store.commit("w", writes))
    assert counted.raw.execute("SELECT count(*) FROM durable_signals WHERE id = 'new'").fetchone() == (BATCH,)
    return cost


async def consume_and_tell(counted: Counted) -> int:
    runs = await counted.take()
    emitted = [write(run, 1, Also(consumed=["unread"], emits=True), counted) for run in runs]
    for one in emitted:
        one.records = [one.records[0]._replace(kind=Kind.EMIT)]
    cost = await counted.cost(counted.store.commit("w", emitted))
    (page,) = counted.raw.execute("SELECT max(n) - 20 FROM durable_emits").fetchone()
    assert len(await counted.store.emitted(f"{page:019}", 100)) == 20
    return cost + await counted.cost(counted.store.emitted(f"{page:019}", 100))


def child(run: ClaimedRun, new: NewRun) -> NewRun:
    return replace(new, parent=run.run.id, parent_key="c")


async def call_children(counted: Counted) -> int:
    runs = await counted.take()
    writes = [
        write(run, 1, Also(children=[child(run, new)]), counted) for run, new in zip(runs, new_runs(BATCH), strict=True)
    ]
    return await counted.cost(counted.store.commit("w", writes))


async def end_children(counted: Counted) -> int:
    runs = await counted.take()
    writes = [RunWrite(run.ref, change=states.complete(State.RUNNING, "1")) for run in runs]
    cost = await counted.cost(counted.store.commit("w", writes))
    ended = "SELECT count(*) FROM durable_signals WHERE name LIKE 'child/%'"
    assert counted.raw.execute(ended).fetchone() == (BATCH,)
    return cost


async def list_children(counted: Counted) -> int:
    where = RunFilter(parent=name(7))
    assert len(await counted.store.list_runs(where, 100, None)) == 10
    return await counted.cost(counted.store.list_runs(where, 100, None))


async def share_effects(counted: Counted) -> int:
    (run, other) = (await counted.take())[:2]
    store, cost = counted.store, 0
    for asks in (run, run, other):
        cost += await counted.cost(store.take_effect("w", asks.ref, "new", "s"))
    assert await store.take_effect("w", other.ref, "e7", "s") == Effect(False, name(7), True, "1")
    waits = write(other, 1, Also(awaited=[Awaited("/effect", "new", store.clock.now())]), counted)
    ends = write(run, 1, Also(effects=[EffectEnd("new", "s1", False)]), counted)
    for one in (waits, ends):
        cost += await counted.cost(store.commit("w", [one]))
        assert await store.commit("w", [one]) == [Outcome.APPLIED]
    return cost


async def delete(counted: Counted) -> int:
    cost = await counted.cost(counted.store.delete(name(8)))
    assert counted.raw.execute("SELECT count(*) FROM durable_effects WHERE run = 8").fetchone() == (0,)
    return cost


CALLS = [
    send,
    hear,
    publish,
    wait_for_what_was_published,
    consume_and_tell,
    call_children,
    end_children,
    list_children,
    share_effects,
    delete,
]


@pytest.fixture(scope="module", params=built_once(__name__, "no statistics", "empty", "full"))
async def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made: dict[int, Path] = {}
    for count in (FEW, MANY):
        made[count] = tmp_path_factory.mktemp("plans") / "durable.db"
        await fill(made[count], count, request.param)
    return made


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_P45_the_cost_does_not_grow_with_the_table(
    call: Callable[[Counted], Awaitable[int]], templates: dict[int, Path], tmp_path: Path
) -> None:
    costs: dict[int, int] = {}
    for count, template in templates.items():
        copy = tmp_path / f"{count}.db"
        copy.write_bytes(template.read_bytes())
        store = SQLiteStore(copy)
        await store.open()
        costs[count] = await call(Counted(store))
        await store.close()
    assert 0 < costs[MANY] <= 1.2 * costs[FEW] + 2 * EVERY, costs
