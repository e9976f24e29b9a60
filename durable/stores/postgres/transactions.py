"""Transactions of users' functions on connections of ours: their writes and the step's record, all or nothing.

A connection of libpq is kept open and lent to one function at a time, in a wrapper of psycopg that is new each time and
of no use afterwards. What the function has changed on the server's side of it is discarded before the next one. The
engine's part, beginning and end, happens on the event loop, whichever kind of connection the function gets.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import AsyncConnection, Connection
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, PipelineStatus, TransactionStatus
from psycopg.pq.abc import PGconn, PGresult

from durable.errors import InvalidArgument, StoreUnavailable
from durable.model import Outcome, Record, RunRef, RunWrite
from durable.stores.postgres import writes
from durable.stores.postgres.connections import Server, hang_up, patience
from durable.stores.postgres.failures import translated
from durable.stores.postgres.literals import Parameter, instant
from durable.stores.postgres.reaping import Blockers
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import FINE, Call, pipelined
from durable.threads import ThreadPool

_MOST = 10
"""Transactions at the same time; more wait. Each has a connection, which stays open."""
LANES = tuple(f"transact{n}" for n in range(_MOST))
"""The rows with a worker's lease that they prove it by."""
_LOOK_UP = 30.0
"""Seconds for which a server that does not answer is asked what became of a commit. Later the function is called again:
then, if the commit had taken place, the record is there already, and what the function has done anew is rolled back."""
_PAUSE_FIRST, _PAUSE_MAX = 0.05, 1.0  # seconds between two such questions, doubling
_ROLLBACK = 5.0  # seconds for a rollback; then the connection is hung up

_BEGIN, _COMMIT = Call(b"BEGIN ISOLATION LEVEL READ COMMITTED"), Call(b"COMMIT")
_LOST = "transact: the connection was lost before the commit"
_WHY = "it held a transaction whose client had lost the connection"
_NOTE = "durable ends this transaction itself, together with the step's record: leave commit, rollback and close out"
_OVER = "the transaction had ended before its function returned: nothing is recorded"


class _Lent:
    """What both kinds of lent connections refuse."""

    durable_taken_back = False

    def durable_check(self) -> None:
        if self.durable_taken_back:
            raise psycopg.InterfaceError("the transaction that this connection was lent for has ended")

    def __del__(self, _warn: Any = None) -> None:
        """The driver would warn that it was not closed: it is not the wrapper's to close."""


class LentConnection(_Lent, Connection[Any]):
    """psycopg's connection, inside a transaction that is not the user's to end."""

    def wait(self, *args: Any, **kwargs: Any) -> Any:
        self.durable_check()
        return super().wait(*args, **kwargs)

    def commit(self) -> None:
        raise InvalidArgument(_NOTE)

    def rollback(self) -> None:
        raise InvalidArgument(_NOTE)

    def close(self) -> None:
        raise InvalidArgument(_NOTE)


class LentAsyncConnection(_Lent, AsyncConnection[Any]):
    """The same for asyncio."""

    async def wait(self, *args: Any, **kwargs: Any) -> Any:
        self.durable_check()
        return await super().wait(*args, **kwargs)

    async def commit(self) -> None:
        raise InvalidArgument(_NOTE)

    async def rollback(self) -> None:
        raise InvalidArgument(_NOTE)

    async def close(self) -> None:
        raise InvalidArgument(_NOTE)


class _Session:
    """One connection of ours.

    Attributes:
        token: Of the present transaction.
        number: Of the same: the lock that it holds.
    """

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self.connection = connection
        self.token = ""
        self.number = 0

    @property
    def _pgconn(self) -> PGconn:
        return self.connection.pgconn

    @property
    def lost(self) -> bool:
        return self._pgconn.status != ConnStatus.OK

    async def begin(self, call: Callable[..., Call]) -> None:
        self.token, self.number = secrets.token_hex(16), secrets.randbits(63)
        for result in await self.send(_BEGIN, call("begin_transaction", self.token, str(self.number))):
            if result.status not in FINE:
                raise error_from_result(result)

    async def send(self, *calls: Call) -> list[PGresult]:
        """The results of the calls, which leave in one message.

        Raises:
            psycopg.OperationalError: The connection was lost.
        """
        with patience(self.connection):
            return await self.connection.wait(pipelined(self._pgconn, calls))

    def lend(self, on_loop: bool, prepare_threshold: int | None) -> LentConnection | LentAsyncConnection:
        lent = LentAsyncConnection(self._pgconn) if on_loop else LentConnection(self._pgconn)
        if prepare_threshold is None:
            lent.prepare_threshold = None
        return lent

    def check(self) -> None:
        """Raises when what the function has left behind cannot be committed."""
        if self.lost:
            raise StoreUnavailable(_LOST)
        status = self._pgconn.transaction_status
        if status == TransactionStatus.INERROR:
            raise InvalidArgument(
                "a statement of the function has failed, and with it the transaction: let the error be raised, or "
                "wrap what may fail in `with connection.transaction()`"
            )
        if status != TransactionStatus.INTRANS or self._pgconn.pipeline_status != PipelineStatus.OFF:
            raise InvalidArgument(_OVER)

    async def clean(self) -> bool:
        """Roll back what is open, and forget all that was set; False when the connection is of no use any more."""
        idle = self._pgconn.transaction_status in (
            *(TransactionStatus.IDLE, TransactionStatus.INTRANS, TransactionStatus.INERROR),
        )
        if self.lost or not idle or self._pgconn.pipeline_status != PipelineStatus.OFF:
            return False
        try:
            with patience(self.connection, _ROLLBACK):
                if self._pgconn.transaction_status != TransactionStatus.IDLE:
                    await self.connection.execute("ROLLBACK")
                await self.connection.execute("DISCARD ALL")
        except psycopg.Error:  # it is closed instead, which does the same
            return False
        return True

    async def interrupt(self) -> None:
        """Have a thread that uses the connection fail, now and at its next statement."""
        with suppress(psycopg.Error, OSError):  # the server will notice that nobody listens
            await self.connection.cancel_safe(timeout=_ROLLBACK)
        hang_up(self.connection)

    def close(self) -> None:
        self._pgconn.finish()


class Transactions:
    """At most ten at a time.

    Args:
        sessions: For statements, and to look something up.
        schema: The schema's name.
    """

    def __init__(self, sessions: Sessions, schema: str) -> None:
        self._sessions = sessions
        self._server: Server = sessions.server
        self._schema = schema
        self._blockers = Blockers(sessions)
        self._slots = asyncio.Semaphore(_MOST)
        self._threads = ThreadPool(_MOST)
        self._lanes = list(LANES)
        self._idle: list[_Session] = []
        self._cleaning: set[asyncio.Task[None]] = set()
        self._closed = False

    async def run(
        self,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        """As ``Store.transact``; the write has records and nothing else."""
        async with self._slots:
            lane = self._lanes.pop()
            try:
                return await self._run(lane, worker, work, on_loop, write)
            finally:
                self._lanes.append(lane)

    async def _run(
        self,
        lane: str,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        session = await self._begin()
        try:
            planned = await write(await self._worked(session, work, on_loop))
            session.check()
            calls = self._calls(worker, session, planned, lane)
        except BaseException as error:
            await self._end(session)
            if session.lost and isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError)):
                raise StoreUnavailable(f"{_LOST}: {error}") from None
            raise
        finishing = asyncio.ensure_future(self._finish(session, planned, calls))
        try:
            return await asyncio.shield(finishing)
        except asyncio.CancelledError:
            await asyncio.wait([finishing])
            raise

    async def close(self) -> None:
        """Close the connections. A function that is executing keeps its own until it ends."""
        self._closed = True
        while self._cleaning:
            await asyncio.wait(self._cleaning)
        for session in self._idle:
            session.close()
        self._idle.clear()
        self._threads.close()

    # -- the function -----------------------------------------------------------------------------

    async def _begin(self) -> _Session:
        while not self._idle and len(self._cleaning) > 1:  # a new connection costs as much as ten transactions
            await asyncio.wait(self._cleaning, return_when=asyncio.FIRST_COMPLETED)
        while self._idle:
            session = self._idle.pop()
            if await self._begun(session) is None:
                return session  # else it has been broken since, by a restart perhaps
        if self._closed:
            raise StoreUnavailable("transact: the store is closed")
        session = _Session(await self._connect())
        if (error := await self._begun(session)) is not None:
            raise translated(error, "transact") from None
        return session

    async def _begun(self, session: _Session) -> psycopg.Error | None:
        try:
            await session.begin(self._sessions.call)
        except psycopg.Error as error:
            session.close()
            return error
        except BaseException:
            session.close()
            raise
        return None

    async def _connect(self) -> AsyncConnection[Any]:
        """A connection as the user's own program would have it: nothing is set on it."""
        try:
            return await AsyncConnection.connect(self._server.conninfo, autocommit=True)
        except (psycopg.Error, OSError) as error:
            raise self._server.unreachable(error) from None

    async def _worked(self, session: _Session, work: Callable[[Any], Any], on_loop: bool) -> Any:
        lent = session.lend(on_loop, self._server.prepare_threshold)
        try:
            if on_loop:
                return await work(lent)
            working = self._threads.submit(work, lent)
            try:
                await asyncio.wait([working])
            except asyncio.CancelledError:
                await session.interrupt()
                await asyncio.wait([working])  # so that whoever calls the function again does not meet this one
                raise
            return working.result()
        finally:
            lent.durable_taken_back = True

    # -- the end ----------------------------------------------------------------------------------

    def _calls(self, worker: str, session: _Session, write: RunWrite, lane: str) -> list[Call]:
        if not write.records or write.change is not None or write.also is not None:
            raise InvalidArgument("the write of a transaction has records, and nothing else")
        records = [_parameters(worker, session.token, write.ref, record, lane) for record in write.records]
        return [self._sessions.call("record_in_transaction", *values) for values in records]

    async def _finish(self, session: _Session, write: RunWrite, calls: Sequence[Call]) -> Outcome:
        try:
            results = await self._sent(session, calls)
            if session.lost:
                session.close()
                return await self._looked_up(session.number, write)
            failed = next((at for at, result in enumerate(results) if result.status not in FINE), None)
            if failed is not None:
                return await self._refused(error_from_result(results[failed]), failed == len(calls), write)
            assert results[-1].command_status == b"COMMIT", "an aborted transaction executes no statement before it"
            return Outcome.APPLIED
        finally:
            await self._end(session)

    async def _sent(self, session: _Session, calls: Sequence[Call]) -> list[PGresult]:
        """The results of the calls and of COMMIT; some, when the connection is lost."""
        try:
            return await session.send(*calls, _COMMIT)
        except (psycopg.Error, OSError, UnicodeEncodeError) as error:
            if session.lost:
                return []
            raise translated(error, "transact") from None  # before anything was sent

    async def _refused(self, error: psycopg.Error, by_commit: bool, write: RunWrite) -> Outcome:
        """What the server's refusal means. The transaction is aborted."""
        place = error.diag
        if not by_commit and (place.schema_name, place.table_name) == (self._schema, "history"):
            if isinstance(error, psycopg.errors.UniqueViolation):
                return await self._standing(write) or Outcome.LEASE_LOST
            if isinstance(error, psycopg.errors.NotNullViolation) and place.column_name == "seq":
                return Outcome.LEASE_LOST
            if isinstance(error, psycopg.errors.NotNullViolation) and place.column_name == "key":
                raise InvalidArgument(_OVER)
        known = translated(error, "transact")
        if by_commit and not isinstance(known, StoreUnavailable):
            raise error  # a constraint of the user's that is checked at the end
        raise known from None

    async def _looked_up(self, number: int, write: RunWrite) -> Outcome:
        """Whether a commit without an answer has taken place.

        Raises:
            StoreUnavailable: It has not, and never will; or the server does not come back.
        """
        until, pause = time.monotonic() + _LOOK_UP, _PAUSE_FIRST
        while True:
            try:
                await self._blockers.wait(self._sessions.call("await_transaction", str(number)), _WHY)
                outcome = await self._standing(write)
            except StoreUnavailable:
                if self._closed or time.monotonic() > until:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MAX)
            else:
                if outcome is None:
                    raise StoreUnavailable(_LOST)
                return outcome

    async def _standing(self, write: RunWrite) -> Outcome | None:
        """The outcome by what is stored; None when nothing is."""
        found = await self._sessions.read("stored_records", *writes.record_keys([write]))
        if not found:
            return None
        stored = {row[1]: row[2:] for row in found}
        same = all(stored.get(record.key) == writes.contents(record) for record in write.records)
        return Outcome.APPLIED if same else Outcome.LEASE_LOST

    async def _end(self, session: _Session) -> None:
        """Give the connection back; at once when nothing is open on it, else after the rollback."""
        cleaning = asyncio.get_running_loop().create_task(self._clean(session))
        self._cleaning.add(cleaning)
        cleaning.add_done_callback(self._cleaning.discard)
        if session.connection.pgconn.transaction_status != TransactionStatus.IDLE:
            await asyncio.wait([cleaning])

    async def _clean(self, session: _Session) -> None:
        if await session.clean() and not self._closed and len(self._idle) < _MOST:
            self._idle.append(session)
        else:
            session.close()


def _parameters(worker: str, token: str, ref: RunRef, record: Record, lane: str) -> list[Parameter]:
    """$1 to $17 of ``record_in_transaction``."""
    return [
        *(worker, token, str(ref.shard), ref.id, str(ref.claim)),
        *(str(record.seq), record.key, record.kind, instant(record.at), record.data),
        *(str(record.failed), str(record.attempt), repr(float(record.duration)), str(record.begun)),
        *(str(record.compensable), None if record.due_at is None else instant(record.due_at), lane),
    ]
