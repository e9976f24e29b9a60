"""The linger is only a cache: with it, without it, and at its very end a run does the same."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import Context, Engine, Retry, RunHandle, State, StepFailed, WorkerOptions, Workflow, warm, workflow
from durable.stores.memory import MemoryStore
from tests.engine.backends import SOON, Backend
from tests.engine.test_replay import EVICT
from tests.engine.wrapped import Between, Call


class Effects:
    """What happened outside, and the workflows that make it happen."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self._failed: set[str] = set()

    async def do(self, name: str) -> str:
        self.made.append(name)
        return name

    async def undo(self, name: str) -> None:
        self.made.append(f"undo {name}")

    def flaky(self, name: str) -> str:
        """Fails once."""
        if name not in self._failed:
            self._failed.add(name)
            raise ConnectionError(name)
        self.made.append(name)
        return name

    def flows(self) -> list[Workflow[Any, Any]]:
        retry = Retry(2, initial_delay=EVICT)

        @workflow
        async def sequence(ctx: Context) -> list[str]:
            found: list[str] = []
            for name in ("a", "b", "c", "d"):
                found.append(await ctx.step("item", self.do, name))
                await ctx.sleep("nap", EVICT)
                found.append(await ctx.step("flaky", self.flaky, f"flaky {name}", retry=retry))
            return found

        @workflow
        async def branches(ctx: Context) -> list[str]:
            async def branch(n: int) -> str:
                first = await ctx.step(f"first {n}", self.do, f"first {n}")
                await ctx.sleep(f"nap {n}", EVICT * n)
                return first + await ctx.step(f"second {n}", self.flaky, f"second {n}", retry=retry)

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(branch(n)) for n in range(4)]
            return [task.result() for task in tasks]

        @workflow
        async def fails(ctx: Context) -> None:
            for name in ("reserve", "charge"):
                await ctx.step(name, self.do, name, compensate=self.undo)
                await ctx.sleep("nap", EVICT)
            try:
                await ctx.step("optional", int, "no number")
            except StepFailed:
                await ctx.step("instead", self.do, "instead", compensate=self.undo)
            await ctx.sleep("nap", EVICT)
            await ctx.step("ship", int, "no number")

        return [sequence, branches, fails]


@pytest.mark.parametrize("number", range(3))
async def test_P19_a_run_does_the_same_with_and_without_replays(backend: Backend, number: int) -> None:
    found: list[tuple[Any, ...]] = []
    for linger in (10, 0):
        effects = Effects()
        flow = effects.flows()[number]
        async with backend.engine(flow, linger=linger) as engine:
            run = await backend.ended(engine, await engine.trigger(flow))
        found.append((run.state, run.result, sorted(effects.made)))
    lingering, evicted = found
    assert lingering == evicted
    assert lingering[0] is (State.COMPENSATED if number == 2 else State.COMPLETED)
    assert len(set(evicted[2])) == len(evicted[2]) > 0


async def test_P19_a_linger_that_ends_while_the_run_is_claimed_again_repeats_nothing(real_time: Backend) -> None:
    """The claim said that the run was warm, so its answer has no history; by the answer the coroutine is gone."""
    calls: list[str] = []
    evicted = asyncio.Event()
    held: list[str] = []

    class HoldsTheClaim(Between):
        async def around(self, name: str, call: Call) -> Any:
            answer = await call()
            if name == "claim" and any(claimed.records is None for claimed in answer.runs):
                held.append(name)
                await evicted.wait()
            return answer

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("charge", lambda: calls.append("charge"))
        try:
            await ctx.sleep("nap", 0.05)
        except asyncio.CancelledError:
            evicted.set()
            raise
        await ctx.step("ship", lambda: calls.append("ship"))
        return "done"

    store = HoldsTheClaim(real_time.store()).store
    async with real_time.engine(flow, store=store, linger=0.2, lease=60) as engine:
        handle = await engine.trigger(flow)
        assert await handle.result(timeout=SOON) == "done"
    assert held == ["claim"]
    assert calls == ["charge", "ship"]


async def test_P04_a_lease_that_is_lost_while_the_history_is_read_starts_no_step() -> None:
    """The linger has ended during the claim, as above, and the lease while the history was read."""
    calls: list[str] = []
    evicted = asyncio.Event()
    memory = MemoryStore()
    lost: list[str] = []

    class LosesTheLease(Between):
        async def around(self, name: str, call: Call) -> Any:
            answer = await call()
            if name == "claim" and any(claimed.records is None for claimed in answer.runs):
                await evicted.wait()
            if name == "history" and not lost:
                assert engine._worker is not None
                lost.append(engine._worker.id)
                memory.expire(engine._worker.id)
                engine._worker._lease_lost()
            return answer

    @workflow
    async def flow(ctx: Context) -> str:
        try:
            await ctx.sleep("nap", 0.05)
        except asyncio.CancelledError:
            evicted.set()
            raise
        await ctx.step("ship", lambda: calls.append("ship"))
        return "done"

    options = WorkerOptions(linger=0.2, lease=60)
    engine = Engine(LosesTheLease(memory).store, workflows=[flow], worker=options)
    async with engine:
        handle = await engine.trigger(flow)
        assert await handle.result(timeout=SOON) == "done"
    assert len(lost) == 1
    assert calls == ["ship"]


async def test_the_oldest_of_too_many_that_linger_is_replayed(
    real_time: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm, "_MOST", 2)
    passes: list[int] = []

    @workflow
    async def flow(ctx: Context, number: int) -> None:
        passes.append(number)
        await ctx.wait_for("go", int)

    async with real_time.engine(flow, linger=SOON) as engine:
        handles: list[RunHandle[None]] = []
        for number in range(3):
            handles.append(await engine.trigger(flow, number))
            await real_time.until(engine, handles[-1].run_id, State.WAITING)
        for handle in handles:
            await engine.signal(handle.run_id, "go", 1)
            await handle.result(timeout=SOON)
    assert sorted(passes) == [0, 0, 1, 2]


async def test_a_run_that_lingers_goes_on_without_a_replay(real_time: Backend) -> None:
    passes: list[int] = []

    @workflow
    async def flow(ctx: Context) -> None:
        passes.append(1)
        for _ in range(3):
            await ctx.sleep("nap", 0.3)  # one that is over before its park is answered is claimed with its history

    store = Between(real_time.store())
    async with real_time.engine(flow, store=store.store, linger=10) as engine:
        handle = await engine.trigger(flow)
        await handle.result(timeout=SOON)
        run = await engine.get_run(handle.run_id)
    assert passes == [1]
    assert run.claim == 4  # each sleep gave the lease back all the same
