"""procrastinate, a task queue on Postgres: no steps, no results."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from benchmarks.contestants.base import Contestant, Counts, asked, peer
from benchmarks.work import add

QUEUE_ONLY = "a task queue: a run is one call, nothing of it is recorded on the way"
NO_RESULTS = "a task queue: it keeps no results to wait for"


class Procrastinate(Contestant):
    name = "procrastinate"
    packages = ("procrastinate", "psycopg")
    settings = (
        "`concurrency=<in flight>`, `batch_defer_async`, a pool of 20 connections, `delete_jobs=never` (its default; "
        "what has ended is counted), `fetch_job_polling_interval=0.1` (a job that comes before the worker listens "
        "would wait for 5 s, its default). Logs off. uvloop."
    )
    cannot: ClassVar = {
        "B": QUEUE_ONLY,
        "C": QUEUE_ONLY,
        "D": NO_RESULTS,
        "E": QUEUE_ONLY,
        "H": NO_RESULTS,
        "I": QUEUE_ONLY,
    }
    pace: ClassVar = {1: 200, 8: 500, 50: 600, 500: 600}

    def __init__(self, url: str, in_flight: int = 500) -> None:
        super().__init__(url, in_flight)
        logging.getLogger("procrastinate").setLevel(logging.CRITICAL)
        procrastinate = peer("procrastinate")
        self._app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url, min_size=20, max_size=20))
        self._task = self._app.task(name="one")(_one)

    async def install(self) -> None:
        async with self._app.open_async():
            await self._app.schema_manager.apply_schema_async()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        async with self._app.open_async():
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self.client():
            working = asyncio.create_task(
                self._app.run_worker_async(
                    concurrency=self.in_flight, fetch_job_polling_interval=0.1, install_signal_handlers=False
                )
            )
            try:
                yield
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[Any]:
        ids: list[Any] = []
        for first in range(0, len(starts), 1000):
            ids += await self._task.batch_defer_async(*({"start": start} for start in starts[first : first + 1000]))
        return ids

    async def trigger(self, work: str, start: int) -> Any:
        return await self._task.defer_async(start=start)

    def counts(self) -> Counts:
        return Counts(*asked(self.url, "SELECT count(*), NULL FROM procrastinate_jobs WHERE status = 'succeeded'"))


async def _one(start: int) -> int:
    return await add(start, 0)
