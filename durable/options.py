"""How a worker works, checked when it is said. It knows no worker."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from durable.durations import seconds
from durable.errors import InvalidArgument
from durable.names import check_name

_LEASE_LEAST = 0.5
"""Seconds. A shorter lease would be lost to an ordinary pause of the machine."""


class WorkerOptions:
    """How a worker works.

    Args:
        concurrency: Runs that execute at the same time; parked ones do not count. Default 100.
        threads: Threads for synchronous step functions. Default 32.
        lease: Seconds or timedelta for which its runs stay its own after the worker has died. Default 30, at least
            0.5. It is renewed every third of it.
        poll_interval: Seconds or timedelta after which an idle worker looks for runs unasked. Default 1.
        linger: Seconds or timedelta for which a parked run stays in memory, to go on without a replay; 0 evicts it at
            once. Default 1. The last 500 stay at most.
        drain_timeout: Seconds or timedelta for which a stopping worker lets running steps end. Default 30.
        prune_after: Seconds or timedelta after which runs that have ended are deleted, a bounded batch at a time,
            beside the other work. Default None: never.
        queues: The queues whose runs it executes. Default: ``default``, and those of its workflows.

    Raises:
        InvalidArgument: A value is out of its range.
    """

    def __init__(
        self,
        *,
        concurrency: int = 100,
        threads: int = 32,
        lease: float | timedelta = 30.0,
        poll_interval: float | timedelta = 1.0,
        linger: float | timedelta = 1.0,
        drain_timeout: float | timedelta = 30.0,
        prune_after: float | timedelta | None = None,
        queues: Iterable[str] | None = None,
    ) -> None:
        self.concurrency = _count(concurrency, "concurrency")
        self.threads = _count(threads, "threads")
        self.lease = seconds(lease, "lease")
        self.poll_interval = seconds(poll_interval, "poll_interval")
        self.linger = seconds(linger, "linger")
        self.drain_timeout = seconds(drain_timeout, "drain_timeout")
        self.prune_after = None if prune_after is None else seconds(prune_after, "prune_after")
        self.queues = None if queues is None else _queues(queues)
        if self.lease < _LEASE_LEAST:
            raise InvalidArgument(f"lease must be at least {_LEASE_LEAST} s, not {self.lease:g}")
        if not self.poll_interval:
            raise InvalidArgument("poll_interval must be more than 0")

    def replaced(self, **changes: Any) -> WorkerOptions:
        """The same with some values changed, named and checked as those of the constructor."""
        return WorkerOptions(**{**vars(self), **changes})


def _queues(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str) or not isinstance(names, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        # A text is iterable too: the worker would subscribe to its letters, and execute nothing.
        raise InvalidArgument(f"queues must be a list of names, such as ['mail'], not {type(names).__name__}")
    return frozenset(check_name(name, "queue") for name in names)


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{what} must be a whole number of at least 1, not {value!r}")
    return value
