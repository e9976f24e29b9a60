"""``ctx``: what a workflow function calls. Each recording operation takes its occurrence here, at the call."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, TypeVar, TypeVarTuple, overload
from uuid import UUID

from durable.codec import MISSING, result_codec
from durable.durations import seconds
from durable.errors import InvalidArgument, NondeterminismError
from durable.execution import Execution
from durable.model import Kind
from durable.names import check_name
from durable.replay import Operation
from durable.retry import Retry, as_retry
from durable.steps import Call, known

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Context:
    """One execution of one run, as its workflow function sees it. Made by the engine."""

    def __init__(self, execution: Execution, services: Mapping[str, Any], step_timeout: float | None) -> None:
        self._execution = execution
        self._operations = execution.operations
        self._loop = asyncio.get_running_loop()
        self._services = services
        self._step_timeout = step_timeout
        self._log: logging.LoggerAdapter[logging.Logger] | None = None

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
            returns: The result's type, when ``fn`` has no return annotation.

        Raises:
            StepFailed: The last attempt failed.
            AmbiguousName: Another live task of this run uses the name.
            InvalidArgument: An argument is out of its range.
        """
        if not callable(fn):
            raise InvalidArgument(f"step {name!r}: fn must be a function, not {type(fn).__name__}")
        codec, on_loop = known(fn)
        if returns is not MISSING:
            codec = result_codec(fn, returns)
        policy = None if retry is None else as_retry(retry)
        limit = self._step_timeout if timeout is None else self._limit(timeout)
        call = Call(fn, args, codec, on_loop, policy, limit)
        if compensate is not None:
            call.undone_by(compensate, as_retry(compensate_retry), self._limit(compensate_timeout))
        elif compensate_retry is not None or compensate_timeout is not None:
            raise InvalidArgument(f"step {name!r}: compensate_retry and compensate_timeout go with compensate")
        return self._operations.step(self._called(name, Kind.STEP), call)

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
        call = Call(fn, args, *known(fn), as_retry(retry), self._limit(timeout))
        self._operations.on_rollback(self._called(name, Kind.UNDO), call)

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
        try:
            return execution.core.call(check_name(name, "operation name"), kind, asyncio.current_task(self._loop))
        except NondeterminismError as error:
            execution.refuse(error)

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
    def tags(self) -> Mapping[str, str]:
        """The tags given at the trigger."""
        return self._execution.run.tags

    @property
    def services(self) -> Mapping[str, Any]:
        """What the engine was given as ``services``: clients and pools that steps use."""
        return self._services

    def idempotency_key(self, name: str) -> str:
        """The idempotency key that the next step called ``name`` will have: ``<run_id>/<record key>``."""
        return f"{self.run_id}/{self._execution.core.next_key(check_name(name, 'operation name'))}"


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
