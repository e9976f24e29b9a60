"""A transaction of the user's function on a connection of ours: its writes and the step's record, all or nothing.

It has a connection and a thread of its own, so that reads of the store go on while the function executes. The write
lock is taken before the function is called: one that has read first could not have it later. So whoever else writes
to the file, in this process too, waits for the function's end, and gives up after eight seconds.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import Any

from durable.errors import InvalidArgument, StoreUnavailable
from durable.model import Outcome, RunWrite
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection, Stale
from durable.stores.sqlite.thread import StoreThread

_NOTE = "durable ends this transaction itself, together with the step's record: leave commit, rollback and scripts out"


class Transactions:
    """One at a time: the file has one writer.

    Args:
        connect: Opens the connection; called at the first transaction, and after one that was not committed.
        flush: Applies a write on a connection, inside its transaction.
    """

    def __init__(
        self, connect: Callable[[], Connection], flush: Callable[[Connection, str, RunWrite], Outcome]
    ) -> None:
        self._connect = connect
        self._flush = flush
        self._turn = asyncio.Lock()
        self._thread: StoreThread | None = None
        self._db: Connection | None = None
        self._dropped: asyncio.Future[None] | None = None  # pending while an abandoned function still executes

    async def run(
        self,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        """As ``Store.transact``. The connection may be used from the loop's thread, and from the one of ``work``."""
        async with self._turn:
            thread = self._thread = self._thread or StoreThread("durable-sqlite-transaction", 1.0)
            committed = False
            try:
                raw = await thread.call(self._begin)
                result = await (work(raw) if on_loop else _in_thread(thread, work, raw))
                planned = await write(result)
                outcome = await thread.call(lambda: self._finish(worker, planned))
                committed = outcome is Outcome.APPLIED
            except sqlite3.DatabaseError as error:
                if str(error) == "not authorized":
                    error.add_note(_NOTE)
                raise
            finally:
                # Also when this call is cancelled while `work` executes: the thread comes to it when that has returned.
                if not committed:
                    self._dropped = thread.call(self._drop)
            return outcome

    async def close(self) -> None:
        """End the thread; one that executes a function ends when that has returned, and nobody waits for it."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._turn.locked() or (self._dropped is not None and not self._dropped.done()):
            thread.leave(self._drop)
        else:
            await thread.stop(self._drop)

    def _begin(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._connect()
        try:
            self._db.begin()
        except Stale:  # a cursor that the last function left behind
            self._drop()
            self._db = self._connect()
            self._db.begin()
        return self._db.lend()

    def _finish(self, worker: str, write: RunWrite) -> Outcome:
        db = self._db
        assert db is not None, "it has begun"
        if not db.take_back():
            raise InvalidArgument("the transaction had ended before its function returned: nothing is recorded")
        outcome = self._flush(db, worker, write)
        if outcome is Outcome.APPLIED:
            try:
                db.commit()
            except StoreUnavailable:
                self._drop()
                if not self._is_written(worker, write):
                    raise
        return outcome

    def _is_written(self, worker: str, write: RunWrite) -> bool:
        """Whether a commit without an answer has taken place: the records that it wrote are there."""
        self._db = self._connect()
        history = documents.decode_history(self._db.value("history", {"id": write.ref.id}))
        return bool(write.records) and {r._replace(worker=worker) for r in write.records} <= set(history)

    def _drop(self) -> None:
        """Close the connection, which ends what is open on it; whatever the function has done to it is gone too."""
        db, self._db = self._db, None
        if db is not None:
            db.close()


async def _in_thread(thread: StoreThread, work: Callable[[Any], Any], connection: sqlite3.Connection) -> Any:
    """What ``work`` returns, called in the thread with this task's context variables."""
    context = copy_context()

    def call() -> tuple[Any, BaseException | None]:
        try:
            return context.run(work, connection), None
        except BaseException as error:  # a future cannot carry every one of them, StopIteration for instance
            return None, error

    result, error = await thread.call(call)
    if error is not None:
        raise error
    return result
