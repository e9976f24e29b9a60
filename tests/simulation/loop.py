"""The event loop of one simulated process: it never waits, and runs when the world lets it.

Callbacks of one loop run in the order in which they were asked for, as in asyncio; what a seed decides is how the
loops of several processes, and the messages between them and the store, come in between each other.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVarTuple

Ts = TypeVarTuple("Ts")

_serial = count()


class _Future(asyncio.Future[Any]):
    """Hashed by its number: an object's address would decide the order of sets, and with it what happens."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._number = next(_serial)

    def __hash__(self) -> int:
        return self._number


class _Task(asyncio.Task[Any]):
    """As ``_Future``."""

    def __init__(self, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = next(_serial)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class ProcessLoop(asyncio.AbstractEventLoop):
    """One process's event loop.

    Args:
        now: The world's time in seconds.
        failed: Told of an exception that nobody catches.
        aside: Calls something after some seconds in another thread of the process.
    """

    def __init__(
        self,
        now: Callable[[], float],
        failed: Callable[[dict[str, Any]], None],
        aside: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._now = now
        self._failed = failed
        self.aside = aside
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = count()
        self.tasks: list[_Task] = []

    # -- the world's side -------------------------------------------------------------------------

    def wants(self) -> float | None:
        """When it can go on: 0.0 at once; None: only something from outside can move it."""
        if self._ready:
            return 0.0
        while self._timers and self._timers[0][2].cancelled():
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def turn(self, most: int | None = None) -> None:
        """One pass, as asyncio makes it: the timers that are due, then what was ready when the pass began.

        Args:
            most: Stop after so many callbacks: in the midst of a pass, as a kill does.
        """
        while self._timers and (self._timers[0][0] <= self._now() or self._timers[0][2].cancelled()):
            self._ready.append(heappop(self._timers)[2])
        before = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            for _ in range(len(self._ready) if most is None else min(most, len(self._ready))):
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            asyncio._set_running_loop(before)

    def dispose(self) -> None:
        """Let every task end, so that none is found unfinished by the garbage collector at some other time."""
        for _ in range(20):
            left = [task for task in self.tasks if not task.done()]
            if not left:
                break
            for task in left:
                task.cancel()
            for _ in range(20):
                self.turn()
        for task in self.tasks:
            if task.done() and not task.cancelled():
                task.exception()  # it was of no concern to the process any more
        self._ready.clear()
        self._timers.clear()
        self.tasks.clear()

    # -- asyncio's side ---------------------------------------------------------------------------

    def time(self) -> float:
        return self._now()

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # there is one thread

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heappush(self._timers, (when, next(self._order), handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> asyncio.Task[Any]:
        task = _Task(coro, loop=self, name=name or "task", context=context)
        if len(self.tasks) > 200:
            self.tasks = [one for one in self.tasks if not one.done()]
        self.tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failed(context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio's timers tell their loop; here they are dropped when they come up."""
