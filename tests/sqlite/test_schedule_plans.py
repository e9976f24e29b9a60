"""Schedules cost with 10,000 of them, and of their runs, what they cost with 500; see ``test_plans``."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from durable.model import Policy, RunFilter
from durable.schedules import Overlap, ScheduleWrite
from durable.scheduling import to_json
from durable.stores.sqlite import SQLiteStore
from durable.testing.conformance.harness import LONG_AGO, NEVER
from durable.testing.conformance.schedules import TICK, firing, put, schedule
from tests.sqlite.test_plans import EVERY, Counted, built_once, filled

MANY, FEW = 10_000, 500
DUE = 50

# As many schedules that are far off as there are runs; of one schedule a fifth of the runs, of which one has not ended.
FILL = """
    INSERT INTO durable_schedules
        SELECT 'far' || n, 'SPEC', 8000000000000000 + n, 8000000000000000 + n, 0, 0, NULL, NULL, 0, '{}', 0
        FROM durable_runs;
    UPDATE durable_runs SET schedule = 'busy', tick = 1700000000000000 + n WHERE n % 5 = 3 OR n = 1;
"""


async def fill(path: Path, count: int, statistics: str) -> None:
    counted = await filled(path, count, "none")
    await counted.store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    if statistics == "empty":
        connection.execute("ANALYZE")
    connection.executescript(f"BEGIN; {FILL.replace('SPEC', to_json(schedule().spec))} COMMIT;")
    if statistics == "full":
        connection.execute("ANALYZE")
    connection.close()


async def look(counted: Counted) -> int:
    cost = await counted.cost(counted.store.due_schedules(100, None))
    assert (await counted.store.due_schedules(100, None)).found == []
    return cost


async def fire(counted: Counted) -> int:
    """What is due, and what stands in its way."""
    overlaps = [Overlap.QUEUE, Overlap.ALLOW]
    made = [schedule(f"due{number}", overlap=overlaps[number % 2]) for number in range(DUE)]
    await put(counted.store, *made, schedule("busy", TICK - timedelta(days=1)))
    cost = await counted.cost(counted.store.due_schedules(100, None))
    found = (await counted.store.due_schedules(100, None)).found
    assert [len(one.previous.active) for one in found] == [1] + [0] * DUE
    writes = [firing(one.schedule) for one in found]
    again = [replace(write, schedule=replace(write.schedule, due_at=TICK)) for write in writes]
    cost += await counted.cost(counted.store.write_schedules(again))
    assert list(await counted.store.write_schedules(again)) == [True] * (DUE + 1)
    return cost + await counted.cost(counted.store.due_schedules(100, None))


async def replace_runs(counted: Counted) -> int:
    made = [schedule(f"due{number}", overlap=Overlap.CANCEL_PREVIOUS) for number in range(5)]
    await put(counted.store, *made)
    first = [firing(one, policy=Policy.REPLACE) for one in made]
    cost = await counted.cost(counted.store.write_schedules(first))
    second = [firing(one.schedule, TICK + timedelta(hours=1), policy=Policy.REPLACE) for one in first]
    cost += await counted.cost(counted.store.write_schedules(second))
    (found,) = await counted.store.find_schedules(["due0"])
    assert found.previous.active == (second[0].runs[0].id,)
    return cost


async def change(counted: Counted) -> int:
    stored = schedule("one")
    await put(counted.store, stored)
    paused = replace(stored, next_at=None, due_at=None, paused="", revision=1)
    cost = await counted.cost(counted.store.write_schedules([ScheduleWrite(paused, stored)]))
    cost += await counted.cost(counted.store.find_schedules(["one"]))
    return cost + await counted.cost(counted.store.delete_schedule("one"))


async def show(counted: Counted) -> int:
    cost = await counted.cost(counted.store.list_schedules(50, "far2"))
    assert len(await counted.store.list_schedules(50, "far2")) == 50
    cost += await counted.cost(counted.store.ticks("busy", LONG_AGO, NEVER, 50))
    assert len(await counted.store.ticks("busy", LONG_AGO, NEVER, 50)) == 50
    runs = await counted.store.list_runs(RunFilter(schedule="busy"), 50, None)
    assert len(runs) == 50
    return cost + await counted.cost(counted.store.list_runs(RunFilter(schedule="busy"), 50, None))


CALLS = [look, fire, replace_runs, change, show]


@pytest.fixture(scope="module", params=built_once(__name__, "no statistics", "empty", "full"))
async def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made: dict[int, Path] = {}
    for count in (FEW, MANY):
        made[count] = tmp_path_factory.mktemp("plans") / "durable.db"
        await fill(made[count], count, request.param)
    return made


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_P45_the_cost_does_not_grow_with_the_schedules_and_their_runs(
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
