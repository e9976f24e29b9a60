"""The workflows that the tests let workers run, each made to stand where a signal is to reach it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

from durable import Context, Retry, Workflow, current_step, workflow
from tests.processes.stage import stage, tell

# -- steps ----------------------------------------------------------------------------------------


async def note(what: str) -> int:
    """An effect; returns who did it."""
    return stage.effect(what)


async def undo(pid: int) -> None:
    stage.effect(f"undo {current_step().name}")


async def held(gate: str) -> int:
    """An effect, after the test has opened ``gate``."""
    step = current_step()
    stage.effect(f"{step.name} begun")
    await stage.hold(gate, run=step.run_id, step=step.name)
    return stage.effect(step.name)


async def held_failure(gate: str) -> int:
    """Fails when it was held."""
    step = current_step()
    await stage.hold(gate, run=step.run_id, step=step.name)
    if not stage.open:
        raise ValueError("failed after its lease")
    return stage.effect(step.name)


async def fails() -> None:
    raise ValueError("out of stock")


# -- one step that stands, between others ---------------------------------------------------------


@workflow
async def three_steps(ctx: Context) -> list[int]:
    first = await ctx.step("first", note, "first")
    second = await ctx.step("second", held, "go")
    third = await ctx.step("third", note, "third")
    return [first, second, third]


@workflow
async def steady(ctx: Context, naps: int) -> int:
    """Makes progress all the time, in small pieces."""
    for _ in range(naps):
        await ctx.step("work", note, "work")
        await ctx.sleep("nap", 0.2)
    return naps


@workflow
async def quick(ctx: Context, item: int) -> int:
    """Three steps that take no time, under other names for each run, as the ledger sees them."""
    for name in ("a", "b", "c"):
        await ctx.step(name, note, f"{name} of {item}")
    return item


@workflow
async def spread(ctx: Context, item: int) -> int:
    """Steps that take a little time, so that several workers get their share."""
    for name in ("a", "b", "c"):
        await ctx.step(name, slow_note, f"{name} of {item}")
    return item


@workflow
async def busy(ctx: Context, item: int) -> int:
    """The same with a word to the test at each end."""
    result = await spread(ctx, item)
    tell("did", item=item)
    return result


async def slow_note(what: str) -> int:
    await asyncio.sleep(0.01)
    return stage.effect(what)


@workflow
async def loaded(ctx: Context, item: int) -> int:
    """Tells about every step, so that a test sees progress."""
    await ctx.step("first", told_note, item)
    await ctx.step("second", told_note, item)
    return item


async def told_note(item: int) -> int:
    pid = stage.effect(f"{current_step().name} of {item}")
    tell("did", item=item)
    return pid


@workflow
async def nap_between(ctx: Context, length: float) -> list[int]:
    before = await ctx.step("before", note, "before")
    await ctx.sleep("nap", length)
    after = await ctx.step("after", note, "after")
    return [before, after]


@workflow
async def works_on(ctx: Context, length: float) -> int:
    """A step that is longer than the lease."""
    return await ctx.step("long", long_work, length)


async def long_work(length: float) -> int:
    stage.effect("long")
    await asyncio.sleep(length)
    return os.getpid()


# -- compensation ---------------------------------------------------------------------------------


async def held_undo(pid: int) -> None:
    """Stands before its effect: all that came before it is recorded, itself it is not."""
    name = current_step().name
    await stage.hold("undo", run=current_step().run_id, step=name)
    stage.effect(f"undo {name}")


@workflow
async def undone(ctx: Context) -> None:
    for name in ("a", "b"):
        await ctx.step(name, note, name, compensate=undo)
    await ctx.step("c", note, "c", compensate=held_undo)
    await ctx.step("d", note, "d", compensate=undo)
    await ctx.step("charge", fails)


async def undo_at_the_third_attempt(pid: int) -> None:
    step = current_step()
    stage.effect(f"undo {step.name}, attempt {step.attempt}")
    if step.attempt < 3:
        raise ValueError("not yet")


@workflow
async def undone_with_patience(ctx: Context, delay: float) -> None:
    patience = Retry(3, backoff="fixed", initial_delay=delay)
    await ctx.step("a", note, "a", compensate=undo)
    await ctx.step("b", note, "b", compensate=undo_at_the_third_attempt, compensate_retry=patience)
    await ctx.step("c", note, "c", compensate=undo)
    await ctx.step("charge", fails)


# -- time and attempts of the whole run -----------------------------------------------------------


@workflow(timeout=4.0)
async def in_four_seconds(ctx: Context) -> None:
    await ctx.step("reserve", note, "reserve", compensate=undo)
    await ctx.step("slow", held, "never")


@workflow(retry=Retry(3, backoff="fixed", initial_delay=0.1))
async def three_run_attempts(ctx: Context) -> None:
    await ctx.step("reserve", note, "reserve", compensate=undo)
    await ctx.step("effort", effort, ctx.attempt)


async def effort(run_attempt: int) -> None:
    """Fails; in the second run attempt after it was held."""
    stage.effect(f"effort {run_attempt}")
    if run_attempt == 2:
        await stage.hold("go", run=current_step().run_id, step="effort")
    raise ValueError("in vain")


# -- runs that are asked to stop ------------------------------------------------------------------


@workflow
async def reserved(ctx: Context, gate: str) -> int:
    await ctx.step("reserve", note, "reserve", compensate=undo)
    return await ctx.step("held", held, gate)


# -- steps that do not end ------------------------------------------------------------------------


async def cancellable() -> int:
    tell("holding", gate="", step="cancellable", run=current_step().run_id)
    if stage.open:
        return os.getpid()
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        tell("cancelled", step="cancellable", at=time.monotonic())
    raise AssertionError("unreachable")


def listening_thread() -> int:
    """Looks whether it is still wanted, as a loop in a thread does."""
    step = current_step()
    tell("holding", gate="", step="listening_thread", run=step.run_id)
    while not step.cancelled:
        time.sleep(0.002)
    tell("cancelled", step="listening_thread", at=time.monotonic())
    return os.getpid()


async def stubborn() -> int:
    """Ignores its cancellation."""
    tell("holding", gate="", step="stubborn", run=current_step().run_id)
    while not stage.open:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            tell("cancelled", step="stubborn")
    return os.getpid()


def endless_thread() -> int:
    tell("holding", gate="", step="endless_thread")
    if not stage.open:
        threading.Event().wait()
    return os.getpid()


_ENDLESS = {"cancellable": cancellable, "stubborn": stubborn}
_ENDLESS_THREADS = {"endless_thread": endless_thread, "listening_thread": listening_thread}


@workflow
async def endless(ctx: Context, kind: str) -> int:
    await ctx.step("first", note, f"first of {kind}", compensate=undo)
    if kind in _ENDLESS_THREADS:
        return await ctx.step("endless", _ENDLESS_THREADS[kind])
    return await ctx.step("endless", _ENDLESS[kind])


@workflow
async def drained(ctx: Context) -> list[int]:
    """A step that ends during the drain, and one that must not start any more in that worker."""
    return [await ctx.step("ends in time", held, "go", compensate=undo), await ctx.step("next", note, "next")]


@workflow
async def blocks_the_loop(ctx: Context, length: float) -> int:
    return await ctx.step("blocks", sleep_on_the_loop, length)


async def sleep_on_the_loop(length: float) -> int:
    stage.effect("blocks")
    time.sleep(length)  # noqa: ASYNC251 - the mistake that users make
    return os.getpid()


@workflow
async def deadly(ctx: Context) -> None:
    await ctx.step("kill", kill_the_worker)


async def kill_the_worker() -> None:
    stage.effect("kill")
    os.kill(os.getpid(), signal.SIGKILL)


# -- one run before each kind of write (P04) ------------------------------------------------------


@workflow
async def before_step_result(ctx: Context) -> int:
    return await ctx.step("it", held, "go")


@workflow
async def before_step_failure(ctx: Context) -> int:
    return await ctx.step("it", held_failure, "go")


@workflow
async def before_attempt(ctx: Context) -> int:
    return await ctx.step("it", held_failure, "go", retry=Retry(2, initial_delay=60, max_delay=60))


@workflow
async def before_sleep(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    await ctx.sleep("nap", 0.2)
    return os.getpid()


@workflow
async def before_woke(ctx: Context) -> int:
    """The sleep ends while the step executes, so the run keeps its slot."""
    nap = asyncio.create_task(ctx.sleep("nap", 4))
    pid = await ctx.step("it", held, "never")
    await nap
    return pid


@workflow
async def before_park(ctx: Context) -> int:
    """Only the sleep is left when user code cancels the step, which leaves no record."""
    nap = asyncio.create_task(ctx.sleep("nap", 5))
    step = asyncio.create_task(ctx.step("it", held, "never"))
    if not stage.open:
        await stage.gate("go").passed()
        step.cancel()
    await nap
    return await step


@workflow
async def before_completion(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    return os.getpid()


@workflow
async def before_failure(ctx: Context) -> int:
    await stage.hold("go", run=ctx.run_id)
    if not stage.open:
        raise ValueError("failed after its lease")
    return os.getpid()


@workflow
async def before_compensating(ctx: Context) -> int:
    await ctx.step("a", note, "a", compensate=undo)
    await stage.hold("go", run=ctx.run_id)
    if not stage.open:
        raise ValueError("failed after its lease")
    return os.getpid()


@workflow
async def before_undo_result(ctx: Context) -> int:
    await ctx.step("a", note, "a", compensate=undo)
    await ctx.step("b", note, "b", compensate=undo_when_told)
    await ctx.step("charge", fails)
    raise AssertionError("unreachable")


async def undo_when_told(pid: int) -> None:
    await stage.hold("go", run=current_step().run_id)


@workflow
async def before_release(ctx: Context) -> int:
    return await ctx.step("it", held, "never")


BEFORE: dict[str, Workflow[None, int]] = {
    "step": before_step_result,
    "step failed": before_step_failure,
    "attempt failed": before_attempt,
    "sleep": before_sleep,
    "woke": before_woke,
    "→ sleeping": before_park,
    "→ completed": before_completion,
    "→ failed": before_failure,
    "→ compensating": before_compensating,
    "undo": before_undo_result,
    "→ pending": before_release,
}
"""By the write that the run stands before, as ``program.Watched`` describes it."""

BEFORE_SIGTERM = [kind for kind in BEFORE if kind != "→ pending"]
"""What a worker writes by itself when it is continued."""


@workflow
async def ticked(ctx: Context) -> float:
    """One effect for the tick it is for."""
    assert ctx.schedule is not None
    await ctx.step("effect", note, f"tick {ctx.schedule.at.timestamp():g}")
    return ctx.schedule.at.timestamp()


ALL: tuple[Workflow[Any, Any], ...] = (
    *(three_steps, steady, quick, spread, busy, loaded, nap_between, works_on),
    *(undone, undone_with_patience, in_four_seconds, three_run_attempts, reserved),
    *(endless, drained, blocks_the_loop, deadly, ticked),
    *BEFORE.values(),
)
