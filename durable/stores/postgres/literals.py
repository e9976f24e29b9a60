"""Python lists as array literals of Postgres, made by hand.

psycopg's list adaptation costs 9 µs a row of a batch, these 0.1 µs a column: C-speed joins, and the server parses.
Texts travel joined by 0x1e, which valid JSON never contains, and are split by ``string_to_array``; 0x1d stands for
NULL (``json_to_recordset`` of one document: 125,000 rows/s against 179,000). It knows neither runs nor connections.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from psycopg.adapt import Dumper
from psycopg.pq import Format

from durable.errors import PayloadError, RunNotFound

_UUID, _FLOAT8 = 2950, 701  # their oids
_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)

MAX_TEXT = 256 * 1024 * 1024
"""Characters of one parameter. The server ends at 1 GB, where it breaks instead of refusing; a batch that is refused
here is halved by the committer."""


class Ids(bytes):
    """A uuid[] in the binary format: the server parses the text of a uuid in 0.8 µs, more than all else of a record."""

    oid = 2951


class Floats(bytes):
    """A float8[] in the binary format: to write all digits of a float takes 1.2 µs, its eight bytes 0.1."""

    oid = 1022


Parameter = str | Ids | Floats | None

_ID_HEAD = "00000010"  # the length of each element, 16 bytes, in hexadecimal


def ids(values: Sequence[str]) -> Ids:
    """Ids of runs, workers or batches, in their canonical form.

    Raises:
        PayloadError: One is not.
    """
    if not values:
        return Ids(_array_head(_UUID, 0))
    try:
        body = bytes.fromhex((_ID_HEAD + _ID_HEAD.join(values)).replace("-", ""))
    except ValueError:
        body = b""
    if len(body) != 20 * len(values):
        raise PayloadError("an id is not a UUID")
    return Ids(_array_head(_UUID, len(values)) + body)


def _array_head(element: int, count: int) -> bytes:
    """What an array begins with in the binary format: dimensions, whether it has NULLs, the elements' type."""
    return struct.pack("!iiIii", 1, 0, element, count, 1) if count else struct.pack("!iiI", 0, 0, element)


class IdsDumper(Dumper):
    """Sends `Ids` as they are."""

    format = Format.BINARY
    oid = Ids.oid

    def dump(self, obj: Ids) -> bytes:
        return obj


class Marks(NamedTuple):
    """What stands between the texts of a column, and for NULL: parameters of the statement too."""

    separator: str = "\x1e"
    null: str = "\x1d"


_USUAL = Marks()


def columns(*columns: Sequence[str | None]) -> list[str]:
    """The marks, then each column of any texts joined. One text that is empty and alone in its column reads as NULL.

    The usual marks do for everything but names that contain them: then others are drawn, which no text contains.

    Raises:
        PayloadError: All texts of a column together are too long for one parameter.
    """
    joined = [_joined(column, _USUAL) for column in columns]
    if all(_is_exact(text, column, _USUAL) for text, column in zip(joined, columns, strict=True)):
        return [*_USUAL, *joined]
    drawn = Marks(f"\x1e{secrets.token_hex(16)}\x1e", f"\x1d{secrets.token_hex(16)}\x1d")
    return [*drawn, *(_joined(column, drawn) for column in columns)]


def _joined(column: Sequence[str | None], marks: Marks) -> str:
    joined = marks.separator.join([marks.null if value is None else value for value in column])
    if len(joined) > MAX_TEXT:
        raise PayloadError(f"{len(joined):,} characters are too many for one transaction")
    return joined


def _is_exact(joined: str, column: Sequence[str | None], marks: Marks) -> bool:
    """Whether splitting gives the column again."""
    separators, nulls = joined.count(marks.separator), joined.count(marks.null)
    return separators == max(0, len(column) - 1) and nulls == column.count(None)


def scalars(values: Sequence[int | float | bool | None]) -> str:
    """Numbers and truth values: Postgres reads Python's spelling of both, NULL excepted."""
    return "{" + str(list(values))[1:-1].replace("None", "NULL") + "}"


def floats(values: Sequence[float]) -> Floats:
    """Numbers, exactly as they are."""
    body: list[float] = [8] * (2 * len(values))  # the length of each element before it
    body[1::2] = values
    return Floats(_array_head(_FLOAT8, len(values)) + struct.pack("!" + "id" * len(values), *body))


def words(values: Iterable[str]) -> str:
    """Texts that need no quoting: the words of enums."""
    return "{" + ",".join(values) + "}"


def times(values: Sequence[datetime | None]) -> str:
    """Microseconds since 1970 as bigint, which server and client turn into times exactly until the year 2255."""
    return scalars([None if value is None else (value - _EPOCH) // _MICROSECOND for value in values])


def instant(value: datetime) -> str:
    """One of ``times``."""
    return str((value - _EPOCH) // _MICROSECOND)


def known(run_ids: Sequence[str]) -> list[str]:
    """Those that can be ids of runs at all, once each; no run has another one."""
    found: dict[str, None] = {}
    for run_id in run_ids:
        try:
            found[str(UUID(run_id))] = None
        except ValueError:
            continue
    return list(found)


def existing(run_id: str) -> str:
    """The id in its canonical form.

    Raises:
        RunNotFound: It is none.
    """
    if not (found := known([run_id])):
        raise RunNotFound(f"there is no run {run_id!r}")
    return found[0]
