"""Waits for the end of runs: one look at the store for all that are awaited, when something is said to have ended.

A hint brings the look forward; without hints it happens at growing intervals, since hints can be lost. An end that this
process has committed itself is known without a look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NamedTuple

from durable.cancelling import cancelled
from durable.errors import ConfigurationError, StoreUnavailable
from durable.model import State
from durable.store import Hint, Store

_log = logging.getLogger("durable.results")

_LOOK_FIRST, _LOOK_MAX = 0.05, 1.0  # seconds between two looks without a hint; doubling


class End(NamedTuple):
    """How a run has ended."""

    state: State
    result: str | None  # JSON
    error: str | None  # JSON


class Results:
    """The awaited runs of one engine.

    Args:
        store: Open, as long as somebody waits.
        held: Whether the worker of this engine executes a run: then its end will be told, and the first look at the
            store, which finds nothing, is left to the interval.
    """

    def __init__(self, store: Store, held: Callable[[str], bool]) -> None:
        self._store = store
        self._held = held
        self._awaited: dict[str, list[asyncio.Future[End]]] = {}
        self._ended_here: list[str] = []
        self._hint = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def start(self) -> None:
        self._unsubscribe = self._store.subscribe(self._on_hint)

    async def stop(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
        await cancelled(self._task)
        for futures in self._awaited.values():
            for future in futures:
                if not future.done():
                    future.set_exception(ConfigurationError("the engine was stopped; the run is not touched by that"))
        self._awaited.clear()

    def ended(self, run_id: str, end: End | None = None) -> None:
        """This process has committed the run's end; without ``end`` the store has to be asked for it."""
        if run_id not in self._awaited:
            return
        if end is not None:
            self._tell(run_id, end)
        else:
            self._ended_here.append(run_id)
            self._hint.set()

    async def wait(self, run_id: str) -> End:
        """How the run has ended, once it is terminal. Cancelling the wait does nothing to the run."""
        future: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(run_id, []).append(future)
        if not self._held(run_id):
            self._hint.set()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._look(), name="durable results")
        try:
            return await future
        finally:
            waiting = self._awaited.get(run_id, [])
            if future in waiting:
                waiting.remove(future)
                if not waiting:
                    del self._awaited[run_id]

    def _on_hint(self, hint: Hint) -> None:
        if Hint.ENDED in hint and self._awaited:
            self._hint.set()

    def _tell(self, run_id: str, end: End) -> None:
        for future in self._awaited.pop(run_id, []):
            if not future.done():
                future.set_result(end)

    async def _look(self) -> None:
        interval = _LOOK_FIRST
        while self._awaited:
            try:
                async with asyncio.timeout(interval):
                    await self._hint.wait()
                interval = _LOOK_FIRST
            except TimeoutError:
                interval = min(interval * 2, _LOOK_MAX)
            self._hint.clear()
            here, self._ended_here = self._ended_here, []
            if not self._awaited:
                return
            try:
                for run in await self._store.ended(here or list(self._awaited)):
                    self._tell(run.id, End(run.state, run.result, run.error))
            except StoreUnavailable as error:
                _log.warning("cannot look for results: %s", error)
