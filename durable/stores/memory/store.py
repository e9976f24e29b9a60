"""The store in this process's memory: for tests, and for trying things out.

It keeps the whole protocol (leases, fence, claim numbers, batches, the wake counter), so that what a test
sees is what Postgres does. It knows nothing of the engine. Its data lives as long as the object: closing it
and opening it again, or sharing it between engines, is how a test plays a restart.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from durable import failures, requests
from durable.clock import HostClock
from durable.errors import RunNotFound
from durable.model import (
    Change,
    Claimed,
    ClaimedRun,
    Created,
    DeadLetter,
    Failure,
    Kind,
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
    Verb,
)
from durable.states import TERMINAL, Event, after, release
from durable.store import Clock, Hint, Route
from durable.stores.memory.rows import Ready, Row, conflict, refuse_unstorable


@runtime_checkable
class MovedByHand(Protocol):
    """A clock that a test moves; it says so before time passes."""

    def listen(self, listener: Callable[[timedelta], None]) -> None: ...


class MemoryStore:
    """All runs in dictionaries. Engines may share it, also from several event loops and threads.

    Args:
        clock: Whose time counts; the host's by default. With a `VirtualClock` the leases of live workers are
            extended before time passes, so that moving the clock kills nobody: see ``expire``.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock: Clock = HostClock() if clock is None else clock
        self._lock = threading.Lock()  # renew comes from the heartbeat's thread, other engines from their own
        self._rows: dict[str, Row] = {}
        self._keys: dict[tuple[str, str], str] = {}
        self._ready: dict[Route, Ready] = {}
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

    async def reap(self, limit: int = 5) -> Reaped:
        with self._lock:
            now = self._clock.now()
            dead = [worker for worker, expiry in self._workers.items() if expiry <= now]
            lost = [(worker, row) for worker in dead for row in self._remove_worker(worker)]
            for worker, row in lost:
                self._take_over(row, worker, now, limit)
            given_up = [DeadLetter(row.new.id, row.new.workflow) for _, row in lost if row.state is State.DEAD_LETTER]
            return Reaped(len(lost), tuple(sorted(given_up)))

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

    def _remove_worker(self, worker: str) -> list[Row]:
        """Delete the worker's row; its runs, which have no owner from then on."""
        self._workers.pop(worker, None)
        self._batches.pop(worker, None)
        rows = [self._rows[run_id] for run_id in sorted(self._held.pop(worker, ()))]
        for row in rows:
            row.owner = None
        return rows

    def _take_over(self, row: Row, worker: str, now: datetime, limit: int) -> None:
        seq = row.next_seq()
        key = f"/takeover/{row.claim}"
        row.records[key] = Record(seq, key, Kind.TAKEOVER, now, worker=worker)
        row.takeovers += 1
        if row.takeovers >= limit:
            row.state = after(row.state, Event.GIVE_UP)
            row.ended_at = now
            row.requested = None
            row.error = row.error or failures.to_json(_given_up(row, worker))
        else:
            row.state = after(row.state, Event.TAKEOVER)
            self._free(row, now)

    def _free(self, row: Row, ready_at: datetime) -> None:
        """Let the run be claimed from ``ready_at`` on."""
        row.ready_at = ready_at
        self._index(Route(row.new.workflow, row.new.version)).add(ready_at, row.new.id)

    def _index(self, route: Route) -> Ready:
        index = self._ready.get(route)
        if index is None:
            index = self._ready[route] = Ready(self._rows)
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
            runs = [self._claimed(ref, warm) for ref in refs]
            return Claimed(runs, min(upcoming, default=None), self._asked(worker))

    def _claim_batch(
        self, worker: str, indexes: list[Ready], limit: int, batch: str, now: datetime, done: Sequence[str]
    ) -> list[RunRef]:
        batches = self._batches[worker]
        for old in done:
            batches.pop(old, None)
        if batch in batches:  # sent again: what it was given, as far as it still has it
            return [ref for ref in batches[batch] if self._is_held(worker, ref)]
        taken: list[RunRef] = []
        passed: list[Row] = []
        suspected = any(self._rows[run_id].suspect for run_id in self._held[worker])
        while len(taken) < limit:
            heads = [(head, index) for index in indexes if (head := index.first_due(now)) is not None]
            if not heads:
                break
            _, index = min(heads, key=lambda entry: entry[0])
            row = self._rows[index.take_first_due()]
            if suspected and row.suspect:
                passed.append(row)
                continue
            suspected = suspected or row.suspect
            taken.append(self._lease(row, worker, now))
        for row in passed:
            assert row.ready_at is not None
            self._free(row, row.ready_at)
        if taken:
            batches[batch] = taken
        return taken

    def _lease(self, row: Row, worker: str, now: datetime) -> RunRef:
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
        return ClaimedRun(row.run(), None if current else row.history(), row.wakes)

    def _asked(self, worker: str) -> list[tuple[str, Request]]:
        """What is asked of the runs that the worker holds."""
        held = sorted(self._held.get(worker, ()))
        return [(run_id, asked) for run_id in held if (asked := self._rows[run_id].requested) is not None]

    async def owned(self, worker: str) -> list[RunRef]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in self._held.get(worker, ())]
            return [RunRef(row.new.shard, row.new.id, row.claim) for row in rows]

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        for write in writes:
            refuse_unstorable(text for record in write.records for text in (record.key, record.data))
            if write.change is not None:
                refuse_unstorable((write.change.result, write.change.error, write.change.reason))
        with self._lock:
            now = self._clock.now()
            return [self._apply(worker, write, now) for write in writes]

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows.get(write.ref.id)
        if worker not in self._workers or row is None or row.claim != write.ref.claim:
            return Outcome.LEASE_LOST
        records = [record._replace(worker=worker) for record in write.records]
        if row.owner is None:  # the claim is the latest one and has ended: sent again, or never this worker's
            again = all(row.has(record.key) for record in records) and _ended_by(row, write.change)
            return Outcome.APPLIED if again else Outcome.LEASE_LOST
        new = [record for record in records if record.key not in row.records]
        if row.owner != worker or any(row.records.get(record.key, record) != record for record in records):
            return Outcome.LEASE_LOST
        row.records.update((record.key, record) for record in new)
        if new:
            row.takeovers = 0
        if write.change is not None:
            self._change(row, write.change, now)
        return Outcome.APPLIED

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        if change.asked and (row.requested is None or row.requested.verb is not Verb.PAUSE):
            change = release(row.state)  # withdrawn, or replaced by a cancellation: it must not stand still
        if change.drop_failed:
            row.set_aside(requests.set_failed_aside(row.history()))
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
            row.requested = None
        elif change.state is State.PAUSED:
            if row.requested is not None and row.requested.verb is Verb.PAUSE:
                row.requested = None
        elif row.requested or change.ready_now or (change.wakes is not None and change.wakes != row.wakes):
            self._free(row, now)
        elif change.ready_at is not None:
            self._free(row, change.ready_at)

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        for new in runs:
            refuse_unstorable((new.id, new.workflow, new.version, new.input, new.input_hash, new.seed, new.key))
            refuse_unstorable((new.request, *new.tags, *new.tags.values()))
        with self._lock:
            now = self._clock.now()
            return [self._create(new, now) for new in runs]

    def _create(self, new: NewRun, now: datetime) -> Created:
        holder = None if new.key is None else self._keys.get((new.workflow, new.key))
        existing = self._rows.get(holder or new.id)
        if existing is not None:
            refusal = conflict(existing.new, new)
            mine = existing.new.id == new.id and existing.new.request == new.request and refusal is None
            return Created(existing.new.id, mine, refusal)
        row = self._rows[new.id] = Row(replace(new, tags=dict(new.tags)), now)
        if new.key is not None:
            self._keys[new.workflow, new.key] = new.id
        self._free(row, now + timedelta(seconds=new.delay) if new.ready_at is None else new.ready_at)
        return Created(new.id, True)

    async def request(self, run_id: str, request: Request) -> State | None:
        return self._request(run_id, request)

    async def retry_from(self, run_id: str, step: str, request: Request) -> State | None:
        return self._request(run_id, request, step)

    def _request(self, run_id: str, request: Request, step: str | None = None) -> State | None:
        refuse_unstorable((request.reason, request.by))
        with self._lock:
            row = self._row(run_id)
            run = row.run()
            plan = requests.decide(run, request, row.history(), step)
            if plan is not None:
                self._carry_out(row, request, plan)
            elif not requests.asked_again(run, request, row.latest(Kind.REQUEST)):
                return None
            return row.state

    def _carry_out(self, row: Row, request: Request, plan: requests.Plan) -> None:
        now = self._clock.now()
        row.state, row.requested, row.reason, row.error = plan.state, plan.requested, plan.reason, plan.error
        row.ended_at = now if plan.ended else None
        row.wakes += 1
        if plan.forgive:
            row.takeovers = 0
        row.set_aside(plan.aside)
        if plan.record:
            seq = row.next_seq()
            data = failures.request_to_json(request)
            row.records[f"/request/{seq}"] = Record(seq, f"/request/{seq}", Kind.REQUEST, now, data)
            row.claim += 1
        if plan.ready:
            self._free(row, now)
        elif plan.ended or plan.state is State.PAUSED:
            row.ready_at = None

    def _row(self, run_id: str) -> Row:
        row = self._rows.get(run_id)
        if row is None:
            raise RunNotFound(f"there is no run {run_id!r}")
        return row

    async def prune(self, before: datetime, limit: int) -> int:
        with self._lock:
            ended = (row for row in self._rows.values() if row.state in TERMINAL)
            old = [row for row in ended if row.ended_at is not None and row.ended_at < before][:limit]
            for row in old:
                self._forget(row)
            return len(old)

    async def delete(self, run_id: str) -> bool:
        with self._lock:
            row = self._row(run_id)
            if row.state not in TERMINAL:
                return False
            self._forget(row)
            return True

    def _forget(self, row: Row) -> None:
        del self._rows[row.new.id]
        if row.new.key is not None:
            del self._keys[row.new.workflow, row.new.key]

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            return [self._rows[run_id].run() for run_id in dict.fromkeys(run_ids) if run_id in self._rows]

    async def find_key(self, workflow: str, key: str) -> str | None:
        with self._lock:
            return self._keys.get((workflow, key))

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in dict.fromkeys(run_ids) if run_id in self._rows]
            return [row.run(with_input=False) for row in rows if row.state in TERMINAL]

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        found: list[RunSummary] = []
        with self._lock:
            for run_id in sorted(self._rows, reverse=True):
                if len(found) == limit:
                    break
                row = self._rows[run_id]
                if (before is None or run_id < before) and row.matches(where):
                    found.append(row.summary())
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


def _given_up(row: Row, worker: str) -> Failure:
    message = f"{row.takeovers} workers in a row lost their lease with this run and without a new record"
    return Failure("durable.errors.RunDeadLettered", f"{message}: the last one was {worker}")


def _ended_by(row: Row, change: Change | None) -> bool:
    """Whether a write with this change can be what ended the run's latest claim."""
    if change is None or change.keep:
        return True
    if row.state in TERMINAL or change.state in TERMINAL:
        return row.state is change.state
    return True
