"""One workflow before each kind of write that ``tests.processes.flows`` has no run for (P04)."""

from __future__ import annotations

import os
from typing import Any

from durable import Context, Workflow, current_step, workflow
from tests.processes import flows
from tests.processes.stage import stage


@workflow
async def before_wait(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    if not stage.open:
        await ctx.wait_for("never")
    return os.getpid()


@workflow
async def before_call(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    return await ctx.call("child", child)


@workflow
async def child(ctx: Context) -> int:
    return os.getpid()


@workflow
async def before_emit(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    await ctx.emit("progress", 1)
    return os.getpid()


@workflow
async def before_map(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    await ctx.map("items", item, [])
    return os.getpid()


async def item(number: int) -> int:
    return number


@workflow
async def before_transaction(ctx: Context) -> int:
    return await ctx.transaction("rows", row)


async def row(connection: Any) -> int:
    """Stands here: a worker past its lease would not begin it."""
    await connection.execute("INSERT INTO books (run_id, nonce) VALUES ('', %s)", [str(os.getpid())])
    await stage.hold("go", run=current_step().run_id)
    return os.getpid()


BEFORE: dict[str, Workflow[None, int]] = {
    **flows.BEFORE,
    "wait": before_wait,
    "call": before_call,
    "emit": before_emit,
    "map": before_map,
    "transaction": before_transaction,
}
"""By the write that the run stands before."""

ALL: tuple[Workflow[Any, Any], ...] = (*BEFORE.values(), child)
