"""Schedules, their ticks and their open runs in the memory store. The rules are those of ``timetable``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from durable.schedules import Due, Found, Overlap, Previous, Schedule, ScheduleWrite, Ticked
from durable.scheduling import to_json
from durable.states import TERMINAL
from durable.store import Clock
from durable.stores.memory.creating import Creating, refuse_unstorable_runs
from durable.stores.memory.rows import Row, refuse_unstorable


class Schedules(Creating):
    """Write, delete, find, and what is due."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._schedules: dict[str, Schedule] = {}
        self._ticks: dict[str, dict[datetime, str]] = {}  # schedule → nominal time → run
        self._open: dict[str, set[str]] = {}  # schedule → its runs that have not ended

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        for write in writes:
            refuse_unstorable((write.schedule.spec.name, write.schedule.paused, to_json(write.schedule.spec)))
            refuse_unstorable_runs(write.runs)
        with self._lock:
            now = self._clock.now()
            return [self._write(write, now) for write in writes]

    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        name = write.schedule.spec.name
        ticks = self._ticks.get(name, {})
        if any(run.tick is not None and ticks.get(run.tick) == run.id for run in write.runs):
            return True
        if _version(self._schedules.get(name)) != _version(write.before):
            return False
        self._schedules[name] = write.schedule
        for run in write.runs:
            assert run.tick is not None
            ticks = self._ticks.setdefault(name, {})
            if run.tick not in ticks:
                ticks[run.tick] = run.id
                self._create(run, now)
        return True

    async def delete_schedule(self, name: str) -> bool:
        with self._lock:
            return self._schedules.pop(name, None) is not None

    async def find_schedules(self, names: Sequence[str]) -> list[Found]:
        with self._lock:
            return [self._found(self._schedules[name]) for name in dict.fromkeys(names) if name in self._schedules]

    async def list_schedules(self, limit: int, after: str | None) -> list[Schedule]:
        with self._lock:
            names = sorted(name for name in self._schedules if after is None or name > after)
            return [self._schedules[name] for name in names[:limit]]

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        with self._lock:
            now = self._clock.now()
            times = [(one.due_at, name) for name, one in self._schedules.items() if one.due_at is not None]
            due = sorted(time for time in times if time[0] <= now and (after is None or time > after))
            found = [self._found(self._schedules[name]) for _, name in due[:limit]]
            return Due(now, found, min((when for when, _ in times if when > now), default=None))

    async def ticks(self, name: str, since: datetime, until: datetime, limit: int) -> list[Ticked]:
        with self._lock:
            ticks = self._ticks.get(name, {})
            return [Ticked(at, ticks[at]) for at in sorted(ticks) if since <= at < until][:limit]

    def _found(self, schedule: Schedule) -> Found:
        if schedule.spec.overlap is Overlap.ALLOW:
            return Found(schedule, Previous())
        rows = [self._rows[run_id] for run_id in sorted(self._open.get(schedule.spec.name, ()))]
        active = tuple(row.new.id for row in rows if not row.queued)
        return Found(schedule, Previous(active, tuple(row.new.id for row in rows if row.queued)))

    # -- what becomes of their runs ---------------------------------------------------------------

    def _free(self, row: Row, ready_at: datetime) -> None:
        """Whoever gets ready has not ended: it is new, or was retried."""
        if row.new.schedule is not None and row.state not in TERMINAL:
            self._open.setdefault(row.new.schedule, set()).add(row.new.id)
        super()._free(row, ready_at)

    def _ended(self, row: Row, now: datetime) -> None:
        super()._ended(row, now)
        self._open.get(row.new.schedule or "", set()).discard(row.new.id)

    def _forget(self, row: Row) -> None:
        super()._forget(row)
        if row.new.schedule is not None and row.new.tick is not None:
            ticks = self._ticks[row.new.schedule]
            del ticks[row.new.tick]
            if not ticks:
                del self._ticks[row.new.schedule]
                self._open.pop(row.new.schedule, None)


def _version(schedule: Schedule | None) -> object:
    """What two states of one schedule differ in, and so do two schedules of one name."""
    return None if schedule is None else (schedule.created_at, schedule.revision, schedule.next_at)
