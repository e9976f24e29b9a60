"""Observers: what happens in this process, told after it is committed, beside the runs and never in their way.

Events are derived from what was written, so an observer sees what the history says. One callback at a time, in the
order of the commits: a coroutine function on the event loop, any other callable in a thread of its own. A callback
that raises is logged; one that is slow makes the queue longer, and events that no longer fit are dropped and counted
in the log. No run waits for any of it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from durable.errors import InvalidArgument
from durable.model import Change, Kind, Record, RunSummary, RunWrite, State
from durable.store import Store
from durable.threads import ThreadPool

_log = logging.getLogger("durable.hooks")

EventName = Literal[
    "run_triggered",
    "run_started",
    "run_completed",
    "run_failed",
    "run_compensated",
    "run_cancelled",
    "run_paused",
    "run_resumed",
    "run_retried",
    "run_dead_lettered",
    "step_started",
    "step_completed",
    "step_retried",
    "step_failed",
    "step_compensated",
    "lease_lost",
    "took_over",
    "error",
]
"""Everything that ``engine.on`` can be asked for. Only what this process does is told to it."""

_MOST = 10_000


@dataclass(frozen=True, slots=True)
class HookEvent:
    """What a callback receives.

    Attributes:
        name: One of the event names.
        at: The time by the store's clock.
        run_id: The run, for events about one.
        workflow: Its workflow's name.
        step: The record key of the step, for events about one.
        attempt: Its attempt.
        detail: A text: the reason of a pause, the summary of an error, how many runs were taken over. No payloads.
    """

    name: EventName
    at: datetime
    run_id: str | None = None
    workflow: str | None = None
    step: str | None = None
    attempt: int | None = None
    detail: str = ""


Callback = Callable[[HookEvent], Any]


class Hooks:
    """The callbacks of one engine.

    Args:
        store: Whose clock dates the events.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._callbacks: defaultdict[str, list[Callback]] = defaultdict(list)
        self._queue: deque[HookEvent] = deque()
        self._dropped = 0
        self._running: asyncio.Task[None] | None = None
        self._thread = ThreadPool(1)
        self.active = False
        """Whether there is any callback: without one nothing is derived."""

    def on(self, event: str, callback: Callback) -> None:
        """Have ``callback`` called at each ``event``.

        Raises:
            InvalidArgument: There is no such event, or the callback cannot be called.
        """
        if event not in get_args(EventName):
            raise InvalidArgument(f"no event {event!r}; there are {', '.join(get_args(EventName))}")
        if not callable(callback):
            raise InvalidArgument(f"the callback for {event!r} is not callable")
        self._callbacks[event].append(callback)
        self.active = True

    def emit(self, name: EventName, **about: Any) -> None:
        """Queue one event for its callbacks, if it has any."""
        if not self._callbacks.get(name):
            return
        if len(self._queue) >= _MOST:
            self._dropped += 1
            return
        self._queue.append(HookEvent(name, self._store.clock.now(), **about))
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._deliver(), name="durable hooks")

    def written(self, run: RunSummary, write: RunWrite) -> None:
        """A write was committed: tell what it contained."""
        for record in write.records:
            self._record(run, record)
        if write.change is not None:
            self._change(run, write.change)

    def step_started(self, run: RunSummary, key: str, attempt: int) -> None:
        self.emit("step_started", run_id=run.id, workflow=run.workflow, step=key, attempt=attempt)

    async def drained(self, within: float) -> None:
        """Wait for the callbacks of what has happened, at most ``within`` seconds; then they are left behind."""
        if self._running is not None:
            await asyncio.wait([self._running], timeout=within)
        if self._running is not None:
            self._running.cancel()
        self._thread.close()
        self._thread = ThreadPool(1)  # for an engine that is started again

    def _record(self, run: RunSummary, record: Record) -> None:
        name = _RECORD_EVENTS.get((record.kind, record.failed))
        if name is not None:
            step = record.key.partition("/")[0]
            self.emit(name, run_id=run.id, workflow=run.workflow, step=step, attempt=record.attempt)

    def _change(self, run: RunSummary, change: Change) -> None:
        name = _CHANGE_EVENTS.get(change.state)
        if change.drop_failed:
            name = "run_retried"
        if name is not None:
            self.emit(name, run_id=run.id, workflow=run.workflow, detail=change.reason or "")

    async def _deliver(self) -> None:
        try:
            while self._queue:
                event = self._queue.popleft()
                for callback in self._callbacks[event.name]:
                    await self._call(callback, event)
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    _log.warning("callbacks are too slow: %d events were dropped", dropped)
        finally:
            self._running = None

    async def _call(self, callback: Callback, event: HookEvent) -> None:
        try:
            if inspect.iscoroutinefunction(callback):
                await callback(event)
            else:
                answer = await self._thread.submit(callback, event)
                if inspect.isawaitable(answer):
                    await answer
        except Exception:
            _log.exception("a callback for %s raised", event.name)


_RECORD_EVENTS: dict[tuple[Kind, bool], EventName] = {
    (Kind.STEP, False): "step_completed",
    (Kind.STEP, True): "step_failed",
    (Kind.ATTEMPT, True): "step_retried",
    (Kind.UNDO, False): "step_compensated",
}

_CHANGE_EVENTS: dict[State, EventName] = {
    State.COMPLETED: "run_completed",
    State.FAILED: "run_failed",
    State.COMPENSATED: "run_compensated",
    State.CANCELLED: "run_cancelled",
    State.PAUSED: "run_paused",
}
