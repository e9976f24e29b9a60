"""Every situation in which a request can find a run: how a run gets there, and what the table of states says.

What is expected is derived from ``states.TRANSITIONS``; the few rules that the table cannot hold are spelled
out here, as the seam's documentation has them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from durable import states
from durable.model import Change, ClaimedRun, Kind, Record, Request, State, Verb
from durable.states import TRANSITIONS, Event
from durable.store import Store
from durable.testing.conformance.harness import NEVER, StoreHarness, Worker, claimed, create, new_run, record
from durable.testing.conformance.writes import ERROR

_R, _C = State.RUNNING, State.COMPENSATING
REQUESTS = {verb: Request(verb, f"why {verb}", "alice", f"first {verb}") for verb in Verb}
CANCEL, PAUSE, RESUME, RETRY, RETRY_UNDO = (REQUESTS[verb] for verb in Verb)

STEPS = [record(1, "hold", compensable=True), record(2, "charge", compensable=True)]
FAILED_STEP = [
    record(3, "ship/attempt/1", Kind.ATTEMPT, ERROR, failed=True, due_at=NEVER),
    record(4, "ship", Kind.STEP, ERROR, failed=True, attempt=2),
]
UNDONE = record(5, "charge/undo", Kind.UNDO, "null")
NOT_UNDONE = [
    record(6, "hold/undo/attempt/1", Kind.ATTEMPT, ERROR, failed=True, due_at=NEVER),
    record(7, "hold/undo", Kind.UNDO, ERROR, failed=True, attempt=2),
]


@dataclass(frozen=True)
class Situation:
    """How a run gets there.

    ``held``: a worker executes it. ``started``: it was claimed at least once. ``undoing``: its error is stored.
    ``not_undone``: a compensation of it failed.
    """

    state: State
    reach: Callable[[StoreHarness, Store], Awaitable[str]]
    held: bool = False
    started: bool = True
    undoing: bool = False
    not_undone: bool = False

    def expected(self, verb: Verb) -> State | None:
        """The answer to a first request."""
        if verb is Verb.PAUSE and self.state in states.EXECUTING:
            return self.state if self.held else None
        if verb is Verb.RETRY_UNDO and not self.not_undone:
            return None
        undo_next = self.state is State.PAUSED and self.undoing
        event = {
            Verb.CANCEL: Event.CANCELLED if not self.started else Event.RESUME_UNDO if undo_next else Event.CANCEL,
            Verb.PAUSE: Event.PAUSE,
            Verb.RESUME: Event.RESUME_UNDO if undo_next else Event.RESUME,
            Verb.RETRY: Event.RETRY,
            Verb.RETRY_UNDO: Event.RETRY_UNDO,
        }[verb]
        return TRANSITIONS.get((self.state, event))


async def _never_started(_: StoreHarness, store: Store) -> str:
    (run_id,) = await create(store)
    return run_id


async def _delayed(_: StoreHarness, store: Store) -> str:
    (run_id,) = await create(store, new_run(ready_at=NEVER))
    return run_id


async def _paused_before_its_start(_: StoreHarness, store: Store) -> str:
    (run_id,) = await create(store)
    assert await store.request(run_id, Request(Verb.PAUSE, "first", "bob")) is State.PAUSED
    return run_id


def _executed(
    *records: Record, change: Callable[[ClaimedRun], Change] | None = None, undoing: bool = False
) -> Callable[[StoreHarness, Store], Awaitable[str]]:
    """Claimed, then written about: the records and the change."""

    async def reach(_: StoreHarness, store: Store) -> str:
        worker, one = await claimed(store)
        if undoing:
            await worker.apply(one, *STEPS, *FAILED_STEP, change=states.compensate(_R, ERROR))
        if records or change is not None:
            await worker.apply(one, *records, change=None if change is None else change(one))
        return one.run.id

    return reach


async def _given_up(harness: StoreHarness, store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, *STEPS, FAILED_STEP[0])
    await harness.expire(worker.id)
    assert (await store.reap(limit=1)).released == 1
    return one.run.id


async def _taken_over(harness: StoreHarness, store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, *STEPS)
    await harness.expire(worker.id)
    assert (await store.reap()).released == 1
    return one.run.id


def _park(waiting: bool, state: State = _R) -> Callable[[ClaimedRun], Change]:
    ready_at = None if waiting else NEVER
    return lambda one: states.park(state, ready_at=ready_at, wakes=one.wakes, waiting=waiting)


SITUATIONS: dict[str, Situation] = {
    "pending": Situation(State.PENDING, _never_started, started=False),
    "delayed": Situation(State.PENDING, _delayed, started=False),
    "paused before its start": Situation(State.PAUSED, _paused_before_its_start, started=False),
    "running": Situation(State.RUNNING, _executed(*STEPS), held=True),
    "released": Situation(State.PENDING, _executed(*STEPS, change=lambda _: states.release(_R))),
    "taken over": Situation(State.PENDING, _taken_over),
    "before another run attempt": Situation(
        State.PENDING, _executed(*STEPS, *FAILED_STEP, change=lambda _: states.try_again(_R, NEVER))
    ),
    "sleeping": Situation(State.SLEEPING, _executed(*STEPS, change=_park(waiting=False))),
    "waiting": Situation(State.WAITING, _executed(*STEPS, change=_park(waiting=True))),
    "paused": Situation(State.PAUSED, _executed(*STEPS, change=lambda _: states.pause(_R, "does not fit"))),
    "paused in compensation": Situation(
        State.PAUSED, _executed(UNDONE, change=lambda _: states.pause(_C, "stuck"), undoing=True), undoing=True
    ),
    "compensating": Situation(State.COMPENSATING, _executed(undoing=True), held=True, undoing=True),
    "released in compensation": Situation(
        State.COMPENSATING, _executed(UNDONE, change=lambda _: states.release(_C), undoing=True), undoing=True
    ),
    "parked in compensation": Situation(
        State.COMPENSATING, _executed(UNDONE, change=_park(waiting=False, state=_C), undoing=True), undoing=True
    ),
    "completed": Situation(State.COMPLETED, _executed(*STEPS, change=lambda _: states.complete(_R, "1"))),
    "failed": Situation(State.FAILED, _executed(*STEPS, *FAILED_STEP, change=lambda _: states.fail(_R, ERROR))),
    "failed in compensation": Situation(
        State.FAILED,
        _executed(UNDONE, *NOT_UNDONE, change=lambda _: states.fail(_C, ERROR), undoing=True),
        undoing=True,
        not_undone=True,
    ),
    "compensated": Situation(
        State.COMPENSATED, _executed(UNDONE, change=lambda _: states.compensated(_C, ERROR), undoing=True), undoing=True
    ),
    "cancelled": Situation(State.CANCELLED, _executed(*STEPS, change=lambda _: states.cancelled(_R, ERROR))),
    "dead letter": Situation(State.DEAD_LETTER, _given_up),
}
LIVE = [name for name, one in SITUATIONS.items() if one.state not in states.TERMINAL]
ENDED = [name for name, one in SITUATIONS.items() if one.state in states.TERMINAL]
LEFT = [name for name in LIVE if SITUATIONS[name].started and not SITUATIONS[name].held]
"""Not terminal, started, and nobody holds it."""


async def reach(harness: StoreHarness, store: Store, name: str) -> str:
    """A run in this situation."""
    run_id = await SITUATIONS[name].reach(harness, store)
    (run,) = await store.get_runs([run_id])
    assert run.state is SITUATIONS[name].state
    assert (run.owner is not None) is SITUATIONS[name].held
    return run_id


async def only(store: Store) -> tuple[Worker, ClaimedRun]:
    """A new worker, and the one run that it gets."""
    worker = await Worker.start(store)
    return worker, await worker.take()
