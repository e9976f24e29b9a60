"""Debouncing: several triggers become one run, which starts when they have ceased."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from durable import states
from durable.model import Created, Debounce, NewRun, Policy, Queue, State
from durable.testing.conformance.harness import ROUTE, StoreHarness, Worker, create, new_run, read, snapshot, until
from durable.testing.conformance.queues import DONE, MAIL, get_ids
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME

_R = State.RUNNING
NEAR = timedelta(seconds=30)


def debounced(delay: float = 3600.0, max_delay: float | None = None, key: str = "d", **other: Any) -> NewRun:
    return new_run(debounce=Debounce(key, delay, max_delay), **other)


class DebounceConformance:
    async def test_a_later_trigger_gives_the_run_its_input_and_a_later_start(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first = debounced(10, tags={"a": "1"})
        second = debounced(5000, input='"new"', input_hash="h2", version="2", tags={"b": "2"}, queue="mail")
        third = debounced(3600, input=None, input_hash="h3")
        assert await store.create_runs([first]) == [Created(first.id, True)]
        before = await read(store, first.id)
        assert before.ready_at == before.created_at + timedelta(seconds=10)
        assert await store.create_runs([second]) == [Created(first.id, False)]
        run = await read(store, first.id)
        assert (run.input, run.tags, run.version, run.queue) == ('"new"', {"b": "2"}, "2", "default")
        assert (run.state, run.created_at, run.seed, run.claim) == (State.PENDING, before.created_at, first.seed, 0)
        assert run.ready_at is not None
        assert abs(run.ready_at - store.clock.now() - timedelta(seconds=5000)) < NEAR
        assert await store.create_runs([third]) == [Created(first.id, False)]
        run = await read(store, first.id)
        assert (run.input, run.tags, run.version) == (None, {}, "1")
        assert await store.get_runs([second.id, third.id]) == []

    async def test_it_starts_with_the_last_input_when_the_triggers_have_ceased(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        batch = [debounced(0.2, input=str(n), input_hash=str(n)) for n in range(5)]
        answers = await store.create_runs(batch)
        assert answers == [Created(batch[0].id, n == 0) for n in range(5)]
        worker = await Worker.start(store)
        answer = await worker.claim()
        assert answer.runs == []
        assert answer.next_ready_at is not None
        await until(store, answer.next_ready_at)
        (one,) = (await worker.claim()).runs
        assert (one.run.id, one.run.input) == (batch[0].id, "4")

    async def test_max_delay_bounds_the_start(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, debounced(10, 25))
        created_at = (await read(store, run_id)).created_at
        for delay, bound, expected in ((20, 25, None), (100, 25, 25), (100, None, None), (0.5, 0.0, 0), (3600, 40, 40)):
            await store.create_runs([debounced(delay, bound)])
            ready_at = (await read(store, run_id)).ready_at
            assert ready_at is not None
            if expected is None:
                assert abs(ready_at - store.clock.now() - timedelta(seconds=delay)) < NEAR
            else:
                assert ready_at == created_at + timedelta(seconds=expected)
        (short,) = await create(store, debounced(100, 1, key="short"))
        run = await read(store, short)
        assert run.ready_at == run.created_at + timedelta(seconds=1)

    async def test_keys_and_workflows_are_apart(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, debounced(), debounced(key="D"), debounced(workflow="refund"), new_run(key="d"), new_run())

    async def test_once_it_was_claimed_the_next_trigger_is_a_new_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = await Worker.start(store)
        (first,) = await create(store, debounced(0))
        one = await worker.take()
        second = debounced(0, input='"new"')
        assert await store.create_runs([second]) == [Created(second.id, True)]
        await worker.apply(one, change=states.release(_R))  # never again, also not before it goes on
        assert await store.create_runs([debounced(3600)]) == [Created(second.id, False)]
        assert await get_ids(worker, ROUTE) == [first]
        assert (await read(store, first)).input == '{"sku": "tea"}'

    async def test_a_cancelled_one_is_not_brought_back(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, debounced())
        assert await store.request(first, CANCEL) is State.CANCELLED
        await create(store, debounced())
        assert (await read(store, first)).state is State.CANCELLED

    async def test_a_paused_one_stays_paused(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, debounced())
        assert await store.request(first, PAUSE) is State.PAUSED
        assert await store.create_runs([debounced(0, input="2")]) == [Created(first, False)]
        run = await read(store, first)
        assert (run.state, run.ready_at, run.input) == (State.PAUSED, None, "2")
        worker = await Worker.start(store)
        assert await get_ids(worker, ROUTE) == []
        await store.request(first, RESUME)
        assert await get_ids(worker, ROUTE) == [first]

    async def test_P11_a_trigger_sent_again_changes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first = debounced(100, input="1", input_hash="1", request="r1")
        second, third = (debounced(200 + n, input=str(n), input_hash=str(n)) for n in (2, 3))
        expected = [Created(first.id, True), Created(first.id, False), Created(first.id, False)]
        assert [*await store.create_runs([first, second]), *await store.create_runs([third])] == expected
        before = await snapshot(store, first.id)
        assert await store.create_runs([second, first, third]) == [expected[1], expected[0], expected[2]]
        assert await snapshot(store, first.id) == before
        worker = await Worker.start(store)
        await store.create_runs([debounced(0, input="4")])
        await worker.apply(await worker.take(), change=DONE)
        assert await store.create_runs([first, second, third]) == expected
        assert await get_ids(worker, ROUTE) == []
        assert await store.delete(first.id)
        assert await store.create_runs([debounced(0, input="5")]) != expected[1:2]

    async def test_concurrent_triggers_are_one_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        answers = await asyncio.gather(*(stores[n % 2].create_runs([debounced(0.0, 0.0)]) for n in range(60)))
        assert len({answer.run_id for (answer,) in answers}) == 1
        assert sum(answer.created for (answer,) in answers) == 1
        assert len(await get_ids(await Worker.start(store), ROUTE)) == 1

    async def test_a_claim_and_a_trigger_at_the_same_time_lose_no_input(self, harness: StoreHarness) -> None:
        """The trigger comes before the claim, which then brings its input, or after it, and is a run of its own."""
        store = await harness.fresh()
        other = await harness.another()
        worker = await Worker.start(store)
        for _ in range(25):
            (first,) = await create(store, debounced(0, input="1"))
            later = debounced(0, 0, input="2", input_hash="2")
            (answer,), claimed = await asyncio.gather(other.create_runs([later]), worker.claim(limit=1))
            ended = {one.run.id: one.run.input for one in claimed.runs}
            for one in [*claimed.runs, *(rest := (await worker.claim()).runs)]:
                await worker.apply(one, change=DONE)
            ended |= {one.run.id: one.run.input for one in rest}
            assert ended == ({first: "1", later.id: "2"} if answer.created else {first: "2"})

    async def test_a_blocked_run_is_debounced_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", per_key=1)])
        plain = new_run(queue="mail", limit_key="a")
        (first,) = await create(store, plain)
        worker = await Worker.start(store)
        (one,) = (await worker.claim(routes=[MAIL])).runs
        (blocked,) = await create(store, debounced(0, queue="mail", limit_key="a", input="1"))
        assert await get_ids(worker, MAIL) == []
        (answer,) = await store.create_runs([debounced(0, queue="mail", limit_key="a", input="2")])
        assert answer == Created(blocked, False)
        assert await get_ids(worker, MAIL) == []
        assert one.run.id == first
        await worker.apply(one, change=DONE)
        (two,) = (await worker.claim(routes=[MAIL])).runs
        assert (two.run.id, two.run.input) == (blocked, "2")

    async def test_a_queued_run_is_debounced_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        concurrency: dict[str, Any] = {"concurrency_key": "k", "policy": Policy.QUEUE}
        (first,) = await create(store, new_run(**concurrency))
        (second,) = await create(store, debounced(0, input="1", **concurrency))
        assert await store.create_runs([debounced(0, input="2", **concurrency)]) == [Created(second, False)]
        assert (await read(store, second)).ready_at is None
        worker = await Worker.start(store)
        one = await worker.take()
        assert one.run.id == first
        await worker.apply(one, change=DONE)
        two = await worker.take()
        assert (two.run.id, two.run.input) == (second, "2")

    async def test_a_refused_trigger_debounces_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, new_run(concurrency_key="k"))
        new = debounced(0, concurrency_key="k")
        assert await store.create_runs([new]) == [Created(first, False, busy=True)]
        assert await store.create_runs([debounced(0)]) != [Created(new.id, False)]
        assert await store.get_runs([new.id]) == []
