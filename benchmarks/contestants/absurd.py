"""absurd, durable execution in stored procedures of Postgres. Its schema comes from the package absurdctl."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar

import psycopg

from benchmarks.contestants.base import Contestant, Counts, asked, peer
from benchmarks.work import MEGABYTE, STEPS, add, blob

QUEUE, CHILDREN = "bench", "children"
CONNECTIONS = 8


class Absurd(Contestant):
    name = "absurd"
    packages = ("absurd-sdk", "absurdctl", "psycopg")
    settings = (
        f"`AsyncAbsurd`, {CONNECTIONS} of them in the process, each with its one connection and a share of the runs in "
        "flight (one alone commits one step at a time), `batch_size` and `concurrency` equal, polling every 10 ms "
        "instead of 250; results asked for every 5 ms (`await_task_result` begins with 50). Children in a queue of "
        "their own, as it demands. uvloop."
    )
    cannot: ClassVar = {
        "E.takeover": "a claim lasts 120 s by default: that is the answer",
    }
    pace: ClassVar = {1: 500, 8: 1_200, 50: 1_500, 500: 1_500}

    def __init__(self, url: str, in_flight: int = 500) -> None:
        super().__init__(url, in_flight)
        self._clients: list[Any] = []
        self._turn = itertools.count()
        self._has_children = False

    async def install(self) -> None:
        schema = peer("absurdctl").BUNDLED_SCHEMA_SQL
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(schema)
            for queue in (QUEUE, CHILDREN):
                await connection.execute("SELECT absurd.create_queue(%s)", [queue])

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(CONNECTIONS):
                connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
                await stack.enter_async_context(connection)
                self._clients.append(self._app(connection))
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self.client(), contextlib.AsyncExitStack() as stack:
            self._stack = stack
            await self._work(QUEUE)
            yield

    async def _work(self, queue: str) -> None:
        """Workers of the queue, until the stack is left."""
        share = max(1, self.in_flight // CONNECTIONS)
        for n in range(min(CONNECTIONS, self.in_flight)):
            connection = await psycopg.AsyncConnection.connect(self.url, autocommit=True)
            await self._stack.enter_async_context(connection)
            app = self._app(connection, queue)
            working = app.start_worker(worker_id=str(n), concurrency=share, batch_size=share, poll_interval=0.01)
            task = asyncio.create_task(working)
            self._stack.push_async_callback(_stopped, app, task)

    def _app(self, connection: Any, queue: str = QUEUE) -> Any:
        app = peer("absurd_sdk").AsyncAbsurd(connection, queue_name=queue)
        functions = {work: _summing(steps) for work, steps in STEPS.items() if work != "blob"}
        if queue == CHILDREN:
            functions = {"child": _summing(1)}
        else:
            functions |= {"blob": _blobs, "long": _long, "parallel": _parallel, "children": self._gathering}
        for work, function in functions.items():
            app.register_task(name=work)(function)
        return app

    async def _gathering(self, count: int, ctx: Any) -> int:
        async def spawned(n: int) -> Any:
            client = self._clients[n % CONNECTIONS]
            return (await client.spawn("child", n, queue=CHILDREN))["task_id"]

        async def result(n: int) -> int:
            child = await spawned(n)
            return int((await ctx.await_task_result(child, queue_name=CHILDREN)).result)

        return sum(await asyncio.gather(*(result(n) for n in range(count))))

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[Any]:
        """It has no call for many: one after the other on each connection."""

        async def some(client: Any, part: Sequence[int]) -> list[Any]:
            return [(await client.spawn(work, start))["task_id"] for start in part]

        parts = (some(client, starts[n::CONNECTIONS]) for n, client in enumerate(self._clients))
        return [run for part in await asyncio.gather(*parts) for run in part]

    async def trigger(self, work: str, start: int) -> Any:
        if work == "children" and not self._has_children:
            self._has_children = True  # not before: they poll, too
            await self._work(CHILDREN)
        return (await self._clients[next(self._turn) % CONNECTIONS].spawn(work, start))["task_id"]

    async def result(self, run: Any) -> Any:
        while (snapshot := await self._clients[0].fetch_task_result(run)).state != "completed":
            await asyncio.sleep(0.005)
        return snapshot.result

    async def settle(self, steps: int) -> str:
        run = (await self._clients[0].spawn("long", steps))["task_id"]
        while (await self._clients[0].fetch_task_result(run)).state != "sleeping":
            await asyncio.sleep(0.05)
        return str(run)

    async def resume(self, run: str) -> Any:
        await self._clients[0].emit_event("go", 0)
        return await self.result(run)

    def counts(self) -> Counts:
        return Counts(
            *asked(
                self.url,
                f"""SELECT
            (SELECT count(*) FROM absurd.t_{QUEUE} WHERE state = 'completed'),
            (SELECT count(*) FROM absurd.c_{QUEUE} WHERE status = 'committed')""",
            )
        )


def _summing(steps: int) -> Any:
    async def summed(start: int, ctx: Any) -> int:
        total = start
        for n in range(steps):
            total = await ctx.step(f"add-{n}", lambda total=total, n=n: add(total, n))
        return total

    return summed


async def _stopped(app: Any, task: asyncio.Task[None]) -> None:
    app.stop_worker()
    await task


async def _parallel(count: int, ctx: Any) -> int:
    return sum(await asyncio.gather(*(ctx.step(f"add-{n}", lambda n=n: add(n, 0)) for n in range(count))))


async def _long(steps: int, ctx: Any) -> int:
    total: int = await _summing(steps)(0, ctx)
    return total + int(await ctx.await_event("go"))


async def _blobs(start: int, ctx: Any) -> int:
    return len(await ctx.step("blob", lambda: blob(MEGABYTE)))
