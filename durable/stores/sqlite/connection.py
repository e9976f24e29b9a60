"""One connection to the file: how it is opened, how it waits for other writers, and what its errors mean.

Everything here blocks, and belongs on a thread of its own. It knows nothing of runs.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from durable.errors import ConfigurationError, DurableError, PayloadError, SchemaTooNew, StoreUnavailable
from durable.sql import Migration

T = TypeVar("T")


class Refused(PayloadError):
    """One of our own triggers refused a statement; nothing was written."""


class Stale(StoreUnavailable):
    """A statement of this connection was never read to its end: it cannot write before it is opened again."""


_OLDEST = (3, 38, 0)  # the JSON operators and STRICT tables

# SQLite's own waiting backs off to 100 ms between two tries, and misses the short gaps that a busy process leaves:
# a small commit beside one waited up to 0.75 s. So it waits 3 ms at most, and we try again: 0.02 s.
_TRY = 0.003
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_PROTOCOL})
_REFUSED_DATA = frozenset({sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH})

# Closing any descriptor of a file drops all of the process's locks on it, SQLite's too. So nobody of this
# process may have the new file open before the descriptor that created it is closed.
_creating = threading.Lock()


class Connection:
    """A connection for one thread at a time.

    Args:
        path: Absolute path of the file; it is created when it is missing, readable by its owner alone.
        statements: All named statements; those called ``session_…`` are run once.
        patience: Seconds to wait for other writers.

    Raises:
        StoreUnavailable: The file cannot be opened.
        ConfigurationError: It is not a database, or this SQLite is too old.
    """

    def __init__(self, path: Path, statements: Mapping[str, str], patience: float) -> None:
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigurationError(
                f"SQLite {'.'.join(map(str, _OLDEST))} or newer is needed, this Python has {sqlite3.sqlite_version}"
            )
        self._path = path
        self._statements = statements
        self._patience = patience
        _create_file(path)
        try:
            self._raw = sqlite3.connect(
                path, timeout=_TRY, isolation_level=None, check_same_thread=False, cached_statements=100
            )
        except sqlite3.Error as error:
            raise self._translated(error) from error
        try:
            self._patiently(self._prepare)
            self._file = identity(path)
        except BaseException:
            self._raw.close()
            raise

    def close(self) -> None:
        try:
            self._raw.close()
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def check_file(self) -> None:
        """See that the path still names the file that is open: what goes into another one is lost at the end.

        Raises:
            StoreUnavailable: The file was removed or replaced.
        """
        if identity(self._path) != self._file:
            raise StoreUnavailable(f"{self._path} was removed or replaced while it was open: restart this process")

    def value(self, statement: str, parameters: dict[str, Any] | None = None) -> Any:
        """The first column of the first row of a named statement; None without a row."""
        return self._patiently(lambda: self._one(statement, parameters or {}))

    def write(self, statement: str, parameters: Callable[[], tuple[Any, ...] | dict[str, Any]]) -> int:
        """Run a named statement, a whole transaction; how many rows it changed.

        ``parameters`` is called again for every try: what holds the time must not be as old as the wait.
        """
        return self._patiently(lambda: self._raw.execute(self._statements[statement], parameters()).rowcount)

    def define(self, sql: str) -> None:
        """Run one statement of the migrations, which is in no list."""
        self._patiently(lambda: self._raw.execute(sql))

    @contextmanager
    def transaction(self) -> Generator[None, None, None]:
        """Several statements in one transaction, for what one statement cannot decide. Others wait for its end."""
        self.begin()
        try:
            yield
            self.commit()
        finally:
            self.roll_back()

    def begin(self) -> None:
        """Begin a transaction with the write lock: one that has read first could not have it later."""
        self._patiently(lambda: self._raw.execute("BEGIN IMMEDIATE"))

    def commit(self) -> None:
        try:
            self._raw.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._translated(error) from error

    def lend(self) -> sqlite3.Connection:
        """The driver's connection, for one who is inside the open transaction and may not end it."""
        self._raw.set_authorizer(_may_not_end)
        return self._raw

    def take_back(self) -> bool:
        """Undo ``lend``; False when the transaction has ended all the same, as by a conflict clause ROLLBACK."""
        try:
            self._raw.set_authorizer(None)
            self._raw.row_factory, self._raw.text_factory = None, str
        except sqlite3.Error as error:  # it was closed
            raise self._translated(error) from error
        return self._raw.in_transaction

    def roll_back(self) -> None:
        """End the transaction without its writes, unless it has ended."""
        if self._raw.in_transaction:
            self._raw.execute("ROLLBACK")

    def migrate(self, migrations: Sequence[Migration], now: Callable[[], int]) -> None:
        """Apply those of ``migrations`` that are missing, in one transaction."""
        self.begin()
        try:
            version = self.schema_version()
            if version > len(migrations):
                raise SchemaTooNew(
                    f"{self._path} has schema version {version}, this code knows {len(migrations)}: "
                    "deploy a newer version of the application"
                )
            for migration in migrations[version:]:
                for sql in split(migration.sql):
                    self._raw.execute(sql)
                parameters = {"version": migration.version, "name": migration.name, "now": now()}
                self._raw.execute(self._statements["migrated"], parameters)
            self._raw.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._translated(error) from error
        finally:
            self.roll_back()

    def schema_version(self) -> int:
        return self.value("schema_version") if self.value("has_schema") else 0

    def _one(self, statement: str, parameters: dict[str, Any]) -> Any:
        row = self._raw.execute(self._statements[statement], parameters).fetchone()
        return None if row is None else row[0]

    def _prepare(self) -> None:
        mode = self._raw.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise ConfigurationError(
                f"{self._path} cannot use write-ahead logging (it stays in mode {mode!r}): put it on a local disk"
            )
        for pragma in ("synchronous = FULL", "temp_store = MEMORY", "cache_size = -65536"):
            self._raw.execute(f"PRAGMA {pragma}")
        for name, sql in self._statements.items():
            if name.startswith("session_"):
                self._raw.execute(sql)

    def _patiently(self, action: Callable[[], T]) -> T:
        deadline = time.monotonic() + self._patience
        while True:
            try:
                return action()
            except sqlite3.Error as error:
                if not _is_busy(error) or time.monotonic() >= deadline:
                    raise self._translated(error) from error
            except (UnicodeEncodeError, OverflowError) as error:
                raise PayloadError(f"text or a number that SQLite cannot store: {error}") from error
            time.sleep(0.0005)

    def _translated(self, error: sqlite3.Error) -> DurableError:
        return translated(
            self._path, error, f"another process has been writing for {self._patience:g} s; nothing was written"
        )


def translated(path: Path, error: sqlite3.Error, busy: str) -> DurableError:
    """What the driver's ``error`` means; ``busy`` says it of one that waiting helps against."""
    code = _code(error)
    if _extended(error) == sqlite3.SQLITE_CONSTRAINT_TRIGGER:
        return Refused(str(error))
    if _extended(error) == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return Stale(f"{path}: {error}")
    if _is_busy(error):
        return StoreUnavailable(f"{path}: {busy}")
    if isinstance(error, sqlite3.DataError) or code in _REFUSED_DATA:
        return PayloadError(f"SQLite refuses the data: {error}")
    if code == sqlite3.SQLITE_NOTADB:
        return ConfigurationError(f"{path} is not a SQLite database: name another file, or remove it")
    if code == sqlite3.SQLITE_FULL:
        return StoreUnavailable(f"{path}: the disk is full; nothing was written")
    if code == sqlite3.SQLITE_ERROR:  # the statement and the schema do not fit: sending it again is no use
        return ConfigurationError(f"{path}: {error}")
    return StoreUnavailable(f"{path}: {error}")


def _extended(error: sqlite3.Error) -> int:
    """The extended result code; 0 when the driver itself raised."""
    return int(getattr(error, "sqlite_errorcode", 0))


def _code(error: sqlite3.Error) -> int:
    """The primary result code."""
    return _extended(error) & 0xFF


def _is_busy(error: sqlite3.Error) -> bool:
    """Whether waiting helps."""
    return _code(error) in _BUSY and _extended(error) != sqlite3.SQLITE_BUSY_SNAPSHOT


def _may_not_end(action: int, *_: object) -> int:
    """Savepoints are allowed; COMMIT and ROLLBACK are not, from whatever call they come."""
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK


def _create_file(path: Path) -> None:
    """Create the file readable by its owner alone; SQLite gives its -wal and -shm the same mode.

    Raises:
        StoreUnavailable: It cannot be created, or not be written.
    """
    with _creating:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            _check_existing(path)
            return
        except FileNotFoundError:
            raise StoreUnavailable(f"{path} cannot be created: the directory {path.parent} does not exist") from None
        except OSError as error:
            raise StoreUnavailable(f"{path} cannot be created: {error.strerror}") from error
        try:
            os.fchmod(descriptor, 0o600)  # a umask can have taken rights of the owner too
        finally:
            os.close(descriptor)


def identity(path: Path) -> tuple[int, int] | None:
    """Which file the path names; None when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _check_existing(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise ConfigurationError(f"{path} is not a file: name the database file itself")
    if not os.access(path, os.R_OK | os.W_OK):
        raise StoreUnavailable(f"{path} cannot be read and written by this user: correct its permissions")
    if not os.access(path.parent, os.W_OK):
        raise StoreUnavailable(f"{path.parent} cannot be written by this user: SQLite keeps its log beside {path.name}")


def script(missing: Sequence[Migration]) -> str:
    """What ``migrate`` does, for SQLite's own shell."""
    applied = "INSERT INTO durable_schema VALUES ({}, '{}', CAST(strftime('%s', 'now') AS INTEGER) * 1000000);"
    parts = (f"{migration.sql.rstrip()}\n{applied.format(*migration[:2])}" for migration in missing)
    return "\n\n".join(("BEGIN IMMEDIATE;", *parts, "COMMIT;\n")) if missing else ""


def split(script: str) -> list[str]:
    """The statements of ``script``; executescript would commit the transaction that they stand in."""
    found: list[str] = []
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            found.append(statement)
            statement = ""
    return found
