"""What is gathered for one run while a flush is under way goes as one write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from durable import states
from durable.committer import Committer
from durable.errors import DurableError
from durable.ids import new_id
from durable.model import ClaimedRun, Kind, NewRun, Outcome, Record, RunWrite, State
from durable.store import Route
from durable.stores.memory import MemoryStore

WORKER = "a worker"


class _BusyAtFirst(MemoryStore):
    """Somebody else holds the run when the first flush comes, as long as ``held``."""

    def __init__(self) -> None:
        super().__init__()
        self.sent, self.held = asyncio.Event(), asyncio.Event()

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if self.sent.is_set():
            return await super().commit(worker, writes)
        self.sent.set()
        await self.held.wait()
        return [Outcome.BUSY for _ in writes]


async def claimed(store: MemoryStore) -> ClaimedRun:
    await store.register(WORKER, 600)
    run = NewRun(new_id(datetime.now(UTC)), "order", "1", None, "", "")
    await store.create_runs([run])
    answer = await store.claim(WORKER, [Route("order", "1")], 1, str(uuid4()), {})
    (one,) = answer.runs
    return one


@pytest.mark.parametrize("busy", [False, True])
async def test_P03_a_run_that_is_given_back_while_its_compensation_begins_keeps_its_error(busy: bool) -> None:
    store, told = (_BusyAtFirst() if busy else MemoryStore()), list[object]()
    one = await claimed(store)
    committer = Committer(store, WORKER, lambda: False)

    def settled(_: RunWrite, outcome: Outcome | DurableError) -> None:
        told.append(outcome)

    begins = committer.write(one.ref, settled, change=states.compensate(State.RUNNING, '"why"'))
    if isinstance(store, _BusyAtFirst):  # the first is under way, and comes back
        await asyncio.wait_for(store.sent.wait(), 20)
        store.held.set()
    committer.write(one.ref, settled, change=states.release(State.COMPENSATING))
    await committer.drained()
    (run,) = await store.get_runs([one.run.id])
    assert (run.state, run.error, run.owner) == (State.COMPENSATING, '"why"', None)
    assert begins.done
    assert told == [Outcome.APPLIED]


class _Held(MemoryStore):
    """Every flush waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[list[tuple[str, list[int]]]] = []
        self.changed = asyncio.Condition()
        self._passes = 0

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        sent = [(write.ref.id, [record.seq for record in write.records]) for write in writes]
        async with self.changed:
            self.in_flight.append(sent)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self._passes > 0)
            self._passes -= 1
            self.in_flight.remove(sent)
        return await super().commit(worker, writes)

    async def sees(self, flushes: int) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.in_flight) == flushes), 20)

    async def let_through(self, flushes: int) -> None:
        async with self.changed:
            self._passes += flushes
            self.changed.notify_all()


async def test_two_flushes_are_in_flight_and_never_two_of_one_run() -> None:
    store = _Held()
    await store.register(WORKER, 600)
    now = datetime.now(UTC)
    ids = [new_id(now)[:-1] + digit for digit in "0123"]
    await store.create_runs([NewRun(id_, "order", "1", None, "", "") for id_ in ids])
    runs = (await store.claim(WORKER, [Route("order", "1")], 4, str(uuid4()), {})).runs
    committer = Committer(store, WORKER, lambda: False)
    outcomes = list[object]()

    def write(seq: int) -> None:
        for one in runs:
            record = Record(seq, f"step-{seq}", Kind.STEP, now)
            committer.write(one.ref, lambda _, outcome: outcomes.append(outcome), record)

    write(1)
    await store.sees(2)
    write(2)
    write(3)
    for _ in range(100):  # nothing is sent meanwhile
        await asyncio.sleep(0)
    first, second = sorted(store.in_flight)
    assert [sorted(first), sorted(second)] == [[(ids[0], [1]), (ids[2], [1])], [(ids[1], [1]), (ids[3], [1])]]
    await store.let_through(4)
    await committer.drained()
    assert outcomes == [Outcome.APPLIED] * 8
    for id_ in ids:
        assert [record.seq for record in await store.history(id_)] == [1, 2, 3]
