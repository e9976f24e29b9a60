"""What an execution needs of the worker that runs it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from durable.committer import Committer
from durable.hooks import Hooks
from durable.meter import Meter
from durable.model import Change, Effect, Failure, Outcome, RunRef, RunWrite
from durable.steps import StillRunning
from durable.store import Clock

if TYPE_CHECKING:
    from durable.execution import Execution


class Host(Protocol):
    """The worker, as its executions see it."""

    committer: Committer
    clock: Clock
    hooks: Hooks
    meter: Meter | None
    linger: float
    threads: StillRunning

    @property
    def deadline(self) -> float:
        """``time.monotonic()`` after which no step may start."""
        ...

    def renewed(self) -> Awaitable[None]:
        """Return after the next successful renewal."""
        ...

    def capture(self, error: BaseException, /) -> Failure:
        """What is recorded of ``error``, redacted."""
        ...

    def cancel(self, run_id: str, reason: str) -> Awaitable[None]:
        """Ask for the cancellation of a child; one that has ended, or is gone, is left alone."""
        ...

    def child_end(self, run_id: str) -> Awaitable[str | None]:
        """How a child has ended, as its signal would say it; None when it has not."""
        ...

    def take_effect(self, ref: RunRef, key: str, step: str) -> Awaitable[Effect]:
        """Who makes an effect that runs share; asked until the store answers."""
        ...

    def transact(
        self, work: Callable[[Any], Any], on_loop: bool, write: Callable[[Any], Awaitable[RunWrite]]
    ) -> Awaitable[Outcome]:
        """``Store.transact`` under this worker's lease."""
        ...

    def left(self, execution: Execution, change: Change) -> None:
        """The run was ended, parked or given back; that is committed."""
        ...

    def stirred(self) -> None:
        """Something was committed that may make other runs ready: a child, the end of a shared effect, a wait."""
        ...

    def rested(self) -> None:
        """The run waits for time in its slot."""
        ...

    def gone(self, execution: Execution) -> None:
        """The execution has ended in this process: nothing of it runs any more."""
        ...
