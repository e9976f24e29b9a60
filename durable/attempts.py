"""The attempts of one operation: when one may start, when another follows, how long it waits.

It calls user functions through ``steps`` and reports what came of it; results are recorded by ``execution``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from random import random
from typing import Any

from durable import failures
from durable.committer import Pending
from durable.host import Host
from durable.meter import Meter
from durable.model import Failure, Record, RunSummary
from durable.replay import Operation, Replay
from durable.steps import Call, CurrentStep, called, failure_of, running
from durable.waits import base_name


class Attempt(CurrentStep):
    """One call of an operation's function, as the function sees it, and what has come of it."""

    __slots__ = ("duration", "error", "value")

    duration: float  # seconds
    error: Exception | None
    value: Any


class Attempts:
    """Starts the attempts of one execution, one gate for all.

    Args:
        run: The run.
        core: Knows the attempts that were made before.
        host: The worker: its lease, its threads.
        until: Waits for a time, parked if it is long.
        write: Gathers a record for the next flush.
        timers: What waits for a time.
        touch: Says that something happened.
    """

    def __init__(
        self,
        run: RunSummary,
        core: Replay,
        host: Host,
        until: Callable[[Operation, datetime], Awaitable[None]],
        write: Callable[[Record], None],
        timers: Mapping[str, object],
        touch: Callable[[], None],
    ) -> None:
        self._run = run
        self._core = core
        self._host = host
        self._until = until
        self._write = write
        self._timers = timers
        self._touch = touch
        self._resumed: asyncio.Event | None = None
        self.busy = 0
        """Operations that execute, or are about to."""
        self.closed = False
        """No further attempt starts here: the worker drains, or the run is being paused."""
        self.parked = False
        self.last: Pending | None = None
        """The latest write. Nothing with an effect starts before what was written when it was called is committed."""

    async def run(self, op: Operation, call: Call) -> Attempt:
        """Call until an attempt succeeds or is the last: the one that decided."""
        number = 1
        if self._core.resumed and (earlier := self._core.attempts(op.key)):
            number += len(earlier)
            if (due_at := earlier[-1].due_at) is not None:
                await self._until(op, due_at)
        attempt: Attempt | None = None
        failure: Exception | None = None
        before = self.last
        self.busy += 1
        try:
            while True:
                while (gate := self._gate(started := time.monotonic(), before, op, call)) is not None:
                    await gate
                host, attempt = self._host, Attempt(self._run.id, op.key, number, call.shared)
                if host.hooks.active:
                    host.hooks.step_started(self._run, op.key, number)
                token = running.set(attempt)
                try:
                    attempt.value = await called(call, attempt, host.threads)
                    attempt.error = None
                except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
                    attempt.error = failure_of(error, attempt)
                finally:
                    running.reset(token)
                attempt.duration = time.monotonic() - started
                if host.meter is not None:
                    self._measure(host.meter, op.key, attempt.duration, failed=attempt.error is not None)
                if (failure := attempt.error) is None or call.retry is None:
                    return attempt
                if not call.retry.wants_retry(failure, number):
                    return attempt
                delay = call.retry.delay_after(failure, number, random())
                due_at = self.failed(op, host.capture(failure), number, attempt.duration, delay)
                self.busy -= 1
                try:
                    await self._until(op, due_at)
                finally:
                    self.busy += 1
                number, before = number + 1, self.last
        finally:
            attempt = failure = None  # the failure's traceback refers to this frame: neither should keep the other
            self.busy -= 1
            if self.closed or self._timers:  # else nothing waits for this one to end
                self._touch()

    def _measure(self, meter: Meter, key: str, duration: float, *, failed: bool) -> None:
        step = key.removesuffix("/undo")
        meter.step(self._run.workflow, base_name(step) + key[len(step) :], duration, failed)

    def failed(self, op: Operation, failure: Failure, number: int, duration: float, delay: float) -> datetime:
        """Record a failed attempt that another one may follow after ``delay`` seconds; returns when."""
        now = self._host.clock.now()
        due_at = now + timedelta(seconds=delay)
        self._write(self._core.failed_attempt(op, now, failures.to_json(failure), number, duration, due_at))
        return due_at

    def resume(self) -> None:
        """The run is not parked any more."""
        self.parked = False
        if self._resumed is not None:
            self._resumed.set()

    def reopen(self) -> None:
        """Attempts may start again after all."""
        self.closed = False
        if self._resumed is not None:
            self._resumed.set()

    async def resumed(self) -> None:
        """Return when the run is claimed again, or may start attempts again."""
        self._resumed = self._resumed or asyncio.Event()
        self._resumed.clear()
        await self._resumed.wait()

    def _gate(self, now: float, before: Pending | None, op: Operation, call: Call) -> Awaitable[None] | None:
        """What an attempt has to wait for: all before it is committed, the lease holds, nobody drains.

        And an earlier attempt's thread, which may outlast the lease: what follows its end asks for all that again.

        Before it is what was written when it was called. What others that stand beside it have written since cannot
        have led to it; waiting for that too, 500 quick steps side by side made 500 commits, each waking all the others.
        """
        if before is not None and not before.done:
            return before.committed()
        if self.parked:
            return self.resumed()
        if self.closed:
            return self._reopened()
        if now >= self._host.deadline:
            return self._host.renewed()
        if not call.on_loop:
            key = CurrentStep(self._run.id, op.key, 0, call.shared).idempotency_key
            if self._host.threads.runs(key):
                return self._host.threads.ended(key)
        return None

    async def _reopened(self) -> None:
        """Return when attempts may start again; what is held back meanwhile keeps nobody from leaving."""
        self.busy -= 1
        try:
            self._touch()
            await self.resumed()
        finally:
            self.busy += 1
