"""Triggers and signals on a connection of the user's own: they are there when the user's transaction commits.

The connection is the driver's, or SQLAlchemy's or Django's over it. Nothing is added to it, no temporary table either:
what the store does in a trigger of its own is done here statement by statement, inside a savepoint.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from durable.errors import InvalidArgument
from durable.model import Created, NewRun, NewSignal, Policy, Sent
from durable.stores import unwrapping
from durable.stores.sqlite import documents, signals
from durable.stores.sqlite.connection import identity, split, translated

_BUSY = "another connection is writing: begin with BEGIN IMMEDIATE, and give your connection a longer timeout"
_DRIVERS = frozenset({"pysqlite", "sqlite3"})  # as SQLAlchemy and Django call the standard library's
_LEGACY = -1  # sqlite3.LEGACY_TRANSACTION_CONTROL of Python 3.12


class OnSQLiteConnection:
    """Blocking connections to the store's file.

    A connection whose driver begins transactions by itself (the default of ``sqlite3``) is left inside one. One in
    autocommit mode without a transaction commits at once, as it does with every statement.

    Args:
        path: The store's file.
        statements: All named statements.
        now: The store's time.
    """

    def __init__(self, path: Path, statements: Mapping[str, str], now: Callable[[], int]) -> None:
        self._path = path
        self._statements = statements
        self._creating = _inlined(statements["session_creating"])
        self._now = now

    def accepts(self, connection: object) -> bool:
        """Decided by what it is, from any thread; nothing is done on it."""
        driver = unwrapping.driver(connection)
        if driver is not None:
            return driver in _DRIVERS
        return isinstance(getattr(connection, "driver_connection", connection), sqlite3.Connection)

    def is_async(self, connection: object) -> bool:  # noqa: ARG002
        return False

    def trigger(self, connection: Any, run: NewRun) -> Created:
        if run.policy is Policy.REPLACE or run.debounce is not None:
            raise InvalidArgument("on a connection of your own there is neither the policy replace nor debouncing")
        runs = documents.encode_new_runs([run])
        with self._inside(connection) as cursor:
            for statement in self._creating:
                cursor.execute(statement, {"now": self._now(), "runs": runs})
            return documents.decode_created([run], self._value(cursor, "created", {"runs": runs}))[0]

    def signal(self, connection: Any, signal: NewSignal) -> Sent:
        sent = {"signals": signals.encode_signals([signal])}
        with self._inside(connection) as cursor:
            cursor.execute(self._statements["signal"], {"now": self._now(), **sent})
            return signals.decode_sent(self._value(cursor, "signals_sent", sent))[0]

    def _value(self, cursor: sqlite3.Cursor, statement: str, parameters: Mapping[str, Any]) -> Any:
        return cursor.execute(self._statements[statement], parameters).fetchone()[0]

    @contextmanager
    def _inside(self, connection: object) -> Generator[sqlite3.Cursor, None, None]:
        """A cursor inside the user's transaction; all of what is done with it, or nothing."""
        try:
            raw = unwrapping.driver_connection(connection)
            cursor = raw.cursor(sqlite3.Cursor)
            cursor.row_factory = None
            self._check_file(cursor)
            if not raw.in_transaction and _begins_by_itself(raw):
                cursor.execute("BEGIN IMMEDIATE")
            cursor.execute("SAVEPOINT durable")
            try:
                yield cursor
            except BaseException:
                if raw.in_transaction:
                    cursor.execute("ROLLBACK TO durable")
                raise
            finally:
                if raw.in_transaction:
                    cursor.execute("RELEASE durable")
        except sqlite3.ProgrammingError as error:
            raise InvalidArgument(f"the connection cannot be used here: {error}") from error
        except sqlite3.Error as error:
            raise translated(self._path, error, _BUSY) from error

    def _check_file(self, cursor: sqlite3.Cursor) -> None:
        _, _, file = cursor.execute("PRAGMA database_list").fetchone()  # main comes first
        if not file or identity(Path(os.fsdecode(file))) != identity(self._path):
            raise InvalidArgument(f"the connection is to {file or 'no file'}, not to {self._path}")


def _begins_by_itself(connection: sqlite3.Connection) -> bool:
    return connection.isolation_level is not None and getattr(connection, "autocommit", _LEGACY) == _LEGACY


def _inlined(trigger: str) -> list[str]:
    """The statements of a trigger, with named parameters where it reads its row."""
    body = trigger[trigger.index("BEGIN") + len("BEGIN") : trigger.rindex("END")]
    return split(body.replace("NEW.", ":"))
