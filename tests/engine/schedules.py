"""The few verbs in which the tests of schedules are written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from durable import (
    Context,
    Engine,
    RunSummary,
    WorkerOptions,
    Workflow,
    workflow,
)
from durable.schedules import ScheduleWrite
from durable.store import Store
from tests.engine.backends import SOON, Backend, Listener

FAR = "0 6 29 2 *"
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@workflow
async def report(ctx: Context, to: str = "all") -> str:
    assert ctx.schedule is not None
    return f"{ctx.schedule.name} of {ctx.schedule.at.isoformat()} to {to}"


@workflow
async def waits(ctx: Context) -> str:
    await ctx.wait_for("go")
    return "gone"


async def runs_of(engine: Engine, name: str) -> list[RunSummary]:
    """The runs of a schedule, the oldest first."""
    return sorted((await engine.list_runs(schedule=name, limit=1000)).items, key=lambda run: run.id)


@asynccontextmanager
async def past(backend: Backend) -> AsyncGenerator[Store]:
    """An open store, to write what no engine would."""
    store = backend.store()
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def miss(backend: Backend, engine: Engine, name: str, by: timedelta) -> datetime:
    """Have the schedule's next tick be one that was due ``by`` ago, as if no worker had been there; when that was."""
    schedule = await engine.get_schedule(name)
    assert schedule.spec.every is not None
    assert schedule.next_at is not None
    every = timedelta(seconds=schedule.spec.every)
    at = schedule.next_at - every * (int(by / every) + 1)
    overdue = replace(schedule, next_at=at, due_at=at, revision=schedule.revision + 1)
    async with past(backend) as store:
        assert list(await store.write_schedules([ScheduleWrite(overdue, schedule)])) == [True]
    return at


async def until(check: Callable[[], Any]) -> Any:
    """What ``check`` answers, once it is true: nobody announces that a run has begun, or a tick was fired."""
    async with asyncio.timeout(SOON):
        while not (answer := await check()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return answer


@asynccontextmanager
async def listening(name: str, text: str) -> AsyncGenerator[Listener]:
    logger, listener = logging.getLogger(name), Listener(text)
    logger.addHandler(listener)
    try:
        yield listener
    finally:
        logger.removeHandler(listener)


def declaring(backend: Backend, *workflows: Workflow[Any, Any], **options: Any) -> Engine:
    return Engine(backend.store(), workflows=workflows, worker=WorkerOptions(drain_timeout=2.0), **options)
