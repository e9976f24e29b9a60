"""Connections: how one is made, and the lanes, each a dedicated one that carries whole transactions.

A lane sends a transaction with its COMMIT in one pipeline with one sync, so that a client that is stopped half-way
holds no lock for longer than the server needs to notice. It knows nothing of runs.

The session settings below are a best effort: behind a transaction pooler they reach some connection or none. There,
give the role its limits (``ALTER ROLE … SET statement_timeout = …``). Nothing relies on them but the bounds of waits,
and those have a second one here: a connection that does not answer is hung up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, Connection, RawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.types.string import TextLoader

from durable.errors import ConfigurationError, InvalidArgument, StoreUnavailable, without_password
from durable.stores.postgres.failures import repeatable, spoilt, translated
from durable.stores.postgres.literals import Ids, IdsDumper
from durable.stores.postgres.wire import NEVER, Call, Prepared, Row, exchange

Async = AsyncConnection[Row]
Sync = Connection[Row]
T = TypeVar("T")

STATEMENT_TIMEOUT = 30.0
"""Seconds for one statement, on the server."""
LOCK_TIMEOUT = 5.0
"""Seconds that a statement waits for a lock of somebody else. Nothing in the hot path waits for a run."""
IDLE_TIMEOUT = 10.0
"""Seconds after which the server ends a connection that idles inside a transaction."""
_PATIENCE = 40.0
"""Seconds without an answer after which a connection is hung up: the server would have ended the statement before."""

_FAREWELL = 1.0  # seconds for a transaction that is on its way when the store is closed
REPEATS = 10
"""How often a transaction that lost against another one is sent."""
_SETTINGS = {
    "statement_timeout": f"{STATEMENT_TIMEOUT:g}s",
    "lock_timeout": f"{LOCK_TIMEOUT:g}s",
    "idle_in_transaction_session_timeout": f"{IDLE_TIMEOUT:g}s",
    "default_transaction_isolation": "read committed",
    "TimeZone": "UTC",
    "DateStyle": "ISO",
    "jit": "off",  # a generic plan's guesses can cross its threshold: 100 ms of compiling for a statement of 1 ms
}
_DEFAULTS: dict[str, str | int] = {
    "application_name": "durable",
    "target_session_attrs": "read-write",  # of several hosts, the primary; a standby is refused with its reason
    "connect_timeout": 10,
    "keepalives_idle": 10,  # with the next two: a peer that is gone is noticed after 25 s, not after 11 minutes
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # milliseconds
}
_SETUP = b"SELECT " + b", ".join(
    f"set_config('{name}', '{value}', false)".encode() for name, value in _SETTINGS.items()
)


async def shielded(call: Awaitable[T]) -> T:
    """``call``, out of reach of anyio's cancel scopes: they would close the connection and leave the query running."""
    with anyio.CancelScope(shield=True):
        return await call
    raise AssertionError("a shield swallows nothing")


@dataclass(frozen=True, slots=True)
class Server:
    """Where the server is and how connections to it are made.

    Args:
        url: URL or DSN.
        prepare_threshold: Uses of a statement after which it is prepared; None for never.
    """

    url: str
    prepare_threshold: int | None

    def __repr__(self) -> str:
        return f"Server({without_password(self.url)!r})"

    def check(self) -> None:
        """Raises InvalidArgument when libpq cannot read the URL. It does not quote it: a password may be in it."""
        try:
            conninfo_to_dict(self.url)
        except psycopg.Error:
            raise InvalidArgument("the database URL is not one that libpq can read") from None

    @property
    def conninfo(self) -> str:
        return make_conninfo("", **{**_DEFAULTS, **conninfo_to_dict(self.url), "client_encoding": "UTF8"})

    async def connect(self) -> Async:
        """A connection that is set up.

        Raises:
            StoreUnavailable: The server cannot be reached, or refuses.
        """
        try:
            connection = await AsyncConnection.connect(
                self.conninfo, autocommit=True, prepare_threshold=self.prepare_threshold, cursor_factory=AsyncRawCursor
            )
        except (psycopg.Error, OSError) as error:
            raise self.unreachable(error) from None
        try:
            await set_up(connection)
            require_utf8(connection)
        except BaseException as error:  # a cancellation too, or the connection would be left open
            await connection.close()
            if isinstance(error, (psycopg.Error, OSError)):
                raise self.unreachable(error) from None
            raise
        return connection

    def connect_sync(self) -> Sync:
        """The same for a thread.

        Raises:
            StoreUnavailable: The server cannot be reached, or refuses.
        """
        try:
            connection = Connection.connect(
                self.conninfo, autocommit=True, prepare_threshold=self.prepare_threshold, cursor_factory=RawCursor
            )
        except (psycopg.Error, OSError) as error:
            raise self.unreachable(error) from None
        _adapt(connection)
        try:
            connection.execute(_SETUP, prepare=False)
        except (psycopg.Error, OSError) as error:
            connection.close()
            raise self.unreachable(error) from None
        return connection

    def unreachable(self, error: Exception) -> StoreUnavailable:
        """What it means that no connection could be made."""
        text = without_password(str(error).strip())
        return StoreUnavailable(f"cannot connect to {without_password(self.url)}: {text}")


async def set_up(connection: AsyncConnection[Any]) -> None:
    """What every connection needs, the pool's too."""
    _adapt(connection)
    await connection.execute(_SETUP, prepare=False)


def _adapt(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """Ids are strings in this library: the text of a uuid is taken as it comes."""
    connection.adapters.register_loader("uuid", TextLoader)
    connection.adapters.register_dumper(Ids, IdsDumper)


def hang_up(connection: AsyncConnection[Any] | Connection[Any]) -> None:
    """Have whoever waits for an answer on ``connection`` fail at once. From any thread."""
    # Suppressed: it is closed already.
    with suppress(OSError, psycopg.OperationalError), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@contextmanager
def patience(connection: Async, seconds: float = _PATIENCE) -> Generator[None]:
    """Hang up when the block has not ended after ``seconds``: the server is not there any more."""
    timer = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


class Lane:
    """One dedicated connection, one transaction at a time.

    It is opened at its first use, and again at the next use after it broke; the call that met the failure
    raises. Cancelling a caller's scope does not reach the wire: the transaction ends first.

    Args:
        server: How to connect.
        name: For messages.

    Attributes:
        sent: ``time.monotonic()`` before the latest transaction was sent; read it before anything is awaited.
    """

    def __init__(self, server: Server, name: str) -> None:
        self._server = server
        self._name = name
        self._lock = asyncio.Lock()
        self._connection: Async | None = None
        self._prepared = NEVER
        self._closed = asyncio.Event()
        self.sent = 0.0

    @property
    def busy(self) -> bool:
        """A transaction is on its way."""
        return self._lock.locked()

    async def transaction(self, *calls: Call) -> list[list[Row]]:
        """The rows of each call, all in one transaction and one round trip.

        Raises:
            StoreUnavailable: Unknown outcome.
            PayloadError: The database refuses the data; nothing was written.
        """
        for repeats_left in reversed(range(REPEATS)):
            try:
                return await shielded(self._turn(calls))
            except Exception as error:
                if not (repeats_left and repeatable(error)):
                    raise translated(error, self._name) from None
        raise AssertionError("the last repetition raises")

    async def open(self) -> None:
        """Connect now instead of at the first use."""
        self._closed.clear()
        await shielded(self._connected())

    async def close(self) -> None:
        """End the connection; a transaction that is on its way has a moment to end."""
        self._closed.set()
        if self._connection is not None:
            with patience(self._connection, _FAREWELL):
                await shielded(self._end())

    async def _end(self) -> None:
        async with self._lock:
            await self._drop()

    async def _connected(self) -> Async:
        if self._closed.is_set():
            raise StoreUnavailable(f"{self._name}: the store is closed")
        if self._connection is None or self._connection.closed:
            self._connection = await self._server.connect()
            self._prepared = Prepared(self._server.prepare_threshold)
            if self._closed.is_set():  # meanwhile: nobody waits for a lane that is connecting
                await self._drop()
                raise StoreUnavailable(f"{self._name}: the store is closed")
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _turn(self, calls: Sequence[Call]) -> list[list[Row]]:
        async with self._lock:
            return await self._send(calls)

    async def _send(self, calls: Sequence[Call]) -> list[list[Row]]:
        connection = await self._connected()
        self.sent = time.monotonic()
        try:
            with patience(connection):
                return await exchange(connection, calls, self._prepared)
        except BaseException as error:
            await self._recover(connection, error)
            raise

    async def _recover(self, connection: Async, error: BaseException) -> None:
        """After a failure: out of the aborted transaction, or out of the connection."""
        if not connection.closed and connection.info.transaction_status is TransactionStatus.INERROR:
            with suppress(psycopg.Error):
                await connection.rollback()
        if spoilt(error) or connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            await self._drop()


def require_utf8(connection: AsyncConnection[Any]) -> None:
    """Refuse a database whose encoding cannot hold every text.

    Raises:
        ConfigurationError: It is not UTF8.
    """
    encoding = connection.info.parameter_status("server_encoding")
    if encoding not in {"UTF8", None}:
        raise ConfigurationError(f"the database's encoding is {encoding}; durable needs UTF8")
