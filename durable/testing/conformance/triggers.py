"""Creating runs: keys, run ids that users chose, delays, and answers that do not change when asked again."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

from durable import states
from durable.model import Created, State
from durable.testing.conformance.harness import ROUTE, StoreHarness, Worker, claimed, create, new_run, read, until


class TriggerConformance:
    async def test_a_new_run_is_pending_and_shows_what_was_given(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        new = new_run(key="k", tags={"tenant": "acme", "plan": "gold"}, input='{"n":  1}')
        before = store.clock.now()
        assert await store.create_runs([new]) == [Created(new.id, True)]
        run = await read(store, new.id)
        assert (run.workflow, run.version, run.key, run.tags) == ("order", "1", "k", {"tenant": "acme", "plan": "gold"})
        assert (run.input, run.seed, run.state) == ('{"n":  1}', "5eed", State.PENDING)
        assert (run.claim, run.takeovers, run.owner, run.reason) == (0, 0, None, None)
        assert (run.result, run.error, run.started_at, run.ended_at) == (None, None, None, None)
        assert run.ready_at == run.created_at
        assert run.created_at.utcoffset() == timedelta(0)
        assert abs(run.created_at - before) < timedelta(seconds=5)
        assert await store.history(new.id) == []

    async def test_a_run_may_have_no_input(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, new_run(input=None))
        assert (await read(store, run_id)).input is None

    async def test_what_is_stored_does_not_change_with_the_callers_objects(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        tags = {"tenant": "acme"}
        (run_id,) = await create(store, new_run(tags=tags))
        tags["tenant"] = "other"
        assert (await read(store, run_id)).tags == {"tenant": "acme"}

    async def test_answers_stand_in_the_order_of_the_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, old := new_run(key="b"))
        batch = [new_run(), new_run(key="b"), new_run(key="c"), new_run(key="b", input_hash="other")]
        answers = await store.create_runs(batch)
        assert [(a.run_id, a.created, a.conflict is None) for a in answers] == [
            (batch[0].id, True, True),
            (old.id, False, True),
            (batch[2].id, True, True),
            (old.id, False, False),
        ]
        assert await store.create_runs([]) == []

    async def test_P11_create_sent_again_gives_the_same_answer(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        batch = [new_run(), new_run(key="k"), new_run(request="r1"), new_run(key="q", request="r2")]
        answers = await store.create_runs(batch)
        assert [answer.created for answer in answers] == [True] * 4
        worker = await Worker.start(store)
        assert len((await worker.claim()).runs) == 4
        assert await store.create_runs(batch) == answers
        assert (await worker.claim()).runs == []

    # -- keys -------------------------------------------------------------------------------------

    async def test_P36_200_concurrent_triggers_with_one_key_are_one_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        answers = await asyncio.gather(*(stores[n % 2].create_runs([new_run(key="one")]) for n in range(200)))
        created = [answer for (answer,) in answers if answer.created]
        assert len(created) == 1
        assert {answer for (answer,) in answers if not answer.created} == {Created(created[0].run_id, False)}
        assert len((await (await Worker.start(store)).claim()).runs) == 1

    async def test_P36_one_key_many_times_in_one_batch_is_one_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        batch = [new_run(key="one") for _ in range(50)]
        answers = await store.create_runs(batch)
        (created,) = (answer for answer in answers if answer.created)
        assert {answer.run_id for answer in answers} == {created.run_id}
        assert await store.find_key("order", "one") == created.run_id
        assert len((await (await Worker.start(store)).claim()).runs) == 1

    async def test_P36_concurrent_batches_with_keys_in_opposite_orders_all_answer(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        stores = [store, await harness.another()]
        keys = [f"k{n}" for n in range(40)]
        answers = await asyncio.gather(
            *(
                stores[n % 2].create_runs([new_run(key=key) for key in (keys if n % 4 < 2 else reversed(keys))])
                for n in range(8)
            )
        )
        assert sum(answer.created for batch in answers for answer in batch) == len(keys)
        assert len({answer.run_id for batch in answers for answer in batch}) == len(keys)

    async def test_P36_the_same_key_with_another_input_is_a_conflict(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, new_run(key="k"))
        (answer,) = await store.create_runs([new_run(key="k", input_hash="other")])
        assert (answer.run_id, answer.created) == (run_id, False)
        assert answer.conflict

    async def test_a_key_belongs_to_its_workflow(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        order, refund = await create(store, new_run(key="k"), new_run("refund", key="k"))
        assert await store.find_key("order", "k") == order
        assert await store.find_key("refund", "k") == refund
        assert await store.find_key("order", "K") is None
        assert await store.find_key("other", "k") is None

    async def test_a_key_still_names_its_run_when_that_has_ended(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store, key="k")
        await worker.apply(one, change=states.complete(State.RUNNING, "1"))
        assert await store.create_runs([new_run(key="k")]) == [Created(one.run.id, False)]
        assert (await worker.claim()).runs == []

    async def test_a_key_outlives_a_deploy_of_another_version(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, new_run(key="k"))
        assert await store.create_runs([new_run(version="2", key="k")]) == [Created(run_id, False)]

    # -- run ids that the user chose --------------------------------------------------------------

    async def test_a_chosen_run_id_that_exists_is_not_created_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first = new_run(request="r1")
        assert await store.create_runs([first]) == [Created(first.id, True)]
        assert await store.create_runs([replace(first, request="r2")]) == [Created(first.id, False)]
        assert await store.create_runs([first]) == [Created(first.id, True)]

    async def test_a_chosen_run_id_with_another_input_or_workflow_is_a_conflict(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first = new_run(request="r1")
        await create(store, first)
        for other in (replace(first, request="r2", input_hash="h2"), replace(first, request="r3", workflow="refund")):
            (answer,) = await store.create_runs([other])
            assert (answer.run_id, answer.created) == (first.id, False)
            assert answer.conflict
        assert (await read(store, first.id)).workflow == "order"

    async def test_a_key_that_is_taken_wins_over_a_new_run_id(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (holder,) = await create(store, new_run(key="k"))
        chosen = new_run(key="k", request="r1")
        assert await store.create_runs([chosen]) == [Created(holder, False)]
        assert await store.get_runs([chosen.id]) == []

    # -- later ------------------------------------------------------------------------------------

    async def test_a_delay_counts_from_the_stores_now(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        when = store.clock.now() + timedelta(days=3, microseconds=7)
        at, delayed = await create(store, new_run(ready_at=when), new_run(delay=90.0))
        assert (await read(store, at)).ready_at == when
        run = await read(store, delayed)
        assert run.ready_at == run.created_at + timedelta(seconds=90)
        assert run.state is State.PENDING
        answer = await (await Worker.start(store)).claim()
        assert (list(answer.runs), answer.next_ready_at) == ([], run.ready_at)

    async def test_P26_a_delayed_run_is_never_claimed_early(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run(delay=0.02 * n) for n in range(10)))
        due = {run.id: run.ready_at for run in await store.get_runs(ids)}
        worker = await Worker.start(store)
        taken: list[str] = []
        while len(taken) < len(ids):
            answer = await worker.claim()
            for one in answer.runs:
                ready_at = due[one.run.id]
                assert ready_at is not None
                assert one.run.started_at is not None
                assert one.run.started_at >= ready_at
                assert store.clock.now() >= ready_at
                taken.append(one.run.id)
            if answer.next_ready_at is not None:
                await until(store, answer.next_ready_at)
        assert taken == ids
        assert (await worker.claim(routes=[ROUTE])).next_ready_at is None
