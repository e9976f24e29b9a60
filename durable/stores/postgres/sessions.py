"""All connections of one open store, by what they are for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import psycopg
from psycopg import AsyncRawCursor
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from durable.stores.postgres.connections import REPEATS, Async, Lane, Server, patience, set_up, shielded
from durable.stores.postgres.failures import repeatable, spoilt, translated
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.wire import NEVER, Call, Row, exchange

T = TypeVar("T")

SHARD = "0"
"""Of every row: a single Postgres has one."""

_NEVER_PREPARED = frozenset(
    {
        *("list_runs", "ended_before", "set_aside", "delete_runs", "match_events", "forget_events", "forget_signals"),
        *("forget_keys", "forget_merged", "found_schedules", "list_schedules", "ticks"),
        *("workers", "census", "stranded_runs", "expired_leases", "free_stranded"),
    }
)
"""Rare statements without a shape that has one plan: on small tables a scan is theirs, and a prepared one would keep it
while the tables grow."""
FLUSHES = ("flush", "flush2")
"""Lanes of ``commit``: as many as a worker's committer has flushes in flight."""
_RECONNECT = 3.0
"""Seconds for which the pool by itself tries to connect again, with pauses that double: after two minutes of outage
it would pause for another one. When it has given up, the next use starts anew."""
_POOL_TIMEOUT = 10.0  # seconds to wait for a connection of the pool


class Sessions:
    """A few lanes and a small pool.

    Attributes:
        flushes: Carry ``commit``, each under the fence of the workers' rows of its name.
        claim: Carries ``claim``, under the fence of their claim rows.
        create: Carries triggers, which have no fence and may wait for a key of somebody else.
    """

    def __init__(self, server: Server, pool_size: int, statements: Mapping[str, bytes]) -> None:
        self.flushes = {name: Lane(server, "commit") for name in FLUSHES}
        self.claim = Lane(server, "claim")
        self.create = Lane(server, "create_runs")
        self.server = server
        self._statements = statements
        self._pool: AsyncConnectionPool[Async] = AsyncConnectionPool(
            server.conninfo,
            min_size=1,
            max_size=pool_size,
            open=False,
            timeout=_POOL_TIMEOUT,
            reconnect_timeout=_RECONNECT,
            configure=set_up,
            name="durable",
            kwargs={
                "autocommit": True,
                "prepare_threshold": server.prepare_threshold,
                "cursor_factory": AsyncRawCursor,
            },
        )

    def call(self, name: str, *parameters: Parameter) -> Call:
        """The named statement with its parameters."""
        return Call(self._statements[name], parameters, name not in _NEVER_PREPARED)

    async def open(self) -> None:
        await self.flushes[FLUSHES[0]].open()  # alone and first: its message says why the server cannot be reached
        await self._pool.open()

    async def close(self) -> None:
        for lane in (*self.flushes.values(), self.claim, self.create):
            await lane.close()
        await self._pool.close()

    def idle_flush(self) -> tuple[str, Lane]:
        """The first lane that nothing is sent in, or else the first; and its name."""
        name = next((name for name, lane in self.flushes.items() if not lane.busy), FLUSHES[0])
        return name, self.flushes[name]

    async def on_connection(self, use: Callable[[Async], Awaitable[T]]) -> T:
        """``use`` a connection of its own, which is closed afterwards: its transaction may take long."""

        async def alone() -> T:
            async with await self.server.connect() as connection:
                return await use(connection)

        try:
            return await shielded(alone())
        except (psycopg.Error, OSError) as error:
            raise translated(error, "schema") from None

    async def read(self, name: str, *parameters: Parameter) -> list[Row]:
        """The rows of one named statement that only reads."""
        call = self.call(name, *parameters)

        async def ask(connection: Async) -> list[Row]:
            with patience(connection):
                cursor = await connection.execute(call.sql, call.parameters, prepare=None if call.prepare else False)
                return await cursor.fetchall()

        return await self._repeated(name, ask)

    async def write(self, name: str, *calls: Call) -> list[list[Row]]:
        """The rows of each call, all in one transaction. For rare operations: nothing hot waits behind them."""

        async def send(connection: Async) -> list[list[Row]]:
            with patience(connection):
                return await exchange(connection, calls, NEVER)

        return await self._repeated(name, send)

    async def _repeated(self, name: str, use: Callable[[Async], Awaitable[T]]) -> T:
        """``use`` one of the pool's connections, again after a lost conflict, and once after finding one broken.

        A restart of the server breaks all of them, and checking each before its use would double the round trips.
        One whose prepared statements are spoilt is replaced; the next may be as old.
        """
        checked = False
        for repeats_left in reversed(range(REPEATS)):
            try:
                return await shielded(self._with_pool(use))
            except Exception as error:
                if repeats_left and not checked and _broken(error):
                    checked = True
                    await self._replace_broken(name)
                elif not (repeats_left and (repeatable(error) or spoilt(error))):
                    raise translated(error, name) from None
        raise AssertionError("the last repetition raises")

    async def _replace_broken(self, name: str) -> None:
        try:
            await shielded(self._pool.check())
        except psycopg.Error as error:
            raise translated(error, name) from None

    async def _with_pool(self, use: Callable[[Async], Awaitable[T]]) -> T:
        async with self._pool.connection() as connection:
            try:
                return await use(connection)
            except psycopg.Error as error:
                if spoilt(error):
                    await connection.close()  # the pool replaces it
                raise


def _broken(error: Exception) -> bool:
    """Whether the connection is gone, rather than the server or the pool unable to give one."""
    gone = isinstance(error, psycopg.OperationalError) and error.sqlstate in {None, "57P01", "57P02"}
    return gone and not isinstance(error, PoolTimeout)
