"""Parking unwinds the function: nothing swallows it, nothing runs in it, nothing outlives it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from durable import Context, Retry, State, workflow
from tests.engine.backends import SOON, Backend, Listener
from tests.engine.test_replay import EVICT


async def test_P14_except_exception_does_not_swallow_a_sleep(backend: Backend) -> None:
    caught: list[str] = []

    @workflow
    async def careless(ctx: Context) -> str:
        for _ in range(2):
            try:
                await ctx.sleep("nap", EVICT)
            except Exception as error:
                caught.append(repr(error))
        return "slept"

    assert await backend.run(careless, linger=0) == "slept"
    assert caught == []


async def test_P14_no_operation_in_a_finally_runs_while_parking(backend: Backend) -> None:
    calls: list[str] = []

    async def effect(name: str) -> None:
        calls.append(name)

    @workflow
    async def tidy(ctx: Context) -> str:
        try:
            await ctx.sleep("nap", EVICT)
            await ctx.step("in time", effect, "in time")
        finally:
            calls.append("finally")
            await ctx.step("tidy up", effect, "tidy up")
            calls.append("tidied")
        return "done"

    assert await backend.run(tidy, linger=0) == "done"
    assert calls == ["finally", "in time", "finally", "tidy up", "tidied"]


async def test_P14_what_the_function_returns_while_it_is_unwound_is_ignored(backend: Backend) -> None:
    @workflow
    async def stubborn(ctx: Context) -> str:
        try:
            await ctx.sleep("nap", EVICT)
        except asyncio.CancelledError:
            return "swallowed"
        return "slept"

    assert await backend.run(stubborn, linger=0) == "slept"


async def test_P14_no_task_of_the_run_that_waits_for_an_operation_outlives_the_park(backend: Backend) -> None:
    ended: list[str] = []
    tasks: list[asyncio.Task[Any]] = []

    @workflow
    async def spawns(ctx: Context) -> str:
        async def branch(name: str, seconds: float) -> None:
            try:
                await ctx.sleep(name, seconds)
            finally:
                ended.append(name)

        tasks.extend(asyncio.create_task(branch(name, 0.5)) for name in ("a", "b"))  # parked well before
        await asyncio.gather(*tasks[-2:])
        return "done"

    async with backend.engine(spawns, linger=0) as engine:
        assert await backend.result(engine, await engine.trigger(spawns)) == "done"
    assert len(tasks) >= 4
    assert all(task.done() for task in tasks)
    assert len(ended) == len(tasks)


async def test_P14_operations_that_are_left_when_the_function_has_ended_are_cancelled(backend: Backend) -> None:
    events: list[str] = []
    running = asyncio.Event()

    async def endless() -> None:
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")

    @workflow
    async def leaves(ctx: Context) -> str:
        task = asyncio.create_task(ctx.step("endless", endless))
        await running.wait()
        return f"left {task.done()}"

    async with backend.engine(leaves) as engine:
        handle = await engine.trigger(leaves)
        assert await backend.result(engine, handle) == "left False"
        assert events == ["cancelled"]
        assert [entry.name for entry in await engine.timeline(handle.run_id) if entry.kind == "completed"] == ["leaves"]


async def test_P14_a_function_that_refuses_to_unwind_loses_its_slot_and_is_reported_with_its_stack(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("durable.steps", "durable.execution", "durable.warm"):
        monkeypatch.setattr(f"{module}.UNWIND", 0.05)
    abandoned = Listener("is abandoned")
    monkeypatch.setattr(logging.getLogger("durable.steps"), "handlers", [abandoned])
    release = asyncio.Event()
    passes: list[int] = []

    @workflow
    async def refuses(ctx: Context) -> str:
        passes.append(1)
        first = len(passes) == 1
        try:
            await ctx.sleep("nap", EVICT)
        except asyncio.CancelledError:
            while first and not release.is_set():
                await asyncio.wait([asyncio.ensure_future(release.wait())])
        return "slept"

    @workflow
    async def other(ctx: Context) -> str:
        return "other"

    async with backend.engine(refuses, other, linger=0, concurrency=1) as engine:
        handle = await engine.trigger(refuses)
        assert await backend.result(engine, handle) == "slept"  # on another pass, in the one slot
        assert await backend.result(engine, await engine.trigger(other)) == "other"
        async with asyncio.timeout(SOON):
            await abandoned.heard.wait()
        release.set()
    assert "release.wait()" in abandoned.line
    assert handle.run_id in abandoned.line


async def test_a_stopped_engine_gives_back_what_executes_and_consumes_no_attempt(backend: Backend) -> None:
    attempts: list[str] = []
    running = asyncio.Event()

    async def slow() -> str:
        attempts.append("slow")
        if not running.is_set():
            running.set()
            await asyncio.Event().wait()
        return "slow"

    async def undo(_: Any) -> None:
        attempts.append("undo")

    @workflow
    async def interrupted(ctx: Context) -> str:
        await ctx.step("first", lambda: attempts.append("first"), compensate=undo)
        return await ctx.step("slow", slow, retry=Retry(1), compensate=undo)

    async with backend.engine(interrupted, drain_timeout=0.05) as engine:
        handle = await engine.trigger(interrupted)
        await running.wait()
    async with backend.engine(interrupted) as engine:
        again = await engine.handle(interrupted, run_id=handle.run_id)
        assert await backend.result(engine, again) == "slow"
        entries = await engine.timeline(handle.run_id)
    assert attempts == ["first", "slow", "slow"]
    assert "takeover" not in {entry.kind for entry in entries}
    assert [(entry.name, entry.attempt) for entry in entries if entry.kind == "completed"][:2] == [
        ("first", 1),
        ("slow", 1),
    ]


async def test_a_run_that_is_to_be_paused_while_the_worker_stops_leaves_once_and_paused(backend: Backend) -> None:
    unwinding, stopping = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        raise ConnectionError("for the operator to look at")

    async def slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            unwinding.set()
            await stopping.wait()

    @workflow
    async def flow(ctx: Context) -> None:
        slow = ctx.step("slow", slowly)
        await asyncio.gather(slow, ctx.step("fails", fails, retry=Retry(1, on_exhausted="pause")))

    engine = backend.engine(flow, drain_timeout=0)
    await engine.start()
    handle = await engine.trigger(flow)
    await unwinding.wait()
    stop = asyncio.create_task(engine.stop())
    asyncio.get_running_loop().call_later(0.1, stopping.set)
    await stop
    async with backend.engine(flow).client() as client:
        assert (await client.get_run(handle.run_id)).state is State.PAUSED
