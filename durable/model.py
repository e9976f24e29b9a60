"""The words of the system as immutable values: states, runs, records, and what is written about them.

No behaviour beyond construction; it knows neither asyncio nor a database. Payloads are JSON text here;
``codec`` turns them into Python values and back. Times are aware UTC datetimes on the store's clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

SUSPECT_AFTER = 2
"""Expired leases without a new record in between from which a run is suspected of killing its workers. The first is an
accident; the second may be its own doing, and befalls all that the worker held; the third shall strike it alone."""


class State(StrEnum):
    """The states of a run. Which may follow which is decided in ``states`` alone."""

    PENDING = "pending"
    RUNNING = "running"
    SLEEPING = "sleeping"
    WAITING = "waiting"
    PAUSED = "paused"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATED = "compensated"
    CANCELLED = "cancelled"
    DEAD_LETTER = "dead_letter"


class Kind(StrEnum):
    """What a record is about. The key of a record that belongs to another one extends that one's key."""

    STEP = "step"  # key charge, charge#2, …: a step's result, or its final failure
    ATTEMPT = "attempt"  # <key>/attempt/<n>: a failed attempt that will be retried; data: the Failure
    SLEEP = "sleep"  # key of the sleep: it was called; due_at is its end
    WOKE = "woke"  # <key>/woke: the sleep's end was delivered
    UNDO = "undo"  # <key>/undo: a compensation's end
    RUN_ATTEMPT = "run_attempt"  # /attempt/<n>: a failed run attempt that will be followed by another; data: Failure
    REQUEST = "request"  # /request/<seq>: a request was carried out; data: the Request
    TAKEOVER = "takeover"  # /takeover/<claim>: a lease expired with this run in it; worker: who lost it


class Verb(StrEnum):
    """What an operator, or another program, asks of a run."""

    CANCEL = "cancel"
    PAUSE = "pause"
    RESUME = "resume"
    RETRY = "retry"
    RETRY_UNDO = "retry_compensation"


@dataclass(frozen=True, slots=True)
class Request:
    """One request about one run: what, why, who. Two that are equal are one that was sent again."""

    verb: Verb
    reason: str = ""
    by: str = ""
    id: str = ""  # made by the client for each call


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as it is recorded: text only, so that every reader sees the same."""

    error_type: str  # qualified class name
    message: str
    traceback: str = ""
    classes: tuple[str, ...] = ()  # qualified names along the MRO
    step: str | None = None  # the step whose failure this is, when it is one
    undone: tuple[str, ...] = ()  # keys of the steps that were compensated
    not_undone: tuple[str, ...] = ()  # keys of the steps whose compensation did not succeed

    @property
    def summary(self) -> str:
        """One line: ``ValueError: no such card``."""
        name = self.error_type.rpartition(".")[2]
        return f"{name}: {self.message}" if self.message else name


class Record(NamedTuple):
    """One entry of a run's history, written once.

    A NamedTuple, not a dataclass: one is made per step, in 0.3 µs against 1.9 µs for a frozen dataclass.
    """

    seq: int  # position in the run's history, from 1, in commit order
    key: str  # unique in the run
    kind: Kind
    at: datetime  # when it ended or was called
    data: str | None = None  # JSON: a result, or a Failure when failed
    failed: bool = False
    attempt: int = 1  # which attempt produced it
    duration: float = 0.0  # seconds the attempt took
    begun: int = 0  # operations the run had begun when this was delivered; see replay
    compensable: bool = False  # a compensation was given for this step
    due_at: datetime | None = None  # sleep: its end; attempt: when the next one may start
    worker: str | None = None  # who wrote it; filled in by the store


class RunRef(NamedTuple):
    """A claimed run, as every fenced write names it. ``claim`` rises with each claim."""

    shard: int
    id: str
    claim: int


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run without its payloads, as lists show it."""

    id: str
    workflow: str
    version: str
    state: State
    created_at: datetime
    key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ready_at: datetime | None = None  # when it may be claimed; None: leased, or not by time alone
    reason: str | None = None  # why it is paused
    requested: Request | None = None  # cancel or pause, asked for and not carried out yet
    owner: str | None = None  # the worker that holds it
    claim: int = 0  # how often it was claimed
    takeovers: int = 0  # expired leases since its last new record
    shard: int = 0

    @property
    def suspect(self) -> bool:
        """It may be what kills its workers: it is given out alone among its like."""
        return self.takeovers >= SUSPECT_AFTER


@dataclass(frozen=True, slots=True)
class Run(RunSummary):
    """A run with its payloads as JSON text."""

    input: str | None = None
    result: str | None = None
    error: str | None = None
    seed: str = ""  # what ctx.random draws from


@dataclass(frozen=True, slots=True)
class NewRun:
    """What a trigger creates.

    ``request`` is made by the client for a run id that the user chose, so that a trigger that is sent
    again can tell its own run from one that existed before.
    """

    id: str
    workflow: str
    version: str
    input: str | None
    input_hash: str
    seed: str
    key: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    ready_at: datetime | None = None  # not before; None: at once
    delay: float = 0.0  # seconds after the store's now, when ready_at is None
    request: str | None = None
    shard: int = 0


@dataclass(frozen=True, slots=True)
class Created:
    """The answer to one ``NewRun``: the run that stands, and whether this call made it."""

    run_id: str
    created: bool
    conflict: str | None = None  # why it is refused: the existing run differs


class Change(NamedTuple):
    """What a write does to the run itself. Made by the functions of ``states`` only."""

    state: State
    keep: bool = False  # the lease stays with the writer
    ready_at: datetime | None = None  # when it may be claimed again
    ready_now: bool = False  # it may be claimed at once
    wakes: int | None = None  # park: the wake count seen; another count now means ready at once
    result: str | None = None
    error: str | None = None
    reason: str | None = None
    drop_failed: bool = False  # set the records of steps that did not succeed aside: they do not count any more
    asked: bool = False  # pause: carries out a request; when that is not open any more, the run is given back instead


@dataclass(slots=True)
class RunWrite:
    """Everything one flush does to one run: records in order, then at most one change."""

    ref: RunRef
    records: list[Record] = field(default_factory=list[Record])
    change: Change | None = None


class Outcome(StrEnum):
    """The answer to one ``RunWrite``."""

    APPLIED = "applied"
    LEASE_LOST = "lease_lost"  # the run is no longer this worker's under this claim: nothing was written
    BUSY = "busy"  # somebody holds the row for a moment: nothing was written, send it again


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run with what its execution needs. ``records`` is in seq order; None: the caller's copy is current."""

    run: Run
    records: Sequence[Record] | None
    wakes: int

    @property
    def ref(self) -> RunRef:
        return RunRef(self.run.shard, self.run.id, self.run.claim)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim."""

    runs: Sequence[ClaimedRun]
    next_ready_at: datetime | None  # the earliest future due time among the routes asked for
    requests: Sequence[tuple[str, Request]] = ()  # run id → what is asked of a run that the worker holds


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a heartbeat."""

    alive: bool  # False: the worker's row is gone, its runs are no longer its own
    now: datetime
    next_expiry: datetime | None  # the earliest expiry among the other workers


class DeadLetter(NamedTuple):
    """A run that a reaping gave up."""

    run_id: str
    workflow: str


@dataclass(frozen=True, slots=True)
class Reaped:
    """The answer to a reaping."""

    released: int  # runs of dead workers, those given up included
    dead_letters: tuple[DeadLetter, ...] = ()  # those given up, by run id


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a listing shows. All given conditions hold."""

    workflow: str | None = None
    version: str | None = None
    state: State | None = None
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    created_after: datetime | None = None
    created_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One line of a run's timeline."""

    seq: int
    at: datetime
    kind: str
    name: str
    attempt: int | None = None
    worker: str | None = None
    duration: float | None = None
    data: str | None = None
