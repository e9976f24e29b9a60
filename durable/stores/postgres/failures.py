"""What a failure of the driver means to the engine: unavailable, refused data, or a wrong set-up.

The only place that reads SQLSTATEs. No message it makes contains a password.
"""

from __future__ import annotations

import psycopg

from durable.errors import (
    ConfigurationError,
    DurableError,
    PayloadError,
    SchemaOutdated,
    StoreUnavailable,
    without_password,
)

# Classes: 08 connection, 53 resources, 57 operator intervention and time limits, 55 not in a state to (lock_timeout),
# 58 and XX the server's own trouble, 40 a conflict that repeating did not solve. 25: the server is a standby now, or
# the connection was idle in a transaction.
_UNAVAILABLE = ("08", "25", "40", "53", "55", "57", "58", "XX")
_REFUSED = ("22", "23", "54")

_REPEAT = ("40001", "40P01")
_MISSING = ("42P01", "42703", "3F000", "42704")  # table, column, schema, object
_STATEMENT_LOST = ("26000", "42P05")  # a prepared statement that is not there, or there twice: a transaction pooler
_PLAN_OUTDATED = "0A000"  # the result of a prepared statement has other types since a migration


def translated(error: Exception, doing: str) -> DurableError:
    """``error`` of the driver as an error of this library.

    Args:
        error: A psycopg error, or another exception that arose while talking to the server.
        doing: What was being done, for the message: ``commit``.
    """
    if isinstance(error, DurableError):
        return error
    state = error.sqlstate or "" if isinstance(error, psycopg.Error) else ""
    text = without_password(str(error).strip()) or type(error).__name__
    message = f"{doing}: {text}"
    if state[:2] in _REFUSED:
        return PayloadError(f"the database refuses the data: {message}")
    if state == "55P03" or (state == "57014" and "lock" in text):
        return StoreUnavailable(f"{message}; another transaction holds what this one needs")
    if state[:2] in _UNAVAILABLE or state == _PLAN_OUTDATED:
        return StoreUnavailable(message)
    if state in _STATEMENT_LOST:
        return StoreUnavailable(f"{message}; behind a transaction pooler use prepare_threshold=None")
    if state == "42501":
        return ConfigurationError(f"{message}; sql/postgres/grants.sql has the rights that a role needs")
    if state in _MISSING:
        return SchemaOutdated(f"{message}; migrate the schema first")
    if isinstance(error, UnicodeEncodeError) or (isinstance(error, psycopg.DataError) and not state):
        return PayloadError(f"text that has no UTF-8 form, or contains NUL, cannot be stored: {message}")
    if isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError, OSError)):
        return StoreUnavailable(message)
    return DurableError(f"unexpected: {message}")


def repeatable(error: BaseException) -> bool:
    """Whether the transaction lost against another one and can be sent again as it is."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _REPEAT


def spoilt(error: BaseException) -> bool:
    """Whether the connection's prepared statements do not serve any more, so that it has to be replaced."""
    return isinstance(error, psycopg.Error) and error.sqlstate in {*_STATEMENT_LOST, _PLAN_OUTDATED}
