"""The SQLite store passes the suite, each test in a file of its own, other processes played by other stores."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durable.model import State
from durable.stores.sqlite import SQLiteStore
from durable.testing.conformance import StoreConformance, StoreHarness


class SQLiteHarness:
    has_schema = True

    def __init__(self, path: Path, migrated: Path) -> None:
        self._path = path
        self._migrated = migrated
        self._stores: list[SQLiteStore] = []

    async def fresh(self) -> SQLiteStore:
        shutil.copy(self._migrated, self._path)
        return await self.another()

    async def bare(self) -> SQLiteStore:
        self._path.unlink(missing_ok=True)
        return await self.another()

    async def another(self) -> SQLiteStore:
        store = SQLiteStore(self._path)
        await store.open()
        self._stores.append(store)
        return store

    async def advance_schema(self) -> None:
        self._execute("INSERT INTO durable_schema SELECT max(version) + 1, 'later', 0 FROM durable_schema")

    async def expire(self, worker: str) -> None:
        self._execute("UPDATE durable_workers SET expires_at = 0 WHERE id = ?", worker)

    async def strand(self, run_id: str, state: State) -> None:
        self._execute("UPDATE durable_runs SET owner = NULL, ready_at = NULL, state = ? WHERE id = ?", state, run_id)

    def _execute(self, statement: str, *parameters: str) -> None:
        connection = sqlite3.connect(self._path, isolation_level=None)
        connection.execute(statement, parameters)
        connection.close()

    async def close(self) -> None:
        for store in self._stores:
            await store.close()


class TestSQLite(StoreConformance):
    @pytest.fixture
    async def harness(self, tmp_path: Path, migrated_file: Path) -> AsyncIterator[StoreHarness]:
        harness = SQLiteHarness(tmp_path / "durable.db", migrated_file)
        yield harness
        await harness.close()
