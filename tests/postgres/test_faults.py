"""What goes wrong between a worker and its Postgres: lost answers, lost connections, other processes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import anyio
import psycopg
import pytest

from durable import states
from durable.errors import StoreUnavailable
from durable.model import Outcome, RunWrite, State
from durable.sql import migrations
from durable.store import Hint
from durable.stores.postgres import PostgresStore
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
            before = proxy.pieces.copy()
            await call()
            # Others may speak meanwhile, such as the connection that listens: none twice.
            assert set((proxy.pieces - before).values()) == {1}
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


async def test_a_migration_under_a_running_store_outdates_no_plan_for_good(apart: Postgres) -> None:
    store = await apart.fresh(pool_size=2)
    worker, run = await claimed(store)
    for _ in range(8):
        await store.get_runs([run.run.id])
        await worker.claim()
    await worker.apply(run, change=_RELEASE)
    apart.rows("ALTER TABLE durable.runs ALTER COLUMN claim TYPE bigint")
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
            assert (
                await heard.get() == Hint.WORK | Hint.ENDED | Hint.REQUEST | Hint.SCHEDULE
            )  # listening again: something may have been missed
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
    await postgres.fresh()
    name = f"scope_{postgres.schema}"
    store = await postgres.another(url_with(postgres.url, query=f"application_name={name}"))
    worker, run = await claimed(store)
    pids = f"SELECT array_agg(pid ORDER BY pid) FROM pg_stat_activity WHERE application_name = '{name}'"
    before = postgres.rows(pids)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await worker.write(run, record(1))
    with anyio.CancelScope() as scope:
        scope.cancel()
        await store.get_runs([run.run.id])
    await worker.apply(run, record(1), record(2))
    assert postgres.rows(pids) == before


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
    assert answers == [(str(len(migrations("postgres"))), "", 0)] * 8


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
    assert {task.get_name() for task in asyncio.all_tasks()} <= before


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
    assert {task.get_name() for task in asyncio.all_tasks()} <= before
    # A backend takes a moment to notice that its client has gone.
    await postgres.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)", name)
    with pytest.raises(StoreUnavailable):
        await worker.claim(routes=[ROUTE])
