"""Signals, children and their wakes under real concurrency on Postgres: nothing is lost, given twice, or waited for."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from durable import states
from durable.model import Also, ClaimedRun, Kind, NewSignal, Outcome, RunWrite, Sent, State
from durable.stores.postgres import PostgresStore, connections, sessions
from durable.stores.postgres.wire import Call
from durable.testing.conformance.harness import (
    NEVER,
    Worker,
    claimed,
    create,
    ids_of,
    new_id,
    new_run,
    read,
    record,
    send,
)
from durable.testing.conformance.situations import CANCEL
from durable.testing.conformance.writes import ERROR
from tests.postgres.conftest import Postgres

_R = State.RUNNING
_Serve = Callable[[ClaimedRun], RunWrite]


async def _work(store: PostgresStore, serve: _Serve, until: Callable[[], bool]) -> None:
    """Claim, and write what ``serve`` says of each run, until there is no more to do. Nothing else wakes a run."""
    worker = await Worker.start(store)
    while not until():
        answer = await worker.claim(limit=10)
        if answer.runs:
            assert set(await worker.commit(*(serve(one) for one in answer.runs))) == {Outcome.APPLIED}


def _parked(one: ClaimedRun, also: Also, *calls: Any) -> RunWrite:
    change = states.park(_R, ready_at=None, wakes=one.wakes, waiting=True)
    woke = record(1000 * one.run.claim, f"{one.run.claim}/woke", Kind.WOKE)
    return RunWrite(one.ref, [woke, *calls], change, also)


# -- races ----------------------------------------------------------------------------------------


async def test_P31_signals_against_parks_on_many_connections_are_all_given_once(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), *[await postgres.another() for _ in range(3)]]
    run_ids = await create(stores[0], *(new_run() for _ in range(20)))
    got: dict[str, list[str]] = defaultdict(list)
    ended = 0

    def serve(one: ClaimedRun) -> RunWrite:
        nonlocal ended
        got[one.run.id] += ids_of(one.signals)
        also = Also(consumed=ids_of(one.signals))
        if len(got[one.run.id]) < 12:
            return _parked(one, also)
        ended += 1
        return RunWrite(one.ref, [record(1)], states.complete(_R, "1"), also)

    async def signal(store: PostgresStore, batch: list[NewSignal]) -> None:
        random.Random(len(batch)).shuffle(batch)
        while batch:
            some = [batch.pop() for _ in range(min(len(batch), random.Random(len(batch)).randrange(1, 6)))]
            assert await store.send_signals(some) == [Sent.ACCEPTED] * len(some)

    signals = [NewSignal(run_id, f"s{n}", "approval", str(n)) for n in range(12) for run_id in run_ids]
    async with asyncio.timeout(60):
        await asyncio.gather(
            *(_work(store, serve, lambda: ended == 20) for store in stores[:3]),
            *(signal(store, signals[n::4]) for n, store in enumerate(stores)),
        )
    assert {run_id: sorted(ids) for run_id, ids in got.items()} == {
        run_id: sorted(f"s{n}" for n in range(12)) for run_id in run_ids
    }
    assert postgres.rows("SELECT count(*) FROM durable.signals WHERE NOT consumed") == [(0,)]


async def test_P34_ends_of_children_against_parks_of_their_parents_on_many_connections(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), *[await postgres.another() for _ in range(2)]]
    run_ids = await create(stores[0], *(new_run() for _ in range(12)))
    heard: dict[str, list[str]] = defaultdict(list)
    called: dict[str, list[str]] = defaultdict(list)
    ended = 0

    def serve(one: ClaimedRun) -> RunWrite:
        nonlocal ended
        if one.run.parent is not None:
            return RunWrite(one.ref, [record(1)], states.complete(_R, "1"))
        mine = called[one.run.id]
        heard[one.run.id] += ids_of(one.signals)
        also = Also(consumed=ids_of(one.signals))
        if len(heard[one.run.id]) < len(mine):
            return _parked(one, also)
        if len(mine) == 16:
            ended += 1
            return RunWrite(one.ref, [record(1)], states.complete(_R, "1"), also)
        keys = [f"c{len(mine)}", f"c{len(mine) + 1}"]  # two at once: one may end while the other has woken it
        also.children = [replace(new_run(), parent=one.run.id, parent_key=key) for key in keys]
        mine += [child.id for child in also.children]
        calls = [record(n, child.parent_key or "", Kind.CALL, child.id) for n, child in enumerate(also.children)]
        return _parked(one, also, *calls)

    async with asyncio.timeout(60):
        await asyncio.gather(*(_work(store, serve, lambda: ended == 12) for store in stores))
    assert {run_id: sorted(ids) for run_id, ids in heard.items()} == {
        run_id: sorted(called[run_id]) for run_id in run_ids
    }


async def test_P32_several_workers_that_drain_and_claim_at_once_miss_nothing(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), *[await postgres.another() for _ in range(3)]]
    workers = [await Worker.start(store) for store in stores]
    await create(stores[0], *(new_run() for _ in range(60)))
    one: Any
    for one in (await workers[0].claim()).runs:
        await workers[0].wait(one)
    for turn in range(8):
        waiting = postgres.rows("SELECT id::text FROM durable.runs WHERE state = 'waiting'")
        assert len(waiting) == 60
        batch = [NewSignal(run_id, f"s{turn}", "approval", "true") for (run_id,) in waiting]
        taken: dict[str, tuple[Worker, ClaimedRun]] = {}

        async def claim(worker: Worker, taken: dict[str, tuple[Worker, ClaimedRun]] = taken) -> None:
            while len(taken) < 60:
                for one in (await worker.claim(limit=7)).runs:
                    assert one.run.id not in taken
                    taken[one.run.id] = (worker, one)

        async with asyncio.timeout(30):
            await asyncio.gather(stores[turn % 4].send_signals(batch), *(claim(worker) for worker in workers))
        assert all(f"s{turn}" in ids_of(one.signals) for _, one in taken.values())
        for worker in workers:
            mine = [one for holder, one in taken.values() if holder is worker]
            await worker.commit(*(_parked(one, Also(consumed=ids_of(one.signals))) for one in mine))


async def test_workers_signallers_publishers_a_canceller_and_pruning_never_deadlock(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        lost.append(getattr(error, "sqlstate", None))
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    stores = [await postgres.fresh(), *[await postgres.another() for _ in range(3)]]
    run_ids = await create(stores[0], *(new_run() for _ in range(40)))
    ended: set[str] = set()

    def serve(one: ClaimedRun) -> RunWrite:
        also = Also(consumed=ids_of(one.signals))
        if one.run.requested is not None or one.run.parent is not None:
            ended.add(one.run.id)
            return RunWrite(one.ref, [record(1)], states.cancelled(_R, ERROR), also)
        key = f"c{one.run.claim}"
        also.children = [replace(new_run(), parent=one.run.id, parent_key=key)] if one.run.claim < 6 else []
        calls = [record(one.run.claim, key, Kind.CALL, child.id) for child in also.children]
        return _parked(one, also, *calls)

    def over() -> bool:
        return ended.issuperset(run_ids)

    async def signal(store: PostgresStore, seed: int) -> None:
        drawn = random.Random(seed)
        while not over():
            batch = [NewSignal(run_id, f"{drawn.random()}", "approval", "1") for run_id in drawn.sample(run_ids, 15)]
            await store.send_signals(batch)
            await store.unread(new_id(), run_ids)

    async def cancel(store: PostgresStore) -> None:
        for run_id in run_ids:
            if await store.request(run_id, CANCEL) is State.CANCELLED:  # it had not started
                ended.add(run_id)
            await store.prune(NEVER, 3)

    async with asyncio.timeout(90):
        await asyncio.gather(
            *(_work(store, serve, over) for store in stores[:2]),
            *(signal(store, seed) for seed, store in enumerate(stores[2:])),
            cancel(stores[3]),
        )
    assert lost == []


# -- others' transactions ---------------------------------------------------------------------------


async def test_P33_a_users_transaction_that_has_signalled_and_stays_open_is_in_nobodys_way(postgres: Postgres) -> None:
    store, other = await postgres.fresh(), await postgres.another()
    worker, one = await claimed(store)
    _, parked = await claimed(store)
    neighbour, two = await claimed(store)
    await neighbour.wait(two)
    with postgres.sql.transaction():
        postgres.rows("SET LOCAL idle_in_transaction_session_timeout = 0")
        for run_id in (one.run.id, two.run.id):
            _insert(postgres, run_id, "users")
        async with asyncio.timeout(4):  # less than any lock_timeout
            await send(other, one.run.id, "another")
            await send(other, two.run.id, "another")
            assert ids_of((await neighbour.take()).signals) == ["another"]
            assert (await worker.claim(0)).signalled == [one.run.id]
            assert ids_of((await worker.unread(one)).signals) == ["another"]
            await worker.apply(one, record(1), also=Also(consumed=["another"]))
            await worker.wait(one, wakes=(await worker.unread(one)).wakes)
            assert (await worker.claim()).runs == []
            assert await store.request(parked.run.id, CANCEL) is _R
            assert await store.prune(NEVER, 10) == 0
            assert (await store.reap()).released == 0
    assert ids_of((await worker.take()).signals) == ["users"]
    assert (await neighbour.claim(0)).signalled == [two.run.id]


async def test_P31_a_run_that_is_held_for_a_moment_keeps_its_wake(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await worker.wait(one)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", one.run.id)
        async with asyncio.timeout(4):
            await send(store, one.run.id, "s1")
            answer = await worker.claim()
        assert answer.runs == []
        assert answer.next_ready_at is not None  # soon: it is to be tried again
        assert (answer.next_ready_at - store.clock.now()).total_seconds() < 5
    assert ids_of((await worker.take()).signals) == ["s1"]


async def test_P31_a_drain_that_overlaps_a_park_leaves_its_row(postgres: Postgres) -> None:
    """The flush holds the run, uncommitted: the drain passes it by, and a later one finds it waiting."""
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await send(store, one.run.id, "s1")
    call = store._use.call("drain_wakes", "0")
    with psycopg.connect(postgres.url, cursor_factory=psycopg.RawCursor) as parking:
        park = f"UPDATE {postgres.schema}.runs SET state = 'waiting', owner = NULL WHERE id = $1"
        parking.execute(park.encode(), [one.run.id])
        [[drained]] = await store._use.write("drain_wakes", call)
        assert drained == (True, [])
    [[drained]] = await store._use.write("drain_wakes", call)
    assert drained == (False, [])
    assert ids_of((await worker.take()).signals) == ["s1"]


# -- what is read, and what is left ------------------------------------------------------------------


async def test_P31_a_claim_sent_again_brings_what_came_since_with_its_counter(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await create(store)
    worker, batch = await Worker.start(store), new_id()
    (one,) = (await worker.claim(batch=batch)).runs
    assert (one.wakes, one.signals) == (0, [])
    await send(store, one.run.id, "s1")
    answer = await worker.claim(batch=batch)
    (again,) = answer.runs
    assert (ids_of(again.signals), answer.signalled) == (["s1"], [])
    await worker.wait(again)
    assert (await worker.claim()).runs == []


async def test_P31_a_signal_that_is_drained_between_claim_and_its_reads_is_told(postgres: Postgres) -> None:
    """The counter of a batch that is sent again is older than the drain: the run has to be told of."""
    store, other = await postgres.fresh(), await postgres.another()
    await create(store)
    worker, batch = await Worker.start(store), new_id()
    (one,) = (await worker.claim(batch=batch)).runs
    await send(store, one.run.id, "s1")
    await other._use.write("drain_wakes", other._use.call("drain_wakes", "0"))
    [[_, _, _, signalled, *_]] = await store._use.read("claim_rest", "0", "{}", worker.id, batch)
    assert signalled == [one.run.id]


async def test_P52_a_signal_sent_while_its_run_is_pruned_goes_too(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await worker.apply(one, change=states.complete(_R, "1"))
    with postgres.sql.transaction():  # it found the run alive, and commits when it is gone
        _insert(postgres, one.run.id, "late")
        assert await store.delete(one.run.id)
    assert (await worker.claim()).runs == []
    assert postgres.rows("SELECT count(*) FROM durable.signals") == [(0,)]
    assert postgres.rows("SELECT count(*) FROM durable.wakes") == [(0,)]


async def test_signals_that_are_told_leave_no_rows(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    left, gone = await claimed(store)
    for number in range(3):
        await send(store, one.run.id, f"s{number}")
        await send(store, gone.run.id, f"s{number}")
        assert (await worker.claim(0)).signalled == [one.run.id]
    assert postgres.rows("SELECT count(*) FROM durable.requests") == [(6,)]
    await worker.unread(one)
    await left.apply(gone, change=states.complete(_R, "1"))
    assert (await left.claim(0)).signalled == []
    assert postgres.rows("SELECT count(*) FROM durable.requests") == [(0,)]
    assert postgres.rows("SELECT count(*) FROM durable.wakes") == [(0,)]


async def test_more_wakes_than_one_claim_drains_are_left_to_the_next(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await worker.wait(one)
    postgres.rows("INSERT INTO durable.wakes (shard, run_id) SELECT 0, gen_random_uuid() FROM generate_series(1, 1100)")
    await send(store, one.run.id, "s1")
    for _ in range(2):
        answer = await worker.claim()
        assert answer.runs == []
        assert answer.next_ready_at is not None
    assert ids_of((await worker.take()).signals) == ["s1"]
    assert postgres.rows("SELECT count(*) FROM durable.wakes") == [(0,)]


# -- statements -----------------------------------------------------------------------------------


async def test_a_flush_has_statements_beside_its_own_only_when_a_write_asks(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    lane, counts = store._use.flushes["flush"], list[int]()
    transaction = lane.transaction

    async def counted(*calls: Call) -> Sequence[Any]:
        counts.append(len(calls))
        return await transaction(*calls)

    monkeypatch.setattr(lane, "transaction", counted)
    child = replace(new_run(), parent=one.run.id, parent_key="kyc")
    await worker.apply(one, record(1))
    await worker.apply(one, record(2), also=Also(consumed=["none"]))
    await worker.apply(one, record(3, "kyc", Kind.CALL, child.id), also=Also(children=[child]))
    await worker.apply(one, change=states.complete(_R, "1"))
    held = await worker.take()
    await worker.apply(held, record(1))
    await worker.apply(held, change=states.complete(_R, "1"))
    assert counts[:-1] == [1, 2, 2, 1, 1]
    assert counts[-1] > 1
    assert (await read(store, child.id)).state is State.COMPLETED


def _insert(postgres: Postgres, run_id: str, signal_id: str) -> None:
    """As a user's own connection sends a signal."""
    postgres.rows(
        "INSERT INTO durable.signals (shard, run_id, id, name, data) VALUES (0, %s, %s, 'approval', 'true')",
        *(run_id, signal_id),
    )
    postgres.rows("INSERT INTO durable.wakes (shard, run_id) VALUES (0, %s)", run_id)
