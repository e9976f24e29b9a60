"""Schedules, as methods of the store. The rules are those of ``timetable``; what is fired is decided elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from datetime import datetime

from durable.model import NewRun, Policy
from durable.schedules import Due, Found, Overlap, Previous, Schedule, ScheduleWrite, Ticked
from durable.scheduling import from_json, skipped_from_json, skipped_to_json, to_json
from durable.store import Route
from durable.stores.postgres import creating, literals
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.routing import Routes
from durable.stores.postgres.sessions import SHARD, Sessions
from durable.stores.postgres.wire import Row

_BEGINNING = "-infinity"


class Schedules(ABC):
    """A part of ``PostgresStore``, which has the connections."""

    _routes: Routes

    @property
    @abstractmethod
    def _use(self) -> Sessions: ...

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        if not writes:
            return []
        runs = [run for write in writes for run in write.runs]
        routes = await self._routes.numbers(self._use, [Route(run.workflow, run.version, run.queue) for run in runs])
        call = self._use.call
        _, answers, *_ = await self._use.write(
            "write_schedules",
            call("hold_schedules", SHARD, *_names(write.schedule.spec.name for write in writes)),
            call("write_schedules", SHARD, *_parameters(writes, runs)),
            *(creating.inserting(self._use, runs, routes) if runs else []),
            call("settle_ticks", SHARD, *_names(w.schedule.spec.name for w in writes if not _overlaps(w.schedule))),
        )
        applied = {name for [name] in answers}
        await creating.make_way(
            self._use, SHARD, [run.id for run in runs if run.schedule in applied and _replaces(run)]
        )
        return [write.schedule.spec.name in applied for write in writes]

    async def delete_schedule(self, name: str) -> bool:
        [deleted] = await self._use.write("delete_schedule", self._use.call("delete_schedule", SHARD, name))
        return bool(deleted)

    async def find_schedules(self, names: Sequence[str]) -> list[Found]:
        if not names:
            return []
        rows = await self._use.read("found_schedules", SHARD, *_names(names), _BEGINNING, "", "0")
        return [_found(row) for row in rows]

    async def list_schedules(self, limit: int, after: str | None) -> list[Schedule]:
        return [_schedule(row) for row in await self._use.read("list_schedules", SHARD, after or "", str(limit))]

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        when, name = (_BEGINNING, "") if after is None else (after[0].isoformat(), after[1])
        found, [(now, next_due_at, unasked)] = await self._use.write(
            "due_schedules",
            self._use.call("found_schedules", SHARD, *_names(()), when, name, str(limit)),
            self._use.call("schedules_rest", SHARD),
        )
        await creating.make_way(self._use, SHARD, unasked)
        return Due(now, [_found(row) for row in found], next_due_at)

    async def ticks(self, name: str, since: datetime, until: datetime, limit: int) -> list[Ticked]:
        between = literals.instant(since), literals.instant(until)
        return [Ticked(*row) for row in await self._use.read("ticks", SHARD, name, *between, str(limit))]


def _overlaps(schedule: Schedule) -> bool:
    return schedule.spec.overlap is Overlap.ALLOW


def _replaces(run: NewRun) -> bool:
    return run.policy is Policy.REPLACE and run.concurrency_key is not None


def _names(names: Iterable[str]) -> list[str]:
    return literals.columns(list(names))


def _parameters(writes: Sequence[ScheduleWrite], runs: Sequence[NewRun]) -> list[Parameter]:
    """$2 to $22 of ``write_schedules``."""
    new, before = [write.schedule for write in writes], [write.before for write in writes]
    *texts, of_runs = literals.columns(
        [one.spec.name for one in new],
        [to_json(one.spec) for one in new],
        [None if one.paused is None else f"+{one.paused}" for one in new],  # an empty text alone would read as NULL
        [skipped_to_json(one.skipped) for one in new],
        [run.schedule for run in runs],
    )
    return [
        *texts,
        literals.times([one.next_at for one in new]),
        literals.times([one.due_at for one in new]),
        literals.times([one.created_at for one in new]),
        literals.times([one.updated_at for one in new]),
        literals.times([one.last_at for one in new]),
        literals.scalars([one.fired for one in new]),
        literals.scalars([one.revision for one in new]),
        literals.scalars([_overlaps(one) for one in new]),
        literals.scalars([one is not None for one in before]),
        literals.times([None if one is None else one.created_at for one in before]),
        literals.scalars([None if one is None else one.revision for one in before]),
        literals.times([None if one is None else one.next_at for one in before]),
        of_runs,
        literals.ids([run.id for run in runs]),
        literals.times([run.tick for run in runs]),
    ]


def _schedule(row: Row) -> Schedule:
    """From ``list_schedules`` and the first columns of ``found_schedules``."""
    spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision = row[:10]
    dates = next_at, due_at, created_at, updated_at
    return Schedule(from_json(spec), *dates, paused, last_at, fired, skipped_from_json(skipped), revision)


def _found(row: Row) -> Found:
    active, queued = row[10:]
    return Found(_schedule(row), Previous(tuple(active), tuple(queued)))
