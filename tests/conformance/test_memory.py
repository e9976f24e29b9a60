"""The memory store passes the suite, on the host's clock and on a virtual one."""

from __future__ import annotations

import pytest

from durable.errors import ConfigurationError
from durable.model import RunWrite, State
from durable.stores.memory import MemoryStore
from durable.testing import VirtualClock
from durable.testing.conformance import StoreConformance, StoreHarness
from durable.testing.conformance.harness import claimed, record


class MemoryHarness:
    """The same object is its own other process: engines share a `MemoryStore`."""

    has_schema = False

    def __init__(self, clock: VirtualClock | None = None) -> None:
        self._clock = clock
        self._store = MemoryStore(clock)

    async def fresh(self) -> MemoryStore:
        await self._store.open()
        return self._store

    bare = fresh

    async def another(self) -> MemoryStore:
        await self._store.open()
        return self._store

    async def advance_schema(self) -> None:
        raise NotImplementedError("memory has no schema")

    async def expire(self, worker: str) -> None:
        self._store.expire(worker)

    async def strand(self, run_id: str, state: State) -> None:
        row = self._store._rows[run_id]
        assert row.owner is not None
        self._store._held[row.owner].discard(run_id)
        row.owner, row.ready_at, row.state = None, None, state


async def test_memory_has_no_connection_to_offer() -> None:
    store = MemoryStore()
    worker, one = await claimed(store)
    called: list[object] = []

    async def write(_: object) -> RunWrite:
        called.append(write)
        return RunWrite(one.ref, [record(1)])

    for on_loop in (True, False):
        with pytest.raises(ConfigurationError, match="Postgres or SQLite"):
            await store.transact(worker.id, called.append, on_loop, write)
    assert store.on_connection is None
    assert called == []


class TestMemory(StoreConformance):
    @pytest.fixture
    def harness(self) -> StoreHarness:
        return MemoryHarness()


class TestMemoryOnVirtualTime(StoreConformance):
    @pytest.fixture
    def harness(self) -> StoreHarness:
        return MemoryHarness(VirtualClock())
