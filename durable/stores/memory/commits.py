"""Fenced writes in the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from durable import requests
from durable.model import Also, Change, Outcome, Record, RunWrite, State, Verb
from durable.states import TERMINAL, release
from durable.stores.memory.creating import Creating, refuse_unstorable_runs
from durable.stores.memory.effects import Effects
from durable.stores.memory.rows import Row, refuse_unstorable


class Commits(Creating, Effects):
    """Commit: each write whole or not at all."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        for write in writes:
            refuse_unstorable(text for record in write.records for text in (record.key, record.data))
            if write.change is not None:
                refuse_unstorable((write.change.result, write.change.error, write.change.reason))
            if write.also is not None:
                refuse_unstorable_runs(write.also.children)
        with self._lock:
            now = self._clock.now()
            return [self._apply(worker, write, now) for write in writes]

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows.get(write.ref.id)
        if worker not in self._workers or row is None or row.claim != write.ref.claim:
            return Outcome.LEASE_LOST
        records = [Record(*record[:-1], worker) for record in write.records]  # half of what _replace takes
        if row.owner is None:  # the claim is the latest one and has ended: sent again, or never this worker's
            again = all(row.has(record.key) for record in records) and _ended_by(row, write.change)
            return Outcome.APPLIED if again else Outcome.LEASE_LOST
        new = [record for record in records if record.key not in row.records]
        if row.owner != worker or any(row.records.get(record.key, record) != record for record in records):
            return Outcome.LEASE_LOST
        row.records.update((record.key, record) for record in new)
        if new:
            row.takeovers = 0
        if write.also is not None and (new or not records):
            self._do_also(row, write.also, [record.key for record in new], now)
        if write.change is not None:
            self._change(row, write.change, now)
        return Outcome.APPLIED

    def _do_also(self, row: Row, also: Also, keys: Sequence[str], now: datetime) -> None:
        """Not for records that were there before: then it has been done, and a wait would be one too many."""
        for child in also.children:
            self._create(child, now)
        row.consumed.update(also.consumed)
        for awaited in also.awaited:
            self._await(row, awaited, now)
        for end in also.effects:
            self._end_effect(row, end, now)
        if also.emits:
            self._log(row, keys)

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
        self._settle(row, change, now)
        self._left(row, now)
        if change.state in TERMINAL:
            self._ended(row, now)

    def _settle(self, row: Row, change: Change, now: datetime) -> None:
        """When a run that has left its worker goes on."""
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


def _ended_by(row: Row, change: Change | None) -> bool:
    """Whether a write with this change can be what ended the run's latest claim."""
    if change is None or change.keep:
        return True
    if row.state in TERMINAL or change.state in TERMINAL:
        return row.state is change.state
    return True
