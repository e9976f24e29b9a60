"""The words of the system as immutable values: states, runs, records, and what is written about them.

No behaviour beyond construction; it knows neither asyncio nor a database. Payloads are JSON text here;
``codec`` turns them into Python values and back. Times are aware UTC datetimes on the store's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dataclasses import dataclass as value
else:

    def value(*, frozen: bool, slots: bool) -> Callable[[type], type]:
        """A frozen dataclass for the type checker alone, for what is made for each run: a ``Run`` takes 1 µs to make,
        one that defends itself at run time 5, of the hundred that a run of one step takes in all."""
        return dataclass(slots=slots, unsafe_hash=frozen)


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
    WAIT = "wait"  # key of a wait for a signal or an event: it was called; due_at is its deadline; data: see waits
    WOKE = "woke"  # <key>/woke: the end of a sleep, a wait or a child was delivered; data: what it brought
    CALL = "call"  # key of a child's call: the child was made by the write that holds this record; data: its run id
    MAP = "map"  # key of a fan-out: all of its items, <key>[<n>], have ended
    EMIT = "emit"  # key of an emit; data: what was emitted
    REFUSED = "refused"  # /refused/<seq>: a signal that does not fit its wait was consumed; data: a Failure
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
    linked: bool = False  # when the run leaves or ends, others are concerned: see RunSummary.linked


@value(frozen=True, slots=True)
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
    queue: str = "default"
    priority: int = 5  # 0 first, 9 last
    limit_key: str | None = None  # whose share of its queue's limits it uses
    concurrency_key: str | None = None  # at most one run of the workflow with this key is active
    parent: str | None = None  # the run that called it
    linked: bool = False  # it has a parent, a concurrency key, was claimed in a limited queue, or holds shared effects
    schedule: str | None = None  # whose tick it is for
    tick: datetime | None = None  # the tick's nominal time: without jitter and lateness

    @property
    def suspect(self) -> bool:
        """It may be what kills its workers: it is given out alone among its like."""
        return self.takeovers >= SUSPECT_AFTER


@value(frozen=True, slots=True)
class Run(RunSummary):
    """A run with its payloads as JSON text."""

    input: str | None = None
    result: str | None = None
    error: str | None = None
    seed: str = ""  # what ctx.random draws from


def _seconds(value: float | timedelta) -> float:
    """So that stores and comparisons know seconds alone. Where limits are taken, they are checked."""
    return value.total_seconds() if isinstance(value, timedelta) else value


class Policy(StrEnum):
    """What becomes of a new run while another one that has not ended has its concurrency key.

    Nothing of the new run is compared with the other: its input may differ.
    """

    REJECT = "reject"  # it is not created; the caller learns the active one's id
    EXISTING = "existing"  # it is not created; the caller gets the active one
    QUEUE = "queue"  # it is created, and becomes ready when all that stand before it have ended
    REPLACE = "replace"  # the others are asked to cancel, and it is queued


@dataclass(frozen=True, slots=True, init=False)
class Debounce:
    """Several triggers become one run, which starts when they have ceased.

    Args:
        key: Which triggers of the workflow belong together; as a run's ``key``.
        delay: Seconds or timedelta after the latest trigger at which the run starts.
        max_delay: Seconds or timedelta after the first trigger at which it starts at the latest; None: no bound.
    """

    key: str
    delay: float  # seconds
    max_delay: float | None = None  # seconds

    def __init__(self, key: str, delay: float | timedelta, max_delay: float | timedelta | None = None) -> None:
        object.__setattr__(self, "key", key)
        object.__setattr__(self, "delay", _seconds(delay))
        object.__setattr__(self, "max_delay", None if max_delay is None else _seconds(max_delay))


@value(frozen=True, slots=True)
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
    queue: str = "default"
    priority: int = 5
    limit_key: str | None = None
    concurrency_key: str | None = None
    policy: Policy = Policy.REJECT  # what becomes of it while another run has its concurrency key
    debounce: Debounce | None = None
    parent: str | None = None  # the run that calls it, which lies in the same shard
    parent_key: str | None = None  # the key of that run's CALL record
    schedule: str | None = None  # the schedule that creates it, at ``tick``
    tick: datetime | None = None


class Start(NamedTuple):
    """Who triggers runs and has slots free for some of them: these may be created claimed."""

    worker: str
    batch: str  # id of this claim, as of any other: a new UUID each time
    run_ids: frozenset[str]


@value(frozen=True, slots=True)
class Created:
    """The answer to one ``NewRun``: the run that stands, and whether this call made it."""

    run_id: str
    created: bool
    conflict: str | None = None  # why it is refused: the existing run differs
    busy: bool = False  # it is refused: ``run_id`` is active under the same concurrency key
    replaced: Sequence[str] = ()  # runs that were asked to cancel in its favour; sent again: those that have not ended
    claimed: ClaimedRun | None = None  # it was created already claimed: see ``Start``


@dataclass(frozen=True, slots=True, init=False)
class Rate:
    """At most ``limit`` starts in ``per``, seconds or timedelta, and as many at once after a rest (a token bucket).

    A token comes every ``interval`` until there are ``limit``. What a bucket keeps is one time, ``spent``, at which it
    will be full again. At ``now`` it holds ``limit - ceil((max(spent, now) - now) / interval)`` tokens. One that is
    taken moves ``spent`` to ``max(spent, now) + interval``. The next one is due at ``spent - (limit - 1) * interval``.
    """

    limit: int
    per: float = 1.0  # seconds

    def __init__(self, limit: int, per: float | timedelta = 1.0) -> None:
        object.__setattr__(self, "limit", limit)
        object.__setattr__(self, "per", _seconds(per))

    @property
    def interval(self) -> int:
        """Whole microseconds between two tokens, rounded up: integers are the same in every store."""
        return -(-round(self.per * 1_000_000) // self.limit)


@dataclass(frozen=True, slots=True)
class Queue:
    """The limits of a named queue, over all workers. A run that sleeps or waits uses nothing of them.

    Args:
        name: As a workflow's name.
        concurrency: Runs of the queue that are held at the same time; None: no limit.
        per_key: The same for the runs of one ``limit_key``. Runs without one are not limited by it.
        rate: Claims of the queue's runs: starts, and resumptions after a sleep, a wait, a release or a takeover.
        rate_per_key: The same for the runs of one ``limit_key``.
    """

    name: str
    concurrency: int | None = None
    per_key: int | None = None
    rate: Rate | None = None
    rate_per_key: Rate | None = None

    @property
    def unlimited(self) -> bool:
        """Whether it has no limit at all."""
        return all(limit is None for limit in (self.concurrency, self.per_key, self.rate, self.rate_per_key))


class Signal(NamedTuple):
    """Something sent to a run, not consumed yet.

    The names of signals that people send contain no ``/``. ``child/<key>``: the child that was called under this record
    key has ended, ``data`` is ``{"state": …, "result": …, "error": …}``. ``event/<topic>/<key>``: an event that the run
    has awaited.
    """

    id: str  # unique in the run; made by the sender
    name: str
    data: str  # JSON
    at: datetime  # when it was sent


@dataclass(frozen=True, slots=True)
class NewSignal:
    """A signal to send."""

    run_id: str
    id: str
    name: str
    data: str
    shard: int = 0


class Sent(StrEnum):
    """The answer to one ``NewSignal``."""

    ACCEPTED = "accepted"  # it is stored; also when it was stored before with the same id
    FINISHED = "finished"  # the run has ended: nothing was stored
    NOT_FOUND = "not found"  # there is no such run


@dataclass(frozen=True, slots=True)
class Published:
    """An event for whoever awaits it. ``key`` is empty for a topic without keys."""

    id: str  # a UUIDv7, made by the publisher before the first sending
    topic: str
    key: str
    data: str  # JSON
    retention: float  # seconds for which runs that begin to wait still get it


class Awaited(NamedTuple):
    """A run waits for an event: the oldest since ``since`` that it has not been given yet becomes a signal."""

    topic: str
    key: str
    since: datetime


class Emitted(NamedTuple):
    """An entry of the log of ``ctx.emit``."""

    cursor: str  # rises in the order of the log
    run_id: str
    key: str  # of the record
    at: datetime
    data: str


class Effect(NamedTuple):
    """Who makes an effect that runs share."""

    mine: bool  # the step that asked shall make it, now
    run_id: str  # who makes it, or has made it
    done: bool = False
    data: str | None = None  # JSON: its result, when done


class EffectEnd(NamedTuple):
    """What becomes of a shared effect that the run makes."""

    key: str
    step: str  # the key of the step's record, whose data is the result when it is kept
    kept: bool  # False: it failed, or was undone: whoever waits for it makes it


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
class Also:
    """What a write does beside its records and its change; most do nothing of it."""

    children: list[NewRun] = field(default_factory=list[NewRun])
    consumed: list[str] = field(default_factory=list[str])  # ids of signals
    awaited: list[Awaited] = field(default_factory=list[Awaited])
    effects: list[EffectEnd] = field(default_factory=list[EffectEnd])
    emits: bool = False  # some of the records are of the kind EMIT: they go into the log too


@dataclass(slots=True)
class RunWrite:
    """Everything one flush does to one run: records in order, then at most one change."""

    ref: RunRef
    records: list[Record] = field(default_factory=list[Record])
    change: Change | None = None
    also: Also | None = None


class Outcome(StrEnum):
    """The answer to one ``RunWrite``."""

    APPLIED = "applied"
    LEASE_LOST = "lease_lost"  # the run is no longer this worker's under this claim: nothing was written
    BUSY = "busy"  # somebody holds the row for a moment: nothing was written, send it again


@value(frozen=True, slots=True)
class ClaimedRun:
    """A run with what its execution needs. ``records`` is in seq order; None: the caller's copy is current."""

    run: Run
    records: Sequence[Record] | None
    wakes: int
    signals: Sequence[Signal] = ()  # not consumed yet, in the order of their arrival

    @property
    def ref(self) -> RunRef:
        return RunRef(self.run.shard, self.run.id, self.run.claim, self.run.linked)


@dataclass(frozen=True, slots=True)
class Claimed:
    """The answer to a claim."""

    runs: Sequence[ClaimedRun]
    next_ready_at: datetime | None  # the earliest future due time among the routes asked for; not after now: look again
    requests: Sequence[tuple[str, Request]] = ()  # run id → what is asked of a run that the worker holds
    signalled: Sequence[str] = ()  # runs that the worker held before this claim, and that got signals: see ``unread``


@dataclass(frozen=True, slots=True)
class Unread:
    """What a run that is held has not consumed. ``wakes`` is the counter as it was before the signals were read."""

    wakes: int
    signals: Sequence[Signal]


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
    queue: str | None = None
    parent: str | None = None
    schedule: str | None = None


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
