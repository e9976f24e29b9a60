"""The heartbeat without its thread: the world lets it beat, also while the process's event loop is blocked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from durable.heartbeat import Heartbeat, margin
from durable.model import Renewal

if TYPE_CHECKING:
    from tests.simulation.link import Link


class HeartbeatOnLoop(Heartbeat):
    """As ``Heartbeat``; when it beats is taken from there, what a beat does is the same code."""

    def __init__(
        self,
        store: Any,
        worker: str,
        lease: float,
        sent: float,
        on_renewal: Callable[[Renewal], None],
        measured: Callable[[bool], None] | None = None,
    ) -> None:
        # Not the base's: it would start the thread.
        self.deadline = sent + lease - margin(lease)
        self._link: Link = store
        self._store = store
        self._worker = worker
        self._lease = lease
        self._on_renewal = on_renewal
        self._measured = measured
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._later(lease / 3)

    async def stop(self) -> None:
        self._over = True

    def _later(self, after: float) -> None:
        self._link.awake(after, self._send)

    def _send(self) -> None:
        if not self._over:
            self._link.send_renewal(self._worker, self._lease, self._answered)

    def _answered(self) -> None:
        if not self._over:
            every = self._lease / 3
            self._later(every if self._beat() else min(1.0, every / 4))
