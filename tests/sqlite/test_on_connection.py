"""Triggers and signals on an application's own connection: its transaction decides, and nothing is left behind."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from durable import states
from durable.errors import InvalidArgument, PayloadError, StoreUnavailable
from durable.model import Debounce, NewSignal, Policy, Run, RunWrite, Sent, State
from durable.store import Hint
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import ROUTE, new_runs
from tests.sqlite.test_protocol import execute, take

Connect = Callable[..., sqlite3.Connection]


@pytest.fixture
def connect(store: SQLiteStore, path: Path) -> Iterator[Connect]:
    """Connections to the store's file, which has a table of the application's."""
    made: list[sqlite3.Connection] = []
    execute(path, "CREATE TABLE orders (n INTEGER)")

    def connection(**options: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(path, **options))
        return made[-1]

    yield connection
    for one in made:
        one.close()


def begin(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO orders VALUES (1)")


def write_first(connection: sqlite3.Connection) -> None:
    connection.execute("INSERT INTO orders VALUES (1)")


def do_nothing(connection: sqlite3.Connection) -> None:
    assert not connection.in_transaction


WAYS: list[Any] = [
    pytest.param({}, do_nothing, id="the driver begins"),
    pytest.param({}, write_first, id="the driver has begun"),
    pytest.param({"isolation_level": "EXCLUSIVE"}, do_nothing, id="exclusively"),
    pytest.param({"isolation_level": None}, begin, id="the user has begun"),
]


@pytest.mark.parametrize(("options", "before"), WAYS)
@pytest.mark.parametrize("committed", [True, False])
async def test_P38_a_trigger_stands_when_the_users_transaction_commits(
    store: SQLiteStore, connect: Connect, options: Any, before: Callable[[sqlite3.Connection], None], committed: bool
) -> None:
    connection = connect(**options)
    before(connection)
    (new,) = new_runs(1)
    created = store.on_connection.trigger(connection, replace(new, key="k"))
    assert (created.run_id, created.created) == (new.id, True)
    assert connection.in_transaction
    assert await store.get_runs([new.id]) == []
    if committed:
        connection.commit()
    else:
        connection.rollback()
    await store.register("w", 60)
    claimed = (await store.claim("w", [ROUTE], 10, "b", {})).runs
    assert [run.run.id for run in claimed] == ([new.id] if committed else [])
    assert await store.find_key(new.workflow, "k") == (new.id if committed else None)


async def waiting(store: SQLiteStore) -> Run:
    (run,) = await take(store, 1)
    park = states.park(State.RUNNING, ready_at=None, wakes=run.wakes, waiting=True)
    await store.commit("w", [RunWrite(run.ref, change=park)])
    return run.run


@pytest.mark.parametrize(("options", "before"), WAYS)
@pytest.mark.parametrize("committed", [True, False])
async def test_P38_a_signal_wakes_its_run_when_the_users_transaction_commits(
    store: SQLiteStore, connect: Connect, options: Any, before: Callable[[sqlite3.Connection], None], committed: bool
) -> None:
    run = await waiting(store)
    connection = connect(**options)
    before(connection)
    assert store.on_connection.signal(connection, NewSignal(run.id, "s1", "approval", "true")) is Sent.ACCEPTED
    if committed:
        connection.commit()
    else:
        connection.rollback()
    claimed = (await store.claim("w", [ROUTE], 10, "b2", {})).runs
    assert [[signal.id for signal in one.signals] for one in claimed] == ([["s1"]] if committed else [])


async def test_P38_a_run_and_its_first_signal_in_one_transaction(store: SQLiteStore, connect: Connect) -> None:
    connection = connect()
    (new,) = new_runs(1)
    store.on_connection.trigger(connection, new)
    signal = NewSignal(new.id, "s1", "approval", "1")
    assert [store.on_connection.signal(connection, signal) for _ in range(2)] == [Sent.ACCEPTED] * 2
    unknown = replace(signal, run_id="unknown")
    assert store.on_connection.signal(connection, unknown) is Sent.NOT_FOUND
    connection.commit()
    await store.register("w", 60)
    (run,) = (await store.claim("w", [ROUTE], 1, "b", {})).runs
    assert [(one.name, one.data) for one in run.signals] == [("approval", "1")]


async def test_P38_a_commit_is_a_hint_for_the_stores_of_the_same_process_too(
    store: SQLiteStore, connect: Connect
) -> None:
    await store.get_runs([])
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    end = store.subscribe(heard.put_nowait)
    connection = connect()
    store.on_connection.trigger(connection, new_runs(1)[0])
    connection.commit()
    assert Hint.WORK in await heard.get()
    end()


async def test_in_autocommit_mode_each_call_commits(store: SQLiteStore, connect: Connect) -> None:
    connection = connect(isolation_level=None)
    (new,) = new_runs(1)
    assert store.on_connection.trigger(connection, new).created
    assert not connection.in_transaction
    assert [run.id for run in await store.get_runs([new.id])] == [new.id]


async def test_it_makes_the_same_run_as_a_trigger_without_a_connection(store: SQLiteStore, connect: Connect) -> None:
    one, other = (
        replace(new, key=key, tags={"a": "b"}, queue="q", limit_key="l", parent="p", parent_key="c", delay=60)
        for new, key in zip(new_runs(2), ("k1", "k2"), strict=True)
    )
    connection = connect()
    store.on_connection.trigger(connection, one)
    connection.commit()
    await store.create_runs([other])
    made = {run.id: run for run in await store.get_runs([one.id, other.id])}
    same: dict[str, Any] = {"id": "", "key": "", "created_at": made[one.id].created_at, "ready_at": None}
    assert replace(made[one.id], **same) == replace(made[other.id], **same)


async def test_P36_a_key_that_is_taken_names_its_run(store: SQLiteStore, connect: Connect) -> None:
    new, other = (replace(one, key="k") for one in new_runs(2))
    connection = connect()
    on_connection = store.on_connection
    answers = [on_connection.trigger(connection, run) for run in (new, new, other, replace(other, input_hash="x"))]
    assert [(one.run_id, one.created) for one in answers[:3]] == [(new.id, True), (new.id, True), (new.id, False)]
    assert answers[3].conflict is not None
    connection.commit()


async def test_a_call_that_fails_leaves_the_users_transaction_as_it_was(
    store: SQLiteStore, connect: Connect, path: Path
) -> None:
    connection = connect()
    write_first(connection)
    (new,) = new_runs(1)
    with pytest.raises(PayloadError):
        store.on_connection.trigger(connection, replace(new, input="\ud800"))
    with pytest.raises(PayloadError):
        store.on_connection.trigger(connection, replace(new, seed=cast("str", None)))  # the database refuses it
    connection.commit()
    assert execute(path, "SELECT n FROM orders") == [(1,)]
    assert await store.get_runs([new.id]) == []


async def test_the_users_factories_do_not_matter_and_nothing_is_left_on_the_connection(
    store: SQLiteStore, connect: Connect
) -> None:
    connection = connect()
    connection.row_factory = sqlite3.Row
    connection.text_factory = bytes
    assert store.on_connection.trigger(connection, new_runs(1)[0]).created
    connection.commit()
    assert connection.execute("SELECT count(*) FROM sqlite_temp_master").fetchone()[0] == 0


async def test_a_connection_that_does_not_fit_is_refused(store: SQLiteStore, connect: Connect, tmp_path: Path) -> None:
    on_connection = store.on_connection
    (new,) = new_runs(1)
    for other in (sqlite3.connect(":memory:"), sqlite3.connect(tmp_path / "other.db")):
        assert on_connection.accepts(other)
        with pytest.raises(InvalidArgument, match="the connection is to"):
            on_connection.trigger(other, new)
        other.close()
        with pytest.raises(InvalidArgument, match="closed"):
            on_connection.trigger(other, new)
    for wrong in (object(), None, "sqlite://"):
        assert not on_connection.accepts(wrong)
    assert not on_connection.is_async(connect())


async def test_a_connection_of_another_thread_is_refused(store: SQLiteStore, connect: Connect) -> None:
    connection, errors = connect(), list[BaseException]()

    def use() -> None:
        try:
            store.on_connection.trigger(connection, new_runs(1)[0])
        except InvalidArgument as error:
            errors.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert "thread" in str(errors[0])


async def test_who_finds_another_writer_is_told_what_to_do(store: SQLiteStore, connect: Connect) -> None:
    busy, connection = connect(isolation_level=None), connect(timeout=0)
    begin(busy)
    with pytest.raises(StoreUnavailable, match="BEGIN IMMEDIATE"):
        store.on_connection.trigger(connection, new_runs(1)[0])
    busy.rollback()
    assert store.on_connection.trigger(connection, new_runs(1)[0]).created


async def test_replacing_and_debouncing_are_refused(store: SQLiteStore, connect: Connect) -> None:
    (new,) = new_runs(1)
    refused = [
        replace(new, concurrency_key="c", policy=Policy.REPLACE),
        replace(new, debounce=Debounce("d", 1.0)),
    ]
    for run in refused:
        with pytest.raises(InvalidArgument):
            store.on_connection.trigger(connect(), run)
