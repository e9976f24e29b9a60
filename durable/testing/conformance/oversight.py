"""Looking after the system: who works, what there is to do, who may ask, and what is wrong."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from durable import states
from durable.model import Also, Awaited, Kind, Policy, Queue, Rate, RunFilter, State
from durable.reports import Finding, Scope, StoredToken, Token
from durable.store import EFFECT_TOPIC, Route, Store
from durable.testing.conformance.harness import (
    AT,
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
from durable.testing.conformance.situations import LIVE, SITUATIONS, reach
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING


class OversightConformance:
    # -- workers ----------------------------------------------------------------------------------

    async def test_workers_are_shown_with_what_they_said_and_what_they_hold(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        assert await store.workers() == []
        await create(store, *(new_run() for _ in range(3)))
        before, busy, idle = store.clock.now(), Worker(store, new_id()), Worker(store, new_id())
        await store.register(busy.id, 60.0, "host-1", 4711)
        await store.register(idle.id, 30.0)
        kept, done, parked = (await busy.claim()).runs
        await busy.apply(done, change=states.complete(_R, "1"))
        await busy.wait(parked)
        first, second = await store.workers()
        assert (first.id, first.host, first.pid, first.alive, first.running) == (busy.id, "host-1", 4711, True, 1)
        assert (second.id, second.host, second.pid, second.alive, second.running) == (idle.id, "", 0, True, 0)
        assert timedelta(seconds=55) < first.lease_until - before < timedelta(seconds=65)
        assert timedelta(seconds=-5) < first.started_at - before < timedelta(seconds=5)
        assert (await read(store, kept.run.id)).owner == busy.id

    async def test_a_worker_is_shown_until_it_leaves_or_its_end_is_found(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        dead, leaving = Worker(store, new_id()), Worker(store, new_id())
        for worker in (dead, leaving):
            await store.register(worker.id, 60.0)
        await dead.take()
        await harness.expire(dead.id)
        assert [(one.alive, one.running) for one in await store.workers()] == [(False, 1), (True, 0)]
        await store.reap()
        assert [one.id for one in await store.workers()] == [leaving.id]
        taker = await Worker.start(store)
        assert (await taker.take()).run.id == run_id
        await store.unregister(leaving.id)
        assert [(one.id, one.running) for one in await store.workers()] == [(taker.id, 1)]

    async def test_a_worker_that_registers_again_keeps_its_beginning(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker = str(uuid4())
        await store.register(worker, 60.0, "host-1", 1)
        (first,) = await store.workers()
        await store.register(worker, 60.0, "host-1", 1)
        (again,) = await store.workers()
        assert (again.started_at, again.host, again.pid) == (first.started_at, "host-1", 1)

    # -- the census -------------------------------------------------------------------------------

    async def test_a_census_of_nothing_has_the_time(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        census = await store.census()
        assert (census.runs, census.queues) == ({}, {})
        assert abs(census.at - store.clock.now()) < timedelta(seconds=5)

    @pytest.mark.parametrize("name", sorted(SITUATIONS))
    async def test_a_run_counts_in_every_situation_but_its_end(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        await create(store, new_run("other"))
        state = SITUATIONS[name].state
        expected = {("order", state): 1} if name in LIVE else {}
        assert dict((await store.census()).runs) == {**expected, ("other", State.PENDING): 1}
        # What waits in this table has called no wait: nothing would wake it.
        assert (await _of(store, "waiting")).count == (name == "waiting"), run_id

    async def test_the_census_follows_a_run_through_its_life(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        worker = await Worker.start(store)

        async def counted() -> dict[tuple[str, State], int]:
            return dict((await store.census()).runs)

        assert await counted() == {("order", State.PENDING): 1}
        one = await worker.take()
        assert await counted() == {("order", State.RUNNING): 1}
        await worker.wait(one, record(1, "approval", Kind.WAIT, None))
        assert await counted() == {("order", State.WAITING): 1}
        await send(store, run_id, "s1")
        await worker.apply(await worker.take(), change=states.pause(_R, "why"))
        assert await counted() == {("order", State.PAUSED): 1}

    async def test_the_depth_of_a_queue_is_what_could_be_claimed_now(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        now = store.clock.now()
        mails = [new_run(queue="mail", ready_at=now - timedelta(seconds=seconds)) for seconds in (90, 30, 60)]
        await create(store, *mails, new_run(queue="mail", ready_at=NEVER), new_run(queue="later", ready_at=NEVER))
        queues = (await store.census()).queues
        assert queues["mail"].ready == 3
        assert 89 < queues["mail"].age < 110  # the client's idea of the time may be ahead by a round trip
        assert queues["later"] == (0, 0.0)
        assert "default" not in queues
        worker = await Worker.start(store)
        await worker.claim(routes=[Route("order", "1", "mail")])
        assert (await store.census()).queues["mail"] == (0, 0.0)

    async def test_versions_count_together_and_workflows_apart(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, new_run("order", "1"), new_run("order", "2"), new_run("mail", "1", queue="mail"))
        census = await store.census()
        assert dict(census.runs) == {("order", State.PENDING): 2, ("mail", State.PENDING): 1}
        assert {name: depth.ready for name, depth in census.queues.items()} == {"default": 2, "mail": 1}

    # -- tokens -----------------------------------------------------------------------------------

    async def test_a_token_is_found_by_its_prefix_and_listed_by_its_name(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        one, two = _token("ops", Scope.ADMIN), _token("ci", Scope.READ, Scope.READ_PAYLOAD, expires_at=NEVER)
        assert await store.put_token(one)
        assert await store.put_token(two)
        assert await store.tokens() == [two, one]
        assert await store.find_tokens(one.prefix) == [one]
        assert await store.find_tokens(two.prefix) == [two]
        assert await store.find_tokens("0" * 16) == []

    async def test_a_token_that_is_sent_again_is_there_and_another_of_its_name_is_not(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        one = _token("ops", Scope.ADMIN)
        assert await store.put_token(one)
        assert await store.put_token(one)
        assert not await store.put_token(_token("ops", Scope.READ))
        assert await store.tokens() == [one]

    async def test_a_token_that_is_deleted_is_gone_everywhere(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        one, two = _token("ops", Scope.ADMIN), _token("ci", Scope.READ)
        await store.put_token(one)
        await store.put_token(two)
        assert await other.delete_token("ops")
        assert not await store.delete_token("ops")
        assert await store.find_tokens(one.prefix) == []
        assert await store.tokens() == [two]
        assert await store.put_token(_token("ops", Scope.READ))  # the name is free again

    async def test_P51_a_hostile_name_is_data(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        hostile = """x'; DROP TABLE tokens; -- "%s$1\\ """
        one = _token(hostile, Scope.READ)
        assert await store.put_token(one)
        assert not await store.delete_token("x")
        assert await store.tokens() == [one]
        assert await store.delete_token(hostile)

    # -- one run alone ----------------------------------------------------------------------------

    async def test_one_run_is_claimed_past_all_others(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run(priority=priority) for priority in (0, 5, 9)))
        worker = await Worker.start(store)
        answer = await store.claim_run(worker.id, ROUTE, ids[2], str(uuid4()), {})
        assert [one.run.id for one in answer.runs] == [ids[2]]
        assert (await worker.claim()).runs != []  # the others are where they were
        await worker.apply(answer.runs[0], record(1), change=states.complete(_R, "1"))
        assert (await read(store, ids[2])).state is State.COMPLETED

    async def test_P11_a_claim_of_one_run_that_is_sent_again_gives_the_same(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id, _ = await create(store, new_run(), new_run())
        worker, batch = await Worker.start(store), str(uuid4())
        first = await store.claim_run(worker.id, ROUTE, run_id, batch, {})
        again = await store.claim_run(worker.id, ROUTE, run_id, batch, {})
        assert [one.ref for one in again.runs] == [one.ref for one in first.runs]
        assert len(await store.owned(worker.id)) == 1

    async def test_one_run_comes_with_its_history_and_its_signals(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.wait(one, record(1, "approval", Kind.WAIT, None))
        await send(store, one.run.id, "s1")
        other = await Worker.start(store)
        (again,) = (await store.claim_run(other.id, ROUTE, one.run.id, str(uuid4()), {})).runs
        assert [entry.key for entry in again.records or ()] == ["approval"]
        assert [signal.id for signal in again.signals] == ["s1"]

    @pytest.mark.parametrize("name", sorted(SITUATIONS))
    async def test_one_run_is_claimed_exactly_when_a_claim_of_all_would_take_it(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        due = (await read(store, run_id)).ready_at
        worker = await Worker.start(store)
        taken = (await store.claim_run(worker.id, ROUTE, run_id, str(uuid4()), {})).runs
        assert len(taken) == (due is not None and due <= store.clock.now())

    async def test_another_route_and_a_run_that_is_not_there_give_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        worker = await Worker.start(store)
        for route in (Route("order", "2"), Route("mail", "1"), Route("order", "1", "mail")):
            assert (await store.claim_run(worker.id, route, run_id, str(uuid4()), {})).runs == []
        assert (await store.claim_run(worker.id, ROUTE, new_id(), str(uuid4()), {})).runs == []
        gone = str(uuid4())  # never registered
        assert (await store.claim_run(gone, ROUTE, run_id, str(uuid4()), {})).runs == []
        assert (await read(store, run_id)).owner is None

    async def test_one_run_obeys_the_limits_of_its_queue(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues(
            [Queue("mail", concurrency=1), Queue("keyed", per_key=1), Queue("slow", rate=Rate(1, 999))]
        )
        worker = await Worker.start(store)
        for queue, key in (("mail", None), ("keyed", "k"), ("slow", None)):
            route = Route("order", "1", queue)
            ids = await create(store, *(new_run(queue=queue, limit_key=key) for _ in range(2)))
            first, second = [(await store.claim_run(worker.id, route, one, str(uuid4()), {})).runs for one in ids]
            assert ([one.run.id for one in first], second) == ([ids[0]], [])
            if queue != "slow":
                await worker.apply(first[0], change=states.complete(_R, "1"))
                assert (await store.claim_run(worker.id, route, ids[1], str(uuid4()), {})).runs != []

    async def test_a_suspect_is_claimed_alone(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, new_run(), new_run())
        for _ in range(2):
            dying = await Worker.start(store)
            await dying.claim()
            await harness.expire(dying.id)
            await store.reap()
        worker = await Worker.start(store)
        assert len((await store.claim_run(worker.id, ROUTE, ids[0], str(uuid4()), {})).runs) == 1
        assert (await store.claim_run(worker.id, ROUTE, ids[1], str(uuid4()), {})).runs == []
        other = await Worker.start(store)
        assert len((await store.claim_run(other.id, ROUTE, ids[1], str(uuid4()), {})).runs) == 1

    # -- what is wrong ----------------------------------------------------------------------------

    async def test_a_store_that_is_well_has_nothing_to_repair(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        findings = await store.examine()
        assert {one.check for one in findings} >= {"waiting", "leases"}
        assert len({one.check for one in findings}) == len(findings)
        assert not any(one.repairable for one in findings)
        assert list(await store.repair()) == []

    async def test_no_run_that_has_a_reason_to_wait_is_called_stranded(self, harness: StoreHarness) -> None:
        """A turn, a place, a signal, an event, a child, an effect that another makes."""
        store = await harness.fresh()
        await store.put_queues([Queue("keyed", per_key=1)])
        keyed = [new_run("keyed", queue="keyed", limit_key="k") for _ in range(2)]
        lined = [new_run("lined", concurrency_key="k", policy=Policy.QUEUE) for _ in range(2)]
        await create(store, *keyed, *lined, *(new_run("waits") for _ in range(4)))
        worker = await Worker.start(store)
        await worker.claim(routes=[Route("keyed", "1", "keyed"), Route("lined", "1")])
        signalled, parent, renamed, shares = (await worker.claim(routes=[Route("waits", "1")])).runs
        assert (await store.take_effect(worker.id, signalled.ref, "effect", "s")) is not None
        effect = Also(awaited=[Awaited(EFFECT_TOPIC, "effect", store.clock.now())])
        await worker.wait(shares, record(1), also=effect)
        await worker.wait(signalled, record(1, "a/approval#2", Kind.WAIT, None))
        await worker.wait(parent, record(1, "ship", Kind.CALL, new_id()))
        ended = [record(2, "first/woke", Kind.WOKE, "1"), record(3, "100%_x", Kind.WAIT, None, due_at=NEVER)]
        await worker.wait(renamed, record(1, "first", Kind.WAIT, None), *ended)
        assert (await _of(store, "waiting")).severity == "ok"
        before = await store.list_runs(RunFilter(), 100, None)
        await store.repair()
        assert await store.list_runs(RunFilter(), 100, None) == before

    @pytest.mark.parametrize("state", [State.PENDING, State.RUNNING, State.SLEEPING, State.WAITING, State.COMPENSATING])
    async def test_a_run_that_nothing_would_wake_is_found_and_goes_on(
        self, harness: StoreHarness, state: State
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        woke = [record(1, "nap", Kind.WAIT, None), record(2, "nap/woke", Kind.WOKE, "1")]
        if state is State.COMPENSATING:
            await worker.apply(one, *woke, change=states.compensate(_R, ERROR))
        else:
            await worker.apply(one, *woke)
        await harness.strand(one.run.id, state)
        finding = await _of(store, "waiting")
        assert (finding.severity, finding.repairable, finding.count) == ("error", True, 1)
        assert one.run.id in finding.message
        assert any("1 run " in line for line in await store.repair())
        assert (await _of(store, "waiting")).severity == "ok"
        again = await (await Worker.start(store)).take()
        assert again.run.id == one.run.id
        assert again.run.state is (State.COMPENSATING if state is State.COMPENSATING else State.RUNNING)

    async def test_a_paused_run_is_left_alone(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        _, one = await claimed(store)
        await harness.strand(one.run.id, State.PAUSED)
        assert (await _of(store, "waiting")).severity == "ok"
        assert list(await store.repair()) == []
        assert (await read(store, one.run.id)).state is State.PAUSED

    async def test_leases_that_nobody_takes_over_are_found_and_their_runs_go_on(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, new_run(), new_run())
        dead, living = await Worker.start(store), await Worker.start(store)
        await dead.claim()
        assert (await _of(store, "leases")).severity == "ok"
        await harness.expire(dead.id)
        finding = await _of(store, "leases")
        assert (finding.severity, finding.repairable, finding.count) == ("warning", True, 1)
        assert "2 runs" in finding.message
        assert any("2 runs" in line for line in await store.repair())
        assert (await _of(store, "leases")).severity == "ok"
        assert len((await living.claim()).runs) == 2


def _token(name: str, *scopes: Scope, expires_at: datetime | None = None) -> StoredToken:
    digest = hashlib.sha256(f"{name} {uuid4()}".encode()).hexdigest()
    return StoredToken(Token(name, frozenset(scopes), AT, expires_at), digest)


async def _of(store: Store, check: str) -> Finding:
    (found,) = [one for one in await store.examine() if one.check == check]
    return found
