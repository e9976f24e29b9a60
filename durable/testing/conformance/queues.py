"""Queues: who executes which runs, in which order, and how many of them at a time over all workers."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from durable import states
from durable.model import Change, ClaimedRun, NewRun, Outcome, Queue, Rate, Request, RunFilter, State
from durable.store import Route, Store
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    ROUTE,
    StoreHarness,
    Worker,
    create,
    new_run,
    read,
    record,
    until,
)
from durable.testing.conformance.situations import CANCEL, PAUSE
from durable.testing.conformance.writes import ERROR

MAIL = Route(*ROUTE[:2], "mail")
_R = State.RUNNING
DONE = states.complete(_R, "1")
RELEASE = states.release(_R)


def mail(**other: Any) -> NewRun:
    """A run for the queue ``mail``."""
    return new_run(queue="mail", **other)


async def get(worker: Worker, *routes: Route, limit: int = 1000) -> list[ClaimedRun]:
    """Claim as a worker's loop does: again at once when the answer says that there is more to look at."""
    found: list[ClaimedRun] = []
    while len(found) < limit:
        answer = await worker.claim(limit - len(found), routes or (MAIL,))
        found += answer.runs
        if answer.next_ready_at is None or answer.next_ready_at > worker.store.clock.now():
            break
    return found


async def get_ids(worker: Worker, *routes: Route, limit: int = 1000) -> list[str]:
    return [one.run.id for one in await get(worker, *routes, limit=limit)]


async def hold(store: Store, *runs: NewRun) -> tuple[Worker, list[ClaimedRun]]:
    """Create the runs, and have a new worker claim what it can of the queue ``mail``."""
    await create(store, *runs)
    worker = await Worker.start(store)
    return worker, await get(worker)


def _park(one: ClaimedRun) -> Change:
    return states.park(_R, ready_at=NEVER, wakes=one.wakes)


def _wait(one: ClaimedRun) -> Change:
    return states.park(_R, ready_at=None, wakes=one.wakes, waiting=True)


async def _committed(change: Change, worker: Worker, one: ClaimedRun) -> None:
    await worker.apply(one, change=change)


async def _unregistered(_: StoreHarness, worker: Worker, __: ClaimedRun) -> None:
    await worker.store.unregister(worker.id)


async def _reaped(harness: StoreHarness, worker: Worker, _: ClaimedRun) -> None:
    await harness.expire(worker.id)
    assert (await worker.store.reap()).released == 1


async def _given_up(harness: StoreHarness, worker: Worker, _: ClaimedRun) -> None:
    await harness.expire(worker.id)
    assert (await worker.store.reap(limit=1)).released == 1


def _by(change: Callable[[ClaimedRun], Change]) -> Callable[[StoreHarness, Worker, ClaimedRun], Awaitable[None]]:
    return lambda _, worker, one: _committed(change(one), worker, one)


LEAVING: dict[str, Callable[[StoreHarness, Worker, ClaimedRun], Awaitable[None]]] = {
    "completed": _by(lambda _: DONE),
    "failed": _by(lambda _: states.fail(_R, ERROR)),
    "cancelled": _by(lambda _: states.cancelled(_R, ERROR)),
    "asleep": _by(_park),
    "waiting": _by(_wait),
    "paused": _by(lambda _: states.pause(_R, "by hand")),
    "to be tried again": _by(lambda _: states.try_again(_R, NEVER)),
    "given back": _by(lambda _: RELEASE),
    "left by a worker that stops": _unregistered,
    "left by a worker that died": _reaped,
    "dead letter": _given_up,
}
"""Every way in which a run leaves its worker."""


class QueueConformance:
    # -- who, and in which order ------------------------------------------------------------------

    async def test_P07_a_worker_gets_the_runs_of_the_queues_it_names(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        plain, mailed, other = await create(store, new_run(), mail(), mail(version="2"))
        worker = await Worker.start(store)
        assert await get_ids(worker, ROUTE) == [plain]
        assert await get_ids(worker, Route(*ROUTE[:2], "post"), Route("refund", "1", "mail")) == []
        assert await get_ids(worker, MAIL) == [mailed]
        assert await get_ids(worker, MAIL, Route("order", "2", "mail"), ROUTE) == [other]

    async def test_a_run_shows_its_queue_and_keys(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        plain, mailed = await create(
            store, new_run(), mail(priority=9, limit_key="acme", concurrency_key="acme/1", key="k")
        )
        run = await read(store, mailed)
        assert (run.queue, run.priority, run.limit_key, run.concurrency_key) == ("mail", 9, "acme", "acme/1")
        assert run.linked
        (one,) = await get(await Worker.start(store))
        assert one.run == await read(store, mailed)
        run = await read(store, plain)
        assert (run.queue, run.priority, run.limit_key, run.concurrency_key) == ("default", 5, None, None)
        assert not run.linked
        assert [run.id for run in await store.list_runs(RunFilter(queue="mail"), 9, None)] == [mailed]

    async def test_priority_first_then_due_time_over_all_routes(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        plan = [(5, 2), (9, 0), (0, 7), (5, 1), (0, 8), (9, 3), (1, 9)]
        ids = await create(
            store,
            *(
                mail(priority=priority, ready_at=LONG_AGO + timedelta(seconds=second), version=str(second % 2))
                for priority, second in plan
            ),
        )
        worker, routes = await Worker.start(store), [MAIL._replace(version="0"), MAIL._replace(version="1")]
        got = [run_id for _ in plan for run_id in await get_ids(worker, *routes, limit=1)]
        # Within a priority there is an order of due times for each route only.
        given = [plan[ids.index(run_id)] for run_id in got]
        assert [priority for priority, _ in given] == sorted(priority for priority, _ in plan)
        for route in (0, 1):
            mine = [one for one in given if one[1] % 2 == route]
            assert mine == sorted(mine)

    async def test_a_run_comes_back_with_its_priority(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(mail(ready_at=LONG_AGO) for _ in range(3)))
        (last,) = await create(store, mail(priority=9, ready_at=LONG_AGO))
        (first,) = await create(store, mail(priority=0))
        worker = await Worker.start(store)
        for one in await get(worker):
            await worker.apply(one, change=RELEASE)
        assert await get_ids(worker, limit=1) == [first]
        assert last not in await get_ids(worker, limit=3)
        assert await get_ids(worker) == [last]

    async def test_next_ready_at_looks_at_every_priority_and_at_no_other_queue(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        hour, day = store.clock.now() + timedelta(hours=1), store.clock.now() + timedelta(days=1)
        await create(store, mail(priority=9, ready_at=hour), mail(priority=0, ready_at=day), new_run(ready_at=day))
        worker = await Worker.start(store)
        assert (await worker.claim(routes=[MAIL])).next_ready_at == hour
        assert (await worker.claim(routes=[ROUTE])).next_ready_at == day

    # -- limits: what is stored -------------------------------------------------------------------

    async def test_limits_are_read_back_and_others_stay(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        assert list(await store.queues()) == []
        mails = Queue("mail", 3, 1, Rate(10, 60), Rate(1, 0.25))
        await store.put_queues([Queue("zoo", concurrency=1), mails])
        for _ in range(2):
            await store.put_queues([Queue("api", rate=Rate(5))])
            assert list(await store.queues()) == [Queue("api", rate=Rate(5)), mails, Queue("zoo", concurrency=1)]
        await store.put_queues([])
        await store.put_queues([Queue("mail", per_key=2), Queue("zoo"), Queue("nothing")])
        other = await harness.another()
        assert list(await other.queues()) == [Queue("api", rate=Rate(5)), Queue("mail", per_key=2)]

    # -- concurrency ------------------------------------------------------------------------------

    async def test_no_more_runs_are_held_than_the_queue_allows(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=3)])
        ids = await create(store, *(mail(ready_at=LONG_AGO + timedelta(seconds=n)) for n in range(5)))
        worker, other = await Worker.start(store), await Worker.start(store)
        first = await get(worker, limit=2)
        assert {one.run.id for one in first} == set(ids[:2])
        assert all(one.run.linked and one.ref.linked for one in first)
        assert await get_ids(other) == [ids[2]]
        assert await get_ids(worker) == await get_ids(other) == []
        waiting = await read(store, ids[3])
        assert (waiting.state, waiting.owner, waiting.claim) == (State.PENDING, None, 0)
        await worker.apply(first[0], change=DONE)
        assert await get_ids(other) == [ids[3]]

    @pytest.mark.parametrize("leaving", LEAVING)
    async def test_who_leaves_its_worker_gives_its_place_back_once(self, harness: StoreHarness, leaving: str) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=1)])
        (first,) = await create(store, mail(ready_at=LONG_AGO))
        worker, other = await Worker.start(store), await Worker.start(store)
        (one,) = await get(worker)
        await create(store, *(mail(priority=0, ready_at=LONG_AGO) for _ in range(2)))
        assert await get_ids(other) == []
        await LEAVING[leaving](harness, worker, one)
        (second,) = await get(other)
        assert second.run.id != first
        assert await get_ids(other) == []
        # Whoever had the first place says it again, or says it late: it is another run's now.
        assert await worker.write(one, change=DONE) in (Outcome.APPLIED, Outcome.LEASE_LOST)
        await worker.store.unregister(worker.id)
        assert await get_ids(other) == []
        await other.apply(second, change=DONE)
        assert len(await get_ids(other)) == 1

    async def test_a_change_that_keeps_the_lease_keeps_the_place(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=1, per_key=1)])
        await create(store, mail(limit_key="acme"), mail(limit_key="acme"))
        worker = await Worker.start(store)
        (one,) = await get(worker)
        await worker.apply(one, record(1))
        await worker.apply(one, change=states.compensate(_R, ERROR))
        assert await get(worker) == []
        await worker.apply(one, change=states.compensated(State.COMPENSATING, ERROR))
        assert len(await get(worker)) == 1

    async def test_P11_a_claim_sent_again_takes_no_further_place(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=3, per_key=2)])
        await create(store, *(mail(limit_key="acme") for _ in range(3)), mail())
        worker, batch = await Worker.start(store), str(uuid4())
        first = [one.ref for one in (await worker.claim(1, [MAIL], batch=batch)).runs]
        for _ in range(3):
            assert [one.ref for one in (await worker.claim(1, [MAIL], batch=batch)).runs] == first
        assert len(await get(worker)) == 2

    async def test_a_full_queue_does_not_stand_in_the_way_of_others(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=1), Queue("post", concurrency=1)])
        await create(store, *(mail(priority=0, ready_at=LONG_AGO) for _ in range(300)))
        plain, post = await create(store, new_run(priority=9), new_run(queue="post", priority=9))
        worker = await Worker.start(store)
        got = await get(worker, MAIL, Route(*ROUTE[:2], "post"), ROUTE, limit=5)
        assert len(got) == 3
        assert {plain, post} < {one.run.id for one in got}

    async def test_limits_hold_for_the_claims_after_they_were_put(self, harness: StoreHarness) -> None:
        store, other = await harness.fresh(), await harness.another()
        await create(store, *(mail() for _ in range(10)))
        worker = await Worker.start(store)
        await store.put_queues([Queue("mail", concurrency=3)])
        held = await get(worker)
        assert len(held) == 3
        await other.put_queues([Queue("mail", concurrency=5)])
        held += await get(worker)
        assert len(held) == 5
        await other.put_queues([Queue("mail", concurrency=2)])
        for one in held[:3]:
            await worker.apply(one, change=DONE)
            assert await get(worker) == []
        await worker.apply(held[3], change=DONE)
        assert len(await get(worker)) == 1
        await other.put_queues([Queue("mail")])
        assert len(await get(worker)) == 4

    async def test_nothing_of_a_queue_with_no_place_at_all(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=0)])
        await create(store, mail())
        worker = await Worker.start(store)
        assert await get(worker) == []
        await store.put_queues([Queue("mail", concurrency=1)])
        assert len(await get(worker)) == 1

    async def test_eight_workers_never_hold_more_than_the_limits(self, harness: StoreHarness) -> None:
        """What a worker has been given and has not given back is held: the test counts no more than the store does."""
        store = await harness.fresh()
        stores = [store, await harness.another()]
        await store.put_queues([Queue("mail", concurrency=5, per_key=2)])
        await create(store, *(mail(limit_key=f"k{n % 4}") for n in range(80)))
        held: list[str] = []
        ended = 0

        async def work(worker: Worker) -> None:
            nonlocal ended
            while ended < 80:
                got = (await worker.claim(3, [MAIL])).runs
                held.extend(one.run.limit_key or "" for one in got)
                await asyncio.sleep(0)  # the others' turn, also in a store that never waits
                assert len(held) <= 5
                assert all(held.count(key) <= 2 for key in held)
                for one in got:
                    held.remove(one.run.limit_key or "")
                    await worker.apply(one, change=DONE)
                    ended += 1

        workers = [await Worker.start(stores[n % 2]) for n in range(8)]
        await asyncio.gather(*(work(worker) for worker in workers))
        assert ended == 80
        assert held == []

    async def test_P34_with_one_place_a_run_that_waits_lets_another_one_go_on(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=1)])
        (parent,) = await create(store, mail())
        worker = await Worker.start(store)
        (one,) = await get(worker)
        when = store.clock.now() + timedelta(milliseconds=200)
        await worker.apply(one, change=states.park(_R, ready_at=when, wakes=one.wakes))
        (child,) = await create(store, mail())
        (two,) = await get(worker)
        assert two.run.id == child
        await until(store, when)
        assert await get(worker) == []
        await worker.apply(two, change=DONE)
        assert await get_ids(worker) == [parent]

    @pytest.mark.parametrize("asked", [CANCEL, PAUSE], ids=["cancel", "pause"])
    async def test_asking_something_of_a_held_run_frees_no_place(self, harness: StoreHarness, asked: Request) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=1)])
        worker, (one,) = await hold(store, mail(), mail())
        await store.request(one.run.id, asked)
        assert await get(worker) == []
