"""Tasks that nobody awaits, and tasks that have to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any

from durable.steps import log_abandoned

_background: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references


def in_background(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], failed: Callable[[BaseException], None]
) -> asyncio.Task[None]:
    """A task for ``coroutine``; ``failed`` is told of an exception that leaves it."""

    def ended(task: asyncio.Task[None]) -> None:
        _background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            failed(error)

    task = loop.create_task(coroutine)
    _background.add(task)
    task.add_done_callback(ended)
    return task


async def unwound(tasks: Iterable[asyncio.Task[Any]], within: float, what: str) -> bool:
    """Cancel the tasks, except the present one, and wait ``within`` seconds; what refuses to end is abandoned.

    Returns:
        False when all had ended already.
    """
    mine = asyncio.current_task()
    alive = [task for task in tasks if task is not mine and not task.done()]
    for task in alive:
        task.cancel()
    if alive:
        ended, refusing = await asyncio.wait(alive, timeout=within)
        for task in ended:
            if task.cancelled():
                with suppress(asyncio.CancelledError):
                    task.result()  # which hands over the exception: its frames refer to the task that keeps it
        for task in refusing:
            log_abandoned(task, what)
    return bool(alive)
