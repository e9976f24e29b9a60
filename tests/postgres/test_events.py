"""Events and the log of emits on Postgres: what transactions that overlap, and drains that compete, may not do."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest

from durable import states
from durable.errors import InvalidArgument
from durable.model import Also, Awaited, ClaimedRun, Emitted, Kind, Published, Record, State
from durable.stores.postgres import PostgresStore
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    Worker,
    claimed,
    create,
    ids_of,
    new_id,
    new_run,
    record,
)
from tests.postgres.conftest import Postgres

_R = State.RUNNING
_LEFT = (
    "SELECT (SELECT count(*) FROM durable.stirred), (SELECT count(*) FROM durable.awaited), "
    "(SELECT count(*) FROM durable.wakes)"
)


def _event(key: str = "k", retention: float = 3600.0) -> Published:
    return Published(new_id(), "paid", key, "true", retention)


async def _await(worker: Worker, one: ClaimedRun, seq: int = 1, key: str = "k") -> None:
    await worker.wait(one, record(seq, f"e{seq}", Kind.WAIT), also=Also(awaited=[Awaited("paid", key, LONG_AGO)]))


# -- events -----------------------------------------------------------------------------------------


async def test_P31_workers_that_compare_at_once_give_each_wait_one_event(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), *[await postgres.another() for _ in range(3)]]
    run_ids = await create(stores[0], *(new_run() for _ in range(24)))
    got: dict[str, list[str]] = defaultdict(list)
    published: dict[str, set[str]] = defaultdict(set)
    waiting = asyncio.Event()

    async def work(store: PostgresStore) -> None:
        worker = await Worker.start(store)
        while any(len(got[run_id]) < 5 for run_id in run_ids):
            for one in (await worker.claim(limit=5)).runs:
                new = ids_of(one.signals)[len(got[one.run.id]) :]
                assert len(new) == (one.run.claim > 1)
                got[one.run.id] += new
                if len(got[one.run.id]) == 5:
                    await worker.apply(one, change=states.complete(_R, "1"))
                else:
                    await _await(worker, one, one.run.claim, _key(one.run.id))
                waiting.set()

    async def publish(store: PostgresStore) -> None:
        await waiting.wait()
        for turn in range(5):
            events = [_event(f"k{(n + turn) % 3}") for n in range(3)]
            for event in events:
                published[event.key].add(event.id)
            await store.publish(events)

    def _key(run_id: str) -> str:
        return f"k{run_ids.index(run_id) % 3}"

    async with asyncio.timeout(60):
        await asyncio.gather(publish(stores[3]), *(work(store) for store in stores))
    assert {run_id: set(ids) for run_id, ids in got.items()} == {run_id: published[_key(run_id)] for run_id in run_ids}
    assert postgres.rows(_LEFT) == [(0, 0, 0)]


async def test_P31_an_event_and_a_wait_whose_transactions_overlap_meet(postgres: Postgres) -> None:
    """The event has not committed when the wait is compared, and has no retention left when it is."""
    store, other = await postgres.fresh(), await postgres.another()
    worker, one = await claimed(store)
    with postgres.sql.transaction():
        postgres.rows(
            "INSERT INTO durable.events (shard, topic, key, id, data, at, expires_at) "
            "VALUES (0, 'paid', 'k', 'open', 'true', clock_timestamp(), clock_timestamp())"
        )
        postgres.rows("INSERT INTO durable.stirred (shard, topic, key) VALUES (0, 'paid', 'k')")
        since = store.clock.now() + timedelta(minutes=10)
        wait = Also(awaited=[Awaited("paid", "k", since)])
        await worker.wait(one, record(1, "e", Kind.WAIT), also=wait)
        helper = await Worker.start(other)
        async with asyncio.timeout(4):
            assert (await helper.claim()).runs == []
        assert postgres.beside(_LEFT) == [(0, 1, 0)]
    assert (await helper.claim(0)).runs == []
    assert ids_of((await worker.take()).signals) == ["open"]


async def test_P31_a_wait_that_another_drain_holds_is_compared_again(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await _await(worker, one)
    assert (await worker.claim()).runs == []
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.awaited FOR UPDATE")
        event = _event()
        async with asyncio.timeout(4):
            await store.publish([event])
            assert (await worker.claim(0)).runs == []
        assert postgres.beside(_LEFT) == [(1, 1, 0)]
    await worker.claim(0)
    assert ids_of((await worker.take()).signals) == [event.id]


async def test_more_waits_than_one_look_takes_all_get_their_event(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await create(store, *(new_run("other") for _ in range(1200)))
    postgres.rows(
        "INSERT INTO durable.awaited (shard, run_id, since, topic, key) "
        "SELECT 0, id, 'epoch', 'paid', 'k' FROM durable.runs WHERE owner IS NULL"
    )
    await _await(worker, one)
    event = _event()
    await store.publish([event])
    await worker.claim(0)
    assert postgres.rows("SELECT count(*) FROM durable.signals WHERE id = %s", event.id) == [(1201,)]
    for _ in range(3):  # what is drained with one claim is bounded
        await worker.claim(0)
    assert ids_of((await worker.take()).signals) == [event.id]
    assert postgres.rows(_LEFT) == [(0, 0, 0)]


async def test_events_past_their_retention_are_deleted_when_nobody_may_get_them_any_more(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker = await Worker.start(store)
    await store.publish([_event(f"k{n}", 60.0 if n % 2 else 86400.0) for n in range(300)])
    postgres.rows("UPDATE durable.events SET expires_at = expires_at - interval '3 min'")
    assert await store.prune(LONG_AGO, 1) == 0
    assert postgres.rows("SELECT count(*) FROM durable.events") == [(300,)]  # not compared yet
    await worker.claim(0)
    assert postgres.rows("SELECT count(*) FROM durable.events") == [(150,)]
    postgres.rows("UPDATE durable.events SET expires_at = expires_at - interval '2 days'")
    assert await store.prune(NEVER, 1) == 0
    assert postgres.rows("SELECT count(*) FROM durable.events") == [(0,)]


# -- the log ------------------------------------------------------------------------------------


async def test_P48_an_entry_whose_transaction_wrote_earlier_and_commits_later_is_not_passed_over(
    postgres: Postgres,
) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    _, other = await claimed(store)
    await worker.apply(one, _emit(1), also=Also(emits=True))
    first = await _log(store, 1)
    with postgres.sql.transaction():
        postgres.rows(
            "INSERT INTO durable.emits (shard, run_id, at, n, key, data) VALUES (0, %s, now(), 1, 'late', '1')",
            other.run.id,
        )
        await worker.apply(one, _emit(2), also=Also(emits=True))
        assert await store.emitted(None, 10) == first  # what was written later waits for what was written earlier
        assert await store.emitted(first[0].cursor, 10) == []
    assert [entry.key for entry in await _log(store, 2, first[0].cursor)] == ["late", "e2"]


async def test_P48_a_cursor_of_something_else_is_refused(postgres: Postgres) -> None:
    store = await postgres.fresh()
    for cursor in ("", "7", "1-x", "-1-2", "1-2-3", "x-1", "²-1"):
        with pytest.raises(InvalidArgument, match="no cursor"):
            await store.emitted(cursor, 1)


def _emit(seq: int) -> Record:
    return record(seq, f"e{seq}", Kind.EMIT, str(seq))


async def _log(store: PostgresStore, count: int, after: str | None = None) -> list[Emitted]:
    """The log, once it shows so many entries: any transaction of the whole server may hold them back."""
    async with asyncio.timeout(60):
        while len(log := await store.emitted(after, 10)) < count:
            pass
    return log
