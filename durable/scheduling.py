"""What becomes of a schedule that is due: which ticks are fired, which are skipped and why, and when it is next due.

Decisions only; it knows neither a store nor a clock. A store reads the schedule and its open runs, asks ``decide``, and
writes the whole ``Plan`` in one transaction that compares ``next_at`` and ``revision``. The next date is part of the
plan, so it is known before a run is created, and a rule that cannot be evaluated creates none.

**When a tick is missed.** A tick is on time while it is the newest one that is due, for ``GRACE`` seconds at most. It
is missed from the moment the tick after it is due too, that is one interval late, or when the grace is over. A tick on
time is fired whatever ``catch_up`` says; missed ones are ``catch_up``'s:

* ``one``: the newest tick that is due is fired, on time or missed, and stands for the missed ones before it.
* ``all``: each missed tick is fired, then the one on time.
* ``none``: only the one on time is fired.

With ``catch_up_window`` a missed tick is skipped when it was due longer ago than that.

**Overlap** is applied to what is left, in the order of the ticks. So ``all`` with ``skip`` fires one of the missed
ticks, as the rest would run beside it; with ``cancel_previous`` only the newest is fired, as it would cancel the others
at once. ``all`` is meant to go with ``queue`` or ``allow``.

A schedule that is paused or switched off has no ticks: they are neither fired nor counted, also not afterwards.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from durable import cron as rules
from durable.cron import Every, Rule, as_utc
from durable.durations import seconds
from durable.errors import InvalidArgument
from durable.model import NewRun
from durable.names import check_key, check_name, check_tags
from durable.schedules import CatchUp, Overlap, Previous, Schedule, ScheduleSpec, ScheduleWrite, Skip

UNDECLARED = "it is no longer declared in the code"
"""The note of a schedule that was paused because its program does not declare it any more: declared again, it fires."""

GRACE = timedelta(seconds=60)
"""How long the newest tick counts as on time. A restart of the workers or the database ends within it; a daily rule
with ``catch_up="none"`` shall not fire at nine what was due at midnight."""

MAX_JITTER = 86_400.0
_MICROSECOND = timedelta(microseconds=1)
MAX_QUEUED = 10_000

PAGE = 200
"""Ticks that one plan looks at. croniter needs 40 to 370 µs for each: 10 to 70 ms, in which a worker does nothing
else. With more of them due the plan says ``more``."""

_FIELDS = tuple(entry.name for entry in fields(ScheduleSpec))

_Choice = TypeVar("_Choice", bound=StrEnum)


@dataclass(frozen=True, slots=True)
class Firing:
    """One run to create."""

    tick: datetime  # nominal
    waits: bool = False  # it starts when the earlier runs of its schedule have ended


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a due schedule. Written as a whole, or not at all."""

    next_at: datetime | None  # nominal; None: nothing is left to fire
    due_at: datetime | None
    fire: tuple[Firing, ...] = ()
    cancel: tuple[str, ...] = ()  # runs whose cancellation is requested
    skipped: Mapping[Skip, int] = field(default_factory=dict[Skip, int])
    more: bool = False  # further ticks are due now: decide again


# -- declaring ------------------------------------------------------------------------------------


def schedule_spec(
    *,
    name: str,
    workflow: str,
    version: str,
    input: str | None = None,  # noqa: A002  (the API's word)
    cron: str | None = None,
    every: float | timedelta | None = None,
    timezone: str = "UTC",
    overlap: Overlap | str = Overlap.SKIP,
    max_queued: int = 10,
    catch_up: CatchUp | str = CatchUp.ONE,
    catch_up_window: float | timedelta | None = None,
    jitter: float | timedelta = 0.0,
    start_at: datetime | None = None,
    end_at: datetime | None = None,
    enabled: bool = True,
    tags: Mapping[str, str] | None = None,
    queue: str = "default",
    priority: int = 5,
    limit_key: str | None = None,
    declared_by: str | None = None,
) -> ScheduleSpec:
    """A checked declaration of a schedule.

    Args:
        name: The schedule's identity: declaring it again changes it.
        workflow: What is run.
        version: Its version.
        input: JSON text for every run; None: none.
        cron: When, as ``cron.parse`` reads it. Either this or ``every``.
        every: Seconds or timedelta, at least 1 s, of elapsed time; counted from ``start_at``, or from 1970 without one,
            so that every worker and every restart finds the same ticks.
        timezone: IANA name of the zone of ``cron``. Default UTC. What happens when clocks change: see ``cron``.
        overlap: ``"skip"`` (default), ``"queue"``, ``"cancel_previous"`` or ``"allow"``.
        max_queued: Runs that wait at the same time with ``"queue"``, 1 to 10,000. Default 10.
        catch_up: ``"one"`` (default), ``"all"`` or ``"none"``: what becomes of missed ticks.
        catch_up_window: Seconds or timedelta; ticks that were due longer ago are not caught up. Default: no limit.
        jitter: Seconds or timedelta, at most a day. Each tick is fired up to that much later, the same in every
            process; never as late as the next tick. Its nominal time stays. Default 0.
        start_at: Aware; no tick before it. Default: none.
        end_at: Aware; no tick at it or after it. Default: none.
        enabled: Whether it fires at all. Default True.
        tags: For every run.
        queue: Of every run.
        priority: Of every run, 0 (first) to 9 (last). Default 5.
        limit_key: Of every run: whose share of its queue's limits it uses.
        declared_by: The program in whose code it is declared.

    Raises:
        InvalidArgument: An argument is out of its range, the rule can never fire, or not between the two dates.
    """
    if (cron is None) == (every is None):
        raise InvalidArgument("a schedule has either cron= or every=")
    if every is not None and timezone != "UTC":
        raise InvalidArgument("every= is elapsed time, the same in all time zones: timezone= goes with cron=")
    if not isinstance(enabled, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"enabled must be True or False, not {enabled!r:.50}")
    spec = ScheduleSpec(
        name=check_name(name, "schedule name"),
        workflow=check_name(workflow, "workflow name"),
        version=check_name(version, "workflow version"),
        input=input,
        cron=cron if cron is None else rules.parse(cron, timezone).expression,
        every=None if every is None else seconds(every, "every"),
        timezone=timezone,
        overlap=_choice(Overlap, overlap, "overlap"),
        max_queued=_queue(max_queued),
        catch_up=_choice(CatchUp, catch_up, "catch_up"),
        catch_up_window=None if catch_up_window is None else seconds(catch_up_window, "catch_up_window"),
        jitter=_jitter(jitter),
        start_at=None if start_at is None else as_utc(start_at, "start_at"),
        end_at=None if end_at is None else as_utc(end_at, "end_at"),
        enabled=enabled,
        tags=check_tags(tags),
        queue=check_name(queue, "queue"),
        priority=_priority(priority),
        limit_key=None if limit_key is None else check_key(limit_key, "limit_key"),
        declared_by=None if declared_by is None else check_name(declared_by, "program"),
    )
    if spec.catch_up is CatchUp.NONE and spec.catch_up_window is not None:
        raise InvalidArgument("catch_up_window has no meaning with catch_up='none'")
    rule_of(spec)
    if spec.start_at is not None and spec.end_at is not None and first_tick(spec, rules.FIRST) is None:
        raise InvalidArgument(f"schedule {spec.name!r} has no tick between start_at and end_at")
    return spec


def _choice(kind: type[_Choice], value: str, what: str) -> _Choice:
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgument(f"{what} must be one of {', '.join(kind)}, not {value!r:.50}") from None


def _queue(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_QUEUED:
        raise InvalidArgument(f"max_queued must be between 1 and {MAX_QUEUED:,}, not {value!r:.50}")
    return value


def _priority(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 9:
        raise InvalidArgument(f"priority must be a whole number from 0 (first) to 9 (last), not {value!r:.50}")
    return value


def _jitter(value: float | timedelta) -> float:
    length = seconds(value, "jitter")
    if length > MAX_JITTER:
        raise InvalidArgument(f"jitter must be at most a day, not {length:g} s")
    return length


# -- dates ----------------------------------------------------------------------------------------


def rule_of(spec: ScheduleSpec) -> Rule:
    """The rule of a schedule.

    Raises:
        InvalidArgument: It cannot be read here: the time zone is not known to this host.
    """
    if spec.every is not None:
        return Every(spec.every, spec.start_at or rules.FIRST)
    assert spec.cron is not None
    return rules.parse(spec.cron, spec.timezone)


def first_tick(spec: ScheduleSpec, after: datetime) -> datetime | None:
    """The first tick after ``after``, between the schedule's dates; None: there is none."""
    return _following(spec, rule_of(spec), after)


def upcoming(spec: ScheduleSpec, after: datetime, count: int) -> list[datetime]:
    """The next ticks after ``after``, at most ``count``: a preview."""
    return _ticks(spec, after + _MICROSECOND, rules.LAST, count)


def between(spec: ScheduleSpec, since: datetime, until: datetime, limit: int) -> list[datetime]:
    """The ticks from ``since`` on and before ``until``, between the schedule's dates, at most ``limit``: a backfill."""
    return _ticks(spec, since, until, limit)


def due_at(spec: ScheduleSpec, tick: datetime) -> datetime:
    """When a tick is fired: its nominal time and its jitter, always before the next tick."""
    return _due(spec, rule_of(spec), tick)


def next_after_put(stored: Schedule | None, spec: ScheduleSpec, now: datetime) -> datetime | None:
    """``next_at`` of a schedule that is declared, again or for the first time; also after a resume.

    The stored one stays while the dates mean the same: workers declare their schedules at every start, and one that
    starts a second after a tick must not drop it. With other dates, and after a pause, it is the first tick after now.
    """
    if not spec.enabled or (stored is not None and stored.paused is not None):
        return None
    if stored is not None and stored.fires and stored.next_at is not None and _dates(stored.spec) == _dates(spec):
        return stored.next_at
    return first_tick(spec, now)


def _dates(spec: ScheduleSpec) -> tuple[object, ...]:
    return spec.cron, spec.every, spec.timezone, spec.start_at, spec.end_at


def _ticks(spec: ScheduleSpec, since: datetime, until: datetime, limit: int) -> list[datetime]:
    since, until = as_utc(since, "since"), as_utc(until, "until")
    since = since if spec.start_at is None else max(since, spec.start_at)
    until = until if spec.end_at is None else min(until, spec.end_at)
    return list(rules.ticks(rule_of(spec), since, until, limit))


def _following(spec: ScheduleSpec, rule: Rule, after: datetime) -> datetime | None:
    if spec.start_at is not None:
        after = max(after, spec.start_at - _MICROSECOND)
    tick = rule.next(after)
    return None if tick is None or (spec.end_at is not None and tick >= spec.end_at) else tick


def _due(spec: ScheduleSpec, rule: Rule, tick: datetime) -> datetime:
    if not spec.jitter:
        return tick
    span, following = timedelta(seconds=spec.jitter), rule.next(tick)
    return tick + rules.jitter_of(spec.name, tick, span if following is None else min(span, following - tick))


# -- firing ---------------------------------------------------------------------------------------


def decide(schedule: Schedule, now: datetime, previous: Previous, *, limit: int = PAGE) -> Plan:
    """What becomes of a schedule at ``now``. Equal arguments give equal plans, in every process.

    Args:
        schedule: As it is stored. One that is not due gets a plan without ticks.
        now: The store's time.
        previous: Its runs that have not ended.
        limit: Ticks to look at. The plans of all limits add up to the same firings and counts.

    Raises:
        InvalidArgument: The rule cannot be read here; see ``rule_of``.
    """
    spec, at = schedule.spec, schedule.next_at
    if not schedule.fires or at is None:
        return Plan(None, None)
    if spec.end_at is not None and at >= spec.end_at:
        return Plan(None, None, skipped={Skip.ENDED: 1})
    rule = rule_of(spec)
    due: list[tuple[datetime, datetime]] = []  # nominal, with jitter
    following: datetime | None = at
    moment: datetime | None = _due(spec, rule, at)
    while following is not None and moment is not None and moment <= now and len(due) < limit:
        due.append((following, moment))
        following = _following(spec, rule, following)
        moment = None if following is None else _due(spec, rule, following)
    more = moment is not None and moment <= now
    wanted, skipped = _caught_up(spec, due, now, more)
    fire, cancel, overlapped = place(spec, wanted, previous, superseded=more)
    return Plan(following, moment, fire, cancel, dict(skipped + overlapped), more)


def place(
    spec: ScheduleSpec, ticks: Sequence[datetime], previous: Previous, *, superseded: bool = False
) -> tuple[tuple[Firing, ...], tuple[str, ...], Counter[Skip]]:
    """What the overlap policy makes of ticks that are to be fired now: also of a trigger by hand, and of a backfill.

    Args:
        spec: The schedule.
        ticks: In order.
        previous: Its runs that have not ended.
        superseded: A later tick is fired at once as well.

    Returns:
        The runs to create, the ids of the runs to cancel, and how many ticks are skipped.
    """
    if spec.overlap is Overlap.ALLOW:
        return tuple(Firing(tick) for tick in ticks), (), Counter()
    if spec.overlap is Overlap.CANCEL_PREVIOUS:
        newest = () if superseded else ticks[-1:]
        cancel = (*previous.active, *previous.queued) if newest else ()
        skipped = Counter({Skip.OVERLAP: len(ticks) - len(newest)})
        return tuple(Firing(tick, waits=previous.busy) for tick in newest), cancel, skipped
    starts, waits, reason = 0 if previous.busy else 1, 0, Skip.OVERLAP
    if spec.overlap is Overlap.QUEUE:
        # A limit that was lowered leaves more of them than it allows.
        waits, reason = max(0, spec.max_queued - len(previous.queued)), Skip.QUEUE_FULL
    fire = tuple(Firing(tick, waits=number >= starts) for number, tick in enumerate(ticks[: starts + waits]))
    return fire, (), Counter({reason: len(ticks) - len(fire)})


def _caught_up(
    spec: ScheduleSpec, due: Sequence[tuple[datetime, datetime]], now: datetime, more: bool
) -> tuple[list[datetime], Counter[Skip]]:
    """The ticks that the catch-up policy lets through, and how many it does not."""
    window = None if spec.catch_up_window is None else timedelta(seconds=spec.catch_up_window)
    wanted: list[datetime] = []
    skipped: Counter[Skip] = Counter()
    for number, (tick, moment) in enumerate(due, 1):
        newest = number == len(due) and not more
        late = now - moment
        if newest and late <= GRACE:
            wanted.append(tick)
        elif window is not None and late > window:
            skipped[Skip.WINDOW] += 1
        elif spec.catch_up is CatchUp.ALL or (spec.catch_up is CatchUp.ONE and newest):
            wanted.append(tick)
        else:
            skipped[Skip.CATCH_UP] += 1
    return wanted, skipped


# -- what is written ------------------------------------------------------------------------------


def declared(stored: Schedule | None, spec: ScheduleSpec, now: datetime) -> Schedule | None:
    """The schedule that a declaration makes of the stored one; None: it is declared so already.

    A pause stays, except the one for which the program itself was the reason.
    """
    if stored is None:
        return _dated(Schedule(spec, None, None, now, now), next_after_put(None, spec, now))
    back = spec.declared_by is not None and stored.paused == UNDECLARED
    if stored.spec == spec and not back:
        return None
    stored = replace(stored, paused=None) if back else stored
    # Not before a tick that was fired, whatever this process takes for now: so a tick whose row is gone stays fired.
    following = next_after_put(stored, spec, now if stored.last_at is None else max(now, stored.last_at))
    return _dated(_changed(replace(stored, spec=spec), now), following)


def paused(stored: Schedule, note: str, now: datetime) -> Schedule | None:
    """The schedule without ticks until it is resumed; None: it is paused with this note already."""
    return None if stored.paused == note else _dated(_changed(replace(stored, paused=note), now), None)


def resumed(stored: Schedule, now: datetime) -> Schedule | None:
    """The schedule with its ticks after now; None: it is not paused."""
    if stored.paused is None:
        return None
    stored = replace(stored, paused=None)
    following = next_after_put(stored, stored.spec, now if stored.last_at is None else max(now, stored.last_at))
    return _dated(_changed(stored, now), following)


def fired(
    stored: Schedule,
    runs: Sequence[NewRun],
    skipped: Mapping[Skip, int],
    now: datetime,
    dates: tuple[datetime | None, datetime | None] | None = None,
) -> ScheduleWrite:
    """The write that fires ticks.

    Args:
        stored: The schedule as it was read.
        runs: One for each tick.
        skipped: What was not fired.
        now: The store's time.
        dates: ``next_at`` and ``due_at`` afterwards; None: as before, for ticks that are not the schedule's next ones.
    """
    next_at, due = (stored.next_at, stored.due_at) if dates is None else dates
    ticks = [run.tick for run in runs if run.tick is not None]
    last_at = max([*ticks, stored.last_at] if stored.last_at is not None else ticks, default=None)
    after = replace(
        _changed(stored, now),
        next_at=next_at,
        due_at=due,
        last_at=last_at,
        fired=stored.fired + len(runs),
        skipped=dict(Counter(stored.skipped) + Counter(skipped)),
    )
    return ScheduleWrite(after, stored, runs)


def by_hand(stored: Schedule, now: datetime) -> datetime:
    """The nominal time of a tick that is triggered by hand: now, or the next microsecond that is no other tick's."""
    tick = now if stored.last_at is None else max(now, stored.last_at + _MICROSECOND)
    return tick + _MICROSECOND if tick == stored.next_at or between(stored.spec, tick, tick + _MICROSECOND, 1) else tick


def _changed(stored: Schedule, now: datetime) -> Schedule:
    return replace(stored, updated_at=now, revision=stored.revision + 1)


def _dated(schedule: Schedule, next_at: datetime | None) -> Schedule:
    due = None if next_at is None else due_at(schedule.spec, next_at)
    return replace(schedule, next_at=next_at, due_at=due)


# -- as text --------------------------------------------------------------------------------------


def to_json(spec: ScheduleSpec) -> str:
    """The specification as every store keeps it."""
    values = {name: getattr(spec, name) for name in _FIELDS}  # dataclasses.asdict: 80 µs against 20, per write
    values["tags"] = dict(spec.tags)
    return json.dumps(values, default=datetime.isoformat, ensure_ascii=False, separators=(",", ":"))


def from_json(text: str) -> ScheduleSpec:
    """The specification that ``to_json`` wrote. What a later version of this code has added to it is left out."""
    found: dict[str, Any] = json.loads(text)
    values = {name: value for name, value in found.items() if name in _FIELDS}
    for name in ("start_at", "end_at"):
        if values[name] is not None:
            values[name] = datetime.fromisoformat(values[name])
    values["overlap"], values["catch_up"] = Overlap(values["overlap"]), CatchUp(values["catch_up"])
    return ScheduleSpec(**values)


def skipped_to_json(skipped: Mapping[Skip, int]) -> str:
    """The counts as every store keeps them."""
    return json.dumps(dict(skipped), separators=(",", ":"))


def skipped_from_json(text: str) -> dict[Skip, int]:
    """The counts that ``skipped_to_json`` wrote."""
    return {Skip(reason): count for reason, count in json.loads(text).items()}
