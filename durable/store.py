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

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from enum import Flag, auto
from typing import Any, NamedTuple, Protocol

from durable.model import (
    Claimed,
    Created,
    Effect,
    Emitted,
    NewRun,
    NewSignal,
    Outcome,
    Published,
    Queue,
    Reaped,
    Record,
    Renewal,
    Request,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
    Sent,
    Start,
    State,
    Unread,
)
from durable.oversight import Oversight
from durable.timetable import Timetable

EFFECT_TOPIC = "/effect"
"""The topic of the events that say that a shared effect was made, or may be made by others; its key is the event's."""

EFFECT_RETENTION = 3600.0
"""Seconds for which such an event is kept: longer than any commit of a wait takes. In an outage no effect ends."""


class Hint(Flag):
    """What a store heard from other processes. Hints can be lost: polling is the correct path."""

    WORK = auto()  # runs may have become ready
    ENDED = auto()  # runs may have ended
    REQUEST = auto()  # something was asked of a run that a worker holds
    SCHEDULE = auto()  # schedules were declared, changed or deleted


class Route(NamedTuple):
    """What a worker can execute, and what a run needs."""

    workflow: str
    version: str
    queue: str = "default"


class Clock(Protocol):
    """The store's clock as this process knows it."""

    def now(self) -> datetime:
        """The present time, aware, in UTC; never behind what the database would say by more than its error."""
        ...

    def call_at(self, when: datetime, callback: Callable[[], None], *, recurring: bool = False) -> Callable[[], None]:
        """Call ``callback`` on the running event loop at ``when``; the result cancels it.

        ``recurring``: it will be asked for again and again, without end, so that no test can wait for the last one.
        """
        ...


class OnConnection(Protocol):
    """What can be done on a connection of the user's own, inside the transaction that is open there.

    A connection is whatever the store's driver, or a library above it, calls so: ``accepts`` says which. It only
    inserts, and locks no run. The methods block on a blocking connection; on one for asyncio they return awaitables.
    """

    def accepts(self, connection: object) -> bool: ...

    def is_async(self, connection: object) -> bool: ...

    def trigger(self, connection: Any, run: NewRun) -> Any:
        """Create the run; returns ``Created``, or an awaitable of it. ``replace`` and debouncing are refused."""
        ...

    def signal(self, connection: Any, signal: NewSignal) -> Any:
        """Send the signal; returns ``Sent``, or an awaitable of it."""
        ...


class Store(Timetable, Oversight, Protocol):
    """One backend. An instance belongs to the event loop that opened it."""

    @property
    def clock(self) -> Clock:
        """The time that decides what is due and what has expired."""
        ...

    @property
    def url(self) -> str:
        """Where the data is, without a password."""
        ...

    def twin(self) -> Store:
        """A store on the same data for another event loop; it is not open."""
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

    async def register(self, worker: str, lease: float, host: str = "", pid: int = 0) -> None:
        """Insert the worker with a lease of ``lease`` seconds from now. A worker id is never reused.

        Args:
            host, pid: Where it is, for ``workers``: told to people, and never relied upon.
        """
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
        *,
        unasked: bool = False,
    ) -> Claimed:
        """Take up to ``limit`` ready runs, never one that is taken.

        By priority over all routes; within a priority and a route the oldest due first. What the limits of a queue do
        not let it take: see ``put_queues``.

        A run with two takeovers or more since its last new record is a suspect (``RunSummary.suspect``). A claim takes
        at most one, and none while the worker holds another: so a run that kills at once whoever claims it takes no
        other to ``dead_letter`` with it. The price: each worker begins such runs one at a time, until they progress.

        Args:
            worker: Who claims. Without a live row nothing is claimed.
            routes: What it can execute. A run needs all three: its workflow, its version, its queue.
            limit: At most so many.
            batch: Id of this claim, a new UUID each time.
            warm: Executions that the worker still has in memory: run id → the claim number it has seen. When nobody
                else claimed the run since, its records are not read (``records=None``).
            done: Ids of earlier batches none of whose runs the worker holds any more; forgotten.
            unasked: Nothing was heard, so probably nothing is there: a store may look first, if that is cheaper.

        The answer also holds what has been asked of runs that the worker holds, those of this answer included: each
        request with every claim, ``limit=0`` and no routes included, until the run has left the worker or the request
        is withdrawn. ``run.requested`` says it for a run claimed later.
        """
        ...

    async def claim_run(self, worker: str, route: Route, run_id: str, batch: str, warm: Mapping[str, int]) -> Claimed:
        """As ``claim`` of this route, of this one run, even before others that are due longer. Limits hold."""
        ...

    async def owned(self, worker: str) -> list[RunRef]:
        """What the store says the worker holds. To reconcile after a claim whose answer was lost."""
        ...

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        """Apply each write whole or not at all, in one transaction; one outcome for each, in order.

        A run occurs in at most one of the writes. A terminal change ends every request, also one that came too late;
        a ``paused`` one ends a request to pause, and keeps one to cancel. A run that leaves its worker with a request
        open, and is not paused, is ready at once.

        ``also`` is applied with its write or not at all. A write that has records, all of which are there already, was
        sent before: it does nothing of it again. (Without records only what does not matter twice comes alone: consumed
        ids, waits for the end of a shared effect, and that the run does not make one any more.) Children have neither
        ``key`` nor ``concurrency_key``, and their ids are new. A consumed id that the inbox does not hold is passed
        over.

        When a linked run leaves, its place in a limited queue is free. When it ends, by whomever (a commit, the reaper,
        a request), its parent gets the signal ``child/<parent_key>`` with the child's id as its own, also a parent that
        has ended: it may be retried, and has not consumed it. A parent that is gone gets nothing. The concurrency key
        passes on, and effects that the run was making and has not made are free to be made by others.

        Raises:
            PayloadError: The database refuses the data of one write; nothing was written.
            StoreUnavailable: Unknown outcome; send the same writes again.
        """
        ...

    async def unread(self, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
        """The unread signals of those of the runs that the worker holds. The counter is read before the signals.

        Claims do not tell of these signals any more (``Claimed.signalled``); until then each claim does.
        """
        ...

    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        """Have the step ``step`` of a claimed run make the effect ``key``, which runs share, unless another has it.

        It is made by one step of one run at a time, until a write of that run says what became of it (``Also.effects``,
        which concern only what is the run's and step's own), or the run ends. What was made and kept stays, with its
        result, until the run is pruned or deleted, or undoes it. Asked again by the same step it is ``mine`` again and
        not done, also after it was done: its record was set aside then. A run that makes an effect is ``linked`` from
        then on, and so must be the ``ref`` of its writes.

        When an effect that was being made is done, or is free to be made, whoever awaits an event with the topic
        ``EFFECT_TOPIC`` and this key gets it, with ``null`` as its data, and asks again. One who begins to await it
        since a time before it asked gets it also when that has happened meanwhile. A store may tell too often, so that
        it need not keep such events: to who begins to wait while nobody makes the effect.

        Returns:
            None when the lease is lost.
        """
        ...

    async def transact(
        self,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        """Call ``work(connection)`` and apply ``await write(result)``, in one transaction.

        Args:
            worker: Whose lease it proves, last, directly before the commit.
            work: With ``on_loop`` it returns an awaitable and gets a connection for asyncio, else it is called in a
                thread and gets a blocking one. It must not commit.
            write: Called on the event loop with what ``work`` came to.

        Raises:
            BaseException: What ``work`` or ``write`` raised; nothing was written.
            StoreUnavailable: The connection was lost before the commit; nothing was written. A lost answer to the
                commit itself is looked up.
            ConfigurationError: The store has no connection to offer.
        """
        ...

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        """Create each run, unless its key or id exists already; one answer for each, in order.

        The key and the id are looked up first, then the debounce key, then the concurrency key.
        Those that ``start`` names are created claimed (``Created.claimed``), unless the worker's lease is over, they
        are not due at once, their queue has limits, or they have a concurrency or debounce key; or the store is in
        doubt. Sent again they are not claimed by the answer: ``owned`` says what the first sending has claimed.

        * A concurrency key is held, within its workflow, by the first in its line: a run joins the line when it is
          created and leaves it when it ends, by whomever. What becomes of a further one says ``NewRun.policy``.
          ``replace`` asks all that stand in the line to cancel (``requests.replacement``), and joins it; when it is
          sent again it asks nobody. What is queued, which is all but the first, has no ``ready_at``. Whatever would
          make it ready (its delay, a resumption, a request to cancel a run that has started) does so when it is first.
          When the first one leaves, the next has the ``ready_at`` that it would have had, unless it is paused.
          A retry lets a run that has ended join the line anew, at its end.
        * Debounced: while a run with the same workflow and debounce key was never claimed and has not ended, it gets
          this input, version and tags, and starts ``delay`` after now but not later than ``max_delay`` after it was
          created; ``created`` is False. The run keeps its id, queue, priority and keys. ``NewRun.ready_at`` and
          ``delay`` do not count. A trigger sent again, told by ``NewRun.id``, gets the run that has its input and
          changes nothing, until that run is deleted.
        """
        ...

    async def create_with_signal(self, run: NewRun, signal: NewSignal) -> tuple[Created, Sent]:
        """Create the run, unless its key exists already, and send the signal to the run that stands; together.

        ``signal.run_id`` does not count. When the run is refused (``Created.conflict``, ``busy``) nothing is sent, and
        the answer is ``NOT_FOUND``; when the one that stands has ended, ``FINISHED``.
        """
        ...

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[Sent]:
        """Store each signal and raise ``wakes`` of its run; one answer for each, in order.

        A run that waits, and that nobody holds, is ready with the next claim at the latest; a holder is told by its
        next claim (``Claimed.signalled``). No run is waited for. Any other run keeps its time: a signal does not end a
        delay, a backoff, a sleep or a pause. The signals of one run are read in the order in which they were stored.

        An id that the run's inbox knows is ``ACCEPTED`` and changes nothing: whatever the name and the data, consumed
        or not, the run ended or not. It stays known until the run is pruned.

        Raises:
            PayloadError: The database refuses the data of one signal; nothing was stored.
        """
        ...

    async def publish(self, events: Sequence[Published]) -> None:
        """Store each event until its retention has passed; each run that awaits it gets it as a signal.

        Each (run, event) once. A run that begins to wait gets the oldest event that was published at or after
        ``Awaited.since``, is retained, and was not given to it; else it gets the next one, however short its retention
        and whatever ``since`` says (the caller's clock may be ahead). One event ends one wait: two waits of one run for
        the same topic and key get two events, the older wait the first. Of an event and a wait that are committed at
        the same time neither is missed. An event becomes a signal with the next claim, by whatever worker.

        A wait stands until it got its event or the run is pruned, also when the run ends: it may be retried. An event
        whose id is retained is not stored again.

        Raises:
            PayloadError: The database refuses the data of one event; nothing was stored.
        """
        ...

    async def emitted(self, after: str | None, limit: int) -> list[Emitted]:
        """The log of ``EMIT`` records after the cursor ``after`` (None: from its beginning), at most ``limit``.

        No entry is ever added before a cursor that was given out: what was written by a transaction that has not ended,
        and all that came later, is not shown yet. Entries are pruned with their run, and cursors stay valid: one of an
        entry that is gone stands for its place.

        Raises:
            InvalidArgument: ``after`` is no cursor of this store.
        """
        ...

    async def put_queues(self, queues: Sequence[Queue]) -> None:
        """Store the limits of these queues; those of others stay. They hold for claims from then on.

        A claim never takes a run when, with it, more runs of the queue would be held by all workers together than
        ``concurrency``, or of the queue and ``limit_key`` than ``per_key``; nor one whose rate is used up. What cannot
        be taken does not stand in the way of others, and is claimed when it can be, in the order of ``claim``.

        * A run that is claimed while its queue has limits has a place, until it leaves its worker, in whatever way; and
          takes a token of each rate. A run that was claimed before is not counted.
        * A queue of which nothing can be taken, by ``concurrency`` or ``rate``, is passed over as a whole.
          ``Claimed.next_ready_at`` counts the time at which its next token is due, when something of it is due by then.
        * A run whose ``limit_key`` has no place or no token loses its ``ready_at``: it is blocked. When a place is free
          or a token is due, at least one run for each workflow and version of the queue and key is ready (or will be,
          at the time of the token), by priority, then due time: if what stands first is of a version that nobody
          executes, the others go on. A blocked run that becomes ready for any other reason is met and blocked again.
        * A claim that met so many runs which it could not take that it has stopped looking says so by a
          ``next_ready_at`` that is not after now.

        A queue without any limit is not stored any more. Limits that differ from those that were stored begin with full
        buckets, and let all that is blocked in the queue be looked at anew. The same ones again change nothing.
        """
        ...

    async def queues(self) -> list[Queue]:
        """The limits that are stored, by name."""
        ...

    @property
    def on_connection(self) -> OnConnection | None:
        """Triggers and signals in a transaction of the user's own; None where there is none to have."""
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
        """Tell the other processes, after a commit; coalesced. Returns at once. It does not call this process's own
        subscribers, unless the store is its own other side (memory)."""
        ...
