"""One call of one user function: on the loop or in a thread, with its timeout, seen through ``current_step``.

It knows neither records nor retries; ``execution`` does.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import MethodType
from typing import Any, NamedTuple
from weakref import ref

from durable.codec import Codec, result_codec
from durable.errors import DurableError
from durable.retry import Retry
from durable.threads import ThreadPool
from durable.waits import base_name

_log = logging.getLogger("durable.steps")

UNWIND = 5.0
"""Seconds for which cancelled user code may go on before it is abandoned, with its stack in the log."""


class CurrentStep:
    """What a step function can know about the attempt it runs in."""

    __slots__ = ("_key", "_shared", "attempt", "cancelled", "run_id")

    def __init__(self, run_id: str, key: str, attempt: int, shared: str | None = None) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.cancelled = False
        """The attempt's result is not wanted any more: it timed out, or the worker stops."""
        self._key = key
        self._shared = shared

    @property
    def name(self) -> str:
        """The step's name, without its branch, item and occurrence."""
        return base_name(self._key.removesuffix("/undo"))

    @property
    def idempotency_key(self) -> str:
        """``<run_id>/<record key>``: the same for every attempt, crash and retry of this step in this run.

        Of an effect that runs share it is their key, whichever of them makes it. A compensation's ends with ``/undo``.
        """
        if self._shared is None:
            return f"{self.run_id}/{self._key}"
        return f"{self._shared}/undo" if self._key.endswith("/undo") else self._shared


running: contextvars.ContextVar[CurrentStep] = contextvars.ContextVar("durable_current_step")
"""The attempt whose function is running."""


def current_step() -> CurrentStep:
    """The step whose function is running, in a coroutine or in a thread.

    Raises:
        DurableError: No step function is running here.
    """
    try:
        return running.get()
    except LookupError:
        raise DurableError("current_step() is only known inside a step function") from None


class Call:
    """A user function with its arguments and how it is to be called."""

    __slots__ = (
        *("args", "codec", "compensate", "fn", "on_loop", "retry", "shared", "timeout"),
        *("undo_retry", "undo_timeout"),
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        codec: Codec,
        on_loop: bool,
        retry: Retry | None,
        timeout: float | None,
    ) -> None:
        self.fn = fn
        self.args = args
        self.codec = codec
        self.on_loop = on_loop
        self.retry = retry
        self.timeout = timeout
        self.compensate: Callable[[Any], Any] | None = None
        self.undo_retry: Retry | None = None
        self.undo_timeout: float | None = None
        self.shared: str | None = None  # the key under which runs share the effect

    def undone_by(self, fn: Callable[[Any], Any], retry: Retry | None, timeout: float | None) -> None:
        """``fn`` compensates this call; it gets the result."""
        self.compensate, self.undo_retry, self.undo_timeout = fn, retry, timeout


class Known(NamedTuple):
    """What every call of a function needs to know about it."""

    codec: Codec  # of its result
    on_loop: bool  # coroutine functions, their partials and bound methods; any other callable gets a thread


_known: dict[int, tuple[Known, ref[Any]]] = {}
"""By the id of a function that lives: its end takes it out before another object can have the id. 0.1 µs to look one
up, where a ``WeakKeyDictionary`` takes 0.5."""


def known(fn: Callable[..., Any]) -> Known:
    """Found out at the first call of ``fn``: 4 µs."""
    found = _known.get(id(fn))
    return found[0] if found is not None else _made_known(fn)


def _made_known(fn: Callable[..., Any]) -> Known:
    key: Any = fn
    if isinstance(fn, MethodType):
        key = fn.__func__
        if (found := _known.get(id(key))) is not None:
            return found[0]
    made, place = Known(result_codec(fn), inspect.iscoroutinefunction(fn)), id(key)
    if not isinstance(fn, partial):  # a partial is made anew for each call
        try:
            _known[place] = made, ref(key, lambda _: _known.pop(place, None))
        except TypeError:  # not weakly referable, such as a builtin
            return made
    return made


class StillRunning:
    """Threads of timed-out or dropped attempts: the next attempt in this process waits for their end."""

    def __init__(self, pool: ThreadPool) -> None:
        self._pool = pool
        self._running: dict[str, asyncio.Future[Any]] = {}

    def submit(self, key: str, fn: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:
        future = self._pool.submit(fn, *args)
        self._running[key] = future
        future.add_done_callback(lambda _: self._running.pop(key, None))
        return future

    def runs(self, key: str) -> bool:
        """Whether a thread of an earlier attempt of this step still runs."""
        return key in self._running

    async def ended(self, key: str) -> None:
        """Return when no thread of an earlier attempt of this step runs any more."""
        while (future := self._running.get(key)) is not None:
            await asyncio.wait([future])


def called(call: Call, step: CurrentStep, threads: StillRunning) -> Awaitable[Any]:
    """One call of the function, within its timeout.

    What is awaited raises what the function raises, and TimeoutError when the timeout has passed: a coroutine is
    cancelled then; a thread goes on and its result is dropped. ``failure_of`` says what is a failure of the step.
    """
    if call.timeout is not None:
        return _within(call, step, threads, call.timeout)
    if call.on_loop:  # in the caller's own task: a coroutine less, and no task
        return call.fn(*call.args)  # type: ignore[no-any-return]
    return _in_thread(call, step, threads)


def failure_of(error: BaseException, step: CurrentStep) -> Exception:
    """What counts as the failure of an attempt that has ended with ``error``.

    Raises:
        asyncio.CancelledError: The surrounding task was cancelled: that is no failure.
    """
    if isinstance(error, Exception):
        return error
    if not isinstance(error, asyncio.CancelledError):
        return _contained(error)
    task = asyncio.current_task()
    if task is None or task.cancelling():
        step.cancelled = True
        raise error
    failure = DurableError("the step function raised CancelledError, and nobody had cancelled it")
    failure.__cause__ = error
    return failure


def _contained(error: BaseException) -> DurableError:
    """Out of a task it would end the event loop, with every other run in it."""
    contained = DurableError(f"the step function raised {type(error).__name__}")
    contained.__cause__ = error
    return contained


async def _in_thread(call: Call, step: CurrentStep, threads: StillRunning) -> Any:
    future = threads.submit(step.idempotency_key, call.fn, *call.args)
    await asyncio.wait([future])  # cancelling the wait leaves the future alone: the thread is still tracked
    value = future.result()
    return await value if inspect.isawaitable(value) else value


async def _within(call: Call, step: CurrentStep, threads: StillRunning, timeout: float) -> Any:
    """In a task of its own, so that one that does not obey its cancellation can be left behind."""
    work: Awaitable[Any] = call.fn(*call.args) if call.on_loop else _in_thread(call, step, threads)

    async def contained() -> Any:
        try:
            return await work
        except (SystemExit, KeyboardInterrupt) as error:
            raise _contained(error) from error

    task = asyncio.ensure_future(contained())
    try:
        done, _ = await asyncio.wait([task], timeout=timeout)
    except asyncio.CancelledError:
        step.cancelled = True
        await cancelled(task, step.idempotency_key)
        raise
    if done:
        return task.result()
    step.cancelled = True
    await cancelled(task, step.idempotency_key)
    raise TimeoutError(f"no result within {timeout:g} s")


async def cancelled(task: asyncio.Future[Any], what: str) -> None:
    """Cancel ``task`` and wait for its end, at most ``UNWIND`` seconds; then it is abandoned."""
    task.cancel()
    _, pending = await asyncio.wait([task], timeout=UNWIND)
    if pending:
        log_abandoned(task, what)
    elif not task.cancelled():
        task.exception()  # it ended after all; its outcome came too late


def log_abandoned(task: asyncio.Future[Any], what: str) -> None:
    """Say where user code that does not obey its cancellation stands."""
    stack = "".join(_stack(task)) if isinstance(task, asyncio.Task) else ""
    _log.error("%s does not end %g s after its cancellation, and is abandoned. It stands at:\n%s", what, UNWIND, stack)


def _stack(task: asyncio.Task[Any]) -> Iterator[str]:
    """Down to where it is suspended; ``Task.get_stack`` has only the outermost frame, which is ours."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        if (frame := getattr(awaited, "cr_frame", None)) is not None:
            yield from traceback.format_stack(frame, limit=1)
        awaited = getattr(awaited, "cr_await", None)
