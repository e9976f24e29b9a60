"""What the suite asks of the one who brings a store, and the few verbs in which its tests are written.

It knows the seam and nothing of any backend: whatever a test needs beyond the seam is a method of the harness.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any, Protocol
from uuid import uuid4

from durable import states
from durable.model import (
    Also,
    Change,
    Claimed,
    ClaimedRun,
    Kind,
    NewRun,
    NewSignal,
    Outcome,
    Record,
    Run,
    RunRef,
    RunWrite,
    Sent,
    Signal,
    State,
    Unread,
)
from durable.store import Route, Store
from durable.testing.clock import VirtualClock

ROUTE = Route("order", "1")
AT = datetime(2026, 10, 25, 2, 30, 0, 123456, UTC)  # microseconds, so that a store which rounds is found out
NEVER = datetime(2100, 1, 1, tzinfo=UTC)
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


class StoreHarness(Protocol):
    """How the suite gets at one kind of store.

    Provide it as a pytest fixture named ``harness``; its end closes whatever it handed out. Each test makes
    one of ``fresh`` or ``bare`` and then works on that data alone.
    """

    has_schema: bool
    """Whether a store without its schema exists (False for memory)."""

    async def fresh(self) -> Store:
        """A store that is open, migrated and empty."""
        ...

    async def bare(self) -> Store:
        """A store that is open and has no schema yet; where there is no schema, the same as ``fresh``."""
        ...

    async def another(self) -> Store:
        """One more open store on the data of the latest ``fresh`` or ``bare``, as another process would have it."""
        ...

    async def advance_schema(self) -> None:
        """Make the schema of the latest ``fresh`` or ``bare`` one version newer than this code, as a deploy does."""
        ...

    async def expire(self, worker: str) -> None:
        """Move the end of the worker's lease into the past, on the store's clock."""
        ...

    async def strand(self, run_id: str, state: State) -> None:
        """Put a held run into ``state`` without an owner and a time to go on, as nothing but a bug or a hand does."""
        ...


_numbers = count(1)


def new_run(workflow: str = ROUTE.workflow, version: str = ROUTE.version, **other: Any) -> NewRun:
    """A run to create. Ids rise in the order of the calls."""
    plain = NewRun(new_id(), workflow, version, input='{"sku": "tea"}', input_hash="h1", seed="5eed")
    return replace(plain, **other)


def record(seq: int, key: str = "", kind: Kind = Kind.STEP, data: str | None = '"done"', **other: Any) -> Record:
    """A record to write; its key is ``s<seq>`` unless one is given."""
    return Record(seq, key or f"s{seq}", kind, AT, data)._replace(**other)


def new_id(number: int | None = None) -> str:
    """A UUIDv7, later than those before it; or the one of a given number, where order is the subject."""
    return f"{next(_numbers) if number is None else number:08x}-0000-7000-8000-{uuid4().hex[:12]}"


class Worker:
    """A worker as the suite drives it: each method is one call on the seam, sent again while the store says Busy."""

    def __init__(self, store: Store, worker: str = "") -> None:
        self.store = store
        self.id = worker or str(uuid4())

    @classmethod
    async def start(cls, store: Store, lease: float = 60.0) -> Worker:
        worker = cls(store)
        await store.register(worker.id, lease)
        return worker

    async def claim(
        self,
        limit: int = 1000,
        routes: Sequence[Route] = (ROUTE,),
        *,
        batch: str = "",
        warm: Mapping[str, int] | None = None,
        done: Sequence[str] = (),
        unasked: bool = False,
    ) -> Claimed:
        batch = batch or str(uuid4())
        answer = await self.store.claim(self.id, routes, limit, batch, warm or {}, done, unasked=unasked)
        # Any sequence will do for the seam; the tests compare with lists.
        runs = [
            replace(one, records=one.records if one.records is None else list(one.records), signals=list(one.signals))
            for one in answer.runs
        ]
        return replace(answer, runs=runs, signalled=list(answer.signalled))

    async def take(self) -> ClaimedRun:
        """Claim, and have exactly one run."""
        runs = (await self.claim()).runs
        assert len(runs) == 1
        return runs[0]

    async def commit(self, *writes: RunWrite) -> list[Outcome]:
        """One commit. What is busy is sent again, as the committer does it."""
        outcomes = await self.store.commit(self.id, writes)
        while busy := [at for at, outcome in enumerate(outcomes) if outcome is Outcome.BUSY]:
            again = await self.store.commit(self.id, [writes[at] for at in busy])
            for at, outcome in zip(busy, again, strict=True):
                outcomes[at] = outcome
        return outcomes

    async def write(
        self, run: ClaimedRun | RunRef, *records: Record, change: Change | None = None, also: Also | None = None
    ) -> Outcome:
        ref = run.ref if isinstance(run, ClaimedRun) else run
        return (await self.commit(RunWrite(ref, list(records), change, also)))[0]

    async def apply(
        self, run: ClaimedRun | RunRef, *records: Record, change: Change | None = None, also: Also | None = None
    ) -> None:
        """Write, and see it applied."""
        assert await self.write(run, *records, change=change, also=also) is Outcome.APPLIED

    async def wait(self, run: ClaimedRun, *records: Record, also: Also | None = None, wakes: int | None = None) -> None:
        """Park the run, which waits without a deadline; by the counter of its claim, unless another one is given."""
        seen = run.wakes if wakes is None else wakes
        change = states.park(State.RUNNING, ready_at=None, wakes=seen, waiting=True)
        await self.apply(run, *records, change=change, also=also)

    async def unread(self, run: ClaimedRun | RunRef) -> Unread:
        """What the run, which this worker holds, has not consumed."""
        run_id = (run.ref if isinstance(run, ClaimedRun) else run).id
        found = (await self.store.unread(self.id, [run_id]))[run_id]
        return replace(found, signals=list(found.signals))


async def create(store: Store, *runs: NewRun) -> list[str]:
    """Create the runs (one plain run without arguments), all new; their ids."""
    runs = runs or (new_run(),)
    created = await store.create_runs(runs)
    assert all(one.created and one.conflict is None for one in created)
    return [one.run_id for one in created]


async def claimed(store: Store, **other: Any) -> tuple[Worker, ClaimedRun]:
    """A new run, and a new worker that has claimed it."""
    await create(store, new_run(**other))
    worker = await Worker.start(store)
    return worker, await worker.take()


async def send(store: Store, run_id: str, *ids: str, name: str = "approval", data: str = "true") -> None:
    """Send signals with these ids, and see them accepted."""
    signals = [NewSignal(run_id, one, name, data) for one in ids]
    assert await store.send_signals(signals) == [Sent.ACCEPTED] * len(ids)


def ids_of(signals: Sequence[Signal]) -> list[str]:
    return [signal.id for signal in signals]


async def read(store: Store, run_id: str) -> Run:
    (run,) = await store.get_runs([run_id])
    return run


async def snapshot(store: Store, *run_ids: str) -> list[tuple[Run, list[Record]]]:
    """Everything that the seam shows of the runs."""
    return [(await read(store, run_id), await store.history(run_id)) for run_id in run_ids]


_AHEAD = timedelta(milliseconds=100)
"""What the estimate of a server's clock may be ahead of it, on a busy machine: see ``ServerClock``."""


async def until(store: Store, when: datetime) -> None:
    """Return when the store's clock has reached ``when``; a virtual one is moved."""
    clock = store.clock
    if isinstance(clock, VirtualClock):
        clock.advance(max(when - clock.now(), timedelta(0)))
        return
    reached = asyncio.Event()
    clock.call_at(when + _AHEAD, reached.set)
    await reached.wait()
