"""The seam between the engine and a database.

It speaks in whole transitions, in plural, and every write about a claimed run proves two things: that the
worker's lease still stands (its row exists) and that the run is still this execution's (owner and claim).
``durable.testing.conformance`` is the suite that every store has to pass.

Rules for an implementation:

* Every method may be sent again after an unknown outcome, and then changes nothing and gives the same answer.
* Driver exceptions do not escape: a lost connection, a restart, a timeout is ``StoreUnavailable``; data that
  the database refuses is ``PayloadError``. Deadlocks and serialization failures are retried inside.
* The store's clock decides what is due and what has expired.
* No method waits for a run that somebody else holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Flag, auto
from typing import NamedTuple, Protocol

from durable.model import (
    Claimed,
    Created,
    NewRun,
    Outcome,
    Record,
    Renewal,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
)


class Hint(Flag):
    """What a store heard from other processes. Hints can be lost: polling is the correct path."""

    WORK = auto()  # runs may have become ready
    ENDED = auto()  # runs may have ended


class Route(NamedTuple):
    """What a worker can execute, and what a run needs."""

    workflow: str
    version: str


class Clock(Protocol):
    """The store's clock as this process knows it."""

    def now(self) -> datetime:
        """The present time, aware, in UTC; never behind what the database would say by more than its error."""
        ...

    def call_at(self, when: datetime, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` on the running event loop at ``when``; the result cancels it."""
        ...


class Store(Protocol):
    """One backend. An instance belongs to the event loop that opened it."""

    @property
    def clock(self) -> Clock:
        """The time that decides what is due and what has expired."""
        ...

    @property
    def url(self) -> str:
        """Where the data is, without a password."""
        ...

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect. Opening twice is counted, so that engines may share a store.

        Raises:
            StoreUnavailable: The database cannot be reached.
        """
        ...

    async def close(self) -> None:
        """Undo one ``open``; the last one closes every connection and ends every task and thread."""
        ...

    async def schema_version(self) -> int:
        """The version of the schema in the database, 0 when there is none. Takes no lock, runs no DDL."""
        ...

    @property
    def latest_version(self) -> int:
        """The version that this code needs."""
        ...

    async def migrate(self) -> None:
        """Bring the schema to ``latest_version``. Safe from many processes at once.

        Raises:
            SchemaTooNew: The database is ahead of this code.
        """
        ...

    # -- workers ----------------------------------------------------------------------------------

    async def register(self, worker: str, lease: float) -> None:
        """Insert the worker with a lease of ``lease`` seconds from now. A worker id is never reused."""
        ...

    def renew(self, worker: str, lease: float) -> Renewal:
        """Extend the lease. Blocking, called from the heartbeat thread only, on a connection of its own.

        Raises:
            StoreUnavailable: No answer; the lease holds until its deadline.
        """
        ...

    async def unregister(self, worker: str) -> None:
        """Delete the worker's row. Runs it still owns are released as after an expiry, without a takeover."""
        ...

    async def reap(self, limit: int = 5) -> int:
        """Delete workers whose lease has expired and release their runs; returns how many runs.

        Each released run gets a takeover record naming the dead worker, and counts takeovers since its last
        new record; the ``limit``-th makes it ``dead_letter``. Runs whose owner has no row are released too.
        """
        ...

    # -- execution, fenced ------------------------------------------------------------------------

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
    ) -> Claimed:
        """Take up to ``limit`` ready runs, oldest due first within a route, never one that is taken.

        Args:
            worker: Who claims. Without a live row nothing is claimed.
            routes: What it can execute.
            limit: At most so many.
            batch: Id of this claim, a new UUID each time.
            warm: Runs whose execution the worker still has in memory: run id → the claim number it has seen.
                When nobody else claimed the run since, its records are not read (``records=None``).
            done: Ids of earlier batches none of whose runs the worker holds any more; forgotten.
        """
        ...

    async def owned(self, worker: str) -> list[RunRef]:
        """What the store says the worker holds. To reconcile after a claim whose answer was lost."""
        ...

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        """Apply each write whole or not at all, in one transaction; one outcome for each, in order.

        A run occurs in at most one of the writes.

        Raises:
            PayloadError: The database refuses the data of one write; nothing was written.
            StoreUnavailable: Unknown outcome; send the same writes again.
        """
        ...

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        """Create each run, unless its key or id exists already; one answer for each, in order."""
        ...

    async def resume(self, run_id: str) -> bool:
        """Make a paused run ready again; False when it is not paused (any more).

        Raises:
            RunNotFound: There is no such run.
        """
        ...

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        """Those of the runs that exist, in any order."""
        ...

    async def find_key(self, workflow: str, key: str) -> str | None:
        """The run that holds ``key``."""
        ...

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        """Those of the runs that are terminal, with their payloads but without their inputs."""
        ...

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        """Newest first (by run id), at most ``limit``, starting below the id ``before``."""
        ...

    async def history(self, run_id: str) -> list[Record]:
        """The run's records in seq order."""
        ...

    # -- hints ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        """Have ``callback`` called on the event loop at every hint; the result ends the subscription."""
        ...

    def announce(self, hint: Hint) -> None:
        """Tell the other processes, after a commit; coalesced. Returns at once.

        It does not call this process's own subscribers, unless the store is its own other side (memory).
        """
        ...
