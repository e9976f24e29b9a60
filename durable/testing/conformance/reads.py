"""Reading: single runs, ends, and lists that are paged, filtered, bounded, and free of payloads."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from dataclasses import fields
from datetime import timedelta
from uuid import uuid4

from durable import states
from durable.model import Run, RunFilter, RunSummary, State
from durable.store import Store
from durable.testing.conformance.harness import NEVER, StoreHarness, Worker, create, new_id, new_run, read, until
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_ALL = RunFilter()


class ReadConformance:
    async def test_get_runs_gives_those_that_exist(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(3)))
        found = await store.get_runs([ids[2], str(uuid4()), ids[0]])
        assert {run.id for run in found} == {ids[0], ids[2]}
        assert await store.get_runs([]) == []
        assert await store.history(str(uuid4())) == []

    async def test_ended_gives_the_terminal_ones_without_their_inputs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run(input='"large"') for _ in range(4)))
        worker = await Worker.start(store)
        runs = {one.run.id: one for one in (await worker.claim()).runs}
        await worker.apply(runs[ids[0]], change=states.complete(_R, '"result"'))
        await worker.apply(runs[ids[1]], change=states.fail(_R, ERROR))
        await worker.apply(runs[ids[2]], change=states.park(_R, ready_at=NEVER, wakes=runs[ids[2]].wakes))
        ended = {run.id: run for run in await store.ended([*ids, str(uuid4())])}
        assert set(ended) == set(ids[:2])
        assert (ended[ids[0]].state, ended[ids[0]].result) == (State.COMPLETED, '"result"')
        assert (ended[ids[1]].state, ended[ids[1]].error) == (State.FAILED, ERROR)
        assert {run.input for run in ended.values()} == {None}
        assert await store.ended([]) == []

    # -- lists ------------------------------------------------------------------------------------

    async def test_P49_lists_are_newest_first_and_bounded(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(25)))
        newest = ids[::-1]
        assert [run.id for run in await store.list_runs(_ALL, 10, None)] == newest[:10]
        assert await _pages(store, _ALL, 10) == [newest[:10], newest[10:20], newest[20:]]
        assert await _pages(store, _ALL, 25) == [newest]
        assert await store.list_runs(_ALL, 10, newest[-1]) == []

    async def test_P49_a_cursor_stands_while_runs_arrive(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(6)))
        first = await store.list_runs(_ALL, 3, None)
        await create(store, *(new_run() for _ in range(4)))
        rest = await store.list_runs(_ALL, 100, first[-1].id)
        assert [run.id for run in [*first, *rest]] == ids[::-1]

    async def test_P49_the_order_is_that_of_the_ids_whatever_was_created_first(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = [new_id(number) for number in (0x9000, 0xA0, 0x10, 0xFFFFFFFF, 0x0, 0xA000, 0x9FFF)]
        await create(store, *(new_run(id=run_id, request="r") for run_id in ids))
        newest = sorted(ids, reverse=True)
        assert await _pages(store, _ALL, 3) == [newest[:3], newest[3:6], newest[6:]]

    async def test_P49_a_summary_has_every_field_but_the_payloads(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, new_run(key="k", tags={"tenant": "acme"}))
        worker = await Worker.start(store)
        await worker.apply(await worker.take(), change=states.pause(_R, "why"))
        (summary,) = await store.list_runs(_ALL, 10, None)
        assert not isinstance(summary, Run)
        run = await read(store, run_id)
        for field in fields(RunSummary):
            assert getattr(summary, field.name) == getattr(run, field.name)

    async def test_lists_are_filtered(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        one, two, three, four = await create(
            store,
            new_run(tags={"tenant": "acme", "plan": "gold"}),
            new_run(tags={"tenant": "acme", "plan": "free"}),
            new_run(version="2", tags={"tenant": "globex"}),
            new_run("refund"),
        )
        worker = await Worker.start(store)
        taken = (await worker.claim(limit=2)).runs
        await worker.apply(taken[0], change=states.complete(_R, "1"))
        expected: list[tuple[RunFilter, list[str]]] = [
            (RunFilter(workflow="order"), [three, two, one]),
            (RunFilter(workflow="order", version="1"), [two, one]),
            (RunFilter(version="1"), [four, two, one]),
            (RunFilter(workflow="nothing"), []),
            (RunFilter(state=State.PENDING), [four, three]),
            (RunFilter(state=State.COMPLETED), [taken[0].run.id]),
            (RunFilter(state=State.FAILED), []),
            (RunFilter(tags={"tenant": "acme"}), [two, one]),
            (RunFilter(tags={"tenant": "acme", "plan": "gold"}), [one]),
            (RunFilter(tags={"tenant": "gold"}), []),
            (RunFilter(tags={"plan": "gold", "tenant": "globex"}), []),
            (RunFilter(workflow="order", version="2", state=State.PENDING, tags={"tenant": "globex"}), [three]),
        ]
        for where, ids in expected:
            assert [run.id for run in await store.list_runs(where, 10, None)] == ids, where

    async def test_a_filter_and_a_cursor_go_together(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run(tags={"even": str(n % 2 == 0)}) for n in range(20)))
        even = ids[::2][::-1]
        assert await _pages(store, RunFilter(tags={"even": "True"}), 4) == [even[:4], even[4:8], even[8:]]

    async def test_lists_are_filtered_by_time_of_creation(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids: list[str] = []
        for _ in range(3):
            ids += await create(store)
            await until(store, store.clock.now() + timedelta(milliseconds=5))
        middle = (await read(store, ids[1])).created_at
        tick = timedelta(microseconds=1500)  # some stores keep milliseconds of the time of creation

        async def listed(where: RunFilter) -> list[str]:
            return [run.id for run in await store.list_runs(where, 10, None)]

        assert await listed(RunFilter(created_after=middle - tick)) == [ids[2], ids[1]]
        assert await listed(RunFilter(created_after=middle + tick)) == [ids[2]]
        assert await listed(RunFilter(created_before=middle - tick)) == [ids[0]]
        assert await listed(RunFilter(created_before=middle + tick)) == [ids[1], ids[0]]
        assert await listed(RunFilter(created_after=middle - tick, created_before=middle + tick)) == [ids[1]]


async def _pages(store: Store, where: RunFilter, limit: int) -> list[list[str]]:
    pages: list[list[str]] = []
    before: str | None = None
    while page := await store.list_runs(where, limit, before):
        pages.append([run.id for run in page])
        before = page[-1].id
        assert len(pages) < 100, "the cursor does not move"
    return pages
