"""What comes from outside against what a run does at that moment, many times, on Postgres.

Two workers, one of which evicts at once; the moments are drawn at random. ``make races`` does each race 2,000 times;
the suite a few. The same orders are enumerated, one by one, in ``durable.testing.conformance.orders``.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from random import Random
from typing import Any

from durable import (
    Context,
    Engine,
    RunCancelled,
    RunFinished,
    RunHandle,
    WaitTimeout,
    WorkerOptions,
    Workflow,
    workflow,
)
from durable.stores.postgres import PostgresStore

TIMES = int(os.environ.get("RACES", "120"))
"""How often each race is run."""

AT_ONCE = 100
PATIENCE = 120.0  # seconds for a crowd of runs; one that is lost would never end
MOMENT = 0.02  # seconds within which both sides act

Race = Callable[[Engine, RunHandle[Any], Random], Awaitable[str]]


def within(random: Random) -> float:
    """Seconds: none, or up to a moment; one in ten is so long that the other side is first, however slow it is here."""
    return max(0.0, random.uniform(-0.3, 1.0)) * MOMENT * random.choice([1] * 9 + [50])


async def moment(random: Random) -> None:
    await asyncio.sleep(within(random))


@asynccontextmanager
async def two_workers(url: str, *workflows: Workflow[Any, Any]) -> AsyncGenerator[Engine]:
    """An engine that keeps parked runs in memory and one that does not; the first is the client too."""
    options = [WorkerOptions(concurrency=AT_ONCE, linger=linger, drain_timeout=2) for linger in (1.0, 0.0)]
    engines = [
        Engine(PostgresStore(url, schema="races"), workflows=workflows, worker=option, schema="races")
        for option in options
    ]
    async with engines[0], engines[1]:
        yield engines[0]


async def run_races(engine: Engine, flow: Workflow[Any, Any], inputs: Sequence[Any], race: Race) -> Counter[str]:
    """The outcomes; every run of them has ended."""
    outcomes: Counter[str] = Counter()

    async def one(handle: RunHandle[Any], number: int) -> None:
        outcomes[await race(engine, handle, Random(number))] += 1

    async with asyncio.timeout(PATIENCE * max(1, len(inputs) / 1000)):
        for start in range(0, len(inputs), AT_ONCE):
            handles = await engine.trigger_many(flow, inputs[start : start + AT_ONCE])
            await asyncio.gather(*(one(handle, start + place) for place, handle in enumerate(handles)))
    return outcomes


@workflow
async def two_signals(ctx: Context, seed: int) -> list[int]:
    await ctx.step("work", moment, Random(seed))
    return [await ctx.wait_for("item", int), await ctx.wait_for("item", int)]


async def test_P31_a_signal_against_the_park(postgres_url: str) -> None:
    async def race(engine: Engine, handle: RunHandle[Any], random: Random) -> str:
        for number in (1, 2):
            await moment(random)
            await engine.signal(handle.run_id, "item", number)
        return str(await handle.result())

    async with two_workers(postgres_url, two_signals) as engine:
        assert await run_races(engine, two_signals, range(TIMES), race) == {"[1, 2]": TIMES}


WAITING: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
"""By run: it has come to its first wait, so that a slow claim does not put every signal before it."""


@workflow
async def impatient(ctx: Context, seed: int) -> list[Any]:
    WAITING[ctx.run_id].set()
    try:
        first = await ctx.wait_for("item", int, timeout=within(Random(-1 - seed)))
    except WaitTimeout:
        first = 0
    return [first, await ctx.wait_for("item", int)]


async def test_P32_a_signal_against_the_deadline(postgres_url: str) -> None:
    async def race(engine: Engine, handle: RunHandle[Any], random: Random) -> str:
        await WAITING[handle.run_id].wait()
        await moment(random)
        await engine.signal(handle.run_id, "item", 1)
        with suppress(RunFinished):  # the first wait had timed out, and the second has taken the first signal
            await engine.signal(handle.run_id, "item", 2)
        return str(await handle.result())

    async with two_workers(postgres_url, impatient) as engine:
        outcomes = await run_races(engine, impatient, range(TIMES), race)
    assert set(outcomes) <= {"[1, 2]", "[0, 1]"}
    assert outcomes.total() == TIMES
    assert len(outcomes) == 2, f"no race: {outcomes}"


@workflow
async def quick(ctx: Context, seed: int) -> int:
    await ctx.step("work", moment, Random(seed))
    return seed


@workflow
async def parent(ctx: Context, seed: int) -> list[int]:
    children = [await ctx.start(f"child {n}", quick, 2 * seed + n) for n in range(2)]
    await ctx.step("work", moment, Random(-seed))
    return [await child.result() for child in children]


async def test_P34_a_childs_end_against_its_parents_park(postgres_url: str) -> None:
    async def race(engine: Engine, handle: RunHandle[Any], random: Random) -> str:
        first, second = await handle.result()
        return str(second - first)

    async with two_workers(postgres_url, parent, quick) as engine:
        assert await run_races(engine, parent, range(1, TIMES + 1), race) == {"1": TIMES}


@workflow
async def one_signal(ctx: Context, seed: int) -> int:
    await ctx.step("work", moment, Random(seed))
    return await ctx.wait_for("item", int)


async def test_P29_a_cancel_against_a_signal(postgres_url: str) -> None:
    async def race(engine: Engine, handle: RunHandle[Any], random: Random) -> str:
        async def cancel() -> bool:
            await moment(random)
            return await handle.cancel()

        async def signal() -> None:
            await moment(random)
            with suppress(RunFinished):
                await engine.signal(handle.run_id, "item", 1)

        asked, _ = await asyncio.gather(cancel(), signal())
        try:
            return f"{await handle.result()}"
        except RunCancelled:
            assert asked, "cancelled by nobody"
            return "cancelled"

    async with two_workers(postgres_url, one_signal) as engine:
        outcomes = await run_races(engine, one_signal, range(TIMES), race)
    assert set(outcomes) <= {"1", "cancelled"}
    assert outcomes.total() == TIMES
