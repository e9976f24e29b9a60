"""Concurrency keys: at most one active run of a workflow under each, and what becomes of further ones."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from durable import requests, states
from durable.model import ClaimedRun, Created, NewRun, NewSignal, Policy, Queue, Request, Sent, State, Verb
from durable.store import Store
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    ROUTE,
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
from durable.testing.conformance.queues import DONE, MAIL, RELEASE, get_ids
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME, RETRY
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING


def keyed(policy: Policy = Policy.REJECT, **other: Any) -> NewRun:
    """A run with the concurrency key ``k``."""
    return new_run(concurrency_key="k", policy=policy, **other)


def queued(**other: Any) -> NewRun:
    return keyed(Policy.QUEUE, **other)


async def make(store: Store, new: NewRun) -> Created:
    (created,) = await store.create_runs([new])
    return replace(created, replaced=tuple(created.replaced))  # any sequence will do for the seam


async def _completed(_: StoreHarness, worker: Worker, one: ClaimedRun) -> None:
    await worker.apply(one, change=DONE)


async def _failed(_: StoreHarness, worker: Worker, one: ClaimedRun) -> None:
    await worker.apply(one, change=states.fail(_R, ERROR))


async def _compensated(_: StoreHarness, worker: Worker, one: ClaimedRun) -> None:
    await worker.apply(one, change=states.compensate(_R, ERROR))
    await worker.apply(one, change=states.compensated(State.COMPENSATING, ERROR))


async def _cancelled(_: StoreHarness, worker: Worker, one: ClaimedRun) -> None:
    await worker.apply(one, change=states.cancelled(_R, ERROR))


async def _given_up(harness: StoreHarness, worker: Worker, _: ClaimedRun) -> None:
    await harness.expire(worker.id)
    assert (await worker.store.reap(limit=1)).released == 1


_ENDING: dict[str, Callable[[StoreHarness, Worker, ClaimedRun], Awaitable[None]]] = {
    "completed": _completed,
    "failed": _failed,
    "compensated": _compensated,
    "cancelled": _cancelled,
    "dead letter": _given_up,
}


class ConcurrencyConformance:
    # -- reject, existing -------------------------------------------------------------------------

    @pytest.mark.parametrize("policy", [Policy.REJECT, Policy.EXISTING])
    async def test_P37_while_one_is_active_a_further_one_is_not_created(
        self, harness: StoreHarness, policy: Policy
    ) -> None:
        store = await harness.fresh()
        first, second = keyed(), keyed(policy, input='"another"', input_hash="another", key="second")
        refused = Created(first.id, False, busy=policy is Policy.REJECT)
        assert await make(store, first) == Created(first.id, True)
        assert await make(store, second) == refused
        worker = await Worker.start(store)
        one = await worker.take()
        for change in (RELEASE, states.park(_R, ready_at=LONG_AGO, wakes=one.wakes), states.pause(_R, "by hand")):
            assert await make(store, second) == refused
            await worker.apply(one, change=change)
            assert await make(store, second) == refused
            if change.state is State.PAUSED:
                await store.request(first.id, RESUME)
            one = await worker.take()
        assert await store.get_runs([second.id]) == []
        assert await store.find_key("order", "second") is None
        await worker.apply(one, change=DONE)
        assert await make(store, second) == Created(second.id, True)
        assert await make(store, second) == Created(second.id, True)
        assert await make(store, first) == Created(first.id, True)

    async def test_other_keys_and_other_workflows_are_free(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(
            store,
            keyed(),
            new_run(concurrency_key="K"),
            new_run("refund", concurrency_key="k"),
            new_run(),
            new_run(key="k"),
        )
        assert await make(store, keyed(version="2", queue="mail")) != Created("", True)
        assert (await make(store, keyed(version="2", queue="mail"))).busy

    async def test_P37_200_concurrent_triggers_with_one_concurrency_key_are_one_run(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        policies = [Policy.REJECT, Policy.EXISTING]
        answers = await asyncio.gather(*(stores[n % 2].create_runs([keyed(policies[n // 2 % 2])]) for n in range(200)))
        created = [answer for (answer,) in answers if answer.created]
        assert len(created) == 1
        assert {answer.run_id for (answer,) in answers} == {created[0].run_id}
        assert sum(answer.busy for (answer,) in answers) in (99, 100)
        assert await get_ids(await Worker.start(store), ROUTE) == [created[0].run_id]

    async def test_P37_of_many_in_one_call_the_first_is_created(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        batch = [keyed(), keyed(), keyed(Policy.EXISTING), new_run(), queued(), keyed()]
        active = batch[0].id
        expected = [
            Created(active, True),
            Created(active, False, busy=True),
            Created(active, False),
            Created(batch[3].id, True),
            Created(batch[4].id, True),
            Created(active, False, busy=True),
        ]
        assert await store.create_runs(batch) == expected
        assert await store.create_runs(batch) == expected
        assert set(await get_ids(await Worker.start(store), ROUTE)) == {active, batch[3].id}

    async def test_P36_the_key_is_looked_up_before_the_concurrency_key(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, other = keyed(key="a"), keyed(key="a", input_hash="other")
        await create(store, first)
        assert await make(store, keyed(key="a")) == Created(first.id, False)
        assert (await make(store, other)).conflict is not None
        await create(store, queued(key="b"))
        assert (await make(store, keyed(key="b"))).busy is False

    async def test_a_refused_run_gets_no_signal(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        new, signal = keyed(), NewSignal("", new_id(), "approval", "1")
        created, sent = await store.create_with_signal(new, signal)
        assert (created, sent) == (Created(first, False, busy=True), Sent.NOT_FOUND)
        created, sent = await store.create_with_signal(keyed(Policy.EXISTING), signal)
        assert (created, sent) == (Created(first, False), Sent.ACCEPTED)
        one = await (await Worker.start(store)).take()
        assert [got.id for got in one.signals] == [signal.id]

    # -- queue ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ending", _ENDING)
    async def test_queued_runs_follow_one_after_the_other_however_each_ends(
        self, harness: StoreHarness, ending: str
    ) -> None:
        store = await harness.fresh()
        ids = await create(store, queued(), queued(priority=9), queued(priority=0, ready_at=LONG_AGO))
        for run_id in ids[1:]:
            run = await read(store, run_id)
            assert (run.state, run.ready_at, run.linked) == (State.PENDING, None, True)
        for run_id in ids:
            worker = await Worker.start(store)
            one = await worker.take()
            assert one.run.id == run_id
            assert one.ref.linked
            assert await get_ids(worker, ROUTE) == []
            await _ENDING[ending](harness, worker, one)
        assert await get_ids(await Worker.start(store), ROUTE) == []

    async def test_who_parks_keeps_the_key(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first, _) = await create(store, queued(), queued())
        worker = await Worker.start(store)
        one = await worker.take()
        await worker.wait(one)
        assert await get_ids(worker, ROUTE) == []
        await store.send_signals([NewSignal(first, "s", "approval", "1")])
        (one,) = (await worker.claim()).runs
        assert one.run.id == first
        await worker.apply(one, change=states.pause(_R, "by hand"))
        assert await get_ids(worker, ROUTE) == []

    async def test_P11_an_end_that_is_sent_again_lets_no_third_one_go(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(queued() for _ in range(3)))
        worker = await Worker.start(store)
        one = await worker.take()
        await worker.apply(one, change=DONE)
        two = await worker.take()
        await worker.apply(one, change=DONE)
        await store.unregister(worker.id)
        late = await Worker.start(store)
        assert await get_ids(late, ROUTE) == [two.run.id]

    async def test_a_delay_counts_in_the_line_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        when = store.clock.now() + timedelta(milliseconds=300)
        first, second, third = await create(store, queued(ready_at=NEVER), queued(ready_at=when), queued())
        worker = await Worker.start(store)
        assert await get_ids(worker, ROUTE) == []
        assert await store.request(first, CANCEL) is State.CANCELLED
        assert (await read(store, second)).ready_at == when
        assert (await read(store, third)).ready_at is None
        await until(store, when)
        assert await get_ids(worker, ROUTE) == [second]

    async def test_who_is_cancelled_in_the_line_leaves_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        _, second, third = await create(store, *(queued() for _ in range(3)))
        worker = await Worker.start(store)
        one = await worker.take()
        assert await store.request(second, CANCEL) is State.CANCELLED
        assert await get_ids(worker, ROUTE) == []
        await worker.apply(one, change=DONE)
        assert await get_ids(worker, ROUTE) == [third]

    async def test_a_pause_in_the_line_does_not_let_it_pass(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        _, second, third = await create(store, *(queued() for _ in range(3)))
        worker = await Worker.start(store)
        one = await worker.take()
        assert await store.request(second, PAUSE) is State.PAUSED
        assert await store.request(second, RESUME) is State.PENDING
        assert await get_ids(worker, ROUTE) == []  # it is still not its turn
        assert await store.request(second, PAUSE) is State.PAUSED
        await worker.apply(one, change=DONE)
        assert await get_ids(worker, ROUTE) == []  # now it is, and it is paused
        assert await store.request(second, RESUME) is State.PENDING
        assert await get_ids(worker, ROUTE) == [second]
        assert (await read(store, third)).ready_at is None

    async def test_a_retried_run_joins_the_line_at_its_end(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, second = await create(store, queued(), queued())
        worker = await Worker.start(store)
        await worker.apply(await worker.take(), record(1), change=states.fail(_R, ERROR))
        (third,) = await create(store, queued())
        two = await worker.take()
        assert two.run.id == second
        assert await store.request(first, RETRY) is State.PENDING
        assert (await read(store, first)).ready_at is None
        assert (await make(store, keyed())).run_id == second
        await worker.apply(two, change=DONE)
        three = await worker.take()
        assert three.run.id == third
        await worker.apply(three, change=DONE)
        one = await worker.take()
        assert (one.run.id, [entry.seq for entry in one.records or ()]) == (first, [1, 2])
        assert (await make(store, keyed())) == Created(first, False, busy=True)

    async def test_a_retried_run_goes_on_at_once_when_the_key_is_free(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        worker = await Worker.start(store)
        await worker.apply(await worker.take(), change=states.fail(_R, ERROR))
        assert await store.request(first, RETRY) is State.PENDING
        assert (await make(store, keyed())).busy
        assert await get_ids(worker, ROUTE) == [first]

    async def test_a_retried_run_that_is_queued_is_cancelled_when_its_turn_comes(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, second = await create(store, queued(), queued())
        worker = await Worker.start(store)
        await worker.apply(await worker.take(), change=states.fail(_R, ERROR))
        two = await worker.take()
        await store.request(first, RETRY)
        assert await store.request(first, CANCEL) is State.PENDING
        assert await get_ids(worker, ROUTE) == []
        assert two.run.id == second
        await worker.apply(two, change=DONE)
        one = await worker.take()
        assert (one.run.id, one.run.requested) == (first, CANCEL)

    async def test_deleting_what_has_ended_concerns_nobody(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, _, third = await create(store, *(queued() for _ in range(3)))
        worker = await Worker.start(store)
        await worker.apply(await worker.take(), change=DONE)
        two = await worker.take()
        assert await store.delete(first)
        assert await get_ids(worker, ROUTE) == []
        await worker.apply(two, change=DONE)
        assert await store.prune(NEVER, 10) == 1
        assert await get_ids(worker, ROUTE) == [third]

    async def test_a_line_of_many_is_worked_off_one_at_a_time_by_several_workers(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        ids = await create(store, *(queued() for _ in range(30)))
        workers = [await Worker.start(stores[n % 2]) for n in range(4)]
        got: list[str] = []
        held = 0

        async def work(worker: Worker) -> None:
            nonlocal held
            while len(got) < len(ids):
                runs = (await worker.claim(5)).runs
                held += len(runs)
                await asyncio.sleep(0)  # the others' turn, also in a store that never waits
                assert held <= 1
                for one in runs:
                    got.append(one.run.id)
                    held -= 1
                    await worker.apply(one, change=DONE)

        await asyncio.gather(*(work(worker) for worker in workers))
        assert got == ids

    async def test_ends_and_triggers_at_the_same_time_leave_nobody_behind(self, harness: StoreHarness) -> None:
        """Whoever joins while the last one ends sees it gone, or is seen by it."""
        store = await harness.fresh()
        stores = [store, await harness.another()]
        worker = await Worker.start(store)
        await create(store, queued())
        for _ in range(25):
            one = await worker.take()
            new = queued()
            await asyncio.gather(worker.apply(one, change=DONE), stores[1].create_runs([new]))
            two = await worker.take()
            assert two.run.id == new.id
            await worker.apply(two, change=RELEASE)

    async def test_a_queued_run_obeys_the_limits_of_its_queue_when_its_turn_comes(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", per_key=1)])
        first, second, other = await create(
            store,
            queued(queue="mail", limit_key="a", ready_at=LONG_AGO),
            queued(queue="mail", limit_key="a"),
            new_run(queue="mail", limit_key="a"),
        )
        worker = await Worker.start(store)
        (one,) = (await worker.claim(routes=[MAIL])).runs
        assert one.run.id == first
        assert await get_ids(worker, MAIL) == []
        await worker.apply(one, change=DONE)
        (two,) = (await worker.claim(routes=[MAIL])).runs
        assert await get_ids(worker, MAIL) == []
        await worker.apply(two, change=DONE)
        (three,) = (await worker.claim(routes=[MAIL])).runs
        assert {two.run.id, three.run.id} == {second, other}

    # -- replace ----------------------------------------------------------------------------------

    async def test_replace_asks_the_others_to_cancel_and_comes_after_them(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, second = await create(store, queued(), queued())
        worker = await Worker.start(store)
        one = await worker.take()
        new = keyed(Policy.REPLACE)
        created = await make(store, new)
        assert (created.run_id, created.created, set(created.replaced)) == (new.id, True, {first, second})
        asked = requests.replacement(new.id)
        assert (await worker.claim(0)).requests == [(first, asked)]
        assert (await read(store, second)).state is State.CANCELLED
        assert [entry.kind for entry in await store.history(second)] == ["request"]
        assert await get_ids(worker, ROUTE) == []
        await worker.apply(one, change=states.cancelled(_R, ERROR))
        assert await get_ids(worker, ROUTE) == [new.id]

    async def test_replace_of_a_run_that_has_not_started_is_ready_at_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        news = [keyed(Policy.REPLACE) for _ in range(3)]
        for before, new in zip([first, *(new.id for new in news)], news, strict=False):
            assert await make(store, new) == Created(new.id, True, replaced=(before,))
        assert await get_ids(await Worker.start(store), ROUTE) == [news[-1].id]

    async def test_replace_where_nobody_is_active_is_a_plain_trigger(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        new = keyed(Policy.REPLACE)
        for _ in range(2):
            created = await make(store, new)
            assert created == Created(new.id, True)
        assert await get_ids(await Worker.start(store), ROUTE) == [new.id]

    @pytest.mark.parametrize("resting", ["asleep", "waiting", "paused"])
    async def test_replace_wakes_a_run_that_rests(self, harness: StoreHarness, resting: str) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        worker = await Worker.start(store)
        one = await worker.take()
        changes = {
            "asleep": states.park(_R, ready_at=NEVER, wakes=one.wakes),
            "waiting": states.park(_R, ready_at=None, wakes=one.wakes, waiting=True),
            "paused": states.pause(_R, "by hand"),
        }
        await worker.apply(one, change=changes[resting])
        new = keyed(Policy.REPLACE)
        assert await make(store, new) == Created(new.id, True, replaced=(first,))
        one = await worker.take()
        assert (one.run.id, one.run.requested) == (first, requests.replacement(new.id))
        await worker.apply(one, change=states.cancelled(_R, ERROR))
        assert await get_ids(worker, ROUTE) == [new.id]

    async def test_P11_replace_sent_again_asks_nobody(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        worker = await Worker.start(store)
        one = await worker.take()
        new = keyed(Policy.REPLACE, request="r1")
        assert await make(store, new) == Created(new.id, True, replaced=(first,))
        (later,) = await create(store, queued())
        before = await snapshot(store, first, new.id, later)
        assert await make(store, new) == Created(new.id, True, replaced=(first,))
        assert await snapshot(store, first, new.id, later) == before
        await worker.apply(one, change=DONE)
        created = await make(store, new)
        assert created == Created(new.id, True)

    async def test_who_was_asked_before_keeps_its_first_reason(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (first,) = await create(store, keyed())
        worker = await Worker.start(store)
        await worker.take()
        mine = Request(Verb.CANCEL, "mine", "alice")
        await store.request(first, mine)
        new = keyed(Policy.REPLACE)
        assert await make(store, new) == Created(new.id, True, replaced=(first,))
        assert (await read(store, first)).requested == mine

    async def test_P37_replacing_from_all_sides_leaves_one(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        news = [keyed(Policy.REPLACE) for _ in range(30)]
        answers = await asyncio.gather(*(stores[n % 2].create_runs([new]) for n, new in enumerate(news)))
        assert all(answer.created for (answer,) in answers)
        states_ = [run.state for run in await store.get_runs([new.id for new in news])]
        assert sorted(states_) == [State.CANCELLED] * 29 + [State.PENDING]
        worker = await Worker.start(store)
        async with asyncio.timeout(20):  # a turn may be passed on a little later, with one of the next claims
            while not (found := await get_ids(worker, ROUTE)):  # noqa: ASYNC110 - a claim is what passes it on
                await asyncio.sleep(0.1)
        assert len(found) == 1
