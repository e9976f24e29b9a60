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
    Reaped,
    Record,
    Renewal,
    Request,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
    State,
)


class Hint(Flag):
    """What a store heard from other processes. Hints can be lost: polling is the correct path."""

    WORK = auto()  # runs may have become ready
    ENDED = auto()  # runs may have ended
    REQUEST = auto()  # something was asked of a run that a worker holds


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
        """Delete the worker's row. Runs it still owns, and no others, are released, without a takeover."""
        ...

    async def reap(self, limit: int = 5) -> Reaped:
        """Delete workers whose lease has expired and release their runs; returns how many, and which it gave up.

        Each released run gets a takeover record naming the dead worker, and counts takeovers since its last
        new record; the ``limit``-th makes it ``dead_letter``. Runs whose owner has no row are released too. All are
        ready at once: that a run which kills its workers does not take its neighbours along is the claim's to see to.

        This alone makes dead letters, and of several callers at once exactly one is told of each. An answer that was
        lost is not given again: ``list_runs`` shows every dead letter.
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

        A run with two takeovers or more since its last new record is a suspect (``RunSummary.suspect``). A claim takes
        at most one, and none while the worker holds another: so each further death of a worker counts against one
        suspect alone, and a run that kills at once whoever claims it takes no other to ``dead_letter`` with it. The
        price: runs that were taken over twice begin one at a time in each worker, until each has written a record.

        Args:
            worker: Who claims. Without a live row nothing is claimed.
            routes: What it can execute.
            limit: At most so many.
            batch: Id of this claim, a new UUID each time.
            warm: Runs whose execution the worker still has in memory: run id → the claim number it has seen.
                When nobody else claimed the run since, its records are not read (``records=None``).
            done: Ids of earlier batches none of whose runs the worker holds any more; forgotten.

        The answer also holds what has been asked of runs that the worker holds, those of this answer included: each
        request with every claim, ``limit=0`` and no routes included, until the run has left the worker or the request
        is withdrawn. ``run.requested`` says it for a run claimed later.
        """
        ...

    async def owned(self, worker: str) -> list[RunRef]:
        """What the store says the worker holds. To reconcile after a claim whose answer was lost."""
        ...

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        """Apply each write whole or not at all, in one transaction; one outcome for each, in order.

        A run occurs in at most one of the writes. A terminal change ends every request, also one that came too late;
        a ``paused`` one ends a request to pause, and keeps one to cancel. A run that leaves its worker with a request
        open, and is not paused, is ready at once.

        Raises:
            PayloadError: The database refuses the data of one write; nothing was written.
            StoreUnavailable: Unknown outcome; send the same writes again.
        """
        ...

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        """Create each run, unless its key or id exists already; one answer for each, in order."""
        ...

    async def request(self, run_id: str, request: Request) -> State | None:
        """Ask something of a run; whether it applies depends on the run's state, by the table in ``states``.

        One transaction. Who carries a request out writes its ``REQUEST`` record (key ``/request/<seq>``, data:
        ``failures.request_to_json``): the worker that executes the run, or this method where nobody has to execute
        anything. ``by`` and ``reason`` are stored with the request until then, as ``Run.requested``.

        * ``cancel``. A run that never started (``started_at`` is None) is ``cancelled`` at once, paused or not, with
          the error ``failures.cancelled``. Of any other run that is not terminal the request is stored; a run that
          nobody holds becomes ready at once, and a paused one leaves its pause (to ``compensating`` when its error is
          set); a holder is told by its next claim. It replaces a request to pause.
        * ``pause``. A run that nobody holds is ``paused`` at once, with the reason; a holder is told. It does not apply
          to a run that is compensating and not held, nor to one that is asked to be cancelled.
        * ``resume``. A paused run becomes ready at once (a delayed one too), ``compensating`` when its error is set. A
          request to pause that is not carried out yet is withdrawn, and leaves no record.
        * ``retry``. A ``failed`` or ``dead_letter`` run becomes ``pending`` and ready at once, without error, end,
          takeovers and request. Set aside are the records of steps that did not succeed, of steps that were
          compensated, and whatever compensations have left.
        * ``retry_compensation``. A ``failed`` run that has failed compensations becomes ``compensating`` and ready at
          once, without end and takeovers, its error kept. Set aside are the failed compensations. If its history says
          that it was being cancelled, that request is open again, so that it ends ``cancelled``.

        A record that is set aside keeps its contents under the key ``/<claim>/<key>``, with the claim number as it was
        before, and so does every record whose key extends its key (attempts, compensations, wakes). Keys that begin
        with ``/`` stay as they are. Which they are: ``requests.set_aside``.

        Every request that changes the run raises ``wakes``. One that writes a record or sets some aside raises
        ``claim`` too, so that no execution of before writes any more, and no copy of the history in memory counts as
        current. A ``REQUEST`` record written here is no progress: ``takeovers`` stay.

        Asking again changes nothing and says that it applied: a request to cancel or to pause that is open, whoever
        asks again; and one that is equal to the run's latest ``REQUEST`` record, as only the very same one is, for the
        client gives each an id: ``requests.asked_again``. A withdrawal that is sent again answers None.

        Returns:
            The run's state afterwards when the request applies, its present state when it did before, else None: then
            the caller reads the run.

        Raises:
            RunNotFound: There is no such run.
            PayloadError: The database refuses the reason or ``by``.
        """
        ...

    async def retry_from(self, run_id: str, step: str, request: Request) -> State | None:
        """As ``request`` to retry, but the record with the key ``step`` and all after it are set aside too.

        Raises:
            RunNotFound: There is no such run; or a retry applies, and no record has the key (one that begins with ``/``
                is no step's).
            PayloadError: The database refuses the reason or ``by``.
        """
        ...

    async def prune(self, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` terminal runs that ended before ``before``, with all that belongs to them.

        In short transactions, and past runs that somebody holds at this moment. It frees their keys. Returns how many:
        fewer than ``limit`` when there are no more.
        """
        ...

    async def delete(self, run_id: str) -> bool:
        """Delete one terminal run with all that belongs to it; False when it is not terminal.

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
