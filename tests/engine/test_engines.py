"""Engines: their lifetime and misuse, several on one store, and how soon one notices work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durable import ConfigurationError, Context, Engine, InvalidArgument, State, WorkerOptions, workflow
from durable.store import Store
from tests.engine.backends import SOON, Backend, memory
from tests.engine.test_replay import EVICT
from tests.engine.wrapped import Between, Call


@workflow
async def nothing(ctx: Context) -> str:
    return "done"


@workflow(name="nothing", version="2")
async def nothing_2(ctx: Context) -> str:
    return "done by 2"


async def test_P07_a_worker_claims_only_what_it_has(backend: Backend) -> None:
    @workflow
    async def unknown(ctx: Context) -> None: ...

    async with backend.engine().client() as client:
        other_version: Any = await client.trigger("nothing", version="2")
        other_name: Any = await client.trigger("unknown")
    async with backend.engine(nothing) as engine:
        known = await engine.trigger(nothing)
        assert await backend.result(engine, known) == "done"
        for handle in (other_version, other_name):
            assert (await engine.get_run(handle.run_id)).state is State.PENDING
    async with backend.engine(nothing_2) as engine:
        assert await backend.result(engine, await engine.handle(nothing_2, run_id=other_version.run_id)) == "done by 2"


async def test_P08_four_engines_on_one_store_execute_no_step_twice(real_time: Backend) -> None:
    calls: list[tuple[int, str]] = []

    @workflow
    async def counted(ctx: Context, n: int) -> int:
        await ctx.step("a", lambda: calls.append((n, "a")))
        await ctx.sleep("nap", EVICT)
        await ctx.step("b", lambda: calls.append((n, "b")))
        return n

    runs = list(range(500))
    engines = [real_time.engine(counted, concurrency=20, linger=0) for _ in range(4)]
    await asyncio.gather(*(engine.start() for engine in engines))
    try:
        handles = await engines[0].trigger_many(counted, runs)
        assert await asyncio.gather(*(handle.result(timeout=60) for handle in handles)) == runs
        workers = {entry.worker for handle in handles for entry in await engines[0].timeline(handle.run_id)} - {None}
    finally:
        await asyncio.gather(*(engine.stop() for engine in engines))
    assert sorted(calls) == sorted((n, step) for n in runs for step in "ab")
    assert len(workers) > 1


async def test_P44_100_ready_runs_finish_in_under_2_seconds(backend: Backend) -> None:
    async with backend.engine(nothing).client() as client:
        handles = await client.trigger_many(nothing, [None] * 100)
    async with backend.engine(nothing) as engine:
        before = time.monotonic()
        for handle in handles:
            await (await engine.handle(nothing, run_id=handle.run_id)).result(timeout=SOON)
        took = time.monotonic() - before
    assert took < 10  # 0.2 s on an idle machine; a claim for each poll would take 100


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_P44_a_trigger_is_noticed_whatever_the_poll_interval(real_time: Backend, elsewhere: bool) -> None:
    """Also one by another engine, which has a connection of its own."""
    started = asyncio.Event()

    async def noticed() -> None:
        started.set()

    starts_now = workflow(name="starts")(_starting(noticed))
    async with real_time.engine(starts_now, poll_interval=30) as engine, real_time.engine(starts_now).client() as other:
        await engine.run_until_idle()
        before = time.monotonic()
        handle = await (other if elsewhere else engine).trigger(starts_now)
        await started.wait()
        took = time.monotonic() - before
        await handle.result(timeout=5)
    assert took < 5  # a poll would have come after 30 s


def _starting(noticed: Any) -> Any:
    async def starts(ctx: Context) -> None:
        await ctx.step("starts", noticed)

    return starts


async def test_a_result_is_noticed_by_an_engine_that_did_not_execute_it(real_time: Backend) -> None:
    async with real_time.engine(nothing), real_time.engine(nothing).client() as client:
        assert await (await client.trigger(nothing)).result(timeout=SOON) == "done"


async def test_two_engines_share_a_store_object(backend: Backend) -> None:
    store = backend.store()
    async with backend.engine(nothing, store=store) as one:
        async with backend.engine(nothing_2, store=store) as two:
            handles = [await one.trigger(nothing), await two.trigger(nothing_2)]
            assert [await handle.result(timeout=SOON) for handle in handles] == ["done", "done by 2"]
        # Stopping one closes nothing of the other's.
        assert await (await one.trigger(nothing)).result(timeout=SOON) == "done"


async def test_an_engine_may_be_started_again(backend: Backend) -> None:
    engine = backend.engine(nothing)
    for _ in range(2):
        async with engine:
            assert await (await engine.trigger(nothing)).result(timeout=SOON) == "done"


async def test_starting_twice_is_refused_and_stopping_twice_is_harmless(backend: Backend) -> None:
    store = backend.store()
    async with backend.engine(nothing, store=store) as other:
        engine = backend.engine(nothing, store=store)
        await engine.stop()  # never started
        await engine.start()
        with pytest.raises(InvalidArgument, match="running already"):
            await engine.start()
        with pytest.raises(InvalidArgument, match="before the engine starts"):
            engine.register(nothing_2)
        await engine.stop()
        await engine.stop()
        assert await (await other.trigger(nothing)).result(timeout=SOON) == "done"


async def test_an_engine_that_is_not_running_says_so(backend: Backend) -> None:
    engine = backend.engine(nothing)
    async with engine:
        handle = await engine.trigger(nothing)
        await handle.result(timeout=SOON)
    calls: tuple[Callable[[], Awaitable[Any]], ...] = (
        lambda: engine.trigger(nothing),
        lambda: engine.trigger_many(nothing, [None]),
        lambda: engine.get_run(handle.run_id),
        engine.list_runs,
        lambda: engine.timeline(handle.run_id),
        lambda: engine.handle(nothing, run_id=handle.run_id),
        engine.run_until_idle,
        handle.result,
        handle.status,
    )
    for call in calls:
        with pytest.raises(ConfigurationError, match="not running"):
            await call()


async def test_who_waits_for_a_result_is_told_when_the_engine_stops(backend: Backend) -> None:
    async with backend.engine(nothing).client() as engine:
        handle = await engine.trigger(nothing)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
    with pytest.raises(ConfigurationError, match="stopped"):
        await waiting


async def test_registering_what_is_no_workflow_or_twice_is_refused() -> None:
    async def plain(ctx: Context) -> None: ...

    wrong: Any = plain
    with pytest.raises(InvalidArgument, match="decorate it with @workflow"):
        Engine("memory://", workflows=[wrong])
    same = workflow(name="nothing")(_starting(None))
    with pytest.raises(InvalidArgument, match="'nothing' version '1' is registered twice"):
        Engine("memory://", workflows=[nothing, same])
    Engine("memory://", workflows=[nothing, nothing, nothing_2])


async def test_a_workflow_is_an_async_function_of_ctx_and_at_most_one_input() -> None:
    def plain(ctx: Context) -> None: ...
    async def two(ctx: Context, a: int, b: int) -> None: ...
    async def none() -> None: ...

    for wrong in (plain, two, none):
        untyped: Any = wrong
        with pytest.raises(InvalidArgument):
            workflow(untyped)
    for name in ("", "a/b", "a#2", "a[0]", "x" * 201, "tab\t", "nul\0", "\ud800"):
        with pytest.raises(InvalidArgument):
            workflow(name=name)(_starting(None))
        with pytest.raises(InvalidArgument):
            workflow(version=name)(_starting(None))


async def test_arguments_out_of_their_range_are_refused() -> None:
    for options in (
        {"concurrency": 0},
        {"threads": -1},
        {"concurrency": 2.5},
        {"lease": 0.1},
        {"linger": -1},
        {"poll_interval": 0},
        {"drain_timeout": float("nan")},
    ):
        wrong: Any = options
        with pytest.raises(InvalidArgument):
            WorkerOptions(**wrong)
    for url in ("mysql://x", "durable.db", "sqlite://durable.db", "memory://x"):
        with pytest.raises(InvalidArgument, match="not a store URL"):
            Engine(url)
    with pytest.raises(InvalidArgument):
        Engine("memory://", schema='durable"; DROP TABLE x')
    with pytest.raises(InvalidArgument):
        Engine("memory://", step_timeout=-1)


async def test_wrong_calls_in_a_workflow_are_errors_of_the_workflow(backend: Backend) -> None:
    @workflow
    async def misuses(ctx: Context) -> list[str]:
        found: list[str] = []
        wrong: Any = ctx
        calls: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: wrong.step("a/b", nothing),
            lambda: wrong.step("a", 5),
            lambda: wrong.step("a", nothing, retry=0),
            lambda: wrong.step("a", nothing, timeout=-1),
            lambda: wrong.sleep("a", -1),
            lambda: wrong.sleep("a", "soon"),
            lambda: wrong.sleep_until("a", ctx.now().replace(tzinfo=None)),
        )
        for call in calls:
            try:
                await call()
            except InvalidArgument as error:
                found.append(str(error))
        return found

    assert len(await backend.run(misuses)) == 7


async def test_skip_time_needs_a_virtual_clock() -> None:
    backend = memory()
    async with backend.engine(nothing) as engine:
        with pytest.raises(InvalidArgument, match="VirtualClock"):
            await engine.run_until_idle(skip_time=True)


class HoldsAClaim(Between):
    """The answer of the nth claim that got a run is on its way until it is let go."""

    def __init__(self, inner: Store, number: int) -> None:
        super().__init__(inner)
        self.left = number
        self.under_way, self.arrives = asyncio.Event(), asyncio.Event()

    async def around(self, name: str, call: Call) -> Any:
        answer = await call()
        if name == "claim" and answer.runs:
            self.left -= 1
            if not self.left:
                self.under_way.set()
                await self.arrives.wait()
        return answer


@pytest.mark.parametrize("number", [1, 2], ids=["new", "still in memory"])
async def test_P03_what_a_claim_brings_after_the_stop_is_given_back_before_it_starts_a_step(
    real_time: Backend, number: int
) -> None:
    made: list[str] = []

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("a", made.append, "a")
        await ctx.sleep("nap", EVICT)
        await ctx.step("b", made.append, "b")

    store = HoldsAClaim(real_time.store(), number)
    engine = real_time.engine(flow, store=store.store, linger=SOON)
    async with real_time.engine(flow).client() as client:  # not beside the worker, which would need no claim
        handle = await client.trigger(flow)
    await engine.start()
    async with asyncio.timeout(SOON):
        await store.under_way.wait()
        stopping = asyncio.create_task(engine.stop())
        await asyncio.sleep(0)  # it has begun
        store.arrives.set()
        await stopping
    assert made == ["a"][: number - 1]
    async with real_time.engine(flow).client() as client:
        run = await client.get_run(handle.run_id)
        assert (run.state, run.owner, run.claim, run.takeovers) == (State.PENDING, None, number, 0)


async def test_after_stop_no_task_and_no_thread_of_the_engine_lives(backend: Backend) -> None:
    @workflow
    async def naps(ctx: Context) -> None:
        await ctx.step("thread", lambda: None)
        await ctx.sleep("nap", 60)

    before = asyncio.all_tasks()
    async with backend.engine(naps, nothing) as engine:
        handle = await engine.trigger(naps)
        await engine.run_until_idle()
        assert await handle.status() == State.SLEEPING
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert left == set()
