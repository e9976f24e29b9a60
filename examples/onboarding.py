"""Onboarding that calls a KYC check as a child workflow.

    python -m examples.onboarding

The check is a workflow of its own: it has its own history and retries, other workflows call it too, and a team of its
own may run its workers. When onboarding is cancelled, the check is.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from durable import ChildFailed, Context, Engine, NonRetryable, Retry, workflow
from durable.testing import MemoryStore


@dataclass
class Person:
    name: str
    document: str


@dataclass
class Report:
    name: str
    risk: str


class Rejected(NonRetryable):
    """The document is not accepted. Asking again changes nothing."""


async def read_document(document: str) -> str:
    if document == "forged":
        raise Rejected("the document is forged")
    return document.upper()


async def sanctions(name: str) -> bool:
    return name == "Mallory"


async def open_account(name: str) -> str:
    return f"account of {name}"


async def close_account(account: str) -> None:
    print(f"closed: {account}")


async def welcome(name: str) -> None:
    print(f"welcome, {name}")


@workflow(name="kyc", version="2")
async def kyc(ctx: Context, person: Person) -> Report:
    """Who is it, and may we?"""
    await ctx.step("read document", read_document, person.document, retry=Retry(max_attempts=3))
    listed = await ctx.step("sanctions", sanctions, person.name, retry=5)
    return Report(person.name, "high" if listed else "low")


@workflow(name="onboard")
async def onboard(ctx: Context, person: Person) -> str:
    """An account, if the check says so."""
    account = await ctx.step("open account", open_account, person.name, compensate=close_account)
    try:
        report = await ctx.call("kyc", kyc, person)
    except ChildFailed as failed:
        if failed.is_a(Rejected):
            return await refuse(ctx, account, failed.failure.message)
        raise
    if report.risk == "high":
        return await refuse(ctx, account, "high risk")
    await ctx.step("welcome", welcome, person.name)
    return account


async def refuse(ctx: Context, account: str, why: str) -> str:
    await ctx.step("close account", close_account, account)
    return f"refused: {why}"


async def main() -> None:
    async with Engine(MemoryStore(), workflows=[onboard, kyc]) as engine:
        for person in (Person("Ann", "passport"), Person("Mallory", "passport"), Person("Eve", "forged")):
            run = await engine.trigger(onboard, person)
            print(await run.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
