"""The workflow of the shop, and the engine that the web process and the workers make of it."""

from __future__ import annotations

from dataclasses import dataclass

from durable import Context, Engine, workflow

LARGE = 10_000
"""Cents from which somebody has to approve an order."""


@dataclass
class Order:
    id: str
    cents: int


@dataclass
class Approval:
    approved: bool


async def charge(order: Order) -> str:
    print(f"charged {order.cents} cents for {order.id}", flush=True)
    return f"receipt of {order.id}"


@workflow(name="shop-order", signals={"approval": Approval})
async def shop_order(ctx: Context, order: Order) -> str:
    """Charge an order; a large one when it was approved."""
    if order.cents >= LARGE:
        approval = await ctx.wait_for("approval", Approval)
        if not approval.approved:
            return "refused"
    return await ctx.step("charge", charge, order)


def make_engine() -> Engine:
    """On the database that DURABLE_DATABASE_URL names."""
    return Engine(workflows=[shop_order])
