"""Runs synchronous step functions in threads.

Own threads, because neither anyio's nor concurrent.futures' are daemons: a worker that was told to stop would
wait at exit for a step that never ends (P03).
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class ThreadPool:
    """At most ``limit`` daemon threads, started when needed and kept.

    Args:
        limit: Threads; further calls wait for a free one.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._idle = threading.Semaphore(0)

    def submit(self, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        """Call ``fn(*args)`` in a thread, in a copy of the caller's context.

        Cancelling the future does not stop the thread: its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()

        def call() -> None:
            try:
                result, error = context.run(fn, *args), None
            except BaseException as raised:
                result, error = None, raised
            try:
                loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:  # the loop was closed: nobody waits any more
                return

        self._calls.put(call)
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"durable-step-{self._threads}", daemon=True).start()
        return future

    def close(self) -> None:
        """Let idle threads end; a thread in a call ends after it."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            if call is None:
                return
            call()
            del call
            self._idle.release()


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(error, StopIteration):  # a Future refuses it
        error = RuntimeError("the function raised StopIteration")
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
