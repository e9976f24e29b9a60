"""Stores on schemas of their own, all in the database of this test process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import psycopg
import pytest

from durable.stores.postgres import PostgresStore

pytest.register_assert_rewrite("durable.testing.conformance")

_numbers = count(1)


class Postgres:
    """Stores for one test, and a superuser's connection beside them.

    Attributes:
        url: Of the database.
        schema: Of this test alone, on the whole server: test processes share it, and see each other's sessions.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.schema = f"durable_{os.getpid()}_{next(_numbers)}"
        self.sql = psycopg.connect(url, autocommit=True)
        self._watching = psycopg.connect(url, autocommit=True)  # what others do is frozen inside a transaction
        self._stores: list[PostgresStore] = []

    async def fresh(self, **options: Any) -> PostgresStore:
        """A store that is open, migrated and empty."""
        store = await self.bare(**options)
        await store.migrate()
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
        self.drop()
        self.sql.close()
        self._watching.close()


@pytest.fixture
async def postgres(postgres_url: str) -> AsyncIterator[Postgres]:
    database = Postgres(postgres_url)
    yield database
    await database.close()
