"""The heartbeat's own connection, used from its thread: a blocked event loop must not lose the lease."""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import NamedTuple

import psycopg

from durable.errors import StoreUnavailable
from durable.model import Renewal
from durable.stores.postgres.connections import Server, Sync, hang_up
from durable.stores.postgres.failures import translated

_PATIENCE = 10.0
"""Seconds without an answer after which the connection is hung up; the next renewal opens a new one."""


class Renewed(NamedTuple):
    answer: Renewal
    sent: float  # time.monotonic() before sending


class LeaseConnection:
    """One synchronous connection, opened at its first use and again after it broke."""

    def __init__(self, server: Server, statement: bytes) -> None:
        self._server = server
        self._statement = statement
        self._lock = threading.Lock()
        self._connection: Sync | None = None
        self._closed = threading.Event()

    def open(self) -> None:
        """Allow use; the connection itself is made by the first renewal."""
        self._closed.clear()

    def renew(self, worker: str, lease: float) -> Renewed:
        """Blocking.

        Raises:
            StoreUnavailable: No answer.
        """
        with self._lock:
            if self._closed.is_set():
                raise StoreUnavailable("renew: the store is closed")
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = self._server.connect_sync()
                return self._ask(self._connection, worker, lease)
            except (psycopg.Error, OSError) as error:
                self._drop()
                raise translated(error, "renew") from None
            finally:
                if self._closed.is_set():
                    self._drop()

    def close(self) -> None:
        """From the event loop: never waits for a renewal that is on its way, that one is made to fail."""
        self._closed.set()
        connection = self._connection
        if connection is not None:
            hang_up(connection)
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
            finally:
                self._lock.release()

    def _ask(self, connection: Sync, worker: str, lease: float) -> Renewed:
        impatience = threading.Timer(_PATIENCE, hang_up, [connection])
        impatience.daemon = True
        impatience.start()
        try:
            sent = time.monotonic()
            with connection.pipeline():
                connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                cursor = connection.execute(self._statement, [worker, str(lease)])
                connection.execute("COMMIT")
            row = cursor.fetchone()
        finally:
            impatience.cancel()
        assert row is not None
        lanes: int
        now: datetime
        next_expiry: datetime | None
        lanes, now, next_expiry = row
        return Renewed(Renewal(lanes > 0, now, next_expiry), sent)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
