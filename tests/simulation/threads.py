"""The threads of synchronous steps without threads: the world lets them end, also while the event loop is blocked."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from durable.threads import ThreadPool, _resolve

if TYPE_CHECKING:
    from tests.simulation.loop import ProcessLoop


class Takes:
    """What a synchronous function returns here: its result, or its error, and how long the thread is busy with it.

    A thread cannot be stopped, and what it was asked to do is done at the moment in which it begins.
    """

    def __init__(self, seconds: float, value: Any = None, error: Exception | None = None) -> None:
        self.seconds, self.value, self.error = seconds, value, error


class ThreadsOnLoop(ThreadPool):
    """As ``ThreadPool``, with as many threads as are wanted; when a call ends is taken from there."""

    def submit(self, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        loop = cast("ProcessLoop", asyncio.get_running_loop())
        future = loop.create_future()
        taken: Takes = contextvars.copy_context().run(fn, *args)

        def ended() -> None:
            loop.call_soon(_resolve, future, taken.value, taken.error)

        loop.aside(taken.seconds, ended)
        return future

    def close(self) -> None:
        """There is none."""
