"""Ends tasks that run for ever beside the work. It knows nothing of what they do."""

from __future__ import annotations

import asyncio
import time

_AGAIN = 0.2
"""Seconds after which a task is cancelled again: enough to take back a query that is under way."""


async def cancelled(*tasks: asyncio.Task[None] | None, within: float = float("inf")) -> None:
    """Return when the tasks have ended, or after ``within`` seconds: a server may not answer.

    Cancelling once is not enough: up to Python 3.11 ``asyncio.wait_for``, by which tasks wait for a connection of a
    pool, swallows a cancellation that comes together with what it waits for. Such a task would go on for ever.
    """
    deadline = time.monotonic() + within
    alive = {task for task in tasks if task is not None and not task.done()}
    while alive and (left := deadline - time.monotonic()) > 0:
        for task in alive:
            task.cancel()
        _, alive = await asyncio.wait(alive, timeout=min(left, _AGAIN))
