"""Triggers and signals on a connection of the user's own: they are there when the user's transaction commits.

The connection is psycopg's, or SQLAlchemy's or Django's over it. What is done on it is one call of a function of the
schema, so it is done whole, and nothing is set on it. Its user needs the rights to call it: see ``grants.sql``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast
from uuid import UUID

import psycopg
from psycopg import AsyncConnection, AsyncRawCursor, Connection, RawCursor
from psycopg.rows import tuple_row

from durable.errors import DurableError, InvalidArgument, StoreUnavailable
from durable.model import Created, NewRun, NewSignal, Policy, Sent
from durable.stores import unwrapping
from durable.stores.postgres import literals, rows
from durable.stores.postgres.failures import translated
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Row

_DRIVERS = frozenset({"psycopg", "psycopg_async"})  # as SQLAlchemy and Django call it

Place = tuple[str, str | None]
"""Which database on which server, when that may be asked."""


async def place(sessions: Sessions) -> Place:
    """Where the store's data is."""
    [[database, may_ask]] = await sessions.read("database")
    [[server]] = await sessions.read("server") if may_ask else [(None,)]
    return database, server


class OnPostgresConnection:
    """Connections to the store's database, for asyncio and blocking ones.

    In autocommit mode and outside a transaction a call commits at once, as every statement does.

    Args:
        place: Where the store's data is; a connection to another database is refused.
        statements: All named statements.
    """

    def __init__(self, place: Place, statements: Mapping[str, bytes]) -> None:
        self._place = place
        self._statements = statements

    def accepts(self, connection: object) -> bool:
        """Decided by what it is, from any thread; nothing is done on it."""
        driver = unwrapping.driver(connection)
        if driver is not None:
            return driver in _DRIVERS
        return isinstance(getattr(connection, "driver_connection", connection), (Connection, AsyncConnection))

    def is_async(self, connection: object) -> bool:
        return isinstance(connection, AsyncConnection) or unwrapping.is_async(connection)

    def trigger(self, connection: Any, run: NewRun) -> Created | Awaitable[Created]:
        if run.policy is Policy.REPLACE or run.debounce is not None:
            raise InvalidArgument("on a connection of your own there is neither the policy replace nor debouncing")
        values = _run(run)
        if not self.is_async(connection):
            return _created(run, self._ask(connection, "trigger_here", values))

        async def asked() -> Created:
            return _created(run, await self._ask_async(connection, "trigger_here", values))

        return asked()

    def signal(self, connection: Any, signal: NewSignal) -> Sent | Awaitable[Sent]:
        try:
            values = [str(UUID(signal.run_id)), signal.id, signal.name, signal.data]
        except ValueError:
            values = []
        if not self.is_async(connection):
            return Sent(self._ask(connection, "signal_here", values)[0]) if values else Sent.NOT_FOUND

        async def asked() -> Sent:
            return Sent((await self._ask_async(connection, "signal_here", values))[0]) if values else Sent.NOT_FOUND

        return asked()

    def _ask(self, connection: Any, name: str, values: Sequence[Parameter]) -> Row:
        try:
            raw = unwrapping.driver_connection(connection)
            with RawCursor(raw, row_factory=tuple_row) as cursor:
                cursor.execute(self._statements[name], [*self._place, *values])
                return _answer(cursor.fetchone())
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _refused(error) from error

    async def _ask_async(self, connection: Any, name: str, values: Sequence[Parameter]) -> Row:
        try:
            wrapped = not isinstance(connection, AsyncConnection)
            raw = cast("AsyncConnection[Any]", connection)
            if wrapped:
                raw = await unwrapping.driver_connection_async(connection)
            async with AsyncRawCursor(raw, row_factory=tuple_row) as cursor:
                await cursor.execute(self._statements[name], [*self._place, *values])
                return _answer(await cursor.fetchone())
        except (psycopg.Error, UnicodeEncodeError) as error:
            raise _refused(error) from error


def _run(run: NewRun) -> list[Parameter]:
    """$3 to $18 of ``trigger_here``."""
    ready_at = None if run.ready_at is None else literals.instant(run.ready_at)
    return [
        *(run.id, run.workflow, run.version, run.queue, run.key, run.request, run.input, run.input_hash, run.seed),
        *(rows.tags_text(run.tags), ready_at, repr(float(run.delay)), str(run.priority), run.limit_key),
        *(run.concurrency_key, str(run.policy is Policy.QUEUE)),
    ]


def _created(run: NewRun, answer: Row) -> Created:
    run_id, created, busy, *standing = answer
    if busy:
        return Created(run_id, False, busy=run.policy is Policy.REJECT)
    return Created(run_id, True) if created else rows.created(run, (run.id, run_id, *standing))


def _answer(row: Row | None) -> Row:
    if row is None:
        raise InvalidArgument("the connection is to another database than the store")
    return row


def _refused(error: Exception) -> DurableError:
    """What the driver says, as an error of this library; the user's transaction is aborted by then."""
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state in {"3F000", "42883"}:  # schema, function
        return InvalidArgument(
            f"the connection is to another database than the store, or that is not migrated: {error}"
        )
    if state == "25P02":
        return InvalidArgument(f"the connection's transaction has failed before: {error}")
    if state == "0A000":
        return InvalidArgument(f"on your connection: {error}")
    if state in {"25006", "40001", "40P01"}:
        return StoreUnavailable(f"on your connection: {error}")
    if isinstance(error, psycopg.InterfaceError):
        return InvalidArgument(f"the connection cannot be used here: {error}")
    return translated(error, "on your connection")
