"""DBOS Transact, a durable execution library on Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from benchmarks.contestants.base import Contestant, Counts, asked, peer
from benchmarks.work import MEGABYTE, STEPS, add, blob, executed

QUEUE = "bench"


class Dbos(Contestant):
    name = "dbos"
    packages = ("dbos", "sqlalchemy", "psycopg")
    settings = (
        "Asynchronous workflows and steps. Drained from a queue with `worker_concurrency=<in flight>` and "
        "`polling_interval_sec=0.01` (its default of 1 s would be what is measured), started directly by "
        "`start_workflow_async` where the trigger is measured too (a queue would add a poll to each). "
        "`sys_db_pool_size=20`, its default: 50 was no quicker. Logs off. uvloop."
    )
    cannot: ClassVar = {
        "E.takeover": "another process takes over only with Conductor, a paid service, or when it is started with the "
        "same executor id",
    }
    pace: ClassVar = {1: 150, 8: 350, 50: 400, 500: 400}

    def __init__(self, url: str, in_flight: int = 500) -> None:
        super().__init__(url, in_flight)
        dbos = peer("dbos")
        self._dbos = dbos.DBOS
        self._works_here = self._holds = False
        self._dbos(
            config={
                "name": "bench",
                "system_database_url": url.replace("postgresql://", "postgresql+psycopg://"),
                "sys_db_pool_size": 20,
                "log_level": "CRITICAL",
                "console_log_level": "CRITICAL",
                "application_version": "1",
                "executor_id": "bench",
            }
        )
        added, blobbed = self._dbos.step()(add), self._dbos.step()(blob)

        def summing(steps: int) -> Any:
            async def summed(start: int) -> int:
                total = start
                for n in range(steps):
                    total = await added(total, n)
                return total

            return summed

        async def blobs(start: int) -> int:
            return len(await blobbed(MEGABYTE))

        async def children(count: int) -> int:
            starts = (self._dbos.start_workflow_async(self._works["one"], n) for n in range(count))
            handles = await asyncio.gather(*starts)
            return sum(await asyncio.gather(*(handle.get_result() for handle in handles)))

        async def parallel(count: int) -> int:
            return sum(await asyncio.gather(*(added(n, 0) for n in range(count))))

        async def held() -> int:
            return await asyncio.Future[int]() if self._holds else 0

        async def long(steps: int) -> int:
            return sum([await summing(steps)(0), await holding()])

        holding = self._dbos.step()(held)
        functions = {work: summing(steps) for work, steps in STEPS.items() if work != "blob"}
        functions |= {"blob": blobs, "children": children, "parallel": parallel, "long": long}
        self._works = {work: self._dbos.workflow(name=work)(function) for work, function in functions.items()}

    async def install(self) -> None:
        async with self.worker():
            pass

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        self._dbos.listen_queues([])
        async with self._launched():
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self._launched():
            await self._dbos.register_queue_async(
                QUEUE, worker_concurrency=self.in_flight, polling_interval_sec=0.01, on_conflict="always_update"
            )
            self._works_here = True
            yield

    @contextlib.asynccontextmanager
    async def _launched(self) -> AsyncGenerator[None]:
        await asyncio.to_thread(self._dbos.launch)
        try:
            yield
        finally:
            await asyncio.to_thread(self._dbos.destroy)

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[Any]:
        """It has no call for many: as many at a time as its pool of connections serves."""
        calls = asyncio.Semaphore(20)

        async def one(start: int) -> Any:
            async with calls:
                if self._works_here:
                    return await self._dbos.start_workflow_async(self._works[work], start)
                return await self._dbos.enqueue_workflow_async(QUEUE, self._works[work], start)

        return await asyncio.gather(*(one(start) for start in starts))

    async def trigger(self, work: str, start: int) -> Any:
        if self._works_here:
            return await self._dbos.start_workflow_async(self._works[work], start)
        return await self._dbos.enqueue_workflow_async(QUEUE, self._works[work], start)

    async def result(self, run: Any) -> Any:
        return await run.get_result(polling_interval_sec=0.01)

    async def settle(self, steps: int) -> str:
        """It waits in memory, so here a step does: the run goes on when the executor is started again."""
        self._holds = True
        handle = await self._dbos.start_workflow_async(self._works["long"], steps)
        while executed.steps < steps:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # the last record is written
        return str(handle.get_workflow_id())

    async def resume(self, run: str) -> Any:
        """Its launch has taken it up already."""
        return await self.result(await self._dbos.retrieve_workflow_async(run))

    def counts(self) -> Counts:
        return Counts(
            *asked(
                self.url,
                """SELECT
            (SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'),
            (SELECT count(*) FROM dbos.operation_outputs)""",
            )
        )
