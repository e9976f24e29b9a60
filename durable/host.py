"""What an execution needs of the worker that runs it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

from durable.committer import Committer
from durable.hooks import Hooks
from durable.model import Change, Failure
from durable.steps import StillRunning
from durable.store import Clock

if TYPE_CHECKING:
    from durable.execution import Execution


class Host(Protocol):
    """The worker, as its executions see it."""

    committer: Committer
    clock: Clock
    hooks: Hooks
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

    def left(self, execution: Execution, change: Change) -> None:
        """The run was ended, parked or given back; that is committed."""
        ...

    def rested(self) -> None:
        """The run waits for time in its slot."""
        ...

    def gone(self, execution: Execution) -> None:
        """The execution has ended in this process: nothing of it runs any more."""
        ...
