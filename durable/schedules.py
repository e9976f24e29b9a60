"""The words of schedules as immutable values: what is declared, what is stored, what is fired, what is written.

No behaviour beyond construction; the rules are in ``cron``, the decisions and the checks in ``scheduling``. Times are
aware UTC datetimes on the store's clock, durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from durable.model import NewRun


class Overlap(StrEnum):
    """What a tick does while an earlier run of its schedule has not ended."""

    SKIP = "skip"  # it is skipped
    QUEUE = "queue"  # its run waits, up to max_queued of them; further ticks are skipped
    CANCEL_PREVIOUS = "cancel_previous"  # earlier runs are cancelled, and its run waits for their end
    ALLOW = "allow"  # its run starts beside them


class CatchUp(StrEnum):
    """What becomes of ticks that nobody fired when they were due. When a tick is missed: see ``scheduling``."""

    ONE = "one"  # the newest is fired, for all of them
    ALL = "all"  # each is fired, the oldest first
    NONE = "none"  # none is fired


class Skip(StrEnum):
    """Why a tick was not fired."""

    OVERLAP = "overlap"  # an earlier run had not ended, or a later tick of the same moment takes its place
    QUEUE_FULL = "queue_full"  # max_queued runs wait
    CATCH_UP = "catch_up"  # it was missed, and the catch-up policy leaves it out
    WINDOW = "window"  # it was missed, longer ago than catch_up_window
    ENDED = "ended"  # end_at was moved before it


@dataclass(frozen=True, slots=True)
class ScheduleSpec:
    """What a schedule is declared to be. Made by ``scheduling.schedule_spec``, which checks it."""

    name: str
    workflow: str
    version: str
    input: str | None = None  # JSON
    cron: str | None = None  # one of cron and every is given
    every: float | None = None  # seconds
    timezone: str = "UTC"
    overlap: Overlap = Overlap.SKIP
    max_queued: int = 10
    catch_up: CatchUp = CatchUp.ONE
    catch_up_window: float | None = None  # seconds; None: no limit
    jitter: float = 0.0  # seconds
    start_at: datetime | None = None  # no tick before it
    end_at: datetime | None = None  # no tick at it or after it
    enabled: bool = True
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    queue: str = "default"
    priority: int = 5
    limit_key: str | None = None
    declared_by: str | None = None  # the program in whose code it is declared; None: it was made by a call


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it is stored.

    ``next_at`` is the tick's nominal time and what makes it unique; ``due_at`` is when it is fired, and what a store
    looks for. Both are None when nothing is left to fire, or the schedule does not fire now.
    """

    spec: ScheduleSpec
    next_at: datetime | None
    due_at: datetime | None
    created_at: datetime
    updated_at: datetime
    paused: str | None = None  # an operator's note; "" is one too. Declaring the schedule again does not undo it
    last_at: datetime | None = None  # nominal time of the last tick that was fired
    fired: int = 0
    skipped: Mapping[Skip, int] = field(default_factory=dict[Skip, int])
    revision: int = 0  # rises with every write

    @property
    def fires(self) -> bool:
        """It is neither switched off nor paused."""
        return self.spec.enabled and self.paused is None


@dataclass(frozen=True, slots=True)
class Tick:
    """Which tick of which schedule a run is for.

    Attributes:
        name: The schedule's.
        at: The tick's nominal time, aware, in UTC: without jitter and lateness. Of a run that was triggered by hand:
            when that was.
    """

    name: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Previous:
    """The runs of a schedule that have not ended, as ids."""

    active: tuple[str, ...] = ()  # they have started, or may
    queued: tuple[str, ...] = ()  # they wait for the end of another

    @property
    def busy(self) -> bool:
        return bool(self.active or self.queued)


class Found(NamedTuple):
    """A schedule, and its runs that have not ended. With the policy to allow overlap nobody asks for them: none."""

    schedule: Schedule
    previous: Previous


class Due(NamedTuple):
    """What is to be fired."""

    now: datetime  # the store's time: these are due by it
    found: Sequence[Found]  # by (due_at, name)
    next_due_at: datetime | None  # the earliest due_at of any schedule that is after ``now``


class Ticked(NamedTuple):
    """A tick that was fired."""

    at: datetime  # nominal
    run_id: str


@dataclass(frozen=True, slots=True)
class ScheduleWrite:
    """A schedule in place of what was read, with the runs of the ticks that are fired by it. Whole, or not at all."""

    schedule: Schedule  # as it shall be
    before: Schedule | None = None  # as it was read; None: there was none
    runs: Sequence[NewRun] = ()  # new ids; each has the schedule's name and its tick
