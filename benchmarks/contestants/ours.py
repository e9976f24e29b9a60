"""durable, on Postgres and on SQLite."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

from benchmarks.contestants.base import Contestant, Counts, asked
from benchmarks.work import MEGABYTE, STEPS, add, blob
from durable import Context, Engine, RunHandle, State, WorkerOptions, Workflow, workflow


async def summed(ctx: Context, start: int, steps: int) -> int:
    total = start
    for n in range(steps):
        total = await ctx.step(f"add-{n}", add, total, n)
    return total


@workflow(name="one")
async def one(ctx: Context, start: int) -> int:
    return await ctx.step("add-0", add, start, 0)


@workflow(name="three")
async def three(ctx: Context, start: int) -> int:
    return await summed(ctx, start, 3)


@workflow(name="ten")
async def ten(ctx: Context, start: int) -> int:
    return await summed(ctx, start, 10)


@workflow(name="blob")
async def blobs(ctx: Context, start: int) -> int:
    return len(await ctx.step("blob", blob, MEGABYTE))


@workflow(name="children")
async def children(ctx: Context, count: int) -> int:
    return sum(await ctx.map("child", one, range(count)))


@workflow(name="parallel")
async def parallel(ctx: Context, count: int) -> int:
    return sum(await ctx.map("add", _plus_nothing, range(count)))


async def _plus_nothing(start: int) -> int:
    return await add(start, 0)


@workflow(name="long")
async def long(ctx: Context, steps: int) -> int:
    """Many records, and then a wait: what is resumed has to be replayed."""
    total = await summed(ctx, 0, steps)
    return total + await ctx.wait_for("go", int)


@workflow(name="parked")
async def parked(ctx: Context, start: int) -> int:
    return start + await ctx.wait_for("go", int)


@workflow(name="busy")
async def busy(ctx: Context, start: int) -> int:
    return await summed(ctx, start, STEPS["busy"])


WORKFLOWS: dict[str, Workflow[int, int]] = {
    flow.name: flow for flow in (one, three, ten, blobs, children, parallel, long, parked, busy)
}


class Durable(Contestant):
    name = "durable"
    packages = ("psycopg", "pydantic")
    settings = (
        "`WorkerOptions(concurrency=<in flight>)` and nothing else. uvloop and the collector as by `durable worker`."
    )
    pace: ClassVar = {1: 2_500, 8: 9_000, 50: 35_000, 500: 70_000}

    def __init__(self, url: str, in_flight: int = 500) -> None:
        super().__init__(url, in_flight)
        self.engine = Engine(url, workflows=list(WORKFLOWS.values()), worker=WorkerOptions(concurrency=in_flight))

    async def install(self) -> None:
        await self.engine.migrate()

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        async with self.engine.client():
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self.engine:
            yield

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[RunHandle[int]]:
        return await self.engine.trigger_many(WORKFLOWS[work], starts)

    async def trigger(self, work: str, start: int) -> RunHandle[int]:
        return await self.engine.trigger(WORKFLOWS[work], start)

    async def result(self, run: Any) -> int:
        handle: RunHandle[int] = run
        return await handle.result()

    async def settle(self, steps: int) -> str:
        handle = await self.engine.trigger(long, steps)
        while await handle.status() is not State.WAITING:
            await asyncio.sleep(0.05)  # only ends are announced
        return handle.run_id

    async def resume(self, run: str) -> int:
        await self.engine.signal(run, "go", 0)
        return await (await self.engine.handle(long, run_id=run)).result()

    def counts(self) -> Counts:
        return Counts(
            *asked(
                self.url,
                """SELECT (SELECT count(*) FROM durable.runs WHERE state = 'completed'),
            (SELECT count(*) FROM durable.history WHERE kind = 'step')""",
            )
        )


class DurableOnSQLite(Durable):
    name = "durable on SQLite"
    store = "sqlite"
    settings = "As on Postgres. Every commit is synced to disk (`journal_mode=WAL`, `synchronous=FULL`)."
    pace: ClassVar = {1: 1_500, 8: 8_000, 50: 30_000, 500: 70_000}

    def counts(self) -> Counts:
        with contextlib.closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as file:
            runs, steps = file.execute("""SELECT (SELECT count(*) FROM durable_runs WHERE state = 'completed'),
                (SELECT count(*) FROM durable_history WHERE kind = 'step')""").fetchone()
        return Counts(runs, steps)
