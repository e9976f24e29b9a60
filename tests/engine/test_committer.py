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
from durable.model import ClaimedRun, NewRun, Outcome, RunWrite, State
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
