"""Leases in the memory store: workers come, renew, leave, and are taken for dead."""

from __future__ import annotations

from datetime import datetime, timedelta

from durable import failures
from durable.model import DeadLetter, Failure, Kind, Reaped, Record, Renewal, State
from durable.states import Event, after
from durable.stores.memory.rows import Row
from durable.stores.memory.shared import Shared


class Workers(Shared):
    """Register, renew, unregister, reap."""

    async def register(self, worker: str, lease: float, host: str = "", pid: int = 0) -> None:
        with self._lock:
            now = self._clock.now()
            self._workers[worker] = now + timedelta(seconds=lease)
            self._homes.setdefault(worker, (host, pid, now))
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
                self._left(row, now)

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
        self._homes.pop(worker, None)
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
            self._left(row, now)
            self._ended(row, now)
        else:
            row.state = after(row.state, Event.TAKEOVER)
            self._free(row, now)
            self._left(row, now)


def _given_up(row: Row, worker: str) -> Failure:
    message = f"{row.takeovers} workers in a row lost their lease with this run and without a new record"
    return Failure("durable.errors.RunDeadLettered", f"{message}: the last one was {worker}")
