"""A function's own transaction: its writes and the step's record are both there or neither, whatever happens to it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from durable import states
from durable.errors import InvalidArgument, PayloadError, StoreUnavailable
from durable.model import ClaimedRun, Outcome, RunWrite, State
from durable.store import Store
from durable.testing._servers import url_with
from durable.testing.conformance.harness import Worker, claimed, record
from tests.postgres.conftest import Postgres
from tests.postgres.proxy import Proxy

Sync = psycopg.Connection[Any]
Work = Callable[[Sync], Any]

APPLIED, LOST = Outcome.APPLIED, Outcome.LEASE_LOST
BOTH = pytest.mark.parametrize("on_loop", [False, True], ids=["thread", "loop"])


class Ledger:
    """An application's table, and a run whose steps write into it."""

    def __init__(self, postgres: Postgres, worker: Worker, run: ClaimedRun) -> None:
        self.postgres, self.worker, self.run = postgres, worker, run
        self.store: Store = worker.store
        self.table = f"ledger_{postgres.schema}"
        postgres.sql.execute(f"CREATE TABLE {self.table} (n integer PRIMARY KEY)".encode())
        self.seq = 0

    def insert(self, connection: Sync, n: int = 1) -> int:
        connection.execute(f"INSERT INTO {self.table} VALUES (%s)".encode(), [n])
        return n

    async def insert_async(self, connection: psycopg.AsyncConnection[Any], n: int = 1) -> int:
        await connection.execute(f"INSERT INTO {self.table} VALUES (%s)".encode(), [n])
        return n

    def plain(self, on_loop: bool) -> Callable[[Any], Any]:
        return self.insert_async if on_loop else self.insert

    async def transact(self, work: Callable[[Any], Any], on_loop: bool = False, data: str = '"done"') -> Outcome:
        self.seq = seq = self.seq + 1

        async def write(_: Any) -> RunWrite:
            return RunWrite(self.run.ref, [record(seq, data=data)])

        return await self.store.transact(self.worker.id, work, on_loop, write)

    def entries(self) -> list[int]:
        return [n for (n,) in self.postgres.beside(f"SELECT n FROM {self.table} ORDER BY n")]

    async def recorded(self) -> int:
        return len(await self.store.history(self.run.run.id))

    async def there(self) -> tuple[list[int], int]:
        """The rows of the application, and how many records the run has."""
        return self.entries(), await self.recorded()


@pytest.fixture
async def ledger(postgres: Postgres) -> AsyncIterator[Ledger]:
    worker, run = await claimed(await postgres.fresh())
    ledger = Ledger(postgres, worker, run)
    yield ledger
    postgres.sql.execute(f"DROP TABLE {ledger.table}".encode())


async def behind(ledger: Ledger, url: str) -> Store:
    """Have the ledger's transactions go through another store."""
    ledger.store = await ledger.postgres.another(url)
    return ledger.store


class Refused(Exception):
    pass


# -- both or neither ------------------------------------------------------------------------------


@BOTH
async def test_the_writes_and_the_record_are_committed_together(ledger: Ledger, on_loop: bool) -> None:
    seen: list[Any] = []

    async def write(result: Any) -> RunWrite:
        seen.append((result, ledger.entries(), threading.current_thread() is threading.main_thread()))
        return RunWrite(ledger.run.ref, [record(1), record(2)])

    assert await ledger.store.transact(ledger.worker.id, ledger.plain(on_loop), on_loop, write) is APPLIED
    assert seen == [(1, [], True)]
    assert await ledger.there() == ([1], 2)
    assert [entry.worker for entry in await ledger.store.history(ledger.run.run.id)] == [ledger.worker.id] * 2


async def test_a_record_is_stored_as_the_flush_stores_it(ledger: Ledger) -> None:
    full = record(
        1, attempt=3, duration=0.1 + 0.2, begun=7, compensable=True, due_at=record(1).at, data='{"é": "\\u2028"}'
    )

    async def write(_: Any) -> RunWrite:
        return RunWrite(ledger.run.ref, [full])

    assert await ledger.store.transact(ledger.worker.id, ledger.insert, False, write) is APPLIED
    assert await ledger.store.history(ledger.run.run.id) == [full._replace(worker=ledger.worker.id)]
    assert await ledger.worker.write(ledger.run, full) is APPLIED  # as one that is sent again


@BOTH
async def test_a_function_that_raises_has_written_nothing(ledger: Ledger, on_loop: bool) -> None:
    async def on_the_loop(connection: Any) -> None:
        await ledger.insert_async(connection)
        raise Refused

    def in_a_thread(connection: Sync) -> None:
        ledger.insert(connection)
        raise Refused

    with pytest.raises(Refused):
        await ledger.transact(on_the_loop if on_loop else in_a_thread, on_loop)
    assert await ledger.there() == ([], 0)
    assert await ledger.transact(ledger.plain(on_loop), on_loop) is APPLIED
    assert ledger.entries() == [1]


async def test_a_record_that_cannot_be_made_takes_the_writes_back(ledger: Ledger) -> None:
    async def write(_: Any) -> RunWrite:
        raise Refused

    with pytest.raises(Refused):
        await ledger.store.transact(ledger.worker.id, ledger.insert, False, write)
    for bad in ('"\0"', '"\ud800"'):
        with pytest.raises(PayloadError):
            await ledger.transact(ledger.insert, data=bad)
    assert await ledger.there() == ([], 0)


async def test_only_records_are_written_with_a_function(ledger: Ledger) -> None:
    for write in (RunWrite(ledger.run.ref), RunWrite(ledger.run.ref, [record(1)], states.release(State.RUNNING))):

        async def made(_: Any, write: RunWrite = write) -> RunWrite:
            return write

        with pytest.raises(InvalidArgument, match="records"):
            await ledger.store.transact(ledger.worker.id, ledger.insert, False, made)
    assert await ledger.there() == ([], 0)


async def test_a_constraint_that_is_checked_at_the_commit_is_the_functions_own_error(ledger: Ledger) -> None:
    ledger.postgres.sql.execute(
        f"ALTER TABLE {ledger.table} ADD other integer REFERENCES {ledger.table} DEFERRABLE INITIALLY DEFERRED".encode()
    )
    insert = f"INSERT INTO {ledger.table} VALUES (1, 2)".encode()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        await ledger.transact(lambda connection: connection.execute(insert))
    assert await ledger.there() == ([], 0)


# -- the lease ------------------------------------------------------------------------------------


async def _taken_over(ledger: Ledger) -> None:
    await ledger.postgres.expire(ledger.worker.id)
    assert (await ledger.worker.store.reap()).released == 1


async def _claimed_anew(ledger: Ledger) -> None:
    await ledger.worker.apply(ledger.run, change=states.release(State.RUNNING))
    await ledger.worker.take()


@pytest.mark.parametrize("lose", [_taken_over, _claimed_anew], ids=["taken over", "claimed anew"])
async def test_P04_a_lease_that_is_lost_while_the_function_runs_takes_its_writes_back(
    ledger: Ledger, lose: Callable[[Ledger], Awaitable[None]]
) -> None:
    async def work(connection: psycopg.AsyncConnection[Any]) -> None:
        await ledger.insert_async(connection)
        await lose(ledger)  # the reaper waits for no function

    before = await ledger.recorded()
    assert await ledger.transact(work, on_loop=True) is LOST
    assert ledger.entries() == []
    assert [entry for entry in await ledger.store.history(ledger.run.run.id) if entry.key == "s1"] == []
    assert before == 0


async def test_a_heartbeat_does_not_wait_for_a_function_nor_does_a_flush(ledger: Ledger) -> None:
    async def work(connection: psycopg.AsyncConnection[Any]) -> None:
        await ledger.insert_async(connection)
        assert (await asyncio.to_thread(ledger.worker.store.renew, ledger.worker.id, 60.0)).alive
        await ledger.worker.apply(ledger.run, record(7))

    assert await ledger.transact(work, on_loop=True) is APPLIED
    assert await ledger.there() == ([1], 2)


async def test_another_record_under_the_key_takes_the_writes_back(ledger: Ledger) -> None:
    assert await ledger.transact(ledger.insert) is APPLIED
    ledger.seq = 0
    assert await ledger.transact(lambda connection: ledger.insert(connection, 2), data='"other"') is LOST
    ledger.seq = 0
    assert (
        await ledger.transact(lambda connection: ledger.insert(connection, 3)) is APPLIED
    )  # as it stands, by the first
    assert await ledger.there() == ([1], 1)


# -- who ends it ----------------------------------------------------------------------------------


def _commit(connection: Sync) -> None:
    connection.commit()


def _roll_back(connection: Sync) -> None:
    connection.rollback()


def _close(connection: Sync) -> None:
    connection.close()


def _leave_its_block(connection: Sync) -> None:
    with connection:
        pass


def _commit_by_statement(connection: Sync) -> None:
    connection.execute("ROLLBACK")


def _begin_again(connection: Sync) -> None:
    connection.execute("ROLLBACK")
    connection.execute("SELECT 1")


def _another_isolation(connection: Sync) -> None:
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")


def _leave_a_pipeline(connection: Sync) -> None:
    connection.pgconn.enter_pipeline_mode()


def _ignore_an_error(connection: Sync) -> None:
    with pytest.raises(psycopg.Error):
        connection.execute("SELECT 1 / 0")


@pytest.mark.parametrize(
    "end",
    [
        *(_commit, _roll_back, _close, _leave_its_block, _commit_by_statement, _begin_again, _another_isolation),
        *(_leave_a_pipeline, _ignore_an_error),
    ],
)
async def test_a_function_that_ends_the_transaction_itself_is_told(ledger: Ledger, end: Work) -> None:
    with pytest.raises((InvalidArgument, psycopg.Error)) as raised:
        await ledger.transact(end)
    assert "transaction" in str(raised.value).lower()
    assert await ledger.there() == ([], 0)
    assert await ledger.transact(ledger.insert) is APPLIED
    assert await ledger.there() == ([1], 1)


async def test_a_commit_by_the_functions_own_statement_is_found_out_and_not_recorded(ledger: Ledger) -> None:
    def work(connection: Sync) -> None:
        ledger.insert(connection)
        connection.execute("COMMIT")  # this cannot be prevented
        ledger.insert(connection, 2)

    with pytest.raises(InvalidArgument, match="had ended"):
        await ledger.transact(work)
    assert await ledger.there() == ([1], 0)


async def test_a_savepoint_is_the_functions_own(ledger: Ledger) -> None:
    def work(connection: Sync) -> None:
        ledger.insert(connection)
        with pytest.raises(psycopg.errors.UniqueViolation), connection.transaction():
            ledger.insert(connection)
        with connection.transaction():
            ledger.insert(connection, 2)

    assert await ledger.transact(work) is APPLIED
    assert await ledger.there() == ([1, 2], 1)


# -- what a function finds, and leaves ------------------------------------------------------------


async def test_a_function_finds_a_connection_as_its_own_program_would_make_it(ledger: Ledger) -> None:
    show = "SELECT current_user, current_setting('search_path'), current_setting('statement_timeout')"
    found: list[Any] = []

    def work(connection: Sync) -> None:
        found.extend(connection.execute(show).fetchall())
        (row,) = connection.execute("SELECT %s::uuid", ["018f3c1e-0000-7000-8000-000000000000"]).fetchall()
        found.append(type(row[0]).__name__)

    assert await ledger.transact(work) is APPLIED
    with psycopg.connect(ledger.postgres.url) as own:
        assert found == [*own.execute(show).fetchall(), "UUID"]


async def test_nothing_that_a_function_sets_reaches_the_next_one(ledger: Ledger) -> None:
    pids: list[int] = []
    lent: list[Sync] = []

    def leave(connection: Sync) -> None:
        connection.row_factory = dict_row
        connection.prepare_threshold = 0
        for statement in (
            *(
                "SET search_path = pg_temp",
                "SET statement_timeout = 12345",
                "CREATE TEMP TABLE left_behind (n integer)",
            ),
            *("PREPARE left_behind AS SELECT 1", "LISTEN left_behind", "SELECT pg_advisory_lock(1)"),
            *("DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1", f'CREATE ROLE "r_{ledger.postgres.schema}"'),
            f'SET SESSION AUTHORIZATION "r_{ledger.postgres.schema}"',
        ):
            connection.execute(statement.encode())
        connection.execute("RESET SESSION AUTHORIZATION")
        pids.append(connection.info.backend_pid)
        lent.append(connection)

    def look(connection: Sync) -> None:
        pids.append(connection.info.backend_pid)
        rows = connection.execute(
            "SELECT (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_cursors), "
            "(SELECT count(*) FROM pg_listening_channels()), to_regclass('left_behind'), "
            "current_setting('statement_timeout'), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' "
            "AND pid = pg_backend_pid() AND objid = 1)",
        ).fetchall()
        assert rows == [(0, 0, 0, None, "0", 0)]

    try:
        assert await ledger.transact(leave) is APPLIED
        await _cleaned(ledger.store)
        assert await ledger.transact(look) is APPLIED
        assert len(set(pids)) == 1  # the same one
        with pytest.raises(psycopg.InterfaceError, match="has ended"):
            lent[0].execute("SELECT 1")
    finally:
        ledger.postgres.sql.execute(f'DROP ROLE "r_{ledger.postgres.schema}"'.encode())


async def _cleaned(store: Any) -> None:
    while cleaning := store._transactions._cleaning:
        await asyncio.wait(cleaning)


async def test_a_thread_has_the_context_of_who_called(ledger: Ledger) -> None:
    request: ContextVar[str] = ContextVar("request")
    request.set("r1")
    seen: list[str] = []
    assert await ledger.transact(lambda _: seen.append(request.get())) is APPLIED
    assert seen == ["r1"]


async def test_many_at_once_share_a_bounded_number_of_connections(ledger: Ledger) -> None:
    name = f"bound_{ledger.postgres.schema}"
    await behind(ledger, url_with(ledger.postgres.url, query=f"application_name={name}"))
    most: list[int] = []
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND query NOT LIKE 'LISTEN%%'"

    async def work(connection: psycopg.AsyncConnection[Any], n: int) -> None:
        await ledger.insert_async(connection, n)
        most.extend(row[0] for row in await (await connection.execute(count.encode(), [name])).fetchall())

    before = multixacts(ledger)
    assert await asyncio.gather(*(ledger.transact(partial(work, n=n), True) for n in range(40))) == [APPLIED] * 40
    assert multixacts(ledger) == before  # no two have locked one row of the worker's
    assert await ledger.there() == (list(range(40)), 40)
    assert max(most) <= 20 + 8


def multixacts(ledger: Ledger) -> Any:
    ledger.postgres.rows("CHECKPOINT")
    return ledger.postgres.rows("SELECT next_multixact_id::text FROM pg_control_checkpoint()")


# -- cancelled ------------------------------------------------------------------------------------


@BOTH
async def test_cancelling_takes_the_writes_back(ledger: Ledger, on_loop: bool) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def on_the_loop(connection: psycopg.AsyncConnection[Any]) -> None:
        await ledger.insert_async(connection)
        begun.set()
        await connection.execute("SELECT pg_sleep(100)")

    def in_a_thread(connection: Sync) -> None:
        ledger.insert(connection)
        loop.call_soon_threadsafe(begun.set)
        connection.execute("SELECT pg_sleep(100)")

    running = asyncio.ensure_future(ledger.transact(on_the_loop if on_loop else in_a_thread, on_loop))
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await ledger.transact(ledger.plain(on_loop), on_loop) is APPLIED  # nobody holds the row's key
    assert await ledger.there() == ([1], 1)


async def test_closing_the_store_leaves_no_connection(ledger: Ledger) -> None:
    name = f"closing_{ledger.postgres.schema}"
    store = await behind(ledger, url_with(ledger.postgres.url, query=f"application_name={name}"))
    assert await ledger.transact(ledger.insert) is APPLIED
    await store.close()
    await ledger.postgres.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = %s)", name)
    with pytest.raises(StoreUnavailable):
        await ledger.transact(ledger.insert)


# -- lost connections -----------------------------------------------------------------------------


@BOTH
async def test_P11_a_connection_that_is_lost_in_the_function_wrote_nothing(ledger: Ledger, on_loop: bool) -> None:
    def end(pid: int) -> None:
        ledger.postgres.beside("SELECT pg_terminate_backend(%s, 10000)", pid)

    async def on_the_loop(connection: psycopg.AsyncConnection[Any]) -> None:
        await ledger.insert_async(connection)
        end(connection.info.backend_pid)
        await connection.execute("SELECT 1")

    def in_a_thread(connection: Sync) -> None:
        ledger.insert(connection)
        end(connection.info.backend_pid)
        connection.execute("SELECT 1")

    def silent(connection: Sync) -> None:
        ledger.insert(connection)
        end(connection.info.backend_pid)

    for work in (on_the_loop if on_loop else in_a_thread, *(() if on_loop else (silent,))):
        with pytest.raises(StoreUnavailable):
            await ledger.transact(work, on_loop)
    assert await ledger.there() == ([], 0)


async def test_P11_connections_that_a_restart_has_broken_are_replaced(ledger: Ledger) -> None:
    name = f"victim_{ledger.postgres.schema}"
    await behind(ledger, url_with(ledger.postgres.url, query=f"application_name={name}"))
    for n in range(3):
        assert await ledger.transact(partial(ledger.insert, n=n)) is APPLIED
        await _cleaned(ledger.store)
        for (pid,) in ledger.postgres.rows("SELECT pid FROM pg_stat_activity WHERE application_name = %s", name):
            ledger.postgres.rows("SELECT pg_terminate_backend(%s, 10000)", pid)
    assert await ledger.recorded() == 3


async def test_P11_a_commit_whose_acknowledgement_is_lost_is_looked_up(ledger: Ledger) -> None:
    async with Proxy(ledger.postgres.url) as proxy:
        store = await behind(ledger, proxy.url)

        def work(connection: Sync) -> None:
            ledger.insert(connection)
            proxy.swallow_next_commit()

        assert await ledger.transact(work) is APPLIED
        assert proxy.swallowed.is_set()
        assert await ledger.there() == ([1], 1)
        await store.close()


_WAITING = (
    "pg_locks JOIN pg_database AS d ON d.oid = database AND d.datname = current_database() "
    "WHERE locktype = 'advisory' AND NOT granted"
)
"""Who waits in this database: other test processes have theirs on the same server, with locks of the same numbers."""


@contextmanager
def held_up(ledger: Ledger) -> Generator[str]:
    """A trigger of the application holds every COMMIT up. Gives what asks whether one has come that far."""
    sql, table, lock = ledger.postgres.sql, ledger.table, next(_locks)
    sql.execute(
        f"""
        CREATE FUNCTION {table}_wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM pg_advisory_xact_lock_shared({lock}); RETURN NULL;
        END $$;
        CREATE CONSTRAINT TRIGGER late AFTER INSERT ON {table} DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION {table}_wait();
        SELECT pg_advisory_lock({lock});
        """.encode()
    )
    try:
        yield f"SELECT pid FROM {_WAITING} AND objid = {lock}"
    finally:
        let_go(ledger)
        sql.execute(f"DROP TRIGGER late ON {table}; DROP FUNCTION {table}_wait".encode())


_locks = count(7000)


def let_go(ledger: Ledger) -> None:
    ledger.postgres.sql.execute("SELECT pg_advisory_unlock_all()")


async def test_P11_a_commit_that_is_under_way_when_its_client_is_gone_is_waited_for(ledger: Ledger) -> None:
    with held_up(ledger) as waiting:
        async with Proxy(ledger.postgres.url) as proxy:
            store = await behind(ledger, proxy.url)
            running = asyncio.ensure_future(ledger.transact(ledger.insert))
            await ledger.postgres.until(f"SELECT EXISTS ({waiting})")
            ((pid,),) = ledger.postgres.beside(waiting)
            proxy.hang_up()
            # Now it waits for the end of the other transaction, which it would bring about itself after a second.
            await ledger.postgres.until(f"SELECT EXISTS (SELECT FROM {_WAITING} AND pid <> %s)", pid)
            let_go(ledger)
            assert await running is APPLIED
            assert await ledger.there() == ([1], 1)
            await store.close()


@pytest.mark.parametrize("by", ["an operator", "the store"])
async def test_P11_a_commit_that_is_ended_by_force_wrote_nothing(ledger: Ledger, by: str) -> None:
    with held_up(ledger) as waiting:
        async with Proxy(ledger.postgres.url) as proxy:
            store = await behind(ledger, proxy.url)
            running = asyncio.ensure_future(ledger.transact(ledger.insert))
            await ledger.postgres.until(f"SELECT EXISTS ({waiting})")
            if by == "an operator":
                ledger.postgres.beside(f"SELECT pg_terminate_backend(pid, 10000) FROM ({waiting}) AS w")
            else:
                proxy.hang_up()
            with pytest.raises(StoreUnavailable, match="before the commit"):
                await running
            assert await ledger.there() == ([], 0)
            await store.close()


# -- killed ---------------------------------------------------------------------------------------

_PROGRAM = """
import asyncio, sys
from durable.model import RunRef, RunWrite
from durable.stores.postgres import PostgresStore
from durable.testing.conformance.harness import record

url, schema, worker, run_id, claim, table = sys.argv[1:]

def work(connection):
    connection.execute(f"INSERT INTO {table} VALUES (1)")

async def write(_):
    return RunWrite(RunRef(0, run_id, int(claim)), [record(1)])

async def main():
    store = PostgresStore(url, schema=schema)
    await store.open()
    print("ready", flush=True)
    sys.stdin.readline()
    print(await store.transact(worker, work, False, write), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("acknowledged", [False, True])
async def test_P11_a_process_that_is_killed_at_its_commit_leaves_both_or_neither(
    ledger: Ledger, acknowledged: bool
) -> None:
    run = ledger.run.run
    with held_up(ledger) as waiting:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROGRAM, ledger.postgres.url, ledger.postgres.schema),
            *(ledger.worker.id, run.id, str(run.claim), ledger.table),
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            assert await process.stdout.readline() == b"ready\n"
            process.stdin.write(b"go\n")
            await ledger.postgres.until(f"SELECT EXISTS ({waiting})")
            ((pid,),) = ledger.postgres.beside(waiting)
            if acknowledged:
                let_go(ledger)
                assert await process.stdout.readline() == b"applied\n"
        finally:
            process.send_signal(signal.SIGKILL)
            await process.wait()
        let_go(ledger)
        await ledger.postgres.until("SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)", pid)
        entries, records = await ledger.there()
        assert len(entries) == records
        assert records or not acknowledged
        await _taken_over(ledger)  # nothing is left that would hold the lease
