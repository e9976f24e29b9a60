"""Stores that break one rule each: what a simulation has to find, or it finds nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from durable.model import Also, Change, Claimed, Created, Effect, NewRun, Outcome, Reaped, RunRef, RunWrite, Signal
from durable.schedules import ScheduleWrite
from durable.store import Route
from durable.stores.memory import MemoryStore
from durable.stores.memory.rows import Row


class NoFence(MemoryStore):
    """Whoever writes about a run is believed: neither the worker's row nor the claim is looked at."""

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows[write.ref.id]
        for record in write.records:
            row.records.setdefault(record.key, record._replace(worker=worker))
        if write.also is not None:
            self._do_also(row, write.also, [record.key for record in write.records], now)
        if write.change is not None:
            self._change(row, write.change, now)
        return Outcome.APPLIED


class NoClaimNumber(MemoryStore):
    """A lease stands for the worker, not for one claim of one run."""

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows.get(write.ref.id)
        if row is not None and row.owner == worker:
            write = RunWrite(write.ref._replace(claim=row.claim), write.records, write.change, write.also)
        return super()._apply(worker, write, now)


class NoKeys(MemoryStore):
    """Nobody looks whether a key is taken."""

    def _create(self, new: NewRun, now: datetime) -> Created:
        self._keys.clear()
        return super()._create(new, now)


class TriggersTwice(MemoryStore):
    """A trigger that is sent again is another one."""

    def _create(self, new: NewRun, now: datetime) -> Created:
        if new.id in self._rows:
            new = replace(new, id=f"{new.id[:-4]}{len(self._rows):04x}", key=None)
        return super()._create(new, now)


class NoWakeCounter(MemoryStore):
    """A park does not ask whether something has come since the run was read."""

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        super()._change(row, change._replace(wakes=None), now)


class KeepsTheDead(MemoryStore):
    """Nobody is ever taken for dead."""

    async def reap(self, limit: int = 5) -> Reaped:
        return Reaped(0)


class WarmForEver(MemoryStore):
    """A history in memory counts as current, whoever has written since."""

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
        warm = {run_id: self._rows[run_id].claim for run_id in warm}
        return await super().claim(worker, routes, limit, batch, warm, done, unasked=unasked)


class ConsumedIsForgotten(MemoryStore):
    """What was consumed is deleted, and its id with it."""

    def _do_also(self, row: Row, also: Also, keys: Sequence[str], now: datetime) -> None:
        super()._do_also(row, also, keys, now)
        for signal_id in also.consumed:
            row.inbox.pop(signal_id, None)
            row.consumed.discard(signal_id)


class OneSignalOnly(MemoryStore):
    """A signal takes the place of one that was not read."""

    def _deliver(self, row: Row, signal: Signal, now: datetime) -> None:
        for unread in row.unread():
            if unread.name == signal.name:
                del row.inbox[unread.id]
        super()._deliver(row, signal, now)


class NoRevision(MemoryStore):
    """Whoever has read a schedule may fire it."""

    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        name = write.schedule.spec.name
        self._ticks.pop(name, None)
        return super()._write(replace(write, before=self._schedules.get(name)), now)


class LastWriteCounts(MemoryStore):
    """A record that is written again is overwritten."""

    def _apply(self, worker: str, write: RunWrite, now: datetime) -> Outcome:
        row = self._rows.get(write.ref.id)
        if row is not None and row.owner == worker:
            for record in write.records:
                row.records.pop(record.key, None)
                moved = record._replace(seq=row.next_seq())
                write.records[write.records.index(record)] = moved
        return super()._apply(worker, write, now)


class NoLimit(MemoryStore):
    """A queue's limit is a hint."""

    def _is_open(self, queue: str, now: datetime) -> bool:
        return True


class PrunesTheYoung(MemoryStore):
    """Whatever has ended is old enough."""

    async def prune(self, before: datetime, limit: int) -> int:
        return await super().prune(self._clock.now(), limit)


class EverybodyMakes(MemoryStore):
    """An effect that runs share is made by each of them."""

    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        return await super().take_effect(worker, ref, f"{ref.id}{key}", step)
