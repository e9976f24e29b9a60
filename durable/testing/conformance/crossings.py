"""Requests that cross with what a worker commits, and with each other: one legal outcome each."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from durable import states
from durable.model import Change, ClaimedRun, Kind, Outcome, Request, Run, RunWrite, State, Verb
from durable.store import Store
from durable.testing.conformance.harness import (
    NEVER,
    StoreHarness,
    Worker,
    claimed,
    create,
    read,
    record,
    snapshot,
)
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME, only, reach
from durable.testing.conformance.writes import ERROR

_R, _C = State.RUNNING, State.COMPENSATING
_A = TypeVar("_A")
_B = TypeVar("_B")
_ENDS: dict[str, tuple[State, Change]] = {
    "complete": (_R, states.complete(_R, "1")),
    "fail": (_R, states.fail(_R, ERROR)),
    "cancelled": (_R, states.cancelled(_R, ERROR)),
    "compensated": (_C, states.compensated(_C, ERROR)),
    "fail in compensation": (_C, states.fail(_C, ERROR)),
    "cancelled in compensation": (_C, states.cancelled(_C, ERROR)),
}
_LEAVES: dict[str, Callable[[ClaimedRun], Change]] = {
    "sleep": lambda one: states.park(_R, ready_at=NEVER, wakes=one.wakes),
    "wait": lambda one: states.park(_R, ready_at=None, wakes=one.wakes, waiting=True),
    "sleep, knowing the counter": lambda one: states.park(_R, ready_at=NEVER, wakes=one.wakes + 1),
    "try again": lambda _: states.try_again(_R, NEVER),
    "release": lambda _: states.release(_R),
}


class CrossingConformance:
    # -- what a worker commits ------------------------------------------------------------------------

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE], ids=["cancel", "pause"])
    @pytest.mark.parametrize("end", _ENDS)
    async def test_P29_whatever_ends_a_run_ends_the_request(
        self, harness: StoreHarness, end: str, request_: Request
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        state, change = _ENDS[end]
        if state is _C:
            await worker.apply(one, record(1), change=states.compensate(_R, ERROR))
        await store.request(one.run.id, request_)
        await worker.apply(one, record(2), change=change)
        run = await read(store, one.run.id)
        assert (run.state, run.requested, run.ready_at) == (change.state, None, None)
        assert run.ended_at is not None

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE], ids=["cancel", "pause"])
    async def test_P29_giving_a_run_up_ends_the_request(self, harness: StoreHarness, request_: Request) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, request_)
        await harness.expire(worker.id)
        await store.reap(limit=1)
        run = await read(store, one.run.id)
        assert (run.state, run.requested) == (State.DEAD_LETTER, None)

    @pytest.mark.parametrize("asked", [True, False], ids=["asked", "does not fit"])
    async def test_a_run_that_its_worker_pauses_is_paused(self, harness: StoreHarness, asked: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, PAUSE)
        write = RunWrite(one.ref, [record(1)], states.pause(_R, "the reason", asked=asked))
        assert await worker.commit(write) == [Outcome.APPLIED]
        after = await snapshot(store, one.run.id)
        run = await read(store, one.run.id)
        assert (run.state, run.reason, run.requested, run.ready_at) == (State.PAUSED, "the reason", None, None)
        assert (await worker.claim()).runs == []
        assert await worker.commit(write) == [Outcome.APPLIED]
        assert await snapshot(store, one.run.id) == after

    @pytest.mark.parametrize("replaced_by", [CANCEL, RESUME], ids=["cancel", "resume"])
    @pytest.mark.parametrize("state", [_R, _C])
    async def test_P29_a_pause_that_was_overtaken_gives_the_run_back(
        self, harness: StoreHarness, state: State, replaced_by: Request
    ) -> None:
        """The worker was told to pause, and meanwhile somebody cancelled or resumed: it must not stand still."""
        store = await harness.fresh()
        worker, one = await claimed(store)
        if state is _C:
            await worker.apply(one, record(1), change=states.compensate(_R, ERROR))
        await store.request(one.run.id, PAUSE)
        await store.request(one.run.id, replaced_by)
        write = RunWrite(one.ref, [record(2)], states.pause(state, "the reason", asked=True))
        assert await worker.commit(write) == [Outcome.APPLIED]
        run = await read(store, one.run.id)
        assert (run.state, run.reason) == (states.after(state, states.Event.RELEASE), None)
        assert run.requested == (CANCEL if replaced_by is CANCEL else None)
        after = await snapshot(store, one.run.id)
        assert await worker.commit(write) == [Outcome.APPLIED]
        assert await snapshot(store, one.run.id) == after
        _, again = await only(store)
        assert again.run.id == one.run.id

    async def test_P54_a_run_that_does_not_fit_is_paused_although_it_is_to_be_cancelled(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, CANCEL)
        await worker.apply(one, change=states.pause(_R, "does not fit"))
        run = await read(store, one.run.id)
        assert (run.state, run.requested, run.ready_at) == (State.PAUSED, CANCEL, None)
        assert (await worker.claim()).runs == []
        assert await store.request(one.run.id, RESUME) is State.PENDING
        again = await worker.take()
        assert again.run.requested == CANCEL

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE], ids=["cancel", "pause"])
    @pytest.mark.parametrize("leave", _LEAVES)
    async def test_a_run_that_leaves_its_worker_with_a_request_open_is_ready_at_once(
        self, harness: StoreHarness, leave: str, request_: Request
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, request_)
        await worker.apply(one, record(1), change=_LEAVES[leave](one))
        again = await worker.take()
        assert (again.run.id, again.run.requested) == (one.run.id, request_)

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE, RESUME], ids=["cancel", "pause", "resume"])
    async def test_a_request_is_a_wake_that_a_park_can_miss(self, harness: StoreHarness, request_: Request) -> None:
        """The counter rises with a withdrawal too: the worker may have gathered its park before it heard of that."""
        store = await harness.fresh()
        worker, one = await claimed(store)
        if request_ is RESUME:
            await store.request(one.run.id, PAUSE)
        await store.request(one.run.id, request_)
        await worker.apply(one, change=states.park(_R, ready_at=None, wakes=one.wakes, waiting=True))
        assert (await worker.take()).wakes > one.wakes

    # -- at once ----------------------------------------------------------------------------------------

    async def test_P29_many_who_cancel_at_once_cancel_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for _ in range(5):
            (run_id,) = await create(store)
            asked = [Request(Verb.CANCEL, "together", "all")] * 8
            answers = await asyncio.gather(*((store, other)[n % 2].request(run_id, one) for n, one in enumerate(asked)))
            assert answers == [State.CANCELLED] * 8
            assert [entry.key for entry in await store.history(run_id)] == ["/request/1"]

    async def test_P29_cancel_against_completion(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for n in range(10):
            worker, one = await claimed(store)
            outcome, answer = await _both(
                n, worker.write(one, record(1), change=states.complete(_R, "1")), other.request(one.run.id, CANCEL)
            )
            assert outcome is Outcome.APPLIED
            assert answer in (None, _R)
            run = await read(store, one.run.id)
            assert (run.state, run.requested, run.ready_at) == (State.COMPLETED, None, None)
            assert await store.request(one.run.id, CANCEL) is None

    async def test_P29_cancel_against_a_park(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for n in range(10):
            worker, one = await claimed(store)
            park = states.park(_R, ready_at=NEVER, wakes=one.wakes)
            outcome, answer = await _both(
                n, worker.write(one, record(1), change=park), other.request(one.run.id, CANCEL)
            )
            assert outcome is Outcome.APPLIED
            assert answer in (_R, State.SLEEPING)
            again = await worker.take()
            assert (again.run.id, again.run.requested) == (one.run.id, CANCEL)
            await worker.apply(again, change=states.cancelled(_R, ERROR))

    async def test_P29_cancel_against_a_pause(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for n in range(10):
            worker, one = await claimed(store)
            await store.request(one.run.id, PAUSE)
            outcome, answer = await _both(
                n,
                worker.write(one, record(1), change=states.pause(_R, "why", asked=True)),
                other.request(one.run.id, CANCEL),
            )
            assert outcome is Outcome.APPLIED
            assert answer in (_R, State.PENDING)
            again = await worker.take()
            assert (again.run.id, again.run.requested) == (one.run.id, CANCEL)
            await worker.apply(again, change=states.cancelled(_R, ERROR))

    async def test_P29_cancel_against_the_first_claim(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for n in range(10):
            (run_id,) = await create(store)
            worker = await Worker.start(store)
            answer, state = await _both(n, worker.claim(), other.request(run_id, CANCEL))
            if state is State.CANCELLED:
                assert answer.runs == []
                continue
            assert state is _R
            assert list((await worker.claim(limit=0)).requests) == [(run_id, CANCEL)]
            (one,) = answer.runs
            await worker.apply(one, change=states.cancelled(_R, ERROR))

    async def test_P29_pause_and_resume_at_once_leave_a_paused_or_a_ready_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for n in range(10):
            run_id = await reach(harness, store, "waiting")
            paused, resumed = await _both(n, store.request(run_id, PAUSE), other.request(run_id, RESUME))
            run = await read(store, run_id)
            assert paused is State.PAUSED
            assert (run.state, run.ready_at is None) == (
                (State.PAUSED, True) if resumed is None else (State.PENDING, False)
            )
            await _end(store, run)

    async def test_P29_one_of_many_who_retry_at_once_retries(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for _ in range(5):
            run_id = await reach(harness, store, "failed")
            claim = (await read(store, run_id)).claim
            answers = await asyncio.gather(
                *((store, other)[n % 2].request(run_id, Request(Verb.RETRY, by=f"operator {n}")) for n in range(6))
            )
            assert sorted(answer or "" for answer in answers) == [*[""] * 5, State.PENDING]
            run = await read(store, run_id)
            assert (run.state, run.claim) == (State.PENDING, claim + 1)
            assert [entry.kind for entry in await store.history(run_id)].count(Kind.REQUEST) == 1
            await _end(store, run)


async def _both(round_: int, one: Awaitable[_A], other: Awaitable[_B]) -> tuple[_A, _B]:
    """Both at once; the one that is begun first takes turns."""
    if round_ % 2:
        theirs, mine = await asyncio.gather(other, one)
        return mine, theirs
    return await asyncio.gather(one, other)


async def _end(store: Store, run: Run) -> None:
    """Take the run out of the way of the next round."""
    if run.state is State.PAUSED:
        await store.request(run.id, RESUME)
    worker, one = await only(store)
    assert one.run.id == run.id
    await worker.apply(one, change=states.complete(_R, "1"))
