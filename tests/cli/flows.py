"""Workflows that the command's tests look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from durable import Context, Engine, Retry, workflow

T = TypeVar("T")

HOSTILE = "\x1b]0;owned\x07 [bold red]no[/] :warning: \u202egnp.exe"


async def hold(amount: int) -> str:
    return f"hold of {amount}"


async def release(found: str) -> None: ...


async def refused() -> int:
    raise ValueError(HOSTILE)


@workflow
async def greet(ctx: Context, name: str = "you") -> str:
    return f"hello {name}"


@workflow
async def check(ctx: Context, name: str) -> str:
    return await ctx.step("look up", hold, len(name))


@dataclass
class Decision:
    by: str
    approved: bool


@workflow(signals={"decision": Decision})
async def expense(ctx: Context, asked: Decision) -> str:
    """With types: what comes as JSON has to become these."""
    answer = await ctx.wait_for("decision", Decision)
    return f"asked by {asked.by}, answered by {answer.by}"


@workflow
async def order(ctx: Context, amount: int) -> dict[str, Any]:
    await ctx.step("reserve", hold, amount, compensate=release)
    await ctx.call("check", check, "Ann")
    answer: Any = await ctx.wait_for("approval", timeout=timedelta(days=3))
    return {"approved": answer}


@workflow
async def broken(ctx: Context) -> int:
    await ctx.step("reserve", hold, 1, compensate=release)
    return await ctx.step("charge", refused, retry=Retry(max_attempts=2, initial_delay=0.0))


stuck = True


async def release_later(found: str) -> None:
    if stuck:
        raise RuntimeError("not yet")


@workflow
async def undoable(ctx: Context) -> int:
    await ctx.step("reserve", hold, 1, compensate=release_later)
    return await ctx.step("charge", refused)


@workflow
async def lost(ctx: Context) -> int:
    return await ctx.step("charge", refused)


ALL = (greet, check, expense, order, broken, undoable, lost)


def run(work: Coroutine[Any, Any, T]) -> T:
    """On an event loop of its own in a thread of its own: the tests' loop stays as it is."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@asynccontextmanager
async def client(url: str) -> AsyncGenerator[Engine]:
    async with Engine(url, workflows=ALL).client() as engine:
        yield engine


def execute(url: str) -> None:
    """Let everything run that can."""

    async def work() -> None:
        async with client(url) as engine:
            await engine.run_until_idle()

    run(work())
