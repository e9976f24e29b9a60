"""Schedules: one guarded write for all that becomes of them, and each tick once whoever fires it."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import NewRun, Policy, Request, RunFilter, State, Verb
from durable.schedules import (
    CatchUp,
    Overlap,
    Previous,
    Schedule,
    ScheduleSpec,
    ScheduleWrite,
    Skip,
    Ticked,
)
from durable.scheduling import fired
from durable.store import Store
from durable.testing.conformance.harness import LONG_AGO, NEVER, ROUTE, StoreHarness, Worker, create, new_run, read
from durable.testing.conformance.writes import ERROR

MADE = datetime(2026, 3, 1, 12, 0, 0, 123456, UTC)
TICK = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)  # long due, on every store's clock that is not virtual
NEXT = datetime(2099, 3, 3, 6, 0, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_R = State.RUNNING


def schedule(name: str = "report", due: datetime | None = TICK, **spec: Any) -> Schedule:
    """A schedule as a declaration makes it, with its next tick at ``due``."""
    options: dict[str, Any] = {"cron": "0 6 * * *", **spec}
    return Schedule(ScheduleSpec(name, *ROUTE[:2], **options), due, due, MADE, MADE)


def run_of(stored: Schedule, tick: datetime = TICK, **other: Any) -> NewRun:
    """The run of one of its ticks."""
    if stored.spec.overlap is not Overlap.ALLOW:
        key: dict[str, Any] = {"concurrency_key": f"schedule:{stored.spec.name}", "policy": Policy.QUEUE}
        other = {**key, **other}
    return new_run(schedule=stored.spec.name, tick=tick, **other)


def firing(stored: Schedule, *ticks: datetime, next_at: datetime | None = NEXT, **other: Any) -> ScheduleWrite:
    """What one who has read ``stored`` writes to fire its tick, or these."""
    runs = [run_of(stored, tick, **other) for tick in ticks or (TICK,)]
    return fired(stored, runs, {}, MADE, (next_at, next_at))


async def put(store: Store, *schedules: Schedule) -> None:
    """Store new schedules."""
    assert list(await store.write_schedules([ScheduleWrite(one) for one in schedules])) == [True] * len(schedules)


async def get(store: Store, name: str = "report") -> tuple[Schedule, Previous]:
    (found,) = await store.find_schedules([name])
    return found.schedule, Previous(tuple(found.previous.active), tuple(found.previous.queued))


async def runs_of(store: Store, name: str = "report") -> list[datetime | None]:
    """The ticks of the runs that the schedule has, in the order of their creation."""
    return [run.tick for run in reversed(await store.list_runs(RunFilter(schedule=name), 1000, None))]


async def every_handle(harness: StoreHarness, store: Store, count: int = 10) -> list[Store]:
    return [store, *[await harness.another() for _ in range(count - 1)]]


async def pass_ticks(store: Store) -> None:
    """A virtual clock may show a time before the ticks of these tests."""
    if store.clock.now() < TICK:
        clock: Any = store.clock
        clock.set(TICK + timedelta(days=1))


class ScheduleConformance:
    # -- what is stored ---------------------------------------------------------------------------

    async def test_a_schedule_is_read_as_it_was_written(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        plain = schedule("plain")
        spec = ScheduleSpec(
            *("full é", "order", "1", '{"who": "ü"}', None, 12.5, "Europe/Paris", Overlap.QUEUE, 7, CatchUp.ALL),
            *(3600.0, 0.25, MADE, NEXT, False, {"tenant": "acme"}, "mail", 2, "acme", "billing"),
        )
        full = Schedule(spec, TICK + _MICROSECOND, NEXT - _MICROSECOND, MADE, MADE + _MICROSECOND, "why not", TICK)
        full = replace(full, fired=3, skipped={Skip.OVERLAP: 2, Skip.WINDOW: 1}, revision=41)
        await put(store, plain, full)
        assert await get(store, "plain") == (plain, Previous())
        assert await get(store, "full é") == (full, Previous())
        empty = replace(full, next_at=None, due_at=None, paused=None, last_at=None, skipped={}, revision=42)
        assert list(await store.write_schedules([ScheduleWrite(empty, full)])) == [True]
        assert (await get(store, "full é"))[0] == empty
        paused = replace(empty, paused="", revision=43)
        assert list(await store.write_schedules([ScheduleWrite(paused, empty)])) == [True]
        assert (await get(store, "full é"))[0].paused == ""
        assert await store.find_schedules(["absent"]) == []

    async def test_schedules_are_listed_by_name(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        names = ["Zebra", "a-b", "a.b", "ab", "été", "😀"]
        await put(store, *(schedule(name) for name in reversed(names)))
        assert [one.spec.name for one in await store.list_schedules(100, None)] == names
        assert [one.spec.name for one in await store.list_schedules(2, "a-b")] == ["a.b", "ab"]
        assert list(await store.list_schedules(100, "😀")) == []

    async def test_what_cannot_be_stored_is_refused_and_nothing_is_written(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        writes = [ScheduleWrite(schedule("good")), ScheduleWrite(replace(schedule("bad"), paused="\0"))]
        with pytest.raises(PayloadError):
            await store.write_schedules(writes)
        assert list(await store.list_schedules(10, None)) == []

    # -- compare and write ------------------------------------------------------------------------

    async def test_P39_a_name_is_taken_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        handles = await every_handle(harness, store)
        made = [schedule(jitter=float(number)) for number in range(len(handles))]
        answers = await asyncio.gather(
            *(one.write_schedules([ScheduleWrite(new)]) for one, new in zip(handles, made, strict=True))
        )
        assert sum(answer[0] for answer in answers) == 1
        assert (await get(store))[0] == made[[answer[0] for answer in answers].index(True)]

    async def test_P39_a_write_on_what_has_changed_changes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = replace(schedule(), revision=5)
        await put(store, stored)
        outdated = [
            None,
            replace(stored, revision=4),
            replace(stored, revision=6),
            replace(stored, next_at=TICK - _MICROSECOND),
            replace(stored, next_at=None),
            replace(stored, created_at=MADE - _MICROSECOND),  # of one that was deleted
        ]
        for before in outdated:
            write = replace(firing(stored), before=before)
            assert list(await store.write_schedules([write])) == [False]
        assert await get(store) == (stored, Previous())
        assert await runs_of(store) == []
        assert list(await store.ticks("report", LONG_AGO, NEVER, 10)) == []

    async def test_of_several_writes_each_applies_by_itself(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        a, b, c = (schedule(name) for name in "abc")
        await put(store, a, b, c)
        writes = [firing(c), firing(replace(a, revision=7)), firing(b), firing(schedule("absent"))]
        assert list(await store.write_schedules(writes)) == [True, False, True, False]
        assert [await runs_of(store, name) for name in ("a", "b", "c", "absent")] == [[], [TICK], [TICK], []]
        assert list(await store.write_schedules([])) == []

    # -- firing -----------------------------------------------------------------------------------

    async def test_a_fired_tick_is_a_run_that_can_be_claimed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule()
        await put(store, stored)
        write = firing(stored, input='"monday"', tags={"kind": "report"}, priority=1)
        assert list(await store.write_schedules([write])) == [True]
        worker = await Worker.start(store)
        run = (await worker.take()).run
        assert (run.id, run.schedule, run.tick) == (write.runs[0].id, "report", TICK)
        assert (run.input, run.tags, run.priority) == ('"monday"', {"kind": "report"}, 1)
        (summary,) = await store.list_runs(RunFilter(schedule="report"), 10, None)
        assert (summary.schedule, summary.tick) == ("report", TICK)
        assert list(await store.list_runs(RunFilter(schedule="other"), 10, None)) == []
        assert list(await store.ticks("report", LONG_AGO, NEVER, 10)) == [Ticked(TICK, run.id)]
        assert await get(store) == (write.schedule, Previous((run.id,)))

    async def test_other_runs_have_no_schedule(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        run = await read(store, run_id)
        assert (run.schedule, run.tick) == (None, None)

    async def test_P39_ten_that_fire_one_tick_make_one_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule()
        await put(store, stored)
        handles = await every_handle(harness, store)
        writes = [firing(stored) for _ in handles]
        answers = await asyncio.gather(
            *(one.write_schedules([write]) for one, write in zip(handles, writes, strict=True))
        )
        assert sum(answer[0] for answer in answers) == 1
        (winner,) = [write for write, answer in zip(writes, answers, strict=True) if answer[0]]
        assert await runs_of(store) == [TICK]
        assert list(await store.ticks("report", LONG_AGO, NEVER, 10)) == [Ticked(TICK, winner.runs[0].id)]
        assert (await get(store))[0] == winner.schedule

    async def test_P39_many_that_fire_many_ticks_in_other_orders_make_each_run_once(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        made = [schedule(f"s{number:02}") for number in range(20)]
        await put(store, *made)
        handles = await every_handle(harness, store, 6)
        orders: list[Sequence[Schedule]] = [made if at % 2 else list(reversed(made)) for at in range(len(handles))]
        answers = await asyncio.gather(
            *(
                one.write_schedules([firing(stored) for stored in order])
                for one, order in zip(handles, orders, strict=True)
            )
        )
        assert sum(sum(answer) for answer in answers) == len(made)
        assert [await runs_of(store, one.spec.name) for one in made] == [[TICK]] * len(made)

    async def test_P39_a_write_whose_answer_was_lost_is_not_made_twice(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule()
        await put(store, stored)
        write = firing(stored, TICK, TICK + timedelta(hours=1))
        for _ in range(2):
            assert list(await store.write_schedules([write])) == [True]
        later = firing(write.schedule, TICK + timedelta(hours=2))
        assert list(await store.write_schedules([later])) == [True]
        assert list(await store.write_schedules([write])) == [True]  # also after somebody else's
        assert (await get(store))[0] == later.schedule
        assert await runs_of(store) == [TICK + timedelta(hours=hour) for hour in range(3)]
        assert list(await store.write_schedules([firing(stored)])) == [False]  # another firing of the same tick

    async def test_P39_a_tick_that_has_its_run_is_passed_over(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule()
        await put(store, stored)
        first = firing(stored)
        assert list(await store.write_schedules([first])) == [True]
        # Whoever wrote this had a wrong idea of what was fired, and still cannot fire it again.
        wrong = firing(first.schedule, TICK, TICK + timedelta(days=1))
        assert list(await store.write_schedules([wrong])) == [True]
        assert await runs_of(store) == [TICK, TICK + timedelta(days=1)]
        ticks = await store.ticks("report", LONG_AGO, NEVER, 10)
        assert [tick.run_id for tick in ticks] == [first.runs[0].id, wrong.runs[1].id]
        assert await store.get_runs([wrong.runs[0].id]) == []

    @pytest.mark.parametrize("what", ["pause", "delete", "make anew", "declare"])
    async def test_P39_who_fires_what_was_changed_meanwhile_changes_nothing(
        self, harness: StoreHarness, what: str
    ) -> None:
        store, other = await harness.fresh(), await harness.another()
        stored = schedule()
        await put(store, stored)
        write = firing(stored)
        if what in ("delete", "make anew"):
            assert await other.delete_schedule("report")
            assert not await other.delete_schedule("report")
        if what == "make anew":
            await put(other, replace(stored, created_at=MADE + _MICROSECOND))
        if what == "pause":
            paused = replace(stored, paused="", next_at=None, due_at=None, revision=1)
            assert list(await other.write_schedules([ScheduleWrite(paused, stored)])) == [True]
        if what == "declare":
            changed = replace(stored, spec=replace(stored.spec, input="1"), revision=1)
            assert list(await other.write_schedules([ScheduleWrite(changed, stored)])) == [True]
        now = await store.find_schedules(["report"])
        assert list(await store.write_schedules([write])) == [False]
        assert await store.find_schedules(["report"]) == now
        assert await runs_of(store) == []

    async def test_of_who_fires_and_who_deletes_at_the_same_time_nothing_is_left_halfway(
        self, harness: StoreHarness
    ) -> None:
        store, other = await harness.fresh(), await harness.another()
        for number in range(8):
            stored = schedule(f"s{number}")
            await put(store, stored)
            write = firing(stored)
            fired_, _ = await asyncio.gather(store.write_schedules([write]), other.delete_schedule(stored.spec.name))
            assert await store.find_schedules([stored.spec.name]) == []
            assert await runs_of(store, stored.spec.name) == ([TICK] if fired_[0] else [])
            ticks = await store.ticks(stored.spec.name, LONG_AGO, NEVER, 10)
            assert len(ticks) == sum(fired_)

    # -- overlap ----------------------------------------------------------------------------------

    async def test_the_open_runs_of_a_schedule_are_told_with_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule(overlap=Overlap.QUEUE)
        await put(store, stored)
        await create(store, new_run(concurrency_key="other"))
        write = firing(stored, *(TICK + timedelta(hours=hour) for hour in range(3)))
        assert list(await store.write_schedules([write])) == [True]
        first, second, third = (run.id for run in write.runs)
        assert (await get(store))[1] == Previous((first,), (second, third))
        worker = await Worker.start(store)
        claimed = {one.run.id: one for one in (await worker.claim()).runs}
        assert set(claimed) & {first, second, third} == {first}
        assert (await get(store))[1] == Previous((first,), (second, third))
        await worker.apply(claimed[first], change=states.fail(_R, ERROR))
        assert (await get(store))[1] == Previous((second,), (third,))
        assert await store.request(second, Request(Verb.CANCEL)) is State.CANCELLED
        assert (await get(store))[1] == Previous((third,))
        assert await store.request(first, Request(Verb.RETRY)) is State.PENDING
        assert (await get(store))[1] == Previous((third,), (first,))

    async def test_a_schedule_that_allows_overlap_is_read_without_its_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule(overlap=Overlap.ALLOW)
        await put(store, stored)
        write = firing(stored, TICK, TICK + timedelta(hours=1))
        assert list(await store.write_schedules([write])) == [True]
        assert (await get(store))[1] == Previous()
        worker = await Worker.start(store)
        assert len((await worker.claim()).runs) == 2

    async def test_a_run_that_replaces_those_before_it_cancels_them(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored = schedule(overlap=Overlap.CANCEL_PREVIOUS)
        await put(store, stored)
        first = firing(stored, policy=Policy.REPLACE)
        assert list(await store.write_schedules([first])) == [True]
        worker = await Worker.start(store)
        running = await worker.take()
        second = firing(first.schedule, TICK + timedelta(hours=1), policy=Policy.REPLACE)
        assert list(await store.write_schedules([second])) == [True]
        assert (await get(store))[1] == Previous((running.run.id,), (second.runs[0].id,))
        ((run_id, request),) = (await worker.claim()).requests
        assert (run_id, request.verb) == (running.run.id, Verb.CANCEL)
        await worker.apply(running, change=states.cancelled(State.COMPENSATING, ERROR))
        assert (await worker.take()).run.id == second.runs[0].id

    # -- what is due ------------------------------------------------------------------------------

    async def test_what_is_due_is_told_in_order_and_in_pages(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await pass_ticks(store)
        first, later = TICK - timedelta(hours=1), store.clock.now() + timedelta(hours=1)
        due = [schedule("b", first), schedule("c", TICK), schedule("d", TICK)]
        others = [schedule("a", later), schedule("e", later + timedelta(hours=1)), schedule("f", None)]
        await put(store, *others, *reversed(due))
        answer = await store.due_schedules(100, None)
        assert [one.schedule for one in answer.found] == due
        assert answer.next_due_at == later
        assert TICK < answer.now < later
        page = await store.due_schedules(2, None)
        assert [one.schedule for one in page.found] == due[:2]
        rest = await store.due_schedules(2, (TICK, "c"))
        assert [one.schedule for one in rest.found] == due[2:]
        assert rest.next_due_at == later
        assert list((await store.due_schedules(2, (TICK, "d"))).found) == []

    async def test_due_is_what_due_at_says(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await pass_ticks(store)
        soon = store.clock.now() + timedelta(hours=1)
        stored = replace(schedule(), due_at=soon)  # jitter
        await put(store, stored)
        answer = await store.due_schedules(10, None)
        assert (list(answer.found), answer.next_due_at) == ([], soon)

    async def test_without_schedules_nothing_is_due(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        answer = await store.due_schedules(10, None)
        assert (list(answer.found), answer.next_due_at) == ([], None)

    async def test_what_was_fired_is_due_no_more_and_tells_its_runs_when_it_is(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await pass_ticks(store)
        stored = schedule()
        await put(store, stored)
        write = firing(stored)
        assert list(await store.write_schedules([write])) == [True]
        answer = await store.due_schedules(10, None)
        assert (list(answer.found), answer.next_due_at) == ([], NEXT)
        again = firing(write.schedule, TICK + timedelta(minutes=1), next_at=TICK + timedelta(minutes=2))
        assert list(await store.write_schedules([again])) == [True]
        (found,) = (await store.due_schedules(10, None)).found
        assert found.schedule == again.schedule
        assert tuple(found.previous.active) == (write.runs[0].id,)
        assert tuple(found.previous.queued) == (again.runs[0].id,)

    # -- ticks ------------------------------------------------------------------------------------

    async def test_ticks_are_read_by_range(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stored, other = schedule(overlap=Overlap.ALLOW), schedule("other")
        await put(store, stored, other)
        hours = [TICK + timedelta(hours=hour) for hour in range(5)]
        assert list(await store.write_schedules([firing(stored, *hours), firing(other)])) == [True, True]
        found = await store.ticks("report", hours[1], hours[4], 10)
        assert [tick.at for tick in found] == hours[1:4]
        assert [tick.at for tick in await store.ticks("report", LONG_AGO, NEVER, 2)] == hours[:2]

    @pytest.mark.parametrize("how", ["prune", "delete"])
    async def test_a_tick_lives_as_long_as_its_run(self, harness: StoreHarness, how: str) -> None:
        store = await harness.fresh()
        stored = schedule(overlap=Overlap.ALLOW)
        await put(store, stored)
        write = firing(stored, TICK, TICK + timedelta(hours=1))
        assert list(await store.write_schedules([write])) == [True]
        gone, left = (run.id for run in write.runs)
        assert await store.request(gone, Request(Verb.CANCEL)) is State.CANCELLED
        if how == "prune":
            assert await store.prune(NEVER, 10) == 1
        else:
            assert await store.delete(gone)
        assert list(await store.ticks("report", LONG_AGO, NEVER, 10)) == [Ticked(TICK + timedelta(hours=1), left)]
        assert await store.delete_schedule("report")
        assert list(await store.ticks("report", LONG_AGO, NEVER, 10)) == [Ticked(TICK + timedelta(hours=1), left)]
        assert (await read(store, left)).state is State.PENDING
