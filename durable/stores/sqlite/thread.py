"""The thread that owns the store's connection: the event loop hands it calls and awaits their results.

A daemon, because no commit may keep a process alive that wants to end: what was not answered was not promised.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class StoreThread:
    """Runs calls one after the other, in the order of ``call``.

    Args:
        every: Seconds between two calls of the look-out, at least.
    """

    def __init__(self, name: str, every: float) -> None:
        self._every = every
        self._look_out: Callable[[], None] | None = None
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    @property
    def has_calls(self) -> bool:
        """Whether calls are waiting."""
        return not self._calls.empty()

    def call(self, fn: Callable[[], T], then: Callable[[], None] | None = None) -> asyncio.Future[T]:
        """Call ``fn`` in the thread, and after its result is on the way, ``then``.

        Cancelling the future does not stop the call: its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result, error = fn(), None
            except BaseException as raised:
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop was closed: nobody waits any more
                return
            if then is not None:
                then()

        self._calls.put(run)
        return future

    def look_out(self, fn: Callable[[], None] | None) -> None:
        """Have ``fn`` called every few milliseconds between calls; None ends that."""
        self._look_out = fn
        self._calls.put(_nothing)  # it may be waiting without an end

    def leave(self, last: Callable[[], None]) -> None:
        """As ``stop``, but nobody waits for what the thread is doing."""
        self.call(last)
        self._calls.put(None)

    async def stop(self, last: Callable[[], None]) -> None:
        """Call ``last`` after everything that was handed in, then end; also when the caller is cancelled."""
        ended = self.call(last)
        self._calls.put(None)
        await ended
        self._thread.join()

    def _serve(self) -> None:
        looked = 0.0
        while True:
            look_out = self._look_out
            try:
                call = self._calls.get(timeout=None if look_out is None else self._every)
            except Empty:
                call = _nothing
            if call is None:
                return
            call()
            del call
            if look_out is not None and time.monotonic() - looked >= self._every:
                look_out()
                looked = time.monotonic()


def _nothing() -> None:
    """What wakes the thread."""


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
