"""Schedules through the engine: declared in code and by calls, paused, fired by hand, filled."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    InvalidArgument,
    PayloadError,
    Schedule,
    ScheduleNotFound,
    Skip,
    UnknownWorkflow,
    workflow,
)
from tests.engine.backends import Backend, memory
from tests.engine.schedules import FAR, declaring, listening, report, runs_of, waits

# -- declaring ------------------------------------------------------------------------------------


async def test_P39_registering_again_is_an_upsert(backend: Backend) -> None:
    client = declaring(backend, report)
    async with client.client():
        first = await client.schedule(report, cron="0 6 * * *", timezone="Europe/Paris", input="ann")
        assert (first.spec.name, first.revision) == ("report", 0)
        again = await client.schedule(report, cron="0  6 * * *", timezone="Europe/Paris", input="ann")
        assert again == first
        other = await client.schedule(report, cron="0 6 * * *", timezone="Europe/Paris", input="bob", overlap="queue")
        assert (other.next_at, other.created_at, other.revision) == (first.next_at, first.created_at, 1)
        assert (other.spec.input, other.spec.overlap) == ('"bob"', "queue")
        moved = await client.schedule(report, cron="0 7 * * *", timezone="Europe/Paris", input="bob")
        assert moved.next_at != first.next_at
        assert await client.get_schedule("report") == moved
        assert [one.spec.name for one in await client.schedules()] == ["report"]
        off = await client.schedule(report, cron="0 7 * * *", timezone="Europe/Paris", enabled=False)
        assert (off.next_at, off.due_at) == (None, None)


async def test_P39_many_that_register_at_once_make_one(backend: Backend) -> None:
    async with AsyncExitStack() as stack:
        clients = [declaring(backend, report) for _ in range(5)]
        for client in clients:
            await stack.enter_async_context(client.client())
        made = await asyncio.gather(
            *(client.schedule(report, cron=FAR, input=f"{number % 2}") for number, client in enumerate(clients))
        )
        assert len({one.created_at for one in made}) == 1
        assert (await clients[0].get_schedule("report")).spec.input in ('"0"', '"1"')


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cron": "61 * * * *"}, "values are 0 to 59"),
        ({"cron": "0 0 30 2 *"}, "never fire"),
        ({"cron": "* * * * *", "timezone": "Mars/Olympus"}, "no time zone"),
        ({"cron": "* * * * *", "every": 5}, "either"),
        ({}, "either"),
        ({"every": 0.1}, "1"),
        ({"every": 60, "overlap": "queu"}, "overlap"),
        ({"every": 60, "catch_up": "some"}, "catch_up"),
        ({"every": 60, "jitter": 100_000}, "jitter"),
        ({"every": 60, "name": "a/b"}, "reserved"),
        ({"every": 60, "start_at": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - the subject
        ({"every": 60, "priority": 10}, "priority"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value.replace(" ", "_"),
)
async def test_P39_a_bad_schedule_is_refused_at_registration(options: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        workflow(schedule=options)(report.fn)
    client = declaring(memory(), report)
    with pytest.raises(InvalidArgument, match=reason):
        client.declare_schedule(report, **options)
    async with client.client():
        with pytest.raises(InvalidArgument, match=reason):
            await client.schedule(report, **options)
        assert await client.schedules() == []


async def test_the_input_and_the_workflow_are_checked(backend: Backend) -> None:
    client = declaring(backend, report)
    async with client.client():
        with pytest.raises(PayloadError):
            await client.schedule(report, every=60, input=5)
        with pytest.raises(UnknownWorkflow):
            await client.schedule("absent", every=60)
        with pytest.raises(InvalidArgument, match="before the engine starts"):
            client.declare_schedule(report, every=60)


async def test_a_name_is_declared_once() -> None:
    @workflow(schedule=[{"every": 60, "name": "one"}, {"every": 90, "name": "two"}])
    async def twice(ctx: Context) -> None: ...

    engine = declaring(memory(), twice)
    with pytest.raises(InvalidArgument, match="declared twice"):
        engine.declare_schedule(twice, every=60, name="two")
    async with engine:
        assert [one.spec.name for one in await engine.schedules()] == ["one", "two"]


async def test_a_schedule_that_the_code_declares_no_more_is_reported_and_goes_on(backend: Backend) -> None:
    before = declaring(backend, report)
    before.declare_schedule(report, cron=FAR, name="old")
    before.declare_schedule(report, cron=FAR, name="kept")
    async with before:
        await before.schedule(report, cron=FAR, name="by hand")
    after = declaring(backend, report)
    after.declare_schedule(report, cron=FAR, name="kept")
    async with listening("durable.schedules", "does not declare it any more") as heard:
        async with after:
            assert (await after.get_schedule("old")).fires
        assert "'old'" in heard.line
        heard.heard.clear()
        async with declaring(backend, report, program="another"):
            assert not heard.heard.is_set()


@pytest.mark.parametrize("choice", ["pause", "delete"])
async def test_a_schedule_that_the_code_declares_no_more_can_be_paused_or_deleted(
    backend: Backend, choice: Any
) -> None:
    before = declaring(backend, report)
    before.declare_schedule(report, cron=FAR, name="old")
    async with before:
        await before.schedule(report, cron=FAR, name="by hand")
    async with declaring(backend, report, undeclared_schedules=choice) as after:
        names = [one.spec.name for one in await after.schedules() if one.fires]
        assert names == ["by hand"]
        if choice == "delete":
            with pytest.raises(ScheduleNotFound):
                await after.get_schedule("old")
    again = declaring(backend, report)
    again.declare_schedule(report, cron=FAR, name="old")
    async with again:
        assert (await again.get_schedule("old")).fires


async def test_an_operators_pause_outlives_a_declaration(backend: Backend) -> None:
    async def start(**options: Any) -> Schedule:
        engine = declaring(backend, report)
        engine.declare_schedule(report, name="old", **options)
        async with engine:
            if (await engine.get_schedule("old")).paused is None:
                await engine.pause_schedule("old", "the partner is down")
            return await engine.get_schedule("old")

    await start(cron=FAR)
    assert (await start(cron=FAR, input="x")).paused == "the partner is down"


def test_the_choice_is_checked() -> None:
    with pytest.raises(InvalidArgument, match="report, pause, delete"):
        Engine("memory://", undeclared_schedules="forget")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(InvalidArgument, match="program"):
        Engine("memory://", program="a/b")


# -- changing -------------------------------------------------------------------------------------


async def test_a_paused_schedule_fires_nothing_until_it_is_resumed(backend: Backend) -> None:
    async with backend.engine(report) as engine:
        await engine.schedule(report, name="daily", every=86_400)
        paused = await engine.pause_schedule("daily", "holidays")
        assert (paused.paused, paused.next_at, paused.fires) == ("holidays", None, False)
        assert await engine.pause_schedule("daily", "holidays") == paused
        assert (await engine.pause_schedule("daily")).paused == ""
        assert len(await engine.next_ticks("daily", 2)) == 2
        resumed = await engine.resume_schedule("daily")
        assert resumed.fires
        assert resumed.next_at is not None
        assert resumed.next_at > backend.now()
        assert await engine.resume_schedule("daily") == resumed
        await engine.delete_schedule("daily")
        for call in (engine.delete_schedule, engine.resume_schedule, engine.pause_schedule, engine.get_schedule):
            with pytest.raises(ScheduleNotFound, match="daily"):
                await call("daily")
        with pytest.raises(ScheduleNotFound):
            await engine.trigger_schedule("daily")


async def test_a_schedule_can_be_fired_by_hand(backend: Backend) -> None:
    async with backend.engine(waits) as engine:
        made = await engine.schedule(waits, name="w", cron=FAR)
        first = await engine.trigger_schedule("w")
        assert first is not None
        assert await engine.trigger_schedule("w") is None  # the first has not ended
        await engine.signal(first.run_id, "go")
        assert await backend.result(engine, first) == "gone"
        second = await engine.trigger_schedule("w")
        assert second is not None
        await engine.signal(second.run_id, "go")
        assert await backend.result(engine, second) == "gone"
        now = await engine.get_schedule("w")
        assert (now.next_at, now.fired, now.skipped) == (made.next_at, 2, {Skip.OVERLAP: 1})
        ticks = [run.tick for run in await runs_of(engine, "w")]
        assert len(set(ticks)) == 2
        assert now.last_at == max(tick for tick in ticks if tick is not None)
        await engine.pause_schedule("w")
        assert await engine.trigger_schedule("w") is not None


async def test_a_gap_is_filled_once_in_order(backend: Backend) -> None:
    done: list[datetime] = []

    @workflow
    async def fill(ctx: Context) -> None:
        assert ctx.schedule is not None
        done.append(ctx.schedule.at)

    async with backend.engine(fill) as engine:
        await engine.schedule(fill, name="f", cron="0 6 * * *", timezone="Europe/Paris")
        since, end = datetime(2025, 3, 28, tzinfo=UTC), datetime(2025, 4, 2, tzinfo=UTC)
        handles = await engine.backfill("f", since, end)
        for handle in handles:
            await backend.result(engine, handle)
        expected = [datetime(2025, 3, day, 5 if day < 30 else 4, tzinfo=UTC) for day in range(28, 32)]
        expected.append(datetime(2025, 4, 1, 4, tzinfo=UTC))
        assert done == expected
        assert await engine.backfill("f", since, end) == []
        earlier = await engine.backfill("f", since - timedelta(days=1), end, overlap="allow")
        assert len(earlier) == 1
        await backend.result(engine, earlier[0])
        assert done[-1] == datetime(2025, 3, 27, 5, tzinfo=UTC)
        future = backend.now() + timedelta(days=400)
        assert await engine.backfill("f", future, future + timedelta(days=3)) == []
        with pytest.raises(InvalidArgument, match=r"10,000"):
            await engine.backfill("f", since - timedelta(days=365 * 40), end)
        with pytest.raises(InvalidArgument, match="overlap"):
            await engine.backfill("f", since, end, overlap="skip")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def test_two_who_fill_one_gap_make_each_run_once(backend: Backend) -> None:
    first, second = declaring(backend, report), declaring(backend, report)
    since = datetime(2025, 3, 1, tzinfo=UTC)
    async with first.client(), second.client():
        await first.schedule(report, name="f", cron="0 6 * * *")
        made = await asyncio.gather(
            *(client.backfill("f", since, since + timedelta(days=20), overlap="allow") for client in (first, second))
        )
        assert len(made[0]) + len(made[1]) == 20
        assert len(await runs_of(first, "f")) == 20
        assert (await first.get_schedule("f")).fired == 20


async def test_the_next_ticks_can_be_seen_before(backend: Backend) -> None:
    client = declaring(backend, report)
    async with client.client():
        first = (backend.now() + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        made = await client.schedule(report, name="d", every=86_400, end_at=first + timedelta(days=2, hours=1))
        ticks = await client.next_ticks("d")
        assert ticks[0] == made.next_at
        assert [later - tick for tick, later in pairwise(ticks)] == [timedelta(days=1)] * 2
        assert await client.next_ticks("d", 1) == ticks[:1]
        monday, *_ = await client.next_ticks(cron="30 9 * * mon", timezone="Asia/Tokyo", n=3)
        assert (monday.weekday(), monday.hour, monday.minute) == (0, 0, 30)
        for wrong in ({}, {"name": "d", "cron": FAR}, {"name": "d", "n": 0}):
            with pytest.raises(InvalidArgument):
                await client.next_ticks(**wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ScheduleNotFound):
            await client.next_ticks("absent")
