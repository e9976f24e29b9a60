"""Ends the transactions that keep a dead worker's row locked.

A client that is stopped between two messages of a transaction, or whose machine is gone, leaves a backend that
waits for the rest of it and holds the fence; nothing of that worker could be reaped. It is found by waiting for
the row and asking the server who is in the way: stored process ids would be wrong behind a pooler.
"""

from __future__ import annotations

import asyncio
import logging

import anyio
import psycopg

from durable.stores.postgres.connections import query
from durable.stores.postgres.failures import translated
from durable.stores.postgres.sessions import Sessions

_log = logging.getLogger("durable.stores.postgres")

STUCK_AFTER = 1.0
"""Seconds after its expiry, and of waiting for it, from which a locked row's holders are ended."""


async def end_blockers(sessions: Sessions) -> None:
    """Wait for the expired workers' rows; end the backends that are in the way for a second.

    Raises:
        StoreUnavailable: The server stopped answering.
    """
    with anyio.CancelScope(shield=True):
        try:
            async with sessions.connection() as waiting, sessions.connection() as other:
                await _end_blockers(sessions, waiting, other)
        except (psycopg.Error, OSError) as error:
            raise translated(error, "reap") from None


async def _end_blockers(sessions: Sessions, waiting: psycopg.AsyncConnection, other: psycopg.AsyncConnection) -> None:
    async with waiting.transaction(force_rollback=True):
        cursor = await waiting.execute("SELECT pg_backend_pid()")
        row = await cursor.fetchone()
        assert row is not None
        statement = sessions.call("lock_expired").sql
        locking = asyncio.ensure_future(waiting.execute(query(statement)))
        await asyncio.wait([locking], timeout=STUCK_AFTER)
        if not locking.done():
            blockers = sessions.call("end_blockers", str(row[0]))
            ended = await (await other.execute(query(blockers.sql), blockers.parameters)).fetchall()
            for pid, _ in ended:
                _log.warning("ended backend %s: its transaction held the row of a worker whose lease has expired", pid)
        await locking
