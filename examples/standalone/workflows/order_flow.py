"""An order that is charged, waits for a person, and is shipped; or undone."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from durable import Context, WaitTimeout, workflow


class Order(BaseModel):
    orderId: str  # noqa: N815  (the callers' JSON says so)


class Decision(BaseModel):
    approved: bool


class Outcome(BaseModel):
    parcel: str | None


async def charge(order_id: str) -> str:
    return f"charge of {order_id}"


async def refund(charge_id: str) -> None:
    print(f"refunded: {charge_id}", flush=True)


async def ship(order_id: str) -> str:
    return f"parcel of {order_id}"


@workflow(name="order-flow", version="1.0.0", signals={"approval": Decision})
async def order_flow(ctx: Context, order: Order) -> Outcome:
    """Charge, ask, ship. Refused, or not answered within three days: the charge is refunded."""
    await ctx.step("charge", charge, order.orderId, compensate=refund)
    try:
        decision = await ctx.wait_for("approval", Decision, timeout=timedelta(days=3))
    except WaitTimeout:
        decision = Decision(approved=False)
    if not decision.approved:
        raise PermissionError(f"order {order.orderId} was not approved")  # what was done is undone
    return Outcome(parcel=await ctx.step("ship", ship, order.orderId))
