"""Runs that are triggered beside a worker with a free slot: they begin at once, and as if they had been claimed."""

from __future__ import annotations

import asyncio
from typing import Any

from durable import Context, Engine, HookEvent, State, workflow
from durable.model import Created
from durable.store import Store
from tests.engine.backends import SOON, Backend
from tests.engine.wrapped import Between, Call, LosesAnswers


@workflow
async def doubled(ctx: Context, n: int) -> int:
    return await ctx.step("double", lambda: 2 * n)


class Watched(Between):
    """Says when a claim has found nothing: from then on slots are known to be free."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.idle = asyncio.Event()
        self.claimed = 0

    async def around(self, name: str, call: Call) -> Any:
        answer = await call()
        if name == "claim":
            self.claimed += len(answer.runs)
            asyncio.get_running_loop().call_later(0, self.idle.set)
        return answer

    async def rests(self) -> None:
        async with asyncio.timeout(SOON):
            await self.idle.wait()
            await asyncio.sleep(0)


async def test_a_run_that_is_triggered_beside_a_free_slot_needs_no_claim(backend: Backend) -> None:
    store = Watched(backend.store())
    seen: list[HookEvent] = []
    engine = backend.engine(doubled, store=store.store)
    for event in ("run_triggered", "run_started", "run_completed"):
        engine.on(event, seen.append)
    async with engine:
        await store.rests()
        handles = await engine.trigger_many(doubled, [1, 2, 3], keys=["a", "b", "c"])
        assert [await backend.result(engine, handle) for handle in handles] == [2, 4, 6]
        assert all(handle.created for handle in handles)
        assert [(await engine.get_run(handle.run_id)).claim for handle in handles] == [1, 1, 1]
    assert store.claimed == 0
    for handle in handles:
        assert [one.name for one in seen if one.run_id == handle.run_id] == [
            *("run_triggered", "run_started", "run_completed"),
        ]


async def test_no_more_runs_begin_than_there_are_slots(backend: Backend) -> None:
    going, most, both, release = 0, 0, asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        nonlocal going, most
        going += 1
        most = max(most, going)
        if going == 2:
            both.set()
        await release.wait()
        going -= 1

    @workflow
    async def holds(ctx: Context) -> None:
        await ctx.step("hold", hold)

    store = Watched(backend.store())
    async with backend.engine(holds, store=store.store, concurrency=2) as engine:
        await store.rests()
        handles = await engine.trigger_many(holds, [None] * 5)
        async with asyncio.timeout(SOON):
            await both.wait()
        states = [await handle.status() for handle in handles]
        assert sorted(states) == [State.PENDING] * 3 + [State.RUNNING] * 2
        release.set()
        for handle in handles:
            await backend.result(engine, handle)
    assert most == 2


async def test_what_the_worker_does_not_execute_is_left_to_others(backend: Backend) -> None:
    store = Watched(backend.store())
    async with backend.engine(doubled, store=store.store, queues=["other"]) as engine:
        await store.rests()
        here, elsewhere = await engine.trigger(doubled, 1, queue="other"), await engine.trigger(doubled, 2)
        assert await backend.result(engine, here) == 2
        assert (await engine.get_run(elsewhere.run_id)).state is State.PENDING
    async with backend.engine(doubled) as engine:
        assert await backend.result(engine, await engine.handle(doubled, run_id=elsewhere.run_id)) == 4


async def test_P03_what_a_trigger_brings_after_the_stop_is_given_back_before_it_starts_a_step(
    real_time: Backend,
) -> None:
    made: list[int] = []

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("a", made.append, 1)

    class HoldsATrigger(Watched):
        under_way, arrives = asyncio.Event(), asyncio.Event()

        async def around(self, name: str, call: Call) -> Any:
            answer = await super().around(name, call)
            if name == "create_runs":
                assert answer[0].claimed is not None
                self.under_way.set()
                await self.arrives.wait()
            return answer

    store = HoldsATrigger(real_time.store())
    engine = real_time.engine(flow, store=store.store)
    await engine.start()
    async with asyncio.timeout(SOON):
        await store.rests()
        triggering = asyncio.create_task(engine.trigger(flow))
        await store.under_way.wait()
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # it has begun
        store.arrives.set()
        handle = await triggering
        await stopping
    assert made == []
    async with real_time.engine(flow).client() as client:
        run = await client.get_run(handle.run_id)
        assert (run.state, run.owner, run.takeovers) == (State.PENDING, None, 0)


async def test_P05_a_start_whose_answer_was_lost_is_given_back_and_executed(real_time: Backend) -> None:
    calls: list[int] = []

    @workflow
    async def flow(ctx: Context, n: int) -> int:
        await ctx.step("a", calls.append, n)
        return n

    class LosesStarts(LosesAnswers, Watched):
        def __init__(self, inner: Store) -> None:
            LosesAnswers.__init__(self, inner, "create_runs")
            self.idle, self.claimed = asyncio.Event(), 0

        async def around(self, name: str, call: Call) -> Any:
            async def watched() -> Any:
                return await Watched.around(self, name, call)

            return await LosesAnswers.around(self, name, watched)

    store = LosesStarts(real_time.store())
    async with real_time.engine(flow, store=store.store, lease=300.0) as engine:  # the lease ends after the test
        await store.rests()
        handles = [await engine.trigger(flow, n) for n in range(4)]
        assert [await real_time.result(engine, handle) for handle in handles] == [0, 1, 2, 3]
        assert all(handle.created for handle in handles)
    assert store.lost >= 4
    assert sorted(calls) == [0, 1, 2, 3]


async def test_a_lease_that_is_lost_while_a_run_is_triggered_starts_no_step_of_it(real_time: Backend) -> None:
    made: list[int] = []

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("a", made.append, 1)

    class LosesItsLease(Watched):
        held: list[Created]

        async def around(self, name: str, call: Call) -> Any:
            answer = await super().around(name, call)
            if name == "create_runs":
                self.held = answer
                worker = engine._worker
                assert worker is not None
                worker._lease_lost()
            return answer

    store = LosesItsLease(real_time.store())
    engine: Engine = real_time.engine(flow, store=store.store, lease=300.0)
    async with engine:
        await store.rests()
        handle = await engine.trigger(flow)
        assert store.held[0].claimed is not None
        run = await engine.get_run(handle.run_id)
        assert (run.state, run.claim) == (State.RUNNING, 1)  # of the worker that lost it, until that is reaped
        await asyncio.sleep(0)
        assert made == []
