"""The two places where real time enters: the host's clock, and the database's as seen from here.

The only module that asks ``datetime.now``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime


class HostClock:
    """This machine's clock. SQLite's and the default of memory."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def call_at(
        self,
        when: datetime,
        callback: Callable[[], None],
        *,
        recurring: bool = False,  # noqa: ARG002  (the seam's signature)
    ) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        return loop.call_later((when - self.now()).total_seconds(), callback).cancel


class ServerClock(HostClock):
    """A database server's clock, carried forward by this machine's monotonic clock.

    Each answer of the server that holds its time is an observation: the true time lay between the sending and
    the receiving. The estimate counts from the sending: it is ahead of the server by at most one latency and the
    drift since the last observation, never behind. So a time that is computed from it comes no earlier than asked,
    and a run that was parked until then is given out by the server itself. Steps of the application host's wall clock
    do not reach it.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None  # of time.monotonic(), in seconds

    def observe(self, server_now: datetime, sent: float) -> None:
        """The server said ``server_now`` in answer to a statement sent at ``time.monotonic() == sent``."""
        self._ahead = server_now.timestamp() - sent

    def now(self) -> datetime:
        if self._ahead is None:
            return super().now()
        return datetime.fromtimestamp(self._ahead + time.monotonic(), UTC)
