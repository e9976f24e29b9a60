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


Flush = list[tuple[str, list[int]]]
"""Run ids, and the sequence numbers of what is written for them."""


class _Held(MemoryStore):
    """Every flush waits until it is let through."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: list[Flush] = []
        self._released: Flush | None = None
        self.changed = asyncio.Condition()
        self._passes = 0

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        sent = [(write.ref.id, [record.seq for record in write.records]) for write in writes]
        async with self.changed:
            self.in_flight.append(sent)
            self.changed.notify_all()
            await self.changed.wait_for(lambda: self._passes > 0 or self._released == sent)
            if self._released != sent:
                self._passes -= 1
            self.in_flight.remove(sent)
            self.changed.notify_all()
        return await super().commit(worker, writes)

    async def sees(self, flushes: int) -> None:
        async with self.changed:
            await asyncio.wait_for(self.changed.wait_for(lambda: len(self.in_flight) == flushes), 20)

    async def release(self, flush: Flush) -> None:
        """Let this one through."""
        async with self.changed:
            self._released = flush
            self.changed.notify_all()
            await asyncio.wait_for(self.changed.wait_for(lambda: flush not in self.in_flight), 20)

    async def let_through(self, flushes: int) -> None:
        async with self.changed:
            self._passes += flushes
            self.changed.notify_all()


async def several(store: MemoryStore, count: int) -> Sequence[ClaimedRun]:
    """Claimed runs."""
    await store.register(WORKER, 600)
    await store.create_runs([NewRun(new_id(datetime.now(UTC)), "order", "1", None, "", "") for _ in range(count)])
    return (await store.claim(WORKER, [Route("order", "1")], count, str(uuid4()), {})).runs


class _Writer:
    """Writes one record for each of some runs, and counts the answers."""

    def __init__(self, store: MemoryStore) -> None:
        self.committer = Committer(store, WORKER, lambda: False)
        self.applied = asyncio.Semaphore(0)

    def write(self, runs: Sequence[ClaimedRun], seq: int, data: str | None = None) -> None:
        for one in runs:
            record = Record(seq, f"step-{seq}", Kind.STEP, datetime.now(UTC), data)
            self.committer.write(one.ref, self._settled, record)

    def _settled(self, _: RunWrite, outcome: Outcome | DurableError) -> None:
        assert outcome is Outcome.APPLIED
        self.applied.release()

    async def answers(self, count: int) -> None:
        """Return after so many more of them."""
        async with asyncio.timeout(20):
            for _ in range(count):
                await self.applied.acquire()


async def nothing_more_is_sent(store: _Held, flushes: int) -> None:
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(store.in_flight) == flushes


def flushes(store: _Held) -> list[Flush]:
    return sorted(sorted(flush) for flush in store.in_flight)


def written(runs: Sequence[ClaimedRun], seq: int) -> Flush:
    return [(one.run.id, [seq]) for one in runs]


async def test_what_few_runs_write_shares_one_flush() -> None:
    store = _Held()
    runs = await several(store, 4)
    writer = _Writer(store)
    writer.write(runs, 1)
    await store.sees(1)
    writer.write(runs, 2)
    await nothing_more_is_sent(store, 1)
    await store.release(store.in_flight[0])
    await store.sees(1)
    assert flushes(store) == [written(runs, 2)]
    await store.let_through(1)
    await writer.answers(8)


async def test_what_many_runs_write_goes_in_two_flushes_and_never_two_of_one_run() -> None:
    """A run stays behind its own write that is in flight when the other lane is free."""
    store = _Held()
    runs = await several(store, 200)
    first, second, writer = runs[:100], runs[100:], _Writer(store)
    writer.write(first, 1)
    await store.sees(1)
    writer.write(second, 1)
    await store.sees(2)
    writer.write(runs, 2)
    writer.write(runs, 3)
    await nothing_more_is_sent(store, 2)
    await store.release(written(first, 1))
    await store.sees(2)
    assert flushes(store) == [[(one.run.id, [2, 3]) for one in first], written(second, 1)]
    await store.let_through(3)
    await writer.answers(400)
    for one in runs:
        assert [record.seq for record in await store.history(one.run.id)] == [1, 2, 3]


async def test_what_very_many_write_at_once_goes_in_two_halves() -> None:
    store = _Held()
    runs = await several(store, 300)
    writer = _Writer(store)
    writer.write(runs, 1)
    await store.sees(2)
    assert flushes(store) == [written(runs[:150], 1), written(runs[150:], 1)]
    await store.let_through(2)
    await writer.answers(300)


async def test_what_is_large_goes_in_two_flushes_though_few_runs_write_it() -> None:
    store = _Held()
    runs = await several(store, 4)
    writer = _Writer(store)
    writer.write(runs, 1, "1" * 200_001)
    await store.sees(2)
    assert flushes(store) == [written(runs[:2], 1), written(runs[2:], 1)]
    await store.let_through(2)
    await writer.answers(4)


async def test_when_many_have_become_few_they_share_one_flush_again() -> None:
    store = _Held()
    runs = await several(store, 200)
    first, second, writer = runs[:100], runs[100:], _Writer(store)
    writer.write(first, 1)
    await store.sees(1)
    writer.write(second, 1)
    await store.sees(2)
    await store.release(written(first, 1))
    await writer.answers(100)
    writer.write(first[:4], 2)
    await nothing_more_is_sent(store, 1)
    await store.release(written(second, 1))
    await store.sees(1)
    assert flushes(store) == [written(first[:4], 2)]
    await store.let_through(1)
    await writer.answers(104)
