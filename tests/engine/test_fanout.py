"""Many items, and sequences side by side: fan-outs and branches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import (
    AmbiguousName,
    ChildFailed,
    Context,
    InvalidArgument,
    NondeterminismError,
    Retry,
    RunFailed,
    State,
    StepFailed,
    workflow,
)
from tests.engine.backends import Backend, Passes


class Shop:
    """Step functions that count how often they are called, and how many at once."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.undone: list[int] = []
        self.now = self.most = 0

    async def double(self, number: int) -> int:
        self.calls.append(number)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        if number < 0:
            raise ValueError(f"{number} is negative")
        return 2 * number

    def undo(self, doubled: int) -> None:
        self.undone.append(doubled)


@workflow
async def child(ctx: Context, number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return 2 * number


async def test_the_results_are_in_the_order_of_the_items_and_no_more_than_allowed_are_under_way(
    backend: Backend,
) -> None:
    shop = Shop()

    @workflow
    async def flow(ctx: Context) -> list[int]:
        return await ctx.map("double", shop.double, range(40), concurrency=7)

    assert await backend.run(flow) == [2 * n for n in range(40)]
    assert sorted(shop.calls) == list(range(40))
    assert shop.most == 7


async def test_a_fan_out_of_nothing_is_an_empty_list(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[int]:
        return await ctx.map("double", Shop().double, [])

    assert await backend.run(flow) == []


async def test_P13_a_fan_out_that_is_interrupted_goes_on_with_what_is_missing(backend: Backend) -> None:
    shop = Shop()
    stop, held = asyncio.Event(), asyncio.Event()

    async def slowly(number: int) -> int:
        if number == 5 and not held.is_set():
            held.set()
            stop.set()
            await asyncio.Event().wait()
        return await shop.double(number)

    @workflow
    async def flow(ctx: Context) -> list[int]:
        return await ctx.map("double", slowly, range(10), concurrency=1)

    async with backend.engine(flow, drain_timeout=0) as engine:
        handle = await engine.trigger(flow)
        await stop.wait()
    assert shop.calls == [0, 1, 2, 3, 4]
    async with backend.engine(flow) as engine:
        assert await backend.result(engine, await engine.handle(flow, run_id=handle.run_id)) == list(range(0, 20, 2))
    assert shop.calls == list(range(10))


async def test_a_failure_is_raised_once_and_the_rest_does_not_start(backend: Backend) -> None:
    shop, passes = Shop(), Passes()

    @workflow
    async def flow(ctx: Context) -> str:
        note = passes.begin()
        try:
            await ctx.map("double", shop.double, [1, -2, 3, 4], concurrency=1)
        except StepFailed as error:
            note([error.step, error.message])
        await ctx.sleep("on", 0.02)
        return "survived"

    assert await backend.run(flow, linger=0) == "survived"
    assert passes.agree() == [["double[1]", "-2 is negative"]]
    assert shop.calls == [1, -2]


async def test_failures_can_be_collected_in_their_places(backend: Backend) -> None:
    passes = Passes()

    @workflow
    async def flow(ctx: Context) -> list[str]:
        note = passes.begin()
        found = await ctx.map("double", Shop().double, [1, -2, 3], on_error="collect")
        note([str(one) for one in found])
        await ctx.sleep("on", 0.02)
        return [type(one).__name__ for one in found]

    assert await backend.run(flow, linger=0) == ["int", "StepFailed", "int"]
    passes.agree()


async def test_items_are_retried_and_undone_like_steps(backend: Backend) -> None:
    shop = Shop()
    tries: dict[int, int] = {}

    async def second_time(number: int) -> int:
        tries[number] = tries.get(number, 0) + 1
        if tries[number] == 1:
            raise ConnectionError("once")
        return await shop.double(number)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.map("double", second_time, [1, 2, 3], retry=2, compensate=shop.undo, concurrency=1)
        raise ValueError("undo it")

    with pytest.raises(RunFailed):
        await backend.run(flow)
    assert tries == {1: 2, 2: 2, 3: 2}
    assert shop.undone == [6, 4, 2]


async def test_a_fan_out_over_child_workflows(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[int]:
        return await ctx.map("children", child, range(9), concurrency=4)

    async with backend.engine(flow, child, concurrency=3) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == [2 * n for n in range(9)]
        assert len((await engine.list_runs(parent=handle.run_id)).items) == 9


async def test_children_that_fail_can_be_collected(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[bool]:
        found = await ctx.map("children", child, [1, -1, 2], on_error="collect")
        return [isinstance(one, ChildFailed) for one in found]

    async with backend.engine(flow, child) as engine:
        assert await backend.result(engine, await engine.trigger(flow)) == [False, True, False]


async def test_P18_a_fan_out_over_other_items_than_recorded_pauses_the_run(backend: Backend) -> None:
    count = 3

    @workflow
    async def flow(ctx: Context) -> list[int]:
        found = await ctx.map("double", Shop().double, range(count))
        await ctx.wait_for("go on")
        return found

    async with backend.engine(flow, linger=0) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        count = 2
        await engine.signal(handle.run_id, "go on")
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert NondeterminismError.__name__ in (run.reason or "")
        count = 3
        await engine.resume(handle.run_id)
        assert await backend.result(engine, handle) == [0, 2, 4]


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"concurrency": True}, {"on_error": "ignore"}], ids=str)
async def test_a_wrong_option_is_refused_at_the_call(backend: Backend, wrong: dict[str, Any]) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        with pytest.raises(InvalidArgument):
            await ctx.map("double", Shop().double, [1], **wrong)
        return "refused"

    assert await backend.run(flow) == "refused"


# -- branches -------------------------------------------------------------------------------------


async def test_P15_sequences_of_equal_names_in_branches_replay_rightly(backend: Backend) -> None:
    passes, shop = Passes(), Shop()

    @workflow
    async def flow(ctx: Context) -> list[int]:
        note = passes.begin()

        async def sequence(branch: Context, number: int) -> int:
            fetched = await branch.step("fetch", shop.double, number)
            await branch.sleep("a little", 0.001 * (5 - number))
            return await branch.step("pay", shop.double, fetched)

        paid = list(await asyncio.gather(*(sequence(ctx.branch(f"order {n}"), n) for n in range(5))))
        note(paid)
        await ctx.sleep("on", 0.02)
        return paid

    assert await backend.run(flow, linger=0) == [0, 4, 8, 12, 16]
    passes.agree()
    assert len(shop.calls) == 10


async def test_branches_of_one_name_are_told_apart_and_nest(backend: Backend) -> None:
    keys: list[str] = []

    @workflow
    async def flow(ctx: Context) -> None:
        for _ in range(2):
            branch = ctx.branch("b")
            keys.append(branch.idempotency_key("s").partition("/")[2])
            await branch.step("s", asyncio.sleep, 0)
            inner = branch.branch("c")
            keys.append(inner.idempotency_key("s").partition("/")[2])
            await inner.step("s", asyncio.sleep, 0)

    await backend.run(flow)
    assert keys == ["b/s", "b/c/s", "b#2/s", "b#2/c/s"]


async def test_P15_one_branch_name_in_two_live_tasks_is_ambiguous(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        async def sequence() -> None:
            branch = ctx.branch("b")
            await branch.step("s", asyncio.sleep, 0)

        with pytest.raises(AmbiguousName):
            await asyncio.gather(sequence(), sequence())
        return "refused"

    assert await backend.run(flow) == "refused"


@pytest.mark.parametrize("name", ["undo", "woke", "attempt"])
async def test_a_name_that_would_read_as_a_remark_is_refused_in_a_branch(backend: Backend, name: str) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        with pytest.raises(InvalidArgument, match=name):
            await ctx.branch("b").step(name, asyncio.sleep, 0)
        return "refused"

    assert await backend.run(flow) == "refused"


# -- what has failed is made anew -----------------------------------------------------------------


class FailsOnce:
    """An item, or a child, that fails the first time for the item 1."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, number: int) -> int:
        self.calls.append(number)
        if number == 1 and self.calls.count(1) == 1:
            raise ValueError("the first time")
        return 2 * number


@pytest.mark.parametrize("what", ["steps", "children", "calls"])
@pytest.mark.parametrize("again", ["run attempt", "operator"])
async def test_P28_a_failed_item_or_child_is_made_anew_and_the_others_are_kept(
    backend: Backend, what: str, again: str
) -> None:
    once = FailsOnce()

    @workflow
    async def child(ctx: Context, number: int) -> int:
        return once(number)

    @workflow(retry=Retry(2, initial_delay=0.01) if again == "run attempt" else None)
    async def flow(ctx: Context) -> list[int]:
        if what == "calls":
            return [await ctx.call("call", child, number) for number in range(3)]
        if what == "children":
            return await ctx.map("children", child, range(3), concurrency=1)
        return await ctx.map("steps", once.__call__, range(3), concurrency=1)

    async with backend.engine(flow, child) as engine:
        handle = await engine.trigger(flow)
        if again == "operator":
            with pytest.raises(RunFailed):
                await backend.result(engine, handle)
            await engine.retry(handle.run_id)
        assert await backend.result(engine, handle) == [0, 2, 4]
    assert once.calls == [0, 1, 1, 2]


async def test_P28_an_item_that_was_undone_is_made_anew_by_an_operators_retry(backend: Backend) -> None:
    shop, broken = Shop(), True

    def undo(doubled: int) -> None:
        if doubled == 2:  # so that the run fails, and may be retried
            raise ConnectionError("gone")
        shop.undo(doubled)

    @workflow
    async def flow(ctx: Context) -> list[int]:
        found = await ctx.map("double", shop.double, [1, 2], compensate=undo, concurrency=1)
        if broken:
            raise ValueError("undo it")
        return found

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        assert shop.undone == [4]
        broken = False
        await engine.retry(handle.run_id)
        assert await backend.result(engine, handle) == [2, 4]
    assert shop.calls == [1, 2, 2]


async def test_an_items_result_that_can_neither_be_stored_nor_undone_is_listed_also_after_a_replay(
    backend: Backend,
) -> None:
    def odd(_: int) -> Any:
        return object()

    def fails(_: Any) -> None:
        raise ConnectionError("gone")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.map("odd", odd, [1], compensate=fails, on_error="collect")
        await ctx.sleep("on", 0.02)
        raise ValueError("no")

    async with backend.engine(flow, linger=0) as engine:
        with pytest.raises(RunFailed, match="no") as raised:
            await backend.result(engine, await engine.trigger(flow))
    assert raised.value.failure.not_undone == ("odd[0]",)


@pytest.mark.parametrize("change", ["children instead of steps", "failures are collected now"])
async def test_P18_a_fan_out_that_does_not_fit_its_items_pauses_the_run(backend: Backend, change: str) -> None:
    changed = False

    @workflow
    async def flow(ctx: Context) -> str:
        if change == "children instead of steps":
            await ctx.map("double", child if changed else Shop().double, [1, 2, 3])
        elif changed:
            await ctx.map("double", Shop().double, [-1, 2, 3], on_error="collect", concurrency=1)
        else:
            with pytest.raises(StepFailed):
                await ctx.map("double", Shop().double, [-1, 2, 3], concurrency=1)
        await ctx.wait_for("go on")
        return "done"

    async with backend.engine(flow, child, linger=0) as engine:
        handle = await engine.trigger(flow)
        await backend.until(engine, handle.run_id, State.WAITING)
        changed = True
        await engine.signal(handle.run_id, "go on")
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert NondeterminismError.__name__ in (run.reason or "")
        assert "'double'" in (run.reason or "")
