"""A replay gives the code what the first pass gave it: by name and occurrence, in recorded order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import AmbiguousName, Context, Retry, RunFailed, State, Workflow, workflow
from tests.engine.backends import Backend, Passes

EVICT = 0.1
"""Seconds of a sleep that ends a pass when nothing lingers. One that is over before the run has come to rest, on a busy
machine, goes on in place."""

OUTLIVES_A_STOP = 0.3
"""Seconds of a sleep during which an engine is stopped, and after which the next one goes on."""


async def test_P12_a_repeated_name_gets_its_own_record_each_time(backend: Backend) -> None:
    calls: list[int] = []
    passes = Passes()

    async def item(n: int) -> int:
        calls.append(n)
        return n

    @workflow
    async def loop(ctx: Context) -> list[int]:
        note = passes.begin()
        found = [note(await ctx.step("item", item, n)) for n in range(3)]
        await ctx.sleep("nap", EVICT)
        return found

    async with backend.engine(loop, linger=0) as engine:
        handle = await engine.trigger(loop)
        assert await backend.result(engine, handle) == [0, 1, 2]
        completed = [entry.name for entry in await engine.timeline(handle.run_id) if entry.kind == "completed"]
    assert passes.agree() == [0, 1, 2]
    assert calls == [0, 1, 2]
    assert completed == ["item", "item#2", "item#3", "loop"]


async def test_P12_five_sleeps_of_one_name_sleep_five_times(backend: Backend) -> None:
    @workflow
    async def naps(ctx: Context) -> None:
        for _ in range(5):
            await ctx.sleep("nap", EVICT)

    async with backend.engine(naps, linger=0) as engine:
        handle = await engine.trigger(naps)
        await backend.result(engine, handle)
        entries = await engine.timeline(handle.run_id)
        run = await engine.get_run(handle.run_id)
    assert [entry.name for entry in entries if entry.kind == "woke"] == [
        "nap", "nap#2", "nap#3", "nap#4", "nap#5"
    ]  # fmt: skip
    assert run.started_at is not None
    assert run.ended_at is not None
    assert (run.ended_at - run.started_at).total_seconds() >= 5 * EVICT


async def test_P13_a_step_that_failed_and_later_succeeded_never_runs_again(backend: Backend) -> None:
    calls: list[int] = []

    async def flaky() -> int:
        calls.append(len(calls) + 1)
        if len(calls) < 3:
            raise ConnectionError(f"attempt {len(calls)}")
        return len(calls)

    passes = Passes()

    @workflow
    async def retried(ctx: Context) -> int:
        note = passes.begin()
        found = note(await ctx.step("flaky", flaky, retry=Retry(5, initial_delay=0.01)))
        await ctx.sleep("nap", EVICT)
        return int(found)

    async with backend.engine(retried, linger=0) as engine:
        handle = await engine.trigger(retried)
        assert await backend.result(engine, handle) == 3
        ends = [(e.kind, e.attempt) for e in await engine.timeline(handle.run_id) if e.name == "flaky" and e.duration]
    assert passes.agree() == [3]
    assert calls == [1, 2, 3]
    assert ends == [("retrying", 1), ("retrying", 2), ("completed", 3)]


async def test_P15_gather_of_a_sleep_and_a_step_runs_the_step_once(backend: Backend) -> None:
    calls: list[str] = []

    async def charge() -> str:
        calls.append("charge")
        return "charged"

    passes = Passes()

    @workflow
    async def both(ctx: Context) -> str:
        note = passes.begin()
        _, charged = await asyncio.gather(ctx.sleep("nap", EVICT), ctx.step("charge", charge))
        note(charged)
        await ctx.sleep("nap", EVICT)
        return str(charged)

    assert await backend.run(both, linger=0) == "charged"
    assert passes.agree() == ["charged"]
    assert calls == ["charge"]


async def test_P15_gather_of_steps_with_equal_names_is_stable(backend: Backend) -> None:
    """The occurrence is taken at the call, so the slowest, which is called first, stays the first."""
    calls: list[int] = []
    gates = [asyncio.Event() for _ in range(3)]

    async def item(n: int) -> int:
        if n < 2:
            await gates[n].wait()  # the last one called ends first
        calls.append(n)
        if n > 0:
            gates[n - 1].set()
        return n

    passes = Passes()

    @workflow
    async def fan(ctx: Context) -> list[int]:
        note = passes.begin()
        found = note(await asyncio.gather(*[ctx.step("item", item, n) for n in range(3)]))
        await ctx.sleep("nap", EVICT)
        return list(found)

    assert await backend.run(fan, linger=0) == [0, 1, 2]
    assert passes.agree() == [[0, 1, 2]]
    assert calls == [2, 1, 0]


async def test_P15_sequences_of_equal_names_in_gathered_coroutines_are_refused_before_any_effect(
    backend: Backend,
) -> None:
    calls: list[str] = []
    started = asyncio.Event()

    async def fetch(name: str) -> None:
        calls.append(name)
        started.set()
        await asyncio.Event().wait()

    @workflow
    async def swapped(ctx: Context) -> None:
        async def one(name: str) -> None:
            if name == "b":
                await started.wait()
            await ctx.step("fetch", fetch, name)

        await asyncio.gather(one("a"), one("b"))

    with pytest.raises(RunFailed, match=r"AmbiguousName.*two live tasks of this run use the name 'fetch'"):
        await backend.run(swapped)
    assert calls == ["a"]


async def test_P15_a_name_may_be_used_again_by_a_task_whose_predecessor_has_ended(backend: Backend) -> None:
    async def same(n: int) -> int:
        return n

    @workflow
    async def one_after_the_other(ctx: Context) -> list[int]:
        async def branch(n: int) -> int:
            return await ctx.step("same", same, n)

        return [await asyncio.create_task(branch(n)) for n in range(3)]

    assert await backend.run(one_after_the_other, linger=0) == [0, 1, 2]


async def test_P15_ambiguous_names_can_be_caught_like_any_mistake(backend: Backend) -> None:
    async def nothing() -> None:
        return

    @workflow
    async def catches(ctx: Context) -> str:
        called, release = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            await ctx.step("x", nothing)
            called.set()
            await release.wait()

        task = asyncio.create_task(first())
        await called.wait()
        try:
            await ctx.step("x", nothing)
        except AmbiguousName:
            release.set()
            await task
            return "caught"
        return "missed"

    assert await backend.run(catches) == "caught"


async def test_P18_a_step_asked_for_as_a_sleep_pauses_the_run_naming_both(backend: Backend) -> None:
    async def nothing() -> None:
        return

    asleep = asyncio.Event()

    @workflow(name="deployed")
    async def before(ctx: Context) -> None:
        await ctx.step("charge", nothing)
        asleep.set()
        await ctx.sleep("cooling", OUTLIVES_A_STOP)

    @workflow(name="deployed")
    async def after(ctx: Context) -> None:
        await ctx.sleep("charge", 1)

    reason = await _paused_by_deploy(backend, before, after, asleep)
    assert "NondeterminismError" in reason
    assert "'charge'" in reason
    assert "recorded as a step" in reason
    assert "asks for a sleep" in reason


async def test_P18_a_sleep_asked_for_as_a_step_pauses_the_run_whatever_the_code_catches(backend: Backend) -> None:
    asleep = asyncio.Event()
    calls: list[str] = []

    async def charge() -> None:
        calls.append("charge")

    @workflow(name="deployed")
    async def before(ctx: Context) -> None:
        asleep.set()
        await ctx.sleep("cooling", OUTLIVES_A_STOP)

    @workflow(name="deployed")
    async def after(ctx: Context) -> None:
        try:
            await ctx.step("cooling", charge)
        except Exception:
            calls.append("swallowed")
        finally:
            calls.append("unwound")

    reason = await _paused_by_deploy(backend, before, after, asleep)
    assert "recorded as a sleep" in reason
    assert "asks for a step" in reason
    assert calls == ["unwound"]


async def _paused_by_deploy(
    backend: Backend, before: Workflow[Any, Any], after: Workflow[Any, Any], asleep: asyncio.Event
) -> str:
    """Park a run of ``before``, let ``after`` replay it; the reason for which that is paused."""
    async with backend.engine(before) as engine:
        handle = await engine.trigger(before)
        await asleep.wait()
    async with backend.engine(after) as engine:
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert run.reason is not None
        (entry,) = [entry for entry in await engine.timeline(handle.run_id) if entry.kind == "paused"]
        assert entry.data == run.reason
    return run.reason
