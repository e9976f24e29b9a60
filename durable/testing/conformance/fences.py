"""The fence: a worker that lost its lease writes nothing, and neither does a claim that has been superseded."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio

import pytest

from durable import states
from durable.model import Outcome, RunRef, RunWrite, State
from durable.store import Store
from durable.testing.conformance.harness import (
    AT,
    StoreHarness,
    Worker,
    claimed,
    create,
    new_run,
    record,
    snapshot,
)
from durable.testing.conformance.writes import WRITES, prepare

_R = State.RUNNING


class FenceConformance:
    @pytest.mark.parametrize("name", WRITES)
    async def test_P04_a_reaped_worker_writes_nothing(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await prepare(WRITES[name], worker, one)
        await harness.expire(worker.id)
        assert (await store.reap()).released == 1
        before = await snapshot(store, one.run.id)
        assert await worker.commit(WRITES[name].make(one)) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before

    @pytest.mark.parametrize("name", WRITES)
    async def test_P04_a_worker_whose_run_went_to_another_writes_nothing(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await prepare(WRITES[name], worker, one)
        await harness.expire(worker.id)
        await store.reap()
        other = await Worker.start(await harness.another())
        taken = await other.take()
        before = await snapshot(store, one.run.id)
        assert await worker.commit(WRITES[name].make(one)) == [Outcome.LEASE_LOST]
        # Nor with the claim number of the one that has the run now: the owner is compared as well.
        assert await worker.commit(WRITES[name].make(taken)) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before
        assert await store.owned(other.id) == [taken.ref]

    @pytest.mark.parametrize("name", WRITES)
    async def test_P04_a_live_worker_does_not_write_about_a_run_of_another(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await prepare(WRITES[name], worker, one)
        stranger = await Worker.start(store)
        before = await snapshot(store, one.run.id)
        assert await stranger.commit(WRITES[name].make(one)) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before

    @pytest.mark.parametrize("name", WRITES)
    async def test_P04_a_write_of_an_earlier_claim_of_the_same_worker_is_not_applied(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await prepare(WRITES[name], worker, one)
        state = State.COMPENSATING if WRITES[name].undoing else _R
        await worker.apply(one, change=states.release(state))
        again = await worker.take()
        before = await snapshot(store, one.run.id)
        assert await worker.commit(WRITES[name].make(one)) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before
        assert await store.owned(worker.id) == [again.ref]

    async def test_P11_a_park_sent_again_after_the_next_claim_is_not_applied_twice(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        park = RunWrite(one.ref, [record(1)], states.park(_R, ready_at=AT, wakes=one.wakes + 1))
        assert await worker.commit(park) == [Outcome.APPLIED]
        again = await worker.take()
        before = await snapshot(store, one.run.id)
        assert await worker.commit(park) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before
        await worker.apply(again, record(2), change=states.complete(_R, "1"))

    async def test_P04_an_unregistered_worker_writes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.unregister(worker.id)
        before = await snapshot(store, one.run.id)
        for change in (None, states.complete(_R, "1"), states.release(_R)):
            assert await worker.write(one, record(1), change=change) is Outcome.LEASE_LOST
        assert await snapshot(store, one.run.id) == before

    async def test_P04_a_late_record_after_the_claim_has_ended_is_not_written(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), change=states.park(_R, ready_at=None, wakes=one.wakes, waiting=True))
        before = await snapshot(store, one.run.id)
        assert await worker.write(one, record(2)) is Outcome.LEASE_LOST
        assert await worker.write(one, record(2), change=states.complete(_R, "1")) is Outcome.LEASE_LOST
        assert await worker.write(one, change=states.complete(_R, "1")) is Outcome.LEASE_LOST
        assert await snapshot(store, one.run.id) == before

    async def test_P04_a_claim_number_that_never_was_is_refused(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        before = await snapshot(store, one.run.id)
        for claim in (0, 2, 1000):
            ref = RunRef(one.ref.shard, one.ref.id, claim)
            assert await worker.write(ref, record(1), change=states.complete(_R, "1")) is Outcome.LEASE_LOST
        assert await snapshot(store, one.run.id) == before

    async def test_P04_a_reaper_and_a_writer_at_once_leave_one_truth(self, harness: StoreHarness) -> None:
        """Whichever comes first: an applied completion stands, or the run is free and its history untouched."""
        store = await harness.fresh()
        other = await harness.another()
        for _ in range(10):
            await create(store, *(new_run() for _ in range(10)))
            worker = await Worker.start(store)
            runs = (await worker.claim()).runs
            await harness.expire(worker.id)
            outcomes, reaped = await asyncio.gather(
                worker.commit(*(RunWrite(one.ref, [record(1)], states.complete(_R, "1")) for one in runs)),
                other.reap(),
            )
            assert len(set(outcomes)) == 1
            applied = outcomes[0] is Outcome.APPLIED
            assert reaped.released == (0 if applied else len(runs))
            for run, history in await snapshot(store, *(one.run.id for one in runs)):
                assert run.owner is None
                assert run.state is (State.COMPLETED if applied else State.PENDING)
                assert [entry.key for entry in history] == (["s1"] if applied else ["/takeover/1"])
            await _finish(store, [one.run.id for one in runs])


async def _finish(store: Store, run_ids: list[str]) -> None:
    """Complete what is left of the runs, so that the next round starts without them."""
    worker = await Worker.start(store)
    for one in (await worker.claim()).runs:
        assert one.run.id in run_ids
        await worker.apply(one, change=states.complete(_R, "1"))
