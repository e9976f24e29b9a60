"""Parked runs whose coroutines a worker still has in memory: for the linger, then they are unwound."""

from __future__ import annotations

import asyncio

from durable.execution import Execution
from durable.steps import UNWIND

_MOST = 500
"""Executions, of about 10 kB each, that are kept at most: every claim names all of them."""


class Warm:
    """The parked executions of one worker.

    Args:
        linger: Seconds for which one is kept.
    """

    def __init__(self, linger: float) -> None:
        self._linger = linger
        self._kept: dict[str, tuple[Execution, asyncio.TimerHandle]] = {}
        self._evictions: set[asyncio.Task[None]] = set()

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._kept

    def claims(self) -> dict[str, int]:
        """Run id → the claim number that is known here."""
        return {run_id: execution.ref.claim for run_id, (execution, _) in self._kept.items()}

    def keep(self, run_id: str, execution: Execution) -> None:
        """Until its linger ends, or until it is the oldest of too many."""
        if len(self._kept) >= _MOST:
            oldest, (its_execution, _) = next(iter(self._kept.items()))
            self.evict(oldest, its_execution)
        timer = asyncio.get_running_loop().call_later(self._linger, self.evict, run_id, execution)
        self._kept[run_id] = execution, timer

    def take(self, run_id: str) -> Execution | None:
        """The execution, to go on or to be lost."""
        execution, timer = self._kept.pop(run_id, (None, None))
        if timer is not None:
            timer.cancel()
        return execution

    def forget(self, run_id: str, execution: Execution) -> None:
        """Nothing of it is left."""
        if run_id in self._kept and self._kept[run_id][0] is execution:
            self.take(run_id)

    def evict(self, run_id: str, execution: Execution, within: float = UNWIND) -> None:
        """From now on a claim of the run starts a new execution: this one is unwound, and could not go on."""
        self.forget(run_id, execution)
        task = asyncio.get_running_loop().create_task(execution.evict(within))
        self._evictions.add(task)
        task.add_done_callback(self._evictions.discard)

    async def evicted(self, within: float) -> None:
        """Evict all, and wait for it, at most so many seconds."""
        for run_id, (execution, _) in list(self._kept.items()):
            self.evict(run_id, execution, within)
        if self._evictions:
            await asyncio.wait(self._evictions, timeout=within)

    def lose(self) -> None:
        """Their lease is lost."""
        kept = list(self._kept)
        for execution in [self.take(run_id) for run_id in kept]:
            if execution is not None:
                execution.lose()
