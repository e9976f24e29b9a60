"""Child workflows: one child for one call, whatever happens to the parent or to the child."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from durable import (
    ChildFailed,
    Context,
    Engine,
    InvalidArgument,
    NondeterminismError,
    PayloadError,
    RunFailed,
    State,
    workflow,
)
from tests.engine.backends import SOON, Backend, Passes


@workflow
async def doubled(ctx: Context, number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    await ctx.sleep("a little", 0.001)
    return 2 * number


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.wait_for("answer", str)


async def children(engine: Engine, run_id: str) -> list[str]:
    return [run.id for run in (await engine.list_runs(parent=run_id)).items]


@pytest.fixture(params=[1.0, 0.0], ids=["lingering", "evicted"])
def linger(request: pytest.FixtureRequest) -> float:
    value: float = request.param
    return value


async def test_P35_a_call_returns_the_childs_result_and_a_replay_finds_the_same_child(
    backend: Backend, linger: float
) -> None:
    passes = Passes()

    @workflow
    async def flow(ctx: Context) -> list[int]:
        note = passes.begin()
        results = [note(await ctx.call("double", doubled, number)) for number in (1, 2)]
        await ctx.sleep("on", 0.02)
        return results

    async with backend.engine(flow, doubled, linger=linger) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == [2, 4]
        assert len(await children(engine, handle.run_id)) == 2
    passes.agree(least=1 if linger else 2)


async def test_P34_with_one_slot_three_generations_finish(backend: Backend) -> None:
    @workflow
    async def middle(ctx: Context, number: int) -> int:
        return await ctx.call("inner", doubled, number) + 1

    @workflow
    async def outer(ctx: Context, number: int) -> int:
        return await ctx.call("middle", middle, number) + 1

    async with backend.engine(outer, middle, doubled, concurrency=1) as engine:
        handles = await engine.trigger_many(outer, [1, 2, 3])
        assert [await backend.result(engine, handle) for handle in handles] == [4, 6, 8]


async def test_P35_a_failed_child_raises_in_the_parent_the_same_on_every_pass(backend: Backend) -> None:
    passes = Passes()

    @workflow
    async def flow(ctx: Context) -> str:
        note = passes.begin()
        try:
            await ctx.call("bad", doubled, -1)
        except ChildFailed as error:
            note([error.call, error.run_id, error.state, error.failure, str(error), error.__cause__])
            note(error.is_a(ValueError))
        await ctx.sleep("on", 0.02)
        return "survived"

    async with backend.engine(flow, doubled, linger=0) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == "survived"
        [child] = await children(engine, handle.run_id)
    [[call, run_id, state, failure, text, cause], is_a] = passes.agree()
    assert is_a
    assert (call, run_id, state, cause) == ("bad", child, State.FAILED, None)
    assert failure.message in text == f"child 'bad' (run {child}) ended failed: ValueError: -1 is negative"


async def test_P35_a_cancelled_child_raises_in_the_parent(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        with pytest.raises(ChildFailed) as caught:
            await ctx.call("child", asks)
        return caught.value.state

    async with backend.engine(flow, asks) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        [child] = await children(engine, handle.run_id)
        await engine.cancel(child, reason="not needed")
        assert await backend.result(engine, handle) == "cancelled"


async def test_P34_a_child_that_ends_before_the_parent_asks_is_not_missed(backend: Backend) -> None:
    ended = asyncio.Event()

    @workflow
    async def quick(ctx: Context) -> str:
        return await ctx.step("it", str, "done")

    @workflow
    async def flow(ctx: Context) -> list[str]:
        child = await ctx.start("quick", quick)
        await ctx.step("until it has ended", ended.wait)
        return [await child.result(), await child.result(), child.run_id]

    async with backend.engine(flow, quick) as engine:
        handle = await engine.trigger(flow)
        async with asyncio.timeout(SOON):
            while not (found := await children(engine, handle.run_id)):  # noqa: ASYNC110 - only ends are announced
                await asyncio.sleep(0.002)
        await (await engine.handle(quick, run_id=found[0])).result(SOON)
        ended.set()
        assert await backend.result(engine, handle) == ["done", "done", found[0]]


async def test_children_side_by_side(backend: Backend, linger: float) -> None:
    @workflow
    async def flow(ctx: Context) -> list[int]:
        return list(await asyncio.gather(*(ctx.call(f"n{n}", doubled, n) for n in range(6))))

    async with backend.engine(flow, doubled, linger=linger) as engine:
        assert await backend.result(engine, await engine.trigger(flow)) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("end", ["cancel", "failure"])
async def test_the_children_of_a_run_that_is_cancelled_or_fails_are_cancelled(backend: Backend, end: str) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        child = await ctx.start("child", asks)
        await ctx.wait_for("go on")
        if end == "failure":
            raise ValueError("no")
        await child.result()

    async with backend.engine(flow, asks, linger=0) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        [child] = await children(engine, handle.run_id)
        if end == "cancel":
            await engine.cancel(handle.run_id)
        else:
            await engine.signal(handle.run_id, "go on")
        wanted = State.CANCELLED if end == "cancel" else State.FAILED
        await backend.until(engine, handle.run_id, wanted)
        assert handle.run_id in ((await backend.until(engine, child, State.CANCELLED)).error or "")


async def test_a_child_that_was_started_and_not_awaited_outlives_its_parents_completion(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        return (await ctx.start("child", asks)).run_id

    async with backend.engine(flow, asks) as engine:
        child = await backend.result(engine, await engine.trigger(flow))
        await engine.signal(child, "answer", "yes")
        assert await (await engine.handle(asks, run_id=child)).result(SOON) == "yes"


async def test_an_input_that_does_not_fit_is_refused_before_there_is_a_child(backend: Backend) -> None:
    wrong: Any = doubled  # as a caller without types has them
    wrong_too: Any = asks

    @workflow
    async def flow(ctx: Context) -> str:
        with pytest.raises(PayloadError):
            await ctx.call("child", wrong, "seven")
        with pytest.raises(InvalidArgument):
            await ctx.call("child", wrong_too, 1)
        return "refused"

    async with backend.engine(flow, doubled, asks) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == "refused"
        assert not await children(engine, handle.run_id)


async def test_a_child_by_name_goes_to_whoever_has_it(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> Any:
        return await ctx.call("elsewhere", "doubled", 21)

    async with backend.engine(flow) as engine, backend.engine(doubled) as other:
        handle = await engine.trigger(flow)
        if backend.clock is not None:
            await backend.idle(engine)
            await backend.idle(other)
        assert await backend.result(engine, handle) == 42


async def test_P18_a_call_that_was_a_step_pauses_the_run(backend: Backend) -> None:
    changed = False

    @workflow
    async def flow(ctx: Context) -> None:
        if changed:
            await ctx.call("thing", doubled, 1)
        else:
            await ctx.step("thing", asyncio.sleep, 0)
        await ctx.wait_for("go on")

    async with backend.engine(flow, doubled, linger=0) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        changed = True
        await engine.signal(handle.run_id, "go on")
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert NondeterminismError.__name__ in (run.reason or "")
        assert not await children(engine, handle.run_id)


@pytest.mark.parametrize("from_step", ["after", "a", "b"])
async def test_an_operators_retry_from_a_step_finds_the_children_that_stand(backend: Backend, from_step: str) -> None:
    """From between a child's call and its end on: the call stands, and its end is not told again."""
    broken = True

    @workflow
    async def flow(ctx: Context) -> list[int]:
        first = await ctx.start("a", doubled, 1)
        await ctx.step("after", asyncio.sleep, 0)
        found = [await first.result(), await ctx.call("b", doubled, 2), *await ctx.map("c", doubled, [3, 4])]
        if broken:
            raise ValueError("no")
        return found

    async with backend.engine(flow, doubled) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        broken = False
        await engine.retry(handle.run_id, from_step=from_step)
        assert await backend.result(engine, handle) == [2, 4, 6, 8]
        made = {"after": 4 + 3, "a": 4 + 4, "b": 4 + 3}[from_step]
        assert len(await children(engine, handle.run_id)) == made


async def test_an_uncaught_child_failure_fails_the_parent_with_its_story(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.call("bad", doubled, -1)

    async with backend.engine(flow, doubled) as engine:
        with pytest.raises(RunFailed, match="-1 is negative") as caught:
            await backend.result(engine, await engine.trigger(flow))
        assert caught.value.failure.error_type.endswith("ChildFailed")


async def test_another_task_may_ask_for_the_result_when_the_first_one_is_cancelled(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        child = await ctx.start("child", asks)
        first, second = asyncio.create_task(child.result()), asyncio.create_task(child.result())
        await ctx.step("a step", asyncio.sleep, 0)
        first.cancel()
        await asyncio.wait([first])
        await ctx.emit("cancelled")
        return await second

    async with backend.engine(flow, asks) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        [child] = await children(engine, handle.run_id)
        await engine.signal(child, "answer", "yes")
        assert await backend.result(engine, handle) == "yes"


async def test_P34_a_step_that_is_cancelled_beside_a_child_gives_the_slot_to_the_child(real_time: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> int:
        async def bounded() -> None:
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await ctx.step("hangs", asyncio.Event().wait)

        number, _ = await asyncio.gather(ctx.call("child", doubled, 4), bounded())
        return number

    async with real_time.engine(flow, doubled, concurrency=1) as engine:
        assert await real_time.result(engine, await engine.trigger(flow)) == 8


async def test_a_second_retry_from_before_the_call_makes_another_child_and_waits_for_that_one(backend: Backend) -> None:
    broken = True

    @workflow
    async def flow(ctx: Context) -> str:
        child = await ctx.start("child", asks)
        await ctx.step("after", asyncio.sleep, 0)
        answer = await child.result()
        if broken:
            raise ValueError("no")
        return answer

    async with backend.engine(flow, asks, concurrency=1) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        [first] = await children(engine, handle.run_id)
        await engine.signal(first, "answer", "first")
        for step in ("after", "child"):
            await backend.ended(engine, handle)
            await engine.retry(handle.run_id, from_step=step)
        await backend.until(engine, handle.run_id, State.WAITING)
        broken = False
        [second] = set(await children(engine, handle.run_id)) - {first}
        await engine.signal(second, "answer", "second")
        assert await backend.result(engine, handle) == "second"


async def test_P34_a_parent_that_looks_for_a_child_that_was_retried_too_leaves_it_the_slot(backend: Backend) -> None:
    broken = True

    @workflow
    async def child(ctx: Context) -> str:
        if broken:
            raise ValueError("no")
        return "mended"

    @workflow
    async def flow(ctx: Context) -> str:
        started = await ctx.start("child", child)
        await ctx.step("after", asyncio.sleep, 0)
        return await started.result()

    async with backend.engine(flow, child) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        [made] = await children(engine, handle.run_id)
    broken = False
    async with backend.engine(flow, child).client() as client:  # the parent first: it is claimed first
        await client.retry(handle.run_id, from_step="after")
        await client.retry(made)
    async with backend.engine(flow, child, concurrency=1) as engine:
        assert await backend.result(engine, await engine.handle(flow, run_id=handle.run_id)) == "mended"
