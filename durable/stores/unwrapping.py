"""The driver's connection under what SQLAlchemy or Django hands to its users.

Neither is imported: an object is known by what it offers. SQLAlchemy: ``Session``, ``scoped_session``, ``Connection``,
a raw connection of its pool, and the ``Async…`` of each. Django: ``django.db.connection`` and what ``connections[…]``
gives. What is none of them is returned as it is.
"""

from __future__ import annotations

from typing import Any


def is_async(connection: Any) -> bool:
    """Whether it is one of SQLAlchemy's for asyncio: then ``driver_connection_async`` unwraps it."""
    wrapped = _current(connection)
    return hasattr(wrapped, "sync_session") or hasattr(wrapped, "sync_connection")


def driver(connection: Any) -> str | None:
    """What SQLAlchemy calls its driver (``pysqlite``, ``psycopg``), or the module that Django uses (``sqlite3``).

    None for others' objects. It does no I/O, so that any thread may ask.
    """
    wrapped = _current(connection)
    if callable(getattr(wrapped, "ensure_connection", None)):  # Django
        return str(wrapped.Database.__name__).partition(".")[0]
    bind = wrapped.get_bind() if callable(getattr(wrapped, "get_bind", None)) else wrapped
    name = getattr(getattr(bind, "dialect", None), "driver", None)
    return name if isinstance(name, str) else None


def driver_connection(connection: Any) -> Any:
    """The driver's connection that the user's transaction is open on.

    SQLAlchemy begins one when there is none, as it does for any statement: what it has not begun it does not commit.
    """
    wrapped = _current(connection)
    if callable(getattr(wrapped, "ensure_connection", None)):  # Django
        wrapped.ensure_connection()
        return wrapped.connection
    if callable(getattr(wrapped, "get_bind", None)):  # a session
        wrapped = wrapped.connection()
    if callable(getattr(wrapped, "exec_driver_sql", None)):  # SQLAlchemy's Connection
        if not wrapped.in_transaction():
            wrapped.begin()
        wrapped = wrapped.connection
    return getattr(wrapped, "driver_connection", wrapped)


async def driver_connection_async(connection: Any) -> Any:
    """The same, of what ``is_async``."""
    wrapped = _current(connection)
    if hasattr(wrapped, "sync_session"):
        wrapped = await wrapped.connection()
    if not wrapped.in_transaction():
        await wrapped.begin()
    return (await wrapped.get_raw_connection()).driver_connection


def _current(connection: Any) -> Any:
    """What a ``scoped_session`` stands for in this thread or task."""
    registry = getattr(connection, "registry", None)
    return registry() if callable(registry) and callable(getattr(connection, "remove", None)) else connection
