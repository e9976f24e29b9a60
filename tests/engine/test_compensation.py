"""Compensation: last completed first, each once, one that fails stops no other, the original error stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from durable import Context, Retry, RunCompensated, RunFailed, State, current_step, workflow
from durable import failures as stored
from tests.engine.backends import Backend
from tests.engine.test_replay import EVICT


class Ledger:
    """Steps ``do(name)`` and their compensations, in the order in which they happened."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.broken: set[str] = set()

    def do(self, name: str) -> str:
        self.made.append(name)
        return name

    async def undo(self, name: str) -> None:
        self.made.append(f"undo {name}")
        if name in self.broken:
            raise ConnectionError(f"cannot undo {name}")


def books(ledger: Ledger, between: Callable[[Context], Any] | None = None) -> Any:
    """A workflow of three compensable steps that then fails."""

    @workflow(name="books")
    async def flow(ctx: Context) -> None:
        for name in ("reserve", "charge", "ship"):
            twice = Retry(2, "fixed", initial_delay=0.01)
            await ctx.step(name, ledger.do, name, compensate=ledger.undo, compensate_retry=twice)
            if between is not None:
                await between(ctx)
        raise ValueError("address unknown")

    return flow


async def test_compensations_run_in_reverse_order_and_the_run_tells_what_was_undone(backend: Backend) -> None:
    ledger = Ledger()
    flow = books(ledger)
    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunCompensated, match="ValueError: address unknown") as raised:
            await backend.result(engine, handle)
        run = await engine.get_run(handle.run_id)
    assert ledger.made == ["reserve", "charge", "ship", "undo ship", "undo charge", "undo reserve"]
    assert raised.value.failure.undone == ("ship", "charge", "reserve")
    assert raised.value.failure.not_undone == ()
    assert run.state is State.COMPENSATED
    assert run.ended_at is not None


async def test_compensations_run_in_reverse_order_of_completion_after_replays(backend: Backend) -> None:
    ledger = Ledger()
    flow = books(ledger, lambda ctx: ctx.sleep("nap", EVICT))
    async with backend.engine(flow, linger=0) as engine:
        run = await backend.ended(engine, await engine.trigger(flow))
    assert run.state is State.COMPENSATED
    assert ledger.made == ["reserve", "charge", "ship", "undo ship", "undo charge", "undo reserve"]


async def test_gathered_steps_are_undone_in_reverse_order_of_completion(backend: Backend) -> None:
    ledger = Ledger()
    second_ended = asyncio.Event()

    async def first() -> str:
        await second_ended.wait()
        return ledger.do("first")

    async def second() -> str:
        second_ended.set()
        return ledger.do("second")

    @workflow
    async def both(ctx: Context) -> None:
        await asyncio.gather(
            ctx.step("first", first, compensate=ledger.undo), ctx.step("second", second, compensate=ledger.undo)
        )
        raise ValueError("no")

    async with backend.engine(both) as engine:
        await backend.ended(engine, await engine.trigger(both))
    assert ledger.made == ["second", "first", "undo first", "undo second"]


async def test_a_failing_compensation_is_retried_and_does_not_stop_the_others(backend: Backend) -> None:
    ledger = Ledger()
    ledger.broken.add("charge")
    flow = books(ledger)
    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed, match="address unknown") as raised:
            await backend.result(engine, handle)
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert type(raised.value) is RunFailed
    assert run.state is State.FAILED
    assert ledger.made[3:] == ["undo ship", "undo charge", "undo charge", "undo reserve"]
    assert raised.value.failure.undone == ("ship", "reserve")
    assert raised.value.failure.not_undone == ("charge",)
    kinds = [
        (entry.kind, entry.name) for entry in entries if entry.kind.startswith("undo") and "start" not in entry.kind
    ]
    assert kinds == [
        ("undo completed", "ship"),
        ("undo retrying", "charge"),
        ("undo failed", "charge"),
        ("undo completed", "reserve"),
    ]


async def test_a_step_without_compensation_and_a_failed_one_are_not_undone(backend: Backend) -> None:
    ledger = Ledger()

    def fails() -> str:
        raise ConnectionError("no")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("plain", ledger.do, "plain")
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", fails, compensate=ledger.undo)

    async with backend.engine(flow) as engine:
        run = await backend.ended(engine, await engine.trigger(flow))
    assert run.state is State.COMPENSATED
    assert ledger.made == ["plain", "reserve", "undo reserve"]
    failure = stored.from_json(run.error)
    assert failure.step == "charge"
    assert failure.undone == ("reserve",)


async def test_a_compensation_interrupted_by_a_stop_goes_on_with_what_is_left(backend: Backend) -> None:
    """P02 without the kill: recorded ones do not run again, and the replay of the function executes nothing."""
    ledger = Ledger()
    undoing, keys = asyncio.Event(), list[str]()

    async def blocks(name: str) -> None:
        keys.append(current_step().idempotency_key)
        if not undoing.is_set():
            undoing.set()
            await asyncio.Event().wait()
        await ledger.undo(name)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=blocks)
        await ctx.step("ship", ledger.do, "ship", compensate=ledger.undo)
        if not undoing.is_set():
            raise ValueError("the first error")
        await ctx.step("new", ledger.do, "new")
        raise ValueError("another error")

    async with backend.engine(flow, drain_timeout=0.05) as engine:
        handle = await engine.trigger(flow)
        await undoing.wait()
        assert await handle.status() == State.COMPENSATING
    async with backend.engine(flow) as engine:
        again = await engine.handle(flow, run_id=handle.run_id)
        with pytest.raises(RunCompensated, match="the first error"):
            await backend.result(engine, again)
    assert ledger.made == ["reserve", "charge", "ship", "undo ship", "undo charge", "undo reserve"]
    assert keys == [f"{handle.run_id}/charge/undo"] * 2


async def test_a_long_backoff_of_a_compensation_holds_no_slot(backend: Backend) -> None:
    ledger = Ledger()
    failed = asyncio.Event()

    async def flaky(name: str) -> None:
        if not failed.is_set():
            failed.set()
            raise ConnectionError("gone")
        await ledger.undo(name)

    @workflow
    async def flow(ctx: Context) -> None:
        twice = Retry(2, initial_delay=0.3)
        await ctx.step("charge", ledger.do, "charge", compensate=flaky, compensate_retry=twice)
        raise ValueError("no")

    @workflow
    async def other(ctx: Context) -> None:
        ledger.do("another run")

    async with backend.engine(flow, other, concurrency=1, linger=0) as engine:
        handle = await engine.trigger(flow)
        await failed.wait()
        await (await engine.trigger(other)).result(timeout=20)
        run = await backend.ended(engine, handle)
    assert run.state is State.COMPENSATED
    assert ledger.made == ["charge", "another run", "undo charge"]
