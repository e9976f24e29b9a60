"""Locks that others hold, and settings that others made: what a flush, a claim, a trigger and a reaper do then."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from durable import states
from durable.errors import StoreUnavailable
from durable.model import DeadLetter, Outcome, Reaped, RunWrite, State
from durable.stores.postgres import PostgresStore, connections, sessions
from durable.stores.postgres.wire import Call
from durable.testing._servers import url_with
from durable.testing.conformance.harness import LONG_AGO, Worker, claimed, create, new_run, read, record
from tests.postgres.conftest import Postgres

_COMPLETE = states.complete(State.RUNNING, '{"ok": true}')
_RELEASE = states.release(State.RUNNING)
_WAITS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s)"


async def test_a_flush_does_not_wait_for_a_run_that_somebody_holds(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await create(store, *(new_run() for _ in range(3)))
    worker = await Worker.start(store)
    held, free, plain = (await worker.claim()).runs
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", held.run.id)
        writes = [
            RunWrite(held.ref, [record(1)], _COMPLETE),
            RunWrite(free.ref, [record(1)], _COMPLETE),
            RunWrite(plain.ref, [record(1)]),
        ]
        async with asyncio.timeout(4):  # less than any lock_timeout
            outcomes = await store.commit(worker.id, writes)
            records_only = await store.commit(worker.id, [RunWrite(held.ref, [record(1, "early")])])
            assert (await worker.claim()).runs == []
        assert outcomes == [Outcome.BUSY, Outcome.APPLIED, Outcome.APPLIED]
        assert records_only == [Outcome.APPLIED]
        assert [entry.key for entry in await store.history(held.run.id)] == ["early"]  # not s1: the write is whole
    await worker.apply(held, record(2), change=_COMPLETE)


async def test_a_wake_that_commits_during_the_flush_is_not_lost(postgres: Postgres) -> None:
    """What a flush has not seen it does not change: the write comes back whole, and the next one sees the wake."""
    store = await postgres.fresh()
    worker, run = await claimed(store)
    park = RunWrite(run.ref, [record(1)], states.park(State.RUNNING, ready_at=None, wakes=run.wakes, waiting=True))
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.workers WHERE id = %s FOR UPDATE", worker.id)
        flush = asyncio.create_task(store.commit(worker.id, [park]))
        await postgres.until(_WAITS, f'%{postgres.schema}".workers%')  # it has its snapshot
        postgres.beside("UPDATE durable.runs SET wakes = wakes + 1 WHERE id = %s", run.run.id)
    assert await flush == [Outcome.BUSY]
    assert await store.history(run.run.id) == []
    assert await store.commit(worker.id, [park]) == [Outcome.APPLIED]
    assert (await read(store, run.run.id)).ready_at is not None
    assert len(await store.history(run.run.id)) == 1


async def test_a_claim_passes_by_a_run_that_is_changed_meanwhile_and_asks_to_be_repeated(postgres: Postgres) -> None:
    """It would be short for no lack of runs, and its worker would sleep."""
    store = await postgres.fresh()
    worker = await Worker.start(store)
    changed, other = await create(store, new_run(ready_at=LONG_AGO), new_run())
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.workers WHERE id = %s FOR UPDATE", worker.id)
        claim = asyncio.create_task(worker.claim(limit=1))
        await postgres.until(_WAITS, f'%{postgres.schema}".workers%')  # it has its snapshot
        postgres.beside("UPDATE durable.runs SET input = '\"new\"' WHERE id = %s", changed)
    answer = await claim
    assert answer.runs == []
    assert answer.next_ready_at is not None
    assert answer.next_ready_at <= store.clock.now()
    one, two = (await worker.claim()).runs
    assert [one.run.id, two.run.id] == [changed, other]
    assert one.run.input == '"new"'


async def test_a_flush_that_meets_the_reaper_writes_nothing(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    with postgres.sql.transaction():
        postgres.rows("DELETE FROM durable.workers WHERE id = %s", worker.id)
        flush = asyncio.create_task(store.commit(worker.id, [RunWrite(run.ref, [record(1)], _COMPLETE)]))
        await postgres.until(_WAITS, f'%{postgres.schema}".workers%')
    assert await flush == [Outcome.LEASE_LOST]
    assert (await store.reap()).released == 1
    assert [entry.key for entry in await store.history(run.run.id)] == ["/takeover/1"]


async def test_a_claim_that_meets_the_reaper_takes_nothing(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await create(store)
    worker = await Worker.start(store)
    with postgres.sql.transaction():
        postgres.rows("DELETE FROM durable.workers WHERE id = %s", worker.id)
        claim = asyncio.create_task(worker.claim())
        await postgres.until(_WAITS, f'%{postgres.schema}".workers%')
    assert (await claim).runs == []
    assert (await store.reap()).released == 0


async def test_claims_commits_reapers_and_a_signaller_never_deadlock(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        lost.append(getattr(error, "sqlstate", None))
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    stores = [await postgres.fresh(), await postgres.another()]
    ids = await create(stores[0], *(new_run() for _ in range(60)))
    stop = asyncio.Event()

    async def work(store: PostgresStore) -> None:
        worker = await Worker.start(store)
        for turn in range(40):
            runs = (await worker.claim(limit=25)).runs
            await worker.commit(*(RunWrite(one.ref, [record(turn, f"{one.run.claim}")]) for one in reversed(runs)))
            await worker.commit(*(RunWrite(one.ref, [], _RELEASE) for one in reversed(runs)))
            await create(store, *(new_run("noise", key=str(uuid4())) for _ in range(5)))
            if turn % 10 == 9:
                await postgres.expire(worker.id)
                await store.reap(limit=1000)
                worker = await Worker.start(store)

    async def signal() -> None:
        async with await psycopg.AsyncConnection.connect(postgres.url) as connection:
            while not stop.is_set():
                for start in range(0, 60, 7):
                    await connection.execute(
                        sql.SQL(
                            "WITH r AS (SELECT shard, id FROM {0} WHERE shard = 0 AND id = ANY(%s) ORDER BY shard, id "
                            "FOR NO KEY UPDATE) UPDATE {0} AS x SET wakes = wakes + 1 FROM r "
                            "WHERE x.shard = r.shard AND x.id = r.id"
                        ).format(sql.Identifier(postgres.schema, "runs")),
                        [ids[start : start + 20]],
                    )
                    await connection.commit()

    signaller = asyncio.create_task(signal())
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(store) for store in stores))
    stop.set()
    await signaller
    assert lost == []


async def test_a_dead_workers_row_that_stays_locked_is_freed(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that was stopped in the middle of a flush: its backend holds the fence and waits for the rest."""
    store = await postgres.fresh()
    worker, run = await claimed(store)
    with psycopg.connect(postgres.url) as stopped:
        pid = stopped.info.backend_pid
        stopped.execute(
            sql.SQL("SELECT FROM {} WHERE id = %s AND lane = 'flush' FOR KEY SHARE").format(
                sql.Identifier(postgres.schema, "workers")
            ),
            [worker.id],
        )
        postgres.rows("UPDATE durable.workers SET expires_at = now() - interval '2 s' WHERE id = %s", worker.id)
        with caplog.at_level(logging.WARNING):
            assert (await store.reap()).released == 1
        with pytest.raises(psycopg.OperationalError):
            stopped.execute("SELECT 1")
    assert f"ended backend {pid}" in caplog.text
    assert (await read(store, run.run.id)).owner is None


async def test_an_expired_worker_in_the_middle_of_a_flush_is_left_alone_for_a_moment(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    await postgres.expire(worker.id)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.workers WHERE id = %s AND lane = 'flush' FOR KEY SHARE", worker.id)
        # Expired a moment ago: not yet stuck.
        assert (await store.reap()).released == 0
    assert (await read(store, run.run.id)).owner == worker.id
    assert (await store.reap()).released == 1


async def test_P06_a_goodbye_gives_up_no_run_that_the_reaper_had_to_leave(postgres: Postgres) -> None:
    """The dead worker's row is gone, its run was held at that moment: only a reaper may find it, which says so."""
    store = await postgres.fresh()
    worker, run = await claimed(store)
    leaving = await Worker.start(store)
    await postgres.expire(worker.id)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", run.run.id)
        assert await store.reap(limit=1) == Reaped(0)
    await store.unregister(leaving.id)
    assert (await read(store, run.run.id)).owner == worker.id
    assert await store.reap(limit=1) == Reaped(1, (DeadLetter(run.run.id, "order"),))


async def test_P36_a_key_that_another_transaction_holds_is_waited_for_with_a_bound(postgres: Postgres) -> None:
    await postgres.fresh()
    store = await postgres.another(url_with(postgres.url, query="application_name=waiting"))
    first = new_run(key="k")
    await create(store, new_run())
    with postgres.sql.transaction():
        postgres.rows("SET LOCAL idle_in_transaction_session_timeout = 0")
        postgres.rows("INSERT INTO durable.keys VALUES (0, 'order', 'k', gen_random_uuid())")
        await store._use.create.transaction(Call(b"SELECT set_config('lock_timeout', '50ms', false)"))
        with pytest.raises(StoreUnavailable, match="another transaction holds"):
            await store.create_runs([first])
        postgres.rows("DELETE FROM durable.keys WHERE shard = 0")
    await create(store, first)


async def test_a_cancelled_task_leaves_the_lane_usable(postgres: Postgres) -> None:
    """A native cancellation does reach the wire: the statement is cancelled, and the lane goes on."""
    store = await postgres.fresh()
    await create(store, new_run())
    with postgres.sql.transaction():
        postgres.rows("INSERT INTO durable.keys VALUES (0, 'order', 'k', gen_random_uuid())")
        creating = asyncio.create_task(store.create_runs([new_run(key="k")]))
        await postgres.until(_WAITS, f'%{postgres.schema}".keys%')
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating
        await create(store, new_run())
        postgres.rows("DELETE FROM durable.keys WHERE key = 'k'")
    await create(store, new_run(key="k"))


async def test_closing_does_not_wait_for_a_transaction_that_hangs(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await create(store, new_run())
    with postgres.sql.transaction():
        postgres.rows("INSERT INTO durable.keys VALUES (0, 'order', 'k', gen_random_uuid())")
        creating = asyncio.create_task(store.create_runs([new_run(key="k")]))
        await postgres.until(_WAITS, f'%{postgres.schema}".keys%')
        async with asyncio.timeout(3):
            await store.close()
        with pytest.raises(StoreUnavailable):
            await creating


# -- the role's settings --------------------------------------------------------------------------


async def test_every_transaction_states_its_isolation(postgres: Postgres) -> None:
    await postgres.fresh()
    name = f"serial_{postgres.schema}"
    postgres.rows(f"CREATE ROLE {name} SUPERUSER LOGIN PASSWORD 'x'")
    postgres.rows(f"ALTER ROLE {name} SET default_transaction_isolation = 'serializable'")
    postgres.rows(f"ALTER ROLE {name} SET TimeZone = 'Asia/Kathmandu'")
    postgres.rows(f"ALTER ROLE {name} SET DateStyle = 'German'")
    try:
        host = url_with(postgres.url).rpartition("@")[2]
        store = await postgres.another(f"postgresql://{name}:x@{host}")
        show = Call(b"SHOW transaction_isolation")
        reset = Call(b"SELECT set_config('default_transaction_isolation', 'serializable', false)")
        lanes = store._use
        for lane in (*lanes.flushes.values(), lanes.claim, lanes.create):
            await lane.transaction(reset)  # as behind a pooler, where the session's settings are lost
            assert await lane.transaction(show) == [[("read committed",)]]
        assert await lanes.write("show", show) == [[("read committed",)]]
        worker, run = await claimed(store)
        assert run.run.created_at.utcoffset() == timedelta(0)
        await worker.apply(run, record(1), change=_COMPLETE)
        (entry,) = await store.history(run.run.id)
        assert entry.at == record(1).at
        await store.close()
    finally:
        postgres.rows(f"DROP ROLE {name}")
