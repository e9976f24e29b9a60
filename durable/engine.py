"""The engine: what an application starts, triggers runs with, and asks about them."""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from durable.codec import MISSING, canonical_hash, codec_for
from durable.committer import Creator
from durable.durations import seconds
from durable.errors import (
    ConfigurationError,
    InvalidArgument,
    KeyConflict,
    RunFinished,
    RunNotFound,
    SchemaOutdated,
    SchemaTooNew,
    UnknownWorkflow,
)
from durable.handle import RunHandle
from durable.ids import check_run_id, new_id
from durable.model import NewRun, Run, RunFilter, RunSummary, State, TimelineEntry
from durable.names import check_key, check_name, check_tags
from durable.results import Results
from durable.sql import check_schema
from durable.store import Hint, Route, Store
from durable.stores import store_for
from durable.testing.clock import VirtualClock
from durable.timeline import timeline
from durable.worker import Worker, WorkerOptions
from durable.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")

_LIST_MOST = 1000

_GOODBYE = 0.1
"""Seconds that a worker's main grants to tasks that are still there when the engine has stopped; part of P03's one."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a listing; ``next_cursor`` is None on the last one."""

    items: Sequence[Item]
    next_cursor: str | None


class Engine:
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
    ) -> None:
        check_schema(schema)
        self._store = store_for(store, schema) if store is None or isinstance(store, str) else store
        self._services = dict(services or {})
        self._options = worker or WorkerOptions()
        self._auto_migrate = auto_migrate
        self._step_timeout = None if step_timeout is None else seconds(step_timeout, "step_timeout")
        self._workflows: dict[Route, Workflow[Any, Any]] = {}
        self._connected = False
        self._worker: Worker | None = None
        self._creator = Creator(self._store)
        self._results = Results(self._store)
        self.register(*workflows)

    def register(self, *workflows: Workflow[Any, Any]) -> None:
        """Add workflows, before the start.

        Raises:
            InvalidArgument: Not a workflow, its name and version are taken, or the engine is running.
        """
        if self._connected:
            raise InvalidArgument("workflows are registered before the engine starts")
        for workflow in workflows:
            if not isinstance(workflow, Workflow):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(f"{workflow!r} is not a workflow: decorate it with @workflow")
            if self._workflows.setdefault(workflow.route, workflow) is not workflow:
                raise InvalidArgument(f"workflow {workflow.name!r} version {workflow.version!r} is registered twice")

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
        """A worker's main: work until SIGTERM or SIGINT, drain, return. A second signal ends at once."""
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
        await self._creator.drained()
        await self._results.stop()
        await self._store.close()

    async def _started_worker(self) -> Worker:
        worker = Worker(self._store, self._workflows, self._services, self._options, self._step_timeout, self._on_ended)
        await worker.start()
        return worker

    def _on_ended(self, run_id: str) -> None:
        self._results.ended(run_id)
        self._store.announce(Hint.ENDED)

    # -- triggering -------------------------------------------------------------------------------

    async def trigger(
        self,
        workflow: Workflow[In, Out] | str,
        input: In = MISSING,  # noqa: A002  (the field's word, and the docs')
        *,
        run_id: str | None = None,
        key: str | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> RunHandle[Out]:
        """Create a run. When this returns, the run is committed.

        Args:
            workflow: The workflow; or its name, when the engine knows it or is a client without any.
            input: May be left out when the workflow takes none or has a default.
            run_id: The run's id, a UUIDv7, made by you; triggering again with it returns the same run.
            key: One ``(workflow, key)`` is one run: a second trigger returns the first run's handle.
            at: Not before this time; aware.
            delay: Not before this many seconds (or timedelta) from now, by the store's clock.
            tags: For lists and filters, such as ``{"tenant": "acme"}``.
            version: With a name only; default: the one that is registered, else "1".

        Raises:
            InvalidArgument: An argument is out of its range.
            UnknownWorkflow: The engine has workflows, and this is none of them.
            KeyConflict: The key or run id belongs to a run with another input.
            PayloadError: The input does not fit the workflow's declared type.
            StoreUnavailable: The store did not answer; whether the run exists is unknown.
        """
        found = self._find(workflow, version)
        new = self._new_run(found, workflow, input, version, run_id, key, at, delay, tags)
        created = await self._creator.create(new)
        self._announce()
        if created.conflict is not None:
            raise KeyConflict(created.conflict, run_id=created.run_id)
        return self._handle(found, created.run_id, created.created)

    async def trigger_many(
        self,
        workflow: Workflow[In, Out] | str,
        inputs: Sequence[In],
        *,
        keys: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> list[RunHandle[Out]]:
        """Create one run for each input; the handles are in the order of the inputs.

        All inputs and keys are checked before the first run is created. The runs are committed in batches: after
        a ``StoreUnavailable`` some may exist, and triggering again with the same keys is safe.

        Raises:
            InvalidArgument: ``keys`` has another length, or an argument is out of its range.
            KeyConflict: A key belongs to a run with another input; the other runs have been created.
            UnknownWorkflow, PayloadError, StoreUnavailable: As ``trigger``.
        """
        if keys is not None and len(keys) != len(inputs):
            raise InvalidArgument(f"{len(inputs)} inputs and {len(keys)} keys")
        found = self._find(workflow, version)
        new = [
            self._new_run(found, workflow, value, version, None, key, None, None, tags)
            for value, key in zip(inputs, keys if keys is not None else (None,) * len(inputs), strict=True)
        ]
        created = await asyncio.gather(*(self._creator.create(run) for run in new))
        self._announce()
        for answer in created:
            if answer.conflict is not None:
                raise KeyConflict(answer.conflict, run_id=answer.run_id)
        return [self._handle(found, answer.run_id, answer.created) for answer in created]

    async def handle(
        self, workflow: Workflow[Any, Out] | str, *, run_id: str | None = None, key: str | None = None
    ) -> RunHandle[Out]:
        """The handle of a run that exists, by its id or its key.

        Raises:
            RunNotFound: There is none.
            InvalidArgument: Neither or both were given.
        """
        self._check_connected()
        if (run_id is None) == (key is None):
            raise InvalidArgument("give run_id or key")
        name = check_name(workflow, "workflow name") if isinstance(workflow, str) else workflow.name
        found = None if isinstance(workflow, str) else self._find(workflow, None)
        if key is not None:
            run_id = await self._store.find_key(name, check_key(key, "key"))
            if run_id is None:
                raise RunNotFound(f"no run of workflow {name!r} has the key {key!r}")
        assert run_id is not None
        run = await self.get_run(run_id)
        if run.workflow != name:
            raise RunNotFound(f"no run of workflow {name!r} has the id {run.id}: it is a run of {run.workflow!r}")
        found = found or self._workflows.get(Route(run.workflow, run.version))
        return self._handle(found, run.id, False)

    def _find(self, workflow: Workflow[Any, Any] | str, version: str | None) -> Workflow[Any, Any] | None:
        """The registered workflow; None for a name on a client-only engine."""
        if isinstance(workflow, Workflow):
            if version is not None:
                raise InvalidArgument("version goes with a workflow's name; a workflow has its own")
            if self._workflows and self._workflows.get(workflow.route) is not workflow:
                raise UnknownWorkflow(f"{workflow!r} is not registered with this engine")
            return workflow
        check_name(workflow, "workflow name")
        found = [w for w in self._workflows.values() if w.name == workflow and version in (None, w.version)]
        if len(found) > 1:
            raise InvalidArgument(f"workflow {workflow!r} has {len(found)} versions here: say which")
        if not found and self._workflows:
            known = ", ".join(sorted({repr(w.name) for w in self._workflows.values()}))
            raise UnknownWorkflow(f"no workflow {workflow!r} is registered with this engine; it knows {known}")
        return found[0] if found else None

    def _new_run(
        self,
        found: Workflow[Any, Any] | None,
        workflow: Workflow[Any, Any] | str,
        value: Any,
        version: str | None,
        run_id: str | None,
        key: str | None,
        at: datetime | None,
        delay: float | timedelta | None,
        tags: Mapping[str, str] | None,
    ) -> NewRun:
        self._check_connected()
        if at is not None and delay is not None:
            raise InvalidArgument("give at or delay, not both")
        if at is not None and at.tzinfo is None:
            raise InvalidArgument("at has no time zone")
        text = _encoded(found, value)
        now = self._store.clock.now()
        return NewRun(
            id=new_id(now) if run_id is None else check_run_id(run_id),
            workflow=workflow.name if isinstance(workflow, Workflow) else workflow,
            version=found.version if found is not None else check_name(version or "1", "workflow version"),
            input=text,
            input_hash=canonical_hash(text),
            seed=secrets.token_hex(16),
            key=None if key is None else check_key(key, "key"),
            tags=check_tags(tags) if tags else {},
            ready_at=None if at is None else at.astimezone(UTC),
            delay=0.0 if delay is None else seconds(delay, "delay"),
            request=None if run_id is None else new_id(now),
        )

    def _announce(self) -> None:
        if self._worker is not None:
            self._worker.poke()
        self._store.announce(Hint.WORK)

    def _handle(self, found: Workflow[Any, Any] | None, run_id: str, created: bool) -> RunHandle[Any]:
        codec = codec_for(Any) if found is None else found.result_codec
        return RunHandle(run_id, created, codec, self._status, self._wait)

    async def _status(self, run_id: str) -> State:
        return (await self.get_run(run_id)).state

    async def _wait(self, run_id: str) -> Run:
        self._check_connected()
        return await self._results.wait(run_id)

    def _check_connected(self) -> None:
        if not self._connected:
            raise ConfigurationError("the engine is not running: use `async with engine:` or `engine.client()`")

    # -- reading and operating --------------------------------------------------------------------

    async def get_run(self, run_id: str) -> Run:
        """The run with its payloads as JSON text.

        Raises:
            RunNotFound: There is no such run.
        """
        self._check_connected()
        runs = await self._store.get_runs([check_run_id(run_id)])
        if not runs:
            raise RunNotFound(f"no run has the id {run_id}")
        return runs[0]

    async def list_runs(
        self,
        *,
        workflow: str | None = None,
        version: str | None = None,
        state: State | str | None = None,
        tags: Mapping[str, str] | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[RunSummary]:
        """Runs that meet all given conditions, newest first, without their payloads.

        Args:
            limit: At most so many, 1 to 1,000.
            cursor: ``next_cursor`` of the page before.

        Raises:
            InvalidArgument: An argument is out of its range.
        """
        self._check_connected()
        if not 1 <= limit <= _LIST_MOST:
            raise InvalidArgument(f"limit must be a whole number from 1 to {_LIST_MOST}, not {limit!r}")
        for name, when in (("created_after", created_after), ("created_before", created_before)):
            if when is not None and when.tzinfo is None:
                raise InvalidArgument(f"{name} has no time zone")
        try:
            wanted = None if state is None else State(state)
        except ValueError:
            raise InvalidArgument(f"no state {state!r}; there are {', '.join(State)}") from None
        where = RunFilter(workflow, version, wanted, dict(tags or {}), created_after, created_before)
        before = None if cursor is None else check_run_id(cursor)
        runs = await self._store.list_runs(where, limit + 1, before)
        return Page(runs[:limit], runs[limit - 1].id if len(runs) > limit else None)

    async def timeline(self, run_id: str) -> list[TimelineEntry]:
        """What happened to the run, in order.

        Raises:
            RunNotFound: There is no such run.
        """
        run = await self.get_run(run_id)
        return timeline(run, await self._store.history(run.id))

    async def resume(self, run_id: str) -> None:
        """Let a paused run go on, after a deploy has removed the reason.

        Raises:
            RunNotFound: There is no such run.
            RunFinished: It is not paused.
        """
        run = await self.get_run(run_id)
        if not await self._store.resume(run.id):
            state = (await self.get_run(run_id)).state
            raise RunFinished(f"run {run_id} is {state}, not paused")
        self._announce()

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


def _encoded(found: Workflow[Any, Any] | None, value: Any) -> str | None:
    if found is None:
        return None if value is MISSING else codec_for(Any).round_trip(value, "the input")[0]
    if value is not MISSING and (found.takes_input or value is not None):
        if not found.takes_input:
            raise InvalidArgument(f"{found!r} takes no input")
        return found.encode_input(value)
    if found.takes_input and not found.input_has_default:
        raise InvalidArgument(f"{found!r} needs an input")
    return None
