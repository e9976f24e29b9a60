"""Fulfilment that waits for a payment provider's webhook, which may come early, late, twice, or never.

    python -m examples.fulfilment

The webhook knows the order's number and nothing of runs: the key finds the run, and the event's id makes it one signal
however often the provider delivers it.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from durable import Context, Engine, RunFinished, RunNotFound, WaitTimeout, workflow
from durable.testing import MemoryStore


@dataclass
class Order:
    number: str
    sku: str
    amount: int


@dataclass
class Paid:
    amount: int
    reference: str


async def reserve(sku: str) -> str:
    return f"hold on {sku}"


async def release(hold: str) -> None:
    print(f"released: {hold}")


async def ship(order: Order) -> str:
    return f"parcel with {order.sku}"


class Unpaid(Exception):
    """No payment, or not enough of it, within the time."""


@workflow(name="fulfil", signals={"paid": Paid})
async def fulfil(ctx: Context, order: Order) -> str:
    """Hold the goods for an hour; ship when the money has come, else put them back."""
    await ctx.step("reserve", reserve, order.sku, compensate=release)
    missing = order.amount
    while missing > 0:
        try:
            missing -= (await ctx.wait_for("paid", Paid, timeout=timedelta(hours=1))).amount
        except WaitTimeout:
            raise Unpaid(f"{missing} of {order.amount} are missing") from None
    return await ctx.step("ship", ship, order)


async def webhook(engine: Engine, event: dict[str, Any]) -> int:
    """The HTTP handler's body: the status code that it answers."""
    try:
        run = await engine.handle(fulfil, key=event["order"])
        await engine.signal(run.run_id, "paid", Paid(event["amount"], event["id"]), signal_id=event["id"])
    except RunNotFound:
        return 404  # the provider tries again later
    except RunFinished:
        return 200  # a repetition, after the order was shipped: nothing to do
    return 202


async def main() -> None:
    async with Engine(MemoryStore(), workflows=[fulfil]) as engine:
        run = await engine.trigger(fulfil, Order("A-1", "tea", 30), key="A-1")
        event = {"id": "evt_1", "order": "A-1", "amount": 20}
        print([await webhook(engine, event) for _ in range(3)])
        print(await webhook(engine, {"id": "evt_2", "order": "A-1", "amount": 10}))
        print(await run.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
