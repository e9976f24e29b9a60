"""Runs that are created already claimed: as if their worker had claimed them at once, or as any other run."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from durable import states
from durable.model import Created, Debounce, NewRun, Outcome, Policy, Queue, Start, State
from durable.store import Store
from durable.testing.conformance.harness import (
    NEVER,
    ROUTE,
    StoreHarness,
    Worker,
    create,
    ids_of,
    new_run,
    read,
    record,
    send,
)

_R = State.RUNNING
_DELAYED: dict[str, dict[str, Any]] = {
    "at": {"ready_at": NEVER},
    "delay": {"delay": 3600.0},
    "concurrency key": {"concurrency_key": "one"},
    "queued behind itself": {"concurrency_key": "one", "policy": Policy.QUEUE},
    "debounce": {"debounce": Debounce("one", 3600.0)},
}


async def _started(worker: Worker, *runs: NewRun, batch: str = "") -> list[Created]:
    start = Start(worker.id, batch or str(uuid4()), frozenset(run.id for run in runs))
    return await worker.store.create_runs(runs, start)


async def _is_pending(store: Store, run_id: str) -> None:
    run = await read(store, run_id)
    assert (run.state, run.owner, run.claim, run.started_at) == (State.PENDING, None, 0, None)


class StartConformance:
    async def test_a_run_that_is_created_claimed_is_as_a_claim_would_have_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        new = new_run(key="k", tags={"tenant": "acme"}, priority=2, limit_key="acme")
        (answer,) = await _started(worker, new)
        assert answer.claimed is not None
        assert (answer.run_id, answer.created) == (new.id, True)
        run, stored = answer.claimed.run, await read(store, new.id)
        assert run == stored
        assert (run.state, run.owner, run.claim, run.ready_at) == (_R, worker.id, 1, None)
        assert run.started_at is not None
        assert run.started_at >= run.created_at
        assert (list(answer.claimed.records or ()), answer.claimed.wakes, list(answer.claimed.signals)) == ([], 0, [])
        assert await store.owned(worker.id) == [answer.claimed.ref]
        assert (await (await Worker.start(store)).claim()).runs == []
        await worker.apply(answer.claimed, record(1), change=states.complete(_R, "1"))
        assert (await read(store, new.id)).state is State.COMPLETED

    async def test_only_those_that_are_named_are_claimed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        named, other = new_run(), new_run()
        start = Start(worker.id, str(uuid4()), frozenset([named.id]))
        first, second = await store.create_runs([other, named], start)
        assert (first, second.run_id) == (Created(other.id, True), named.id)
        assert second.claimed is not None
        await _is_pending(store, other.id)
        assert (await worker.take()).run.id == other.id

    @pytest.mark.parametrize("why", _DELAYED)
    async def test_what_is_not_due_or_has_a_line_is_not_claimed(self, harness: StoreHarness, why: str) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        (answer,) = await _started(worker, new := new_run(**_DELAYED[why]))
        assert answer == Created(new.id, True)
        await _is_pending(store, new.id)
        assert await store.owned(worker.id) == []

    async def test_P38_a_run_of_a_limited_queue_is_left_to_the_claims(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        await (await harness.another()).put_queues([Queue(ROUTE.queue, concurrency=1)])
        runs = [new_run() for _ in range(3)]
        assert await _started(worker, *runs) == [Created(run.id, True) for run in runs]
        assert [one.run.id for one in (await worker.claim()).runs] == [runs[0].id]
        assert await _started(worker, later := new_run()) == [Created(later.id, True)]  # now the store knows the limits
        assert len(await store.owned(worker.id)) == 1

    async def test_P04_without_a_lease_the_run_is_created_for_others(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        await harness.expire(worker.id)
        await store.reap()
        (answer,) = await _started(worker, new := new_run(key="k"))
        assert answer == Created(new.id, True)
        await _is_pending(store, new.id)
        assert (await (await Worker.start(store)).take()).run.id == new.id

    async def test_P04_a_worker_that_dies_with_it_is_reaped_with_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        runs = [new_run() for _ in range(3)]
        started = [answer.claimed for answer in await _started(worker, *runs)]
        await harness.expire(worker.id)
        assert (await store.reap()).released == 3
        other = await Worker.start(store)
        assert {one.run.id for one in (await other.claim()).runs} == {run.id for run in runs}
        for one in started:
            assert one is not None
            assert await worker.write(one, record(1)) is Outcome.LEASE_LOST

    async def test_P04_whoever_loses_the_lease_meanwhile_leaves_no_run_behind(self, harness: StoreHarness) -> None:
        store, other = await harness.fresh(), await harness.another()
        for _ in range(10):
            worker = await Worker.start(store)
            await harness.expire(worker.id)
            runs = [new_run() for _ in range(20)]
            before, after = ([_started(worker, run) for run in some] for some in (runs[:10], runs[10:]))
            await asyncio.gather(*before, other.reap(), *after)
            await other.reap()
            assert await store.owned(worker.id) == []
            heir = await Worker.start(other)
            assert {one.run.id for one in (await heir.claim()).runs} == {run.id for run in runs}

    async def test_a_goodbye_releases_it_without_a_takeover(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        await _started(worker, new := new_run())
        await store.unregister(worker.id)
        taken = await (await Worker.start(store)).take()
        assert (taken.run.id, taken.run.takeovers, taken.records) == (new.id, 0, [])

    async def test_P11_sent_again_it_is_there_once_and_owned_tells_of_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        batch, runs = str(uuid4()), [new_run(), new_run(key="k"), new_run(request="r")]
        first = await _started(worker, *runs, batch=batch)
        again = await _started(worker, *runs, batch=batch)
        assert again == [replace(answer, claimed=None) for answer in first]
        assert again == await store.create_runs(runs)
        assert sorted(ref.id for ref in await store.owned(worker.id)) == sorted(run.id for run in runs)

    async def test_P36_the_loser_of_a_key_is_not_claimed_and_the_winner_stays(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (standing,) = await create(store, new_run(key="k"))
        worker = await Worker.start(store)
        same, new = new_run(key="k"), new_run()
        lost, other, made = await _started(worker, same, new_run(key="k", input_hash="other"), new)
        assert (lost, other.conflict is None) == (Created(standing, False), False)
        assert made.claimed is not None
        await _is_pending(store, standing)

    async def test_P36_200_concurrent_starts_with_one_key_are_one_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        workers = [await Worker.start(store), await Worker.start(await harness.another())]
        answers = await asyncio.gather(*(_started(workers[n % 2], new_run(key="one")) for n in range(200)))
        (won,) = (answer for (answer,) in answers if answer.created)
        assert won.claimed is not None
        assert {answer.run_id for (answer,) in answers} == {won.run_id}
        owned = [ref.id for worker in workers for ref in await store.owned(worker.id)]
        assert owned == [won.run_id]

    async def test_P34_a_signal_that_comes_before_the_park_is_not_lost(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        (answer,) = await _started(worker, new := new_run())
        assert answer.claimed is not None
        await send(store, new.id, "s1")
        assert (await worker.claim()).signalled == [new.id]
        assert ids_of((await worker.unread(answer.claimed)).signals) == ["s1"]
        await worker.wait(answer.claimed)  # by the counter that it was created with: ready at once
        assert ids_of((await worker.take()).signals) == ["s1"]

    async def test_its_batch_can_be_forgotten_as_that_of_a_claim(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, batch = await Worker.start(store), str(uuid4())
        (answer,) = await _started(worker, new_run(), batch=batch)
        assert answer.claimed is not None
        await worker.apply(answer.claimed, change=states.park(_R, ready_at=NEVER, wakes=0, waiting=False))
        await worker.claim(done=[batch])
        assert await store.owned(worker.id) == []
        assert (await read(store, answer.run_id)).ready_at is not None
        assert NEVER - (await read(store, answer.run_id)).created_at > timedelta(days=1)
