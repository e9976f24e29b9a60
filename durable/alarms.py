"""What calls one execution later: the run's own deadline, and second looks. Its end silences all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from durable import failures
from durable.model import Record, Run, Verb
from durable.store import Clock


class Alarms:
    """The alarms of one execution.

    Args:
        clock: The store's clock, which the deadline is on.
        loop: The event loop.
    """

    def __init__(self, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        self._clock = clock
        self._loop = loop
        self._later: list[asyncio.TimerHandle] = []
        self._disarm: Callable[[], None] | None = None
        self.deadline: datetime | None = None
        """When the run has to have ended."""

    def set_deadline(self, run: Run, requests: Sequence[Record], timeout: float) -> None:
        """``timeout`` seconds after the first start; or after the latest retry by an operator, or what timed out would
        at once time out again."""
        retried = (r.at for r in requests if failures.request_from_json(r.data or "").verb is Verb.RETRY)
        started = max(retried, default=run.started_at or run.created_at)
        self.deadline = started + timedelta(seconds=timeout)

    def arm(self, passed: Callable[[], None]) -> None:
        """Call ``passed`` once the deadline has passed, at once if it has."""
        self.disarm()
        if self.deadline is None:
            return
        if self.deadline <= self._clock.now():
            passed()
        else:
            self._disarm = self._clock.call_at(self.deadline, lambda: self.arm(passed))

    def disarm(self) -> None:
        """The deadline does not matter any more."""
        if self._disarm is not None:
            self._disarm()
            self._disarm = None

    def after(self, delay: float, callback: Callable[..., None], *args: Any) -> None:
        """Call ``callback`` in ``delay`` seconds."""
        self._later = [timer for timer in self._later if timer.when() > self._loop.time()]
        self._later.append(self._loop.call_later(delay, callback, *args))

    def silence(self) -> None:
        """Nothing is called any more."""
        self.disarm()
        for timer in self._later:
            timer.cancel()
