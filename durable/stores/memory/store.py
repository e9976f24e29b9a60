"""The store in this process's memory: for tests, and for trying things out.

It keeps the whole protocol (leases, fence, claim numbers, batches, the wake counter), so that what a test
sees is what Postgres does. It knows nothing of the engine. Its data lives as long as the object: closing it
and opening it again, or sharing it between engines, is how a test plays a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Protocol, runtime_checkable

from durable.errors import ConfigurationError
from durable.model import Outcome, RunWrite
from durable.store import Clock, Hint, OnConnection
from durable.stores.memory.commits import Commits
from durable.stores.memory.oversight import Oversight
from durable.stores.memory.reading import Reading
from durable.stores.memory.requesting import Requesting
from durable.stores.memory.schedules import Schedules


@runtime_checkable
class MovedByHand(Protocol):
    """A clock that a test moves; it says so before time passes."""

    def listen(self, listener: Callable[[timedelta], None]) -> None: ...


class MemoryStore(Oversight, Commits, Schedules, Requesting, Reading):
    """All runs in dictionaries. Engines may share it, also from several event loops and threads.

    Args:
        clock: Whose time counts; the host's by default. With a `VirtualClock` the leases of live workers are
            extended before time passes, so that moving the clock kills nobody: see ``expire``.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._subscribers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Hint], None]]] = {}
        if isinstance(self._clock, MovedByHand):
            self._clock.listen(self._extend_leases)

    def __repr__(self) -> str:
        return f"<MemoryStore runs={len(self._rows)} workers={len(self._workers)}>"

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def url(self) -> str:
        return "memory://"

    def twin(self) -> MemoryStore:
        return self  # it may be shared by event loops

    # -- life: there is nothing to connect to, and the data outlives every user of the object --------

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def schema_version(self) -> int:
        return self.latest_version

    @property
    def latest_version(self) -> int:
        return 1

    async def migrate(self) -> None:
        return

    def migration_script(self, present: int) -> str:  # noqa: ARG002  (the seam's signature)
        return ""

    # -- a connection, which memory has not --------------------------------------------------------

    async def transact(
        self,
        worker: str,  # noqa: ARG002  (the seam's signature)
        work: Callable[[Any], Any],  # noqa: ARG002
        on_loop: bool,  # noqa: ARG002
        write: Callable[[Any], Awaitable[RunWrite]],  # noqa: ARG002
    ) -> Outcome:
        raise ConfigurationError("the memory store has no connection: ctx.transaction needs Postgres or SQLite")

    @property
    def on_connection(self) -> OnConnection | None:
        return None

    # -- hints ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        token = object()
        with self._lock:
            self._subscribers[token] = (asyncio.get_running_loop(), callback)

        def end() -> None:
            with self._lock:
                self._subscribers.pop(token, None)

        return end

    def announce(self, hint: Hint) -> None:
        with self._lock:
            subscribers = list(self._subscribers.items())
        for token, (loop, callback) in subscribers:
            try:
                loop.call_soon_threadsafe(callback, hint)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                with self._lock:  # its engine ended without a farewell, as a killed process does
                    self._subscribers.pop(token, None)
