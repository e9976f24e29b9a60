"""Claims in the memory store: which runs a worker gets, and what it is told beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from durable.model import Claimed, ClaimedRun, Request, RunRef, Unread
from durable.states import Event, after
from durable.store import Route
from durable.stores.memory.queues import Queues
from durable.stores.memory.rows import Ready, Row


class Claims(Queues):
    """Claim, and what a worker holds."""

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
        *,
        unasked: bool = False,  # noqa: ARG002  (the seam's signature)
    ) -> Claimed:
        with self._lock:
            now = self._clock.now()
            indexes = [self._ready[route] for route in set(routes) if route in self._ready]
            refs: list[RunRef] = []
            if worker in self._workers:
                refs = self._claim_batch(worker, indexes, limit, batch, now, done)
            upcoming = [when for index in indexes for when in self._upcoming(index, now)]
            runs = [self._claimed(ref, warm) for ref in refs]
            told = self._signalled(worker, {ref.id for ref in refs})
            return Claimed(runs, min(upcoming, default=None), self._asked(worker), told)

    async def claim_run(self, worker: str, route: Route, run_id: str, batch: str, warm: Mapping[str, int]) -> Claimed:
        with self._lock:
            now = self._clock.now()
            refs = [] if worker not in self._workers else self._claim_one(worker, route, run_id, batch, now)
            told = self._signalled(worker, {ref.id for ref in refs})
            return Claimed([self._claimed(ref, warm) for ref in refs], None, self._asked(worker), told)

    def _claim_one(self, worker: str, route: Route, run_id: str, batch: str, now: datetime) -> list[RunRef]:
        batches = self._batches[worker]
        if batch in batches:
            return [ref for ref in batches[batch] if self._is_held(worker, ref)]
        row = self._rows.get(run_id)
        if row is None or row.route != route or row.ready_at is None or row.ready_at > now:
            return []
        suspected = row.suspect and any(self._rows[other].suspect for other in self._held[worker])
        if suspected or not self._is_open(route.queue, now) or not self._admit(row, now):
            return []
        batches[batch] = [self._lease(row, worker, now)]  # its entry in the claim index is stale from now on
        return batches[batch]

    def _upcoming(self, index: Ready, now: datetime) -> list[datetime]:
        """When something of this route will be due, and when what is due has a token."""
        opens_at = None if index.first_due(now) is None else self._opens_at(index.route.queue, now)
        return [when for when in (index.next_after(now), opens_at) if when is not None]

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
            open_ = [index for index in indexes if self._is_open(index.route.queue, now)]
            heads = [(head, index) for index in open_ if (head := index.first_due(now)) is not None]
            if not heads:
                break
            _, index = min(heads, key=lambda entry: entry[0])
            row = self._rows[index.take_first_due()]
            if suspected and row.suspect:
                passed.append(row)
                continue
            if not self._admit(row, now):
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
        row.signalled = False
        self._held[worker].add(row.new.id)
        return RunRef(row.new.shard, row.new.id, row.claim, row.linked)

    def _is_held(self, worker: str, ref: RunRef) -> bool:
        row = self._rows.get(ref.id)
        return row is not None and row.owner == worker and row.claim == ref.claim

    def _claimed(self, ref: RunRef, warm: Mapping[str, int]) -> ClaimedRun:
        row = self._rows[ref.id]
        current = warm.get(ref.id) == ref.claim - 1
        return ClaimedRun(row.run(), None if current else row.history(), row.wakes, row.unread())

    def _signalled(self, worker: str, given: set[str]) -> list[str]:
        """The runs that the worker held before, and whose signals it has not asked for since they came."""
        return [run_id for run_id in sorted(self._held.get(worker, set()) - given) if self._rows[run_id].signalled]

    def _asked(self, worker: str) -> list[tuple[str, Request]]:
        """What is asked of the runs that the worker holds."""
        held = sorted(self._held.get(worker, ()))
        return [(run_id, asked) for run_id in held if (asked := self._rows[run_id].requested) is not None]

    async def unread(self, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
        with self._lock:
            held = self._held.get(worker, set())
            rows = [self._rows[run_id] for run_id in dict.fromkeys(run_ids) if run_id in held]
            for row in rows:
                row.signalled = False
            return {row.new.id: Unread(row.wakes, row.unread()) for row in rows}

    async def owned(self, worker: str) -> list[RunRef]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in self._held.get(worker, ())]
            return [RunRef(row.new.shard, row.new.id, row.claim, row.linked) for row in rows]
