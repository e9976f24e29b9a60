"""The engine: a client with a worker, and the lifetime of both."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, get_args

from durable import failures
from durable.calendar import Undeclared
from durable.collector import sparing_collector
from durable.durations import seconds
from durable.errors import InvalidArgument, SchemaOutdated, SchemaTooNew, UnknownWorkflow
from durable.inspector import Inspector
from durable.meter import Meter
from durable.model import Created, Failure, NewRun, Queue, State
from durable.operator import check_queues
from durable.options import WorkerOptions
from durable.scheduler import Scheduler
from durable.sql import check_schema
from durable.states import TERMINAL
from durable.store import Hint, Route, Store
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


class Engine(Inspector):
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
        program: Which program this is: schedules that its code declares are remembered under this name. Give the
            engines of different programs on one schema different names; the default is for a schema with one.
        undeclared_schedules: What a start does with schedules that ``program`` declared before, and does not declare
            any more: ``report`` (default) names them in the log, and they go on firing; ``pause`` pauses them until
            they are declared again; ``delete`` deletes them. While two releases of a program run side by side, a
            start of the older one does not know what the newer one declares: prefer ``report`` there.
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
        program: str = "main",
        undeclared_schedules: Undeclared = "report",
        redact: Callable[[str], str] | None = None,
    ) -> None:
        check_schema(schema)
        if undeclared_schedules not in get_args(Undeclared):
            raise InvalidArgument(
                f"undeclared_schedules must be one of {', '.join(get_args(Undeclared))}, not {undeclared_schedules!r}"
            )
        found = store_for(store, schema) if store is None or isinstance(store, str) else store
        super().__init__(found, workflows, program)
        self._services = dict(services or {})
        self._options = worker or WorkerOptions()
        self._auto_migrate = auto_migrate
        self._step_timeout = None if step_timeout is None else seconds(step_timeout, "step_timeout")
        self._queues = check_queues(queues)
        self._redact = redact
        self._undeclared_schedules: Undeclared = undeclared_schedules
        self._worker: Worker | None = None
        self._scheduler: Scheduler | None = None
        self._sync: SyncClient | None = None
        self._meter: Meter | None = None

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

    @property
    def working(self) -> bool | None:
        """Whether its worker holds its lease, so that steps may start; None: no worker runs here."""
        worker = self._worker
        return None if worker is None else bool(worker.id) and time.monotonic() < worker.deadline

    @property
    def worker_options(self) -> WorkerOptions:
        """How its worker works. It is set before the start."""
        return self._options

    @worker_options.setter
    def worker_options(self, options: WorkerOptions) -> None:
        if self._connected:
            raise InvalidArgument("worker_options are set before the engine starts")
        self._options = options

    @property
    def meter(self) -> Meter | None:
        """Who measures claims, commits, renewals and steps of this engine's worker; None, the default, costs nothing.

        It is set before the start.
        """
        return self._meter

    @meter.setter
    def meter(self, meter: Meter | None) -> None:
        if self._connected:
            raise InvalidArgument("meter is set before the engine starts")
        self._meter = meter

    async def tick(self, run_id: str) -> State:
        """Advance one run in this process: whatever of it is ready executes, until it rests.

        By a worker of its own that does nothing else; one that the engine has is not involved. Children of the run are
        runs of their own. A step that is under way when this is cancelled has ``drain_timeout`` to end.

        Returns:
            The run's state: ended, parked (``sleeping``, ``waiting``), ``paused``; or as it is when nothing of it was
            ready, or another worker holds it.

        Raises:
            RunNotFound: There is no such run.
            UnknownWorkflow: The engine does not have the run's workflow in its version.
            StoreUnavailable: The store does not answer. An outage while it executes is waited for.
        """
        run = await self.get_run(run_id)
        if (run.workflow, run.version) not in self._workflows:
            raise UnknownWorkflow(
                f"workflow {run.workflow!r} version {run.version!r} is not registered with this engine"
            )
        if run.state in TERMINAL or run.state is State.PAUSED:
            return run.state
        worker = await self._started_worker((Route(run.workflow, run.version, run.queue), run.id))
        try:
            await worker.until_idle()
        finally:
            await worker.stop()
        return (await self.get_run(run_id)).state

    # -- lifetime ---------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, migrate if needed and allowed, put the schedules of the code, and start the worker.

        Raises:
            StoreUnavailable: The database cannot be reached. There is no fallback.
            SchemaOutdated: The schema is behind and ``auto_migrate`` is off.
            SchemaTooNew: The schema is ahead of this code.
            InvalidArgument: The engine is running already.
        """
        await self._connect()
        try:
            await self._declare_all(self._undeclared_schedules)
            self._worker = await self._started_worker()
        except BaseException:
            await self._disconnect()
            raise
        self._scheduler = self._started_scheduler()

    async def stop(self) -> None:
        """Stop claiming, let running steps end within ``drain_timeout``, give the rest back, close."""
        worker, self._worker = self._worker, None
        scheduler, self._scheduler = self._scheduler, None
        if scheduler is not None:
            scheduler.stop()
        if worker is not None:
            await worker.stop()
        if scheduler is not None:
            await scheduler.stopped(_GOODBYE)
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

    def run(
        self,
        *,
        loop_factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
        started: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        """A worker's main: work until SIGTERM or SIGINT, drain, return. A second signal ends at once.

        While it works, Python's garbage collector looks less often, and not at what was there before (`gc.freeze`).

        Args:
            loop_factory: Makes the event loop: ``uvloop.new_event_loop``, for example.
            started: Called once, when the worker is registered and begins to claim, with a function that does what
                the first signal does. That one may be called from any thread, any number of times.

        Raises:
            ConfigurationError: It could not start; see ``start``.
        """
        loop = loop_factory()
        try:
            loop.run_until_complete(self._run(started))
        finally:
            close_loop(loop)

    async def _run(self, started: Callable[[Callable[[], object]], None] | None) -> None:
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
                if started is not None:
                    started(partial(loop.call_soon_threadsafe, stopping.set))
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

    async def schema_version(self) -> tuple[int, int]:
        """The version of the schema in the database, 0 when there is none, and the one that this code needs.

        The engine need not run; nothing is changed.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        await self._store.open()
        try:
            return await self._store.schema_version(), self._store.latest_version
        finally:
            await self._store.close()

    def migration_script(self, present: int = 0) -> str:
        """SQL for the database's own shell that does what ``migrate`` does, in one transaction; no I/O.

        Args:
            present: The version of the schema in the database; 0: there is none.

        Raises:
            InvalidArgument: There is no such version.
        """
        if not 0 <= present <= self._store.latest_version:
            raise InvalidArgument(f"there are versions 0 to {self._store.latest_version}, and not {present}")
        return self._store.migration_script(present)

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

    async def _started_worker(self, only: tuple[Route, str] | None = None) -> Worker:
        options = self._options
        if only is not None:
            options = options.replaced(concurrency=1, linger=0.0, prune_after=None)
        worker = Worker(
            self._store,
            self._workflows,
            self._services,
            options,
            self._step_timeout,
            self._hooks,
            self._capture,
            self._on_ended,
            self._meter,
            only,
        )
        await worker.start()
        return worker

    def _started_scheduler(self) -> Scheduler:
        scheduler = Scheduler(self._store, self._hooks, self._ready)
        scheduler.start()
        return scheduler

    def _ready(self, hint: Hint) -> None:
        """The scheduler has created runs."""
        self._poke()
        self._store.announce(hint)

    def _poke(self) -> None:
        if self._worker is not None:
            self._worker.poke()

    async def _create(self, runs: Sequence[NewRun]) -> Sequence[Created]:
        if self._worker is None:
            return await super()._create(runs)
        return await self._worker.create(runs, partial(self._created, runs))

    def _held(self, run_id: str) -> bool:
        return self._worker is not None and self._worker.holds(run_id)

    def _due_anew(self) -> None:
        if self._scheduler is not None:
            self._scheduler.poke()

    def _capture(self, error: BaseException) -> Failure:
        failure = failures.capture(error)
        if self._redact is None:
            return failure
        try:
            return failures.redacted(failure, self._redact)
        except Exception:
            _log.exception("the redaction hook raised: the error is stored without its text")
            return replace(failure, message="(the redaction hook raised)", traceback="")

    async def run_until_idle(self, *, skip_time: bool = False, until: datetime | None = None) -> None:
        """For tests: execute here until nothing is due, with a worker of its own when none is running.

        Args:
            skip_time: Jump the virtual clock to the next due time, again and again, until no run waits for time. Ticks
                of schedules that fall due on the way are fired; schedules never end, so they alone are not waited for.
            until: With ``skip_time``: jump until this time instead, from tick to tick too; aware.

        Raises:
            InvalidArgument: ``skip_time`` without a store on a ``VirtualClock``, or ``until`` without ``skip_time``.
        """
        self._check_connected()
        clock = self._store.clock
        if skip_time and not isinstance(clock, VirtualClock):
            raise InvalidArgument("skip_time needs a store on a VirtualClock")
        if until is not None and not skip_time:
            raise InvalidArgument("until goes with skip_time")
        worker = self._worker or await self._started_worker()
        scheduler = self._scheduler or self._started_scheduler()
        try:
            await _idle(worker, scheduler)
            while skip_time and isinstance(clock, VirtualClock) and (due := _next(clock, until)) is not None:
                clock.set(due)
                await _idle(worker, scheduler)
        finally:
            if scheduler is not self._scheduler:
                scheduler.stop()
                await scheduler.stopped(_GOODBYE)
            if worker is not self._worker:
                await worker.stop()


async def _idle(worker: Worker, scheduler: Scheduler) -> None:
    await scheduler.until_idle()
    await worker.until_idle()


def _next(clock: VirtualClock, until: datetime | None) -> datetime | None:
    """The time to jump to; None: stay."""
    due = clock.next_due()
    if until is None:
        return due if clock.waited_for else None
    if clock.now() >= until:
        return None
    return until if due is None else min(due, until)


def close_loop(loop: asyncio.AbstractEventLoop) -> None:
    """As at the end of ``asyncio.run``, which would wait without limit for a step that ignores its cancellation."""
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=_GOODBYE))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
