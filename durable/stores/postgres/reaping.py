"""Ends the transactions that keep a dead worker's row locked, and others whose end has to be awaited.

A client that is stopped between two messages of a transaction, or whose machine is gone, leaves a backend that
waits for the rest of it and holds the fence; nothing of that worker could be reaped. It is found by waiting for
the row and asking the server who is in the way: stored process ids would be wrong behind a pooler.
"""

from __future__ import annotations

import asyncio
import logging

import psycopg

from durable.stores.postgres.connections import Async, shielded
from durable.stores.postgres.failures import translated
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call

_log = logging.getLogger("durable.stores.postgres")

STUCK_AFTER = 1.0
"""Seconds after its expiry, and of waiting for it, from which a locked row's holders are ended."""


class Blockers:
    """One search at a time, on connections of its own: those of the pool may all be waiting for the same rows."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._one_at_a_time = asyncio.Lock()

    async def end(self) -> None:
        """Wait for the expired workers' rows; end the backends that have been in the way for a second.

        Raises:
            StoreUnavailable: The server stopped answering.
        """
        await self.wait(self._sessions.call("lock_expired"), "it held the row of a worker whose lease has expired")

    async def wait(self, locking: Call, why: str) -> None:
        """Wait for what ``locking`` locks, and give it back; end the backends that have been in the way for a second.

        Raises:
            StoreUnavailable: The server stopped answering.
        """
        async with self._one_at_a_time:
            try:
                await shielded(self._search(locking, why))
            except (psycopg.Error, OSError) as error:
                raise translated(error, "reap") from None

    async def _search(self, locking: Call, why: str) -> None:
        server = self._sessions.server
        async with await server.connect() as waiting, await server.connect() as other:
            await self._end(waiting, other, locking, why)

    async def _end(self, waiting: Async, other: Async, locking: Call, why: str) -> None:
        async with waiting.transaction(force_rollback=True):
            row = await (await waiting.execute("SELECT pg_backend_pid()")).fetchone()
            assert row is not None
            locked = asyncio.ensure_future(waiting.execute(locking.sql, locking.parameters or None))
            await asyncio.wait([locked], timeout=STUCK_AFTER)
            if not locked.done():
                blockers = self._sessions.call("end_blockers", str(row[0]))
                for pid, _ in await (await other.execute(blockers.sql, blockers.parameters)).fetchall():
                    _log.warning("ended backend %s: %s", pid, why)
            await locked
