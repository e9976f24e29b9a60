"""What has ended is forgotten: by age, one at a time, beside the work; what has not is kept."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    HookEvent,
    InvalidArgument,
    Run,
    RunFinished,
    RunHandle,
    RunNotFound,
    State,
    StoreUnavailable,
    workflow,
)
from durable.store import Store
from tests.engine.backends import SOON, Backend
from tests.engine.test_cancel import LONG, held
from tests.engine.test_compensation import Ledger
from tests.engine.wrapped import Between, Call


@workflow
async def quick(ctx: Context, n: int) -> int:
    return await ctx.step("a", abs, n, returns=int)


@workflow
async def naps(ctx: Context) -> None:
    await ctx.step("a", str)
    await ctx.sleep("long", LONG)


@workflow
async def fails(ctx: Context, undo: bool) -> None:
    await ctx.step("a", str, compensate=Ledger().undo if undo else None)
    raise ValueError("no")


async def exists(engine: Engine, handle: RunHandle[Any]) -> Run | None:
    try:
        return await engine.get_run(handle.run_id)
    except RunNotFound:
        return None


async def gone(engine: Engine, handle: RunHandle[Any]) -> None:
    """Return when the run is pruned."""
    async with asyncio.timeout(SOON):
        while await exists(engine, handle) is not None:  # noqa: ASYNC110 - nobody announces a deletion
            await asyncio.sleep(0.002)


async def test_P52_only_what_has_ended_and_is_older_is_pruned_with_all_that_belongs_to_it(backend: Backend) -> None:
    async with backend.engine(quick, naps, fails) as engine:
        ended: list[RunHandle[Any]] = [await engine.trigger(quick, n, key=f"{n}") for n in range(7)]
        ended += [await engine.trigger(fails, True), await engine.trigger(fails, False)]
        for handle in ended:
            async with asyncio.timeout(SOON):
                await engine._wait(handle.run_id)  # pyright: ignore[reportPrivateUsage]  # whatever the outcome
        sleeping, delayed = await engine.trigger(naps), await engine.trigger(quick, 1, delay=LONG)
        stopped, dropped = await engine.trigger(naps), await engine.trigger(naps)
        for napping in (sleeping, stopped, dropped):
            await held(engine, napping.run_id, State.SLEEPING)
        await engine.pause(stopped.run_id)
        await dropped.cancel()
        await held(engine, dropped.run_id, State.CANCELLED)
        assert await engine.prune(LONG) == 0
        assert await engine.prune(timedelta(days=30)) == 0
        if backend.clock is not None:
            backend.clock.advance(0.001)
        assert await engine.prune(0) == 10
        assert await engine.prune(0) == 0
        for gone in (*ended, dropped):
            assert await exists(engine, gone) is None
            with pytest.raises(RunNotFound):
                await engine.timeline(gone.run_id)
        for kept in (sleeping, delayed, stopped):
            assert await exists(engine, kept) is not None
        assert [entry.kind for entry in await engine.timeline(sleeping.run_id)][-1] == "sleeping"
        again = await engine.trigger(quick, 12345, key="3")
        assert again.created
        assert again.run_id != ended[3].run_id
        assert await again.result(timeout=SOON) == 12345
        assert len((await engine.list_runs()).items) == 4
        await sleeping.cancel()


async def test_P52_prune_takes_more_than_one_batch(backend: Backend) -> None:
    async with backend.engine(quick).client() as engine:
        handles = await engine.trigger_many(quick, list(range(1100)))
        await asyncio.gather(*(engine.cancel(handle.run_id) for handle in handles[:1001]))
        if backend.clock is not None:
            backend.clock.advance(0.001)
        batches: list[int] = []
        prune = engine._store.prune  # pyright: ignore[reportPrivateUsage]

        async def counted(before: Any, limit: int) -> int:
            assert limit == 500
            batches.append(await prune(before, limit))
            return batches[-1]

        engine._store.prune = counted  # type: ignore[method-assign]  # pyright: ignore[reportPrivateUsage]
        try:
            assert await engine.prune(0) == 1001
        finally:
            del engine._store.prune  # pyright: ignore[reportPrivateUsage]
        assert batches[:3] == [500, 500, 1]
        assert len((await engine.list_runs(limit=1000)).items) == 99


async def test_P52_a_worker_prunes_beside_its_work(backend: Backend) -> None:
    async with backend.engine(quick, naps) as engine:
        old = await engine.trigger(quick, 1)
        await backend.result(engine, old)
        sleeping = await engine.trigger(naps)
        await held(engine, sleeping.run_id, State.SLEEPING)
    if backend.clock is not None:
        backend.clock.advance(LONG / 2)
    async with backend.engine(quick, naps, prune_after=0.001 if backend.clock is None else LONG / 3) as engine:
        await gone(engine, old)
        assert await exists(engine, sleeping) is not None


class NeverDone(Between):
    """Each prune lasts for ever."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.begun, self.cancelled = asyncio.Event(), asyncio.Event()

    async def around(self, name: str, call: Call) -> Any:
        if name != "prune":
            return await call()
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()


async def test_P52_a_prune_that_takes_long_delays_no_claim_and_no_stop(backend: Backend) -> None:
    store = NeverDone(backend.store())
    begun, go_on = asyncio.Event(), asyncio.Event()

    @workflow
    async def held_up(ctx: Context) -> None:
        begun.set()
        await ctx.step("held up", go_on.wait)

    before = asyncio.all_tasks()
    engine = backend.engine(quick, held_up, store=store.store, prune_after=LONG, drain_timeout=SOON)
    await engine.start()
    await store.begun.wait()
    assert await backend.result(engine, await engine.trigger(quick, 1)) == 1
    handle = await engine.trigger(held_up)
    await begun.wait()
    assert not store.cancelled.is_set()
    stopping = asyncio.create_task(engine.stop())
    async with asyncio.timeout(SOON):
        await store.cancelled.wait()  # the drain has only begun: the step has not ended
        go_on.set()
        await stopping
    assert len(store.made("prune")) == 1
    assert asyncio.all_tasks() <= before
    async with backend.engine(quick).client() as client:
        assert (await client.get_run(handle.run_id)).takeovers == 0


class Fails(Between):
    """The first two prunes end with an error."""

    def __init__(self, inner: Store, error: Exception) -> None:
        super().__init__(inner)
        self.error = error

    async def around(self, name: str, call: Call) -> Any:
        if name == "prune" and len(self.made("prune")) <= 2:
            raise self.error
        return await call()


@pytest.mark.parametrize(
    ("error", "told"), [(StoreUnavailable("down"), 0), (RuntimeError("a bug"), 2)], ids=["outage", "bug"]
)
async def test_P52_pruning_outlives_a_store_that_does_not_answer(
    backend: Backend,
    error: Exception,
    told: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("durable.pruning._EVERY", 0.01)
    events: list[HookEvent] = []
    async with backend.engine(quick) as engine:
        old = await engine.trigger(quick, 1)
        await backend.result(engine, old)
    if backend.clock is not None:
        backend.clock.advance(1)
    store = Fails(backend.store(), error)
    again = backend.engine(quick, store=store.store, prune_after=0)
    again.on("error", events.append)
    async with again as engine:
        await gone(engine, old)
    assert len([line for line in caplog.records if line.name == "durable.pruning"]) == 2
    assert [event.detail for event in events] == ["pruning failed"] * told


async def test_P52_a_full_batch_is_soon_followed_by_the_next(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.pruning._BATCH", 2)
    monkeypatch.setattr("durable.pruning._AGAIN", 0.01)
    async with backend.engine(quick) as engine:
        old = await engine.trigger_many(quick, range(5))
        for handle in old:
            await backend.result(engine, handle)
    if backend.clock is not None:
        backend.clock.advance(1)
    store = Between(backend.store())
    async with backend.engine(quick, store=store.store, prune_after=0) as engine:
        for handle in old:
            await gone(engine, handle)
    assert [limit for _, limit in store.made("prune")] == [2, 2, 2]


async def test_P52_without_prune_after_a_worker_prunes_nothing(backend: Backend) -> None:
    async with backend.engine(quick) as engine:
        old = await engine.trigger(quick, 1)
        await backend.result(engine, old)
    async with backend.engine(quick, prune_after=LONG) as engine:
        await backend.result(engine, await engine.trigger(quick, 2))
        assert await exists(engine, old) is not None
    async with backend.engine(quick) as engine:
        await backend.result(engine, await engine.trigger(quick, 3))
        assert await exists(engine, old) is not None


async def test_a_run_that_has_ended_is_deleted_with_everything_and_its_key_is_free(backend: Backend) -> None:
    async with backend.engine(quick) as engine:
        handle, other = await engine.trigger(quick, 1, key="k"), await engine.trigger(quick, 2)
        assert await backend.result(engine, handle) == 1
        await backend.result(engine, other)
        await engine.delete(handle.run_id)
        with pytest.raises(RunNotFound, match=handle.run_id):
            await engine.get_run(handle.run_id)
        with pytest.raises(RunNotFound):
            await engine.delete(handle.run_id)
        with pytest.raises(RunNotFound, match="no run of workflow 'quick' has the key 'k'"):
            await engine.handle(quick, key="k")
        with pytest.raises(RunNotFound):
            await handle.status()
        assert await exists(engine, other) is not None
        assert (await engine.trigger(quick, 3, key="k")).created


async def test_a_run_that_has_not_ended_is_not_deleted(backend: Backend) -> None:
    async with backend.engine(quick, naps) as engine:
        sleeping, delayed = await engine.trigger(naps), await engine.trigger(quick, 1, delay=LONG)
        await held(engine, sleeping.run_id, State.SLEEPING)
        for handle, state in ((sleeping, "sleeping"), (delayed, "pending")):
            with pytest.raises(RunFinished, match=f"is {state}: only a run that has ended can be deleted"):
                await engine.delete(handle.run_id)
        await engine.pause(sleeping.run_id)
        with pytest.raises(RunFinished, match="is paused: only a run that has ended can be deleted"):
            await engine.delete(sleeping.run_id)
        await sleeping.cancel()
        await held(engine, sleeping.run_id, State.CANCELLED)
        await engine.delete(sleeping.run_id)
        assert await exists(engine, sleeping) is None
        assert await exists(engine, delayed) is not None


async def test_ages_that_are_no_ages_are_refused(backend: Backend) -> None:
    async with backend.engine(quick).client() as client:
        for wrong in (-1, float("nan"), "1", timedelta(days=-1)):
            with pytest.raises(InvalidArgument, match="older_than"):
                await client.prune(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="prune_after"):
        backend.engine(quick, prune_after=-1)
