"""The definition of a workflow: an async function with a name and a version."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any, Generic, TypeVar, overload

from durable.codec import Codec, codec_for, input_codec, result_codec
from durable.context import Context
from durable.declarations import ScheduleOptions, declaration
from durable.durations import seconds
from durable.errors import InvalidArgument
from durable.names import check_name
from durable.newruns import DEFAULT_QUEUE
from durable.retry import Retry, as_retry
from durable.store import Route

In = TypeVar("In")
Out = TypeVar("Out")

_Body = Callable[..., Coroutine[Any, Any, Out]]


class Workflow(Generic[In, Out]):
    """A workflow function with its name and version. Made by ``@workflow``.

    Called as a function inside another workflow, it runs inline: same ``ctx``, same names.
    """

    def __init__(
        self,
        fn: _Body[Out],
        name: str | None = None,
        version: str = "1",
        retry: Retry | int | None = None,
        timeout: float | timedelta | None = None,
        queue: str = DEFAULT_QUEUE,
        signals: Mapping[str, Any] | None = None,
        schedule: ScheduleOptions | Sequence[ScheduleOptions] = (),
    ) -> None:
        if not inspect.iscoroutinefunction(fn):
            raise InvalidArgument(f"workflow {getattr(fn, '__name__', fn)!r} must be an async function")
        self.fn = fn
        self.name = check_name(fn.__name__ if name is None else name, "workflow name")
        self.version = check_name(version, "workflow version")
        self.retry = as_retry(retry)
        self.timeout = None if timeout is None else seconds(timeout, "timeout")
        self.queue = check_name(queue, "queue")
        self.signals = {} if signals is None else _signals(signals)
        self.takes_input, self.input_has_default, self.input_codec = input_codec(fn)
        self.result_codec = result_codec(fn)
        declared = [schedule] if isinstance(schedule, Mapping) else schedule
        self.schedules = tuple(declaration(self, options) for options in declared)
        self.__doc__ = fn.__doc__
        self.__name__ = fn.__name__
        self.__wrapped__ = fn

    @property
    def route(self) -> Route:
        """What a run of it needs of a worker, when its trigger names no other queue."""
        return Route(self.name, self.version, self.queue)

    def encode_input(self, value: Any) -> str | None:
        """``value`` as stored JSON, checked against the declared type."""
        return self.input_codec.round_trip(value, f"the input of workflow {self.name!r}")[0]

    def encode_result(self, value: Any) -> str | None:
        """``value`` as stored JSON, checked against the declared type."""
        return self.result_codec.round_trip(value, f"the result of workflow {self.name!r}")[0]

    def __call__(self, ctx: Context, *args: In) -> Coroutine[Any, Any, Out]:
        return self.fn(ctx, *args)

    def __repr__(self) -> str:
        return f"<workflow {self.name!r} version {self.version!r}>"


def _signals(types: Mapping[str, Any]) -> dict[str, Codec]:
    if not isinstance(types, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"signals must be a mapping of names to types, such as {{'approval': bool}}, not {type(types).__name__}"
        )
    codecs = {check_name(name, "signal name"): codec_for(type_) for name, type_ in types.items()}
    for name, codec in codecs.items():
        if codec.unknown is not None and codec.unknown.why:  # else its payloads would go unchecked
            raise InvalidArgument(f"signals: {name!r} must have the type of its payload: {codec.unknown.why}")
    return codecs


class _Decorator:
    """``@workflow(...)`` before it meets its function."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    @overload
    def __call__(self, fn: Callable[[Context, In], Coroutine[Any, Any, Out]], /) -> Workflow[In, Out]: ...
    @overload
    def __call__(self, fn: Callable[[Context], Coroutine[Any, Any, Out]], /) -> Workflow[None, Out]: ...
    def __call__(self, fn: Any, /) -> Any:
        return Workflow[Any, Any](fn, **self._options)


@overload
def workflow(fn: Callable[[Context, In], Coroutine[Any, Any, Out]], /) -> Workflow[In, Out]: ...
@overload
def workflow(fn: Callable[[Context], Coroutine[Any, Any, Out]], /) -> Workflow[None, Out]: ...
@overload
def workflow(
    *,
    name: str | None = None,
    version: str = "1",
    retry: Retry | int | None = None,
    timeout: float | timedelta | None = None,
    queue: str = DEFAULT_QUEUE,
    signals: Mapping[str, Any] | None = None,
    schedule: ScheduleOptions | Sequence[ScheduleOptions] = (),
) -> _Decorator: ...
def workflow(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    version: str = "1",
    retry: Retry | int | None = None,
    timeout: float | timedelta | None = None,
    queue: str = DEFAULT_QUEUE,
    signals: Mapping[str, Any] | None = None,
    schedule: ScheduleOptions | Sequence[ScheduleOptions] = (),
) -> Any:
    """Make a workflow of an async function ``(ctx)`` or ``(ctx, input)``.

    Args:
        name: Default: the function's name. 1 to 200 printable characters.
        version: A run is pinned to the version it was triggered with, and only workers that have it execute it.
        retry: A policy, or a number of run attempts: an uncaught exception is followed by another one. It keeps
            completed steps and drops failed ones; only the last one's failure compensates. Default: one attempt.
        timeout: Seconds or timedelta for the whole run, from its first start, sleeps and waits included; an operator's
            retry gives it anew. Then the running step is cancelled, what was done is compensated, and the run's error
            is ``RunTimeout``.
        queue: Where its runs go unless the trigger says otherwise. Default ``default``.
        signals: The types of the signals it waits for, by name, so that a payload that does not fit is refused to its
            sender.
        schedule: When it is run by itself, such as ``{"cron": "0 6 * * mon", "timezone": "Europe/Paris"}``: see
            ``ScheduleOptions``. Several have names of their own. The start of a worker creates or changes them.

    Raises:
        InvalidArgument: The function is not async, takes something else, or an argument is out of its range.
    """
    decorator: Any = _Decorator(
        name=name, version=version, retry=retry, timeout=timeout, queue=queue, signals=signals, schedule=schedule
    )
    return decorator if fn is None else decorator(fn)
