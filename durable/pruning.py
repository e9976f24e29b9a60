"""Deletes what ended long ago, in a task of its own beside a worker's other work: no claim waits for it.

It knows neither runs nor leases, only that the store prunes in bounded batches.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

from durable.cancelling import cancelled
from durable.errors import StoreUnavailable
from durable.hooks import Hooks
from durable.store import Store

_log = logging.getLogger("durable.pruning")

_BATCH = 500
"""Runs that one look deletes at most."""

_EVERY, _AGAIN = 60.0, 1.0
"""Seconds between two looks; seconds after a look that found a full batch."""


class Pruning:
    """The background pruning of one worker, on the running event loop.

    Args:
        store: Open and migrated.
        prune_after: Seconds after their end from which runs are deleted; None: never.
        hooks: Told of a failure that must not happen.
    """

    def __init__(self, store: Store, prune_after: float | None, hooks: Hooks) -> None:
        self._store = store
        self._prune_after = prune_after
        self._hooks = hooks
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look now, and from then on every minute."""
        if self._prune_after is not None:
            looking = self._look_for_ever(timedelta(seconds=self._prune_after))
            self._task = asyncio.get_running_loop().create_task(looking, name="durable pruning")

    def stop(self) -> None:
        """Send no further query. One that is under way is cancelled: what it would have deleted is found again."""
        if self._task is not None:
            self._task.cancel()

    async def stopped(self, within: float) -> None:
        """Return when nothing is under way any more, or after ``within`` seconds: a server may not answer."""
        await cancelled(self._task, within=within)

    async def _look_for_ever(self, age: timedelta) -> None:
        while True:
            pause = _EVERY
            try:
                if await self._store.prune(self._store.clock.now() - age, _BATCH) >= _BATCH:
                    pause = _AGAIN
            except StoreUnavailable as error:
                _log.warning("cannot prune, and will try again in %g s: %s", pause, error)
            except Exception:
                _log.exception("pruning failed in a way that it must not")
                self._hooks.emit("error", detail="pruning failed")
            await asyncio.sleep(pause)
