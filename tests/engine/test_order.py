"""Concurrent operations: a replay delivers in recorded order, takes the same path, and starts nothing early."""

from __future__ import annotations

import asyncio
from typing import Any

from durable import Context, StepFailed, workflow
from tests.engine.backends import Backend, Passes
from tests.engine.test_replay import EVICT


class Gated:
    """Step functions that end in the order in which a test lets them.

    ``await gated(name)`` ends when ``name``'s turn has come; names that have no turn never end.
    """

    def __init__(self, *order: str) -> None:
        self.calls: list[str] = []
        self._order = list(order)
        self._begun: dict[str, asyncio.Event] = {}

    async def __call__(self, name: str) -> str:
        self.calls.append(name)
        self._open()
        await self._begun.setdefault(name, asyncio.Event()).wait()
        return name

    def _open(self) -> None:
        """All that has a turn runs: let them end one after the other."""
        if set(self._order) <= set(self.calls):
            loop = asyncio.get_running_loop()
            for number, name in enumerate(self._order):
                loop.call_later(0.005 * number, self._begun.setdefault(name, asyncio.Event()).set)


async def test_P53_wait_first_completed_takes_the_same_path(backend: Backend) -> None:
    gated = Gated("b")
    passes = Passes()

    @workflow
    async def race(ctx: Context) -> str:
        note = passes.begin()
        tasks = [asyncio.create_task(ctx.step(name, gated.__call__, name), name=name) for name in "abc"]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        winner = note(sorted(task.get_name() for task in done))
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await ctx.sleep("nap", EVICT)
        return str(winner)

    assert await backend.run(race, linger=0) == "['b']"
    assert passes.agree() == [["b"]]
    assert sorted(gated.calls) == ["a", "b", "c"]  # the cancelled ones were not started again


async def test_P53_as_completed_yields_in_the_same_order(backend: Backend) -> None:
    gated = Gated("c", "a", "b")
    passes = Passes()

    @workflow
    async def ordered(ctx: Context) -> str:
        note = passes.begin()
        for next_one in asyncio.as_completed([ctx.step(name, gated.__call__, name) for name in "abc"]):
            note(await next_one)
            note(ctx.now())
        await ctx.sleep("nap", EVICT)
        return "done"

    assert await backend.run(ordered, linger=0) == "done"
    assert passes.agree()[::2] == ["c", "a", "b"]
    assert sorted(gated.calls) == ["a", "b", "c"]


async def test_P53_a_task_group_with_a_failing_sibling_starts_nothing_that_was_cancelled(backend: Backend) -> None:
    calls: list[str] = []
    running = asyncio.Event()
    passes = Passes()

    async def fails() -> None:
        await running.wait()
        raise ValueError("no")

    async def endless() -> None:
        calls.append("endless")
        running.set()
        await asyncio.Event().wait()

    async def follows() -> None:
        calls.append("follows")

    @workflow
    async def siblings(ctx: Context) -> str:
        note = passes.begin()

        async def long() -> None:
            await ctx.step("endless", endless)
            await ctx.step("follows", follows)

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(ctx.step("fails", fails))
                group.create_task(long())
        except* StepFailed as failures:
            note([type(error).__name__ for error in failures.exceptions])
        await ctx.sleep("nap", EVICT)
        note(await ctx.step("after", lambda: "after"))
        return "done"

    assert await backend.run(siblings, linger=0) == "done"
    assert passes.agree() == [["StepFailed"], "after"]
    assert calls == ["endless"]


async def test_P53_a_timeout_around_operations_takes_the_same_path(backend: Backend) -> None:
    """What user code cancels records no result: the replay comes to the timeout again, by real time."""
    calls: list[str] = []
    passes = Passes()

    async def endless() -> None:
        calls.append("endless")
        await asyncio.Event().wait()

    @workflow
    async def bounded(ctx: Context) -> str:
        note = passes.begin()
        try:
            async with asyncio.timeout(0.02):
                await ctx.step("endless", endless)
        except TimeoutError:
            note("timed out")
        return str(await ctx.step("after", lambda: "after"))

    assert await backend.run(bounded, linger=0) == "after"
    assert passes.agree(least=1) == ["timed out"]
    assert calls == ["endless"]


async def test_P53_nested_gathers_give_the_same_at_every_level(backend: Backend) -> None:
    gated = Gated("d", "b", "a", "c")
    passes = Passes()

    @workflow
    async def nested(ctx: Context) -> list[Any]:
        note = passes.begin()

        async def branch(first: str, second: str) -> list[str]:
            found = await asyncio.gather(
                ctx.step(first, gated.__call__, first), ctx.step(second, gated.__call__, second)
            )
            note((first, second))
            return [*found, await ctx.step(f"after {first}", lambda: f"after {first}")]

        found = await asyncio.gather(branch("a", "b"), branch("c", "d"))
        await ctx.sleep("nap", EVICT)
        return list(found)

    expected = [["a", "b", "after a"], ["c", "d", "after c"]]
    assert await backend.run(nested, linger=0) == expected
    assert passes.agree() == [("a", "b"), ("c", "d")]
    assert sorted(gated.calls) == ["a", "b", "c", "d"]


async def test_P53_a_race_of_a_sleep_and_a_step_has_the_same_winner(backend: Backend) -> None:
    calls: list[str] = []
    passes = Passes()

    async def quick() -> str:
        calls.append("quick")
        return "quick"

    @workflow
    async def race(ctx: Context) -> str:
        note = passes.begin()
        nap, step = asyncio.create_task(ctx.sleep("nap", 60)), asyncio.create_task(ctx.step("quick", quick))
        done, _ = await asyncio.wait([nap, step], return_when=asyncio.FIRST_COMPLETED)
        note("step" if step in done else "sleep")
        nap.cancel()
        await ctx.sleep("evicted", EVICT)
        return step.result()

    assert await backend.run(race, linger=0) == "quick"
    assert passes.agree() == ["step"]
    assert calls == ["quick"]


async def test_P53_a_pass_that_ends_between_the_results_of_a_gather_keeps_those_it_has(backend: Backend) -> None:
    """Three branches of unequal sleeps: each wake-up is a replay that delivers what is there and waits for the rest."""
    calls: list[int] = []
    passes = Passes()

    async def step(n: int) -> int:
        calls.append(n)
        return n

    @workflow
    async def branches(ctx: Context) -> list[int]:
        note = passes.begin()

        async def branch(n: int) -> int:
            await ctx.sleep(f"nap {n}", 10 * EVICT * (4 - n))  # much longer than what a run with several tasks rests
            return int(note(await ctx.step(f"step {n}", step, n)))

        return list(await asyncio.gather(*[branch(n) for n in (1, 2, 3)]))

    assert await backend.run(branches, linger=0) == [1, 2, 3]
    assert sorted(passes.agree()) == [1, 2, 3]
    assert sorted(calls) == [1, 2, 3]
