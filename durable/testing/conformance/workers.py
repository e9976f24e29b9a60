"""Workers: the lease, its renewal and its end, and what becomes of the runs of one that died."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

from durable import failures, states
from durable.model import DeadLetter, Kind, Reaped, State
from durable.store import Route, Store
from durable.testing.clock import VirtualClock
from durable.testing.conformance.harness import (
    NEVER,
    ROUTE,
    StoreHarness,
    Worker,
    claimed,
    create,
    new_run,
    read,
    record,
    until,
)
from durable.testing.conformance.writes import ERROR

_R, _C = State.RUNNING, State.COMPENSATING


class WorkerConformance:
    # -- the lease --------------------------------------------------------------------------------

    async def test_a_renewal_extends_the_lease_and_names_the_next_expiry(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, other = await Worker.start(store, lease=5), await Worker.start(store, lease=30)
        alone = await asyncio.to_thread(store.renew, other.id, 30.0)
        assert alone.alive
        assert abs(alone.now - store.clock.now()) < timedelta(seconds=5)
        assert alone.next_expiry is not None
        assert alone.next_expiry - alone.now <= timedelta(seconds=5)
        assert (await asyncio.to_thread(store.renew, worker.id, 600.0)).alive
        later = await asyncio.to_thread(store.renew, other.id, 30.0)
        assert later.next_expiry is not None
        assert later.next_expiry - later.now > timedelta(seconds=500)
        assert (await store.reap()).released == 0

    async def test_the_only_worker_has_no_expiry_to_wait_for(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        assert (await asyncio.to_thread(store.renew, worker.id, 30.0)).next_expiry is None

    async def test_P11_registering_again_changes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.register(worker.id, 60.0)
        assert await store.owned(worker.id) == [one.ref]
        await worker.apply(one, change=states.complete(_R, "1"))

    async def test_a_renewal_of_a_reaped_worker_does_not_revive_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        worker = await Worker.start(store)
        await harness.expire(worker.id)
        assert (await store.reap()).released == 0  # it held nothing
        for _ in range(2):
            assert not (await asyncio.to_thread(store.renew, worker.id, 60.0)).alive
            assert (await worker.claim()).runs == []
        assert (await read(store, run_id)).owner is None

    async def test_a_lease_that_was_renewed_in_time_is_not_reaped(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        dead = await Worker.start(store)
        await harness.expire(dead.id)
        assert (await asyncio.to_thread(store.renew, worker.id, 60.0)).next_expiry is not None
        assert (await store.reap()).released == 0
        await worker.apply(one, record(1), change=states.complete(_R, "1"))

    async def test_a_lease_that_nobody_renews_ends_by_itself(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        worker = await Worker.start(store, lease=0.2)
        await worker.take()
        await until(store, store.clock.now() + timedelta(seconds=0.25))
        # Moving a virtual clock renews the leases of live workers first: there, nobody dies of it.
        moved = isinstance(store.clock, VirtualClock)
        assert (await store.reap()).released == (0 if moved else 1)
        assert (await read(store, run_id)).takeovers == (0 if moved else 1)

    # -- leaving ----------------------------------------------------------------------------------

    async def test_P03_a_worker_that_leaves_frees_its_runs_without_a_takeover(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1))
        for _ in range(2):  # sent again: no change
            await store.unregister(worker.id)
            run = await read(store, one.run.id)
            assert (run.state, run.owner, run.claim, run.takeovers) == (State.PENDING, None, 1, 0)
            assert [entry.key for entry in await store.history(run.id)] == ["s1"]
        assert await store.owned(worker.id) == []
        assert (await store.reap()).released == 0
        again = await (await Worker.start(store)).take()
        assert (again.run.claim, len(again.records or ())) == (2, 1)
        await store.unregister(str(uuid4()))

    # -- dying ------------------------------------------------------------------------------------

    async def test_P47_a_takeover_is_recorded_once_and_names_the_dead_worker(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), record(2))
        await harness.expire(worker.id)
        assert (await store.reap()).released == 1
        assert (await store.reap()).released == 0
        run = await read(store, one.run.id)
        assert (run.state, run.owner, run.takeovers, run.ended_at) == (State.PENDING, None, 1, None)
        assert run.ready_at is not None
        *_, last = await store.history(run.id)
        assert (last.seq, last.key, last.kind, last.worker) == (3, "/takeover/1", Kind.TAKEOVER, worker.id)
        assert abs(last.at - store.clock.now()) < timedelta(seconds=5)
        assert last.at.utcoffset() == timedelta(0)
        again = await (await Worker.start(store)).take()
        assert [entry.seq for entry in again.records or ()] == [1, 2, 3]

    async def test_reapers_at_once_take_over_each_run_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        ids = await create(store, *(new_run() for _ in range(60)))
        for _ in range(3):
            worker = await Worker.start(store)
            assert len((await worker.claim(limit=20)).runs) == 20
            await harness.expire(worker.id)
        answers = await asyncio.gather(*(stores[n % 2].reap() for n in range(8)))
        assert sum(answer.released for answer in answers) == 60
        assert [answer.dead_letters for answer in answers] == [()] * 8
        for run_id in ids:
            assert [entry.key for entry in await store.history(run_id)] == ["/takeover/1"]
            assert (await read(store, run_id)).takeovers == 1

    async def test_only_what_the_dead_worker_held_is_taken_over(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(4)))
        worker, other = await Worker.start(store), await Worker.start(store)
        parked, completed, held = (await worker.claim(limit=3)).runs
        theirs = await other.take()
        await worker.apply(parked, change=states.park(_R, ready_at=NEVER, wakes=parked.wakes))
        await worker.apply(completed, change=states.complete(_R, "1"))
        await harness.expire(worker.id)
        assert (await store.reap()).released == 1
        assert await store.owned(worker.id) == []
        states_now = [(await read(store, one.run.id)).state for one in (parked, completed, held, theirs)]
        assert states_now == [State.SLEEPING, State.COMPLETED, State.PENDING, State.RUNNING]
        await other.apply(theirs, record(1))

    async def test_P06_the_fifth_takeover_without_progress_is_the_last(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (poison,) = await create(store)
        for count in range(1, 6):
            await _claim_and_die(harness, store)
            run = await read(store, poison)
            assert (run.takeovers, run.claim) == (count, count)
            assert run.state is (State.PENDING if count < 5 else State.DEAD_LETTER)
        run = await read(store, poison)
        assert (run.owner, run.ready_at) == (None, None)
        assert run.ended_at is not None
        failure = failures.from_json(run.error)
        assert failure.error_type.endswith("RunDeadLettered")
        assert failure.message
        keys = [entry.key for entry in await store.history(poison)]
        assert keys == [f"/takeover/{claim}" for claim in range(1, 6)]
        assert [ended.id for ended in await store.ended([poison])] == [poison]
        (neighbour,) = await create(store)
        assert (await (await Worker.start(store)).take()).run.id == neighbour

    async def test_P06_a_reaping_names_the_runs_that_it_gives_up(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        hostile = "\"'); DROP TABLE runs; -- ☠"
        routes = [ROUTE, Route(hostile, "2")]
        poison = await create(store, new_run(), new_run(hostile, "2"))
        first = await Worker.start(store)
        assert len((await first.claim(routes=routes)).runs) == 2
        await harness.expire(first.id)
        assert await store.reap(limit=2) == Reaped(2)
        (neighbour,) = await create(store)
        second = await Worker.start(store)
        assert {one.run.id for one in (await second.claim(routes=routes)).runs} == {*poison, neighbour}
        await harness.expire(second.id)
        named = (DeadLetter(poison[0], ROUTE.workflow), DeadLetter(poison[1], hostile))
        assert await store.reap(limit=2) == Reaped(3, named)
        assert await store.reap(limit=2) == Reaped(0)

    async def test_P06_of_reapers_at_once_one_is_told_of_each_dead_letter(self, harness: StoreHarness) -> None:
        """Whoever says goodbye at the same time gives up nothing: nobody would be told of it."""
        store = await harness.fresh()
        stores = [store, await harness.another()]
        ids = await create(store, *(new_run() for _ in range(40)))
        for _ in range(4):
            worker = await Worker.start(store)
            assert len((await worker.claim(limit=10)).runs) == 10
            await harness.expire(worker.id)
        leaving = [await Worker.start(one) for one in stores]
        answers, _ = await asyncio.gather(
            asyncio.gather(*(stores[n % 2].reap(limit=1) for n in range(6))),
            asyncio.gather(*(one.store.unregister(one.id) for one in leaving)),
        )
        answers.append(await store.reap(limit=1))  # whatever was passed over, because somebody held it
        assert sorted(one.run_id for answer in answers for one in answer.dead_letters) == ids
        assert {(await read(store, run_id)).state for run_id in ids} == {State.DEAD_LETTER}

    async def test_P06_a_run_that_kills_at_once_takes_no_neighbour_with_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        poison, *neighbours = await create(store, *(new_run() for _ in range(4)))
        held: set[str] = set()
        while (await read(store, poison)).state is not State.DEAD_LETTER:
            worker = await Worker.start(store)
            got = {one.run.id for one in (await worker.claim()).runs}
            assert got, "whoever lives goes on: some worker has to get the next one"
            if poison in got:  # the others had no time for a record
                await harness.expire(worker.id)
                assert (await store.reap()).released == len(got)
            else:
                held |= got
        assert (await read(store, poison)).takeovers == 5
        held |= {one.run.id for one in (await (await Worker.start(store)).claim()).runs}
        for run_id in neighbours:
            assert (await read(store, run_id)).takeovers == 2
            assert run_id in held or (await read(store, run_id)).ready_at is not None

    async def test_P06_suspects_are_given_out_one_at_a_time_and_others_beside_them(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        suspects = set(await _taken_over_twice(harness, store, 3))
        plain = set(await create(store, new_run(), new_run()))
        worker, other = await Worker.start(store), await Worker.start(store)
        first = {one.run.id: one for one in (await worker.claim()).runs}
        assert (len(suspects & first.keys()), first.keys() & plain) == (1, plain)
        assert (await worker.claim()).runs == []
        second = await other.take()
        assert {second.run.id} <= suspects - first.keys()
        later = set(await create(store, new_run(), new_run()))  # behind the last suspect, which is passed over
        assert {one.run.id for _ in later for one in (await worker.claim(limit=1)).runs} == later
        (mine,) = suspects & first.keys()
        await worker.apply(first[mine], record(9))
        third = await worker.take()
        assert suspects == {mine, second.run.id, third.run.id}

    async def test_P06_a_claim_sent_again_gives_the_same_suspect(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await _taken_over_twice(harness, store, 2)
        worker, batch = await Worker.start(store), str(uuid4())
        (one,) = (await worker.claim(batch=batch)).runs
        assert [again.ref for again in (await worker.claim(batch=batch)).runs] == [one.ref]

    async def test_P06_a_suspect_that_made_progress_is_none_any_more(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        suspects = set(await _taken_over_twice(harness, store, 3))
        workers = [await Worker.start(store) for _ in suspects]
        for worker, one in [(worker, await worker.take()) for worker in workers]:
            await worker.apply(one, record(9))
            await store.unregister(worker.id)
        assert {one.run.id for one in (await (await Worker.start(store)).claim()).runs} == suspects

    async def test_P06_progress_starts_the_count_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        for _ in range(4):
            await _claim_and_die(harness, store)
        worker = await Worker.start(store)
        one = await worker.take()
        assert one.run.takeovers == 4
        await worker.apply(one, record(5))
        assert (await read(store, run_id)).takeovers == 0
        await worker.apply(one, change=states.release(_R))
        for _ in range(4):
            await _claim_and_die(harness, store)
        assert (await read(store, run_id)).state is State.PENDING
        await _claim_and_die(harness, store)
        assert (await read(store, run_id)).state is State.DEAD_LETTER

    async def test_P06_a_claim_without_a_new_record_is_no_progress(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        await _claim_and_die(harness, store)
        worker = await Worker.start(store)
        one = await worker.take()
        await worker.apply(one, change=states.release(_R))
        assert (await read(store, run_id)).takeovers == 1

    async def test_P06_the_limit_is_the_callers(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        await _claim_and_die(harness, store, limit=2)
        assert (await read(store, run_id)).state is State.PENDING
        await _claim_and_die(harness, store, limit=2)
        assert (await read(store, run_id)).state is State.DEAD_LETTER

    async def test_P06_a_run_given_up_in_compensation_keeps_its_error(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), change=states.compensate(_R, ERROR))
        await harness.expire(worker.id)
        assert (await store.reap(limit=1)).released == 1
        run = await read(store, one.run.id)
        assert (run.state, run.error) == (State.DEAD_LETTER, ERROR)


async def _claim_and_die(harness: StoreHarness, store: Store, limit: int = 5) -> None:
    worker = await Worker.start(store)
    await worker.take()
    await harness.expire(worker.id)
    assert (await store.reap(limit)).released == 1


async def _taken_over_twice(harness: StoreHarness, store: Store, number: int) -> list[str]:
    """New runs, all of which two workers have held and lost without a record."""
    ids = await create(store, *(new_run() for _ in range(number)))
    for _ in range(2):
        worker = await Worker.start(store)
        assert len((await worker.claim()).runs) == number
        await harness.expire(worker.id)
        assert (await store.reap()).released == number
    return ids
