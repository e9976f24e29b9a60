"""Schedules against references: clock changes by the zone's own offsets, policies by a small model. On virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo

from hypothesis import example, given, settings
from hypothesis import strategies as st

from durable import Context, Engine, State, WorkerOptions, workflow
from durable.testing import MemoryStore, VirtualClock

# -- clock changes --------------------------------------------------------------------------------

ZONES = {
    "Europe/Paris": time(2, 30),
    "America/New_York": time(2, 30),
    "Australia/Lord_Howe": time(2, 15),  # half an hour is skipped, and shown twice
    "America/Santiago": time(0, 0),  # midnight is skipped
    "Africa/Casablanca": time(2, 59),  # twice a year, around Ramadan
}
MONTHS = (2, 3, 4, 9, 10, 11)
"""In which these zones change their clocks; the others take time to go through, and show nothing."""
FROM, UNTIL = datetime(2026, 1, 31, tzinfo=UTC), datetime(2026, 12, 2, tzinfo=UTC)


def first_reached(zone: str, day: date, at: time) -> datetime:
    """The instant at which the clocks of the zone first show this time, or pass it."""
    wall = datetime.combine(day, at, ZoneInfo(zone))
    instant = wall.astimezone(UTC)
    if instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) == wall.replace(tzinfo=None):
        return instant
    instant -= timedelta(hours=3)
    while instant.astimezone(ZoneInfo(zone)).replace(tzinfo=None) < wall.replace(tzinfo=None):
        instant += timedelta(minutes=1)
    return instant


async def test_P40_a_year_of_daily_ticks_in_five_time_zones() -> None:
    fired: list[tuple[str, datetime]] = []

    @workflow
    async def daily(ctx: Context) -> None:
        assert ctx.schedule is not None
        fired.append((ctx.schedule.name, ctx.schedule.at))
        assert ctx.now() == ctx.schedule.at

    clock = VirtualClock(FROM)
    async with Engine(MemoryStore(clock), workflows=[daily], worker=WorkerOptions(linger=0)) as engine:
        for zone, at in ZONES.items():
            name = zone.replace("/", " ")
            await engine.schedule(daily, name=name, cron=f"{at.minute} {at.hour} * 2-4,9-11 *", timezone=zone)
        leap = await engine.schedule(daily, name="leap", cron="0 6 29 2 *")
        assert leap.next_at == datetime(2028, 2, 29, 6, tzinfo=UTC)
        await engine.run_until_idle(skip_time=True, until=UNTIL)
    for zone, at in ZONES.items():
        days = [FROM.date() + timedelta(days=number) for number in range(310)]
        expected = [first_reached(zone, day, at) for day in days if day.month in MONTHS]
        assert any(when.astimezone(ZoneInfo(zone)).time() != at for when in expected), "no tick was in the missing hour"
        assert [when for name, when in fired if name == zone.replace("/", " ")] == expected


# -- policies -------------------------------------------------------------------------------------

EVERY = 300
GRACE = 60
Overlap = Literal["skip", "queue", "cancel_previous", "allow"]
CatchUp = Literal["one", "all", "none"]
Act = tuple[Literal["up", "down", "end", "hand"], int]


@dataclass
class Model:
    """What has to come of one schedule that ticks every 300 s, in seconds since it was made."""

    overlap: Overlap
    catch_up: CatchUp
    max_queued: int
    window: int | None
    now: int = 0
    next: int = EVERY
    fired: list[int] = field(default_factory=list[int])  # nominal times
    open: list[int] = field(default_factory=list[int])  # numbers of runs that have not ended, the oldest first
    cancelled: set[int] = field(default_factory=set[int])
    skipped: Counter[str] = field(default_factory=Counter[str])

    def pass_time(self, until: int) -> None:
        """A worker is there all the time: each tick by itself."""
        while self.next <= until:
            self.now = self.next
            self.look()
        self.now = until

    def look(self) -> None:
        """A worker comes, and finds what is due."""
        due: list[int] = []
        while self.next <= self.now:
            due.append(self.next)
            self.next += EVERY
        wanted: list[int] = []
        for tick in due:
            late, newest = self.now - tick, tick == due[-1]
            if newest and late <= GRACE:
                wanted.append(tick)
            elif self.window is not None and late > self.window:
                self.skipped["window"] += 1
            elif self.catch_up == "all" or (self.catch_up == "one" and newest):
                wanted.append(tick)
            else:
                self.skipped["catch_up"] += 1
        if self.overlap == "cancel_previous":
            self.skipped["overlap"] += len(wanted[:-1])
            wanted = wanted[-1:]
        for tick in wanted:
            self.fire(tick)

    def fire(self, tick: int) -> None:
        if self.overlap == "skip" and self.open:
            self.skipped["overlap"] += 1
        elif self.overlap == "queue" and len(self.open) > self.max_queued:
            self.skipped["queue_full"] += 1
        else:
            if self.overlap == "cancel_previous":
                self.cancelled.update(self.open)
                self.open.clear()
            self.open.append(len(self.fired))
            self.fired.append(tick)


@workflow
async def held(ctx: Context) -> None:
    await ctx.wait_for("end")


class System:
    """The engine, driven by the same acts."""

    def __init__(self, model: Model) -> None:
        self.clock = VirtualClock(datetime(2026, 1, 1, tzinfo=UTC))
        self.start = self.clock.now()
        self.model = model
        self.store = MemoryStore(self.clock)
        self.engine = self.made()
        self.order: list[str] = []  # ids of the runs, in the order in which they were fired

    def made(self) -> Engine:
        return Engine(self.store, workflows=[held], worker=WorkerOptions(linger=0, prune_after=None))

    async def declare(self) -> None:
        model = self.model
        options: dict[str, Any] = {} if model.window is None else {"catch_up_window": model.window}
        await self.engine.schedule(
            held,
            name="s",
            every=EVERY,
            start_at=self.start + timedelta(seconds=EVERY),
            overlap=model.overlap,
            max_queued=model.max_queued,
            catch_up=model.catch_up,
            **options,
        )

    async def act(self, act: Act) -> None:
        """One act on both sides."""
        kind, amount = act
        model, seconds = self.model, amount * 30
        if kind == "up":
            await self.engine.run_until_idle(skip_time=True, until=self.clock.now() + timedelta(seconds=seconds))
            model.pass_time(model.now + seconds)
        elif kind == "down":
            await self.engine.stop()
            self.clock.advance(seconds)
            model.now += seconds
            self.engine = self.made()
            await self.engine.start()
            model.look()
        elif kind == "end" and model.open:
            number = model.open.pop(0)
            await self.engine.signal(self.order[number], "end")
        elif kind == "hand":
            tick = max(model.now, *model.fired, 0)
            await self.engine.trigger_schedule("s")
            model.fire(tick)
        await self.engine.run_until_idle()

    async def compare(self) -> None:
        model = self.model
        runs = sorted((await self.engine.list_runs(schedule="s", limit=1000)).items, key=lambda run: run.id)
        self.order += [run.id for run in runs[len(self.order) :]]
        # A tick by hand has a microsecond of its own.
        ticks = [int((run.tick - self.start).total_seconds()) for run in runs if run.tick is not None]
        assert ticks == model.fired
        ended = {number for number, run in enumerate(runs) if run.state in (State.COMPLETED, State.CANCELLED)}
        assert ended == set(range(len(runs))) - set(model.open)
        assert {number for number, run in enumerate(runs) if run.state is State.CANCELLED} == model.cancelled
        active = {number for number, run in enumerate(runs) if run.state is State.WAITING}
        assert active == set(model.open if model.overlap == "allow" else model.open[:1])
        schedule = await self.engine.get_schedule("s")
        assert {str(reason): count for reason, count in schedule.skipped.items()} == +model.skipped
        assert schedule.fired == len(model.fired)
        assert schedule.next_at == self.start + timedelta(seconds=model.next)


PASSING: tuple[Literal["up", "down"], ...] = ("up", "down", "down")
DOING: tuple[Literal["end", "hand"], ...] = ("end", "end", "hand")


@st.composite
def acts(draw: st.DrawFn) -> list[Act]:
    made: list[Act] = []
    for _ in range(draw(st.integers(1, 7))):
        if draw(st.booleans()):
            made.append((draw(st.sampled_from(PASSING)), draw(st.integers(1, 80))))
        else:
            made.append((draw(st.sampled_from(DOING)), 0))
    return made


@settings(max_examples=60, deadline=None)
@given(
    overlap=st.sampled_from(["skip", "queue", "cancel_previous", "allow"]),
    catch_up=st.sampled_from(["one", "all", "none"]),
    max_queued=st.integers(1, 3),
    window=st.none() | st.sampled_from([30, 300, 700]),
    what=acts(),
)
@example(overlap="queue", catch_up="all", max_queued=2, window=None, what=[("down", 80), ("end", 0), ("down", 25)])
@example(overlap="cancel_previous", catch_up="all", max_queued=1, window=None, what=[("up", 10), ("down", 35)])
@example(overlap="skip", catch_up="none", max_queued=1, window=None, what=[("down", 21), ("down", 15), ("up", 1)])
def test_policies_do_what_the_model_says(
    overlap: Overlap, catch_up: CatchUp, max_queued: int, window: int | None, what: list[Act]
) -> None:
    asyncio.run(play(Model(overlap, catch_up, max_queued, None if catch_up == "none" else window), what))


async def play(model: Model, what: list[Act]) -> None:
    system = System(model)
    await system.engine.start()
    await system.declare()
    for act in what:
        await system.act(act)
        await system.compare()
    await system.engine.stop()
