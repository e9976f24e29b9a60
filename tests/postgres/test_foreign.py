"""Triggers and signals on an application's own connection, of whatever library: its transaction decides."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session, create_async_engine
from sqlalchemy.ext.asyncio import async_sessionmaker as async_sessions
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from durable import Engine, states, workflow
from durable.codec import canonical_hash
from durable.errors import ConfigurationError, InvalidArgument, KeyConflict, PayloadError, StoreUnavailable
from durable.model import ClaimedRun, Created, Debounce, NewRun, NewSignal, Policy, RunFilter, Sent, State
from durable.stores.postgres import PostgresStore
from durable.stores.postgres.foreign import OnPostgresConnection
from durable.testing._servers import url_with
from durable.testing.conformance.harness import Worker, claimed, create, new_run, read
from durable.testing.postgres import runtime_role
from tests.postgres.conftest import Postgres


class Own(Protocol):
    """A connection as an application has it, inside a transaction or about to begin one."""

    @property
    def connection(self) -> Any: ...
    async def execute(self, sql: str) -> Any: ...
    async def end(self, committed: bool) -> None: ...


class Plain:
    """A blocking connection with its methods ``execute``, ``commit`` and ``rollback``."""

    def __init__(self, connection: Any, spell: Callable[[str], Any] = str) -> None:
        self.connection = connection
        self._spell = spell

    async def execute(self, sql: str) -> Any:
        self.connection.execute(self._spell(sql))

    async def end(self, committed: bool) -> None:
        (self.connection.commit if committed else self.connection.rollback)()


class Asyncio(Plain):
    """The same for asyncio."""

    async def execute(self, sql: str) -> Any:
        await self.connection.execute(self._spell(sql))

    async def end(self, committed: bool) -> None:
        await (self.connection.commit if committed else self.connection.rollback)()


class Django:
    """Django's connection, inside ``atomic``."""

    def __init__(self, connection: Any, atomic: Any) -> None:
        self.connection = connection
        self._atomic = atomic

    async def execute(self, sql: str) -> Any:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)

    async def end(self, committed: bool) -> None:
        if not committed:
            self.connection.set_rollback(True)
        self._atomic.__exit__(None, None, None)


def _alchemy(url: str) -> str:
    return "postgresql+psycopg" + url[url.index("://") :]


@asynccontextmanager
async def a_psycopg_connection(url: str) -> AsyncGenerator[Own]:
    with psycopg.connect(url) as connection:
        yield Plain(connection)


@asynccontextmanager
async def a_psycopg_connection_in_autocommit(url: str) -> AsyncGenerator[Own]:
    with psycopg.Connection[Any].connect(url, autocommit=True, row_factory=dict_row) as connection:
        connection.execute("BEGIN")
        yield Plain(connection)


@asynccontextmanager
async def a_psycopg_connection_with_raw_cursors(url: str) -> AsyncGenerator[Own]:
    with psycopg.connect(url, cursor_factory=psycopg.RawCursor, prepare_threshold=0) as connection:
        yield Plain(connection)


@asynccontextmanager
async def a_psycopg_connection_for_asyncio(url: str) -> AsyncGenerator[Own]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        yield Asyncio(connection)


@asynccontextmanager
async def a_connection_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = sqlalchemy.create_engine(_alchemy(url))
    with engine.connect() as connection:
        yield Plain(connection, sqlalchemy.text)
    engine.dispose()


@asynccontextmanager
async def a_raw_connection_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = sqlalchemy.create_engine(_alchemy(url))
    connection = engine.raw_connection()

    class Raw(Plain):
        async def execute(self, sql: str) -> Any:
            self.connection.cursor().execute(sql)

    yield Raw(connection)
    connection.close()
    engine.dispose()


@asynccontextmanager
async def a_session_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = sqlalchemy.create_engine(_alchemy(url))
    with Session(engine) as session:
        yield Plain(session, sqlalchemy.text)
    engine.dispose()


@asynccontextmanager
async def a_scoped_session_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = sqlalchemy.create_engine(_alchemy(url))
    session = scoped_session(sessionmaker(engine))
    yield Plain(session, sqlalchemy.text)
    session.remove()
    engine.dispose()


@asynccontextmanager
async def an_async_connection_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = create_async_engine(_alchemy(url))
    connection: AsyncConnection
    async with engine.connect() as connection:
        yield Asyncio(connection, sqlalchemy.text)
    await engine.dispose()


@asynccontextmanager
async def an_async_session_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = create_async_engine(_alchemy(url))
    async with AsyncSession(engine) as session:
        yield Asyncio(session, sqlalchemy.text)
    await engine.dispose()


@asynccontextmanager
async def an_async_scoped_session_of_sqlalchemy(url: str) -> AsyncGenerator[Own]:
    engine = create_async_engine(_alchemy(url))
    session = async_scoped_session(async_sessions(engine), asyncio.current_task)
    yield Asyncio(session, sqlalchemy.text)
    await session.remove()
    await engine.dispose()


@asynccontextmanager
async def a_connection_of_django(url: str) -> AsyncGenerator[Own]:
    settings: Any = import_module("django.conf").settings  # it has no types
    db: Any = import_module("django.db")
    if not settings.configured:
        parts = urlsplit(url)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": parts.hostname,
            "PORT": parts.port,
            "NAME": parts.path[1:],
            "USER": parts.username,
            "PASSWORD": parts.password,
        }
        settings.configure(DATABASES={"default": database})
        import_module("django").setup()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")  # these tests run on a loop, and views do not
        connection = db.connections["default"]
        atomic = db.transaction.atomic()
        atomic.__enter__()
        yield Django(connection, atomic)
        connection.close()


WAYS: list[Callable[[str], AbstractAsyncContextManager[Own]]] = [
    *(a_psycopg_connection, a_psycopg_connection_in_autocommit, a_psycopg_connection_with_raw_cursors),
    *(a_psycopg_connection_for_asyncio, a_connection_of_sqlalchemy, a_raw_connection_of_sqlalchemy),
    *(a_session_of_sqlalchemy, a_scoped_session_of_sqlalchemy, an_async_connection_of_sqlalchemy),
    *(an_async_session_of_sqlalchemy, an_async_scoped_session_of_sqlalchemy, a_connection_of_django),
]
BY_ALL = pytest.mark.parametrize("way", WAYS)


class App:
    """A store, and an application's table beside it."""

    def __init__(self, postgres: Postgres, store: PostgresStore) -> None:
        self.postgres, self.store = postgres, store
        self.table = f"orders_{postgres.schema}"
        postgres.rows(f"CREATE TABLE {self.table} (n integer)")

    @property
    def offered(self) -> OnPostgresConnection:
        assert self.store.on_connection is not None
        return self.store.on_connection

    async def insert(self, own: Own) -> None:
        await own.execute(f"INSERT INTO {self.table} VALUES (1)")

    def inserted(self) -> int:
        return len(self.postgres.beside(f"SELECT n FROM {self.table}"))

    async def trigger(self, own: Own, run: NewRun) -> Created:
        answer = self.offered.trigger(own.connection, run)
        return answer if isinstance(answer, Created) else await answer

    async def signal(self, own: Own, run_id: str, signal_id: str, data: str = "true") -> Sent:
        answer = self.offered.signal(own.connection, NewSignal(run_id, signal_id, "approval", data))
        return answer if isinstance(answer, Sent) else await answer


@pytest.fixture
async def app(postgres: Postgres) -> AsyncIterator[App]:
    app = App(postgres, await postgres.fresh())
    yield app
    postgres.rows(f"DROP TABLE {app.table}")


def order(**other: Any) -> NewRun:
    """A run whose input has the hash that it should have."""
    text = other.pop("input", '{"sku": "tea"}')
    return new_run(input=text, input_hash=canonical_hash(text), **other)


# -- with the user's transaction ------------------------------------------------------------------


@BY_ALL
async def test_P38_all_that_is_done_stands_when_the_users_transaction_commits(app: App, way: Any) -> None:
    worker, waiting = await claimed(app.store)
    await worker.wait(waiting)
    run = order(key="k", tags={"tenant": "acme"}, queue="slow", priority=2, limit_key="l")
    for committed in (False, True):
        async with way(app.postgres.url) as own:
            assert app.offered.accepts(own.connection)
            await app.insert(own)
            assert await app.trigger(own, run) == Created(run.id, True)
            assert await app.trigger(own, run) == Created(run.id, True)
            assert await app.signal(own, run.id, "first") is Sent.ACCEPTED
            assert await app.signal(own, waiting.run.id, "s") is Sent.ACCEPTED
            assert (await app.store.get_runs([run.id]), app.inserted()) == ([], 0)
            await own.end(committed)
        assert app.inserted() == committed
        assert len(await app.store.get_runs([run.id])) == committed
        signalled = (await worker.claim()).runs
        assert [[one.id for one in again.signals] for again in signalled] == ([["s"]] if committed else [])
    stored = await read(app.store, run.id)
    assert (stored.key, stored.tags, stored.queue, stored.priority) == ("k", {"tenant": "acme"}, "slow", 2)
    assert (stored.limit_key, stored.input, stored.seed) == ("l", run.input, run.seed)


@BY_ALL
async def test_P38_a_call_on_a_connection_without_a_transaction_is_the_drivers_to_commit(app: App, way: Any) -> None:
    async with way(app.postgres.url) as own:
        run = order()
        assert (await app.trigger(own, run)).created
        assert await app.store.get_runs([run.id]) == []
        await own.end(True)
        assert len(await app.store.get_runs([run.id])) == 1


async def test_P38_in_autocommit_mode_a_call_commits_at_once(app: App) -> None:
    with psycopg.connect(app.postgres.url, autocommit=True) as connection:
        run = order()
        assert (await app.trigger(Plain(connection), run)).created
        assert (await read(app.store, run.id)).input == run.input
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_P38_an_engine_takes_it(app: App) -> None:
    @workflow
    async def order_flow(ctx: Any, sku: str) -> str:
        return sku

    async with Engine(app.store, workflows=[order_flow]).client() as engine:
        async with a_session_of_sqlalchemy(app.postgres.url) as own:
            handle = await engine.trigger(order_flow, "tea", key="k", connection=own.connection)
            await engine.signal(handle.run_id, "approval", {"by": "ann"}, connection=own.connection)
            await own.end(True)
        with psycopg.connect(app.postgres.url) as connection:
            assert (await engine.trigger(order_flow, "tea", key="k", connection=connection)).run_id == handle.run_id
            with pytest.raises(KeyConflict, match="another input"):
                await engine.trigger(order_flow, "coffee", key="k", connection=connection)
            connection.execute("SELECT 1")  # the refusal has not aborted the transaction
        with pytest.raises(InvalidArgument, match="cannot work on a"):
            await engine.trigger(order_flow, "tea", connection=object())
    assert (await read(app.store, handle.run_id)).input == '"tea"'


# -- what stands already --------------------------------------------------------------------------


async def test_P36_one_key_is_one_run(app: App) -> None:
    first, text = order(key="k"), order(key="sql")
    await create(app.store, first)
    ((made,),) = app.postgres.rows("SELECT durable.trigger('order', %s, 'sql')::text", ' { "sku": "tea" } ')
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        assert await app.trigger(own, order(key="k")) == Created(first.id, False)
        assert await app.trigger(own, text) == Created(made, False)
        for key in ("k", "sql"):
            refused = await app.trigger(own, order(key=key, input="2"))
            assert not refused.created
            assert "another input" in (refused.conflict or "")
        mine = order(request="r")
        assert await app.trigger(own, mine) == Created(mine.id, True)
        assert await app.trigger(own, mine) == Created(mine.id, True)
        assert await app.trigger(own, replace(mine, request="other")) == Created(mine.id, False)
        assert "another key" in ((await app.trigger(own, replace(mine, key="late"))).conflict or "")
        assert "workflow 'order'" in ((await app.trigger(own, replace(mine, workflow="else"))).conflict or "")


async def test_P33_a_signal_to_nobody_is_told(app: App) -> None:
    _, run = await claimed(app.store)
    app.postgres.rows("UPDATE durable.runs SET state = 'completed', ended_at = now(), owner = NULL WHERE shard = 0")
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        assert await app.signal(own, run.run.id, "s") is Sent.FINISHED
        assert await app.signal(own, order().id, "s") is Sent.NOT_FOUND
        assert await app.signal(own, "no id at all", "s") is Sent.NOT_FOUND
    async with await psycopg.AsyncConnection.connect(app.postgres.url) as other:
        assert await app.signal(Asyncio(other), "no id at all", "s") is Sent.NOT_FOUND


async def test_P37_one_run_with_a_concurrency_key_is_active(app: App) -> None:
    worker = await Worker.start(app.store)
    first = order(concurrency_key="c", key="first")
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        assert await app.trigger(own, first) == Created(first.id, True)
        assert await app.trigger(own, first) == Created(first.id, True)
        for policy in (Policy.REJECT, Policy.EXISTING):
            further = order(concurrency_key="c", key="k", policy=policy)
            assert await app.trigger(own, further) == Created(first.id, False, busy=policy is Policy.REJECT)
        queued = order(concurrency_key="c", key="k", policy=Policy.QUEUE)  # those have not kept the key
        assert await app.trigger(own, queued) == Created(queued.id, True)
        connection.commit()
        [busy] = await app.store.create_runs([order(concurrency_key="c")])
        assert (busy.run_id, busy.busy) == (first.id, True)
        taken = await worker.take()
        assert taken.run.id == first.id
        with psycopg.connect(app.postgres.url) as late:
            last = order(concurrency_key="c", policy=Policy.QUEUE)
            assert (await app.trigger(Plain(late), last)).created
            await worker.apply(taken, change=states.complete(State.RUNNING, "1"))
            assert (await worker.claim()).runs == []  # an open trigger may have seen the first one alive
            late.commit()
        second = await _until_taken(worker)
        assert second.run.id == queued.id
        await worker.apply(second, change=states.complete(State.RUNNING, "1"))
        assert (await _until_taken(worker)).run.id == last.id
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(InvalidArgument, match="READ COMMITTED"):
            await app.trigger(own, order(concurrency_key="c"))


async def _until_taken(worker: Worker) -> ClaimedRun:
    async with asyncio.timeout(10):
        while not (runs := (await worker.claim()).runs):
            continue
    return runs[0]


# -- what is refused ------------------------------------------------------------------------------


async def test_what_would_lock_others_is_refused(app: App) -> None:
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        for other in (
            {"concurrency_key": "c", "policy": Policy.REPLACE},
            {"debounce": Debounce("d", 1.0)},
        ):
            with pytest.raises(InvalidArgument, match="on a connection of your own there is"):
                await app.trigger(own, order(**other))
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


async def test_a_connection_to_another_database_is_refused_and_left_as_it_was(app: App) -> None:
    """One with the same schema in it: a staging database, say."""
    name = f"other_{app.postgres.schema}"
    app.postgres.sql.execute(f"CREATE DATABASE {name}".encode())
    try:
        url = url_with(app.postgres.url, path=f"/{name}")
        with psycopg.connect(url) as connection, pytest.raises(InvalidArgument, match="another database"):
            await app.trigger(Plain(connection), order())
        twin = await app.postgres.another(url)
        await twin.migrate()
        with psycopg.connect(url) as connection:
            own = Plain(connection)
            with pytest.raises(InvalidArgument, match="another database"):
                await app.trigger(own, order())
            with pytest.raises(InvalidArgument, match="another database"):
                await app.signal(own, order().id, "s")
            connection.execute("SELECT 1")
        async with await psycopg.AsyncConnection.connect(url) as other:
            with pytest.raises(InvalidArgument, match="another database"):
                await app.trigger(Asyncio(other), order())
        assert await twin.list_runs(RunFilter(), 10, None) == []
        await twin.close()
    finally:
        app.postgres.sql.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


async def test_another_server_with_the_same_database_is_told_apart(app: App) -> None:
    database, server = app.offered._place
    assert server is not None
    elsewhere = OnPostgresConnection((database, str(int(server) + 1)), app.store._statements)
    unknown = OnPostgresConnection((database, None), app.store._statements)
    with psycopg.connect(app.postgres.url) as connection:
        with pytest.raises(InvalidArgument, match="another database"):
            elsewhere.trigger(connection, order())
        assert unknown.trigger(connection, order()).created  # type: ignore[union-attr]


async def test_other_drivers_connections_are_not_taken(app: App) -> None:
    engine = sqlalchemy.create_engine("sqlite://")
    with engine.connect() as connection:
        assert not app.offered.accepts(connection)
    engine.dispose()
    for other in (object(), None, engine, "postgresql://"):
        assert not app.offered.accepts(other)


async def test_a_connection_that_is_of_no_use_is_told_from_an_outage(app: App) -> None:
    connection = psycopg.connect(app.postgres.url)
    with pytest.raises(psycopg.Error):
        connection.execute("SELECT 1 / 0")
    with pytest.raises(InvalidArgument, match="has failed before"):
        await app.trigger(Plain(connection), order())
    connection.rollback()
    app.postgres.rows("SELECT pg_terminate_backend(%s, 10000)", connection.info.backend_pid)
    with pytest.raises(StoreUnavailable):
        await app.trigger(Plain(connection), order())
    connection.close()
    with pytest.raises((InvalidArgument, StoreUnavailable)):
        await app.trigger(Plain(connection), order())


async def test_P50_what_cannot_be_stored_is_refused_before_it_is_sent(app: App) -> None:
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        for bad in ("a\0b", "\ud800"):
            with pytest.raises(PayloadError):
                await app.trigger(own, order(key=bad))
            with pytest.raises(PayloadError):
                await app.signal(own, order().id, bad)
        connection.execute("SELECT 1")


async def test_a_role_without_the_right_is_told_where_it_stands(app: App) -> None:
    with runtime_role(app.postgres.url, app.postgres.schema) as url, psycopg.connect(url) as connection:
        assert (await app.trigger(Plain(connection), order())).created
        connection.rollback()
        functions = f"ALL FUNCTIONS IN SCHEMA {app.postgres.schema}"
        app.postgres.rows(f'REVOKE EXECUTE ON {functions} FROM "{connection.info.user}"')
        with pytest.raises(ConfigurationError, match=r"grants\.sql"):
            await app.trigger(Plain(connection), order())


# -- beside others --------------------------------------------------------------------------------


async def test_a_transaction_that_stays_open_is_in_nobodys_way(app: App) -> None:
    worker, run = await claimed(app.store)
    with psycopg.connect(app.postgres.url) as connection:
        own = Plain(connection)
        await app.trigger(own, order(key="k"))
        await app.signal(own, run.run.id, "s")
        async with asyncio.timeout(5):
            await worker.wait(run)
            assert (await worker.claim()).runs == []
            await create(app.store, order(key="another"))
            (other,) = (await worker.claim()).runs
            await worker.unread(other)
        connection.commit()
    assert len((await worker.claim()).runs) == 2


async def test_P36_one_key_in_two_transactions_is_one_run(app: App) -> None:
    await create(app.store, order())
    with psycopg.connect(app.postgres.url) as one, psycopg.connect(app.postgres.url) as two:
        first, second = order(key="k"), order(key="k")
        assert (await app.trigger(Plain(one), first)).created
        waiting = asyncio.create_task(asyncio.to_thread(app.offered.trigger, two, second))
        blocked = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = %s AND NOT granted)"
        await app.postgres.until(blocked, two.info.backend_pid)
        one.commit()
        assert await waiting == Created(first.id, False)
