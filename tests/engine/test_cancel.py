"""Cancellation: from any process and in any state, what was done is undone once, and the run ends ``cancelled``."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from durable import (
    Context,
    InvalidArgument,
    Retry,
    RunCancelled,
    RunCompensated,
    RunFailed,
    RunNotFound,
    State,
    TimelineEntry,
    current_step,
    workflow,
)
from durable import failures as stored
from tests.engine.backends import SOON, Backend
from tests.engine.test_compensation import Ledger

LONG = 3600.0
"""Seconds that no test waits for."""


async def held(engine: Any, run_id: str, state: State) -> Any:
    """The run, once it is in ``state``; on a virtual clock no time passes."""
    async with asyncio.timeout(SOON):
        while (run := await engine.get_run(run_id)).state is not state:  # noqa: ASYNC110 - only ends are announced
            await asyncio.sleep(0.002)
    return run


async def recorded(engine: Any, run_id: str, kind: str) -> None:
    """Return when the timeline has an entry of this kind: a worker has heard of a request, a run attempt has failed."""
    async with asyncio.timeout(SOON):
        while kind not in kinds(await engine.timeline(run_id)):  # noqa: ASYNC110 - nobody announces a record
            await asyncio.sleep(0.002)


def kinds(entries: list[TimelineEntry]) -> list[str]:
    return [entry.kind for entry in entries]


async def test_P29_P30_a_running_step_is_cancelled_and_what_was_done_is_undone_once(backend: Backend) -> None:
    ledger = Ledger()
    begun, told = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.set()
            raise

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        await ctx.step("hangs", hangs, compensate=lambda _: ledger.undo("hangs"), retry=5)
        await ctx.step("after", ledger.do, "after")

    async with backend.engine(flow, poll_interval=30) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        assert await handle.cancel(reason="customer called", by="support")
        with pytest.raises(RunCancelled, match="customer called") as raised:
            await handle.result(timeout=SOON)
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert told.is_set()
    assert raised.value.reason == "customer called"
    assert run.state is State.CANCELLED
    assert run.ended_at is not None
    assert run.requested is None
    assert ledger.made == ["reserve", "charge", "undo charge", "undo reserve"]
    failure = stored.from_json(run.error)
    assert failure.error_type == "durable.errors.RunCancelled"
    assert failure.undone == ("charge", "reserve")
    assert kinds(entries) == [
        "triggered", "running", "started", "completed", "started", "completed", "cancel", "compensating",
        "undo started", "undo completed", "undo started", "undo completed", "cancelled",
    ]  # fmt: skip
    assert '"by":"support"' in str(next(entry for entry in entries if entry.kind == "cancel").data)


async def test_P30_a_cancel_from_another_engine_reaches_a_step_at_once_whatever_the_poll_interval(
    real_time: Backend,
) -> None:
    begun, told = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            told.set()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("hangs", hangs)

    async with real_time.engine(flow, poll_interval=30) as worker, real_time.engine(flow).client() as client:
        run_id = (await client.trigger(flow)).run_id
        await begun.wait()
        asked = time.monotonic()
        assert await client.cancel(run_id)
        async with asyncio.timeout(1.0):
            await told.wait()
        print(f"{real_time.name}: a running step was told {1000 * (time.monotonic() - asked):.1f} ms after the call")
        with pytest.raises(RunCancelled):
            await (await client.handle(flow, run_id=run_id)).result(timeout=SOON)
        assert (await worker.get_run(run_id)).state is State.CANCELLED


async def test_P30_a_step_in_a_thread_is_told_and_its_result_is_dropped(backend: Backend) -> None:
    ledger = Ledger()
    begun, seen = threading.Event(), threading.Event()

    def blocks() -> str:
        begun.set()
        step = current_step()
        end = time.monotonic() + SOON
        while not step.cancelled and time.monotonic() < end:
            time.sleep(0.001)
        if step.cancelled:
            seen.set()
        return "too late"

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        return await ctx.step("blocks", blocks, compensate=ledger.undo)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await asyncio.to_thread(begun.wait, SOON)
        await handle.cancel()
        assert await asyncio.to_thread(seen.wait, 1.0)
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


@pytest.mark.parametrize("delay", [0.0, LONG], ids=["pending", "delayed"])
async def test_P29_a_run_that_never_started_is_cancelled_at_once(backend: Backend, delay: float) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)

    async with backend.engine(flow).client() as client:
        handle = await client.trigger(flow, delay=delay)
        assert await client.cancel(handle.run_id, reason="never mind")
        assert not await client.cancel(handle.run_id, reason="never mind")
        with pytest.raises(RunCancelled, match="never mind"):
            await handle.result(timeout=SOON)
    async with backend.engine(flow) as engine:
        await backend.idle(engine)
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert run.state is State.CANCELLED
    assert run.started_at is None
    assert ledger.made == []
    assert kinds(entries) == ["triggered", "cancel", "cancelled"]


@pytest.mark.parametrize("linger", [0.0, 30.0], ids=["evicted", "in memory"])
async def test_P29_a_sleeping_run_is_cancelled_and_undone(backend: Backend, linger: float) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.sleep("long", LONG)
        await ctx.step("after", ledger.do, "after")

    async with backend.engine(flow, linger=linger) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        assert await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["reserve", "undo reserve"]
    assert kinds(entries).count("cancel") == 1
    assert "woke" not in kinds(entries)


async def test_P29_a_run_in_a_long_backoff_is_cancelled_and_undone(backend: Backend) -> None:
    ledger = Ledger()

    def fails() -> None:
        ledger.do("try")
        raise ConnectionError("gone")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("fails", fails, retry=Retry(9, initial_delay=LONG, max_delay=LONG))

    async with backend.engine(flow, linger=0) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "try", "undo reserve"]


async def test_P29_a_run_that_waits_for_its_next_run_attempt_is_cancelled_and_undone(backend: Backend) -> None:
    ledger = Ledger()

    @workflow(retry=Retry(5, initial_delay=LONG, max_delay=LONG))
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        raise ValueError("again")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await recorded(engine, handle.run_id, "run attempt failed")
        assert await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P29_a_cancel_while_compensating_lets_the_compensations_end_and_keeps_the_error(
    backend: Backend,
) -> None:
    ledger = Ledger()
    undoing, go_on = asyncio.Event(), asyncio.Event()

    async def blocks(name: str) -> None:
        undoing.set()
        await go_on.wait()
        await ledger.undo(name)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=blocks)
        raise ValueError("address unknown")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await undoing.wait()
        assert await handle.cancel()
        await recorded(engine, handle.run_id, "cancel")
        go_on.set()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
        run = await engine.get_run(handle.run_id)
    assert ledger.made == ["reserve", "charge", "undo charge", "undo reserve"]
    assert stored.from_json(run.error).message == "address unknown"


async def test_P29_a_paused_run_is_cancelled_and_undone(backend: Backend) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.sleep("long", LONG)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        await engine.pause(handle.run_id)
        assert await handle.status() == State.PAUSED
        assert await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P29_a_cancelled_run_whose_compensation_fails_ends_failed_and_says_what_is_left(backend: Backend) -> None:
    ledger = Ledger()
    ledger.broken.add("charge")
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        await ctx.step("hangs", hangs)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        await handle.cancel(reason="no more")
        with pytest.raises(RunFailed, match="no more") as raised:
            await handle.result(timeout=SOON)
    assert raised.value.failure.not_undone == ("charge",)
    assert raised.value.failure.undone == ("reserve",)


async def test_P29_twenty_cancels_at_once_are_one(backend: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", hangs)

    async with backend.engine(flow) as engine, backend.engine(flow).client() as client:
        handle = await engine.trigger(flow)
        await begun.wait()
        asked = await asyncio.gather(
            *((engine, client)[n % 2].cancel(handle.run_id, reason=f"reason {n}", by=f"{n}") for n in range(20))
        )
        with pytest.raises(RunCancelled, match="reason "):
            await handle.result(timeout=SOON)
        assert any(asked)
        assert await engine.cancel(handle.run_id, reason="once more") is False
        entries = await engine.timeline(handle.run_id)
    assert kinds(entries).count("cancel") == 1
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P29_a_cancel_that_crosses_the_completion_has_one_of_two_outcomes(backend: Backend) -> None:
    ledger = Ledger()

    async def quick(name: str) -> str:
        return ledger.do(name)

    @workflow
    async def flow(ctx: Context, name: str) -> str:
        await ctx.step("a", quick, f"{name}/a", compensate=ledger.undo)
        return await ctx.step("b", quick, f"{name}/b", compensate=ledger.undo)

    async def crossed(engine: Any, n: int) -> State:
        handle = await engine.trigger(flow, f"{n}")
        for _ in range(n % 12):
            await asyncio.sleep(0)
        applied = await handle.cancel()
        try:
            await handle.result(timeout=SOON)
        except RunCancelled:
            assert applied
        run = await engine.get_run(handle.run_id)
        assert run.requested is None
        return State(run.state)

    async with backend.engine(flow) as engine:
        states = await asyncio.gather(*(crossed(engine, n) for n in range(60)))
        async with asyncio.timeout(SOON):
            await engine.run_until_idle()
    for n, state in enumerate(states):
        made = [entry for entry in ledger.made if entry.removeprefix("undo ").partition("/")[0] == f"{n}"]
        done = [entry for entry in made if not entry.startswith("undo")]
        assert done == [f"{n}/a", f"{n}/b"][: len(done)]
        undone = [f"undo {entry}" for entry in reversed(done)]
        assert made == done + (undone if state is State.CANCELLED else [])
        assert state in (State.CANCELLED, State.COMPLETED)


async def test_P29_a_run_that_has_ended_is_not_cancelled(backend: Backend) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context, how: str) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=None if how == "failed" else ledger.undo)
        if how != "completed":
            raise ValueError(how)
        return how

    async with backend.engine(flow) as engine:
        for how in ("completed", "failed", "compensated"):
            handle = await engine.trigger(flow, how)
            before = await backend.ended(engine, handle)
            assert before.state == how
            assert await handle.cancel() is False
            assert await engine.get_run(handle.run_id) == before
        made = list(ledger.made)
        await engine.run_until_idle()
    assert ledger.made == made


async def test_P29_a_cancel_while_no_worker_runs_is_carried_out_by_the_next(backend: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", hangs)

    async with backend.engine(flow, drain_timeout=0.01) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
    begun.clear()
    async with backend.engine(flow).client() as client:
        assert await client.cancel(handle.run_id, reason="meanwhile")
        requested = (await client.get_run(handle.run_id)).requested
        assert requested is not None
        assert requested.reason == "meanwhile"
    async with backend.engine(flow) as engine:
        with pytest.raises(RunCancelled, match="meanwhile"):
            await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON)
    assert not begun.is_set()
    assert ledger.made == ["reserve", "undo reserve"]


async def test_a_cancel_that_the_code_catches_is_carried_out_all_the_same(backend: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def stubborn(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        try:
            await ctx.step("hangs", hangs)
        except BaseException:
            await ctx.step("more", ledger.do, "more", compensate=ledger.undo)
        return "completed"

    async with backend.engine(stubborn) as engine:
        handle = await engine.trigger(stubborn)
        await begun.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_a_cancel_reaches_a_function_that_awaits_something_of_its_own(backend: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    @workflow
    async def flow(ctx: Context, first: bool) -> None:
        ctx.on_rollback("note", ledger.undo, "note")
        if first:
            await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        begun.set()
        await asyncio.Event().wait()

    async with backend.engine(flow) as engine:
        for first in (True, False):
            begun.clear()
            handle = await engine.trigger(flow, first)
            await begun.wait()
            await handle.cancel()
            with pytest.raises(RunCancelled):
                await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve", "undo note", "undo note"]


async def test_a_cancel_is_refused_with_what_is_wrong_with_it(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.sleep("long", LONG)

    async with backend.engine(flow).client() as client:
        handle = await client.trigger(flow)
        with pytest.raises(InvalidArgument, match=r"reason .* is longer than 512 bytes"):
            await handle.cancel(reason="x" * 513)
        with pytest.raises(InvalidArgument, match=r"by .* contains the unprintable character U\+0000"):
            await handle.cancel(by="\0")
        with pytest.raises(RunNotFound, match="00000000-0000-7000-8000-000000000000"):
            await client.cancel("00000000-0000-7000-8000-000000000000")
        assert await handle.status() == State.PENDING


async def test_who_catches_run_failed_does_not_catch_a_cancellation() -> None:
    assert not issubclass(RunCancelled, RunFailed)
    assert issubclass(RunCompensated, RunFailed)
