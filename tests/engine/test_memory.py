"""What a run leaves behind in memory needs no collector: it looks seldom, and at everything."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

from durable import Context, State, StepFailed, Workflow, workflow
from durable.execution import Execution
from tests.engine.backends import SOON, Backend, memory


async def add(a: int, b: int) -> int:
    return a + b


def add_in_a_thread(a: int, b: int) -> int:
    return a + b


async def broken() -> None:
    raise ConnectionError("refused")


@workflow
async def steps(ctx: Context) -> int:
    return await ctx.step("one", add, 1, 2) + await ctx.step("two", add_in_a_thread, 1, 2)


@workflow
async def gathered(ctx: Context) -> int:
    return sum(await asyncio.gather(*(ctx.step("one", add, n, n) for n in range(3))))


@workflow
async def fails(ctx: Context) -> None:
    with pytest.raises(StepFailed):
        await ctx.step("broken", broken)


@workflow
async def sleeps(ctx: Context) -> None:
    await ctx.sleep("night", 3600)


@workflow
async def waits(ctx: Context) -> None:
    await ctx.wait_for("go", int)


@workflow
async def shares(ctx: Context) -> int:
    return await ctx.step("one", add, 1, 2, idempotency_key="k")


@pytest.fixture
def of_others() -> Iterator[list[Execution]]:
    """What other tests hold on to. From here on nothing is collected."""
    gc.collect()
    gc.disable()
    yield executions()
    gc.enable()


def executions() -> list[Execution]:
    return [one for one in gc.get_objects() if isinstance(one, Execution)]


@pytest.mark.parametrize("flow", [steps, gathered, fails, sleeps, waits, shares], ids=lambda flow: flow.name)
async def test_nothing_of_a_run_that_has_left_stays_in_memory(
    flow: Workflow[None, object], of_others: list[Execution]
) -> None:
    backend: Backend = memory()
    async with backend.engine(flow, linger=0) as engine:
        await engine.trigger_many(flow, [None] * 5)
        await engine.run_until_idle()
    assert [one for one in executions() if one not in of_others] == []  # the engine has waited for what it unwinds


async def test_nothing_of_a_run_that_was_paused_while_it_executed_stays_in_memory(of_others: list[Execution]) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        await go_on.wait()

    @workflow
    async def paused(ctx: Context) -> None:
        await ctx.step("slow", slow)
        await ctx.step("next", add, 1, 2)

    backend: Backend = memory()
    async with backend.engine(paused, linger=0) as engine, asyncio.timeout(SOON):
        handle = await engine.trigger(paused, None)
        await started.wait()
        await engine.pause(handle.run_id)
        while not any(one.pausing for one in executions() if one not in of_others):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        go_on.set()
        await backend.until(engine, handle.run_id, State.PAUSED)
    assert [one for one in executions() if one not in of_others] == []  # the engine has heard that it is committed
