"""A two-stage approval: the team lead, then finance; who does not answer in time is reminded, then it lapses.

    python -m examples.approval

A first-stage answer never passes the second gate: each wait consumes its own signal.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

from durable import Context, Engine, RunHandle, WaitTimeout, workflow
from durable.testing import MemoryStore

PATIENCE = timedelta(days=2)
REMINDERS = 2


@dataclass
class Expense:
    employee: str
    amount: int


@dataclass
class Decision:
    by: str
    approved: bool


@dataclass
class Outcome:
    paid: bool
    said_by: list[str]


async def remind(stage: str, expense: Expense) -> None:
    print(f"to {stage}: {expense.employee} still waits for {expense.amount} EUR")


async def pay(expense: Expense) -> str:
    print(f"{expense.amount} EUR to {expense.employee}")
    return f"payment of {expense.amount}"


async def decision(ctx: Context, stage: str, expense: Expense) -> Decision:
    """The answer of one stage. After the last reminder silence is a no."""
    for _ in range(REMINDERS + 1):
        try:
            return await ctx.wait_for(stage, Decision, timeout=PATIENCE)
        except WaitTimeout:
            await ctx.step(f"remind {stage}", remind, stage, expense)
    return Decision("nobody", approved=False)


@workflow(name="expense", signals={"lead": Decision, "finance": Decision})
async def approve_expense(ctx: Context, expense: Expense) -> Outcome:
    """Pay when both have agreed."""
    said_by: list[str] = []
    for stage in ("lead", "finance"):
        answer = await decision(ctx, stage, expense)
        said_by.append(answer.by)
        if not answer.approved:
            return Outcome(paid=False, said_by=said_by)
    await ctx.step("pay", pay, expense)
    return Outcome(paid=True, said_by=said_by)


async def main() -> None:
    async with Engine(MemoryStore(), workflows=[approve_expense]) as engine:
        run: RunHandle[Outcome] = await engine.trigger(approve_expense, Expense("Ann", 120), key="expense-1")
        await engine.signal(run.run_id, "lead", Decision("Bob", approved=True), signal_id="click-1")
        await engine.signal(run.run_id, "lead", Decision("Bob", approved=True), signal_id="click-1")  # a double click
        await engine.signal(run.run_id, "finance", Decision("Cleo", approved=True))
        print(await run.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
