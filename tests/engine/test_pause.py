"""An operator's stop, and the stop of a step that has no attempt left: what stands still, and what goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    NonRetryable,
    Retry,
    RunCancelled,
    RunCompensated,
    RunFinished,
    State,
    workflow,
)
from durable import failures as stored
from tests.engine.backends import SOON, Backend
from tests.engine.test_cancel import LONG, held, kinds, recorded
from tests.engine.test_compensation import Ledger


class Fails:
    """A step function that fails until its cause is gone."""

    def __init__(self, ledger: Ledger, name: str = "charge") -> None:
        self.ledger = ledger
        self.name = name
        self.broken = True

    async def __call__(self, *_: Any) -> str:
        self.ledger.made.append(f"{self.name}!" if self.broken else self.name)
        if self.broken:
            raise ConnectionError("the bank is down")
        return self.name


async def paused(engine: Engine, run_id: str) -> Any:
    return await held(engine, run_id, State.PAUSED)


# -- pause and resume -----------------------------------------------------------------------------


async def test_a_pause_lets_the_running_step_end_and_then_nothing_executes(backend: Backend) -> None:
    ledger = Ledger()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return ledger.do("slow")

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("slow", slow)
        return await ctx.step("next", ledger.do, "next")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        await engine.pause(handle.run_id, reason="bank is down", by="ops")
        await recorded(engine, handle.run_id, "pause")
        go_on.set()
        run = await paused(engine, handle.run_id)
        assert run.reason == "bank is down"
        assert run.owner is None
        assert run.requested is None
        await engine.run_until_idle()
        assert ledger.made == ["slow"]
        await engine.resume(handle.run_id, by="ops")
        assert await handle.result(timeout=SOON) == "next"
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["slow", "next"]
    assert kinds(entries) == [
        "triggered", "running", "pause", "started", "completed", "resume", "started", "completed", "completed",
    ]  # fmt: skip


async def test_a_pause_of_gathered_steps_lets_all_of_them_end(backend: Backend) -> None:
    ledger = Ledger()
    begun, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def slow(name: str) -> str:
        begun.release()
        await go_on.wait()
        return ledger.do(name)

    @workflow
    async def flow(ctx: Context) -> list[str]:
        found = await asyncio.gather(*(ctx.step(f"slow {n}", slow, f"{n}") for n in range(3)))
        return [*found, await ctx.step("next", ledger.do, "next")]

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        for _ in range(3):
            await begun.acquire()
        await engine.pause(handle.run_id)
        await recorded(engine, handle.run_id, "pause")
        go_on.set()
        await paused(engine, handle.run_id)
        assert sorted(ledger.made) == ["0", "1", "2"]
        await engine.resume(handle.run_id)
        assert await handle.result(timeout=SOON) == ["0", "1", "2", "next"]
    assert sorted(ledger.made[:3]) == ["0", "1", "2"]
    assert ledger.made[3:] == ["next"]


@pytest.mark.parametrize("delay", [0.0, LONG], ids=["pending", "delayed"])
async def test_a_run_that_has_not_started_is_paused_at_once_and_starts_after_resume(
    backend: Backend, delay: float
) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("a", ledger.do, "a")

    async with backend.engine(flow).client() as client:
        handle = await client.trigger(flow, delay=delay)
        await client.pause(handle.run_id)
        run = await client.get_run(handle.run_id)
        assert run.state is State.PAUSED
        assert run.ready_at is None
    async with backend.engine(flow) as engine:
        await backend.idle(engine)
        await engine.run_until_idle()
        assert ledger.made == []
        await engine.resume(handle.run_id)
        assert await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON) == "a"


@pytest.mark.parametrize("linger", [0.0, 30.0], ids=["evicted", "in memory"])
async def test_a_sleep_that_ended_during_a_pause_ends_at_once_after_resume(backend: Backend, linger: float) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.sleep("nap", 0.4)
        return "woke"

    @workflow
    async def other(ctx: Context) -> None:
        await ctx.sleep("longer", 0.5)

    async with backend.engine(flow, other, linger=linger) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        await engine.pause(handle.run_id)
        await backend.result(engine, await engine.trigger(other))  # the sleep is over by now
        assert await handle.status() == State.PAUSED
        assert "woke" not in kinds(await engine.timeline(handle.run_id))
        await engine.resume(handle.run_id)
        await engine.run_until_idle()
        assert await handle.result(timeout=SOON) == "woke"


async def test_a_compensation_is_paused_between_two_and_goes_on_where_it_stopped(backend: Backend) -> None:
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
        await engine.pause(handle.run_id, reason="look first")
        await recorded(engine, handle.run_id, "pause")
        go_on.set()
        run = await paused(engine, handle.run_id)
        assert run.reason == "look first"
        await engine.run_until_idle()
        assert ledger.made == ["reserve", "charge", "undo charge"]
        await engine.resume(handle.run_id)
        with pytest.raises(RunCompensated, match="address unknown") as raised:
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "charge", "undo charge", "undo reserve"]
    assert raised.value.failure.undone == ("charge", "reserve")


async def test_a_pause_that_is_withdrawn_in_time_stops_nothing(backend: Backend) -> None:
    ledger = Ledger()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        begun.set()
        await go_on.wait()
        return ledger.do("slow")

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("slow", slow)
        return await ctx.step("next", ledger.do, "next")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        await engine.pause(handle.run_id)
        await engine.resume(handle.run_id)
        go_on.set()
        assert await handle.result(timeout=SOON) == "next"
    assert ledger.made == ["slow", "next"]


async def test_pausing_twice_is_pausing_once_and_a_cancel_replaces_a_pause(backend: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", hangs)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        await engine.pause(handle.run_id)
        await engine.pause(handle.run_id)
        assert await handle.status() == State.RUNNING
        assert await handle.cancel()
        with pytest.raises(RunFinished, match=r"asked to be cancelled: pause does not apply|is cancelled: pause"):
            await engine.pause(handle.run_id)
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


# -- pause on exhaustion --------------------------------------------------------------------------


async def test_a_step_without_attempts_left_pauses_and_each_resume_is_one_more_attempt(backend: Backend) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        return await ctx.step("charge", charge, retry=Retry(2, initial_delay=0.01, on_exhausted="pause"))

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await backend.idle(engine)
        run = await paused(engine, handle.run_id)
        assert run.reason == "step 'charge' has no attempt left: ConnectionError: the bank is down"
        await engine.resume(handle.run_id)
        await backend.idle(engine)
        async with asyncio.timeout(SOON):
            while ledger.made.count("charge!") < 3:  # noqa: ASYNC110 - the third attempt, paused again
                await asyncio.sleep(0.002)
        await paused(engine, handle.run_id)
        charge.broken = False
        await engine.resume(handle.run_id)
        assert await handle.result(timeout=SOON) == "charge"
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["reserve", "charge!", "charge!", "charge!", "charge"]
    attempts = [(entry.kind, entry.attempt) for entry in entries if entry.name == "charge"]
    assert attempts == [
        ("started", 1), ("retrying", 1), ("started", 2), ("retrying", 2), ("started", 3), ("retrying", 3),
        ("started", 4), ("completed", 4),
    ]  # fmt: skip


async def test_what_is_declared_fatal_fails_also_where_exhaustion_pauses(backend: Backend) -> None:
    async def fatal(kind: str) -> None:
        raise NonRetryable("no such card") if kind == "non-retryable" else KeyError("unless")

    @workflow
    async def flow(ctx: Context, kind: str) -> None:
        await ctx.step("fatal", fatal, kind, retry=Retry(3, unless=KeyError, on_exhausted="pause"))

    async with backend.engine(flow) as engine:
        for kind in ("non-retryable", "unless"):
            assert (await backend.ended(engine, await engine.trigger(flow, kind))).state is State.FAILED


async def test_a_compensation_without_attempts_left_pauses_and_resume_goes_on_with_it(backend: Backend) -> None:
    ledger = Ledger()
    refund = Fails(ledger, "refund")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step(
            "charge", ledger.do, "charge", compensate=refund, compensate_retry=Retry(1, on_exhausted="pause")
        )
        raise ValueError("address unknown")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        run = await paused(engine, handle.run_id)
        assert run.reason == "the compensation of 'charge' has no attempt left: ConnectionError: the bank is down"
        assert stored.from_json(run.error).message == "address unknown"
        refund.broken = False
        await engine.resume(handle.run_id)
        with pytest.raises(RunCompensated, match="address unknown") as raised:
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "charge", "refund!", "refund", "undo reserve"]
    assert raised.value.failure.undone == ("charge", "reserve")


async def test_a_compensation_that_is_paused_can_be_cancelled_too(backend: Backend) -> None:
    ledger = Ledger()
    refund = Fails(ledger, "refund")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step(
            "charge", ledger.do, "charge", compensate=refund, compensate_retry=Retry(1, on_exhausted="pause")
        )
        raise ValueError("address unknown")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await paused(engine, handle.run_id)
        refund.broken = False
        assert await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
    assert ledger.made == ["charge", "refund!", "refund"]
