"""The suite finds a store that breaks a rule of schedules."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest

from durable.model import NewRun
from durable.schedules import Due, Found, Overlap, Previous, Schedule, ScheduleWrite
from durable.stores.memory import MemoryStore
from durable.stores.memory.rows import Row
from durable.testing.conformance import StoreConformance, StoreHarness
from tests.conformance.test_memory import MemoryHarness

_TEN = "test_P39_ten_that_fire_one_tick_make_one_run"
_MANY = "test_P39_many_that_fire_many_ticks_in_other_orders_make_each_run_once"


class _ComparesNothing(MemoryStore):
    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        return super()._write(replace(write, before=self._schedules.get(write.schedule.spec.name)), now)


class _ComparesTheRevisionAlone(MemoryStore):
    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        stored = self._schedules.get(write.schedule.spec.name)
        if stored is not None and write.before is not None and stored.revision == write.before.revision:
            write = replace(write, before=stored)
        return super()._write(write, now)


class _ComparesBefore(MemoryStore):
    """Reads in one transaction, and writes in another."""

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        stored = {write.schedule.spec.name: self._schedules.get(write.schedule.spec.name) for write in writes}
        mine = [stored[write.schedule.spec.name] == write.before for write in writes]
        await asyncio.sleep(0)
        with self._lock:
            for write, answer in zip(writes, mine, strict=True):
                if answer:
                    now = write.schedule.updated_at
                    super()._write(replace(write, before=self._schedules.get(write.schedule.spec.name)), now)
        return mine


class _ForgetsItsTicks(MemoryStore):
    """Nothing but the revision guards a tick."""

    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        applied = super()._write(write, now)
        self._ticks.pop(write.schedule.spec.name, None)
        return applied


class _AllOrNothing(MemoryStore):
    """One outdated write has the others refused."""

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        if any(self._schedules.get(write.schedule.spec.name) != write.before for write in writes):
            return [False] * len(writes)
        return await super().write_schedules(writes)


class _RunsWithoutATick(MemoryStore):
    def _write(self, write: ScheduleWrite, now: datetime) -> bool:
        bare: list[NewRun] = [replace(run, schedule=None) for run in write.runs]
        return super()._write(replace(write, runs=bare), now)


class _TicksStay(MemoryStore):
    def _forget(self, row: Row) -> None:
        ticks = {name: dict(found) for name, found in self._ticks.items()}
        super()._forget(row)
        self._ticks = ticks


class _TakesItsRunsAlong(MemoryStore):
    async def delete_schedule(self, name: str) -> bool:
        self._ticks.pop(name, None)
        return await super().delete_schedule(name)


class _EverybodyIsActive(MemoryStore):
    def _found(self, schedule: Schedule) -> Found:
        found = super()._found(schedule)
        return Found(schedule, Previous((*found.previous.active, *found.previous.queued)))


class _RetriedIsForgotten(MemoryStore):
    def _free(self, row: Row, ready_at: datetime) -> None:
        super()._free(row, ready_at)
        if row.new.schedule is not None and row.claim > 1:
            self._open[row.new.schedule].discard(row.new.id)


class _ReadsTheRunsOfAll(MemoryStore):
    def _found(self, schedule: Schedule) -> Found:
        asked = replace(schedule, spec=replace(schedule.spec, overlap=Overlap.SKIP))
        return Found(schedule, super()._found(asked).previous)


class _DueByItsTick(MemoryStore):
    """Looks at ``next_at``, which knows no jitter."""

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        for name, one in list(self._schedules.items()):
            self._schedules[name] = replace(one, due_at=one.next_at)
        return await super().due_schedules(limit, after)


class _PagesWithoutNames(MemoryStore):
    """Of those that are due at the same time, the ones behind a page are passed over."""

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        return await super().due_schedules(limit, None if after is None else (after[0], "\U0010ffff"))


class _WakesForWhatIsDue(MemoryStore):
    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        found = await super().due_schedules(limit, after)
        times = [one.due_at for one in self._schedules.values() if one.due_at is not None]
        return found._replace(next_due_at=min(times, default=None))


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (_ComparesNothing, _TEN, []),
        (_ComparesNothing, _MANY, []),
        (_ComparesNothing, "test_P39_a_name_is_taken_once", []),
        (
            _ComparesNothing,
            "test_P39_who_fires_what_was_changed_meanwhile_changes_nothing",
            ["pause", "delete", "make anew", "declare"],
        ),
        (_ComparesTheRevisionAlone, "test_P39_a_write_on_what_has_changed_changes_nothing", []),
        (
            _ComparesTheRevisionAlone,
            "test_P39_who_fires_what_was_changed_meanwhile_changes_nothing",
            ["make anew"],
        ),
        (_ComparesBefore, _TEN, []),
        (_ComparesBefore, _MANY, []),
        (_ForgetsItsTicks, "test_P39_a_write_whose_answer_was_lost_is_not_made_twice", []),
        (_ForgetsItsTicks, "test_P39_a_tick_that_has_its_run_is_passed_over", []),
        (_AllOrNothing, "test_of_several_writes_each_applies_by_itself", []),
        (_RunsWithoutATick, "test_a_fired_tick_is_a_run_that_can_be_claimed", []),
        (_TicksStay, "test_a_tick_lives_as_long_as_its_run", ["prune", "delete"]),
        (_TakesItsRunsAlong, "test_a_tick_lives_as_long_as_its_run", ["prune", "delete"]),
        (_EverybodyIsActive, "test_the_open_runs_of_a_schedule_are_told_with_it", []),
        (_RetriedIsForgotten, "test_the_open_runs_of_a_schedule_are_told_with_it", []),
        (_ReadsTheRunsOfAll, "test_a_schedule_that_allows_overlap_is_read_without_its_runs", []),
        (_DueByItsTick, "test_due_is_what_due_at_says", []),
        (_PagesWithoutNames, "test_what_is_due_is_told_in_order_and_in_pages", []),
        (_WakesForWhatIsDue, "test_what_is_due_is_told_in_order_and_in_pages", []),
    ],
)
async def test_a_broken_rule_turns_its_test_red(broken: type[MemoryStore], test: str, arguments: list[str]) -> None:
    class Harness(MemoryHarness):
        def __init__(self) -> None:
            super().__init__()
            self._store = broken()

    run = getattr(StoreConformance(), test)
    for extra in [[argument] for argument in arguments] or [[]]:
        harness: StoreHarness = Harness()
        with pytest.raises(AssertionError):
            await run(harness, *extra)
