"""A function's own transaction: its writes and the step's record are both there or neither, whatever happens to it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from durable.errors import InvalidArgument, StoreUnavailable
from durable.model import ClaimedRun, Outcome, RunWrite
from durable.stores.sqlite import SQLiteStore
from durable.stores.sqlite.connection import Connection
from tests.sqlite.conftest import Peer
from tests.sqlite.peer import ROUTE, new_runs, step
from tests.sqlite.test_protocol import execute, take

StartPeers = Callable[[int], Awaitable[list[Peer]]]
Work = Callable[[sqlite3.Connection], Any]

APPLIED, LOST = Outcome.APPLIED, Outcome.LEASE_LOST
LEDGER = "SELECT n FROM ledger ORDER BY n"


class Ledger:
    """An application's table, and a run whose steps write into it."""

    def __init__(self, store: SQLiteStore, path: Path, run: ClaimedRun) -> None:
        self.store, self.path, self.run = store, path, run
        self.seq = 0

    async def transact(self, work: Work, on_loop: bool = False) -> Outcome:
        self.seq = seq = self.seq + 1

        async def write(_: Any) -> RunWrite:
            return step(self.run.ref, seq, self.store.clock.now())

        async def on_the_loop(connection: sqlite3.Connection) -> Any:
            return work(connection)

        return await self.store.transact("w", on_the_loop if on_loop else work, on_loop, write)

    def entries(self) -> list[int]:
        return [n for (n,) in execute(self.path, LEDGER)]

    async def recorded(self) -> int:
        return len(await self.store.history(self.run.run.id))


@pytest.fixture
async def ledger(store: SQLiteStore, path: Path) -> Ledger:
    (run,) = await take(store, 1)
    execute(path, "CREATE TABLE ledger (n INTEGER PRIMARY KEY) STRICT")
    return Ledger(store, path, run)


def insert(connection: sqlite3.Connection, n: int = 1) -> int:
    connection.execute("INSERT INTO ledger VALUES (?)", (n,))
    return n


@pytest.mark.parametrize("on_loop", [False, True])
async def test_the_writes_and_the_record_are_committed_together(ledger: Ledger, on_loop: bool) -> None:
    seen: list[Any] = []

    async def write(result: Any) -> RunWrite:
        seen.append((result, ledger.entries(), threading.current_thread() is threading.main_thread()))
        return step(ledger.run.ref, 1, ledger.store.clock.now())

    async def on_the_loop(connection: sqlite3.Connection) -> int:
        await asyncio.sleep(0)
        return insert(connection)

    assert await ledger.store.transact("w", on_the_loop if on_loop else insert, on_loop, write) is APPLIED
    assert seen == [(1, [], True)]
    assert (ledger.entries(), await ledger.recorded()) == ([1], 1)


class Refused(Exception):
    pass


@pytest.mark.parametrize("on_loop", [False, True])
async def test_a_function_that_raises_has_written_nothing(ledger: Ledger, on_loop: bool) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        raise Refused

    with pytest.raises(Refused):
        await ledger.transact(work, on_loop)
    assert (ledger.entries(), await ledger.recorded()) == ([], 0)
    assert await ledger.transact(insert, on_loop) is APPLIED
    assert ledger.entries() == [1]


async def test_a_stop_iteration_is_an_error_like_others(ledger: Ledger) -> None:
    def work(_: sqlite3.Connection) -> None:
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        await ledger.transact(work)


async def test_a_record_that_cannot_be_made_takes_the_writes_back(ledger: Ledger) -> None:
    async def write(_: Any) -> RunWrite:
        raise Refused

    with pytest.raises(Refused):
        await ledger.store.transact("w", insert, False, write)
    assert ledger.entries() == []


async def test_P04_a_lost_lease_takes_the_writes_back(ledger: Ledger) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        connection.execute("DELETE FROM durable_workers")  # as a reaper would have before

    assert await ledger.transact(work) is LOST
    assert (ledger.entries(), await ledger.recorded()) == ([], 0)


async def test_another_record_under_the_key_takes_the_writes_back(ledger: Ledger) -> None:
    assert await ledger.transact(insert) is APPLIED
    ledger.seq = 0
    assert await ledger.transact(lambda connection: insert(connection, 2)) is LOST
    assert (ledger.entries(), await ledger.recorded()) == ([1], 1)


def commit_by_name(connection: sqlite3.Connection) -> None:
    connection.commit()


def commit_by_statement(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def commit_by_context(connection: sqlite3.Connection) -> None:
    with connection:
        insert(connection, 2)


def commit_by_script(connection: sqlite3.Connection) -> None:
    connection.cursor().executescript("SELECT 1")  # it commits what is open first


def roll_back(connection: sqlite3.Connection) -> None:
    connection.rollback()


@pytest.mark.parametrize("end", [commit_by_name, commit_by_statement, commit_by_context, commit_by_script, roll_back])
async def test_a_function_cannot_end_its_transaction(ledger: Ledger, end: Work) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        end(connection)

    with pytest.raises(sqlite3.DatabaseError, match="not authorized") as caught:
        await ledger.transact(work)
    assert "durable ends this transaction itself" in caught.value.__notes__[0]
    assert (ledger.entries(), await ledger.recorded()) == ([], 0)


async def test_savepoints_are_the_functions_own(ledger: Ledger) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        connection.execute("SAVEPOINT here")
        insert(connection, 2)
        connection.execute("ROLLBACK TO here")

    assert await ledger.transact(work) is APPLIED
    assert ledger.entries() == [1]


async def test_a_transaction_that_a_conflict_ended_records_nothing(ledger: Ledger) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        with pytest.raises(sqlite3.IntegrityError):
            connection.execute("INSERT OR ROLLBACK INTO ledger VALUES (1)")

    with pytest.raises(InvalidArgument, match="ended before"):
        await ledger.transact(work)
    assert (ledger.entries(), await ledger.recorded()) == ([], 0)


async def test_what_a_function_does_to_its_connection_is_not_the_next_ones(ledger: Ledger) -> None:
    left: list[Any] = []

    def spoil(connection: sqlite3.Connection) -> None:
        connection.row_factory = sqlite3.Row
        connection.text_factory = bytes
        cursor = connection.execute("SELECT id FROM durable_runs UNION ALL SELECT id FROM durable_runs")
        left.append((cursor, cursor.fetchone()))  # not read to its end: the connection stays in the past

    assert await ledger.transact(spoil) is APPLIED
    await ledger.store.create_runs(new_runs(1))
    assert await ledger.transact(lambda c: left.append(c.execute("SELECT 'text'").fetchall())) is APPLIED
    assert left[-1] == [("text",)]


async def test_a_function_that_closes_its_connection_has_written_nothing(ledger: Ledger) -> None:
    def work(connection: sqlite3.Connection) -> None:
        insert(connection)
        connection.close()

    with pytest.raises(StoreUnavailable):
        await ledger.transact(work)
    assert ledger.entries() == []
    assert await ledger.transact(insert) is APPLIED


async def test_the_function_sees_the_callers_context(ledger: Ledger) -> None:
    word: ContextVar[str] = ContextVar("word")
    word.set("here")
    seen: list[str] = []
    assert await ledger.transact(lambda _: seen.append(word.get())) is APPLIED
    assert seen == ["here"]


class Gate:
    """A function that writes, says so, and goes on when it is told to."""

    def __init__(self) -> None:
        self.loop, self.inside, self.go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

    def __call__(self, connection: sqlite3.Connection) -> None:
        insert(connection, 7)
        self.loop.call_soon_threadsafe(self.inside.set)
        assert self.go_on.wait(30)


async def test_while_the_function_executes_readers_read_and_writers_wait(ledger: Ledger) -> None:
    gate = Gate()
    transaction = asyncio.ensure_future(ledger.transact(gate))
    await gate.inside.wait()
    assert ledger.entries() == []
    assert [run.id for run in await ledger.store.get_runs([ledger.run.run.id])] == [ledger.run.run.id]
    second = asyncio.ensure_future(ledger.transact(insert))
    creating = asyncio.ensure_future(ledger.store.create_runs(new_runs(1)))
    gate.go_on.set()
    assert [await transaction, await second] == [APPLIED, APPLIED]
    assert (await creating)[0].created
    assert ledger.entries() == [1, 7]


async def test_a_cancelled_transaction_is_rolled_back_when_its_function_has_returned(ledger: Ledger) -> None:
    gate = Gate()
    transaction = asyncio.ensure_future(ledger.transact(gate))
    await gate.inside.wait()
    transaction.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transaction
    gate.go_on.set()
    assert await ledger.transact(insert) is APPLIED
    assert (ledger.entries(), await ledger.recorded()) == ([1], 1)


async def test_a_cancelled_transaction_on_the_loop_is_rolled_back(ledger: Ledger) -> None:
    inside = asyncio.Event()

    async def work(connection: sqlite3.Connection) -> None:
        insert(connection, 7)
        inside.set()
        await asyncio.Event().wait()

    async def write(_: Any) -> RunWrite:
        raise AssertionError

    transaction = asyncio.ensure_future(ledger.store.transact("w", work, True, write))
    await inside.wait()
    transaction.cancel()
    with pytest.raises(asyncio.CancelledError):
        await transaction
    assert await ledger.transact(insert) is APPLIED
    assert ledger.entries() == [1]


async def test_closing_waits_for_no_function(path: Path) -> None:
    store = SQLiteStore(path)
    await store.open()
    await store.migrate()
    (run,) = await take(store, 1)
    execute(path, "CREATE TABLE ledger (n INTEGER PRIMARY KEY) STRICT")
    gate = Gate()
    transaction = asyncio.ensure_future(Ledger(store, path, run).transact(gate))
    await gate.inside.wait()
    transaction.cancel()
    await asyncio.wait([transaction])
    closing = asyncio.ensure_future(store.close())
    await asyncio.wait_for(closing, 5)
    gate.go_on.set()
    with pytest.raises(StoreUnavailable, match="not open"):
        await Ledger(store, path, run).transact(insert)


@pytest.mark.parametrize("committed", [True, False])
async def test_a_lost_answer_to_the_commit_is_looked_up(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    commit = Connection.commit

    def lose_the_answer(self: Connection) -> None:
        if committed:
            commit(self)
        else:
            self.roll_back()
        raise StoreUnavailable("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(Connection, "commit", lose_the_answer)
        if committed:
            assert await ledger.transact(insert) is APPLIED
        else:
            with pytest.raises(StoreUnavailable):
                await ledger.transact(insert)
    assert (ledger.entries(), await ledger.recorded()) == (([1], 1) if committed else ([], 0))
    assert await ledger.transact(lambda connection: insert(connection, 2)) is APPLIED


async def test_kill_9_leaves_the_writes_and_the_record_or_neither(
    peers: StartPeers, store: SQLiteStore, path: Path
) -> None:
    """The peer transacts without a pause; it is killed five times, each time somewhere else in it."""
    execute(path, "CREATE TABLE ledger (n INTEGER PRIMARY KEY) STRICT")
    for n, acknowledged in enumerate((1, 2, 3, 5, 8)):
        await store.create_runs(new_runs(1))
        (peer,) = await peers(1)
        await peer.ask("open")
        (run_id,) = await peer.ask("take", f"w{n}", 1)
        before = len(execute(path, LEDGER))
        peer.tell("transact_for_ever", f"w{n}")
        for _ in range(acknowledged):
            await peer.answer()
        await peer.kill()
        written = len(execute(path, LEDGER)) - before
        assert written == len(await store.history(run_id))
        assert written >= acknowledged


async def test_a_process_that_is_killed_inside_the_function_holds_nobody_up(
    peers: StartPeers, store: SQLiteStore, path: Path
) -> None:
    execute(path, "CREATE TABLE ledger (n INTEGER PRIMARY KEY) STRICT")
    await store.create_runs(new_runs(1))
    (peer,) = await peers(1)
    await peer.ask("open")
    (run_id,) = await peer.ask("take", "theirs", 1)
    peer.tell("transact_and_hang", "theirs")
    assert await peer.answer() == "inside"
    await peer.kill()
    await store.register("theirs", -1)
    assert (await store.reap()).released == 1
    await store.register("w", 60)
    (run,) = (await store.claim("w", [ROUTE], 1, "b", {})).runs
    assert run.run.id == run_id
    ledger = Ledger(store, path, run)
    ledger.seq = 1  # after the takeover record
    assert await ledger.transact(insert) is APPLIED
    assert ledger.entries() == [1]
