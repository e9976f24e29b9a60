"""The state machine of a run: the one table of legal transitions, and the only makers of a ``Change``.

Everybody else asks here. The CHECK constraint in SQL, the diagram in the docs and the stores are tested
against ``TRANSITIONS``.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from durable.model import Change, State


class Event(StrEnum):
    """What moves a run from one state to another."""

    CLAIM = "claim"
    PARK_SLEEP = "park (sleep)"
    PARK_WAIT = "park (wait)"
    COMPLETE = "complete"
    FAIL = "fail"
    COMPENSATE = "compensate"
    COMPENSATED = "compensated"
    CANCEL = "cancel"
    CANCELLED = "cancelled"
    RELEASE = "release"
    TAKEOVER = "takeover"
    GIVE_UP = "give up"
    PAUSE = "pause"
    RESUME = "resume"
    RESUME_UNDO = "resume compensation"
    RETRY = "retry"
    RETRY_UNDO = "retry compensation"
    TRY_AGAIN = "try again"


_S, _E = State, Event

TRANSITIONS: dict[tuple[State, Event], State] = {
    # claimed by a worker; a run in compensation stays in it while it is claimed, parked and released
    (_S.PENDING, _E.CLAIM): _S.RUNNING,
    (_S.SLEEPING, _E.CLAIM): _S.RUNNING,
    (_S.WAITING, _E.CLAIM): _S.RUNNING,
    (_S.COMPENSATING, _E.CLAIM): _S.COMPENSATING,
    # while executing
    (_S.RUNNING, _E.PARK_SLEEP): _S.SLEEPING,
    (_S.RUNNING, _E.PARK_WAIT): _S.WAITING,
    (_S.COMPENSATING, _E.PARK_SLEEP): _S.COMPENSATING,
    (_S.RUNNING, _E.COMPLETE): _S.COMPLETED,
    (_S.RUNNING, _E.FAIL): _S.FAILED,
    (_S.RUNNING, _E.COMPENSATE): _S.COMPENSATING,
    (_S.COMPENSATING, _E.COMPENSATED): _S.COMPENSATED,
    (_S.COMPENSATING, _E.FAIL): _S.FAILED,
    (_S.COMPENSATING, _E.CANCELLED): _S.CANCELLED,
    (_S.RUNNING, _E.CANCELLED): _S.CANCELLED,
    (_S.RUNNING, _E.TRY_AGAIN): _S.PENDING,  # another run attempt, after its backoff
    (_S.RUNNING, _E.PAUSE): _S.PAUSED,
    (_S.COMPENSATING, _E.PAUSE): _S.PAUSED,
    # given back, or taken from a worker whose lease expired
    (_S.RUNNING, _E.RELEASE): _S.PENDING,
    (_S.COMPENSATING, _E.RELEASE): _S.COMPENSATING,
    (_S.RUNNING, _E.TAKEOVER): _S.PENDING,
    (_S.COMPENSATING, _E.TAKEOVER): _S.COMPENSATING,
    (_S.RUNNING, _E.GIVE_UP): _S.DEAD_LETTER,
    (_S.COMPENSATING, _E.GIVE_UP): _S.DEAD_LETTER,
    # operators and other processes, on runs that nobody executes
    (_S.PENDING, _E.CANCELLED): _S.CANCELLED,  # it has never started: there is nothing to undo
    (_S.PAUSED, _E.CANCELLED): _S.CANCELLED,  # the same
    (_S.PENDING, _E.CANCEL): _S.PENDING,  # it has: a worker replays it to find what to undo
    (_S.SLEEPING, _E.CANCEL): _S.SLEEPING,
    (_S.WAITING, _E.CANCEL): _S.WAITING,
    (_S.RUNNING, _E.CANCEL): _S.RUNNING,  # until its worker has been told
    (_S.COMPENSATING, _E.CANCEL): _S.COMPENSATING,
    (_S.PAUSED, _E.CANCEL): _S.PENDING,
    (_S.PENDING, _E.PAUSE): _S.PAUSED,
    (_S.SLEEPING, _E.PAUSE): _S.PAUSED,
    (_S.WAITING, _E.PAUSE): _S.PAUSED,
    (_S.PAUSED, _E.RESUME): _S.PENDING,
    (_S.PAUSED, _E.RESUME_UNDO): _S.COMPENSATING,  # its error was stored when compensation began
    (_S.FAILED, _E.RETRY): _S.PENDING,
    (_S.FAILED, _E.RETRY_UNDO): _S.COMPENSATING,
    (_S.DEAD_LETTER, _E.RETRY): _S.PENDING,
}

TERMINAL = frozenset({_S.COMPLETED, _S.FAILED, _S.COMPENSATED, _S.CANCELLED, _S.DEAD_LETTER})
"""Nothing executes any more. ``failed`` and ``dead_letter`` are left only by an operator's retry."""

CLAIMABLE = frozenset(state for state, event in TRANSITIONS if event is Event.CLAIM)
EXECUTING = frozenset({_S.RUNNING, _S.COMPENSATING})
"""The states a run can have while a worker holds its lease."""


class IllegalTransition(AssertionError):
    """A bug in this library: the table has no such transition."""


def after(state: State, event: Event) -> State:
    """The state that ``event`` leads to from ``state``."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event} in state {state}") from None


def complete(current: State, result: str | None) -> Change:
    return Change(after(current, Event.COMPLETE), result=result)


def fail(current: State, error: str) -> Change:
    return Change(after(current, Event.FAIL), error=error)


def compensate(current: State, error: str) -> Change:
    """Enter compensation: the error is stored now, the lease is kept."""
    return Change(after(current, Event.COMPENSATE), keep=True, error=error)


def compensated(current: State, error: str) -> Change:
    return Change(after(current, Event.COMPENSATED), error=error)


def park(current: State, *, ready_at: datetime | None, wakes: int, waiting: bool = False) -> Change:
    """Give the lease back until ``ready_at``, or until the wake counter has moved past ``wakes``."""
    event = Event.PARK_WAIT if waiting else Event.PARK_SLEEP
    return Change(after(current, event), ready_at=ready_at, wakes=wakes)


def release(current: State) -> Change:
    """Give the lease back; any worker may go on at once."""
    return Change(after(current, Event.RELEASE), ready_now=True)


def pause(current: State, reason: str, *, asked: bool = False) -> Change:
    """``asked``: because of a request. One that was withdrawn or replaced meanwhile must not stop the run."""
    return Change(after(current, Event.PAUSE), reason=reason, asked=asked)


def cancelled(current: State, error: str) -> Change:
    return Change(after(current, Event.CANCELLED), error=error)


def try_again(current: State, ready_at: datetime) -> Change:
    """Another run attempt at ``ready_at``: completed records are kept, failed ones are set aside."""
    return Change(after(current, Event.TRY_AGAIN), ready_at=ready_at, drop_failed=True)
