"""``durable bench``: what this machine and the configured database carry, measured beside the user's runs.

It works in a schema, or a file, of its own that it makes and deletes: no run of the user's is touched, and no other
worker sees what it triggers.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel

from durable.cli.loading import DatabaseOption
from durable.cli.options import JsonOption
from durable.cli.output import err, out, table, write_json
from durable.cli.process import loop_factory
from durable.collector import sparing_collector
from durable.context import Context
from durable.engine import Engine
from durable.errors import StoreUnavailable, without_password
from durable.options import WorkerOptions
from durable.workflow import Workflow, workflow

_IN_FLIGHT = 500
_FEEDERS = 4
"""Clients that trigger, each a share of the runs in flight, and wait for all of its own before it triggers again."""

_CALLERS = 64
"""Clients that trigger one run after the other; their triggers share commits."""

_DEFAULT = "sqlite:///durable.db"


async def add(total: int, n: int) -> int:
    """A step that costs nothing."""
    return total + n


@workflow(name="bench-steps")
async def steps(ctx: Context, count: int) -> int:
    """So many steps, one after the other."""
    total = 0
    for n in range(count):
        total = await ctx.step(f"add-{n}", add, total, n)
    return total


class Figure(BaseModel):
    """One measurement."""

    name: str
    value: float
    unit: str


class Figures(BaseModel):
    """What ``--json`` writes."""

    database: str
    processors: int | None
    figures: Sequence[Figure]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="For each of the four measurements.")] = 2.0,
    as_json: JsonOption = False,
    database: DatabaseOption = None,
) -> None:
    """Measure this machine with the database, in about ten seconds.

    In a schema or file of its own, which is deleted at the end: your runs are not touched.
    """
    url = database or _DEFAULT
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        figures = runner.run(_measured(url, seconds))
    if as_json:
        write_json(Figures(database=without_password(url), processors=os.cpu_count(), figures=figures))
        return
    out.print(f"{without_password(url)}, one worker process, {os.cpu_count()} processors")
    out.print(
        table(
            ("measured", "figure", ""),
            [(f.name, f"{f.value:,.1f}" if f.value < 100 else f"{f.value:,.0f}", f.unit) for f in figures],
        )
    )


async def _measured(url: str, seconds: float) -> list[Figure]:
    async with scratch(url) as engine:
        with err.status("Measuring …"), sparing_collector():
            async with engine:
                await _carried(engine, steps, 3, min(seconds, 0.5))  # warms up: plans, caches
                p50, p99 = await _latency(engine, seconds)
                ten = await _carried(engine, steps, 10, seconds)
                one = await _carried(engine, steps, 1, seconds)
            async with engine.client():
                triggers = await _triggered(engine, seconds)
    return [
        Figure(name="trigger to result of 3 steps, idle, median", value=p50 * 1000, unit="ms"),
        Figure(name="the same, 99th percentile", value=p99 * 1000, unit="ms"),
        Figure(name=f"runs of 10 steps, {_IN_FLIGHT} in flight", value=ten * 10, unit="steps/s"),
        Figure(name=f"runs of 1 step, {_IN_FLIGHT} in flight", value=one, unit="runs/s"),
        Figure(name=f"triggers of {_CALLERS} concurrent callers", value=triggers, unit="runs/s"),
    ]


@asynccontextmanager
async def scratch(url: str) -> AsyncGenerator[Engine]:
    """An engine on the same database, in a place that is new and deleted at the end.

    Raises:
        StoreUnavailable: The database cannot be reached.
        ConfigurationError: The role may not create a schema.
    """
    place = f"durable_bench_{secrets.token_hex(4)}"
    options = WorkerOptions(concurrency=_IN_FLIGHT)
    if url.startswith("sqlite:///"):
        file = Path(f"{url.removeprefix('sqlite:///')}.{place}")
        try:
            yield Engine(f"sqlite:///{file}", workflows=[steps], worker=options)
        finally:
            for ending in ("", "-wal", "-shm"):
                file.with_name(file.name + ending).unlink(missing_ok=True)
        return
    engine = Engine(url, workflows=[steps], worker=options, schema=place)
    await engine.migrate()  # as a whole or not at all: when it fails, there is nothing to drop
    try:
        yield engine
    finally:
        if not url.startswith("memory:"):
            await _drop(url, place)


async def _drop(url: str, schema: str) -> None:
    import psycopg

    try:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE'.encode())
    except psycopg.Error as error:
        raise StoreUnavailable(
            f'the schema "{schema}" is left behind, drop it: {without_password(str(error))}'
        ) from None


async def _latency(engine: Engine, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile of one run at a time, in seconds."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while (begun := time.monotonic()) < end or len(took) < 2:
        await (await engine.trigger(steps, 3)).result()
        took.append(time.monotonic() - begun)
    took.sort()
    return took[len(took) // 2], took[len(took) * 99 // 100]


async def _carried(engine: Engine, work: Workflow[int, int], count: int, seconds: float) -> float:
    """Runs of ``count`` steps per second."""

    async def feed() -> int:
        handles = await engine.trigger_many(work, [count] * (_IN_FLIGHT // _FEEDERS))
        await asyncio.gather(*(handle.result() for handle in handles))
        return len(handles)

    return await _per_second(feed, _FEEDERS, seconds)


async def _triggered(engine: Engine, seconds: float) -> float:
    """Triggers per second, each a call of its own."""

    async def call() -> int:
        await engine.trigger(steps, 1)
        return 1

    return await _per_second(call, _CALLERS, seconds)


async def _per_second(work: Callable[[], Awaitable[int]], clients: int, seconds: float) -> float:
    begun = time.monotonic()

    async def client() -> int:
        done = 0
        while time.monotonic() - begun < seconds:
            done += await work()
        return done

    done = await asyncio.gather(*(client() for _ in range(clients)))
    return sum(done) / (time.monotonic() - begun)
