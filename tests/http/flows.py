"""The workflows that the tests of the HTTP runtime trigger."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from durable import Context, Retry, Workflow, workflow
from durable.durations import MAX_SECONDS


class Order(BaseModel):
    orderId: str


class Approval(BaseModel):
    approved: bool
    note: str = ""


class Card(Exception):
    pass


async def charge(order_id: str) -> str:
    return f"charged {order_id}"


async def decline(order_id: str) -> str:
    raise Card(f"no money for {order_id}")


@workflow(name="order-flow", version="1.0.0", signals={"approval": Approval})
async def order_flow(ctx: Context, order: Order) -> dict[str, str]:
    """Charges an order that somebody approves."""
    approval = await ctx.wait_for("approval", Approval)
    receipt = await ctx.step("charge", charge, order.orderId)
    await ctx.emit("charged", {"receipt": receipt})
    return {"receipt": receipt, "note": approval.note}


@workflow(name="echo")
async def echo(ctx: Context, value: Any) -> Any:
    return value


@workflow(name="fails")
async def fails(ctx: Context, order: Order) -> None:
    await ctx.step("reserve", charge, order.orderId)
    await ctx.step("charge", decline, order.orderId, retry=Retry(max_attempts=2, initial_delay=0.0))


@workflow(name="two-waits")
async def two_waits(ctx: Context) -> list[Any]:
    """Waits for two answers, one after the other."""
    return [await ctx.wait_for("answer"), await ctx.wait_for("answer")]


@workflow(name="either")
async def either(ctx: Context) -> str:
    name, _ = await ctx.wait_for_any("verdict", {"yes": Any, "no": Any})
    return name


@workflow(name="sleeps")
async def sleeps(ctx: Context) -> None:
    await ctx.sleep("long", MAX_SECONDS / 2)


FLOWS: tuple[Workflow[Any, Any], ...] = (order_flow, echo, fails, two_waits, either, sleeps)
