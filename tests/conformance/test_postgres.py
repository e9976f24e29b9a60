"""The Postgres store passes the suite, as a role that may not change the schema."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import psycopg
import pytest
from psycopg import sql

from durable.model import State
from durable.stores.postgres import PostgresStore
from durable.testing.conformance import StoreConformance, StoreHarness
from durable.testing.postgres import runtime_role
from tests.emptying import emptying

_SCHEMA = "conformance"  # not the default one: other tests of this run may have an engine there
_bare = count(1)


class PostgresHarness:
    """Two stores for the whole run, and rows deleted between tests: opening a store for each took 0.2 s a test.

    Only a test that starts without a schema gets one of its own, and stores on it.
    """

    has_schema = True

    def __init__(self, owner_url: str, runtime_url: str, connection: psycopg.AsyncConnection[Any]) -> None:
        self._owner_url = owner_url
        self._connection = connection
        self._shared = [PostgresStore(runtime_url, schema=_SCHEMA, pool_size=2) for _ in range(2)]
        self._schema = ""  # of the present test; empty: the shared one
        self._opened: list[PostgresStore] = []

    async def start(self) -> None:
        """Migrate by the role that may, then open the shared stores as the one that may not."""
        owner = PostgresStore(self._owner_url, schema=_SCHEMA)
        await owner.open()
        await owner.migrate()
        await owner.close()
        for store in self._shared:
            await store.open()

    async def stop(self) -> None:
        for store in self._shared:
            await store.close()

    async def fresh(self) -> PostgresStore:
        await self._connection.execute(emptying(_SCHEMA))
        for store in self._shared:  # with limits that it has not read a store claims nothing that it creates
            await store.queues()
        return self._shared[0]

    async def bare(self) -> PostgresStore:
        self._schema = f"bare_{next(_bare)}"
        return await self.another()

    async def another(self) -> PostgresStore:
        if not self._schema:
            return self._shared[1]
        store = PostgresStore(self._owner_url, schema=self._schema, pool_size=2)
        await store.open()
        self._opened.append(store)
        return store

    async def advance_schema(self) -> None:
        table = sql.Identifier(self._schema, "migrations")
        later = sql.SQL("INSERT INTO {} (version, name) SELECT max(version) + 1, 'later' FROM {}").format(table, table)
        await self._connection.execute(later)

    async def expire(self, worker: str) -> None:
        workers = sql.Identifier(_SCHEMA, "workers")
        expire = sql.SQL("UPDATE {} SET expires_at = now() - interval '1 hour' WHERE id = %s").format(workers)
        await self._connection.execute(expire, [worker])

    async def strand(self, run_id: str, state: State) -> None:
        runs = sql.Identifier(_SCHEMA, "runs")
        strand = sql.SQL("UPDATE {} SET owner = NULL, ready_at = NULL, state = %s WHERE id = %s").format(runs)
        await self._connection.execute(strand, [state, run_id])

    async def tidy(self) -> None:
        """After a test: close and drop what it had of its own."""
        for store in self._opened:
            await store.close()
        self._opened.clear()
        if self._schema:
            await self._connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self._schema)))
            self._schema = ""


@pytest.fixture(scope="session")
async def postgres(postgres_url: str) -> AsyncIterator[PostgresHarness]:
    with runtime_role(postgres_url, _SCHEMA) as runtime_url:
        async with await psycopg.AsyncConnection.connect(postgres_url, autocommit=True) as connection:
            harness = PostgresHarness(postgres_url, runtime_url, connection)
            await harness.start()
            yield harness
            await harness.stop()


class TestPostgres(StoreConformance):
    @pytest.fixture
    async def harness(self, postgres: PostgresHarness) -> AsyncIterator[StoreHarness]:
        yield postgres
        await postgres.tidy()
