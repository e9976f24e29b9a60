"""With 5,000 runs blocked, queued and standing in a full queue, claims and ends do the work that they do with 500.

Counted in SQLite's own instructions, as in ``test_plans``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from durable import states
from durable.model import ClaimedRun, NewRun, Policy, Queue, Rate, Request, RunWrite, State, Verb
from durable.store import Route
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import new_runs
from tests.sqlite.test_plans import BATCH, EVERY, FEW, MANY, Counted, built_once

MAIL, POST, LINE = (Route("order", "1", queue) for queue in ("mail", "post", "default"))


def run(**other: object) -> NewRun:
    return replace(new_runs(1)[0], **other)  # type: ignore[arg-type]


async def crowded(path: Path, count: int, statistics: str) -> None:
    """One run of the key ``a`` is held, as many are blocked; one of ``post`` is held, as many are due; one line."""
    store = SQLiteStore(path)
    await store.open()
    await store.migrate()
    limits = Queue("mail", per_key=1, rate_per_key=Rate(1000, 0.001))
    await store.put_queues([limits, Queue("post", concurrency=1)])
    await store.register("w", 600)
    first = run(queue="default", concurrency_key="k", policy=Policy.QUEUE)
    await store.create_runs([run(queue="mail", limit_key="a"), run(queue="post"), first])
    assert len((await store.claim("w", [MAIL, POST, LINE], 3, "first", {})).runs) == 3
    if statistics == "few":
        await store.close()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("ANALYZE")
        connection.close()
        await store.open()
    for begin in range(0, count, 500):
        some = range(begin, begin + 500)
        await store.create_runs([run(queue="mail", limit_key="a") for _ in some])
        await store.create_runs([run(queue="post") for _ in some])
        await store.create_runs([run(concurrency_key="k", policy=Policy.QUEUE) for _ in range(2)])
        await store.claim("w", [MAIL], 300, str(uuid4()), {})
    await store.close()
    connection = sqlite3.connect(path, isolation_level=None)
    assert connection.execute("SELECT count(*) FROM durable_blocked WHERE waiting").fetchone() == (count,)
    if statistics == "many":
        connection.execute("ANALYZE")
    connection.close()


async def held(counted: Counted, queue: str) -> ClaimedRun:
    (found,) = [one for one in (await counted.store.claim("w", [], 3, "first", {})).runs if one.run.queue == queue]
    return found


async def claim_beside_them(counted: Counted) -> int:
    await counted.store.create_runs([run(queue="mail", limit_key=f"b{n}") for n in range(BATCH)])
    cost = await counted.cost(counted.store.claim("w", [MAIL, POST, LINE], BATCH, "b", {}))
    assert len(await counted.store.owned("w")) == BATCH + 3
    return cost


async def claim_nothing(counted: Counted) -> int:
    return await counted.cost(counted.store.claim("w", [MAIL, POST, LINE], BATCH, "b", {}))


async def _end(counted: Counted, queue: str, route: Route) -> int:
    write = RunWrite((await held(counted, queue)).ref, change=states.complete(State.RUNNING, "1"))
    cost = await counted.cost(counted.store.commit("w", [write]))
    cost += await counted.cost(counted.store.claim("w", [route], BATCH, "b", {}))
    assert len(await counted.store.owned("w")) == 3
    return cost


async def end_of_one_of_the_key(counted: Counted) -> int:
    return await _end(counted, "mail", MAIL)


async def end_of_one_of_the_full_queue(counted: Counted) -> int:
    return await _end(counted, "post", POST)


async def end_of_the_first_in_line(counted: Counted) -> int:
    return await _end(counted, "default", LINE)


async def more_in_line(counted: Counted) -> int:
    cost = await counted.cost(counted.store.create_runs([run(concurrency_key="k", policy=Policy.QUEUE)]))
    return cost + await counted.cost(counted.store.create_runs([run(concurrency_key="k")]))


async def cancel_a_blocked_one(counted: Counted) -> int:
    found = counted.raw.execute(
        "SELECT id FROM durable_runs WHERE limit_key = 'a' AND owner IS NULL LIMIT 1"
    ).fetchone()
    return await counted.cost(counted.store.request(found[0], Request(Verb.CANCEL)))


async def put_the_same_limits(counted: Counted) -> int:
    return await counted.cost(counted.store.put_queues(await counted.store.queues()))


CALLS = [
    claim_beside_them,
    claim_nothing,
    end_of_one_of_the_key,
    end_of_one_of_the_full_queue,
    end_of_the_first_in_line,
    more_in_line,
    cancel_a_blocked_one,
    put_the_same_limits,
]


@pytest.fixture(scope="module", params=built_once(__name__, "no statistics", "few", "many"))
async def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made: dict[int, Path] = {}
    for count in (FEW, MANY // 10):
        path = tmp_path_factory.mktemp("plans") / "durable.db"
        await crowded(path, count, request.param)
        made[count] = path
    return made


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_P45_the_cost_does_not_grow_with_the_crowd(
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
    assert 0 < costs[MANY // 10] <= 1.2 * costs[FEW] + 2 * EVERY, costs
