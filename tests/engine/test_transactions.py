"""``ctx.transaction`` and the user's own transactions: both sides commit, or neither."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from durable import (
    ConfigurationError,
    Context,
    Engine,
    InvalidArgument,
    RunFailed,
    State,
    WorkerOptions,
    Workflow,
    current_step,
    workflow,
)
from durable.store import Store
from durable.stores.postgres import PostgresStore
from durable.stores.sqlite import SQLiteStore
from durable.testing import MemoryStore
from tests.engine.backends import SOON, Passes
from tests.engine.wrapped import Between


class Books:
    """An application's table beside the engine's, on SQLite or Postgres.

    Args:
        url: Of the Postgres database, or the path of the file.
        schema: Of the engine's tables, on Postgres.
    """

    def __init__(self, url: str | Path, schema: str = "") -> None:
        self.url = url
        self.schema = schema
        with self.connect() as connection:
            connection.execute("DROP TABLE IF EXISTS books")
            connection.execute("CREATE TABLE books (entry TEXT PRIMARY KEY)")

    def connect(self) -> Any:
        return sqlite3.connect(self.url) if isinstance(self.url, Path) else psycopg.connect(self.url)

    def store(self) -> SQLiteStore | PostgresStore:
        if isinstance(self.url, Path):
            return SQLiteStore(self.url)
        return PostgresStore(self.url, schema=self.schema)

    def engine(self, *workflows: Workflow[Any, Any], store: Store | None = None, linger: float = 1.0) -> Engine:
        options = WorkerOptions(drain_timeout=1, linger=linger)
        return Engine(store or self.store(), workflows=workflows, worker=options)

    @property
    def entries(self) -> list[str]:
        with self.connect() as connection:
            return [entry for (entry,) in connection.execute("SELECT entry FROM books ORDER BY entry")]

    def write(self, connection: Any, entry: str) -> str:
        mark = "?" if isinstance(self.url, Path) else "%s"
        connection.execute(f"INSERT INTO books VALUES ({mark})", [entry])
        return entry

    async def write_async(self, connection: Any, entry: str) -> str:
        if isinstance(self.url, Path):
            return self.write(connection, entry)
        await connection.execute("INSERT INTO books VALUES (%s)", [entry])
        return entry


@pytest.fixture(params=["sqlite", "postgres"])
def books(request: pytest.FixtureRequest, tmp_path: Path) -> Books:
    if request.param == "sqlite":
        return Books(tmp_path / "durable.db")
    url: str = request.getfixturevalue("postgres_url")
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier("transactions")))
    return Books(url, "transactions")


@pytest.mark.parametrize("kind", ["on the loop", "in a thread"])
async def test_the_functions_writes_and_the_record_are_one(books: Books, kind: str) -> None:
    @workflow
    async def flow(ctx: Context) -> list[str]:
        if kind == "on the loop":
            return [await ctx.transaction("book", books.write_async, entry) for entry in ("a", "b")]
        return [await ctx.transaction("book", books.write, entry) for entry in ("a", "b")]

    async with books.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert await handle.result(SOON) == ["a", "b"]
        started = [entry.name for entry in await engine.timeline(handle.run_id) if entry.kind == "completed"]
    assert books.entries == ["a", "b"]
    assert started[:2] == ["book", "book#2"]


async def test_a_function_that_fails_leaves_nothing_and_is_tried_again(books: Books) -> None:
    tries = 0

    async def fails_once(connection: Any) -> int:
        nonlocal tries
        tries += 1
        await books.write_async(connection, f"try {tries}")
        if tries == 1:
            raise ConnectionError("after the write")
        return tries

    @workflow
    async def flow(ctx: Context) -> int:
        return await ctx.transaction("book", fails_once, retry=2)

    async with books.engine(flow) as engine:
        assert await (await engine.trigger(flow)).result(SOON) == 2
    assert books.entries == ["try 2"]


async def test_a_result_that_cannot_be_stored_takes_the_effect_back(books: Books) -> None:
    async def writes(connection: Any) -> object:
        await books.write_async(connection, "a")
        return object()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.transaction("book", writes)

    async with books.engine(flow) as engine:
        with pytest.raises(RunFailed, match="book"):
            await (await engine.trigger(flow)).result(SOON)
    assert books.entries == []


async def test_a_cancelled_run_leaves_nothing_of_a_transaction_that_was_under_way(books: Books) -> None:
    begun = asyncio.Event()

    async def slow(connection: Any) -> None:
        await books.write_async(connection, "a")
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.transaction("book", slow)

    async with books.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        if isinstance(books.url, str):  # a write that waits for this one's lock is what SQLite has
            await handle.cancel()
            async with asyncio.timeout(SOON):
                while await handle.status() is not State.CANCELLED:  # noqa: ASYNC110 - only ends are announced
                    await asyncio.sleep(0.002)
    assert books.entries == []


async def test_it_is_undone_like_a_step(books: Books) -> None:
    undone: list[str] = []

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.transaction("book", books.write_async, "a", compensate=undone.append)
        raise ValueError("undo it")

    async with books.engine(flow) as engine:
        with pytest.raises(RunFailed):
            await (await engine.trigger(flow)).result(SOON)
    assert undone == ["a"]


async def test_transactions_beside_each_other_are_delivered_in_the_order_of_their_records(books: Books) -> None:
    order: list[str] = []

    @workflow
    async def flow(ctx: Context) -> None:
        async def one(entry: str) -> None:
            await ctx.transaction(f"book {entry}", books.write_async, entry)
            await ctx.step(f"step {entry}", asyncio.sleep, 0)
            order.append(entry)

        order.clear()
        await asyncio.gather(*(one(entry) for entry in "abcd"))

    async with books.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await handle.result(SOON)
        entries = await engine.timeline(handle.run_id)
        seqs = {entry.name: entry.seq for entry in entries if entry.kind == "completed" and " " in entry.name}
    assert sorted(order) == list("abcd")
    assert books.entries == list("abcd")
    assert len(set(seqs.values())) == len(seqs) == 8


class HoldsTheCommit(Between):
    """Lets a transaction commit some time after its record was drafted, which it tells."""

    def __init__(self, inner: Store, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds
        self.drafted: Callable[[], None] = lambda: None

    async def transact(self, worker: str, work: Any, on_loop: bool, write: Any) -> Any:
        async def held(raw: Any) -> Any:
            planned = await write(raw)
            self.drafted()
            await asyncio.sleep(self._seconds)
            return planned

        return await self._inner.transact(worker, work, on_loop, held)


async def test_a_timeout_that_passes_while_it_commits_does_not_count(books: Books) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.transaction("book", books.write_async, "a", timeout=1, retry=2)

    async with books.engine(flow, store=HoldsTheCommit(books.store(), 1.2).store) as engine:
        handle = await engine.trigger(flow)
        assert await handle.result(SOON) == "a"
        kinds = [entry.kind for entry in await engine.timeline(handle.run_id)]
    assert "retrying" not in kinds
    assert books.entries == ["a"]


@pytest.mark.parametrize("kind", ["on the loop", "in a thread"])
async def test_a_function_that_is_late_leaves_nothing(books: Books, kind: str) -> None:
    tries = 0

    async def slow(connection: Any) -> str:
        nonlocal tries
        tries += 1
        await books.write_async(connection, f"try {tries}")
        if tries == 1:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
        return f"try {tries}"

    def slow_in_thread(connection: Any) -> str:
        nonlocal tries
        tries += 1
        books.write(connection, f"try {tries}")
        while tries == 1 and not current_step().cancelled:
            time.sleep(0.001)
        return f"try {tries}"

    @workflow
    async def flow(ctx: Context) -> str:
        function: Any = slow if kind == "on the loop" else slow_in_thread
        return await ctx.transaction("book", function, timeout=1, retry=2)

    async with books.engine(flow) as engine:
        assert await (await engine.trigger(flow)).result(SOON) == "try 2"
    assert books.entries == ["try 2"]


@pytest.mark.parametrize("cancels", [1, 2])
async def test_P53_a_cancellation_while_it_commits_comes_too_late_on_every_pass(books: Books, cancels: int) -> None:
    """The record is there: a replay returns the result, and so does the first pass."""
    passes, store = Passes(), HoldsTheCommit(books.store(), 0.15)

    @workflow
    async def flow(ctx: Context) -> str:
        note, loop = passes.begin(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as first, asyncio.timeout(None) as second:
                limits = [first, second][:cancels]

                def drafted() -> None:
                    for number, limit in enumerate(limits):
                        limit.reschedule(loop.time() + 0.01 * number)

                store.drafted = drafted
                note(await ctx.transaction("book", books.write_async, "a"))
        except TimeoutError:
            note("timed out")
        await ctx.sleep("on", 0.3)
        return await ctx.step("after", str, "done")

    async with books.engine(flow, store=store.store, linger=0) as engine:
        assert await (await engine.trigger(flow)).result(SOON) == "done"
    assert passes.agree() == ["a"]
    assert books.entries == ["a"]


async def test_memory_has_no_transaction_to_offer() -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.transaction("book", str)

    async with Engine(MemoryStore(), workflows=[flow]) as engine:
        with pytest.raises(RunFailed, match=ConfigurationError.__name__):
            await (await engine.trigger(flow)).result(SOON)
        with pytest.raises(InvalidArgument, match="cannot work on"):
            await engine.trigger(flow, connection=object())


# -- on the user's own connection -----------------------------------------------------------------


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.wait_for("answer", str)


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_P38_a_trigger_and_a_signal_share_the_fate_of_the_users_transaction(books: Books, end: str) -> None:
    async with books.engine(asks) as engine:
        waits = await engine.trigger(asks)
        connection = books.connect()
        books.write(connection, "mine")
        handle = await engine.trigger(asks, key="mine", connection=connection)
        await engine.signal(waits.run_id, "answer", "yes", connection=connection)
        await engine.signal(handle.run_id, "answer", "too", connection=connection)
        getattr(connection, end)()
        connection.close()
        if end == "commit":
            assert [await waits.result(SOON), await handle.result(SOON)] == ["yes", "too"]
        else:
            assert not (await engine.list_runs(created_after=(await engine.get_run(waits.run_id)).created_at)).items[1:]
            again = await engine.trigger(asks, key="mine")
            assert again.created
            assert again.run_id != handle.run_id
            await engine.signal(waits.run_id, "answer", "no")
            assert await waits.result(SOON) == "no"
    assert books.entries == (["mine"] if end == "commit" else [])


def test_P38_a_view_triggers_in_its_own_transaction(books: Books) -> None:
    engine = books.engine(asks)
    assert not engine.sync.list_runs().items  # connected: a file is migrated before somebody else has its write lock
    with books.connect() as connection:
        books.write(connection, "mine")
        handle = engine.sync.trigger(asks, connection=connection)
        engine.sync.signal(handle.run_id, "answer", "yes", connection=connection)
        connection.commit()
    assert engine.sync.get_run(handle.run_id).state is State.PENDING
    engine.sync.close()
