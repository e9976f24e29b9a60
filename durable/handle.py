"""``RunHandle``: a run that was triggered, as its caller sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Generic, TypeVar

from durable import failures
from durable.codec import Codec
from durable.durations import seconds
from durable.errors import RunCancelled, RunCompensated, RunDeadLettered, RunFailed
from durable.model import Failure, State
from durable.results import End

Out_co = TypeVar("Out_co", covariant=True)


class RunHandle(Generic[Out_co]):
    """A run: its id, its state, its result.

    Attributes:
        run_id: The run's id.
        created: Whether this trigger created it; False when the key or run id existed already.
    """

    def __init__(
        self,
        run_id: str,
        created: bool,
        codec: Codec,
        status: Callable[[str], Awaitable[State]],
        wait: Callable[[str], Awaitable[End]],
        cancel: Callable[..., Awaitable[bool]],
    ) -> None:
        self.run_id = run_id
        self.created = created
        self._codec = codec
        self._status = status
        self._wait = wait
        self._cancel = cancel

    async def status(self) -> State:
        """The run's present state.

        Raises:
            RunNotFound: It was pruned.
        """
        return await self._status(self.run_id)

    async def result(self, timeout: float | timedelta | None = None) -> Out_co:
        """Wait for the run's end and return its result, as the workflow's declared type.

        Args:
            timeout: Seconds or timedelta; None waits without limit. The run goes on after it.

        Raises:
            TimeoutError: The run had not ended in time.
            RunFailed: It failed; ``RunCompensated`` and ``RunDeadLettered`` are kinds of it.
            RunCancelled: It was cancelled.
            RunNotFound: There is no such run.
        """
        async with asyncio.timeout(None if timeout is None else seconds(timeout, "timeout")):
            end = await self._wait(self.run_id)
        if end.state is State.COMPLETED:
            value: Out_co = self._codec.decode(end.result, f"the result of run {self.run_id}")
            return value
        if end.state is State.CANCELLED:
            raise RunCancelled(self.run_id, _reason(end))
        failure = Failure("unknown", "") if end.error is None else failures.from_json(end.error)
        raise _OUTCOMES[end.state](self.run_id, failure)

    async def cancel(self, *, reason: str = "", by: str = "") -> bool:
        """Ask for the cancellation of the run; False when it had ended. See ``Engine.cancel``."""
        return await self._cancel(self.run_id, reason=reason, by=by)

    def __repr__(self) -> str:
        return f"<run {self.run_id}>"


_OUTCOMES: dict[State, type[RunFailed]] = {
    State.FAILED: RunFailed,
    State.COMPENSATED: RunCompensated,
    State.DEAD_LETTER: RunDeadLettered,
}


def _reason(end: End) -> str:
    """Why it was cancelled: the recorded error's message ends with the reason that was given."""
    if end.error is None:
        return ""
    return failures.from_json(end.error).message.partition(" was cancelled")[2].removeprefix(": ")
