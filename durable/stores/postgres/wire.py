"""One transaction as one message: BEGIN, the statements and COMMIT leave in one piece, with one sync.

psycopg's own pipeline sends each statement as it comes, three or four writes to the socket. A client that is
stopped between two of them holds its locks until somebody ends its backend, and each costs a system call: a small
transaction takes 340 µs with it and 200 µs here, of which the client's share is 220 and 100. So this hands
everything to libpq (``psycopg.pq``) first and flushes once. It knows nothing of lanes or of what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg
from psycopg import AsyncConnection
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGconn, PGresult
from psycopg.waiting import Ready, Wait

from durable.stores.postgres.literals import Floats, Ids, Parameter

Row = tuple[Any, ...]

_BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
_COMMIT = b"COMMIT"
FINE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)
"""What a statement that was executed answers."""


class Call(NamedTuple):
    """A statement with its parameters, never numbers: their size would choose another plan."""

    sql: bytes  # the driver's types want a text to be a literal
    parameters: Sequence[Parameter] = ()
    prepare: bool = True  # False: planned anew, for the tables as they are


class Prepared:
    """The statements that one connection has prepared.

    Args:
        threshold: Uses of a statement before it is prepared; None for never.
    """

    def __init__(self, threshold: int | None) -> None:
        self._threshold = threshold
        self._uses: dict[bytes, int] = {}
        self.names: dict[bytes, bytes] = {}

    def wants(self, sql: bytes) -> bool:
        """Whether ``sql`` is to be prepared now."""
        if self._threshold is None or sql in self.names:
            return False
        uses = self._uses[sql] = self._uses.get(sql, 0) + 1
        return uses > self._threshold

    def name(self, sql: bytes) -> bytes:
        """The name under which ``sql`` is being prepared."""
        name = self.names[sql] = b"durable_%d_%d" % (len(self._uses), len(self.names))
        return name


NEVER = Prepared(None)
"""For connections that carry what is rare: planning it each time takes the present statistics into account."""


async def exchange(connection: AsyncConnection[Any], calls: Sequence[Call], prepared: Prepared) -> list[list[Row]]:
    """The rows of each call, all in one transaction.

    Raises:
        psycopg.Error: As the server or the connection has it. The transaction may be open and aborted.
    """
    whole = [Call(_BEGIN), *calls, Call(_COMMIT)]
    results = await connection.wait(_exchange(connection.pgconn, whole, prepared))
    transformer = Transformer(connection)
    found: list[list[Row]] = []
    for result in results[1:-1]:
        transformer.set_pgresult(result)
        found.append(transformer.load_rows(0, result.ntuples, tuple))
    return found


def _exchange(pgconn: PGconn, calls: Sequence[Call], prepared: Prepared) -> PQGen[list[PGresult]]:
    """Send and receive; yields what it waits for. One result for each call."""
    results, preparing = yield from _round_trip(pgconn, calls, prepared)
    for result in results:
        if result.status not in FINE:
            raise error_from_result(result)
    return [result for place, result in enumerate(results) if place not in preparing]


def pipelined(pgconn: PGconn, calls: Sequence[Call]) -> PQGen[list[PGresult]]:
    """The same without preparing anything, and with failures among the results.

    After a failure the calls that follow are not executed, a COMMIT neither. When the connection is lost there may be
    fewer results, the last a failure.
    """
    results, _ = yield from _round_trip(pgconn, calls, NEVER)
    return results


def _round_trip(
    pgconn: PGconn, calls: Sequence[Call], prepared: Prepared
) -> PQGen[tuple[list[PGresult], dict[int, bytes]]]:
    """All results, and the places of those that are about preparing a statement."""
    encoded = [_encoded(call.parameters) for call in calls]  # before anything is queued: it may refuse
    pgconn.enter_pipeline_mode()
    preparing: dict[int, bytes] = {}  # place among the results → statement
    for place, (call, (values, types, formats)) in enumerate(zip(calls, encoded, strict=True)):
        if call.prepare and prepared.wants(call.sql):
            preparing[place + len(preparing)] = call.sql
            pgconn.send_prepare(prepared.name(call.sql), call.sql, types)
        if (name := prepared.names.get(call.sql)) is not None:
            pgconn.send_query_prepared(name, values, formats)
        else:
            pgconn.send_query_params(call.sql, values, types, formats)
    pgconn.pipeline_sync()
    results = yield from _answers(pgconn)
    for place, sql in preparing.items():
        if results[place].status != ExecStatus.COMMAND_OK:
            del prepared.names[sql]
    return results, preparing


def _answers(pgconn: PGconn) -> PQGen[list[PGresult]]:
    """All results up to the sync; when the connection ends before it, those until then, with an error among them."""
    while pgconn.flush():
        if (yield Wait.RW) & Ready.R:
            pgconn.consume_input()
    results: list[PGresult] = []
    while pgconn.status == ConnStatus.OK:
        while pgconn.is_busy():
            if not (yield Wait.R):
                continue
            try:
                pgconn.consume_input()
            except psycopg.OperationalError:
                if any(result.status == ExecStatus.FATAL_ERROR for result in results):
                    return results  # the server said why before it left
                raise
        result = pgconn.get_result()
        if result is not None and result.status == ExecStatus.PIPELINE_SYNC:
            pgconn.exit_pipeline_mode()
            return results
        if result is not None:
            results.append(result)
    return results


def _encoded(
    parameters: Sequence[Parameter],
) -> tuple[list[bytes | None], list[int], list[int]]:
    values: list[bytes | None] = []
    types: list[int] = []
    formats: list[int] = []
    for parameter in parameters:
        if isinstance(parameter, (Ids, Floats)):
            values.append(parameter)
            types.append(parameter.oid)
            formats.append(Format.BINARY)
            continue
        value = None if parameter is None else parameter.encode()
        if value is not None and b"\0" in value:  # libpq would end the text there
            raise psycopg.DataError("text cannot contain NUL (0x00)")
        values.append(value)
        types.append(0)
        formats.append(Format.TEXT)
    return values, types, formats
