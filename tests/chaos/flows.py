"""What the workers of the gates execute, every effect in the ledger."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from random import random
from typing import Any

from durable import Context, Retry, Workflow, current_step, workflow
from tests.chaos.ledger import ledger

STEPS = ("reserve", "pack", "book", "ship", "mail")
"""The steps of an order."""

FAILS, SIGNALLED, CALLS, SHARES = 7, 3, 5, frozenset({1, 6})
"""Which orders, by the last digit of their number, are refused at the end and compensated; wait for a signal; call a
child; and write a row in the transaction of their record."""

PATIENT = Retry(1000, backoff="fixed", initial_delay=0.2)
"""What the database says to the user's own statement, that its disk is full perhaps, is the user's to retry."""


@dataclass
class Pace:
    """How long a step takes at most, seconds; the same in all workers of a gate."""

    longest: float = 0.01


pace = Pace()


async def work() -> str:
    """An effect, somewhere within a little time."""
    late = time.monotonic() - ledger.deadline
    await asyncio.sleep(random() * pace.longest / 2)
    nonce = ledger.effect(current_step().idempotency_key, late)
    await asyncio.sleep(random() * pace.longest / 2)
    return nonce


async def undo(nonce: str) -> str:
    return ledger.effect(current_step().idempotency_key, time.monotonic() - ledger.deadline)


async def write_in_books(connection: Any) -> str:
    """A row in the same transaction as the record: it is there exactly once (I7).

    Nothing in the ledger: with its connection the transaction is lost, and its function is called again.
    """
    nonce = ledger.nonce()
    await connection.execute("INSERT INTO books (run_id, nonce) VALUES (%s, %s)", [current_step().run_id, nonce])
    await asyncio.sleep(random() * pace.longest)
    return nonce


async def refuse() -> None:
    raise ValueError("the customer is gone")


@workflow
async def order(ctx: Context, item: int) -> list[str]:
    """Five steps; returns their nonces, and what its signal or its child brought."""
    digit = item % 10
    done = [
        await ctx.step("reserve", work, compensate=undo),
        await ctx.step("pack", work, compensate=undo),
    ]
    if digit in SHARES:
        done.append(await ctx.transaction("book", write_in_books, retry=PATIENT))
    else:
        done.append(await ctx.step("book", work))
    if digit == SIGNALLED:
        done.append(await ctx.wait_for("paid", str))
    if digit == CALLS:
        done.append(await ctx.call("parcel", parcel, item))
    done.append(await ctx.step("ship", work, compensate=undo))
    if digit == FAILS:
        await ctx.step("refuse", refuse)
    return [*done, await ctx.step("mail", work)]


@workflow
async def parcel(ctx: Context, item: int) -> str:
    await ctx.step("weigh", work)
    return f"parcel of {item}"


@workflow
async def pulse(ctx: Context) -> str:
    """What the schedule of a load runs at each of its ticks."""
    return await ctx.step("reserve", work)


@workflow
async def stiff(ctx: Context, seconds: float) -> str:
    """Its second step blocks the event loop."""
    await ctx.step("reserve", work)
    return await ctx.step("block", block, seconds)


async def block(seconds: float) -> str:
    nonce = ledger.effect(current_step().idempotency_key, time.monotonic() - ledger.deadline)
    time.sleep(seconds)  # noqa: ASYNC251 - the mistake that users make
    return nonce


@workflow
async def dawdler(ctx: Context, longest: float) -> None:
    """Begins its steps at any time, not only when its worker has just heard of the database."""
    for _ in range(3):
        await asyncio.sleep(random() * longest)
        await ctx.step("reserve", work)


@workflow
async def timer(ctx: Context, due: datetime) -> datetime:
    """Returns when it was woken, by the database's clock."""
    await ctx.sleep_until("due", due)
    return ctx.now()


@workflow
async def nap(ctx: Context, seconds: float) -> float:
    """Returns how long it has slept, by the database's clock."""
    await ctx.step("reserve", work)
    before = ctx.now()
    await ctx.sleep("nap", seconds)
    return (ctx.now() - before).total_seconds()


ALL: tuple[Workflow[Any, Any], ...] = (order, parcel, pulse, stiff, dawdler, timer, nap)
