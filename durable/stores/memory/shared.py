"""What the parts of the memory store share: its dictionaries, its lock, and what happens to a run beside its row.

Each part is a class on top of `Shared`; `MemoryStore` is all of them. The hooks here are called by whichever part
lets a run go, and extended by those whom it concerns.
"""

from __future__ import annotations

import threading
from datetime import datetime

from durable.clock import HostClock
from durable.errors import RunNotFound
from durable.model import RunRef, Signal, State
from durable.store import Clock, Route
from durable.stores.memory.rows import Ready, Row


class Shared:
    """The state. Methods whose names begin with ``_`` are called with the lock held."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = HostClock() if clock is None else clock
        self._lock = threading.Lock()  # renew comes from the heartbeat's thread, other engines from their own
        self._rows: dict[str, Row] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ready: dict[Route, Ready] = {}
        self._workers: dict[str, datetime] = {}  # live worker rows: when the lease expires
        self._homes: dict[str, tuple[str, int, datetime]] = {}  # worker → its host, its process, since when
        self._held: dict[str, set[str]] = {}  # worker → the runs that it owns
        self._batches: dict[str, dict[str, list[RunRef]]] = {}  # worker → batch id → what it was given

    def _free(self, row: Row, ready_at: datetime) -> None:
        """Let the run be claimed from ``ready_at`` on."""
        row.ready_at = ready_at
        self._index(row.route).add(ready_at, row.new.id)

    def _index(self, route: Route) -> Ready:
        index = self._ready.get(route)
        if index is None:
            index = self._ready[route] = Ready(self._rows, route)
        return index

    def _row(self, run_id: str) -> Row:
        row = self._rows.get(run_id)
        if row is None:
            raise RunNotFound(f"there is no run {run_id!r}")
        return row

    # -- inboxes ----------------------------------------------------------------------------------

    def _deliver(self, row: Row, signal: Signal, now: datetime) -> None:
        """Put the signal into the run's inbox, unless it was there before."""
        if signal.id not in row.inbox:
            row.inbox[signal.id] = signal
            self._wake(row, now)

    def _wake(self, row: Row, now: datetime) -> None:
        """Only a run that waits is ready: one that is delayed, backs off, sleeps or is paused has its own time."""
        row.wakes += 1
        row.signalled = row.owner is not None
        if row.state is State.WAITING and row.owner is None and (row.ready_at is None or row.ready_at > now):
            self._free(row, now)

    # -- hooks ------------------------------------------------------------------------------------

    def _left(self, row: Row, now: datetime) -> None:
        """The run has left its worker, in whatever way; its row is as it will be."""

    def _withdrawn(self, row: Row, now: datetime) -> None:
        """The run, which nobody holds, is not claimed for now although it might have been: paused, ended, put off."""

    def _ended(self, row: Row, now: datetime) -> None:
        """The run has ended, in whatever way; after `_left` where a worker held it."""

    def _forget(self, row: Row) -> None:
        """The run is deleted, with all that belongs to it."""
        del self._rows[row.new.id]
        if row.new.key is not None:
            del self._keys[row.new.workflow, row.new.key]
