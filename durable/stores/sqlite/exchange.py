"""What runs exchange with the rest of the world, as methods of the store: signals, events, effects, transactions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from durable.model import (
    Created,
    Effect,
    Emitted,
    NewRun,
    NewSignal,
    Outcome,
    Published,
    RunRef,
    RunWrite,
    Sent,
    Unread,
)
from durable.sql import statements
from durable.stores.sqlite import documents, effects
from durable.stores.sqlite.connection import Connection
from durable.stores.sqlite.events import emitted, encode_events, publish
from durable.stores.sqlite.foreign import OnSQLiteConnection
from durable.stores.sqlite.signals import create_with, encode_signals, send, unread
from durable.stores.sqlite.transactions import Transactions

T = TypeVar("T")


class Exchange(ABC):
    """A part of ``SQLiteStore``, which has the thread and the connection."""

    _path: Path
    _transactions: Transactions | None = None

    @abstractmethod
    def _now(self) -> int: ...

    @abstractmethod
    async def _read(self, fn: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def _write(self, fn: Callable[[Connection], T]) -> T: ...

    # -- fenced -----------------------------------------------------------------------------------

    async def unread(self, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
        return await self._write(lambda db: unread(db, worker, run_ids))

    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        documents.encode((key, step))
        return await self._write(lambda db: effects.take(db, worker, ref, key, step))

    async def transact(
        self,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        """See the seam. ``work`` gets a ``sqlite3.Connection`` in both cases; with ``on_loop`` in the loop's thread.

        From before ``work`` to the commit all other writers of the file wait. So it must be short, and write through
        its connection alone: a call of the engine that writes would wait for it, and it for the call.
        """
        await self._read(lambda _: None)  # it is open
        assert self._transactions is not None
        return await self._transactions.run(worker, work, on_loop, write)

    # -- anybody ----------------------------------------------------------------------------------

    async def create_with_signal(self, run: NewRun, signal: NewSignal) -> tuple[Created, Sent]:
        return await self._write(lambda db: create_with(db, self._now, run, signal))

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[Sent]:
        document = encode_signals(signals)
        return await self._write(lambda db: send(db, self._now, document))

    async def publish(self, events: Sequence[Published]) -> None:
        document = encode_events(events)
        await self._write(lambda db: publish(db, self._now, document))

    async def emitted(self, after: str | None, limit: int) -> list[Emitted]:
        return await self._read(lambda db: emitted(db, after, limit))

    @property
    def on_connection(self) -> OnSQLiteConnection:
        return OnSQLiteConnection(self._path, statements("sqlite"), self._now)
