"""Schedules through the engine: each tick once, whoever fires it and whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    InvalidArgument,
    RunSummary,
    State,
    StoreUnavailable,
    Tick,
    workflow,
)
from durable.schedules import ScheduleWrite
from tests.engine.backends import SOON, Backend, memory, virtual
from tests.engine.schedules import FAR, HOUR, MINUTE, declaring, listening, miss, past, report, runs_of, until, waits
from tests.engine.wrapped import Between, Call, GoesDown, LosesAnswers

# -- firing ---------------------------------------------------------------------------------------


async def test_P39_a_tick_is_a_run_that_knows_it(backend: Backend) -> None:
    seen: asyncio.Queue[Tick | None] = asyncio.Queue()

    @workflow(schedule={"every": 1, "name": "every second", "tags": {"kind": "check"}})
    async def check(ctx: Context) -> None:
        seen.put_nowait(ctx.schedule)

    async with backend.engine(check) as engine:
        if backend.clock is not None:
            await engine.run_until_idle(skip_time=True, until=backend.clock.now() + timedelta(seconds=3))
        async with asyncio.timeout(SOON):
            first, second = await seen.get(), await seen.get()
        assert first is not None
        assert second is not None
        assert (first.name, second.name) == ("every second", "every second")
        assert first.at.microsecond == 0
        assert second.at > first.at
        run = (await runs_of(engine, "every second"))[0]
        assert (run.schedule, run.tick, run.workflow) == ("every second", first.at, "check")
        assert run.tags == {"kind": "check"}
        schedule = await engine.get_schedule("every second")
        assert schedule.fired >= 2
        assert schedule.next_at is not None
        assert schedule.last_at is not None
        assert schedule.next_at > schedule.last_at >= second.at
        await engine.trigger(check)
        async with asyncio.timeout(SOON):
            while await seen.get() is not None:
                pass


async def test_P39_ten_engines_fire_each_tick_once(real_time: Backend) -> None:
    ended = asyncio.Event()

    @workflow
    async def check(ctx: Context) -> None:
        if ctx.schedule is not None and ctx.schedule.at >= last:
            ended.set()

    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(real_time.engine(check)) for _ in range(10)]
        schedule = await engines[0].schedule(check, name="check", every=1, overlap="allow", catch_up="all")
        assert schedule.next_at is not None
        last = schedule.next_at + timedelta(seconds=2)
        async with asyncio.timeout(SOON):
            await ended.wait()
        runs = await runs_of(engines[0], "check")
        ticks = [run.tick for run in runs]
        assert ticks[:3] == [schedule.next_at + timedelta(seconds=second) for second in range(3)]
        assert len(set(ticks)) == len(ticks)
        assert (await engines[0].get_schedule("check")).skipped == {}


async def test_P39_ticks_that_nobody_fired_are_caught_up_once_by_ten_engines(backend: Backend) -> None:
    client = declaring(backend, report)
    async with client.client():
        await client.schedule(report, name="daily", every=86_400, catch_up="all", overlap="allow")
        first = await miss(backend, client, "daily", timedelta(days=7))
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(backend.engine(report)) for _ in range(10)]

        async def completed() -> bool:
            runs = await runs_of(engines[0], "daily")
            return len(runs) >= 8 and all(run.state is State.COMPLETED for run in runs)

        await until(completed)
        ticks = sorted(run.tick for run in await runs_of(engines[0], "daily") if run.tick is not None)
        assert ticks == [first + timedelta(days=day) for day in range(8)]


async def test_a_change_by_another_process_is_heard(backend: Backend) -> None:
    """The worker sleeps for a minute otherwise."""
    async with backend.engine(report) as engine:
        other = declaring(backend, report)
        async with other.client():
            await other.schedule(report, name="daily", every=86_400, catch_up="one")
            await miss(backend, other, "daily", timedelta(days=1))
            await other.schedule(report, name="another", cron=FAR)  # it announces

        async def fired() -> list[RunSummary]:
            return await runs_of(engine, "daily")

        assert len(await until(fired)) == 1


# -- overlap --------------------------------------------------------------------------------------


async def test_a_tick_cancels_the_run_before_it_and_waits_for_its_end() -> None:
    backend = virtual()
    assert backend.clock is not None
    async with backend.engine(waits) as engine:
        await engine.schedule(waits, name="w", every=60, overlap="cancel_previous")
        await engine.run_until_idle(skip_time=True, until=backend.clock.now() + 3 * MINUTE)
        states = [run.state for run in await runs_of(engine, "w")]
        assert states == [State.CANCELLED, State.CANCELLED, State.WAITING]


async def test_a_run_that_an_operator_retries_takes_its_place_in_the_line() -> None:
    backend = virtual()
    assert backend.clock is not None
    fail = True

    @workflow
    async def fails(ctx: Context) -> None:
        if fail:
            raise ValueError("no such card")
        await ctx.wait_for("go")

    async with backend.engine(fails) as engine:
        await engine.schedule(fails, name="w", every=60, overlap="queue")
        await engine.run_until_idle(skip_time=True, until=backend.clock.now() + MINUTE)
        (failed,) = await runs_of(engine, "w")
        fail = False
        await engine.run_until_idle(skip_time=True, until=backend.clock.now() + MINUTE)
        await engine.retry(failed.id)
        await engine.run_until_idle()
        assert [run.state for run in await runs_of(engine, "w")] == [State.PENDING, State.WAITING]


# -- what goes wrong ------------------------------------------------------------------------------


async def test_P39_a_tick_whose_answer_was_lost_is_fired_once(backend: Backend) -> None:
    store = LosesAnswers(backend.store(), "write_schedules", "due_schedules")
    async with backend.engine(report, store=store.store) as engine:
        client = declaring(backend, report)
        async with client.client():
            await client.schedule(report, name="daily", every=86_400, catch_up="all", overlap="allow")
            first = await miss(backend, client, "daily", timedelta(days=2))
            await client.schedule(report, name="another", cron=FAR)

        async def fired() -> list[RunSummary]:
            runs = await runs_of(engine, "daily")
            return runs if len(runs) >= 3 else []

        runs = await until(fired)
        assert [run.tick for run in runs] == [first + timedelta(days=day) for day in range(3)]
        assert store.lost >= 2


async def test_the_scheduler_goes_on_after_an_outage(backend: Backend) -> None:
    store = GoesDown(backend.store())
    outage = listening("durable.scheduler", "cannot look for due schedules")
    async with outage as heard, backend.engine(report, store=store.store) as engine:
        client = declaring(backend, report)
        async with client.client():
            await client.schedule(report, name="daily", every=86_400)
            store.down = True
            await miss(backend, client, "daily", timedelta(days=1))
            await client.schedule(report, name="another", cron=FAR)
        async with asyncio.timeout(SOON):
            await heard.heard.wait()
        store.down = False

        async def fired() -> list[RunSummary]:
            return await runs_of(engine, "daily")

        assert len(await until(fired)) == 1


async def test_a_schedule_that_cannot_be_read_here_stands_in_nobodys_way(backend: Backend) -> None:
    lines: list[str] = []

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Heard()
    logging.getLogger("durable.scheduler").addHandler(handler)
    client = declaring(backend, report)
    async with client.client():
        for name in ("a", "b", "c"):
            await client.schedule(report, name=name, every=86_400)
            await miss(backend, client, name, timedelta(hours=1))
        a, b = await client.get_schedule("a"), await client.get_schedule("b")
        for one in (a, b):
            spec = replace(one.spec, every=None, cron="0 6 * * *", timezone="Mars/Olympus")
            away = replace(one, spec=spec, revision=one.revision + 1)
            async with past(backend) as store:
                assert list(await store.write_schedules([ScheduleWrite(away, one)])) == [True]
    async with backend.engine(report) as engine:

        async def fired() -> list[RunSummary]:
            return await runs_of(engine, "c")

        assert len(await until(fired)) == 1
        await engine.schedule(report, name="d", cron=FAR)
        await engine.run_until_idle()
        assert await runs_of(engine, "a") == []
    logging.getLogger("durable.scheduler").removeHandler(handler)
    said = [line for line in lines if "cannot be fired by this worker" in line]
    assert sorted(line.split("'")[1] for line in said) == ["a", "b"]


async def test_P03_a_stop_waits_for_no_scheduler() -> None:
    class Hangs(Between):
        asked = asyncio.Event()

        async def around(self, name: str, call: Call) -> Any:
            if name == "due_schedules":
                self.asked.set()
                await asyncio.Event().wait()
            return await call()

    backend = memory()
    store = Hangs(backend.store())
    engine = backend.engine(report, store=store.store)
    await engine.start()
    async with asyncio.timeout(SOON):
        await store.asked.wait()
    async with asyncio.timeout(1.0):
        await engine.stop()
    assert [task for task in asyncio.all_tasks() if task.get_name() == "durable scheduler"] == []


async def test_what_is_changed_for_ever_by_others_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(Between):
        async def around(self, name: str, call: Call) -> Any:
            return [False] if name == "write_schedules" else await call()

    monkeypatch.setattr("durable.calendar._PATIENCE", 0.05)
    backend = memory()
    client = Engine(Refuses(backend.store()).store, workflows=[report])
    async with client.client():
        with pytest.raises(StoreUnavailable, match="others"):
            await client.schedule(report, every=60)


@pytest.mark.parametrize("count", [0, 10_000])
async def test_an_idle_engine_asks_nothing_for_schedules_that_are_far_off(count: int) -> None:
    """Both counts make the same calls: one look at the start, and none while the worker polls."""
    backend = memory()
    store = Between(backend.store())
    client = declaring(backend, report)
    async with client.client():
        if count:
            far = await client.schedule(report, name="far", cron=FAR)
            writes = [
                ScheduleWrite(replace(far, spec=replace(far.spec, name=f"far {number}"))) for number in range(count)
            ]
            async with past(backend) as bare:
                assert all(await bare.write_schedules(writes))
    async with backend.engine(report, store=store.store, poll_interval=0.01) as engine:
        await engine.run_until_idle()
        store.calls.clear()

        async def polled() -> bool:
            return len(store.made("claim")) >= 10

        await until(polled)
        assert store.made("due_schedules") == []


# -- on the virtual clock -------------------------------------------------------------------------


async def test_skipping_time_fires_ticks_on_the_way_and_does_not_wait_for_the_last() -> None:
    backend = virtual()
    assert backend.clock is not None
    start = backend.clock.now()

    @workflow
    async def naps(ctx: Context) -> None:
        await ctx.sleep("nap", 150)

    async with backend.engine(report, naps) as engine:
        await engine.schedule(report, name="r", every=60)
        await engine.run_until_idle(skip_time=True)
        assert backend.clock.now() == start
        handle = await engine.trigger(naps)
        assert await backend.result(engine, handle) is None
        assert backend.clock.now() == start + timedelta(seconds=150)
        assert [run.tick for run in await runs_of(engine, "r")] == [start + MINUTE, start + 2 * MINUTE]
        await engine.run_until_idle(skip_time=True, until=start + 5 * MINUTE)
        assert backend.clock.now() == start + 5 * MINUTE
        assert len(await runs_of(engine, "r")) == 5
        with pytest.raises(InvalidArgument, match="skip_time"):
            await engine.run_until_idle(until=start + HOUR)


async def test_without_a_worker_the_schedules_are_driven_too() -> None:
    backend = virtual()
    assert backend.clock is not None
    engine = declaring(backend, report)
    async with engine.client():
        await engine.schedule(report, name="r", every=60)
        await engine.run_until_idle(skip_time=True, until=backend.clock.now() + 2 * MINUTE)
        states = [run.state for run in await runs_of(engine, "r")]
        assert states == [State.COMPLETED, State.COMPLETED]
