"""Every order in which what happens to a run can fall between the steps of who executes it.

An executor goes on one call at a time; between its calls come those of somebody else. Whatever the order, the run gets
to its end, and each signal was consumed once, in its turn.
"""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations_with_replacement

import pytest

from durable import states
from durable.model import (
    Also,
    Awaited,
    Change,
    ClaimedRun,
    Kind,
    NewSignal,
    Outcome,
    Published,
    Record,
    Request,
    RunWrite,
    Signal,
    State,
    Verb,
)
from durable.store import Route, Store
from durable.testing.conformance.harness import (
    LONG_AGO,
    StoreHarness,
    Worker,
    claimed,
    new_id,
    new_run,
    read,
    record,
)
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_KID = Route("kid", "1")
_ENOUGH = 60
"""Calls after which a run that has not ended is stuck: the longest of these makes 14."""

Step = Callable[[], Awaitable[object]]
Order = tuple[int, ...]
"""For each step of the others: how many calls the executor makes before it."""


def orders(steps: int, calls: int) -> list[Order]:
    """All orders of ``steps`` among the first ``calls`` of the executor."""
    return list(combinations_with_replacement(range(calls + 1), steps))


class OrderConformance:
    @pytest.mark.parametrize("name", ["signals", "timeout", "child", "cancel", "takeover", "pause", "event"])
    async def test_P31_P32_P34_whatever_the_order_nothing_is_lost_or_doubled(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        for order in orders(3, 8)[::20]:
            await in_order(harness, store, name, order)


async def in_order(harness: StoreHarness, store: Store, name: str, order: Order) -> None:
    """One run, in one order."""
    scene = await SCENES[name](harness, store)
    made = 0
    for before, step in zip(order, scene.steps, strict=True):
        for _ in range(before - made):
            await scene.executor.go_on()
        made = before
        await step()
    for _ in range(_ENOUGH):
        if scene.executor.ended:
            break
        await scene.executor.go_on()
    run = await read(store, scene.executor.run_id)
    woke = [one.data for one in await store.history(run.id) if one.kind is Kind.WOKE and not one.failed]
    assert (order, run.state) == (order, scene.end)
    if scene.end is State.COMPLETED:
        assert (order, woke) == (order, scene.sent)
    else:
        assert woke == scene.sent[: len(woke)]


class _Executor:
    """What an engine does about a run that waits ``needs`` times, one call at a time."""

    def __init__(self, worker: Worker, one: ClaimedRun, *, needs: int, times_out: bool, topic: str) -> None:
        self.worker = worker
        self.run_id = one.run.id
        self.ended = False
        self._needs = needs
        self._times_out = times_out
        self._topic = topic
        self._records: dict[str, Record] = {}
        self._unread: list[Signal] = []
        self._wakes = 0
        self._looked = False
        self._one: ClaimedRun | None = None
        self._dead = False
        self._take(one)

    def note(self, *records: Record) -> None:
        """These are in the run's history."""
        self._records.update((entry.key, entry) for entry in records)

    async def die(self, harness: StoreHarness) -> None:
        """Lose the lease; it is found out with the next write, or claim."""
        await harness.expire(self.worker.id)
        await self.worker.store.reap()
        self._dead = True

    async def go_on(self) -> None:
        """Make the next call, if there is one to make."""
        if self.ended:
            return
        one, waits = self._one, sum(1 for key in self._records if key.startswith("wait") and "/" in key)
        if one is None:
            await self._claim()
        elif one.run.requested is not None:
            assert one.run.requested.verb is Verb.CANCEL
            await self._write(one, [], states.cancelled(_R, ERROR))
        elif self._topic and f"wait{waits}" not in self._records:
            wait = record(self._next(), f"wait{waits}", Kind.WAIT, None)
            await self._write(one, [wait], None, Also(awaited=[Awaited(self._topic, "", LONG_AGO)]))
        elif self._unread:
            signal = self._unread.pop(0)
            woke = record(self._next(), f"wait{waits}/woke", Kind.WOKE, signal.id)
            last = waits + 1 == self._needs
            end = states.complete(_R, "1") if last else None
            await self._write(one, [woke], end, Also(consumed=[signal.id]))
        elif self._times_out and self._was_parked():
            await self._write(one, [record(self._next(), "first/woke", Kind.WOKE, None, failed=True)], None)
        elif not self._looked:
            await self._look(one)
        else:
            due = LONG_AGO if self._times_out and "first/woke" not in self._records else None
            await self._write(one, [], states.park(_R, ready_at=due, wakes=self._wakes, waiting=True))

    def _was_parked(self) -> bool:
        return self._one is not None and self._one.run.claim > 1 and "first/woke" not in self._records

    def _next(self) -> int:
        return max((one.seq for one in self._records.values()), default=0) + 1

    async def _claim(self) -> None:
        if self._dead:
            await self._begin_again()
        for one in (await self.worker.claim(1)).runs:
            self._take(one)

    def _take(self, one: ClaimedRun) -> None:
        assert (one.run.id, one.records is not None) == (self.run_id, True)
        self._one, self._looked = one, False
        self._records = {entry.key: entry for entry in one.records or ()}
        self._unread, self._wakes = list(one.signals), one.wakes

    async def _look(self, one: ClaimedRun) -> None:
        """Ask what has happened since the claim."""
        answer = await self.worker.claim(0, ())
        self._looked = True
        asked = [request for run_id, request in answer.requests if run_id == self.run_id]
        if any(request.verb is Verb.PAUSE for request in asked):
            await self._write(one, [], states.pause(_R, "why", asked=True))
        elif asked:
            await self._write(one, [], states.cancelled(_R, ERROR))
        elif self.run_id in answer.signalled:
            found = await self.worker.store.unread(self.worker.id, [self.run_id])
            if self.run_id in found:
                self._unread, self._wakes = list(found[self.run_id].signals), found[self.run_id].wakes

    async def _write(
        self, one: ClaimedRun, records: list[Record], change: Change | None, also: Also | None = None
    ) -> None:
        """Twice, as after a lost answer."""
        write = RunWrite(one.ref, records, change, also)
        (outcome,) = await self.worker.commit(write)
        if outcome is Outcome.LEASE_LOST:
            assert await self.worker.commit(write) == [Outcome.LEASE_LOST]
            await self._begin_again()
            return
        assert await self.worker.commit(write) == [Outcome.APPLIED]
        self.note(*records)
        if change is not None:
            self._one = None
            self.ended = change.state in states.TERMINAL

    async def _begin_again(self) -> None:
        self.worker, self._one, self._dead = await Worker.start(self.worker.store), None, False


@dataclass
class _Scene:
    """An executor that holds its run, and what others do: three steps."""

    executor: _Executor
    steps: Sequence[Step]
    sent: list[str]
    end: State = State.COMPLETED


async def _scene(
    store: Store, make: Callable[[_Executor], Sequence[Step]], sent: list[str], **other: bool | str | State
) -> _Scene:
    worker, one = await claimed(store)
    times_out, topic = bool(other.get("times_out")), str(other.get("topic", ""))
    executor = _Executor(worker, one, needs=len(sent), times_out=times_out, topic=topic)
    return _Scene(executor, make(executor), sent, State(str(other.get("end", State.COMPLETED))))


def _send(executor: _Executor, signal_id: str) -> Step:
    return lambda: executor.worker.store.send_signals([NewSignal(executor.run_id, signal_id, "approval", "true")])


async def _signals(_: StoreHarness, store: Store) -> _Scene:
    return await _scene(store, lambda executor: [_send(executor, one) for one in ("a", "a", "b")], ["a", "b"])


async def _timeout(_: StoreHarness, store: Store) -> _Scene:
    def steps(executor: _Executor) -> Sequence[Step]:
        return [_send(executor, one) for one in ("a", "b", "a")]

    return await _scene(store, steps, ["a", "b"], times_out=True)


async def _child(_: StoreHarness, store: Store) -> _Scene:
    worker, one = await claimed(store)
    kid = new_run(_KID.workflow, parent=one.run.id, parent_key="kid", shard=one.run.shard)
    await worker.apply(one, record(1, "kid", Kind.CALL, kid.id), also=Also(children=[kid]))
    helper = await Worker.start(store)
    (held,) = (await helper.claim(1, [_KID])).runs

    def end() -> Awaitable[object]:
        return helper.apply(held, change=states.complete(_R, "1"))

    async def leave() -> None:
        await store.unregister(helper.id)

    executor = _Executor(worker, one, needs=1, times_out=False, topic="")
    executor.note(record(1, "kid", Kind.CALL, kid.id))
    return _Scene(executor, [end, end, leave], [kid.id])


async def _cancel(_: StoreHarness, store: Store) -> _Scene:
    def steps(executor: _Executor) -> Sequence[Step]:
        return [_send(executor, "a"), lambda: _cancelled(store, executor.run_id), _send(executor, "b")]

    return await _scene(store, steps, ["a", "b", "never sent"], end=State.CANCELLED)


async def _cancelled(store: Store, run_id: str) -> None:
    assert await store.request(run_id, Request(Verb.CANCEL)) is not None


async def _takeover(harness: StoreHarness, store: Store) -> _Scene:
    def steps(executor: _Executor) -> Sequence[Step]:
        return [_send(executor, "a"), lambda: executor.die(harness), _send(executor, "b")]

    return await _scene(store, steps, ["a", "b"])


async def _pause(_: StoreHarness, store: Store) -> _Scene:
    def steps(executor: _Executor) -> Sequence[Step]:
        async def pause_and_resume() -> None:
            await store.request(executor.run_id, Request(Verb.PAUSE))
            await store.request(executor.run_id, Request(Verb.RESUME))

        return [_send(executor, "a"), pause_and_resume, _send(executor, "b")]

    return await _scene(store, steps, ["a", "b"])


async def _event(_: StoreHarness, store: Store) -> _Scene:
    first, second = (Published(new_id(), f"topic {new_id()}", "", "true", 600.0) for _ in range(2))
    second = Published(second.id, first.topic, "", "true", 600.0)

    def steps(_: _Executor) -> Sequence[Step]:
        return [partial(store.publish, [event]) for event in (first, first, second)]

    return await _scene(store, steps, [first.id, second.id], topic=first.topic)


SCENES: dict[str, Callable[[StoreHarness, Store], Awaitable[_Scene]]] = {
    "signals": _signals,
    "timeout": _timeout,
    "child": _child,
    "cancel": _cancel,
    "takeover": _takeover,
    "pause": _pause,
    "event": _event,
}
