"""What every process can do with a store: trigger runs, wait for them, read about them, operate them.

It executes nothing; the engine adds the worker.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Generic, TypeVar, Unpack, cast, overload

from durable.codec import MISSING, codec_for
from durable.committer import Sender, resending
from durable.errors import (
    ConcurrencyConflict,
    ConfigurationError,
    InvalidArgument,
    KeyConflict,
    RunNotFound,
    UnknownWorkflow,
)
from durable.handle import RunHandle
from durable.hooks import Callback, EventName, Hooks
from durable.ids import check_run_id, new_id
from durable.model import Created, NewRun, Request, Run, RunFilter, RunSummary, State, TimelineEntry, Verb
from durable.names import check_key, check_name, check_note
from durable.newruns import ChildOptions, TriggerOptions, new_run, only
from durable.results import End, Results
from durable.states import TERMINAL
from durable.store import Hint, OnConnection, Store
from durable.timeline import timeline
from durable.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
Item = TypeVar("Item")

_LIST_MOST = 1000

_REQUEST_PATIENCE = 10.0
"""Seconds for which a request is sent again while the store does not answer. It keeps its id: one that was carried out
before its answer was lost is answered as if it had not been."""


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a listing; ``next_cursor`` is None on the last one."""

    items: Sequence[Item]
    next_cursor: str | None


class Client:
    """The part of an engine that needs no worker.

    Args:
        store: Where the runs are.
        workflows: What can be triggered; none means: anything, by its name.
    """

    def __init__(self, store: Store, workflows: Iterable[Workflow[Any, Any]]) -> None:
        self._store = store
        self._workflows: dict[tuple[str, str], Workflow[Any, Any]] = {}  # by name and version
        self._connected = False
        self._creator = Sender(self._create)
        self._results = Results(store, self._held)
        self._hooks = Hooks(store)
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
            if self._workflows.setdefault((workflow.name, workflow.version), workflow) is not workflow:
                raise InvalidArgument(f"workflow {workflow.name!r} version {workflow.version!r} is registered twice")

    def on(self, event: str, callback: Callback) -> None:
        """Have ``callback`` called with a ``HookEvent`` after each ``event`` of this process.

        A coroutine function is awaited on the event loop, any other callable is called in a thread; one at a time, in
        the order of the commits, and never in the way of a run: one that raises is logged.

        Args:
            event: One of the names in ``durable.hooks.EventName``: ``run_triggered``, ``run_started``,
                ``run_completed``, ``run_failed``, ``run_compensated``, ``run_cancelled``, ``run_paused``,
                ``run_resumed``, ``run_retried``, ``run_dead_lettered``, ``step_started``, ``step_completed``,
                ``step_retried``, ``step_failed``, ``step_compensated``, ``lease_lost``, ``took_over``, ``error``.
            callback: Takes one ``HookEvent``.

        Raises:
            InvalidArgument: There is no such event, or the callback cannot be called.
        """
        self._hooks.on(event, callback)

    @property
    def connected(self) -> bool:
        """Whether it is started, or connected as a client."""
        return self._connected

    @property
    def workflows(self) -> list[Workflow[Any, Any]]:
        """What is registered, by name and version."""
        return [self._workflows[known] for known in sorted(self._workflows)]

    def _poke(self) -> None:
        """There may be work: the engine tells its own worker."""

    def _held(self, run_id: str) -> bool:  # noqa: ARG002  (the engine's)
        """Whether the run is executed here: the engine asks its own worker."""
        return False

    # -- triggering -------------------------------------------------------------------------------

    @overload
    async def trigger(
        self,
        workflow: Workflow[In, Out],
        input: In = ...,
        *,
        connection: Any = None,
        **options: Unpack[TriggerOptions],
    ) -> RunHandle[Out]: ...
    @overload
    async def trigger(
        self, workflow: str, input: Any = ..., *, connection: Any = None, **options: Unpack[TriggerOptions]
    ) -> RunHandle[Any]: ...
    async def trigger(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = MISSING,  # noqa: A002
        *,
        connection: Any = None,
        **options: Unpack[TriggerOptions],
    ) -> RunHandle[Any]:
        """Create a run. When this returns, the run is committed.

        Args:
            workflow: The workflow; or its name, when the engine knows it or is a client without any.
            input: May be left out when the workflow takes none or has a default.
            connection: A connection or session of your own to the same database, with a transaction open: the run is
                created in it, and exists once you commit. psycopg, ``sqlite3``, SQLAlchemy or Django.
            options: ``run_id``, ``key``, ``at``, ``delay``, ``tags``, ``version``, ``queue``, ``priority``,
                ``limit_key``, ``concurrency_key``, ``concurrency_policy`` and ``debounce``: see ``TriggerOptions``.

        Raises:
            InvalidArgument: An argument is out of its range.
            UnknownWorkflow: The engine has workflows, and this is none of them.
            KeyConflict: The key or run id belongs to a run with another input.
            ConcurrencyConflict: Another run is active under the concurrency key, and the policy is ``reject``.
            PayloadError: The input does not fit the workflow's declared type.
            StoreUnavailable: The store did not answer; whether the run exists is unknown.
        """
        if connection is not None:
            create, finish = self.prepared(workflow, input, connection, options)
            answer = create()
            return finish(await answer if inspect.isawaitable(answer) else answer)
        found, new = self._new_run(workflow, input, options)
        return self._triggered(found, new, await self._creator.send(new))

    def prepared(
        self, workflow: Workflow[Any, Any] | str, value: Any, connection: Any, options: TriggerOptions
    ) -> tuple[Callable[[], Any], Callable[[Created], RunHandle[Any]]]:
        """A trigger on a connection of the user's own in two parts: what creates the run there, in whatever thread the
        connection is used in, and what makes a handle of the answer."""
        found, new = self._new_run(workflow, value, options)
        on_connection = self._on_connection(connection)
        return partial(on_connection.trigger, connection, new), partial(self._triggered, found, new)

    @overload
    async def trigger_many(
        self,
        workflow: Workflow[In, Out],
        inputs: Sequence[In],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[RunHandle[Out]]: ...
    @overload
    async def trigger_many(
        self,
        workflow: str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[RunHandle[Any]]: ...
    async def trigger_many(
        self,
        workflow: Workflow[Any, Any] | str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[ChildOptions],
    ) -> list[RunHandle[Any]]:
        """Create one run for each input; the handles are in the order of the inputs.

        All inputs and keys are checked before the first run is created. The runs are committed in batches: after
        a ``StoreUnavailable`` some may exist, and triggering again with the same keys is safe.

        Args:
            keys: One for each input.
            options: ``tags``, ``version``, ``queue``, ``priority`` and ``limit_key``, for all of them: see
                ``TriggerOptions``.

        Raises:
            InvalidArgument: ``keys`` has another length, or an argument is no list or out of its range.
            KeyConflict: A key belongs to a run with another input; the other runs have been created.
            UnknownWorkflow, PayloadError, StoreUnavailable: As ``trigger``.
        """
        only(options, ChildOptions, "trigger_many")
        for what, given in (("inputs", inputs), ("keys", () if keys is None else keys)):
            if not isinstance(given, Collection):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(f"{what} must be a list, with one for each run, not {type(given).__name__}")
        if keys is not None and len(keys) != len(inputs):
            raise InvalidArgument(f"{len(inputs)} inputs and {len(keys)} keys")
        new = [
            self._new_run(workflow, value, cast("TriggerOptions", {**options, "key": key}))
            for value, key in zip(inputs, keys if keys is not None else (None,) * len(inputs), strict=True)
        ]
        created = await self._creator.send_all([run for _, run in new])
        return [self._triggered(found, run, answer) for (found, run), answer in zip(new, created, strict=True)]

    @overload
    async def handle(
        self, workflow: Workflow[Any, Out], *, run_id: str | None = None, key: str | None = None
    ) -> RunHandle[Out]: ...
    @overload
    async def handle(self, workflow: str, *, run_id: str | None = None, key: str | None = None) -> RunHandle[Any]: ...
    async def handle(
        self, workflow: Workflow[Any, Any] | str, *, run_id: str | None = None, key: str | None = None
    ) -> RunHandle[Any]:
        """The handle of a run that exists, by its id or its key.

        Raises:
            RunNotFound: There is none.
            InvalidArgument: Neither or both were given.
        """
        self._check_connected()
        if (run_id is None) == (key is None):
            raise InvalidArgument("give run_id or key")
        found = None if isinstance(workflow, str) else self._find(workflow, None)
        name = check_name(workflow, "workflow name") if isinstance(workflow, str) else workflow.name
        if key is not None:
            run_id = await self._store.find_key(name, check_key(key, "key"))
            if run_id is None:
                raise RunNotFound(f"no run of workflow {name!r} has the key {key!r}")
        assert run_id is not None
        run = await self.get_run(run_id)
        if run.workflow != name:
            raise RunNotFound(f"no run of workflow {name!r} has the id {run.id}: it is a run of {run.workflow!r}")
        found = found or self._workflows.get((run.workflow, run.version))
        return self._handle(found, run.id, False)

    def _find(self, workflow: Workflow[Any, Any] | str, version: str | None) -> Workflow[Any, Any] | None:
        """The registered workflow; None for a name on a client-only engine."""
        if isinstance(workflow, Workflow):
            if version is not None:
                raise InvalidArgument("version goes with a workflow's name; a workflow has its own")
            if self._workflows and self._workflows.get((workflow.name, workflow.version)) is not workflow:
                raise UnknownWorkflow(f"{workflow!r} is not registered with this engine")
            return workflow
        if not isinstance(workflow, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"{workflow!r} is not a workflow: decorate it with @workflow")
        check_name(workflow, "workflow name")
        found = [w for w in self._workflows.values() if w.name == workflow and version in (None, w.version)]
        if len(found) > 1:
            raise InvalidArgument(f"workflow {workflow!r} has {len(found)} versions here: say which")
        if not found and self._workflows:
            known = ", ".join(f"{w.name!r} version {w.version!r}" for w in self.workflows)
            wanted = repr(workflow) if version is None else f"{workflow!r} version {version!r}"
            raise UnknownWorkflow(f"no workflow {wanted} is registered with this engine; it knows {known}")
        return found[0] if found else None

    def _new_run(
        self, workflow: Workflow[Any, Any] | str, value: Any, options: TriggerOptions
    ) -> tuple[Workflow[Any, Any] | None, NewRun]:
        """The workflow, when it is known here, and the run to create."""
        self._check_connected()
        found = self._find(workflow, options.get("version"))
        return found, new_run(self._store.clock.now(), found or workflow, value, **options)

    def _triggered(self, found: Workflow[Any, Any] | None, new: NewRun, created: Created) -> RunHandle[Any]:
        if created.conflict is not None:
            raise KeyConflict(created.conflict, run_id=created.run_id)
        if created.busy:
            raise ConcurrencyConflict(
                f"run {created.run_id} of workflow {new.workflow!r} is active under concurrency key "
                f"{new.concurrency_key!r}",
                run_id=created.run_id,
            )
        if created.replaced:
            self._store.announce(Hint.WORK | Hint.REQUEST)
        return self._handle(found, created.run_id, created.created)

    def _on_connection(self, connection: Any) -> OnConnection:
        """What works on a connection of the user's own."""
        offered = self._store.on_connection
        if offered is None or not offered.accepts(connection):
            raise InvalidArgument(
                f"{self._store.url} cannot work on a {type(connection).__module__}.{type(connection).__qualname__}"
            )
        return offered

    async def _create(self, runs: Sequence[NewRun]) -> Sequence[Created]:
        """Create a batch of runs, and say so: the engine's worker may start some of them."""
        created = await self._store.create_runs(runs)
        self._created(runs, created)
        return created

    def _created(self, runs: Sequence[NewRun], created: Sequence[Created]) -> None:
        """What follows from these answers; before any of the runs starts here."""
        for run, answer in zip(runs, created, strict=True):
            if answer.created:
                self._hooks.emit("run_triggered", run_id=answer.run_id, workflow=run.workflow)
        if any(answer.claimed is None for answer in created):  # those that are claimed nobody has to look for
            self._poke()
            self._store.announce(Hint.WORK)

    def _handle(self, found: Workflow[Any, Any] | None, run_id: str, created: bool) -> RunHandle[Any]:
        codec = codec_for(Any) if found is None else found.result_codec
        return RunHandle(run_id, created, codec, self._status, self._wait, self.cancel)

    async def _status(self, run_id: str) -> State:
        return (await self.get_run(run_id)).state

    async def _wait(self, run_id: str) -> End:
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
        queue: str | None = None,
        parent: str | None = None,
        schedule: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[RunSummary]:
        """Runs that meet all given conditions, newest first, without their payloads.

        Args:
            parent: The run that called them.
            schedule: The name of the schedule that fired them.
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
        parent = None if parent is None else check_run_id(parent)
        where = RunFilter(
            *(workflow, version, wanted, dict(tags or {}), created_after, created_before, queue, parent, schedule)
        )
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

    # -- cancelling -------------------------------------------------------------------------------

    async def cancel(self, run_id: str, *, reason: str = "", by: str = "") -> bool:
        """Ask for the cancellation of a run, from any process.

        A running step is cancelled within a second, what was done is compensated, the run ends ``cancelled``. A run
        that completes before it is told, completes.

        Args:
            reason: Shown in the timeline and in the run's error; up to 512 bytes.
            by: Who asks; up to 512 bytes.

        Returns:
            False when the run had ended: then nothing happens.

        Raises:
            RunNotFound: There is no such run.
            StoreUnavailable: The store did not answer for 10 s; whether the run is being cancelled is unknown.
        """
        return await self._request(run_id, Verb.CANCEL, reason, by) is not None

    async def _request(self, run_id: str, verb: Verb, reason: str, by: str, step: str | None = None) -> State | None:
        self._check_connected()
        run_id = check_run_id(run_id)
        request = Request(verb, check_note(reason, "reason"), check_note(by, "by"), new_id(self._store.clock.now()))
        deadline = time.monotonic() + _REQUEST_PATIENCE
        state = await resending(lambda: self._ask(run_id, request, step), lambda: time.monotonic() >= deadline)
        if state in TERMINAL:
            self._on_ended(run_id)
        self._poke()
        self._store.announce(Hint.WORK | Hint.REQUEST)
        if state is not None and (event := _CARRIED_OUT.get((verb, state)) or _CARRIED_OUT.get((verb, None))):
            self._hooks.emit(event, run_id=run_id, detail=reason)
        return state

    def _ask(self, run_id: str, request: Request, step: str | None) -> Awaitable[State | None]:
        if step is None:
            return self._store.request(run_id, request)
        return self._store.retry_from(run_id, step, request)

    def _on_ended(self, run_id: str, end: End | None = None) -> None:
        self._results.ended(run_id, end)
        self._store.announce(Hint.ENDED)


_CARRIED_OUT: dict[tuple[Verb, State | None], EventName] = {
    (Verb.CANCEL, State.CANCELLED): "run_cancelled",
    (Verb.PAUSE, State.PAUSED): "run_paused",
    (Verb.RESUME, None): "run_resumed",
    (Verb.RETRY, None): "run_retried",
}
"""What a request is told as, by the state that it led to; of one that a worker carries out, the worker tells."""
