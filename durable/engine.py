"""The engine: a client with a worker, and the lifetime of both."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from durable import failures
from durable.collector import sparing_collector
from durable.durations import seconds
from durable.errors import InvalidArgument, SchemaOutdated, SchemaTooNew
from durable.model import Failure, Queue
from durable.operator import Operator, check_queue
from durable.options import WorkerOptions
from durable.sql import check_schema
from durable.store import Store
from durable.stores import store_for
from durable.sync import SyncClient
from durable.testing.clock import VirtualClock
from durable.worker import Worker
from durable.workflow import Workflow

_log = logging.getLogger("durable.engine")

_OBSERVERS = 0.3
"""Seconds that a stopping engine grants to callbacks for what has happened; part of P03's one."""

_GOODBYE = 0.1
"""Seconds that a worker's main grants to tasks that are still there when the engine has stopped; part of P03's one."""


class Engine(Operator):
    """Runs workflows on a store. Constructing it does no I/O; several may live in one process.

    Args:
        store: A URL (``postgresql://``, ``sqlite:///relative``, ``sqlite:////absolute``, ``memory://``), a ``Store``
            object that engines may share, or None: ``DURABLE_DATABASE_URL``, else the file ``durable.db``.
        workflows: What this engine can execute and trigger.
        services: Handed to workflows as ``ctx.services``.
        worker: How its worker works.
        schema: The Postgres schema; lower-case letters, digits and ``_``.
        auto_migrate: Bring the schema up to date at start; else a schema that is behind is an error.
        step_timeout: Default timeout of each step attempt, seconds or timedelta; None: no limit.
        queues: Limits of queues, stored at start; see ``set_limits``.
        redact: Called with the message and the traceback of every error before it is stored; returns what to store.

    Raises:
        InvalidArgument: An argument is out of its documented range.
    """

    def __init__(
        self,
        store: str | Store | None = None,
        *,
        workflows: Iterable[Workflow[Any, Any]] = (),
        services: Mapping[str, Any] | None = None,
        worker: WorkerOptions | None = None,
        schema: str = "durable",
        auto_migrate: bool = True,
        step_timeout: float | timedelta | None = None,
        queues: Iterable[Queue] = (),
        redact: Callable[[str], str] | None = None,
    ) -> None:
        check_schema(schema)
        super().__init__(store_for(store, schema) if store is None or isinstance(store, str) else store, workflows)
        self._services = dict(services or {})
        self._options = worker or WorkerOptions()
        self._auto_migrate = auto_migrate
        self._step_timeout = None if step_timeout is None else seconds(step_timeout, "step_timeout")
        self._queues = tuple(queues)
        for queue in self._queues:
            check_queue(queue)
        self._redact = redact
        self._worker: Worker | None = None
        self._sync: SyncClient | None = None

    @property
    def sync(self) -> SyncClient:
        """The client for synchronous code: trigger, signal, cancel and read, blocking, from any thread.

        It needs neither ``async with engine`` nor a running loop: it connects by itself, to the same store.
        """
        if self._sync is None:
            self._sync = SyncClient(self._elsewhere)
        return self._sync

    def _elsewhere(self) -> AbstractAsyncContextManager[Engine]:
        """A client of the same store and workflows for another event loop."""
        known = self._workflows.values()
        return Engine(self._store.twin(), workflows=known, auto_migrate=self._auto_migrate).client()

    # -- lifetime ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, migrate if needed and allowed, and start the worker.

        Raises:
            StoreUnavailable: The database cannot be reached. There is no fallback.
            SchemaOutdated: The schema is behind and ``auto_migrate`` is off.
            SchemaTooNew: The schema is ahead of this code.
            InvalidArgument: The engine is running already.
        """
        await self._connect()
        try:
            self._worker = await self._started_worker()
        except BaseException:
            await self._disconnect()
            raise

    async def stop(self) -> None:
        """Stop claiming, let running steps end within ``drain_timeout``, give the rest back, close."""
        worker, self._worker = self._worker, None
        if worker is not None:
            await worker.stop()
        await self._disconnect()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Self]:
        """Connected without a worker: a web process triggers, reads and waits, and executes nothing."""
        await self._connect()
        try:
            yield self
        finally:
            await self._disconnect()

    def run(self) -> None:
        """A worker's main: work until SIGTERM or SIGINT, drain, return. A second signal ends at once.

        While it works, Python's garbage collector looks less often, and not at what was there before (`gc.freeze`).
        """
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._run())
        finally:
            _close(loop)

    async def _run(self) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()

        def on_signal(number: int) -> None:
            if stopping.is_set():
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        with sparing_collector():
            async with self:
                await stopping.wait()

    async def migrate(self) -> None:
        """Bring the database schema up to date. Safe from many processes at once.

        Raises:
            StoreUnavailable: The database cannot be reached.
            SchemaTooNew: The schema is ahead of this code.
        """
        await self._store.open()
        try:
            await self._store.migrate()
        finally:
            await self._store.close()

    async def _connect(self) -> None:
        if self._connected:
            raise InvalidArgument("the engine is running already")
        await self._store.open()
        try:
            await self._check_schema_version()
            if self._queues:
                await self._store.put_queues(self._queues)
        except BaseException:
            await self._store.close()
            raise
        self._results.start()
        self._connected = True

    async def _check_schema_version(self) -> None:
        found, needed = await self._store.schema_version(), self._store.latest_version
        if found > needed:
            raise SchemaTooNew(
                f"the schema in {self._store.url} has version {found}, this code knows {needed}: deploy a newer version"
            )
        if found < needed and not self._auto_migrate:
            raise SchemaOutdated(
                f"the schema in {self._store.url} has version {found}, this code needs {needed}: "
                "run `await engine.migrate()` with a role that may change the schema"
            )
        if found < needed:
            await self._store.migrate()

    async def _disconnect(self) -> None:
        if not self._connected:  # stopped twice: the store may be another engine's too
            return
        self._connected = False
        for sender in (self._creator, self._signals, self._publisher):
            await sender.drained()
        await self._results.stop()
        await self._hooks.drained(_OBSERVERS)
        await self._store.close()

    async def _started_worker(self) -> Worker:
        worker = Worker(
            self._store,
            self._workflows,
            self._services,
            self._options,
            self._step_timeout,
            self._hooks,
            self._capture,
            self._on_ended,
        )
        await worker.start()
        return worker

    def _poke(self) -> None:
        if self._worker is not None:
            self._worker.poke()

    def _capture(self, error: BaseException) -> Failure:
        failure = failures.capture(error)
        if self._redact is None:
            return failure
        try:
            return failures.redacted(failure, self._redact)
        except Exception:
            _log.exception("the redaction hook raised: the error is stored without its text")
            return replace(failure, message="(the redaction hook raised)", traceback="")

    async def run_until_idle(self, *, skip_time: bool = False) -> None:
        """For tests: execute here until nothing is due, with a worker of its own when none is running.

        Args:
            skip_time: Jump the virtual clock to the next due time, again and again, until no run waits for time.

        Raises:
            InvalidArgument: ``skip_time`` without a store on a ``VirtualClock``.
        """
        self._check_connected()
        clock = self._store.clock
        if skip_time and not isinstance(clock, VirtualClock):
            raise InvalidArgument("skip_time needs a store on a VirtualClock")
        worker = self._worker or await self._started_worker()
        try:
            await worker.until_idle()
            while skip_time and isinstance(clock, VirtualClock) and (due := clock.next_due()) is not None:
                clock.set(due)
                await worker.until_idle()
        finally:
            if worker is not self._worker:
                await worker.stop()


def _close(loop: asyncio.AbstractEventLoop) -> None:
    """As at the end of ``asyncio.run``, which would wait without limit for a step that ignores its cancellation."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_GOODBYE))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
