"""When may the next result be delivered, the next operation start, the run be parked? After it has come to rest.

A pulse counts the passes of the event loop in which a run does nothing, hands out the turns that the replay core
grants, and keeps the run's timers. What rest means for the run, the execution decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime

from durable.inbox import Inbox
from durable.model import Kind
from durable.replay import SETTLE, Operation, Replay
from durable.store import Clock


class Pulse:
    """The passes, turns and timers of one execution.

    Args:
        core: The replay core, which knows what may happen after how many idle passes.
        clock: The store's clock.
        loop: The event loop.
        rested: Called when nothing moves by itself any more.
        inbox: What came from outside, and who waits for it.
    """

    def __init__(
        self, core: Replay, clock: Clock, loop: asyncio.AbstractEventLoop, rested: Callable[[], None], inbox: Inbox
    ) -> None:
        self._core = core
        self._clock = clock
        self._loop = loop
        self._rested = rested
        self._idle = 0
        self._disarm: Callable[[], None] | None = None
        self.ticking = False
        self.frozen = False
        """The run is parked: turns and timers stand still until it is claimed again."""
        self.activity = 0
        """Changes with everything that happens: equal values mean that nothing did."""
        self.timers: dict[str, tuple[datetime, Operation]] = {}
        self.inbox = inbox

    def touch(self) -> None:
        """Something happened: count idle passes from here."""
        self._idle = 0
        self.activity += 1
        if not self.ticking and not self.frozen:
            self.ticking = True
            self._loop.call_soon(self._tick)

    async def turn(self, op: Operation) -> None:
        """Return when the core names ``op``."""
        op.future = self._loop.create_future()
        self.touch()
        await op.future

    async def until(self, op: Operation, due_at: datetime | None, registered: Callable[[], None]) -> None:
        """Return at ``due_at``; a sleep or a wait in its turn. ``registered`` is called once the timer is known."""
        op.future = self._loop.create_future()
        if due_at is not None:
            self.timers[op.key] = (due_at, op)
        registered()
        try:
            await op.future
        finally:
            self.timers.pop(op.key, None)

    def freeze(self) -> None:
        """Stand still: the run is parked, or ends here."""
        self.frozen = True
        self.disarm()

    def thaw(self) -> None:
        """Go on after ``freeze``, with the timers that have become due meanwhile."""
        self.frozen = False
        self.fire()

    def arm(self) -> None:
        """Have the earliest timer fire in this process."""
        self.disarm()
        if self.timers:
            self._disarm = self._clock.call_at(min(due for due, _ in self.timers.values()), self.fire)

    def disarm(self) -> None:
        if self._disarm is not None:
            self._disarm()
            self._disarm = None

    @property
    def due(self) -> bool:
        """Some timer's time has come."""
        now = self._clock.now()
        return any(due_at <= now for due_at, _ in self.timers.values())

    def fire(self) -> None:
        """What is due goes on, in the order in which it became due."""
        self._disarm = None
        if self.frozen:
            return
        now = self._clock.now()
        for due_at, op in sorted(self.timers.values(), key=lambda timer: timer[0]):
            if due_at > now:
                break
            del self.timers[op.key]
            if op.kind in (Kind.SLEEP, Kind.WAIT):
                self.inbox.forget(op.key)
                self._core.offer(op)
            else:
                _go(op)
        self.touch()

    def _tick(self) -> None:
        """One pass of the loop in which the run did nothing."""
        if self.frozen:
            self.ticking = False
            return
        self._idle += 1
        if (op := self._core.next_delivery(self._idle)) is not None:
            self._idle = 0
            _go(op)
        else:
            for op in self._core.startable(self._idle):
                self._idle = 0
                _go(op)
        if self._core.unsettled or self._idle < SETTLE:
            self._loop.call_soon(self._tick)
        else:
            self.ticking = False
            self._rested()


def _go(op: Operation) -> None:
    if op.future is not None and not op.future.done():
        op.future.set_result(None)
