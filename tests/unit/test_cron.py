"""Rules: what expressions mean, what clocks that change make of them, and what is refused."""

from __future__ import annotations

import calendar
import copy
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from durable.cron import FIRST, LAST, Every, Rule, as_utc, jitter_of, parse, ticks, zone
from durable.errors import InvalidArgument

DAY = timedelta(days=1)
HALF_HOUR = timedelta(minutes=30)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def texts(rule: Rule, since: datetime, until: datetime) -> list[str]:
    return [f"{tick:%m-%d %H:%M}" for tick in ticks(rule, since, until, 1000)]


# -- what expressions mean ------------------------------------------------------------------------

MEANINGS = [
    ("*/20 * * * *", "2026-01-01T00:00", ["01-01 00:00", "01-01 00:20", "01-01 00:40", "01-01 01:00"]),
    ("5/25 12 * * *", "2026-01-01T00:00", ["01-01 12:05", "01-01 12:30", "01-01 12:55", "01-02 12:05"]),
    ("0 22-1 * * *", "2026-01-01T00:00", ["01-01 00:00", "01-01 01:00", "01-01 22:00", "01-01 23:00"]),
    ("0 0 * * 7", "2026-01-01T00:00", ["01-04 00:00", "01-11 00:00", "01-18 00:00", "01-25 00:00"]),
    ("0 0 * * SUN", "2026-01-01T00:00", ["01-04 00:00", "01-11 00:00", "01-18 00:00", "01-25 00:00"]),
    ("0 0 * * fri-7", "2026-01-01T00:00", ["01-02 00:00", "01-03 00:00", "01-04 00:00", "01-09 00:00"]),
    ("0 0 1 jan,Apr-jun *", "2026-01-01T00:00", ["01-01 00:00", "04-01 00:00", "05-01 00:00", "06-01 00:00"]),
    ("0 0 L * *", "2028-01-01T00:00", ["01-31 00:00", "02-29 00:00", "03-31 00:00", "04-30 00:00"]),
    ("0 0 15,L 2 *", "2027-01-01T00:00", ["02-15 00:00", "02-28 00:00", "02-15 00:00", "02-29 00:00"]),
    ("0 0 * * mon#2", "2026-01-01T00:00", ["01-12 00:00", "02-09 00:00", "03-09 00:00", "04-13 00:00"]),
    ("0 0 * * 7#5", "2026-01-01T00:00", ["03-29 00:00", "05-31 00:00", "08-30 00:00", "11-29 00:00"]),
    ("0 0 * * L5", "2026-01-01T00:00", ["01-30 00:00", "02-27 00:00", "03-27 00:00", "04-24 00:00"]),
    ("0 0 13 * fri", "2026-02-10T00:00", ["02-13 00:00", "02-20 00:00", "02-27 00:00", "03-06 00:00"]),
    ("0 0 1 * fri#1", "2026-01-01T00:00", ["01-01 00:00", "01-02 00:00", "02-01 00:00", "02-06 00:00"]),
    ("0 0 L * L1", "2026-01-01T00:00", ["01-26 00:00", "01-31 00:00", "02-23 00:00", "02-28 00:00"]),
    ("@hourly", "2026-01-01T00:01", ["01-01 01:00", "01-01 02:00", "01-01 03:00", "01-01 04:00"]),
    ("@daily", "2026-01-01T00:01", ["01-02 00:00", "01-03 00:00", "01-04 00:00", "01-05 00:00"]),
    (" @Midnight ", "2026-01-01T00:01", ["01-02 00:00", "01-03 00:00", "01-04 00:00", "01-05 00:00"]),
    ("@weekly", "2026-01-01T00:00", ["01-04 00:00", "01-11 00:00", "01-18 00:00", "01-25 00:00"]),
    ("@monthly", "2026-01-02T00:00", ["02-01 00:00", "03-01 00:00", "04-01 00:00", "05-01 00:00"]),
]


@pytest.mark.parametrize(("expression", "since", "expected"), MEANINGS, ids=[one[0].strip() for one in MEANINGS])
def test_an_expression_means_what_the_manual_says(expression: str, since: str, expected: list[str]) -> None:
    found = list(ticks(parse(expression), utc(since), LAST, 4))
    assert [f"{tick:%m-%d %H:%M}" for tick in found] == expected


@pytest.mark.parametrize("alias", ["@yearly", "@annually"])
def test_a_year_has_two_names(alias: str) -> None:
    assert parse(alias) == parse("0 0 1 1 *")
    assert parse(alias).next(utc("2026-01-01T00:00")) == utc("2027-01-01T00:00")


def test_the_sixth_field_is_the_second() -> None:
    rule = parse("0 12 * * * */30")
    assert list(ticks(rule, utc("2026-01-01T12:00:01"), LAST, 2)) == [
        utc("2026-01-01T12:00:30"),
        utc("2026-01-02T12:00:00"),
    ]


def test_the_next_tick_is_later_by_any_fraction_of_a_second() -> None:
    rule = parse("* * * * * *")
    at = utc("2026-01-01T00:00:05")
    assert rule.next(at) == at + timedelta(seconds=1)
    assert rule.next(at - timedelta(microseconds=1)) == at
    assert rule.next(at + timedelta(microseconds=1)) == at + timedelta(seconds=1)
    assert rule.next(utc("9800-01-01T00:00:05.999999")) == utc("9800-01-01T00:00:06")


def test_ticks_between_two_dates_are_bounded_and_half_open() -> None:
    rule = parse("0 * * * *")
    since = utc("2026-01-01T00:00")
    assert texts(rule, since, since + timedelta(hours=2)) == ["01-01 00:00", "01-01 01:00"]
    assert len(list(ticks(rule, since, LAST, 7))) == 7
    assert list(ticks(rule, since, LAST, 0)) == []
    assert list(ticks(rule, since, since, 5)) == []


@pytest.mark.parametrize("rule", [parse("@daily", "Asia/Tokyo"), Every(60)], ids=["cron", "every"])
def test_before_the_first_and_after_the_last_date_there_are_no_ticks(rule: Rule) -> None:
    first = rule.next(datetime.min.replace(tzinfo=UTC))
    assert first is not None
    assert FIRST <= first < FIRST + DAY
    assert rule.next(LAST) is None
    assert rule.next(datetime.max.replace(tzinfo=UTC)) is None
    assert rule.next(LAST - timedelta(seconds=1)) is not None


_ATOM = {
    "minute": (0, 59),
    "hour": (0, 23),
    "day": (1, 31),
    "month": (1, 12),
    "weekday": (0, 6),
}


@st.composite
def _lists(draw: st.DrawFn, low: int, high: int) -> tuple[str, set[int]]:
    """A field as text, and the values that it stands for by this file's own reading."""
    parts: list[str] = []
    values: set[int] = set()
    for _ in range(draw(st.integers(1, 3))):
        first = draw(st.integers(low, high - 1))
        last = draw(st.integers(first + 1, high))
        step = draw(st.integers(1, 7))
        form = draw(st.integers(0, 4))
        text, found = [
            (f"{first}", [first]),
            (f"{first}-{last}", range(first, last + 1)),
            (f"{first}-{last}/{step}", range(first, last + 1, step)),
            (f"{first}/{step}", range(first, high + 1, step)),
            (f"{last}-{first}", [*range(last, high + 1), *range(low, first + 1)]),
        ][form]
        parts.append(text)
        values |= set(found)
    return ",".join(parts), values


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lists_ranges_and_steps_against_a_reading_of_their_own(data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.sampled_from(sorted(_ATOM)), min_size=1, max_size=3))
    fields: dict[str, tuple[str, set[int]]] = {}
    for name, (low, high) in _ATOM.items():
        small = {"minute": ("0", {0}), "hour": ("0,12", {0, 12})}
        every = ("*", set(range(low, high + 1)))
        fields[name] = data.draw(_lists(low, high)) if name in chosen else small.get(name, every)
    rule = parse(" ".join(text for text, _ in fields.values()))
    either = fields["day"][0] != "*" and fields["weekday"][0] != "*"

    def matches(at: datetime) -> bool:
        by_day, by_weekday = at.day in fields["day"][1], at.isoweekday() % 7 in fields["weekday"][1]
        return (
            at.minute in fields["minute"][1]
            and at.hour in fields["hour"][1]
            and at.month in fields["month"][1]
            and (by_day or by_weekday if either else by_day and by_weekday)
        )

    start = utc("2027-12-30T00:00") + timedelta(days=data.draw(st.integers(0, 400)))
    tick = rule.next(start)
    assert tick is not None
    assert matches(tick)
    minutes = min(int((tick - start).total_seconds() // 60), 4000)
    skipped = [start + timedelta(minutes=number) for number in range(1, minutes)]
    assert [at for at in skipped if at != tick and matches(at)] == []


# -- clocks that change ---------------------------------------------------------------------------

CHANGES = [
    # Paris 2026: at 01:00 UTC on 29 March 02:00 becomes 03:00; at 01:00 UTC on 25 October 03:00 becomes 02:00.
    ("30 2 * * *", "Europe/Paris", "2026-03-28", ["03-28 01:30", "03-29 01:00", "03-30 00:30"]),
    ("30 2 * * *", "Europe/Paris", "2026-10-24", ["10-24 00:30", "10-25 00:30", "10-26 01:30"]),
    ("0,30 2 * * *", "Europe/Paris", "2026-03-29", ["03-29 01:00", "03-30 00:00", "03-30 00:30", "03-31 00:00"]),
    ("0 2,3 * * *", "Europe/Paris", "2026-03-29", ["03-29 01:00", "03-30 00:00", "03-30 01:00", "03-31 00:00"]),
    ("*/30 2 * * *", "Europe/Paris", "2026-10-25", ["10-25 00:00", "10-25 00:30", "10-26 01:00", "10-26 01:30"]),
    ("30 * 29 3 *", "Europe/Paris", "2026-03-28T23:50", ["03-29 00:30", "03-29 01:30", "03-29 02:30"]),
    ("0 */2 * * *", "Europe/Paris", "2026-03-28T23:00", ["03-28 23:00", "03-29 01:00", "03-29 02:00", "03-29 04:00"]),
    ("0 */2 * * *", "Europe/Paris", "2026-10-24T23:00", ["10-25 00:00", "10-25 03:00", "10-25 05:00"]),
    ("0 * * * *", "Europe/Paris", "2026-10-24T23:50", ["10-25 00:00", "10-25 01:00", "10-25 02:00"]),
    ("30 0-23 * * *", "Europe/Paris", "2026-10-25", ["10-25 00:30", "10-25 01:30", "10-25 02:30"]),
    # New York 2026: 8 March 07:00 UTC, 1 November 06:00 UTC.
    ("30 2 * * *", "America/New_York", "2026-03-07T12:00", ["03-08 07:00", "03-09 06:30", "03-10 06:30"]),
    ("30 1 * * *", "America/New_York", "2026-10-31T12:00", ["11-01 05:30", "11-02 06:30", "11-03 06:30"]),
    # Lord Howe moves by half an hour: on 4 April 2026 15:00 UTC from 02:00 to 01:30, on 3 October 15:30 UTC back.
    ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04", ["04-04 14:45", "04-05 15:15", "04-06 15:15"]),
    ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03", ["10-03 15:30", "10-04 15:15", "10-05 15:15"]),
    ("15 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", ["04-04 14:15", "04-04 15:45", "04-04 16:45"]),
    ("45 * * * *", "Australia/Lord_Howe", "2026-04-04T14:00", ["04-04 14:45", "04-04 15:15", "04-04 16:15"]),
    # Midnight itself is missing: Santiago on 6 September 2026 at 04:00 UTC, São Paulo on 4 November 2018 at 03:00 UTC.
    ("@daily", "America/Santiago", "2026-09-05T12:00", ["09-06 04:00", "09-07 03:00", "09-08 03:00"]),
    ("@daily", "America/Sao_Paulo", "2018-11-03T12:00", ["11-04 03:00", "11-05 02:00", "11-06 02:00"]),
    # Midnight is doubled in Havana, on 1 November 2026 at 05:00 UTC.
    ("@daily", "America/Havana", "2026-10-31T12:00", ["11-01 04:00", "11-02 05:00", "11-03 05:00"]),
    # Samoa left out 30 December 2011.
    ("0 12 * * *", "Pacific/Apia", "2011-12-29T12:00", ["12-29 22:00", "12-30 10:00", "12-30 22:00"]),
    ("0 12 30 12 *", "Pacific/Apia", "2011-12-29T12:00", ["12-30 10:00", "12-29 22:00", "12-29 22:00"]),
    # No changes at all.
    ("30 2 * * *", "Asia/Kathmandu", "2026-03-28", ["03-28 20:45", "03-29 20:45", "03-30 20:45"]),
]


@pytest.mark.parametrize(("expression", "name", "since", "expected"), CHANGES, ids=[f"{c[1]} {c[0]}" for c in CHANGES])
def test_P40_the_table_of_changing_clocks(expression: str, name: str, since: str, expected: list[str]) -> None:
    rule = parse(expression, name)
    found = list(ticks(rule, utc(since), LAST, len(expected)))
    assert [f"{tick:%m-%d %H:%M}" for tick in found] == expected


def test_P40_asked_in_the_middle_of_the_doubled_hour() -> None:
    once, twice = parse("*/10 2 * * *", "Europe/Paris"), parse("*/10 * * * *", "Europe/Paris")
    second_pass = utc("2026-10-25T01:15")  # 02:15 on the wall, again
    assert once.next(second_pass) == utc("2026-10-26T01:00")
    assert twice.next(second_pass) == utc("2026-10-25T01:20")
    assert twice.next(utc("2026-10-25T00:55")) == utc("2026-10-25T01:00")
    assert twice.next(utc("2026-10-25T01:50")) == utc("2026-10-25T02:00")


def test_P40_leap_day_rules_do_not_loop() -> None:
    rule = parse("0 0 29 2 *", "Europe/Paris")
    years = [tick.astimezone(zone("Europe/Paris")).year for tick in ticks(rule, utc("2090-01-01"), LAST, 4)]
    assert years == [2092, 2096, 2104, 2108]
    mondays = parse("0 0 * 2 mon#5")  # a leap day that is a Monday
    assert [tick.year for tick in ticks(mondays, utc("2040-01-01"), LAST, 4)] == [2044, 2072, 2112, 2140]


# Ten years against a reference that knows nothing of folds and gaps: it looks at the clock every half hour.

SINCE, UNTIL = utc("2021-01-01"), utc("2031-01-01")


@lru_cache
def clock(name: str) -> list[tuple[datetime, datetime]]:
    """Each half hour in UTC, and what the clock on the wall shows then."""
    where, at, seen = ZoneInfo(name), SINCE, list[tuple[datetime, datetime]]()
    while at < UNTIL:
        seen.append((at, at.astimezone(where).replace(tzinfo=None, fold=0)))
        at += HALF_HOUR
    return seen


def reached(seen: list[tuple[datetime, datetime]], walls: list[datetime]) -> list[datetime]:
    """When the clock first reaches or passes each of ``walls``; several at once are one tick."""
    todo = sorted(wall for wall in walls if wall >= seen[0][1])[::-1]
    found: list[datetime] = []
    for at, wall in seen:
        due = False
        while todo and todo[-1] <= wall:
            todo.pop()
            due = True
        if due:
            found.append(at)
    return found


def walls(seen: list[tuple[datetime, datetime]], which: Callable[[date], bool], *hours: float) -> list[datetime]:
    first, last = seen[0][1].date(), seen[-1][1].date()
    days = [first + timedelta(days=number) for number in range((last - first).days + 1)]
    midnights = [datetime.combine(day, datetime.min.time()) for day in days if which(day)]
    return [midnight + timedelta(hours=hour) for midnight in midnights for hour in hours]


def month_ends(day: date) -> bool:
    return day.day == calendar.monthrange(day.year, day.month)[1]


ZONES = [
    ("Europe/Paris", "30 2 * * *", 2.5),
    ("America/New_York", "30 1 * * *", 1.5),
    ("Australia/Lord_Howe", "0 2 * * *", 2.0),
    ("America/Santiago", "0 0 * * *", 0.0),
    ("Africa/Cairo", "30 0 * * *", 0.5),
]


@pytest.mark.parametrize(("name", "daily", "hour"), ZONES, ids=[one[0] for one in ZONES])
def test_P40_ten_years_against_an_observer_of_the_clock(name: str, daily: str, hour: float) -> None:
    seen = clock(name)

    def always(day: date) -> bool:
        return True

    cases: list[tuple[str, list[datetime]]] = [
        (daily, walls(seen, always, hour)),
        ("0 0 29 2 *", walls(seen, lambda day: (day.month, day.day) == (2, 29), 0)),
        ("30 23 L * *", walls(seen, month_ends, 23.5)),
        ("0 3 13 * fri", walls(seen, lambda day: day.day == 13 or day.isoweekday() == 5, 3)),
        ("30 1 * * sun#2", walls(seen, lambda day: day.isoweekday() == 7 and 8 <= day.day <= 14, 1.5)),
        ("0 2 * * L7", walls(seen, lambda day: day.isoweekday() == 7 and (day + 7 * DAY).month != day.month, 2)),
    ]
    for expression, expected in cases:
        found = list(ticks(parse(expression, name), SINCE, UNTIL, 4000))
        assert found == reached(seen, expected), expression


@pytest.mark.parametrize("name", [one[0] for one in ZONES])
def test_P40_every_change_in_ten_years_with_ticks_each_half_hour(name: str) -> None:
    seen = clock(name)
    changes = [number for number, (before, after) in enumerate(pairwise(seen)) if after[1] - before[1] != HALF_HOUR]
    assert len(changes) >= 14
    for number in changes:
        near = seen[number - 12 : number + 12]
        since, until = near[0][0], near[-1][0] + HALF_HOUR
        assert list(ticks(parse("*/30 * * * *", name), since, until, 100)) == [at for at, _ in near]
        expected = reached(near, walls(near, lambda day: True, *(step / 2 for step in range(46))))
        assert list(ticks(parse("*/30 0-22 * * *", name), since, until, 100)) == expected


# -- intervals ------------------------------------------------------------------------------------


def test_intervals_count_from_their_anchor() -> None:
    at = utc("2026-05-05T10:20:30")
    assert Every(3600).next(at) == utc("2026-05-05T11:00")
    assert Every(timedelta(days=1)).next(at) == utc("2026-05-06T00:00")
    anchored = Every(90, anchor=utc("2026-05-05T10:00:10"))
    assert anchored.next(at) == utc("2026-05-05T10:21:10")
    assert anchored.next(utc("2026-05-05T09:59:00")) == utc("2026-05-05T10:00:10")
    assert anchored.next(utc("2026-05-05T10:00:10")) == utc("2026-05-05T10:01:40")


@given(st.floats(1, 1e7), st.timedeltas(DAY, 80_000 * DAY), st.integers(0, 10**9))
def test_intervals_do_not_drift(length: float, start: timedelta, count: int) -> None:
    rule = Every(length, anchor=FIRST + start)
    assert isinstance(rule.interval, timedelta)
    offset = min(count, int((LAST - rule.anchor) / rule.interval) - 2)
    tick = rule.anchor + offset * rule.interval
    assert rule.next(tick) == tick + rule.interval
    assert rule.next(tick - timedelta(microseconds=1)) == tick


@pytest.mark.parametrize(
    "value",
    [0, -1, 0.999, float("nan"), float("inf"), 1e300, 10**400, "60", None, True, timedelta(seconds=-5)],
    ids=str,
)
def test_intervals_that_are_none_are_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument):
        Every(value)


def test_an_anchor_has_a_time_zone() -> None:
    with pytest.raises(InvalidArgument, match="time zone"):
        Every(60, anchor=FIRST.replace(tzinfo=None))
    eastern = timezone(timedelta(hours=-5))
    assert Every(60, anchor=datetime(2026, 1, 1, tzinfo=eastern)).anchor == utc("2026-01-01T05:00")


@pytest.mark.parametrize("value", [utc("0001-01-01"), utc("9999-12-31"), utc("1969-12-31")], ids=["min", "max", "1969"])
def test_dates_outside_the_range_are_refused(value: datetime) -> None:
    with pytest.raises(InvalidArgument, match="1970 and 9900"):
        as_utc(value, "start_at")
    with pytest.raises(InvalidArgument, match="must be a datetime"):
        as_utc(cast("datetime", value.date()), "start_at")


# -- jitter ---------------------------------------------------------------------------------------


def test_jitter_is_equal_in_every_process() -> None:
    """Literals: a change of the hash would let workers of two releases disagree."""
    hour = timedelta(hours=1)
    assert jitter_of("nightly", utc("2026-01-01"), hour) == timedelta(microseconds=1_242_893_510)
    assert jitter_of("nightly", utc("2026-01-02"), hour) != jitter_of("nightly", utc("2026-01-01"), hour)
    assert jitter_of("weekly", utc("2026-01-01"), hour) != jitter_of("nightly", utc("2026-01-01"), hour)


def test_jitter_is_spread_evenly_below_its_span() -> None:
    span = timedelta(seconds=100)
    found = [jitter_of(f"schedule {number}", utc("2026-01-01"), span) for number in range(10_000)]
    assert all(timedelta() <= delay < span for delay in found)
    tenths = [sum(delay // timedelta(seconds=10) == tenth for delay in found) for tenth in range(10)]
    assert min(tenths) > 850
    assert max(tenths) < 1150
    assert jitter_of("a", utc("2026-01-01"), timedelta()) == timedelta()


# -- what is refused ------------------------------------------------------------------------------

REFUSED = [
    ("0 0 30 2 *", "can never fire: there is no day 30 of month 2"),
    ("0 0 31 feb,apr-jun/2 *", "can never fire"),
    ("0 0 30 2 mon", "can never fire"),
    ("@reboot", "not one of @yearly"),
    ("@every 5m", "every="),
    ("* * * *", "has 4 fields"),
    ("* * * * * * 2030", "has 7 fields"),
    ("", "has 0 fields"),
    ("   ", "has 0 fields"),
    ("60 * * * *", "the minute '60': values are 0 to 59"),
    ("* 24 * * *", "the hour '24'"),
    ("* * 0 * *", "the day of month '0': values are 1 to 31"),
    ("* * * 0 *", "the month '0'"),
    ("* * * 13 *", "the month '13'"),
    ("* * * * 8", "the day of week '8': values are 0 to 7"),
    ("* * * * * 60", "the second '60'"),
    ("0 9-9 * * *", "write 9"),
    ("0 0 * * 7-sun", "write 7"),
    ("0 0 30 feb-feb *", "write feb"),
    ("*/90 * * * *", "between 1 and 60; longer intervals are given with every="),
    ("1/99999999999999999999 * * * *", "a step is between"),
    ("*/0 * * * *", "a step is between"),
    ("59/15 * * * *", "write 59"),
    ("0 0 * * 6/2", "write 6"),
    ("0 22-4/2 * * *", "write the values"),
    ("0 0 */2 * mon", "For either write 1-31/2"),
    ("0 0 1 * */2", "For either write 0-6/2"),
    ("0 0 * * mon,fri#2", "day-of-week"),
    ("0 0 * * fri#6", "cannot be read"),
    ("0 0 * * fri#0", "cannot be read"),
    ("0 0 * * L", "cannot be read"),
    ("0 0 * * 5L", "as in L5"),
    ("0 0 L-3 * *", "cannot be read"),
    ("0 0 15W * *", "nearest weekday"),
    ("0 0 LW * *", "nearest weekday"),
    ("0 0 12 * * ?", "seconds first"),
    ("H * * * *", "jitter="),
    ("H(0-29)/10 * * * *", "jitter="),
    ("R * * * *", "another number in every process"),
    ("0 0 * march *", "cannot be read"),
    ("0 0 * * mo", "cannot be read"),
    ("-1 * * * *", "cannot be read"),
    ("1,,2 * * * *", "cannot be read"),
    ("1-2-3 * * * *", "cannot be read"),
    ("*-5 * * * *", "cannot be read"),
    ("5/5/5 * * * *", "cannot be read"),
    ("1.5 * * * *", "cannot be read"),
    ("0x5 * * * *", "cannot be read"),
    ("1e1 * * * *", "cannot be read"),
    ("* * * * *; drop table runs", "has 8 fields"),
    ("'||pg_sleep(9)||' * * * *", "cannot be read"),
    ("$(reboot) * * * *", "cannot be read"),
    ("__import__('os') * * * *", "cannot be read"),
    ("* * * * *\n* * * * *", "contains characters"),
    ("* * * *\0 *", "contains characters"),
    ("* * * * \u0661", "contains characters"),  # a digit, for int()
    ("* * * * \u212a", "contains characters"),  # lower() makes an ASCII letter of it
    ("*\u00a0* * * *", "contains characters"),
    ("* * * * \ud800", "contains characters"),
    ("\U0001f552 * * * *", "contains characters"),
    ("* " * 5_000_000, "at most 200 characters"),
    ("1" * 201, "at most 200 characters"),
    ("1" * 200, "has 1 fields"),
    ("9" * 190 + " * * * *", "cannot be read"),
    (",".join(["*/1"] * 47) + " * * * *", None),
    ("0-59/" + "9" * 180 + " * * * *", "a step is between"),
]


@pytest.mark.parametrize(("expression", "reason"), REFUSED, ids=[str(n) for n in range(len(REFUSED))])
def test_P39_a_bad_expression_is_refused_at_once_with_the_reason(expression: str, reason: str | None) -> None:
    started = time.perf_counter()
    if reason is None:
        assert parse(expression).next(SINCE) is not None
    else:
        with pytest.raises(InvalidArgument) as caught:
            parse(expression)
        message = str(caught.value)
        assert reason in message
        assert len(message) < 800
        assert message.isprintable()
    assert time.perf_counter() - started < 1  # 7 ms measured; a search without an end would be stopped by nobody


@pytest.mark.parametrize("value", [None, 5, b"* * * * *", ["*"], FIRST], ids=lambda v: type(v).__name__)
def test_only_texts_are_expressions_and_zones(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="must be a str"):
        parse(value)
    with pytest.raises(InvalidArgument, match="must be a str"):
        parse("@daily", value)


def test_a_member_of_an_enum_is_a_text() -> None:
    class When(StrEnum):
        NIGHTLY = "0 2 * * *"

    assert type(parse(When.NIGHTLY).expression) is str


@given(st.text(max_size=250) | st.text("0123456789*/-,#lLhHrRwW? @adinsu", max_size=60))
@settings(deadline=1000)
def test_any_text_is_a_rule_that_fires_or_an_error_of_the_right_type(text: str) -> None:
    try:
        rule = parse(text, "Europe/Paris")
    except InvalidArgument:
        return
    tick = rule.next(SINCE)
    assert tick is not None
    assert tick > SINCE


_FIELD = st.sampled_from(
    ["*", "0", "1", "2", "5-7", "*/2", "29", "31", "L", "2#5", "L3", "6,2", "feb", "fri", "4-1", "1/2"]
)


@given(st.lists(_FIELD, min_size=5, max_size=6).map(" ".join), st.sampled_from([one[0] for one in ZONES]))
@settings(deadline=1000)
def test_what_is_accepted_keeps_firing_quickly(expression: str, name: str) -> None:
    try:
        rule = parse(expression, name)
    except InvalidArgument:
        return
    found = list(ticks(rule, SINCE, LAST, 5))
    assert len(found) == 5
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "nowhere",
            "Europe",
            "Europe/",
            "europe/paris",
            "/etc/localtime",
            "../zoneinfo/UTC",
            "localtime",
            "Factory",
        ),
        *("posixrules", "right/UTC", "posix/UTC", "tzdata.zi", "\0", "é", "x" * 10**7, "UTC\n", "+02:00", "UTC; drop"),
    ],
    ids=range(19),
)
def test_an_unknown_zone_is_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="no time zone") as caught:
        parse("@daily", name)
    assert len(str(caught.value)) < 400


def test_asking_leaves_no_trace_so_that_threads_may_share_a_rule() -> None:
    rule = parse("0 0 1 * fri#1", "Europe/Paris")
    before = [copy.deepcopy(vars(side)) for side in rule.sides]
    assert len(list(ticks(rule, SINCE, LAST, 20))) == 20
    assert [vars(side) for side in rule.sides] == before


def test_equal_rules_are_equal() -> None:
    assert parse("0  0 * *\t*") == parse("@daily")
    assert hash(parse("0 0 * * MON")) == hash(parse("0 0 * * mon"))
    assert parse("@daily", "Europe/Paris") != parse("@daily")
