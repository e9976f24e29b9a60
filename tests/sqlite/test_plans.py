"""With 20,000 runs the hot calls do the work that they do with 500: counted in SQLite's own instructions.

EXPLAIN QUERY PLAN does not show what a trigger does, and the writing verbs are triggers. So the test counts the
instructions of the virtual machine, which no other load on this machine can disturb.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durable import states
from durable.model import Claimed, ClaimedRun, Kind, Outcome, Record, Request, RunFilter, RunWrite, State, Verb
from durable.store import Route
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import ROUTE, new_runs, step

EVERY = 10  # instructions between two counts
MANY, FEW = 20_000, 500
BATCH = 50
ERROR = '{"error_type":"ValueError","message":"no such card"}'


def built_once(module: str, *statistics: str) -> list[Any]:
    """Parameters of a fixture that fills files for a module: of each, the tests stay in one process of the run."""
    return [pytest.param(one, marks=pytest.mark.xdist_group(f"{module} {one}")) for one in statistics]


class Counted:
    """A store with so many runs in every state, and a counter of what its connection does."""

    def __init__(self, store: SQLiteStore) -> None:
        assert store._connection is not None
        self.store = store
        self.raw = store._connection._raw
        self.count = 0
        self.batches = 0

    async def cost(self, call: Awaitable[Any]) -> int:
        self.count = 0
        await self._count_with(self._progress)
        await call
        await self._count_with(None)
        return self.count * EVERY

    async def _count_with(self, handler: Callable[[], int] | None) -> None:
        """On the store's thread: the call waits for the connection with Python's lock held, and so would its thread."""
        thread = self.store._thread
        assert thread is not None
        await thread.call(lambda: self.raw.set_progress_handler(handler, EVERY))

    def _progress(self) -> int:
        self.count += 1
        return 0

    async def take(self) -> list[ClaimedRun]:
        self.batches += 1
        return list((await self.store.claim("w", [ROUTE], BATCH, f"b{self.batches}", {})).runs)

    async def aside(self, run: ClaimedRun) -> list[str]:
        """The keys of its records that were set aside under this claim, without what stands before them."""
        mark = f"/{run.ref.claim}/"
        return [r.key.removeprefix(mark) for r in await self.store.history(run.run.id) if r.key.startswith(mark)]


async def filled(path: Path, count: int, statistics: str) -> Counted:
    """Each fifth of the runs ready, sleeping far ahead, of an unknown version and cancelled, completed, and waiting.

    ``statistics`` says when SQLite's planner was given its figures: never, of the empty tables, or of the full ones.
    """
    store = SQLiteStore(path)
    await store.open()
    await store.migrate()
    connection = sqlite3.connect(path, isolation_level=None)
    if statistics == "empty":
        connection.execute("INSERT INTO durable_claims VALUES ('nobody', 'b', '[]')")
        connection.execute("ANALYZE")
    far = (store.clock.now() + timedelta(days=3)).timestamp() * 1_000_000
    connection.execute("BEGIN")
    connection.execute(
        f"""
        WITH RECURSIVE i (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM i WHERE i < {count})
        INSERT INTO durable_runs (id, shard, workflow, version, state, created_at, ready_at, ended_at, requested,
            started_at, claim, input_hash, seed, tags, key)
        SELECT printf('%08x-filled', i), 0, 'order', CASE i % 5 WHEN 2 THEN 'unknown' ELSE '1' END,
            CASE i % 5 WHEN 1 THEN 'sleeping' WHEN 3 THEN 'completed' WHEN 4 THEN 'waiting' ELSE 'pending' END, i,
            CASE i % 5 WHEN 0 THEN i WHEN 1 THEN {int(far)} + i WHEN 2 THEN i END,
            CASE i % 5 WHEN 3 THEN i END, CASE i % 5 WHEN 2 THEN '{{"verb":"cancel"}}' END,
            i, 1, 'h', 's', '{{}}', 'k' || i
        FROM i
        """
    )
    connection.execute("INSERT INTO durable_keys SELECT workflow, key, id FROM durable_runs")
    body = '[0,"step",1,null,false,1,0,0,false,null,"x"]'
    connection.execute("INSERT INTO durable_records SELECT n, 's0', ? FROM durable_runs", (body,))
    connection.execute("COMMIT")
    if statistics == "full":
        connection.execute("ANALYZE")
    connection.close()
    await store.register("w", 600)
    await store.close()
    await store.open()  # a connection reads the figures when it opens
    return Counted(store)


async def claim(counted: Counted) -> int:
    cost = await counted.cost(counted.take())
    assert len(await counted.store.owned("w")) == BATCH
    return cost


async def claim_with_many_routes(counted: Counted) -> int:
    routes = [ROUTE, Route("order", "2"), Route("other", "1")]
    return await counted.cost(counted.store.claim("w", routes, BATCH, "b", {}))


async def flush_records(counted: Counted) -> int:
    runs, now = await counted.take(), counted.store.clock.now()
    writes = [step(run.ref, 1, now) for run in runs]
    cost = await counted.cost(counted.store.commit("w", writes))
    assert await counted.store.commit("w", writes) == [Outcome.APPLIED] * BATCH
    return cost


async def flush_changes(counted: Counted) -> int:
    runs, now = await counted.take(), counted.store.clock.now()
    half = BATCH // 2
    writes = [RunWrite(run.ref, change=states.complete(State.RUNNING, "1")) for run in runs[:half]]
    writes += [
        RunWrite(run.ref, change=states.park(State.RUNNING, ready_at=now, wakes=run.wakes)) for run in runs[half:]
    ]
    return await counted.cost(counted.store.commit("w", writes))


async def flush_sent_again(counted: Counted) -> int:
    runs = await counted.take()
    writes = [RunWrite(run.ref, change=states.complete(State.RUNNING, "1")) for run in runs]
    await counted.store.commit("w", writes)
    return await counted.cost(counted.store.commit("w", writes))


async def create(counted: Counted) -> int:
    return await counted.cost(counted.store.create_runs(new_runs(BATCH)))


async def owned(counted: Counted) -> int:
    await counted.take()
    return await counted.cost(counted.store.owned("w"))


async def reap_nothing(counted: Counted) -> int:
    await counted.take()
    return await counted.cost(counted.store.reap())


async def reap(counted: Counted) -> int:
    await counted.take()
    await counted.store.register("w", -1)
    cost = await counted.cost(counted.store.reap())
    assert await counted.store.owned("w") == []
    return cost


async def read(counted: Counted) -> int:
    ids = [f"{n:08x}-filled" for n in range(1, 60)]
    store = counted.store
    return (
        await counted.cost(store.get_runs(ids))
        + await counted.cost(store.ended(ids))
        + await counted.cost(store.history(ids[0]))
        + await counted.cost(store.find_key("order", "k7"))
    )


async def list_a_page(counted: Counted) -> int:
    middle = f"{counted.raw.execute('SELECT count(*) / 2 FROM durable_runs').fetchone()[0]:08x}-filled"
    where = RunFilter(workflow="order", state=State.COMPLETED)
    return await counted.cost(counted.store.list_runs(where, 20, middle))


async def hear_without_a_slot(counted: Counted) -> int:
    run = (await counted.take())[0]
    await counted.store.request(run.run.id, Request(Verb.CANCEL))
    answer = counted.store.claim("w", [ROUTE], 0, "b", {})
    cost = await counted.cost(_heard(answer, [(run.run.id, Request(Verb.CANCEL))]))
    return cost + await counted.cost(_heard(counted.store.claim("other", [ROUTE], 0, "b", {}), []))


async def _heard(answer: Awaitable[Claimed], expected: list[tuple[str, Request]]) -> None:
    assert list((await answer).requests) == expected


async def ask_of_runs_that_nobody_holds(counted: Counted) -> int:
    """Ready, sleeping, cancelled, and waiting ones."""
    cost = 0
    for n in (5, 6, 7, 9):
        for verb in (Verb.PAUSE, Verb.RESUME, Verb.CANCEL):
            cost += await counted.cost(counted.store.request(f"{n:08x}-filled", Request(verb)))
    return cost


async def retry(counted: Counted) -> int:
    """One of each kind."""
    runs, now, store = (await counted.take())[:3], counted.store.clock.now(), counted.store
    records = [
        Record(1, "hold", Kind.STEP, now, "1", compensable=True),
        Record(2, "hold/undo", Kind.UNDO, now, ERROR, failed=True),
    ]
    await store.commit("w", [RunWrite(run.ref, records, states.fail(State.RUNNING, ERROR)) for run in runs])
    costs = [
        await counted.cost(store.request(runs[0].run.id, Request(Verb.RETRY))),
        await counted.cost(store.request(runs[1].run.id, Request(Verb.RETRY_UNDO))),
        await counted.cost(store.retry_from(runs[2].run.id, "s0", Request(Verb.RETRY))),
    ]
    assert [await counted.aside(run) for run in runs] == [["hold/undo"], ["hold/undo"], ["s0", "hold", "hold/undo"]]
    return sum(costs)


async def flush_another_run_attempt(counted: Counted) -> int:
    runs, now = await counted.take(), counted.store.clock.now()
    failed = Record(1, "hold", Kind.STEP, now, ERROR, failed=True)
    writes = [RunWrite(run.ref, [failed], states.try_again(State.RUNNING, now)) for run in runs]
    cost = await counted.cost(counted.store.commit("w", writes))
    assert [await counted.aside(run) for run in runs] == [["hold"]] * BATCH
    return cost


async def prune(counted: Counted) -> int:
    cost = await counted.cost(counted.store.prune(counted.store.clock.now(), BATCH))
    oldest = [f"{3 + 5 * n:08x}-filled" for n in range(BATCH + 1)]
    assert [run.id for run in await counted.store.get_runs(oldest)] == oldest[BATCH:]
    return cost


async def delete(counted: Counted) -> int:
    return await counted.cost(counted.store.delete("00000008-filled"))


CALLS = [
    claim,
    claim_with_many_routes,
    flush_records,
    flush_changes,
    flush_sent_again,
    create,
    owned,
    reap_nothing,
    reap,
    read,
    list_a_page,
    hear_without_a_slot,
    ask_of_runs_that_nobody_holds,
    retry,
    flush_another_run_attempt,
    prune,
    delete,
]


@pytest.fixture(scope="module", params=built_once(__name__, "no statistics", "empty", "full"))
async def templates(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    made: dict[int, Path] = {}
    for count in (FEW, MANY):
        path = tmp_path_factory.mktemp("plans") / "durable.db"
        await (await filled(path, count, request.param)).store.close()
        made[count] = path
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


async def test_P20_a_record_costs_the_same_after_ten_and_after_ten_thousand(store: SQLiteStore) -> None:
    await store.create_runs(new_runs(1))
    await store.register("w", 600)
    counted = Counted(store)
    (run,) = (await store.claim("w", [ROUTE], 1, "b", {})).runs
    costs: dict[int, int] = {}
    for seq in (10, 10_000):
        below = range(max(costs, default=0) + 1, seq)
        many = RunWrite(run.ref, [record for n in below for record in step(run.ref, n, store.clock.now()).records])
        assert await store.commit("w", [many]) == [Outcome.APPLIED]
        costs[seq] = await counted.cost(store.commit("w", [step(run.ref, seq, store.clock.now())]))
    assert costs[10_000] <= 1.2 * costs[10], costs
    assert [record.seq for record in await store.history(run.run.id)] == list(range(1, 10_001))
