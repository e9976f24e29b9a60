"""The seam over one SQLite file.

SQLite has one writer at a time, also between processes, so everything here is about holding its lock briefly:
each writing verb is one statement with one document (``sql/sqlite/queries``), and after a write the thread
leaves a gap when somebody else writes too. A process that is stopped *inside* its write transaction stops all
writers until it goes on or dies.

It knows nothing of the engine. Everything that blocks runs on the store's thread, except ``renew``, which has
a connection of its own: a blocked event loop or a long flush must not cost the lease.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from durable import requests
from durable.clock import HostClock
from durable.errors import DurableError, RunNotFound, StoreUnavailable
from durable.model import (
    Claimed,
    ClaimedRun,
    Created,
    NewRun,
    Outcome,
    Queue,
    Reaped,
    Record,
    Renewal,
    Request,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
    Start,
    State,
)
from durable.sql import migrations, statements
from durable.store import Hint, Route
from durable.stores.sqlite import documents, signals
from durable.stores.sqlite.connection import Connection, Refused, script
from durable.stores.sqlite.creating import create, create_started
from durable.stores.sqlite.exchange import Exchange
from durable.stores.sqlite.oversight import Oversight
from durable.stores.sqlite.queues import decode_queues, encode_queues, take
from durable.stores.sqlite.requesting import ask
from durable.stores.sqlite.schedules import Schedules
from durable.stores.sqlite.thread import StoreThread
from durable.stores.sqlite.transactions import Transactions

T = TypeVar("T")

_log = logging.getLogger("durable.sqlite")

_PATIENCE = 8.0  # seconds a call waits for other writers; every one of them is done in milliseconds
_RENEW_PATIENCE = 3.0  # a heartbeat that found no gap so long is better sent again
_LOOK_EVERY = 0.015  # seconds between two looks for other processes' commits; one takes 2 µs
_GAP = 0.001  # seconds left to others after a write
_NEIGHBOUR = 1.0  # seconds for which a process that has written counts as still writing
_NEWS = Hint.WORK | Hint.ENDED | Hint.REQUEST | Hint.SCHEDULE  # somebody else's commit; what was in it nobody knows
_PRUNE_AT_ONCE = 50  # runs a transaction: with 100 records each 17 ms; 500 of them hold all writers up for 171 ms
_MAX_DOCUMENT = 64 * 1024 * 1024  # characters a statement; SQLite's own limit is 1,000,000,000 bytes


class SQLiteStore(Exchange, Schedules, Oversight):
    """All runs in one SQLite file, which several processes of one machine may share.

    Args:
        path: The file. Relative paths are taken from the directory the process is in now. It is created when
            it is missing, readable and writable by its owner alone.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path).absolute()
        self._clock = HostClock()
        self._opened = 0
        self._process = 0
        self._opening: asyncio.Future[None] | None = None
        self._thread: StoreThread | None = None
        self._connection: Connection | None = None
        self._statements = statements("sqlite")
        self._renewing = threading.Lock()
        self._renewer: Connection | None = None
        self._turn = 0  # which route the next claim begins with
        self._subscribers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Hint], None]]] = {}
        self._data_version = 0
        self._neighbour_seen = float("-inf")

    def __repr__(self) -> str:
        return f"<SQLiteStore {self._path}>"

    @property
    def clock(self) -> HostClock:
        return self._clock

    @property
    def url(self) -> str:
        return f"sqlite:///{self._path}"

    def twin(self) -> SQLiteStore:
        return SQLiteStore(self._path)

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._opened += 1
        if self._opened == 1:
            self._process = os.getpid()
            self._thread = StoreThread(f"durable-sqlite-{self._path.name}", _LOOK_EVERY)
            self._opening = self._thread.call(self._connect)
            self._transactions = Transactions(self._connect_another, self._flush_one)
        assert self._opening is not None
        try:
            await asyncio.shield(self._opening)
        except BaseException:
            await self.close()
            raise
        self._on_duty()

    async def close(self) -> None:
        self._opened -= 1
        if self._opened > 0:
            return
        thread, self._thread = self._thread, None
        if thread is not None and self._process == os.getpid():
            assert self._transactions is not None
            await self._transactions.close()
            await thread.stop(self._disconnect)

    def _connect(self) -> None:
        self._connection = Connection(self._path, self._statements, _PATIENCE)
        self._data_version = self._connection.value("data_version")

    def _connect_another(self) -> Connection:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path} is not open")
        self._connection.check_file()
        return Connection(self._path, self._statements, _PATIENCE)

    def _disconnect(self) -> None:
        with self._renewing:
            connections = (self._renewer, self._connection)
            self._renewer = self._connection = None
        for connection in connections:
            if connection is not None:
                connection.close()

    async def schema_version(self) -> int:
        return await self._read(lambda db: db.schema_version())

    @property
    def latest_version(self) -> int:
        return len(migrations("sqlite"))

    async def migrate(self) -> None:
        await self._read(lambda db: db.migrate(migrations("sqlite"), self._now))

    def migration_script(self, present: int) -> str:
        return script(migrations("sqlite")[present:])

    # -- workers ----------------------------------------------------------------------------------

    async def register(self, worker: str, lease: float, host: str = "", pid: int = 0) -> None:
        documents.encode(host)
        home = {"host": host, "pid": pid}
        await self._write(
            lambda db: db.write("register", lambda: {**self._lease(worker, lease), **home, "now": self._now()})
        )

    def renew(self, worker: str, lease: float) -> Renewal:
        with self._renewing:
            connection = self._connection
            if connection is None or self._process != os.getpid():
                raise StoreUnavailable(f"{self._path} is not open in this process")
            connection.check_file()
            if self._renewer is None:
                self._renewer = Connection(self._path, self._statements, _RENEW_PATIENCE)
            alive = self._renewer.write("renew", lambda: self._lease(worker, lease)) > 0
            others = self._renewer.value("next_expiry", {"worker": worker})
        return Renewal(alive, self._clock.now(), None if others is None else documents.moment(others))

    async def unregister(self, worker: str) -> None:
        await self._write(lambda db: db.write("reap", lambda: (self._now(), worker, None)))

    async def reap(self, limit: int = 5) -> Reaped:
        def reap(db: Connection) -> Reaped:
            if not db.value("anything_to_reap", {"now": self._now()}):  # the usual answer needs no write lock
                return Reaped(0)
            db.write("reap", lambda: (self._now(), None, limit))
            return documents.decode_reaped(db.value("reaped"))

        return await self._write(reap)

    def _lease(self, worker: str, lease: float) -> dict[str, Any]:
        return {"worker": worker, "expires_at": documents.micros(self._clock.now() + timedelta(seconds=lease))}

    def _now(self) -> int:
        return documents.micros(self._clock.now())

    # -- execution, fenced ------------------------------------------------------------------------

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
        *,
        unasked: bool = False,  # noqa: ARG002  (the seam's signature)
    ) -> Claimed:
        return await self._claim(worker, routes, limit, batch, warm, done)

    async def claim_run(self, worker: str, route: Route, run_id: str, batch: str, warm: Mapping[str, int]) -> Claimed:
        return await self._claim(worker, [route], 1, batch, warm, (), run_id)

    async def _claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str],
        one: str | None = None,
    ) -> Claimed:
        wanted = list(dict.fromkeys(routes))
        self._turn = (self._turn + 1) % max(len(wanted), 1)  # else a route that is never drained starves the rest
        asked = documents.encode(wanted[self._turn :] + wanted[: self._turn])
        forget = documents.encode(list(done))

        def claim(db: Connection) -> Claimed:
            stopped_at = take(db, self._now, worker, batch, asked, limit, forget, one)
            runs = documents.decode_runs(db.value("claimed_runs"))
            cold = [n for run, _, n in runs if warm.get(run.id) != run.claim - 1]
            records = db.value("claimed_records", {"runs": documents.encode(cold)}) if cold else "[]"
            histories = documents.decode_records(records)
            inbox = signals.of_claimed(db, runs)
            known = {n for _, _, n in runs}.difference(cold)
            return heard(
                db,
                [ClaimedRun(r, None if n in known else histories.get(n, []), w, inbox.get(n, ())) for r, w, n in runs],
                stopped_at,
            )

        def heard(db: Connection, runs: Sequence[ClaimedRun], stopped_at: int | None = None) -> Claimed:
            following = stopped_at or db.value("next_ready", {"routes": asked, "now": self._now()})
            requested = documents.decode_requests(db.value("requests", {"worker": worker}))
            told = signals.signalled(db, worker)
            return Claimed(runs, None if following is None else documents.moment(following), requested, told)

        if limit <= 0 and not done:  # nothing to write: not even a wait for other writers
            return await self._read(lambda db: heard(db, []))
        return await self._write(claim)

    async def owned(self, worker: str) -> list[RunRef]:
        return await self._read(lambda db: documents.decode_refs(db.value("owned", {"worker": worker})))

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if not writes:
            return []
        aside = await self._set_aside(writes)
        flush = self._encoded(writes, worker, aside)
        if len(writes) > 1 and sum(map(len, flush)) > _MAX_DOCUMENT:
            half = len(writes) // 2
            return await self.commit(worker, writes[:half]) + await self.commit(worker, writes[half:])
        return await self._write(lambda db: self._flush(db, worker, writes, flush, aside))

    async def _set_aside(self, writes: Sequence[RunWrite]) -> Mapping[str, Sequence[str]]:
        """Run id → keys, for the changes that set records aside.

        Read before the flush: under one claim nobody else writes to the history, and the flush proves the claim.
        """
        aside: dict[str, Sequence[str]] = {}
        for write in writes:
            if write.change is not None and write.change.drop_failed:
                aside[write.ref.id] = requests.set_failed_aside([*await self.history(write.ref.id), *write.records])
        return aside

    def _encoded(self, writes: Sequence[RunWrite], worker: str, aside: Mapping[str, Sequence[str]]) -> documents.Flush:
        return documents.encode_writes(writes, worker, self._clock.now(), aside, signals.encode_also(writes))

    def _flush(
        self,
        db: Connection,
        worker: str,
        writes: Sequence[RunWrite],
        flush: documents.Flush,
        aside: Mapping[str, Sequence[str]],
    ) -> list[Outcome]:
        try:
            self._send(db, worker, flush)
        except Refused:
            contradicted = documents.decode_ids(
                db.value("flush_contradicted", {"claims": flush.claims, "records": flush.records})
            )
            rest = [write for write in writes if write.ref.id not in contradicted]
            if len(rest) == len(writes):
                raise
            without = self._encoded(rest, worker, aside)
            again = self._flush(db, worker, rest, without, aside)
            outcomes = dict(zip((write.ref.id for write in rest), again, strict=True))
            return [outcomes.get(write.ref.id, Outcome.LEASE_LOST) for write in writes]
        if db.value("flush_count") == len(writes):
            return [Outcome.APPLIED] * len(writes)
        applied = documents.decode_ids(db.value("flush_applied"))
        missing = [write for write in writes if write.ref.id not in applied]
        resent = self._encoded(missing, worker, aside)
        applied |= documents.decode_ids(db.value("flush_sent_before", {"worker": worker, **resent._asdict()}))
        return [Outcome.APPLIED if write.ref.id in applied else Outcome.LEASE_LOST for write in writes]

    def _send(self, db: Connection, worker: str, flush: documents.Flush) -> None:
        if flush.also:
            db.write("flush_also", lambda: (self._now(), worker, *flush))
        else:
            db.write("flush", lambda: (self._now(), worker, *flush[:-1]))

    def _flush_one(self, db: Connection, worker: str, write: RunWrite) -> Outcome:
        """Inside an open transaction; here nothing can have been sent before."""
        try:
            self._send(db, worker, self._encoded([write], worker, {}))
        except Refused:
            return Outcome.LEASE_LOST
        return Outcome.APPLIED if db.value("flush_count") else Outcome.LEASE_LOST

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        document = documents.encode_new_runs(runs)
        if len(runs) > 1 and len(document) > _MAX_DOCUMENT:
            half = len(runs) // 2
            return await self.create_runs(runs[:half], start) + await self.create_runs(runs[half:], start)
        if start is not None:
            return await self._write(lambda db: create_started(db, self._now, runs, start))
        return await self._write(lambda db: create(db, self._now, runs, document))

    async def put_queues(self, queues: Sequence[Queue]) -> None:
        document = encode_queues(queues)
        if queues:
            await self._write(lambda db: db.write("put_queues", lambda: {"queues": document}))

    async def queues(self) -> list[Queue]:
        return await self._read(lambda db: decode_queues(db.value("queues")))

    async def request(self, run_id: str, request: Request) -> State | None:
        return await self._write(lambda db: ask(db, self._now, run_id, request, None))

    async def retry_from(self, run_id: str, step: str, request: Request) -> State | None:
        return await self._write(lambda db: ask(db, self._now, run_id, request, step))

    async def prune(self, before: datetime, limit: int) -> int:
        total = 0
        while total < limit:
            at_most = min(limit - total, _PRUNE_AT_ONCE)
            total += (pruned := await self._delete(None, documents.micros(before), at_most))
            if pruned < at_most:
                break
        return total

    async def delete(self, run_id: str) -> bool:
        if await self._delete(run_id, None, 1):
            return True
        if not await self._read(lambda db: db.value("exists", {"id": run_id})):
            raise RunNotFound(f"there is no run {run_id!r}")
        return False

    async def _delete(self, run_id: str | None, before: int | None, at_most: int) -> int:
        """Delete one run, or those that ended before; how many it was."""

        def delete(db: Connection) -> int:
            db.write("delete", lambda: (run_id, before, at_most))
            return int(db.value("deleted"))

        return await self._write(delete)

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        ids = {"ids": documents.encode(list(dict.fromkeys(run_ids)))}
        return await self._read(lambda db: [row.run for row in documents.decode_runs(db.value("get_runs", ids))])

    async def find_key(self, workflow: str, key: str) -> str | None:
        return await self._read(lambda db: db.value("find_key", {"workflow": workflow, "key": key}))

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        ids = {"ids": documents.encode(list(dict.fromkeys(run_ids)))}
        return await self._read(lambda db: [row.run for row in documents.decode_runs(db.value("ended", ids))])

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        after, until = where.created_after, where.created_before
        parameters = {
            "before": "\U0010ffff" if before is None else before,
            "at_most": limit,
            "workflow": where.workflow,
            "version": where.version,
            "state": where.state,
            "created_after": None if after is None else documents.micros(after),
            "created_before": None if until is None else documents.micros(until),
            "tags": documents.encode(dict(where.tags)),
            "queue": where.queue,
            "parent": where.parent,
            "schedule": where.schedule,
        }
        statement = "list_children" if where.parent else "list_scheduled" if where.schedule else "list_runs"
        return await self._read(lambda db: documents.decode_summaries(db.value(statement, parameters)))

    async def history(self, run_id: str) -> list[Record]:
        return await self._read(lambda db: documents.decode_history(db.value("history", {"id": run_id})))

    # -- hints ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        token = object()
        self._subscribers[token] = (asyncio.get_running_loop(), callback)
        self._on_duty()

        def end() -> None:
            self._subscribers.pop(token, None)
            self._on_duty()

        return end

    def announce(self, hint: Hint) -> None:
        """Nothing to do: the commit itself is what the other processes see."""

    def _on_duty(self) -> None:
        if self._thread is not None:
            self._thread.look_out(self._look if self._subscribers else None)

    def _look(self) -> None:
        """Notice commits of other connections, in the store's thread. Heartbeats are among them."""
        if self._connection is None:
            return
        try:
            version = self._connection.value("data_version")
        except DurableError as error:
            _log.warning("cannot see whether other processes have written: %s", error)
            return
        if version == self._data_version:
            return
        self._data_version = version
        self._neighbour_seen = time.monotonic()
        for token, (loop, callback) in list(self._subscribers.items()):
            try:
                loop.call_soon_threadsafe(callback, _NEWS)
            except RuntimeError:  # its loop was closed: nobody listens any more
                self._subscribers.pop(token, None)

    def _leave_a_gap(self) -> None:
        """After a write, when the next call is here already: let another process that writes have its turn.

        Between two calls that the event loop sends one by one there is a gap anyway; one more of a millisecond
        would make a small commit beside a busy process take 3 ms instead of 0.5.
        """
        self._look()
        crowded = self._thread is not None and self._thread.has_calls
        if crowded and time.monotonic() - self._neighbour_seen < _NEIGHBOUR:
            time.sleep(_GAP)

    # -- the thread -------------------------------------------------------------------------------

    async def _read(self, fn: Callable[[Connection], T]) -> T:
        return await self._on_thread(fn, None)

    async def _write(self, fn: Callable[[Connection], T]) -> T:
        return await self._on_thread(fn, self._leave_a_gap)

    async def _on_thread(self, fn: Callable[[Connection], T], then: Callable[[], None] | None) -> T:
        thread, connection = self._check_open()
        return await thread.call(lambda: fn(connection), then)

    def _check_open(self) -> tuple[StoreThread, Connection]:
        thread, connection = self._thread, self._connection
        if thread is None or connection is None:
            raise StoreUnavailable(f"{self._path} is not open")
        if self._process != os.getpid():
            raise StoreUnavailable(f"{self._path} was opened before a fork: open a store in the child process")
        return thread, connection
