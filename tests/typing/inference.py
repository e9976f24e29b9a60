"""What the type checkers infer, and what they refuse: read by mypy and pyright in ``make check``, never run.

A line that must be an error carries an ``ignore`` for both checkers, and an ``ignore`` that is not needed is an
error itself: so each of them is a test that can fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, assert_type

from durable import Context, Engine, Retry, Run, RunHandle, RunSummary, State, TimelineEntry, Workflow, workflow


@dataclass
class Order:
    id: str
    amount: int = 1


@dataclass
class Receipt:
    order: str


class Payments:
    async def charge(self, amount: int, currency: str = "EUR") -> Receipt:
        return Receipt(f"{amount} {currency}")

    def refund(self, receipt: Receipt) -> None:
        """Undo ``charge``."""


def count(text: str) -> int:
    return len(text)


async def undo_count(number: int) -> None:
    """Undo ``count``."""


payments = Payments()


# -- workflows ------------------------------------------------------------------------------------


@workflow
async def plain(ctx: Context, order: Order) -> Receipt:
    return Receipt(order.id)


@workflow(name="named", version="2")
async def named(ctx: Context, order: Order) -> Receipt:
    return await plain(ctx, order)


@workflow
async def without_input(ctx: Context) -> int:
    return 1


@workflow
async def with_default(ctx: Context, order: Order = Order("default")) -> int:  # noqa: B008 - never changed
    return order.amount


assert_type(plain, Workflow[Order, Receipt])
assert_type(named, Workflow[Order, Receipt])
assert_type(without_input, Workflow[None, int])
assert_type(with_default, Workflow[Order, int])


@workflow  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue, reportUntypedFunctionDecorator]
def not_async(ctx: Context, order: Order) -> Receipt:
    return Receipt(order.id)


# -- steps ----------------------------------------------------------------------------------------


@workflow
async def steps(ctx: Context, order: Order) -> None:
    assert_type(await ctx.step("method", payments.charge, order.amount), Receipt)
    assert_type(await ctx.step("default", payments.charge, order.amount, "USD"), Receipt)
    assert_type(await ctx.step("sync", count, order.id, retry=3, timeout=timedelta(seconds=1)), int)
    assert_type(await ctx.step("partial", partial(payments.charge, currency="USD"), 1, retry=Retry()), Receipt)
    assert_type(await ctx.step("lambda", lambda: 1.5), float)
    assert_type(await ctx.step("undo", payments.charge, 1, compensate=payments.refund), Receipt)
    assert_type(await ctx.step("undo later", count, "x", compensate=undo_count), int)
    assert_type(await ctx.sleep("sleep", 1.0), None)
    both = await asyncio.gather(ctx.step("a", count, "x"), ctx.step("b", payments.charge, 1))
    assert_type(both, tuple[int, Receipt])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ctx.step("c", count, "x"))
    assert_type(task.result(), int)


@workflow
async def refused_steps(ctx: Context, order: Order) -> None:
    await ctx.step("wrong argument", payments.charge, "1")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.step("no argument", count)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.step("wrong undo", count, "x", compensate=payments.refund)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.step(count, "x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.sleep("no duration")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- triggers and results -------------------------------------------------------------------------


async def triggers(engine: Engine) -> None:
    handle = await engine.trigger(plain, Order("1"), key="1")
    assert_type(handle, RunHandle[Receipt])
    assert_type(await handle.result(timeout=60), Receipt)
    assert_type(await handle.status(), State)
    assert_type(await (await engine.trigger(without_input)).result(), int)
    assert_type(await (await engine.trigger(with_default)).result(), int)
    assert_type(await engine.trigger("plain", {"id": "1"}), RunHandle[Any])
    assert_type(await engine.trigger_many(plain, [Order("1"), Order("2")]), list[RunHandle[Receipt]])
    assert_type(await engine.handle(plain, key="1"), RunHandle[Receipt])
    assert_type(await engine.get_run("id"), Run)
    assert_type((await engine.list_runs(workflow="plain")).items, Sequence[RunSummary])
    assert_type(await engine.timeline("id"), list[TimelineEntry])
    await engine.trigger(plain, "1")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await engine.trigger(without_input, 1)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await engine.trigger_many(plain, ["1"])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await engine.trigger(plain, Order("1"), retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await named(engine, Order("1"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
