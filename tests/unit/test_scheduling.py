"""Schedules that are due: what is fired, what is skipped and why, against a small model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable import scheduling
from durable.errors import InvalidArgument
from durable.schedules import CatchUp, Overlap, Previous, Schedule, ScheduleSpec, Skip
from durable.scheduling import GRACE, Firing, Plan, decide, first_tick, next_after_put, place, schedule_spec

START = datetime(2026, 1, 1, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
IDLE = Previous()
BUSY = Previous(active=("a",))


def spec(**changes: Any) -> ScheduleSpec:
    given: dict[str, Any] = {"name": "report", "workflow": "report", "version": "1"}
    if changes.get("cron") is None:
        given["every"] = 3600
    return schedule_spec(**(given | changes))


def stored(declared: ScheduleSpec, next_at: datetime | None = START, **changes: Any) -> Schedule:
    due = None if next_at is None else scheduling.due_at(declared, next_at)
    return replace(Schedule(declared, next_at, due, START, START), **changes)


def at(hours: float) -> datetime:
    return START + hours * HOUR


def fired(plan: Plan) -> list[float]:
    return [(firing.tick - START) / HOUR for firing in plan.fire]


# -- one tick -------------------------------------------------------------------------------------


def test_P39_equal_arguments_give_equal_plans_and_the_next_date() -> None:
    schedule = stored(spec())
    plan = decide(schedule, START, IDLE)
    assert plan == Plan(at(1), at(1), (Firing(START),), (), {}, False)
    assert decide(schedule, START, IDLE) == plan


def test_a_schedule_that_is_not_due_changes_nothing() -> None:
    plan = decide(stored(spec(), at(1)), at(1) - timedelta(microseconds=1), IDLE)
    assert plan == Plan(at(1), at(1))


def test_a_rule_that_cannot_be_read_here_fires_nothing() -> None:
    broken = replace(spec(cron="@daily"), timezone="Mars/Olympus")
    schedule = Schedule(broken, START, START, START, START)
    with pytest.raises(InvalidArgument, match="Mars"):
        decide(schedule, START, IDLE)


@pytest.mark.parametrize(
    "schedule",
    [stored(spec(enabled=False)), stored(spec(), paused=""), stored(spec(), None)],
    ids=["disabled", "paused", "ended"],
)
def test_what_does_not_fire_has_no_ticks(schedule: Schedule) -> None:
    assert decide(schedule, at(5), IDLE) == Plan(None, None)


def test_the_last_tick_before_the_end_is_the_last() -> None:
    declared = spec(start_at=START, end_at=at(2))
    assert decide(stored(declared), START, IDLE).next_at == at(1)
    assert decide(stored(declared, at(1)), at(1), IDLE) == Plan(None, None, (Firing(at(1)),))


def test_an_end_that_was_moved_before_the_next_tick_ends_it() -> None:
    plan = decide(stored(spec(end_at=at(1)), at(1)), at(1), IDLE)
    assert plan == Plan(None, None, skipped={Skip.ENDED: 1})


def test_ticks_before_the_end_are_caught_up_after_it() -> None:
    plan = decide(stored(spec(start_at=START, end_at=at(2), catch_up="all", overlap="allow")), at(9), IDLE)
    assert fired(plan) == [0, 1]
    assert plan.next_at is None
    assert not plan.more


# -- catch-up -------------------------------------------------------------------------------------

CATCH_UP: list[tuple[str, float | None, float, list[float], Mapping[Skip, int]]] = [
    # policy, window in hours, hours since the first tick, what fires, what does not
    ("one", None, 0.5, [0], {}),
    ("one", None, 3.5, [3], {Skip.CATCH_UP: 3}),
    ("one", 2, 3.5, [3], {Skip.CATCH_UP: 1, Skip.WINDOW: 2}),
    ("one", 0.2, 3.5, [], {Skip.WINDOW: 4}),
    ("one", 0, 3.01, [3], {Skip.WINDOW: 3}),
    ("all", None, 3.5, [0, 1, 2, 3], {}),
    ("all", 2.5, 3.5, [1, 2, 3], {Skip.WINDOW: 1}),
    ("none", None, 3.01, [3], {Skip.CATCH_UP: 3}),
    ("none", None, 0.01, [0], {}),
    ("none", None, 3.5, [], {Skip.CATCH_UP: 4}),
]


@pytest.mark.parametrize(("policy", "window", "now", "fires", "skips"), CATCH_UP, ids=range(len(CATCH_UP)))
def test_missed_ticks(
    policy: str, window: float | None, now: float, fires: list[float], skips: Mapping[Skip, int]
) -> None:
    limit = None if window is None else window * 3600
    plan = decide(stored(spec(catch_up=policy, catch_up_window=limit, overlap="allow")), at(now), IDLE)
    assert fired(plan) == fires
    assert plan.skipped == skips
    assert plan.next_at == at(int(now) + 1)
    assert not plan.more


def test_the_newest_tick_is_on_time_for_the_grace_and_no_longer() -> None:
    schedule = stored(spec(catch_up="none"))
    assert fired(decide(schedule, START + GRACE, IDLE)) == [0]
    late = decide(schedule, START + GRACE + timedelta(microseconds=1), IDLE)
    assert fired(late) == []
    assert late.skipped == {Skip.CATCH_UP: 1}
    assert late.next_at == at(1)


def test_a_tick_is_missed_from_the_moment_the_next_one_is_due() -> None:
    schedule = stored(spec(every=10, catch_up="none"))
    assert fired(decide(schedule, START + timedelta(seconds=9.999999), IDLE)) == [0]
    plan = decide(schedule, START + timedelta(seconds=10), IDLE)
    assert [firing.tick for firing in plan.fire] == [START + timedelta(seconds=10)]
    assert plan.skipped == {Skip.CATCH_UP: 1}


def test_a_long_absence_is_worked_off_in_bounded_plans() -> None:
    schedule, now, plans = stored(spec(every=1)), START + timedelta(seconds=1000), list[Plan]()
    while not plans or plans[-1].more:
        plans.append(decide(schedule, now, IDLE, limit=300))
        schedule = replace(schedule, next_at=plans[-1].next_at)
    assert [sum(plan.skipped.values()) for plan in plans] == [300, 300, 300, 100]
    assert [len(plan.fire) for plan in plans] == [0, 0, 0, 1]
    assert plans[-1].fire[0].tick == now


# -- overlap --------------------------------------------------------------------------------------

OVERLAP: list[tuple[str, Previous, list[bool], tuple[str, ...], Mapping[Skip, int]]] = [
    # policy, runs that have not ended, for each run to create whether it waits, what is cancelled, what is skipped
    ("skip", IDLE, [False], (), {Skip.OVERLAP: 2}),
    ("skip", BUSY, [], (), {Skip.OVERLAP: 3}),
    ("skip", Previous(queued=("q",)), [], (), {Skip.OVERLAP: 3}),
    ("queue", IDLE, [False, True, True], (), {}),
    ("queue", BUSY, [True, True], (), {Skip.QUEUE_FULL: 1}),
    ("queue", Previous(("a",), ("q",)), [True], (), {Skip.QUEUE_FULL: 2}),
    ("queue", Previous(("a",), ("q", "r", "s")), [], (), {Skip.QUEUE_FULL: 3}),
    ("cancel_previous", IDLE, [False], (), {Skip.OVERLAP: 2}),
    ("cancel_previous", BUSY, [True], ("a",), {Skip.OVERLAP: 2}),
    ("cancel_previous", Previous(("a", "b"), ("q",)), [True], ("a", "b", "q"), {Skip.OVERLAP: 2}),
    ("allow", IDLE, [False] * 3, (), {}),
    ("allow", Previous(("a",), ("q",)), [False] * 3, (), {}),
]


@pytest.mark.parametrize(("policy", "previous", "waits", "cancelled", "skips"), OVERLAP, ids=range(len(OVERLAP)))
def test_three_ticks_while_earlier_runs_have_not_ended(
    policy: str, previous: Previous, waits: list[bool], cancelled: tuple[str, ...], skips: Mapping[Skip, int]
) -> None:
    schedule = stored(spec(catch_up="all", overlap=policy, max_queued=2))
    plan = decide(schedule, at(2), previous)
    assert [firing.waits for firing in plan.fire] == waits
    assert tuple(plan.cancel) == cancelled
    assert plan.skipped == skips
    assert fired(plan) == ([2] if policy == "cancel_previous" else list(range(len(waits))))


def test_no_tick_cancels_nothing() -> None:
    schedule = stored(spec(catch_up="none", overlap="cancel_previous"))
    assert decide(schedule, at(0.5), BUSY).cancel == ()
    assert place(schedule.spec, [], BUSY) == ((), (), Counter())


# -- all of it, against a model -------------------------------------------------------------------


def model(
    declared: ScheduleSpec, dues: list[tuple[datetime, datetime]], now: datetime, previous: Previous
) -> tuple[list[Firing], set[str], Counter[Skip]]:
    """Tick by tick, with everything that is due in view at once."""
    skipped: Counter[Skip] = Counter()
    passed: list[datetime] = []
    for tick, due in dues:
        newest = tick == dues[-1][0]
        age = (now - due).total_seconds()
        if newest and age <= 60:
            passed.append(tick)
        elif declared.catch_up_window is not None and age > declared.catch_up_window:
            skipped[Skip.WINDOW] += 1
        elif declared.catch_up == "none" or (declared.catch_up == "one" and not newest):
            skipped[Skip.CATCH_UP] += 1
        else:
            passed.append(tick)
    fire: list[Firing] = []
    cancel: set[str] = set()
    open_runs, waiting = len(previous.active) + len(previous.queued), len(previous.queued)
    for tick in passed:
        match declared.overlap:
            case "allow":
                fire.append(Firing(tick))
            case "cancel_previous" if tick != passed[-1]:
                skipped[Skip.OVERLAP] += 1
            case "cancel_previous":
                fire.append(Firing(tick, open_runs > 0))
                cancel = {*previous.active, *previous.queued}
            case "queue" if open_runs and waiting >= declared.max_queued:
                skipped[Skip.QUEUE_FULL] += 1
            case "queue":
                fire.append(Firing(tick, open_runs > 0))
                waiting += open_runs > 0
                open_runs += 1
            case _ if open_runs:
                skipped[Skip.OVERLAP] += 1
            case _:
                fire.append(Firing(tick))
                open_runs += 1
    return fire, cancel, skipped


def after(previous: Previous, plan: Plan) -> Previous:
    """The open runs when ``plan`` was written and nothing has ended since."""
    active, queued = list(previous.active), list(previous.queued)
    for firing in plan.fire:
        (queued if firing.waits else active).append(f"{firing.tick:%H%M}")
    return Previous(tuple(active), tuple(queued))


@given(
    overlap=st.sampled_from(Overlap),
    catch_up=st.sampled_from(CatchUp),
    window=st.none() | st.sampled_from([0, 45, 150, 600]),
    jitter=st.sampled_from([0, 20, 400]),
    lateness=st.integers(0, 1500),
    end=st.none() | st.integers(1, 20),
    active=st.integers(0, 2),
    queued=st.integers(0, 3),
    max_queued=st.integers(1, 4),
    limit=st.integers(1, 6) | st.just(200),
    length=st.sampled_from([60, 97]),
)
@settings(max_examples=400, deadline=None)
def test_P39_all_policies_against_a_model_in_pages_of_any_size(
    overlap: Overlap,
    catch_up: CatchUp,
    window: float | None,
    jitter: float,
    lateness: int,
    end: int | None,
    active: int,
    queued: int,
    max_queued: int,
    limit: int,
    length: int,
) -> None:
    previous = Previous(
        tuple(f"a{number}" for number in range(active)), tuple(f"q{number}" for number in range(queued))
    )
    step = timedelta(seconds=length)
    declared = spec(
        every=length,
        overlap=overlap,
        catch_up=catch_up,
        catch_up_window=None if catch_up == "none" else window,
        jitter=jitter,
        start_at=START,
        end_at=None if end is None else START + end * step,
        max_queued=max_queued,
    )
    now = START + timedelta(seconds=lateness)
    nominal = [START + number * step for number in range(end or 40)]
    dues = [(tick, due) for tick in nominal if (due := scheduling.due_at(declared, tick)) <= now]
    expected = model(declared, dues, now, previous)

    schedule, runs = stored(declared), previous
    fire: list[Firing] = []
    cancel: set[str] = set()
    skipped: Counter[Skip] = Counter()
    more = True
    while more:
        plan = decide(schedule, now, runs, limit=limit)
        assert len(plan.fire) + sum(plan.skipped.values()) <= limit
        assert (plan.next_at is not None and scheduling.due_at(declared, plan.next_at) <= now) == plan.more
        fire += plan.fire
        cancel |= set(plan.cancel)
        skipped += Counter(plan.skipped)
        schedule, runs, more = replace(schedule, next_at=plan.next_at, due_at=plan.due_at), after(runs, plan), plan.more

    assert (fire, cancel, skipped) == expected
    assert len(fire) + skipped.total() == len(dues)
    assert schedule.next_at == (None if len(dues) == end else START + len(dues) * step)


# -- dates ----------------------------------------------------------------------------------------


def test_declaring_again_keeps_a_tick_that_is_due() -> None:
    declared = spec()
    schedule = stored(declared)
    late = START + timedelta(seconds=30)
    assert next_after_put(None, declared, START) == at(1)
    assert next_after_put(schedule, declared, late) == START
    assert next_after_put(schedule, spec(overlap="allow", jitter=5), late) == START
    assert next_after_put(schedule, spec(every=1800), late) == at(0.5)
    assert next_after_put(schedule, spec(end_at=START), late) is None


def test_a_pause_survives_a_declaration_and_a_resume_starts_anew() -> None:
    declared = spec()
    assert next_after_put(stored(declared, paused="incident 7"), declared, at(2.5)) is None
    assert next_after_put(stored(declared, None), declared, at(2.5)) == at(3)
    assert next_after_put(stored(spec(enabled=False)), declared, at(2.5)) == at(3)
    assert next_after_put(stored(declared), spec(enabled=False), at(2.5)) is None


def test_no_tick_lies_outside_the_two_dates() -> None:
    declared = spec(cron="0 * * * *", start_at=at(2), end_at=at(4))
    assert first_tick(declared, START) == at(2)
    assert first_tick(declared, at(2)) == at(3)
    assert first_tick(declared, at(3)) is None
    assert scheduling.upcoming(declared, START, 10) == [at(2), at(3)]
    assert scheduling.upcoming(declared, at(2), 10) == [at(3)]
    assert scheduling.between(declared, START, at(3), 10) == [at(2)]
    assert scheduling.between(spec(), START, at(100), 3) == [START, at(1), at(2)]


def test_intervals_count_from_the_start() -> None:
    assert first_tick(spec(every=3600, start_at=at(0.25)), START) == at(0.25)
    assert first_tick(spec(every=3600, start_at=at(0.25)), at(0.25)) == at(1.25)


def test_jitter_moves_a_tick_but_never_to_the_next_one_and_keeps_its_name() -> None:
    declared = spec(every=60, jitter=86_400)
    for number in range(50):
        tick = START + number * MINUTE
        assert tick <= scheduling.due_at(declared, tick) < tick + MINUTE
    due = scheduling.due_at(declared, START)
    assert decide(stored(declared), due - timedelta(microseconds=1), IDLE).fire == ()
    plan = decide(stored(declared), due, IDLE)
    assert plan.fire == (Firing(START),)
    assert plan.next_at == START + MINUTE
    assert plan.due_at == scheduling.due_at(declared, START + MINUTE)


# -- declaring ------------------------------------------------------------------------------------


def test_a_declaration_is_stored_in_plain_values() -> None:
    declared = schedule_spec(
        name="nightly",
        workflow="report",
        version="2",
        cron=" @Daily",
        timezone="Europe/Paris",
        overlap="queue",
        catch_up="all",
        catch_up_window=timedelta(hours=2),
        jitter=timedelta(seconds=30),
        start_at=datetime.fromisoformat("2026-01-01T01:00+01:00"),
    )
    assert declared == ScheduleSpec(
        name="nightly",
        workflow="report",
        version="2",
        cron="0 0 * * *",
        timezone="Europe/Paris",
        overlap=Overlap.QUEUE,
        catch_up=CatchUp.ALL,
        catch_up_window=7200.0,
        jitter=30.0,
        start_at=START,
    )
    assert spec(every=timedelta(minutes=5)).every == 300.0


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"every": None}, "either"),
    ({"cron": "@daily", "every": 60}, "either"),
    ({"cron": "0 0 30 2 *"}, "can never fire"),
    ({"cron": "@daily", "timezone": "Nowhere"}, "no time zone"),
    ({"every": 0.5}, "at least 1 s"),
    ({"every": 60, "timezone": "Europe/Paris"}, "goes with cron="),
    ({"overlap": "replace"}, "overlap must be one of skip, queue"),
    ({"catch_up": None}, "catch_up must be one of"),
    ({"catch_up": "none", "catch_up_window": 5}, "no meaning"),
    ({"catch_up_window": -1}, "catch_up_window"),
    ({"max_queued": 0}, "max_queued"),
    ({"max_queued": True}, "max_queued"),
    ({"max_queued": 10_001}, "max_queued"),
    ({"jitter": -1}, "jitter"),
    ({"jitter": float("nan")}, "jitter"),
    ({"jitter": 86_401}, "at most a day"),
    ({"enabled": "no"}, "True or False"),
    ({"start_at": START.replace(tzinfo=None)}, "time zone"),
    ({"end_at": "2026-01-01"}, "must be a datetime"),
    ({"start_at": START, "end_at": START}, "no tick between"),
    ({"cron": "0 0 29 2 *", "start_at": START, "end_at": START + timedelta(days=365)}, "no tick between"),
    ({"name": "a/b"}, "reserved"),
    ({"name": "'; drop table runs; --\0"}, "unprintable"),
    ({"workflow": ""}, "empty"),
    ({"version": "x" * 201}, "longer"),
    ({"tags": {"k": 5}}, "must be a str"),
]


@pytest.mark.parametrize(("changes", "reason"), WRONG, ids=range(len(WRONG)))
def test_P39_a_bad_declaration_is_refused_with_the_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        spec(**changes)
