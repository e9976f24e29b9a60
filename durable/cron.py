"""When a rule fires: cron expressions in a time zone, and fixed intervals. The only module that calls croniter.

Pure: every time is an argument, every answer an aware UTC datetime. It knows neither schedules nor what is run.

croniter is asked for times on a clock without a time zone; what they mean in the zone is decided here. Asked in the
zone itself, croniter 7.0 fires ``30 2 * * *`` twice on the day of the doubled hour. Two kinds of rules:

* **Every hour** (the hour field is ``*``, or says the same): the rule fires whenever the clock on the wall shows a
  time that matches. So ``*/15 * * * *`` fires in both passes of the doubled hour, and not in the missing one.
* **At given hours** (all others): the rule fires when the clock on the wall *first reaches or passes* a time that
  matches. So ``30 2 * * *`` fires once in the doubled hour, in its first pass; and on the day of the missing hour once
  too, at the first instant after the gap (03:00 on the wall). Several times in one gap are one tick.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import sha256
from typing import Any
from zoneinfo import ZoneInfo

from croniter import croniter
from croniter.croniter import CroniterBadDateError, CroniterError

from durable.durations import seconds
from durable.errors import InvalidArgument

FIRST = datetime(1970, 1, 1, tzinfo=UTC)
"""No rule has a tick before it, and intervals without an anchor of their own count from it."""

LAST = datetime(9900, 1, 1, tzinfo=UTC)
"""No rule is asked for a tick after it: the search would leave the calendar."""

SHORTEST = 1.0
"""Seconds between two ticks, at least: what cron's own resolution is."""

MAX_EXPRESSION = 200
"""Characters. The longest list of a field that means something has 169."""

_SECOND = timedelta(seconds=1)
_MICROSECOND = timedelta(microseconds=1)
_YEARS = 50  # 29 February falls on one weekday every 28 years, and every 40 around a century that is no leap year

_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_HINTS = (
    (r"\?", "'?' is Quartz's, which has the seconds first: here they come last, and any day is '*'"),
    (r"h\b.*", "'H' is not supported: jitter= spreads schedules"),
    (r"r\b.*", "'R' is another number in every process: jitter= spreads schedules"),
    (r"\d*l?w\d*", "'W', the nearest weekday, is not supported"),
    (r"[0-7]l", "the last weekday of a month is written as in L5"),
)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    low: int
    size: int
    names: tuple[str, ...] = ()  # the first stands for ``low``
    special: str = "(?!)"  # what else an item may be: by default nothing

    @property
    def last(self) -> int:
        return self.low + self.size - 1

    @property
    def most(self) -> int:
        return 7 if self.name == "day of week" else self.last

    @property
    def item(self) -> re.Pattern[str]:
        value = "|".join((r"\d{1,2}", *self.names))
        special = self.special.format(value=value)
        return re.compile(rf"(?:(?P<low>\*|{value})(?:-(?P<high>{value}))?(?:/(?P<step>\d+))?|{special})", re.ASCII)

    def number(self, text: str) -> int:
        return self.names.index(text) + self.low if text in self.names else int(text)


_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (
    _Field("minute", 0, 60),
    _Field("hour", 0, 24),
    _Field("day of month", 1, 31, special="l"),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS, special="(?:{value})#[1-5]|l[0-7]"),
    _Field("second", 0, 60),
)
_ITEMS = tuple(one.item for one in _FIELDS)
_DAY, _WEEKDAY = 2, 4


@dataclass(frozen=True, slots=True)
class Every:
    """A fixed interval of elapsed time: ``anchor``, ``anchor + interval``, …, whatever clocks on walls do.

    Args:
        interval: Seconds or timedelta, at least 1 s, exact to the microsecond.
        anchor: An aware datetime from which the ticks are counted, in both directions. Default 1 January 1970, UTC: so
            that ``Every(3600)`` is each full hour, and no restart moves it.

    Raises:
        InvalidArgument: An argument is out of its range.
    """

    interval: float | timedelta
    anchor: datetime = FIRST

    def __post_init__(self) -> None:
        length = seconds(self.interval, "every")
        if length < SHORTEST:
            raise InvalidArgument(f"every must be at least {SHORTEST:g} s, not {length:g} s")
        object.__setattr__(self, "interval", timedelta(seconds=length))
        object.__setattr__(self, "anchor", as_utc(self.anchor, "the anchor"))

    def next(self, after: datetime) -> datetime | None:
        """The first tick after ``after``; None: none before the year 9900."""
        assert isinstance(self.interval, timedelta)
        after = max(after, FIRST - _MICROSECOND)
        if after >= LAST:
            return None
        return self.anchor + ((after - self.anchor) // self.interval + 1) * self.interval


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone. Made by ``parse``."""

    expression: str  # lower case, single spaces, aliases replaced
    timezone: str
    zone: ZoneInfo = field(repr=False, compare=False)
    every_hour: bool = field(repr=False, compare=False)
    sides: tuple[croniter[Any], ...] = field(repr=False, compare=False)  # it fires when one of them does

    def next(self, after: datetime) -> datetime | None:
        """The first tick after ``after``; None: none within 50 years, or before the year 9900."""
        after = max(after.astimezone(UTC), FIRST - _MICROSECOND)
        if after >= LAST:
            return None
        local = after.astimezone(self.zone)
        # Times that match are whole seconds: a fraction does not matter, and croniter's floats may round it up.
        wall = local.replace(tzinfo=None, microsecond=0, fold=0)
        if (turn := self._turn(wall)) is not None:
            # Backwards: ``wall`` is shown twice, and ``after`` is in the pass ``local.fold``.
            end = self._wall(turn - _SECOND) + _SECOND
            if self.every_hour:
                if (found := self._match(wall, end)) is not None:
                    return self._instant(found, local.fold)
                start = self._wall(turn)
                if not local.fold and (found := self._match(start - _SECOND, end)) is not None:
                    return self._instant(found, 1)
            if self.every_hour or local.fold:
                wall = end - _SECOND
        return self._from(wall)

    def _from(self, wall: datetime) -> datetime | None:
        """The first tick later than the last instant at which the clock shows ``wall``."""
        while (found := self._match(wall)) is not None:
            if self._offset(found, 0) >= self._offset(found, 1):
                return self._instant(found, 0)
            turn = self._changed(found - self._offset(found, 1), found - self._offset(found, 0))
            if not self.every_hour:
                return turn
            wall = self._wall(turn) - _SECOND
        return None

    def _match(self, wall: datetime, end: datetime | None = None) -> datetime | None:
        """The first time later than ``wall``, and before ``end``, that matches, on a clock without a time zone."""
        found: list[datetime] = []
        for side in self.sides:
            try:
                # A copy, in 3 µs: an iterator keeps its position, and threads share the rule.
                found.append(copy.copy(side).get_next(datetime, start_time=wall))
            except CroniterBadDateError:  # no date within _YEARS
                continue
        best = min(found, default=None)
        return None if best is None or (end is not None and best >= end) else best

    def _turn(self, wall: datetime) -> datetime | None:
        """When the clock that shows ``wall`` twice is turned back; None: it shows it once."""
        if (before := self._offset(wall, 0)) <= (afterwards := self._offset(wall, 1)):
            return None
        return self._changed(wall - before, wall - afterwards)

    def _changed(self, low: datetime, high: datetime) -> datetime:
        """The first second, later than ``low``, of another offset. Both are UTC, and one change is between them."""
        low, high = low.replace(tzinfo=UTC), high.replace(tzinfo=UTC)
        old = low.astimezone(self.zone).utcoffset()
        same, other = 0, int((high - low).total_seconds())
        while other - same > 1:
            middle = (same + other) // 2
            if (low + timedelta(seconds=middle)).astimezone(self.zone).utcoffset() == old:
                same = middle
            else:
                other = middle
        return low + timedelta(seconds=other)

    def _wall(self, instant: datetime) -> datetime:
        return instant.astimezone(self.zone).replace(tzinfo=None, fold=0)

    def _instant(self, wall: datetime, fold: int) -> datetime:
        return wall.replace(tzinfo=self.zone, fold=fold).astimezone(UTC)

    def _offset(self, wall: datetime, fold: int) -> timedelta:
        offset = wall.replace(tzinfo=self.zone, fold=fold).utcoffset()
        assert offset is not None
        return offset


Rule = Cron | Every


def parse(expression: str, timezone: str = "UTC") -> Cron:
    """The rule that a cron expression means in a time zone.

    Args:
        expression: Five fields: minute, hour, day of month, month, day of week; or six, the last being the second; or
            ``@hourly``, ``@daily`` (``@midnight``), ``@weekly``, ``@monthly``, ``@yearly`` (``@annually``). A field is
            a list of ``*``, ``a``, ``a-b``, ``*/n``, ``a-b/n`` and ``a/n`` (from ``a`` on), in which months and days
            may be names of three letters, ``7`` is Sunday and ``22-2`` goes past the end. ``L`` is the last day of the
            month, ``L5`` the last Friday, ``fri#2`` the second. With both a day of the month and a day of the week
            given, either is enough.
        timezone: An IANA name, such as ``"Europe/Paris"``. Default UTC.

    Raises:
        InvalidArgument: It is no such expression, can never fire, or means something else than it seems to; or the
            time zone is unknown here.
    """
    if not isinstance(timezone, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"timezone must be a str, not {type(timezone).__qualname__}")
    return _parse(_fields(expression), str.__str__(timezone))


def ticks(rule: Rule, since: datetime, until: datetime, limit: int) -> Iterator[datetime]:
    """The rule's ticks from ``since`` on and before ``until``, in order, at most ``limit``."""
    tick = since - _MICROSECOND
    for _ in range(limit):
        following = rule.next(tick)
        if following is None or following >= until:
            return
        yield following
        tick = following


def jitter_of(name: str, tick: datetime, span: timedelta) -> timedelta:
    """The delay of one tick of one schedule: 0 ≤ delay < ``span``, spread evenly, equal in every process.

    The first 64 bits of SHA-256 over the name, a NUL and the tick in microseconds since 1970, as a fraction of
    ``span``: ``hash()`` differs from process to process, and workers must agree.
    """
    number = (tick - FIRST) // _MICROSECOND
    digest = sha256(f"{name}\0{number}".encode()).digest()
    # Integers: the largest fractions would round to 1.0.
    return _MICROSECOND * ((span // _MICROSECOND) * int.from_bytes(digest[:8]) >> 64)


def as_utc(value: datetime, what: str) -> datetime:
    """``value`` in UTC.

    Raises:
        InvalidArgument: It is no aware datetime, or not between the years 1970 and 9900.
    """
    if not isinstance(value, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"{what} must be a datetime, not {type(value).__qualname__}")
    if value.utcoffset() is None:
        raise InvalidArgument(f"{what} must have a time zone: {value.isoformat()} can be any of 24 hours")
    if not FIRST <= value <= LAST:
        raise InvalidArgument(f"{what} must be between the years 1970 and 9900, not {value.isoformat()}")
    return value.astimezone(UTC)


# -- expressions ----------------------------------------------------------------------------------


def _fields(expression: object) -> str:
    """The expression with single spaces, in lower case, without aliases."""
    if not isinstance(expression, str):
        raise InvalidArgument(f"a cron expression must be a str, not {type(expression).__qualname__}")
    text = str.__str__(expression)
    if len(text) > MAX_EXPRESSION:
        raise InvalidArgument(f"a cron expression has at most {MAX_EXPRESSION} characters, not {len(text):,}")
    if not text.isascii() or not text.replace("\t", " ").isprintable():
        raise InvalidArgument(f"the cron expression {text!a} contains characters that no rule is made of")
    text = " ".join(text.lower().split())
    return _ALIASES.get(text, text)


@lru_cache(1024)  # 0.3 ms; ten thousand schedules have a few hundred rules
def _parse(text: str, timezone: str) -> Cron:
    fields = _checked(text)
    sides = [fields]
    if fields[_DAY] != "*" and fields[_WEEKDAY] != "*":
        # croniter itself makes an AND of a day of the month and ``fri#2``: https://crontab.guru/cron-bug.html is
        # about the same doubt. Two rules, of which the earlier tick counts, are an OR in every case.
        sides = [[*fields[:at], "*", *fields[at + 1 :]] for at in (_WEEKDAY, _DAY)]
    iterators = tuple(_iterator(text, side) for side in sides)
    return Cron(text, timezone, zone(timezone), iterators[0].expanded[1] == ["*"], iterators)


def zone(name: str) -> ZoneInfo:
    """The time zone of an IANA name.

    Raises:
        InvalidArgument: It is unknown here, or means something else on each host.
    """
    # localtime: the host's own; right/: 27 s away, with leap seconds; Factory: "not configured".
    host = name in ("localtime", "posixrules", "Factory") or name.startswith(("posix/", "right/"))
    if not host:
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # by what lies at this path: nothing, another file, a directory
            pass
    raise InvalidArgument(f"{name[:64]!r} is no time zone that is known here: name one as in 'Europe/Paris'")


def _iterator(text: str, fields: list[str]) -> croniter[Any]:
    start = datetime(2000, 1, 1)  # noqa: DTZ001  (a clock without a time zone)
    try:
        iterator = croniter(" ".join(fields), start, datetime, max_years_between_matches=_YEARS)
        copy.copy(iterator).get_next()
    except CroniterBadDateError:
        shown = f"day {fields[_DAY]} of month {fields[3]}"
        raise _refused(text, f"can never fire: there is no {shown}") from None
    except CroniterError as error:
        raise _refused(text, re.sub(r"^\[.*?\] ", "", str(error))) from None
    return iterator


def _checked(text: str) -> list[str]:
    """The fields, when every item is one of the forms that ``parse`` lists."""
    if text.startswith("@"):
        raise _refused(text, f"is not one of {', '.join(_ALIASES)}; intervals are given with every=")
    fields = text.split(" ") if text else []
    if len(fields) not in (5, 6):
        raise _refused(text, f"has {len(fields)} fields, not five, or six with the second last")
    for kind, pattern, value in zip(_FIELDS, _ITEMS, fields, strict=False):
        for item in value.split(","):
            if (reason := _wrong(kind, pattern, item)) is not None:
                raise _refused(text, f"has the {kind.name} {item!r}: {reason}")
    for one, other in ((_DAY, _WEEKDAY), (_WEEKDAY, _DAY)):
        if fields[one].startswith("*/") and fields[other] != "*":
            raise _refused(
                text,
                f"restricts both days, the {_FIELDS[one].name} with {fields[one]!r}: some crons fire when both match, "
                f"some when either does. For either write {_FIELDS[one].low}-{_FIELDS[one].last}{fields[one][1:]}",
            )
    return fields


def _wrong(kind: _Field, pattern: re.Pattern[str], item: str) -> str | None:
    """Why an item is refused; None: it is not."""
    found = pattern.fullmatch(item)
    if found is None or (found["low"] == "*" and found["high"] is not None):
        return next((hint for form, hint in _HINTS if re.fullmatch(form, item)), "it cannot be read")
    low, high, step = found["low"], found["high"], found["step"]
    values = [kind.number(text) for text in (low, high) if text not in (None, "*")]
    if not all(kind.low <= value <= kind.most for value in values):
        return f"values are {kind.low} to {kind.most}"
    if len(values) == 2 and (values[0] == values[1] or (kind is _FIELDS[_WEEKDAY] and values == [7, 0])):
        # croniter takes 9-9 for every hour.
        return f"a range from a value to itself; write {low}"
    if step is None:
        return None
    if not 1 <= int(step) <= kind.size:
        # */90 would fire every hour.
        return f"a step is between 1 and {kind.size}; longer intervals are given with every="
    if len(values) == 2 and values[0] > values[1]:
        # croniter takes 3-1/2 for 3-59/2: of those it accepts, one in four came out wrong (tried: 26,696 ranges).
        return "no steps are taken across the end; write the values"
    if len(values) == 1 and values[0] >= kind.last:
        # croniter 6 took 59/15 for */15, croniter 7 takes it for 59.
        return f"no step leads on from the last value; write {low}"
    return None


def _refused(text: str, reason: str) -> InvalidArgument:
    return InvalidArgument(f"the cron expression {text!r} {reason}")
