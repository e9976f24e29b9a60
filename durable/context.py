"""``ctx``: what a workflow function calls. Each recording operation takes its occurrence here, at the call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from dataclasses import replace
from datetime import datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, TypeVarTuple, Unpack, overload
from uuid import UUID

from durable.children import ChildHandle
from durable.codec import MISSING, Codec, codec_for, result_codec
from durable.durations import seconds
from durable.errors import ChildFailed, InvalidArgument, StepFailed
from durable.exchange import Wait
from durable.execution import Execution
from durable.model import Kind, NewRun
from durable.names import check_key, check_name
from durable.newruns import ChildOptions, new_run, only
from durable.replay import Operation
from durable.retry import Retry, as_retry
from durable.schedules import Tick
from durable.stepping import Stepping
from durable.steps import Call, known

if TYPE_CHECKING:
    from durable.workflow import Workflow

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class MapChildren(TypedDict, total=False):
    """How the children of a fan-out are made; see ``Context.map``."""

    concurrency: int
    child: ChildOptions


class MapSteps(TypedDict, total=False):
    """How the steps of a fan-out are made; see ``Context.map``."""

    concurrency: int
    retry: Retry | int | None
    timeout: float | timedelta | None
    compensate: Callable[[Any], Any] | None
    compensate_retry: Retry | int | None
    compensate_timeout: float | timedelta | None
    returns: Any


class Context(Stepping):
    """One execution of one run, as its workflow function sees it. Made by the engine."""

    _log: logging.LoggerAdapter[logging.Logger] | None = None

    # -- waiting for the outside ------------------------------------------------------------------

    @overload
    async def wait_for(self, name: str, type_: type[T], /, *, timeout: float | timedelta | None = None) -> T: ...
    @overload
    async def wait_for(self, name: str, type_: Any = ..., /, *, timeout: float | timedelta | None = None) -> Any: ...
    def wait_for(  # a plain def that returns a coroutine: the occurrence is taken at the call
        self, name: str, type_: Any = Any, /, *, timeout: float | timedelta | None = None
    ) -> Any:
        """Wait for the next signal called ``name`` and return its payload.

        Signals are kept, also those sent before the wait; each wait consumes one, in the order of their arrival. A
        payload that does not fit ``type_`` is set aside, shown in the timeline, and the wait goes on.

        Args:
            name: The signal's name, and the operation's.
            type_: What the payload is decoded as; any JSON value by default.
            timeout: Seconds or timedelta, by the store's clock, from the first call.

        Raises:
            WaitTimeout: Nothing came in time. A later signal is for the next wait.
            InvalidArgument: An argument is out of its range, or no JSON value can be decoded as ``type_``.
        """
        wait = Wait({name: _payload_codec(name, type_)}, _limit(timeout))
        return self._operations.wait(self._called(name, Kind.WAIT), wait)

    def wait_for_any(
        self, name: str, signals: Mapping[str, Any], /, *, timeout: float | timedelta | None = None
    ) -> Coroutine[Any, Any, tuple[str, Any]]:
        """Wait for the first signal of several names; returns which it was, and its payload.

        Args:
            name: The operation's name.
            signals: The names → the types of their payloads.
            timeout: As in ``wait_for``.

        Raises:
            WaitTimeout: Nothing came in time.
            InvalidArgument: ``signals`` is empty or no mapping.
        """
        wanted: Any = signals
        if not isinstance(wanted, Mapping) or not wanted:
            raise InvalidArgument(f"wait {name!r}: signals must be a mapping of names to types, not {wanted!r}")
        codecs = {check_name(signal, "signal name"): _payload_codec(signal, kind) for signal, kind in signals.items()}
        return self._operations.wait(self._called(name, Kind.WAIT), Wait(codecs, _limit(timeout), named=True))

    @overload
    async def wait_for_event(
        self,
        topic: str,
        type_: type[T],
        /,
        *,
        key: str = "",
        timeout: float | timedelta | None = None,
        lookback: float | timedelta = 60.0,
    ) -> T: ...
    @overload
    async def wait_for_event(
        self,
        topic: str,
        type_: Any = ...,
        /,
        *,
        key: str = "",
        timeout: float | timedelta | None = None,
        lookback: float | timedelta = 60.0,
    ) -> Any: ...
    def wait_for_event(  # as wait_for
        self,
        topic: str,
        type_: Any = Any,
        /,
        *,
        key: str = "",
        timeout: float | timedelta | None = None,
        lookback: float | timedelta = 60.0,
    ) -> Any:
        """Wait for the next event that ``engine.publish`` sends to ``topic`` and ``key``; returns its payload.

        Every run that waits gets it. A run gets each event once, oldest first.

        Args:
            topic: The topic, and the operation's name.
            type_: What the payload is decoded as.
            key: Only events published with this key.
            timeout: As in ``wait_for``.
            lookback: Seconds or timedelta before this call in which an event may have been published, as far as its
                retention reaches. Default 60.

        Raises:
            WaitTimeout: Nothing came in time.
            InvalidArgument: As ``wait_for``.
        """
        key = check_key(key, "event key") if key else ""
        event = (check_name(topic, "topic"), key, seconds(lookback, "lookback"))
        wait = Wait({f"event/{topic}/{key}": _payload_codec(topic, type_)}, _limit(timeout), event)
        return self._operations.wait(self._called(topic, Kind.WAIT), wait)

    # -- children and many ------------------------------------------------------------------------

    @overload
    def call(
        self,
        name: str,
        workflow: Workflow[In, Out],
        input: In = ...,
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, Out]: ...
    @overload
    def call(
        self,
        name: str,
        workflow: str,
        input: Any = ...,
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, Any]: ...
    def call(
        self,
        name: str,
        workflow: Any,
        input: Any = MISSING,  # noqa: A002
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, Any]:
        """Run a workflow as a child and return its result; this run is parked meanwhile, and holds no slot.

        The child is a run of its own: it has its own history and retries, may run in another worker, and is pinned to
        its version. It is cancelled when this run fails, times out or is cancelled.

        Args:
            name: The operation's name.
            workflow: The workflow, or its name for one that other workers have.
            input: As in ``trigger``.
            options: ``version`` (with a name only), ``queue``, ``priority``, ``limit_key`` and ``tags``: see
                ``trigger``.

        Raises:
            ChildFailed: The child ended without a result.
            InvalidArgument, PayloadError: As ``trigger``; no child is made.
        """
        codec = _result_codec(name, workflow, options)
        op = self._called(name, Kind.CALL)
        return self._call(op, self._child(op.key, workflow, input, options), codec)

    async def _call(self, op: Operation, child: NewRun, codec: Codec) -> Any:
        await self._operations.start(op, child)
        return await self._operations.outcome(self._operations.outcome_of(op.key), codec)

    @overload
    def start(
        self,
        name: str,
        workflow: Workflow[In, Out],
        input: In = ...,
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, ChildHandle[Out]]: ...
    @overload
    def start(
        self,
        name: str,
        workflow: str,
        input: Any = ...,
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, ChildHandle[Any]]: ...
    def start(
        self,
        name: str,
        workflow: Any,
        input: Any = MISSING,  # noqa: A002
        /,
        **options: Unpack[ChildOptions],
    ) -> Coroutine[Any, Any, ChildHandle[Any]]:
        """Start a workflow as a child and go on; the handle's ``result()`` waits for it. Otherwise as ``call``."""
        codec = _result_codec(name, workflow, options)
        op = self._called(name, Kind.CALL)
        return self._start(op, self._child(op.key, workflow, input, options), codec)

    async def _start(self, op: Operation, child: NewRun, codec: Codec) -> ChildHandle[Any]:
        operations = self._operations
        run_id = await operations.start(op, child)
        return ChildHandle(run_id, lambda: operations.outcome(operations.outcome_of(op.key), codec))

    def _child(self, key: str, workflow: Any, value: Any, options: ChildOptions) -> NewRun:
        run = self._execution.run
        child = new_run(self._execution.clock.now(), workflow, value, **options)
        return replace(child, shard=run.shard, parent=run.id, parent_key=key)

    @overload
    async def map(
        self,
        name: str,
        fn: Workflow[In, Out],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[MapChildren],
    ) -> list[Out]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Workflow[In, Out],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["collect"],
        **options: Unpack[MapChildren],
    ) -> list[Out | ChildFailed]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[In], Awaitable[T]],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[MapSteps],
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[In], Awaitable[T]],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["collect"],
        **options: Unpack[MapSteps],
    ) -> list[T | StepFailed]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[In], T],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[MapSteps],
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        name: str,
        fn: Callable[[In], T],
        items: Iterable[In],
        /,
        *,
        on_error: Literal["collect"],
        **options: Unpack[MapSteps],
    ) -> list[T | StepFailed]: ...
    def map(  # as wait_for
        self,
        name: str,
        fn: Any,
        items: Iterable[Any],
        /,
        *,
        on_error: Literal["raise", "collect"] = "raise",
        **options: Any,
    ) -> Any:
        """``fn`` for each item, as steps or, for a workflow, as child runs; the results are in the order of the items.

        Each item has its own record, ``<name>[<n>]``. Only a bounded number is under way at the same time, so there may
        be many thousands. After a crash the items without a record go on.

        Args:
            name: The operation's name.
            fn: A function of one item, called as a step's; or a workflow.
            items: The same, in the same order, on every replay.
            on_error: ``raise``: the first failure cancels what is under way, and is raised. ``collect``: each failure
                takes the place of its result.
            options: ``concurrency``, items under way at the same time, default 100; for a function ``retry``,
                ``timeout``, ``compensate``, ``compensate_retry``, ``compensate_timeout`` and ``returns`` as in
                ``step``; for a workflow ``child``, a dict of the options of ``call``.

        Raises:
            StepFailed, ChildFailed: An item has failed, with ``on_error="raise"``.
            InvalidArgument: An argument is out of its range.
        """
        if not callable(fn):
            raise InvalidArgument(f"map {name!r}: fn must be a function or a workflow, not {type(fn).__name__}")
        if not isinstance(items, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"map {name!r}: items must be a list or another iterable, not {type(items).__name__}")
        values, concurrency = list(items), options.get("concurrency", 100)
        if type(concurrency) is not int or concurrency < 1:
            raise InvalidArgument(
                f"map {name!r}: concurrency must be a whole number of at least 1, not {concurrency!r}"
            )
        if on_error not in ("raise", "collect"):
            raise InvalidArgument(f"map {name!r}: on_error must be 'raise' or 'collect', not {on_error!r}")
        count, collect = len(values), on_error == "collect"
        if hasattr(fn, "result_codec"):
            only(options, MapChildren, f"map {name!r} over a workflow")
            child = options.get("child", ChildOptions())
            codec = _result_codec(name, fn, child)
            return self._operations.map_children(
                self._called(name, Kind.MAP),
                lambda index, key: self._child(key, fn, values[index], child),
                *(codec, count, concurrency, collect),
            )
        only(options, MapSteps, f"map {name!r} over a function")
        made = self._made(name, fn, options)
        return self._operations.map_steps(
            self._called(name, Kind.MAP), lambda index: made((values[index],)), count, concurrency, collect
        )

    def _made(self, name: str, fn: Any, options: Mapping[str, Any]) -> Callable[[tuple[Any, ...]], Call]:
        """What makes a step's call of its arguments."""
        (codec, on_loop), retry = known(fn), as_retry(options.get("retry"))
        if "returns" in options:
            codec = result_codec(fn, options["returns"])
        timeout, undo = self._limit(options.get("timeout")), None
        given = [options.get(f"compensate{part}") for part in ("", "_retry", "_timeout")]
        if any(one is not None for one in given):
            undo = self._undo(f"map {name!r}", *given)

        def made(args: tuple[Any, ...]) -> Call:
            call = Call(fn, args, codec, on_loop, retry, timeout)
            if undo is not None:
                call.undone_by(*undo)
            return call

        return made

    def branch(self, name: str) -> Context:
        """A ``ctx`` whose names are its own: keys begin with ``<name>/``.

        For sequences of operations that run beside each other, under ``gather`` or in a TaskGroup, and use the same
        names: give each its branch.

        Raises:
            AmbiguousName: Another live task of this run uses the name.
        """
        key = self._execution.core.take(
            self._prefix + check_name(name, "branch name"), asyncio.current_task(self._loop)
        )
        return Context(self._execution, self._services, self._step_timeout, f"{key}/")

    def emit(self, name: str, data: Any = None) -> Coroutine[Any, Any, None]:
        """Record ``data``, a JSON value, for those who read ``engine.events``; once, whatever the number of replays.

        Raises:
            PayloadError: It has no exact JSON form.
        """
        text, _ = _EMITTED.round_trip(data, f"what {name!r} emits")
        return self._operations.emit(self._called(name, Kind.EMIT), text)

    # -- not recorded -----------------------------------------------------------------------------

    def now(self) -> datetime:
        """The stored time of the latest record delivered to this run: equal on replay, never backwards."""
        return self._execution.core.now

    @property
    def random(self) -> Random:
        """Draws from a secret seed that is stored with the run: equal on replay. Not for tokens."""
        return self._execution.random

    def uuid4(self) -> UUID:
        """A random UUID from the run's seed: equal on replay. Not for tokens."""
        return UUID(int=self.random.getrandbits(128), version=4)

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that is silent while recorded results are being delivered, so that each line appears once."""
        if self._log is None:
            self._log = _ReplayAwareLogger(self._execution)
        return self._log

    @property
    def run_id(self) -> str:
        """The run's id."""
        return self._execution.run.id

    @property
    def attempt(self) -> int:
        """The number of this run attempt, from 1; it rises when the workflow has a ``retry``."""
        return self._execution.attempt

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self._execution.run.workflow

    @property
    def version(self) -> str:
        """The version that the run was triggered with."""
        return self._execution.run.version

    @property
    def schedule(self) -> Tick | None:
        """Which tick of which schedule the run is for, such as ``ctx.schedule.at``; None: no schedule fired it."""
        run = self._execution.run
        return None if run.schedule is None or run.tick is None else Tick(run.schedule, run.tick)

    @property
    def tags(self) -> Mapping[str, str]:
        """The tags given at the trigger."""
        return self._execution.run.tags

    @property
    def services(self) -> Mapping[str, Any]:
        """What the engine was given as ``services``: clients and pools that steps use."""
        return self._services

    def idempotency_key(self, name: str) -> str:
        """The idempotency key that the next step called ``name`` will have: ``<run_id>/<record key>``."""
        return f"{self.run_id}/{self._execution.core.next_key(self._prefix + check_name(name, 'operation name'))}"


_EMITTED = Codec(hint="emit plain data, such as model_dump(mode='json') or dataclasses.asdict()")


def _limit(timeout: float | timedelta | None) -> float | None:
    return None if timeout is None else seconds(timeout, "timeout")


def _payload_codec(name: str, type_: Any) -> Codec:
    codec = codec_for(type_)
    if codec.unknown is not None and codec.unknown.why:  # each signal would be set aside, and the run wait for ever
        raise InvalidArgument(f"wait {name!r}: {codec.unknown.why}")
    return codec


def _result_codec(name: str, workflow: Any, options: ChildOptions) -> Codec:
    """Of what the child called ``name`` returns; the arguments are checked on the way."""
    only(options, ChildOptions, f"child {name!r}")
    if isinstance(workflow, str):
        return codec_for(Any)
    if not hasattr(workflow, "result_codec"):
        raise InvalidArgument(
            f"child {name!r}: {workflow!r} is no workflow: decorate it with @workflow, or use ctx.step for a function"
        )
    if options.get("version") is not None:
        raise InvalidArgument(f"child {name!r}: version goes with a workflow's name; a workflow has its own")
    codec: Codec = workflow.result_codec
    return codec


class _ReplayAwareLogger(logging.LoggerAdapter[logging.Logger]):
    def __init__(self, execution: Execution) -> None:
        run = execution.run
        super().__init__(logging.getLogger("durable.workflow"), {"run_id": run.id, "workflow": run.workflow})
        self._core = execution.core

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  (the name is logging's)
        return not self._core.replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs
