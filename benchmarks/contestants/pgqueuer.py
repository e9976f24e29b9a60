"""pgqueuer, the quickest task queue in Python on Postgres: no steps, no results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from benchmarks.contestants.base import Contestant, Counts, asked, peer
from benchmarks.contestants.procrastinate import NO_RESULTS, QUEUE_ONLY
from benchmarks.work import add


class Pgqueuer(Contestant):
    name = "pgqueuer"
    packages = ("pgqueuer", "asyncpg")
    settings = (
        "The asyncpg driver, which its documentation names as 1.7 times as fast as psycopg; a pool for triggers and "
        "one connection for the worker; `batch_size=<in flight> / 2`; all tables logged, its default. uvloop."
    )
    cannot: ClassVar = {
        "B": QUEUE_ONLY,
        "C": QUEUE_ONLY,
        "D": NO_RESULTS,
        "E": QUEUE_ONLY,
        "H": NO_RESULTS,
        "I": QUEUE_ONLY,
    }
    pace: ClassVar = {1: 500, 8: 3_000, 50: 8_000, 500: 14_000}

    async def install(self) -> None:
        connection = await peer("asyncpg").connect(self.url)
        await peer("pgqueuer.queries").Queries(peer("pgqueuer.db").AsyncpgDriver(connection)).install()
        await connection.close()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        async with peer("asyncpg").create_pool(self.url, min_size=8, max_size=8) as pool:
            self._queries = peer("pgqueuer.queries").Queries(peer("pgqueuer.db").AsyncpgPoolDriver(pool))
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self.client():
            connection = await peer("asyncpg").connect(self.url)
            queuer = peer("pgqueuer").PgQueuer(peer("pgqueuer.db").AsyncpgDriver(connection))
            queuer.entrypoint("one", accepts_context=False)(_one)
            batch = max(1, self.in_flight // 2)
            working = asyncio.create_task(queuer.run(batch_size=batch, max_concurrent_tasks=max(2, self.in_flight)))
            try:
                yield
            finally:
                queuer.shutdown.set()
                await working
                await connection.close()

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[Any]:
        ids: list[Any] = []
        for first in range(0, len(starts), 1000):
            part = starts[first : first + 1000]
            payloads = [str(start).encode() for start in part]
            ids += await self._queries.enqueue(["one"] * len(part), payloads, [0] * len(part))
        return ids

    async def trigger(self, work: str, start: int) -> Any:
        return await self._queries.enqueue("one", str(start).encode())

    def counts(self) -> Counts:
        return Counts(*asked(self.url, "SELECT count(*), NULL FROM pgqueuer_log WHERE status = 'successful'"))


async def _one(job: Any) -> None:
    await add(int(job.payload), 0)
