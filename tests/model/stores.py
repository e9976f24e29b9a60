"""Memory, SQLite and Postgres beside each other, emptied for each stream."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import psycopg

from durable import Engine
from durable.testing.conformance.harness import StoreHarness
from durable.testing.conformance.streams import play
from durable.testing.conformance.subjects import Divergence, Subject
from durable.testing.postgres import runtime_role
from tests.conformance.test_memory import MemoryHarness
from tests.conformance.test_postgres import PostgresHarness
from tests.conformance.test_sqlite import SQLiteHarness

_SCHEMA = "conformance"


def memory_folder() -> str | None:
    """Where files cost no disk: streams ask what is answered, not what a power cut leaves."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Stores:
    """The three of them.

    Args:
        postgres: Started.
        migrated: A SQLite file with the schema; the others come beside it.
    """

    def __init__(self, postgres: PostgresHarness, migrated: Path) -> None:
        self._postgres = postgres
        self._migrated = migrated

    async def play(self, seeds: Sequence[int]) -> int:
        """A stream on all three, which are empty; how many operations it had.

        Raises:
            Divergence: One of them differs from the oracle.
        """
        path = self._migrated.with_name(f"{uuid4()}.db")
        sqlite = SQLiteHarness(path, self._migrated)
        harnesses: dict[str, StoreHarness] = {"memory": MemoryHarness(), "sqlite": sqlite, "postgres": self._postgres}
        try:
            subjects = [Subject(name, await harness.fresh(), harness) for name, harness in harnesses.items()]
            return await play(subjects, seeds)
        finally:
            await sqlite.close()
            path.unlink(missing_ok=True)


@asynccontextmanager
async def opened(postgres_url: str) -> AsyncGenerator[Stores]:
    """The stores, on this event loop."""
    async with AsyncExitStack() as stack:
        runtime_url = stack.enter_context(runtime_role(postgres_url, _SCHEMA))
        connecting = psycopg.AsyncConnection.connect(postgres_url, autocommit=True)
        connection = await stack.enter_async_context(await connecting)
        harness = PostgresHarness(postgres_url, runtime_url, connection)
        await harness.start()
        stack.push_async_callback(harness.stop)
        migrated = Path(stack.enter_context(TemporaryDirectory(dir=memory_folder()))) / "migrated.db"
        await Engine(f"sqlite:///{migrated}").migrate()
        yield Stores(harness, migrated)


async def shortened(play: Callable[[Sequence[int]], Awaitable[int]], seeds: Sequence[int]) -> tuple[list[int], str]:
    """A stream that diverges, without the operations that are not needed for that; and what it says then.

    It leaves out shorter and shorter pieces. An operation is made up from the state that it finds, so that what is left
    is a stream too.
    """
    kept, message, piece = list(seeds), "", max(1, len(seeds) // 2)
    while piece:
        at = 0
        while at < len(kept):
            shorter = kept[:at] + kept[at + piece :]
            try:
                await play(shorter)
            except Divergence as found:
                kept, message = shorter, str(found)
            else:
                at += piece
        piece //= 2
    return kept, message
