"""What every process can do with a store: trigger runs, wait for them, read about them, operate them.

It executes nothing; the engine adds the worker.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar, overload

from durable.codec import MISSING, canonical_hash, codec_for
from durable.committer import Creator, resending
from durable.durations import seconds
from durable.errors import (
    ConfigurationError,
    InvalidArgument,
    KeyConflict,
    RunNotFound,
    UnknownWorkflow,
)
from durable.handle import RunHandle
from durable.hooks import Callback, EventName, Hooks
from durable.ids import check_run_id, new_id
from durable.model import NewRun, Request, Run, RunFilter, RunSummary, State, TimelineEntry, Verb
from durable.names import check_key, check_name, check_note, check_tags
from durable.results import Results
from durable.states import TERMINAL
from durable.store import Hint, Route, Store
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
        self._workflows: dict[Route, Workflow[Any, Any]] = {}
        self._connected = False
        self._creator = Creator(store)
        self._results = Results(store)
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
            if self._workflows.setdefault(workflow.route, workflow) is not workflow:
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

    def _poke(self) -> None:
        """There may be work: the engine tells its own worker."""

    # -- triggering -------------------------------------------------------------------------------

    @overload
    async def trigger(
        self,
        workflow: Workflow[In, Out],
        input: In = ...,
        *,
        run_id: str | None = None,
        key: str | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RunHandle[Out]: ...
    @overload
    async def trigger(
        self,
        workflow: str,
        input: Any = ...,
        *,
        run_id: str | None = None,
        key: str | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> RunHandle[Any]: ...
    async def trigger(
        self,
        workflow: Workflow[Any, Any] | str,
        input: Any = MISSING,  # noqa: A002
        *,
        run_id: str | None = None,
        key: str | None = None,
        at: datetime | None = None,
        delay: float | timedelta | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> RunHandle[Any]:
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
        if created.created:  # told before the worker is: it may start the run before this task goes on
            self._hooks.emit("run_triggered", run_id=created.run_id, workflow=new.workflow)
        self._announce()
        if created.conflict is not None:
            raise KeyConflict(created.conflict, run_id=created.run_id)
        return self._handle(found, created.run_id, created.created)

    @overload
    async def trigger_many(
        self,
        workflow: Workflow[In, Out],
        inputs: Sequence[In],
        *,
        keys: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> list[RunHandle[Out]]: ...
    @overload
    async def trigger_many(
        self,
        workflow: str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> list[RunHandle[Any]]: ...
    async def trigger_many(
        self,
        workflow: Workflow[Any, Any] | str,
        inputs: Sequence[Any],
        *,
        keys: Sequence[str] | None = None,
        tags: Mapping[str, str] | None = None,
        version: str | None = None,
    ) -> list[RunHandle[Any]]:
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
        created = await self._creator.create_all(new)
        self._announce()
        for answer in created:
            if answer.created:
                self._hooks.emit("run_triggered", run_id=answer.run_id, workflow=new[0].workflow)
        for answer in created:
            if answer.conflict is not None:
                raise KeyConflict(answer.conflict, run_id=answer.run_id)
        return [self._handle(found, answer.run_id, answer.created) for answer in created]

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
        self._poke()
        self._store.announce(Hint.WORK)

    def _handle(self, found: Workflow[Any, Any] | None, run_id: str, created: bool) -> RunHandle[Any]:
        codec = codec_for(Any) if found is None else found.result_codec
        return RunHandle(run_id, created, codec, self._status, self._wait, self.cancel)

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

    def _on_ended(self, run_id: str) -> None:
        self._results.ended(run_id)
        self._store.announce(Hint.ENDED)


_CARRIED_OUT: dict[tuple[Verb, State | None], EventName] = {
    (Verb.CANCEL, State.CANCELLED): "run_cancelled",
    (Verb.PAUSE, State.PAUSED): "run_paused",
    (Verb.RESUME, None): "run_resumed",
    (Verb.RETRY, None): "run_retried",
}
"""What a request is told as, by the state that it led to; of one that a worker carries out, the worker tells."""


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
