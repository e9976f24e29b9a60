"""Renews a worker's lease from a thread of its own, so that a blocked event loop does not lose it.

It also notices a blocked loop and reports where it stands. It knows nothing of runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

from durable.errors import StoreUnavailable
from durable.model import Renewal
from durable.store import Store

_log = logging.getLogger("durable.heartbeat")

_BLOCKED_AFTER = 1.0
"""Seconds without a turn of the event loop after which its stack is reported."""


def margin(lease: float) -> float:
    """Seconds before the lease's end at which no step may start any more: a fifth, at most 5."""
    return min(5.0, lease / 5)


class Heartbeat:
    """The lease of one worker id.

    Args:
        store: Its ``renew`` is called in the thread.
        worker: The worker id; its row exists.
        lease: Seconds.
        sent: ``time.monotonic()`` before the row was written.
        on_renewal: Called on the event loop with each answer of the store.
        measured: Called in the thread after each try: whether it has renewed the lease.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        lease: float,
        sent: float,
        on_renewal: Callable[[Renewal], None],
        measured: Callable[[bool], None] | None = None,
    ) -> None:
        self.deadline = sent + lease - margin(lease)
        """``time.monotonic()`` after which this process must not start a step."""
        self._store = store
        self._worker = worker
        self._lease = lease
        self._on_renewal = on_renewal
        self._measured = measured
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._asked: float | None = None  # time.monotonic() since which a callback waits for its turn on the loop
        self._reported = False
        self._stop = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"durable-heartbeat-{worker[-6:]}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread; one that hangs in a renewal is left behind after a fifth of a second."""
        self._stop.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await self._ended.wait()

    def _run(self) -> None:
        try:
            self._renew_until_stopped()
        finally:
            self._on_loop(self._ended.set)

    def _renew_until_stopped(self) -> None:
        every = self._lease / 3
        next_beat = time.monotonic() + every
        while not self._stop.wait(min(0.25, max(0.0, next_beat - time.monotonic()))):
            self._watch_loop()
            if time.monotonic() >= next_beat:
                next_beat = time.monotonic() + (every if self._beat() else min(1.0, every / 4))

    def _beat(self) -> bool:
        """One renewal; a failed one is tried again soon, and nothing is aborted while the lease holds."""
        sent = time.monotonic()
        try:
            renewal = self._store.renew(self._worker, self._lease)
        except StoreUnavailable as error:
            left = self.deadline - time.monotonic()
            self._measure(renewed=False)
            _log.warning("the lease was not renewed (%s); steps may start for another %.1f s", error, max(0.0, left))
            return False
        if renewal.alive:
            self.deadline = sent + self._lease - margin(self._lease)
        self._measure(renewed=renewal.alive)
        self._on_loop(lambda: self._on_renewal(renewal))
        return True

    def _measure(self, *, renewed: bool) -> None:
        if self._measured is not None:
            self._measured(renewed)

    def _watch_loop(self) -> None:
        """Report a loop that a callback has waited for; time in which this thread itself did not run says nothing."""
        asked = self._asked
        if asked is None:
            self._reported = False
            self._asked = time.monotonic()
            self._on_loop(self._had_turn)
        elif not self._reported and (blocked := time.monotonic() - asked) >= _BLOCKED_AFTER:
            self._reported = True
            frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001  (documented)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "unknown\n"
            _log.warning("the event loop has been blocked for %.1f s; it stands at:\n%s", blocked, stack)

    def _had_turn(self) -> None:
        self._asked = None

    def _on_loop(self, callback: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: the worker has no use for answers any more
            self._stop.set()
