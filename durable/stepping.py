"""The operations of ``ctx`` that concern its run alone: steps, sleeps, what undoes them.

Each takes its occurrence at the call. What they do is ``operations``'.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, TypeVarTuple, overload

from durable.codec import MISSING, result_codec
from durable.durations import seconds
from durable.errors import InvalidArgument, NondeterminismError
from durable.execution import Execution
from durable.model import Kind
from durable.names import check_key, check_name
from durable.replay import Operation
from durable.retry import Retry, as_retry
from durable.steps import Call, known

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


_SUFFIXES = frozenset({"attempt", "undo", "woke"})
"""After a slash they say what a record is about."""


class Stepping:
    """What a ``ctx`` is made of, with its steps and sleeps."""

    def __init__(
        self, execution: Execution, services: Mapping[str, Any], step_timeout: float | None, prefix: str = ""
    ) -> None:
        self._execution = execution
        self._prefix = prefix  # of the names: in a branch
        self._operations = execution.operations
        self._loop = asyncio.get_running_loop()
        self._services = services
        self._step_timeout = step_timeout

    # -- recorded ---------------------------------------------------------------------------------

    @overload
    async def step(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[T], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        idempotency_key: str | None = None,
        returns: Any = ...,
    ) -> T: ...

    @overload
    async def step(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[T], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        idempotency_key: str | None = None,
        returns: Any = ...,
    ) -> T: ...

    def step(  # type: ignore[misc]  # a plain def that returns a coroutine: the occurrence is taken at the call
        self,
        name: str,
        fn: Any,
        /,
        *args: Any,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[Any], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        idempotency_key: str | None = None,
        returns: Any = MISSING,
    ) -> Any:
        """Call ``fn(*args)`` once and record its result; on replay the recorded result is returned.

        The result is recorded exactly once. The effect of ``fn`` happens at least once: give the outside
        service ``current_step().idempotency_key``. Keyword arguments go through ``functools.partial``.

        Args:
            name: 1 to 200 printable characters. A repeated name gets its own record: ``name#2``, …
            fn: A coroutine function, called on the event loop, or any other callable, called in a thread.
            retry: The policy, or a number of attempts; without one a step has one attempt.
            timeout: Seconds or timedelta for each attempt. Default: the engine's ``step_timeout``. A coroutine is
                cancelled; a thread cannot be stopped, its result is dropped.
            compensate: Called with the step's result when the run fails, times out or is cancelled after this step.
            compensate_retry: The policy of the compensation; without one it has one attempt.
            compensate_timeout: Seconds or timedelta for each of its attempts. Default: the engine's ``step_timeout``.
            idempotency_key: Runs of whatever workflow that use the same key have one effect between them: one makes it,
                the others wait, parked, and record its result. When it fails or is undone, the next one makes it. It
                is kept until the run that has made it is pruned, and is that run's to compensate.
            returns: The result's type, when ``fn`` has no return annotation.

        Raises:
            StepFailed: The last attempt failed.
            AmbiguousName: Another live task of this run uses the name.
            InvalidArgument: An argument is out of its range.
        """
        codec, on_loop = known(fn)
        if not on_loop:
            if not callable(fn):
                raise InvalidArgument(f"step {name!r}: fn must be a function, not {type(fn).__name__}")
            if hasattr(fn, "result_codec"):
                raise InvalidArgument(f"step {name!r}: {fn!r} is a workflow: use ctx.call")
        if returns is not MISSING:
            codec = result_codec(fn, returns)
        policy = None if retry is None else as_retry(retry)
        limit = self._step_timeout if timeout is None else self._limit(timeout)
        call = Call(fn, args, codec, on_loop, policy, limit)
        if compensate is not None or compensate_retry is not None or compensate_timeout is not None:
            call.undone_by(*self._undo(f"step {name!r}", compensate, compensate_retry, compensate_timeout))
        if idempotency_key is not None:
            call.shared = check_key(idempotency_key, "idempotency key")
        return self._operations.step(self._called(name, Kind.STEP), call)

    @overload
    async def transaction(
        self,
        name: str,
        fn: Callable[[Any, *Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[T], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        returns: Any = ...,
    ) -> T: ...

    @overload
    async def transaction(
        self,
        name: str,
        fn: Callable[[Any, *Ts], T],
        /,
        *args: *Ts,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[T], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        returns: Any = ...,
    ) -> T: ...

    def transaction(  # type: ignore[misc]  # as step
        self,
        name: str,
        fn: Any,
        /,
        *args: Any,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        compensate: Callable[[Any], Any] | None = None,
        compensate_retry: Retry | int | None = None,
        compensate_timeout: float | timedelta | None = None,
        returns: Any = MISSING,
    ) -> Any:
        """Call ``fn(connection, *args)`` in a transaction of the engine's database, and record its result in the same.

        What ``fn`` writes there happens exactly once: it and the step's record are committed together, or not at all.
        Everything else is as in ``step``.

        Args:
            name: As a step's.
            fn: A coroutine function gets a connection for asyncio (on Postgres ``psycopg.AsyncConnection``), any other
                callable a blocking one, in a thread (``psycopg.Connection``, ``sqlite3.Connection``). It must not
                commit. The connection sees the database's default ``search_path``, so the application's tables.

        Raises:
            StepFailed: The last attempt failed; nothing of it was written.
        """
        if not callable(fn):
            raise InvalidArgument(f"transaction {name!r}: fn must be a function, not {type(fn).__name__}")
        codec, on_loop = known(fn)
        if returns is not MISSING:
            codec = result_codec(fn, returns)
        policy = None if retry is None else as_retry(retry)
        limit = self._step_timeout if timeout is None else self._limit(timeout)
        call = Call(fn, args, codec, on_loop, policy, limit)
        if compensate is not None or compensate_retry is not None or compensate_timeout is not None:
            call.undone_by(*self._undo(f"transaction {name!r}", compensate, compensate_retry, compensate_timeout))
        return self._operations.transaction(self._called(name, Kind.STEP), call)

    def on_rollback(
        self,
        name: str,
        fn: Callable[..., Any],
        /,
        *args: Any,
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
    ) -> None:
        """Have ``fn(*args)`` called when the run is undone: for an effect that has no step of its own.

        Its place among the compensations is that of this call. It is recorded as ``<key>/undo`` when it is made;
        registering it records nothing. Call it before the effect.

        Args:
            name: As a step's; it must differ from the names of other operations of the run.
            fn: A coroutine function, or any other callable, called in a thread.
            retry: Its policy, or a number of attempts; without one it has one attempt.
            timeout: Seconds or timedelta for each attempt. Default: the engine's ``step_timeout``.
        """
        if not callable(fn):
            raise InvalidArgument(f"on_rollback {name!r}: fn must be a function, not {type(fn).__name__}")
        call = Call(fn, args, *known(fn), as_retry(retry), self._limit(timeout))
        self._operations.on_rollback(self._called(name, Kind.UNDO), call)

    def _undo(
        self, what: str, fn: Any, retry: Retry | int | None, timeout: float | timedelta | None
    ) -> tuple[Callable[[Any], Any], Retry | None, float | None]:
        """What compensates, checked at the call: when it is needed it is too late."""
        if fn is None:
            raise InvalidArgument(f"{what}: compensate_retry and compensate_timeout go with compensate")
        if not callable(fn):
            raise InvalidArgument(f"{what}: compensate must be a function, not {type(fn).__name__}")
        return fn, as_retry(retry), self._limit(timeout)

    def _limit(self, timeout: float | timedelta | None) -> float | None:
        return self._step_timeout if timeout is None else seconds(timeout, "timeout")

    def sleep(self, name: str, duration: float | timedelta) -> Coroutine[Any, Any, None]:
        """Wait for ``duration`` (seconds or timedelta) by the store's clock, counted from the first call.

        While it sleeps, the run holds no slot and, after the linger, no memory.
        """
        length = timedelta(seconds=seconds(duration, "duration"))
        return self._operations.sleep(self._called(name, Kind.SLEEP), lambda now: now + length)

    def sleep_until(self, name: str, when: datetime) -> Coroutine[Any, Any, None]:
        """Wait until ``when``, an aware datetime, by the store's clock.

        Raises:
            InvalidArgument: ``when`` is naive.
        """
        if when.tzinfo is None:
            raise InvalidArgument(f"sleep_until {name!r}: the time has no time zone")
        return self._operations.sleep(self._called(name, Kind.SLEEP), lambda _: when.astimezone(UTC))

    def _called(self, name: str, kind: Kind) -> Operation:
        execution = self._execution
        if execution.stopped:
            raise asyncio.CancelledError("the run does not go on here")
        name = check_name(name, "operation name")
        if self._prefix:
            if name in _SUFFIXES:
                raise InvalidArgument(f"an operation in a branch cannot be called {name!r}")
            name = self._prefix + name
        try:
            return execution.core.call(name, kind, current_task(self._loop))
        except NondeterminismError as error:
            execution.refuse(error)
