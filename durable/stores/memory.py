"""The store in this process's memory: for tests, and for trying things out.

It keeps the whole protocol (leases, fence, claim numbers, batches, the wake counter), so that what a test
sees is what Postgres does. It knows nothing of the engine. Its data lives as long as the object: closing it
and opening it again, or sharing it between engines, is how a test plays a restart.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from heapq import heappop, heappush
from typing import Any, Protocol, runtime_checkable

from durable import failures
from durable.clock import HostClock
from durable.errors import PayloadError, RunNotFound
from durable.model import (
    Change,
    Claimed,
    ClaimedRun,
    Created,
    Failure,
    Kind,
    NewRun,
    Outcome,
    Record,
    Renewal,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
    State,
)
from durable.states import TERMINAL, Event, after
from durable.store import Clock, Hint, Route


@runtime_checkable
class MovedByHand(Protocol):
    """A clock that a test moves; it says so before time passes."""

    def listen(self, listener: Callable[[timedelta], None]) -> None: ...


@dataclass(slots=True)
class _Row:
    """A run as it is stored. Never handed out: readers get frozen copies."""

    new: NewRun
    created_at: datetime
    ready_at: datetime | None = None
    state: State = State.PENDING
    started_at: datetime | None = None
    ended_at: datetime | None = None
    result: str | None = None
    error: str | None = None
    reason: str | None = None
    owner: str | None = None
    claim: int = 0
    takeovers: int = 0
    wakes: int = 0
    records: dict[str, Record] = field(default_factory=dict[str, Record])

    def history(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda record: record.seq)


class _Ready:
    """The claim index of one route: what is due, and what will be. Entries that went stale are dropped when met."""

    def __init__(self, rows: Mapping[str, _Row]) -> None:
        self._rows = rows
        self._due: list[tuple[datetime, str]] = []
        self._future: list[tuple[datetime, str]] = []

    def add(self, when: datetime, run_id: str) -> None:
        heappush(self._future, (when, run_id))

    def first_due(self, now: datetime) -> tuple[datetime, str] | None:
        while self._future and self._future[0][0] <= now:
            heappush(self._due, heappop(self._future))
        return self._first(self._due)

    def take_first_due(self) -> str:
        return heappop(self._due)[1]

    def next_after(self, now: datetime) -> datetime | None:
        self.first_due(now)
        first = self._first(self._future)
        return first[0] if first else None

    def _first(self, heap: list[tuple[datetime, str]]) -> tuple[datetime, str] | None:
        while heap and self._rows[heap[0][1]].ready_at != heap[0][0]:
            heappop(heap)
        return heap[0] if heap else None


class MemoryStore:
    """All runs in dictionaries. Engines may share it, also from several event loops and threads.

    Args:
        clock: Whose time counts; the host's by default. With a `VirtualClock` the leases of live workers are
            extended before time passes, so that moving the clock kills nobody: see ``expire``.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = HostClock() if clock is None else clock
        self._lock = threading.Lock()  # renew comes from the heartbeat's thread, other engines from their own
        self._rows: dict[str, _Row] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ready: dict[Route, _Ready] = {}
        self._workers: dict[str, datetime] = {}  # live worker rows: when the lease expires
        self._held: dict[str, set[str]] = {}  # worker → the runs that it owns
        self._batches: dict[str, dict[str, list[RunRef]]] = {}  # worker → batch id → what it was given
        self._subscribers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[Hint], None]]] = {}
        if isinstance(self._clock, MovedByHand):
            self._clock.listen(self._extend_leases)

    def __repr__(self) -> str:
        return f"<MemoryStore runs={len(self._rows)} workers={len(self._workers)}>"

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def url(self) -> str:
        return "memory://"

    # -- life: there is nothing to connect to, and the data outlives every user of the object --------

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def schema_version(self) -> int:
        return self.latest_version

    @property
    def latest_version(self) -> int:
        return 1

    async def migrate(self) -> None:
        return

    # -- workers ----------------------------------------------------------------------------------

    async def register(self, worker: str, lease: float) -> None:
        with self._lock:
            self._workers[worker] = self._clock.now() + timedelta(seconds=lease)
            self._held.setdefault(worker, set())
            self._batches.setdefault(worker, {})

    def renew(self, worker: str, lease: float) -> Renewal:
        with self._lock:
            now = self._clock.now()
            alive = worker in self._workers
            if alive:
                self._workers[worker] = now + timedelta(seconds=lease)
            others = (expiry for other, expiry in self._workers.items() if other != worker)
            return Renewal(alive, now, min(others, default=None))

    async def unregister(self, worker: str) -> None:
        with self._lock:
            now = self._clock.now()
            for row in self._remove_worker(worker):
                row.state = after(row.state, Event.RELEASE)
                self._free(row, now)

    async def reap(self, limit: int = 5) -> int:
        with self._lock:
            now = self._clock.now()
            dead = [worker for worker, expiry in self._workers.items() if expiry <= now]
            lost = [(worker, row) for worker in dead for row in self._remove_worker(worker)]
            for worker, row in lost:
                self._take_over(row, worker, now, limit)
            return len(lost)

    def expire(self, worker: str) -> None:
        """End the worker's lease now, as if its process had died long enough ago; the next ``reap`` finds it."""
        with self._lock:
            if worker in self._workers:
                self._workers[worker] = self._clock.now()

    def _extend_leases(self, by: timedelta) -> None:
        with self._lock:
            now = self._clock.now()
            for worker, expiry in self._workers.items():
                if expiry > now:
                    self._workers[worker] = expiry + by

    def _remove_worker(self, worker: str) -> list[_Row]:
        """Delete the worker's row; its runs, which have no owner from then on."""
        self._workers.pop(worker, None)
        self._batches.pop(worker, None)
        rows = [self._rows[run_id] for run_id in sorted(self._held.pop(worker, ()))]
        for row in rows:
            row.owner = None
        return rows

    def _take_over(self, row: _Row, worker: str, now: datetime, limit: int) -> None:
        seq = max((record.seq for record in row.records.values()), default=0) + 1
        key = f"/takeover/{row.claim}"
        row.records[key] = Record(seq, key, Kind.TAKEOVER, now, worker=worker)
        row.takeovers += 1
        if row.takeovers >= limit:
            row.state = after(row.state, Event.GIVE_UP)
            row.ended_at = now
            row.error = row.error or failures.to_json(_given_up(row, worker))
        else:
            row.state = after(row.state, Event.TAKEOVER)
            self._free(row, now)

    def _free(self, row: _Row, ready_at: datetime) -> None:
        """Let the run be claimed from ``ready_at`` on."""
        row.ready_at = ready_at
        self._index(Route(row.new.workflow, row.new.version)).add(ready_at, row.new.id)

    def _index(self, route: Route) -> _Ready:
        index = self._ready.get(route)
        if index is None:
            index = self._ready[route] = _Ready(self._rows)
        return index

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
        with self._lock:
            now = self._clock.now()
            indexes = [self._ready[route] for route in set(routes) if route in self._ready]
            refs: list[RunRef] = []
            if worker in self._workers:
                refs = self._claim_batch(worker, indexes, limit, batch, now, done)
            upcoming = [when for index in indexes if (when := index.next_after(now)) is not None]
            return Claimed([self._claimed(ref, warm) for ref in refs], min(upcoming, default=None))

    def _claim_batch(
        self, worker: str, indexes: list[_Ready], limit: int, batch: str, now: datetime, done: Sequence[str]
    ) -> list[RunRef]:
        batches = self._batches[worker]
        for old in done:
            batches.pop(old, None)
        if batch in batches:  # sent again: what it was given, as far as it still has it
            return [ref for ref in batches[batch] if self._is_held(worker, ref)]
        taken: list[RunRef] = []
        while len(taken) < limit:
            heads = [(head, index) for index in indexes if (head := index.first_due(now)) is not None]
            if not heads:
                break
            _, index = min(heads, key=lambda entry: entry[0])
            taken.append(self._lease(self._rows[index.take_first_due()], worker, now))
        if taken:
            batches[batch] = taken
        return taken

    def _lease(self, row: _Row, worker: str, now: datetime) -> RunRef:
        row.state = after(row.state, Event.CLAIM)
        row.owner = worker
        row.claim += 1
        row.ready_at = None
        row.started_at = row.started_at or now
        self._held[worker].add(row.new.id)
        return RunRef(row.new.shard, row.new.id, row.claim)

    def _is_held(self, worker: str, ref: RunRef) -> bool:
        row = self._rows.get(ref.id)
        return row is not None and row.owner == worker and row.claim == ref.claim

    def _claimed(self, ref: RunRef, warm: Mapping[str, int]) -> ClaimedRun:
        row = self._rows[ref.id]
        current = warm.get(ref.id) == ref.claim - 1
        return ClaimedRun(_run(row), None if current else row.history(), row.wakes)

    async def owned(self, worker: str) -> list[RunRef]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in self._held.get(worker, ())]
            return [RunRef(row.new.shard, row.new.id, row.claim) for row in rows]

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        for write in writes:
            _refuse_unstorable(text for record in write.records for text in (record.key, record.data))
            if write.change is not None:
                _refuse_unstorable((write.change.result, write.change.error, write.change.reason))
        with self._lock:
            now = self._clock.now()
            return [self._apply(worker, write, now) for write in writes]

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows.get(write.ref.id)
        if worker not in self._workers or row is None or row.claim != write.ref.claim:
            return Outcome.LEASE_LOST
        records = [record._replace(worker=worker) for record in write.records]
        new = [record for record in records if record.key not in row.records]
        if row.owner is None:  # the claim is the latest one and has ended: sent again, or never this worker's
            return Outcome.APPLIED if not new and _ended_by(row, write.change) else Outcome.LEASE_LOST
        if row.owner != worker or any(row.records.get(record.key, record) != record for record in records):
            return Outcome.LEASE_LOST
        row.records.update((record.key, record) for record in new)
        if new:
            row.takeovers = 0
        if write.change is not None:
            self._change(row, write.change, now)
        return Outcome.APPLIED

    def _change(self, row: _Row, change: Change, now: datetime) -> None:
        row.state = change.state
        row.result = row.result if change.result is None else change.result
        row.error = row.error if change.error is None else change.error
        row.reason = change.reason
        if change.keep:
            return
        if row.owner is not None:
            self._held[row.owner].discard(row.new.id)
            row.owner = None
        if change.state in TERMINAL:
            row.ended_at = now
        elif change.ready_now or (change.wakes is not None and change.wakes != row.wakes):
            self._free(row, now)
        elif change.ready_at is not None:
            self._free(row, change.ready_at)

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        for new in runs:
            _refuse_unstorable((new.id, new.workflow, new.version, new.input, new.input_hash, new.seed, new.key))
            _refuse_unstorable((new.request, *new.tags, *new.tags.values()))
        with self._lock:
            now = self._clock.now()
            return [self._create(new, now) for new in runs]

    def _create(self, new: NewRun, now: datetime) -> Created:
        holder = None if new.key is None else self._keys.get((new.workflow, new.key))
        existing = self._rows.get(holder or new.id)
        if existing is not None:
            conflict = _conflict(existing.new, new)
            mine = existing.new.id == new.id and existing.new.request == new.request and conflict is None
            return Created(existing.new.id, mine, conflict)
        row = self._rows[new.id] = _Row(_own_copy(new), now)
        if new.key is not None:
            self._keys[new.workflow, new.key] = new.id
        self._free(row, now + timedelta(seconds=new.delay) if new.ready_at is None else new.ready_at)
        return Created(new.id, True)

    async def resume(self, run_id: str) -> bool:
        with self._lock:
            row = self._rows.get(run_id)
            if row is None:
                raise RunNotFound(f"there is no run {run_id!r}")
            if row.state is not State.PAUSED:
                return False
            row.state = after(row.state, Event.RESUME if row.error is None else Event.RESUME_UNDO)
            row.reason = None
            row.wakes += 1
            self._free(row, self._clock.now())
            return True

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            return [_run(self._rows[run_id]) for run_id in dict.fromkeys(run_ids) if run_id in self._rows]

    async def find_key(self, workflow: str, key: str) -> str | None:
        with self._lock:
            return self._keys.get((workflow, key))

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in dict.fromkeys(run_ids) if run_id in self._rows]
            return [_run(row, with_input=False) for row in rows if row.state in TERMINAL]

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        found: list[RunSummary] = []
        with self._lock:
            for run_id in sorted(self._rows, reverse=True):
                if len(found) == limit:
                    break
                row = self._rows[run_id]
                if (before is None or run_id < before) and _matches(row, where):
                    found.append(RunSummary(**_summary(row)))
        return found

    async def history(self, run_id: str) -> list[Record]:
        with self._lock:
            row = self._rows.get(run_id)
            return [] if row is None else row.history()

    def next_ready_at(self) -> datetime | None:
        """The earliest future time at which any run becomes claimable; where skipping time jumps to."""
        with self._lock:
            now = self._clock.now()
            times = [when for index in self._ready.values() if (when := index.next_after(now)) is not None]
            return min(times, default=None)

    # -- hints ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        token = object()
        with self._lock:
            self._subscribers[token] = (asyncio.get_running_loop(), callback)

        def end() -> None:
            with self._lock:
                self._subscribers.pop(token, None)

        return end

    def announce(self, hint: Hint) -> None:
        with self._lock:
            subscribers = list(self._subscribers.items())
        for token, (loop, callback) in subscribers:
            try:
                loop.call_soon_threadsafe(callback, hint)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                with self._lock:  # its engine ended without a farewell, as a killed process does
                    self._subscribers.pop(token, None)


def _summary(row: _Row) -> dict[str, Any]:
    new = row.new
    return {
        "id": new.id,
        "workflow": new.workflow,
        "version": new.version,
        "state": row.state,
        "created_at": row.created_at,
        "key": new.key,
        "tags": dict(new.tags),
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "ready_at": row.ready_at,
        "reason": row.reason,
        "owner": row.owner,
        "claim": row.claim,
        "takeovers": row.takeovers,
        "shard": new.shard,
    }


def _run(row: _Row, *, with_input: bool = True) -> Run:
    run_input = row.new.input if with_input else None
    return Run(**_summary(row), input=run_input, result=row.result, error=row.error, seed=row.new.seed)


def _given_up(row: _Row, worker: str) -> Failure:
    message = f"{row.takeovers} workers in a row lost their lease with this run and without a new record"
    return Failure("durable.errors.RunDeadLettered", f"{message}: the last one was {worker}")


def _own_copy(new: NewRun) -> NewRun:
    return replace(new, tags=dict(new.tags))


def _conflict(existing: NewRun, new: NewRun) -> str | None:
    """Why ``new`` cannot stand for the run that exists; None when it can."""
    what = f"run {existing.id}" if existing.id == new.id else f"key {new.key!r}, held by run {existing.id},"
    if existing.workflow != new.workflow:
        return f"{what} belongs to workflow {existing.workflow!r}"
    if existing.key != new.key:
        return f"{what} was triggered with another key"
    if existing.input_hash != new.input_hash:
        return f"{what} was triggered with another input"
    return None


def _ended_by(row: _Row, change: Change | None) -> bool:
    """Whether a write with this change can be what ended the run's latest claim."""
    if change is None or change.keep:
        return True
    if row.state in TERMINAL or change.state in TERMINAL:
        return row.state is change.state
    return True


def _matches(row: _Row, where: RunFilter) -> bool:
    return (
        (where.workflow is None or row.new.workflow == where.workflow)
        and (where.version is None or row.new.version == where.version)
        and (where.state is None or row.state is where.state)
        and all(row.new.tags.get(name) == value for name, value in where.tags.items())
        and (where.created_after is None or row.created_at >= where.created_after)
        and (where.created_before is None or row.created_at < where.created_before)
    )


def _refuse_unstorable(texts: Iterable[str | None]) -> None:
    """Refuse what Postgres refuses as text, so that a test on memory finds it.

    Raises:
        PayloadError: NUL characters, or surrogates, which have no UTF-8 form.
    """
    for text in texts:
        if text is None:
            continue
        if "\0" in text:
            raise PayloadError("text with a NUL character cannot be stored")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise PayloadError(f"text with a lone surrogate cannot be stored: {error}") from None
