"""What the type checkers infer of signals, children, fan-outs, transactions and ``engine.sync``, and what they refuse.

As in ``inference``: read by mypy and pyright, never run; a line that must be an error carries an ``ignore`` for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, assert_type

from durable import (
    ChildFailed,
    ChildHandle,
    Context,
    Debounce,
    EmittedEvent,
    Engine,
    Page,
    Policy,
    Queue,
    Rate,
    Run,
    RunHandle,
    RunSummary,
    State,
    StepFailed,
    SyncRunHandle,
    workflow,
)


@dataclass
class Order:
    id: str


@dataclass
class Approval:
    by: str


class Connection:
    def execute(self, statement: str) -> object: ...


@workflow(signals={"approval": Approval})
async def ship(ctx: Context, order: Order) -> int:
    return len(order.id)


@workflow
async def nothing(ctx: Context) -> str:
    return ""


async def fetch(order: Order) -> float:
    return float(len(order.id))


def weigh(order: Order) -> int:
    return len(order.id)


async def write(connection: Connection, order: Order) -> bool:
    return connection.execute(order.id) is None


def write_sync(connection: Connection, order: Order, times: int = 1) -> int:
    connection.execute(order.id * times)
    return times


def forget(times: int) -> None:
    """Undo ``write_sync``."""


# -- waiting --------------------------------------------------------------------------------------


@workflow
async def waits(ctx: Context) -> None:
    assert_type(await ctx.wait_for("approval", Approval), Approval)
    assert_type(await ctx.wait_for("approval", Approval, timeout=timedelta(days=1)), Approval)
    assert_type(await ctx.wait_for("number", int, timeout=3), int)
    assert_type(await ctx.wait_for("numbers", list[int]), list[int])
    assert_type(await ctx.wait_for("anything"), Any)
    assert_type(await ctx.wait_for_any("first", {"yes": Approval, "no": str}), tuple[str, Any])
    assert_type(await ctx.wait_for_event("price", float, key="tea"), float)
    assert_type(await ctx.wait_for_event("price"), Any)
    assert_type(await ctx.emit("progress", {"done": 1}), None)
    both = await asyncio.gather(ctx.wait_for("a", Approval), ctx.wait_for("b", int))
    assert_type(both, tuple[Approval, int])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(ctx.wait_for("c", int))
    assert_type(task.result(), int)


@workflow
async def refused_waits(ctx: Context) -> None:
    await ctx.wait_for(Approval)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await ctx.wait_for("approval", Approval, 5)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.wait_for_any("first", ["yes", "no"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.emit()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


# -- children -------------------------------------------------------------------------------------


@workflow
async def children(ctx: Context, order: Order) -> None:
    assert_type(await ctx.call("ship", ship, order), int)
    assert_type(await ctx.call("nothing", nothing), str)
    assert_type(await ctx.call("by name", "ship", {"id": "1"}, version="2"), Any)
    assert_type(await ctx.call("options", ship, order, queue="slow", priority=1, tags={"a": "b"}, limit_key="c"), int)
    handle = await ctx.start("later", ship, order)
    assert_type(handle, ChildHandle[int])
    assert_type(await handle.result(), int)
    assert_type(await (await ctx.start("named", "ship", {})).result(), Any)
    both = await asyncio.gather(ctx.call("a", ship, order), ctx.call("b", nothing))
    assert_type(both, tuple[int, str])
    assert_type(ctx.branch("side"), Context)


@workflow
async def refused_children(ctx: Context, order: Order) -> None:
    await ctx.call("ship", ship, "1")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.call("nothing", nothing, 1)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.call("function", fetch, order)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.call("keyed", ship, order, key="1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.start("ship", ship, "1")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]


# -- fan-out --------------------------------------------------------------------------------------


@workflow
async def fans_out(ctx: Context, orders: list[Order]) -> None:
    assert_type(await ctx.map("ship", ship, orders), list[int])
    assert_type(await ctx.map("ship", ship, orders, child={"queue": "slow"}, concurrency=10), list[int])
    assert_type(await ctx.map("ship", ship, orders, on_error="collect"), list[int | ChildFailed])
    assert_type(await ctx.map("fetch", fetch, orders), list[float])
    assert_type(await ctx.map("fetch", fetch, orders, retry=3, timeout=1), list[float])
    assert_type(await ctx.map("fetch", fetch, orders, on_error="collect"), list[float | StepFailed])
    assert_type(await ctx.map("weigh", weigh, orders, compensate=forget), list[int])
    assert_type(await ctx.map("weigh", weigh, orders, on_error="collect"), list[int | StepFailed])
    both = await asyncio.gather(ctx.map("a", ship, orders), ctx.map("b", fetch, orders))
    assert_type(both, tuple[list[int], list[float]])


@workflow
async def refused_fans(ctx: Context, orders: list[Order]) -> None:
    await ctx.map("ship", ship, ["1"])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.map("fetch", fetch, [1])  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.map("fetch", fetch, orders, on_error="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.map("fetch", fetch, orders, retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await ctx.map("ship", ship, orders, retry=3)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.map("fetch", fetch, orders, child={"queue": "slow"})  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


# -- effects that are shared, or of the own database ----------------------------------------------


@workflow
async def effects(ctx: Context, order: Order) -> None:
    assert_type(await ctx.step("charge", fetch, order, idempotency_key=f"order:{order.id}:charge"), float)
    assert_type(await ctx.transaction("write", write, order), bool)
    assert_type(await ctx.transaction("write", write_sync, order), int)
    assert_type(await ctx.transaction("write", write_sync, order, 2, compensate=forget, retry=3), int)
    assert_type(await ctx.transaction("lambda", lambda connection: 1.5), float)


@workflow
async def refused_effects(ctx: Context, order: Order) -> None:
    await ctx.step("charge", fetch, order, idempotency_key=1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.transaction("no connection", weigh, order)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.transaction("wrong", write_sync, "1")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await ctx.transaction("shared", write, order, idempotency_key="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


# -- from outside ---------------------------------------------------------------------------------


async def outside(engine: Engine, run_id: str) -> None:
    assert_type(await engine.signal_with_start(ship, Order("1"), "approval", Approval("a"), key="1"), RunHandle[int])
    assert_type(await engine.signal(run_id, "approval", Approval("a"), signal_id="1"), None)
    assert_type(await engine.publish("price", 1.5, key="tea", retention=timedelta(days=1)), None)
    assert_type(await engine.events(after=None), Page[EmittedEvent])
    await engine.trigger(ship, Order("1"), concurrency_key="c", concurrency_policy="replace")
    await engine.trigger(ship, Order("1"), concurrency_key="c", concurrency_policy=Policy.QUEUE)
    await engine.trigger(ship, Order("1"), debounce=Debounce("1", 5.0, max_delay=60.0))
    await engine.set_limits(Queue("mail", concurrency=5, rate=Rate(100, 60.0), rate_per_key=Rate(1)))
    assert_type(await engine.limits(), list[Queue])
    await engine.signal_with_start(ship, "1", "approval", key="1")  # type: ignore[misc]  # pyright: ignore[reportArgumentType]
    await engine.signal(run_id)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def blocking(engine: Engine, run_id: str) -> None:
    handle = engine.sync.trigger(ship, Order("1"), key="1")
    assert_type(handle, SyncRunHandle[int])
    assert_type(handle.result(timeout=5), int)
    assert_type(handle.status(), State)
    assert_type(engine.sync.trigger(nothing).result(), str)
    assert_type(engine.sync.trigger("ship", {"id": "1"}), SyncRunHandle[Any])
    assert_type(engine.sync.trigger_many(ship, [Order("1")]), list[SyncRunHandle[int]])
    assert_type(engine.sync.handle(ship, key="1"), SyncRunHandle[int])
    assert_type(engine.sync.handle("ship", key="1"), SyncRunHandle[Any])
    assert_type(engine.sync.signal(run_id, "approval", Approval("a")), None)
    assert_type(engine.sync.cancel(run_id), bool)
    assert_type(engine.sync.get_run(run_id), Run)
    assert_type(engine.sync.list_runs(workflow="ship").items, Sequence[RunSummary])
    engine.sync.trigger(ship, "1")  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    engine.sync.trigger(ship, Order("1"), retries=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    engine.sync.trigger_many(ship, ["1"])  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
