"""Claiming: who gets which run, how often, with what, and what happens when the answer was lost."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import uuid4

from durable import states
from durable.model import (
    Also,
    Awaited,
    Claimed,
    ClaimedRun,
    Kind,
    Outcome,
    Published,
    Queue,
    Request,
    RunRef,
    State,
    Verb,
)
from durable.store import Route
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    ROUTE,
    StoreHarness,
    Worker,
    claimed,
    create,
    new_id,
    new_run,
    read,
    record,
    send,
)

_RELEASE = states.release(State.RUNNING)


class ClaimConformance:
    async def test_a_claimed_run_is_leased_to_its_worker(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store, tags={"a": "b"}, key="k")
        assert (one.run.state, one.run.owner, one.run.claim) == (State.RUNNING, worker.id, 1)
        assert one.run.ready_at is None
        assert one.run.started_at is not None
        assert one.run.started_at >= one.run.created_at
        assert one.records == []
        assert one.run == await read(store, one.run.id)
        assert (one.run.input, one.run.seed, one.run.tags, one.run.key) == ('{"sku": "tea"}', "5eed", {"a": "b"}, "k")

    async def test_P07_a_worker_gets_only_what_it_can_execute(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        old, new, other, unknown = await create(
            store, new_run(), new_run(version="2"), new_run("refund"), new_run("unknown", "9")
        )
        worker = await Worker.start(store)
        assert (await worker.claim(routes=[])).runs == []
        assert (await worker.claim(routes=[Route("order", "3"), Route("refund", "2")])).runs == []
        assert [one.run.id for one in (await worker.claim(routes=[Route("order", "2")])).runs] == [new]
        both = await worker.claim(routes=[Route("order", "1"), Route("refund", "1")])
        assert {one.run.id for one in both.runs} == {old, other}
        assert (await read(store, unknown)).state is State.PENDING
        late = await Worker.start(store)
        assert [one.run.id for one in (await late.claim(routes=[Route("unknown", "9")])).runs] == [unknown]

    async def test_oldest_due_first_and_not_more_than_asked(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        late, early, middle = await create(
            store, *(new_run(ready_at=LONG_AGO + timedelta(seconds=second)) for second in (9, 1, 5))
        )
        worker = await Worker.start(store)
        first = [one.run.id for one in (await worker.claim(limit=2)).runs]
        assert set(first) == {early, middle}
        assert [one.run.id for one in (await worker.claim(limit=2)).runs] == [late]
        assert (await worker.claim(limit=2)).runs == []

    async def test_the_limit_holds_over_all_routes(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run(name) for name in ("a", "b", "c") for _ in range(5)))
        worker = await Worker.start(store)
        routes = [Route(name, "1") for name in ("a", "b", "c")]
        sizes = [len((await worker.claim(limit=4, routes=routes)).runs) for _ in range(5)]
        assert sizes == [4, 4, 4, 3, 0]

    async def test_without_a_live_worker_row_nothing_is_claimed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        assert (await Worker(store).claim()).runs == []
        reaped, left = await Worker.start(store), await Worker.start(store)
        await harness.expire(reaped.id)
        await store.reap()
        await store.unregister(left.id)
        for worker in (reaped, left):
            assert (await worker.claim()).runs == []
            assert await store.owned(worker.id) == []
        assert (await read(store, run_id)).claim == 0

    async def test_next_ready_at_is_the_earliest_future_time_of_these_routes(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        now = store.clock.now()
        hour, day = now + timedelta(hours=1), now + timedelta(days=1)
        await create(store, new_run("refund", ready_at=hour), new_run(ready_at=day), new_run(ready_at=NEVER))
        await create(store, new_run(), new_run())
        worker = await Worker.start(store)
        assert (await worker.claim(limit=1)).next_ready_at == day
        assert (await worker.claim(limit=1)).next_ready_at == day
        assert (await worker.claim(routes=[ROUTE, Route("refund", "1")])).next_ready_at == hour
        assert (await worker.claim(routes=[Route("nothing", "1")])).next_ready_at is None

    async def test_started_at_is_the_first_start_and_the_claim_number_rises(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, first = await claimed(store)
        await worker.apply(first, change=_RELEASE)
        second = await (await Worker.start(store)).take()
        assert second.run.claim == 2
        assert second.run.started_at == first.run.started_at

    # -- two claims never yield one run twice -----------------------------------------------------

    async def test_P08_eight_claimers_share_the_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        ids = await create(store, *(new_run() for _ in range(400)))
        workers = [await Worker.start(stores[n % 2]) for n in range(8)]
        taken: list[tuple[str, ClaimedRun]] = []

        async def drain(worker: Worker) -> None:
            while len(taken) < len(ids):
                taken.extend((worker.id, one) for one in (await worker.claim(limit=7)).runs)

        async with asyncio.timeout(60):
            await asyncio.gather(*map(drain, workers))
        assert sorted(one.run.id for _, one in taken) == sorted(ids)
        assert all(one.run.owner == worker and one.run.claim == 1 for worker, one in taken)
        for worker in workers:
            owned = {ref.id for ref in await store.owned(worker.id)}
            assert owned == {one.run.id for name, one in taken if name == worker.id}

    async def test_P08_claims_and_releases_in_a_crowd_give_each_claim_number_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        ids = await create(store, *(new_run() for _ in range(12)))
        taken: list[RunRef] = []

        async def churn(worker: Worker) -> None:
            for _ in range(10):
                runs = (await worker.claim(limit=3)).runs
                taken.extend(one.ref for one in runs)
                for one in runs:
                    assert await worker.write(one, change=_RELEASE) is Outcome.APPLIED

        workers = [await Worker.start(stores[n % 2]) for n in range(8)]
        await asyncio.gather(*map(churn, workers))
        for run in await store.get_runs(ids):
            assert sorted(ref.claim for ref in taken if ref.id == run.id) == list(range(1, run.claim + 1))

    # -- lost answers -----------------------------------------------------------------------------

    async def test_P11_a_claim_sent_again_gives_the_same_runs_and_no_more(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(5)))
        worker = await Worker.start(store)
        first = await worker.claim(limit=3, batch="11111111-1111-4111-8111-111111111111")
        again = await worker.claim(limit=3, batch="11111111-1111-4111-8111-111111111111")
        assert _by_id(again.runs) == _by_id(first.runs)
        assert len(await store.owned(worker.id)) == 3
        assert len((await worker.claim()).runs) == 2

    async def test_P11_a_claim_sent_again_leaves_out_what_has_been_given_back(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, new_run(), new_run(), new_run())
        worker, batch = await Worker.start(store), str(uuid4())
        gone, parked, kept = (await worker.claim(batch=batch)).runs
        await worker.apply(gone, change=states.complete(State.RUNNING, "1"))
        await worker.apply(parked, change=states.park(State.RUNNING, ready_at=None, wakes=parked.wakes, waiting=True))
        assert [one.ref for one in (await worker.claim(batch=batch)).runs] == [kept.ref]
        assert {run.claim for run in await store.get_runs(ids)} == {1}

    async def test_P11_owned_is_what_the_store_says(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(4)))
        worker, other = await Worker.start(store), await Worker.start(store)
        mine = (await worker.claim(limit=3)).runs
        theirs = await other.take()
        assert sorted(await store.owned(worker.id)) == sorted(one.ref for one in mine)
        assert await store.owned(other.id) == [theirs.ref]
        assert await store.owned(str(uuid4())) == []
        await worker.apply(mine[0], change=states.complete(State.RUNNING, "1"))
        await worker.apply(mine[1], change=_RELEASE)
        assert await store.owned(worker.id) == [mine[2].ref]

    async def test_P11_owned_says_whose_end_concerns_others(self, harness: StoreHarness) -> None:
        """A stray that is given back has to name what its place, its parent or its line waits for."""
        store = await harness.fresh()
        worker, one = await claimed(store, concurrency_key="account")
        assert one.ref.linked
        assert await store.owned(worker.id) == [one.ref]

    async def test_batches_that_are_done_are_forgotten_and_the_others_are_not(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        batches: list[tuple[str, ClaimedRun]] = []
        for _ in range(3):
            await create(store)
            batch = str(uuid4())
            (one,) = (await worker.claim(batch=batch)).runs
            batches.append((batch, one))
        (first, one), (_, second), (_, third) = batches
        await worker.apply(one, change=states.complete(State.RUNNING, "1"))
        for _ in range(2):
            assert (await worker.claim(done=[first, str(uuid4())])).runs == []
            assert sorted(await store.owned(worker.id)) == sorted([second.ref, third.ref])
        await harness.expire(worker.id)
        assert (await store.reap()).released == 2

    # -- what a claim brings ----------------------------------------------------------------------

    async def test_a_claim_brings_the_history_in_order(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        for seq in range(1, 13):  # past nine, so that an order by text would show
            await worker.apply(one, record(seq))
        await worker.apply(one, change=_RELEASE)
        again = await (await Worker.start(store)).take()
        assert again.records is not None
        assert [entry.seq for entry in again.records] == list(range(1, 13))
        assert list(again.records) == await store.history(one.run.id)

    async def test_P20_a_history_of_10000_records_comes_whole_and_in_order(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        for first in range(1, 10_001, 1000):
            await worker.apply(one, *(record(seq) for seq in range(first, first + 1000)))
        await worker.apply(one, change=_RELEASE)
        again = await worker.take()
        assert [entry.seq for entry in again.records or ()] == list(range(1, 10_001))

    async def test_many_runs_bring_each_its_own_history(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(20)))
        worker = await Worker.start(store)
        for length, one in enumerate((await worker.claim()).runs):
            entries = [record(seq, data=f'"{one.run.id} {seq}"') for seq in range(1, length + 1)]
            await worker.apply(one, *entries, change=_RELEASE)
        runs = (await worker.claim()).runs
        assert sorted(len(one.records or ()) for one in runs) == list(range(20))
        for one in runs:
            assert [entry.data for entry in one.records or ()] == [
                f'"{one.run.id} {seq}"' for seq in range(1, len(one.records or ()) + 1)
            ]

    async def test_a_warm_run_comes_without_its_history(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, first = await claimed(store)
        await worker.apply(first, record(1), change=_RELEASE)
        (second,) = (await worker.claim(warm={first.run.id: 1})).runs
        assert (second.records, second.run.claim) == (None, 2)

    async def test_a_run_that_was_elsewhere_meanwhile_comes_with_its_history(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, first = await claimed(store)
        await worker.apply(first, record(1), change=_RELEASE)
        other = await Worker.start(store)
        await other.apply(await other.take(), record(2), change=_RELEASE)
        (third,) = (await worker.claim(warm={first.run.id: 1, str(uuid4()): 1})).runs
        assert [entry.seq for entry in third.records or ()] == [1, 2]

    async def test_P11_a_warm_claim_sent_again_gives_the_same_answer(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, first = await claimed(store)
        (cold,) = await create(store)
        await worker.apply(first, record(1), change=_RELEASE)
        batch = str(uuid4())
        for _ in range(2):
            runs = _by_id((await worker.claim(batch=batch, warm={first.run.id: 1})).runs)
            assert {run_id: one.records for run_id, one in runs.items()} == {first.run.id: None, cold: []}

    # -- unasked ----------------------------------------------------------------------------------

    async def test_an_unasked_claim_finds_what_is_due_and_when_the_next_run_is(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        assert await worker.claim(unasked=True) == Claimed([], None, [], [])
        later = store.clock.now() + timedelta(days=1)
        due, _ = await create(store, new_run(), new_run(ready_at=later))
        answer = await worker.claim(unasked=True)
        assert ([one.run.id for one in answer.runs], answer.next_ready_at) == ([due], later)
        assert (await worker.claim(unasked=True)).next_ready_at == later
        assert (await worker.claim(routes=[Route("refund", "1")], unasked=True)).next_ready_at is None

    async def test_an_unasked_claim_takes_what_a_signal_or_an_event_has_woken(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await create(store)
        two = await worker.take()
        await worker.wait(one, record(1, "approval", Kind.WAIT, None))
        event = Also(awaited=[Awaited("paid", "order-1", LONG_AGO)])
        await worker.wait(two, record(1, "paid", Kind.WAIT, None), also=event)
        assert (await worker.claim(unasked=True)).runs == []
        await send(store, one.run.id, "s1")
        assert [run.run.id for run in (await worker.claim(unasked=True)).runs] == [one.run.id]
        await store.publish([Published(new_id(), "paid", "order-1", "true", 3600.0)])
        # A store may compare events with a claim, and give out what they have woken with the next.
        found = [*(await worker.claim(unasked=True)).runs, *(await worker.claim(unasked=True)).runs]
        assert [run.run.id for run in found] == [two.run.id]

    async def test_an_unasked_claim_hears_what_is_asked_and_signalled(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        cancel = Request(Verb.CANCEL, "by hand", "me")
        await store.request(one.run.id, cancel)
        for limit in (0, 5):
            assert list((await worker.claim(limit, unasked=True)).requests) == [(one.run.id, cancel)]
        other, two = await claimed(store)
        await send(store, two.run.id, "s1")
        assert (await other.claim(unasked=True)).signalled == [two.run.id]

    async def test_an_unasked_claim_keeps_limits_that_another_process_has_put(self, harness: StoreHarness) -> None:
        store, other = await harness.fresh(), await harness.another()
        worker = await Worker.start(store)
        assert (await worker.claim(unasked=True)).runs == []
        await other.put_queues([Queue("default", concurrency=1)])
        await create(other, new_run(), new_run())
        assert [len((await worker.claim(unasked=True)).runs) for _ in range(2)] == [1, 0]

    async def test_an_unasked_claim_takes_what_a_limit_unknown_to_it_has_kept_back(self, harness: StoreHarness) -> None:
        store, other = await harness.fresh(), await harness.another()
        worker = await Worker.start(store)
        assert (await worker.claim(unasked=True)).runs == []
        await other.put_queues([Queue("default", per_key=1)])
        both = await create(other, new_run(limit_key="a"), new_run(limit_key="a"))
        leaving = await Worker.start(other)
        one = await leaving.take()
        await leaving.apply(one, change=states.complete(State.RUNNING, "1"))
        await other.unregister(leaving.id)
        assert [run.run.id for run in (await worker.claim(unasked=True)).runs] == [both[1]]


def _by_id(runs: Sequence[ClaimedRun]) -> dict[str, ClaimedRun]:
    return {one.run.id: one for one in runs}
