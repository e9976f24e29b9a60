"""What goes wrong between a worker and its Postgres: lost answers, lost connections, locks, other processes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest
from psycopg import sql

from durable import states
from durable.errors import StoreUnavailable
from durable.model import Outcome, RunWrite, State
from durable.store import Hint
from durable.stores.postgres import PostgresStore, connections, sessions
from durable.stores.postgres.wire import Call
from durable.testing._servers import url_with
from durable.testing.conformance.harness import ROUTE, Worker, claimed, create, new_run, read, record
from tests.postgres.conftest import Postgres
from tests.postgres.proxy import Proxy

_COMPLETE = states.complete(State.RUNNING, '{"ok": true}')
_RELEASE = states.release(State.RUNNING)

# -- lost answers ---------------------------------------------------------------------------------


async def _worker_behind(postgres: Postgres, proxy: Proxy) -> Worker:
    await postgres.fresh()
    return await Worker.start(await postgres.another(proxy.url))


async def _lose_the_answer(proxy: Proxy, call: Callable[[], Awaitable[Any]]) -> None:
    proxy.swallow_next_commit()
    with pytest.raises(StoreUnavailable):
        await call()
    assert proxy.swallowed.is_set()


async def test_P11_a_flush_whose_acknowledgement_was_lost_is_applied_once(postgres: Postgres) -> None:
    async with Proxy(postgres.url) as proxy:
        worker = await _worker_behind(postgres, proxy)
        await create(worker.store, *(new_run() for _ in range(5)))
        steps, completed, parked, kept, undone = (await worker.claim()).runs
        writes = [
            RunWrite(steps.ref, [record(1), record(2)]),
            RunWrite(completed.ref, [record(1)], _COMPLETE),
            RunWrite(parked.ref, [], states.park(State.RUNNING, ready_at=None, wakes=parked.wakes, waiting=True)),
            RunWrite(kept.ref, [record(1)], _RELEASE),
            RunWrite(undone.ref, [record(1)], states.compensate(State.RUNNING, "{}")),
        ]
        await _lose_the_answer(proxy, lambda: worker.store.commit(worker.id, writes))
        before = postgres.rows("SELECT * FROM durable.runs ORDER BY id"), postgres.rows("TABLE durable.history")
        assert await worker.commit(*writes) == [Outcome.APPLIED] * 5
        assert (
            postgres.rows("SELECT * FROM durable.runs ORDER BY id"),
            postgres.rows("TABLE durable.history"),
        ) == before
        await worker.apply(steps, record(3))
        await worker.store.close()


async def test_P11_a_half_new_flush_writes_what_is_new(postgres: Postgres) -> None:
    """The committer folds what gathers meanwhile into a flush that it sends again."""
    store = await postgres.fresh()
    worker, run = await claimed(store)
    await worker.apply(run, record(1))
    other_worker, other = await claimed(store)
    await worker.apply(run, record(1), record(2))
    assert await worker.commit(RunWrite(run.ref, [record(1), record(2), record(3)], _COMPLETE)) == [Outcome.APPLIED]
    assert [entry.key for entry in await store.history(run.run.id)] == ["s1", "s2", "s3"]
    await other_worker.apply(other, record(1))


async def test_P11_a_trigger_whose_acknowledgement_was_lost_made_one_run(postgres: Postgres) -> None:
    async with Proxy(postgres.url) as proxy:
        worker = await _worker_behind(postgres, proxy)
        runs = [new_run(key="k"), new_run(), new_run(request="r")]
        await worker.store.create_runs([new_run()])  # the route is known: one transaction is left to lose
        await _lose_the_answer(proxy, lambda: worker.store.create_runs(runs))
        assert all(answer.created for answer in await worker.store.create_runs(runs))
        assert len(postgres.rows("SELECT id FROM durable.runs WHERE shard = 0")) == 4
        await worker.store.close()


async def test_P11_a_claim_whose_answer_was_lost_is_found_again(postgres: Postgres) -> None:
    async with Proxy(postgres.url) as proxy:
        worker = await _worker_behind(postgres, proxy)
        await create(worker.store, new_run(), new_run())
        await worker.claim(limit=0)  # the route is known
        batch = str(uuid4())
        await _lose_the_answer(proxy, lambda: worker.claim(batch=batch))
        owned = await worker.store.owned(worker.id)
        assert len(owned) == 2
        assert sorted(one.ref for one in (await worker.claim(batch=batch)).runs) == sorted(owned)
        await worker.store.close()


async def test_a_transaction_leaves_in_one_piece(postgres: Postgres) -> None:
    """A client that is stopped between two pieces would hold its locks until somebody ends its backend."""
    async with Proxy(postgres.url) as proxy:
        worker = await _worker_behind(postgres, proxy)
        await create(worker.store, new_run(), new_run())
        one, other = (await worker.claim()).runs
        await worker.apply(one, record(1))
        for call in (
            lambda: worker.write(other, record(1)),
            lambda: worker.write(one, record(2), change=_COMPLETE),
            worker.claim,
            lambda: worker.store.create_runs([new_run(key="k")]),
        ):
            before = proxy.pieces
            await call()
            assert proxy.pieces == before + 1
        await worker.store.close()


# -- lost connections -----------------------------------------------------------------------------


def _terminate(postgres: Postgres, application: str) -> int:
    """End all backends of an application; they are gone when this returns."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    pids = [pid for (pid,) in postgres.rows(query, application)]
    for pid in pids:
        postgres.rows("SELECT pg_terminate_backend(%s, 10000)", pid)
    return len(pids)


async def test_P10_every_connection_may_be_ended_and_is_opened_again(postgres: Postgres) -> None:
    await postgres.fresh()
    name = f"victim_{postgres.schema}"
    store = await postgres.another(url_with(postgres.url, query=f"application_name={name}"))
    worker, run = await claimed(store)
    await asyncio.to_thread(store.renew, worker.id, 60.0)
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: worker.apply(run, record(1)),
        worker.claim,
        lambda: create(store, new_run("other")),
        lambda: store.get_runs([run.run.id]),
        store.reap,
        lambda: asyncio.to_thread(store.renew, worker.id, 60.0),
        lambda: store.owned(worker.id),
    ]
    for _ in range(2):
        for call in calls:
            assert _terminate(postgres, name) > 0
            await _with_one_failure(call)
    assert len(await store.history(run.run.id)) == 1


async def _with_one_failure(call: Callable[[], Awaitable[Any]]) -> None:
    """A call may fail once: its outcome is unknown, so the caller has to know and to send again."""
    try:
        await call()
    except StoreUnavailable:
        await call()


async def test_a_migration_under_a_running_store_outdates_no_plan_for_good(postgres: Postgres) -> None:
    store = await postgres.fresh(pool_size=2)
    worker, run = await claimed(store)
    for _ in range(8):
        await store.get_runs([run.run.id])
        await worker.claim()
    await worker.apply(run, change=_RELEASE)
    postgres.rows("ALTER TABLE durable.runs ALTER COLUMN claim TYPE bigint")
    assert len(await store.get_runs([run.run.id])) == 1
    await _with_one_failure(worker.claim)
    assert (await read(store, run.run.id)).claim == 2


async def test_P44_the_listening_connection_may_be_dropped(postgres: Postgres) -> None:
    store, other = await postgres.fresh(), await postgres.another()
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    store.subscribe(heard.put_nowait)
    listening = "FROM pg_stat_activity WHERE query = %s AND datname = current_database()"
    for _ in range(2):
        await postgres.until(f"SELECT count(*) = 2 {listening}", f'LISTEN "{postgres.schema}"')
        pids = postgres.rows(f"SELECT pid {listening}", f'LISTEN "{postgres.schema}"')
        for (pid,) in pids:
            postgres.rows("SELECT pg_terminate_backend(%s, 10000)", pid)
        async with asyncio.timeout(10):
            assert await heard.get() == Hint.WORK | Hint.ENDED  # listening again: something may have been missed
    other.announce(Hint.ENDED)
    async with asyncio.timeout(10):
        while await heard.get() != Hint.ENDED:
            continue


async def test_hints_reach_other_processes_and_not_ones_own_and_are_folded(postgres: Postgres) -> None:
    store, other = await postgres.fresh(), await postgres.another()
    mine: list[Hint] = []
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    store.subscribe(mine.append)
    end = other.subscribe(heard.put_nowait)
    async with asyncio.timeout(10):
        while heard.empty():  # until the other one listens
            store.announce(Hint.WORK)
            await asyncio.sleep(0.02)
        for _ in range(200):
            store.announce(Hint.ENDED)
            store.announce(Hint.WORK)
        while await heard.get() != Hint.WORK | Hint.ENDED:
            continue
    assert heard.qsize() <= 2
    assert mine == []
    end()


async def test_a_cancelled_scope_does_not_break_the_connection(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    pids = "SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE application_name = 'durable'"
    before = postgres.rows(pids)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await worker.write(run, record(1))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.get_runs([run.run.id])
    await worker.apply(run, record(1), record(2))
    assert postgres.rows(pids) == before


# -- locks ----------------------------------------------------------------------------------------


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
    """The park compares the counter of the row that it has locked, not of an older version."""
    store = await postgres.fresh()
    worker, run = await claimed(store)
    with postgres.sql.transaction():
        postgres.rows("UPDATE durable.runs SET wakes = wakes + 1 WHERE id = %s", run.run.id)
        park = RunWrite(run.ref, [], states.park(State.RUNNING, ready_at=None, wakes=run.wakes, waiting=True))
        assert await store.commit(worker.id, [park]) == [Outcome.BUSY]
    assert await store.commit(worker.id, [park]) == [Outcome.APPLIED]
    assert (await read(store, run.run.id)).ready_at is not None


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
            assert await store.reap() == 1
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
        assert await store.reap() == 0
    assert (await read(store, run.run.id)).owner == worker.id
    assert await store.reap() == 1


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


_WAITS = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s)"


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
        for lane in (lanes.flush, lanes.claim, lanes.create):
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


# -- other processes, and secrets -----------------------------------------------------------------

_MIGRATE = """
import asyncio, sys
from durable.stores.postgres import PostgresStore, connections, sessions
async def main():
    store = PostgresStore(sys.argv[1], schema=sys.argv[2])
    await store.open()
    sys.stdin.readline()
    await store.migrate()
    print(await store.schema_version())
    await store.close()
asyncio.run(main())
"""


def test_P42_eight_processes_migrate_at_once(postgres_url: str) -> None:
    schema = "eight"
    command = [sys.executable, "-c", _MIGRATE, postgres_url, schema]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    answers = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        answers.append((out.strip(), err, process.returncode))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA eight CASCADE")
    assert answers == [("1", "", 0)] * 8


async def test_P55_no_error_log_or_repr_shows_the_password(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "tea-and-sugar"
    caplog.set_level(logging.DEBUG)
    host = url_with(postgres.url).rpartition("@")[2]
    texts: list[str] = []
    for url in (
        f"postgresql://nobody_{postgres.schema}:{secret}@{host}",
        f"postgresql://app:{secret}@127.0.0.1:1/app",
        f"host=127.0.0.1 port=1 user=app password={secret} dbname=app",
        f"postgresql://app:{secret}@no.such.host.invalid/app",
    ):
        store = PostgresStore(url)
        texts += [store.url, repr(store), repr(store._server)]
        with pytest.raises(StoreUnavailable) as raised:
            await store.open()
        texts += [str(raised.value), repr(raised.value), *map(str, _chain(raised.value))]
        with pytest.raises(StoreUnavailable) as raised:
            store.renew(str(uuid4()), 1.0)
        texts += [str(raised.value), *map(str, _chain(raised.value))]
    with pytest.raises(ValueError, match="URL") as invalid:
        PostgresStore(f"postgresql://app:{secret}@host:notaport:5/x?{secret}=1")
    texts += [str(invalid.value), *map(str, _chain(invalid.value)), caplog.text]
    assert [text for text in texts if secret in text] == []


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    inner: BaseException | None = error
    while inner is not None:
        found.append(inner)
        inner = inner.__cause__ or (None if inner.__suppress_context__ else inner.__context__)
    return found


async def test_P43_a_server_that_is_down_fails_the_open_and_nothing_is_left(postgres: Postgres) -> None:
    before = {task.get_name() for task in asyncio.all_tasks()}
    store = PostgresStore("postgresql://app@127.0.0.1:1/app")
    with pytest.raises(StoreUnavailable, match="cannot connect"):
        await store.open()
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.get_runs([str(uuid4())])
    await store.close()
    assert {task.get_name() for task in asyncio.all_tasks()} == before


async def test_after_close_no_connection_and_no_task_is_left(postgres: Postgres) -> None:
    await postgres.fresh()
    before = {task.get_name() for task in asyncio.all_tasks()}
    name = f"closing_{postgres.schema}"
    store = await postgres.another(url_with(postgres.url, query=f"application_name={name}"))
    await store.open()  # counted
    worker, run = await claimed(store)
    await asyncio.to_thread(store.renew, worker.id, 60.0)
    store.announce(Hint.WORK)
    await store.close()
    await worker.apply(run, record(1))
    await store.close()
    assert {task.get_name() for task in asyncio.all_tasks()} == before
    # A backend takes a moment to notice that its client has gone.
    await postgres.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)", name)
    with pytest.raises(StoreUnavailable):
        await worker.claim(routes=[ROUTE])
