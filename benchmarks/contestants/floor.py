"""The floor: the least SQL that does the same work, driven by raw psycopg with the same batching.

A run is a row, a step's result is a row, and what has happened since the last commit is written by the next one. A
trigger is committed together with those that come at the same moment. What an engine adds is left out: types, retries,
leases, fences, timers, signals, a timeline. A worker that dies takes its runs with it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

import psycopg

from benchmarks.contestants.base import Contestant, Counts, asked
from benchmarks.work import MEGABYTE, STEPS, add, blob

TABLES = """
CREATE TABLE runs (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state smallint NOT NULL DEFAULT 0,
                   work text NOT NULL, input integer NOT NULL, result text) WITH (fillfactor = 50);
CREATE INDEX runs_pending ON runs (id) WHERE state = 0;
CREATE TABLE steps (run bigint NOT NULL, n integer NOT NULL, result text, PRIMARY KEY (run, n));
"""
TRIGGER = """INSERT INTO runs (work, input)
             SELECT * FROM unnest(string_to_array(%s, ','), string_to_array(%s, ',')::int[])
             RETURNING id"""
CLAIM = """UPDATE runs SET state = 1
           FROM (SELECT id FROM runs WHERE state = 0 ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED) AS due
           WHERE runs.id = due.id RETURNING runs.id, work, input"""
FLUSH = """WITH recorded AS (
    INSERT INTO steps SELECT * FROM unnest(string_to_array(%s, ',')::bigint[], string_to_array(%s, ',')::int[],
                                           string_to_array(%s, E'\\x1e'))
) UPDATE runs SET state = 2, result = ended.result
  FROM unnest(string_to_array(%s, ',')::bigint[], string_to_array(%s, E'\\x1e')) AS ended (id, result)
  WHERE runs.id = ended.id"""


T = TypeVar("T", int, str)


class Write(NamedTuple):
    """A step's result, and with the last one the run's."""

    run: int
    n: int
    step: str
    result: str | None
    written: asyncio.Future[None]


class Floor(Contestant):
    name = "floor"
    packages = ("psycopg",)
    settings = (
        "Two tables and three statements over raw psycopg, batched as durable batches; uvloop. No types, retries, "
        "leases, fences or timers: what the work itself costs."
    )
    cannot: ClassVar = {
        "E": "it does not replay",
        "D.other": "it has no way to wake another process",
    }
    pace: ClassVar = {1: 3_500, 8: 20_000, 50: 60_000, 500: 140_000}

    def __init__(self, url: str, in_flight: int = 500) -> None:
        super().__init__(url, in_flight)
        self._writes: list[Write] = []
        self._triggers: list[tuple[str, int, asyncio.Future[int]]] = []
        self._results: dict[int, asyncio.Future[int]] = {}
        self._free = in_flight
        self._to_write, self._to_trigger, self._to_claim = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def install(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(TABLES)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[None]:
        async with self._loops(self._triggering):
            yield

    @contextlib.asynccontextmanager
    async def worker(self) -> AsyncGenerator[None]:
        async with self._loops(self._triggering, self._claiming, self._flushing):
            yield

    @contextlib.asynccontextmanager
    async def _loops(self, *loops: Any) -> AsyncGenerator[None]:
        """Each on a connection of its own."""
        async with contextlib.AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(await psycopg.AsyncConnection.connect(self.url, autocommit=True))
                for _ in loops
            ]
            async with asyncio.TaskGroup() as self._tasks:  # one that fails ends the measurement
                tasks = [
                    self._tasks.create_task(loop(connection))
                    for loop, connection in zip(loops, connections, strict=True)
                ]
                yield
                for task in tasks:
                    task.cancel()

    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[int]:
        return await asyncio.gather(*(self._triggered(work, start) for start in starts))

    async def trigger(self, work: str, start: int) -> int:
        return await self._triggered(work, start)

    def _triggered(self, work: str, start: int) -> asyncio.Future[int]:
        future = asyncio.get_running_loop().create_future()
        self._triggers.append((work, start, future))
        self._to_trigger.set()
        return future

    async def result(self, run: int) -> int:
        return await self._results.setdefault(run, asyncio.get_running_loop().create_future())

    async def _triggering(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            await self._to_trigger.wait()
            self._to_trigger.clear()
            batch, self._triggers = self._triggers, []
            for first in range(0, len(batch), 1000):
                part = batch[first : first + 1000]
                columns = [",".join(work for work, _, _ in part), ",".join(str(start) for _, start, _ in part)]
                rows = await (await connection.execute(TRIGGER, columns)).fetchall()
                for (_, _, future), (run,) in zip(part, rows, strict=True):
                    future.set_result(run)
                self._to_claim.set()

    async def _claiming(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            self._to_claim.clear()
            rows = await (await connection.execute(CLAIM, [self._free])).fetchall() if self._free else []
            self._free -= len(rows)
            for run, work, start in rows:
                self._tasks.create_task(self._execute(run, work, start))
            if not rows:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._to_claim.wait(), 1)

    async def _execute(self, run: int, work: str, start: int) -> None:
        total = start
        if work == "parallel":
            total = sum(await asyncio.gather(*(self._added(run, n) for n in range(start))))
            await self._step(run, start, total, total)
        elif work == "children":
            children = await self.trigger_many("one", range(start))
            total = sum(await asyncio.gather(*map(self.result, children)))
            await self._step(run, 0, total, total)
        elif work == "blob":
            await self._step(run, 0, await blob(MEGABYTE), MEGABYTE)
        else:
            last = STEPS[work] - 1
            for n in range(last + 1):
                total = await add(total, n)
                await self._step(run, n, total, total if n == last else None)
        self._free += 1
        self._to_claim.set()
        if (future := self._results.pop(run, None)) is not None:
            future.set_result(total)

    async def _added(self, run: int, n: int) -> int:
        return await self._step(run, n, await add(n, 0))

    async def _step(self, run: int, n: int, step: T, result: int | None = None) -> T:
        written = asyncio.get_running_loop().create_future()
        self._writes.append(Write(run, n, str(step), None if result is None else str(result), written))
        self._to_write.set()
        await written
        return step

    async def _flushing(self, connection: psycopg.AsyncConnection[Any]) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            batch, self._writes = self._writes, []
            ended = [(write.run, write.result) for write in batch if write.result is not None]
            await connection.execute(
                FLUSH,
                [
                    ",".join(str(write.run) for write in batch),
                    ",".join(str(write.n) for write in batch),
                    "\x1e".join(write.step for write in batch),
                    ",".join(str(run) for run, _ in ended),
                    "\x1e".join(result for _, result in ended),
                ],
            )
            for write in batch:
                write.written.set_result(None)

    def counts(self) -> Counts:
        return Counts(
            *asked(
                self.url,
                """SELECT (SELECT count(*) FROM runs WHERE state = 2 AND result IS NOT NULL),
            (SELECT count(*) FROM steps)""",
            )
        )
