"""Pruning, deleting, and finding the runs that somebody has to look at."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from durable import states
from durable.errors import RunNotFound
from durable.model import RunFilter, State
from durable.store import Store
from durable.testing.conformance.harness import (
    NEVER,
    StoreHarness,
    Worker,
    create,
    new_id,
    new_run,
    read,
    record,
    snapshot,
    until,
)
from durable.testing.conformance.situations import ENDED, LIVE, RETRY, reach

_R = State.RUNNING


class ErasureConformance:
    # -- prune ------------------------------------------------------------------------------------

    async def test_P52_prune_takes_what_ended_before_and_nothing_else(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        old = [await reach(harness, store, name) for name in ENDED]
        held = await reach(harness, store, "running")
        parked = await reach(harness, store, "sleeping")
        before = await _later(store)
        new = await reach(harness, store, "completed")
        kept = await snapshot(store, held, parked, new)
        assert await store.prune(before, 100) == len(old)
        assert await store.get_runs(old) == []
        assert await snapshot(store, held, parked, new) == kept
        assert await store.prune(before, 100) == 0
        assert await store.prune(await _later(store), 100) == 1
        assert await snapshot(store, held, parked) == kept[:2]

    async def test_P52_prune_goes_in_batches(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await _completed(store, 7)
        before = await _later(store)
        assert [await store.prune(before, limit) for limit in (0, 3, 3, 3, 3)] == [0, 3, 3, 1, 0]
        assert await store.list_runs(RunFilter(), 10, None) == []

    async def test_P52_everything_that_belongs_to_a_run_goes_with_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        gone = await _completed(store, 3, keyed=True)
        before = await _later(store)
        kept = await _completed(store, 3, keyed=True, first=3)
        assert await store.prune(before, 100) == 3
        await _assert_gone(store, gone)
        for number, run_id in enumerate(kept, 3):
            assert await store.find_key("order", f"k{number}") == run_id
            assert len(await store.history(run_id)) == 2

    async def test_P52_a_run_that_is_retried_at_that_moment_is_pruned_or_goes_on(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for _ in range(10):
            run_id = await reach(harness, store, "failed")
            before = await _later(store)
            pruned, retried = await asyncio.gather(store.prune(before, 100), _retried(other, run_id))
            assert (pruned == 1) is not retried
            assert bool(await store.get_runs([run_id])) is retried
            for one in (await (await Worker.start(store)).claim()).runs:
                assert one.run.id == run_id
                assert (await store.history(run_id)) == one.records

    async def test_P52_several_who_prune_at_once_prune_each_run_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        await _completed(store, 60)
        before = await _later(store)
        counts = await asyncio.gather(*((store, other)[n % 2].prune(before, 20) for n in range(6)))
        assert sum(counts) + await store.prune(before, 100) == 60
        assert await store.list_runs(RunFilter(), 10, None) == []

    # -- delete -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ENDED)
    async def test_P52_a_terminal_run_is_deleted_with_everything(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        (neighbour,) = await _completed(store, 1, keyed=True)
        assert await store.delete(run_id) is True
        assert await store.get_runs([run_id]) == []
        assert await store.history(run_id) == []
        assert [run.id for run in await store.list_runs(RunFilter(), 10, None)] == [neighbour]
        assert len(await store.history(neighbour)) == 2
        with pytest.raises(RunNotFound):
            await store.delete(run_id)

    async def test_P52_a_deleted_run_frees_its_key(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        gone = await _completed(store, 1, keyed=True)
        assert await store.delete(gone[0]) is True
        await _assert_gone(store, gone)

    @pytest.mark.parametrize("name", LIVE)
    async def test_P52_a_run_that_is_not_terminal_is_not_deleted(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await snapshot(store, run_id)
        assert await store.delete(run_id) is False
        assert await store.prune(NEVER, 100) == 0
        assert await snapshot(store, run_id) == before

    async def test_P52_a_run_that_is_not_there_is_not_deleted(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        for run_id in (new_id(), "", "no id", "'; DROP TABLE runs; --"):
            with pytest.raises(RunNotFound):
                await store.delete(run_id)

    async def test_P04_a_write_about_a_run_that_was_deleted_is_refused(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store)
        worker = await Worker.start(store)
        one = await worker.take()
        await worker.apply(one, change=states.complete(_R, "1"))
        assert await store.delete(one.run.id)
        assert await worker.write(one, record(1), change=states.complete(_R, "1")) == "lease_lost"
        assert await store.history(one.run.id) == []
        assert (await worker.claim()).runs == []

    # -- what needs a look --------------------------------------------------------------------------

    async def test_P49_paused_failed_and_given_up_runs_are_found(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        found: dict[State, list[str]] = {State.PAUSED: [], State.DEAD_LETTER: [], State.FAILED: []}
        for _ in range(3):
            for name in ("paused", "dead letter", "failed", "completed", "sleeping"):
                run_id = await reach(harness, store, name)
                for state, ids in found.items():
                    if state == name.replace(" ", "_"):
                        ids.insert(0, run_id)
        for state, ids in found.items():
            where = RunFilter(state=state)
            assert [run.id for run in await store.list_runs(where, 10, None)] == ids
            assert [run.id for run in await store.list_runs(where, 2, None)] == ids[:2]
            assert [run.id for run in await store.list_runs(where, 2, ids[1])] == ids[2:]
        for run_id in found[State.DEAD_LETTER]:
            await store.request(run_id, RETRY)
        assert await store.list_runs(RunFilter(state=State.DEAD_LETTER), 10, None) == []


async def _later(store: Store) -> datetime:
    """A time after all that has happened, and before all that comes; some stores keep milliseconds of an end."""
    tick = timedelta(milliseconds=3)
    await until(store, store.clock.now() + tick)
    now = store.clock.now()
    await until(store, now + tick)
    return now


async def _completed(store: Store, count: int, *, keyed: bool = False, first: int = 0) -> list[str]:
    """Runs that have ended, each with two records."""
    numbers = range(first, first + count)
    ids = await create(store, *(new_run(key=f"k{number}" if keyed else None) for number in numbers))
    worker = await Worker.start(store)
    for one in (await worker.claim()).runs:
        await worker.apply(one, record(1), record(2), change=states.complete(_R, "1"))
    return ids


async def _assert_gone(store: Store, run_ids: list[str]) -> None:
    """The keys were ``k0``, ``k1``, …; they are free again, and so are the ids."""
    assert await store.get_runs(run_ids) == []
    assert await store.ended(run_ids) == []
    for number, run_id in enumerate(run_ids):
        assert await store.history(run_id) == []
        assert await store.find_key("order", f"k{number}") is None
    again = [
        new_run(id=run_id, key=f"k{number}", request="r", input='"2"', input_hash="h2")
        for number, run_id in enumerate(run_ids)
    ]
    assert await create(store, *again) == run_ids
    for run_id in run_ids:
        run = await read(store, run_id)
        assert (run.state, run.claim, run.input, run.result) == (State.PENDING, 0, '"2"', None)
        assert await store.history(run_id) == []


async def _retried(store: Store, run_id: str) -> bool:
    try:
        return await store.request(run_id, RETRY) is State.PENDING
    except RunNotFound:
        return False
