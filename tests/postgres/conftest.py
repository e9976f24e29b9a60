"""Stores on one schema, which is emptied for each test, or on one of the test's own, in this process's database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import psycopg
import pytest

from durable.stores.postgres import PostgresStore
from tests.emptying import emptying

pytest.register_assert_rewrite("durable.testing.conformance")

_SHARED = f"durable_{os.getpid()}"  # test processes share the server, and see each other's sessions
_numbers = count(1)


class Postgres:
    """Stores for one test, and a superuser's connection beside them.

    Attributes:
        url: Of the database.
        schema: That no other test process has.
    """

    def __init__(self, url: str, schema: str) -> None:
        self.url = url
        self.schema = schema
        self.sql = psycopg.connect(url, autocommit=True)
        self._watching = psycopg.connect(url, autocommit=True)  # what others do is frozen inside a transaction
        self._stores: list[PostgresStore] = []

    async def fresh(self, **options: Any) -> PostgresStore:
        """A store that is open, migrated and empty."""
        store = await self.another(**options)
        await store.migrate()
        self.sql.execute(emptying(self.schema))
        return store

    async def bare(self, **options: Any) -> PostgresStore:
        """A store that is open and has no schema yet."""
        self.drop()
        return await self.another(**options)

    async def another(self, url: str | None = None, **options: Any) -> PostgresStore:
        """One more store on the same data."""
        store = PostgresStore(url or self.url, schema=self.schema, **options)
        await store.open()
        self._stores.append(store)
        return store

    async def expire(self, worker: str) -> None:
        self.rows("UPDATE durable.workers SET expires_at = now() WHERE id = %s", worker)

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of ``query``, in which ``durable.`` is this test's schema."""
        return self._rows(self.sql, query, parameters)

    def beside(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The same on a second connection, while ``sql`` is inside a transaction."""
        return self._rows(self._watching, query, parameters)

    def _rows(
        self, connection: psycopg.Connection[tuple[Any, ...]], query: str, parameters: tuple[Any, ...]
    ) -> list[tuple[Any, ...]]:
        # Encoded: the driver's types want a text to be a literal.
        cursor = connection.execute(query.replace("durable.", f"{self.schema}.").encode(), parameters or None)
        return cursor.fetchall() if cursor.description else []

    async def until(self, question: str, *parameters: Any) -> None:
        """Return when the server answers ``question`` with true."""

        async with asyncio.timeout(10):
            while await asyncio.to_thread(self.beside, question, *parameters) != [(True,)]:
                continue

    def drop(self) -> None:
        self.rows(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    async def close(self) -> None:
        for store in self._stores:
            await store.close()
        self.sql.close()
        self._watching.close()


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Postgres]:
    """For tests that leave the schema as it is."""
    found = Postgres(postgres_url, _SHARED)
    yield found
    await found.close()


@pytest.fixture
async def apart(postgres_url: str) -> AsyncIterator[Postgres]:
    """A schema of the test's own: for those that change it, or that ask how it is planned and stored."""
    found = Postgres(postgres_url, f"{_SHARED}_{next(_numbers)}")
    yield found
    found.drop()
    await found.close()
