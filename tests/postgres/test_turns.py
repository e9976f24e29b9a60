"""Concurrency keys and debouncing where transactions meet: many connections, locks that others hold, lost races."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from durable import states
from durable.model import Created, Debounce, NewRun, Outcome, Policy, Request, RunWrite, State, Verb
from durable.stores.postgres import PostgresStore, connections, sessions
from durable.stores.postgres.wire import Call, Row
from durable.testing.conformance.harness import ROUTE, Worker, claimed, create, new_run, read, record
from tests.postgres.conftest import Postgres

_COMPLETE = states.complete(State.RUNNING, "1")
_OPEN = "SELECT EXISTS (SELECT FROM durable.runs WHERE ended_at IS NULL)"
_WAITS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s)"


def keyed(policy: Policy = Policy.QUEUE, key: str = "k", **other: Any) -> NewRun:
    return new_run(concurrency_key=key, policy=policy, **other)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """SQLSTATEs of transactions that lost against another one; each is an error instead of a repetition."""
    found: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        if (state := getattr(error, "sqlstate", None)) in ("40001", "40P01"):
            found.append(state)
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    return found


async def test_P37_200_callers_make_one_run_and_learn_its_id(postgres: Postgres, lost: list[str | None]) -> None:
    stores = [await postgres.fresh()] + [await postgres.another(pool_size=2) for _ in range(7)]
    policies = [Policy.REJECT, Policy.EXISTING]
    answers = await asyncio.gather(
        *(stores[number % 8].create_runs([keyed(policies[number % 2])]) for number in range(200))
    )
    found = [answer for [answer] in answers]
    (made,) = [answer.run_id for answer in found if answer.created]
    assert {answer.run_id for answer in found} == {made}
    assert [answer.busy for answer in found].count(True) in (99, 100)
    assert postgres.rows("SELECT id::text FROM durable.runs") == [(made,)]
    assert lost == []


async def test_P37_a_batch_of_one_key_makes_one_run_and_leaves_no_key_of_the_others(postgres: Postgres) -> None:
    store = await postgres.fresh()
    runs = [new_run(concurrency_key="k", key=f"order {number}") for number in range(5)]
    first, *others = await store.create_runs(runs)
    assert first == Created(runs[0].id, True)
    assert others == [Created(runs[0].id, False, busy=True)] * 4
    assert postgres.rows("SELECT key FROM durable.keys") == [("order 0",)]


async def test_P37_one_run_at_a_time_from_eight_workers_and_no_deadlock(
    postgres: Postgres, lost: list[str | None]
) -> None:
    """Triggers of all policies, ends, cancellations, pauses, reapers: at most one run of a key executes, all end."""
    stores = [await postgres.fresh()] + [await postgres.another(pool_size=2) for _ in range(7)]
    keys = [f"k{number}" for number in range(3)]
    executing: dict[str, str] = {}
    ended, stop = 0, asyncio.Event()

    async def work(store: PostgresStore) -> None:
        nonlocal ended
        worker = await Worker.start(store)
        while not stop.is_set():
            runs = (await worker.claim(5)).runs
            for run in runs:
                key = run.run.concurrency_key or ""
                assert executing.setdefault(key, run.run.id) == run.run.id
            await asyncio.sleep(0)
            for run in runs:
                del executing[run.run.concurrency_key or ""]
            writes = [RunWrite(run.ref, [record(1, f"{run.run.claim}")], _COMPLETE) for run in runs]
            if writes:
                assert set(await worker.commit(*writes)) == {Outcome.APPLIED}
            ended += len(runs)

    async def trigger(store: PostgresStore, number: int) -> None:
        policy = list(Policy)[number % 4]
        batch = [keyed(policy, key) for key in (keys if number % 2 else reversed(keys))]
        for answer in await store.create_runs(batch):
            if answer.created and number % 5 == 0:
                await store.request(answer.run_id, Request(Verb.PAUSE, id=str(uuid4())))
                await store.request(answer.run_id, Request(Verb.RESUME, id=str(uuid4())))
            elif answer.created and number % 7 == 0:
                await store.request(answer.run_id, Request(Verb.CANCEL, id=str(uuid4())))

    workers = [asyncio.create_task(work(store)) for store in stores[:4]]
    async with asyncio.timeout(60):
        for start in range(0, 48, 8):
            await asyncio.gather(*(trigger(stores[number % 8], number) for number in range(start, start + 8)))
        while await asyncio.to_thread(postgres.beside, _OPEN) == [(True,)]:
            continue
    stop.set()
    await asyncio.gather(*workers)
    assert lost == []
    worker = await Worker.start(stores[0])
    left = "SELECT EXISTS (SELECT FROM durable.turns) OR EXISTS (SELECT FROM durable.turn_keys)"
    async with asyncio.timeout(10):  # what nobody could pass on is found within a second
        while postgres.rows(left) == [(True,)]:
            assert (await worker.claim()).runs == []
    assert postgres.rows("SELECT count(*) FROM durable.passed") == [(0,)]


async def test_P37_an_end_does_not_wait_for_a_trigger_and_the_next_claim_passes_the_key_on(postgres: Postgres) -> None:
    """A transaction of a user's own that has not ended holds the key; it saw the run before it ended."""
    store = await postgres.fresh()
    worker, one = await claimed(store, concurrency_key="k")
    next_ = keyed()
    await create(store, next_)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.turn_keys FOR UPDATE")
        async with asyncio.timeout(4):  # less than any lock_timeout
            await worker.apply(one, change=_COMPLETE)
            assert (await worker.claim()).runs == []
    assert [run.run.id for run in (await worker.claim()).runs] == [next_.id]


@pytest.mark.parametrize("unasked", [False, True])
async def test_P37_another_process_finds_what_was_left(postgres: Postgres, unasked: bool) -> None:
    store, second = await postgres.fresh(), await postgres.another()
    worker, one = await claimed(store, concurrency_key="k")
    other = await Worker.start(second)
    assert (await other.claim()).runs == []
    next_ = keyed()
    await create(store, next_)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.turn_keys FOR UPDATE")
        await worker.apply(one, change=_COMPLETE)
    async with asyncio.timeout(10):  # a process looks once a second
        while not (runs := (await other.claim(unasked=unasked)).runs):
            continue
    assert [run.run.id for run in runs] == [next_.id]


async def test_P37_a_trigger_waits_for_another_one_with_the_key_and_sees_its_run(postgres: Postgres) -> None:
    store = await postgres.fresh()
    other = str(uuid4())
    with postgres.sql.transaction():
        postgres.rows("INSERT INTO durable.turn_keys VALUES (now(), 0, 'order', 'k')")
        creating = asyncio.create_task(store.create_runs([keyed(Policy.EXISTING)]))
        await postgres.until(_WAITS, f'%{postgres.schema}".turn_keys%')
        postgres.rows("INSERT INTO durable.runs (shard, id, concurrency_key) VALUES (0, %s, 'k')", other)
        postgres.rows("INSERT INTO durable.turns VALUES (DEFAULT, %s, now(), 0, false, false, 'order', 'k')", other)
    assert await creating == [Created(other, False)]


async def test_P37_a_retried_run_waits_for_the_one_that_is_active(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store, concurrency_key="k")
    await worker.apply(one, change=states.fail(State.RUNNING, "{}"))
    active = keyed()
    await create(store, active)
    assert await store.request(one.run.id, Request(Verb.RETRY)) is State.PENDING
    assert (await read(store, one.run.id)).ready_at is None
    (two,) = (await worker.claim()).runs
    assert two.run.id == active.id
    await worker.apply(two, change=_COMPLETE)
    assert [run.run.id for run in (await worker.claim()).runs] == [one.run.id]


# -- debouncing -----------------------------------------------------------------------------------


async def test_P37_debounced_triggers_from_eight_connections_make_one_run(
    postgres: Postgres, lost: list[str | None]
) -> None:
    stores = [await postgres.fresh()] + [await postgres.another(pool_size=2) for _ in range(7)]
    debounce = Debounce("cart", 3600)
    answers = await asyncio.gather(
        *(stores[number % 8].create_runs([new_run(debounce=debounce, input=f"{number}")]) for number in range(80))
    )
    (made,) = {answer.run_id for [answer] in answers}
    assert [answer.created for [answer] in answers].count(True) == 1
    assert postgres.rows("SELECT id::text FROM durable.runs") == [(made,)]
    assert lost == []


async def test_P37_a_trigger_that_meets_the_claim_of_its_run_makes_another_one(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not wait for the run that is being claimed, and is not lost in it."""
    store = await postgres.fresh()
    first, second = (new_run(debounce=Debounce("cart", 0)) for _ in range(2))
    await create(store, first)
    tried, transaction = asyncio.Event(), store._use.create.transaction

    async def noticed(*calls: Call) -> list[list[Row]]:
        answers = await transaction(*calls)
        tried.set()
        return answers

    monkeypatch.setattr(store._use.create, "transaction", noticed)
    with postgres.sql.transaction():
        postgres.rows("UPDATE durable.runs SET started_at = now(), ready_at = NULL WHERE id = %s", first.id)
        creating = asyncio.create_task(store.create_runs([second]))
        async with asyncio.timeout(10):
            await tried.wait()
    assert await creating == [Created(second.id, True)]


async def test_P52_deleting_a_run_forgets_who_was_merged_into_it(postgres: Postgres) -> None:
    store = await postgres.fresh()
    first, *others = (new_run(debounce=Debounce("cart", 0), version=ROUTE.version) for _ in range(3))
    await store.create_runs([first, *others])
    worker = await Worker.start(store)
    await worker.apply(await worker.take(), change=_COMPLETE)
    assert await store.delete(first.id)
    for table in ("debounces", "merged"):
        assert postgres.rows(f"SELECT count(*) FROM durable.{table}") == [(0,)]
