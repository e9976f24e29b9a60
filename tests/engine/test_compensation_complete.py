"""Undoing, to its end: crashes in between, failures, retries, what cannot be stored, what has no step."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    InvalidArgument,
    Retry,
    RunCancelled,
    RunCompensated,
    RunFailed,
    RunFinished,
    State,
    StepFailed,
    TimelineEntry,
    current_step,
    workflow,
)
from durable import failures as stored
from tests.engine.backends import SOON, Backend
from tests.engine.test_cancel import LONG, held, kinds
from tests.engine.test_compensation import Ledger
from tests.engine.test_pause import Fails


def undos(entries: list[TimelineEntry]) -> list[tuple[str, str, int | None]]:
    """The ends of compensations: kind, step, attempt."""
    ends = ("undo completed", "undo retrying", "undo failed")
    return [(entry.kind, entry.name, entry.attempt) for entry in entries if entry.kind in ends]


@pytest.mark.parametrize("at", range(4))
async def test_P02_whichever_compensation_is_interrupted_each_is_recorded_once(backend: Backend, at: int) -> None:
    """Without the kill: the engine is stopped in the middle of the ``at``-th compensation, another goes on."""
    ledger = Ledger()
    reached = asyncio.Event()

    async def undo(n: int, _: str) -> None:
        if n == at and not reached.is_set():
            reached.set()
            await asyncio.Event().wait()
        ledger.made.append(f"undo {n}")

    @workflow
    async def flow(ctx: Context) -> None:
        for n in range(4):
            await ctx.step(f"step {n}", ledger.do, f"{n}", compensate=partial(undo, n))
        raise ValueError("the first error" if not reached.is_set() else "another error")

    async with backend.engine(flow, drain_timeout=0.01) as engine:
        handle = await engine.trigger(flow)
        await reached.wait()
    before = [entry for entry in ledger.made if entry.startswith("undo")]
    assert before == [f"undo {n}" for n in reversed(range(at + 1, 4))]
    async with backend.engine(flow) as engine:
        again = await engine.handle(flow, run_id=handle.run_id)
        with pytest.raises(RunCompensated, match="the first error") as raised:
            await backend.result(engine, again)
        entries = await engine.timeline(handle.run_id)
    assert [entry for entry in ledger.made if entry.startswith("undo")] == [f"undo {n}" for n in (3, 2, 1, 0)]
    assert [entry for entry in ledger.made if entry.isdigit()] == ["0", "1", "2", "3"]
    assert raised.value.failure.undone == ("step 3", "step 2", "step 1", "step 0")
    assert undos(entries) == [("undo completed", f"step {n}", 1) for n in (3, 2, 1, 0)]


async def test_P27_a_compensated_run_tells_its_error_the_failed_step_what_was_undone_and_when(
    backend: Backend,
) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("note", ledger.do, "note")
        await ctx.step("charge", charge, compensate=ledger.undo)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunCompensated, match="ConnectionError: the bank is down") as raised:
            await backend.result(engine, handle)
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    failure = raised.value.failure
    assert failure == stored.from_json(run.error)
    assert failure.error_type == "durable.errors.StepFailed"
    assert failure.step == "charge"
    assert failure.undone == ("reserve",)
    assert failure.not_undone == ()
    assert run.state is State.COMPENSATED
    assert run.ended_at is not None
    assert run.started_at is not None
    assert run.created_at <= run.started_at <= run.ended_at
    assert kinds(entries)[-4:] == ["compensating", "undo started", "undo completed", "compensated"]
    assert entries[-1].at == max(run.ended_at, entries[-2].at)  # records have the worker's idea of the server's time


async def test_P28_what_could_not_be_undone_is_listed_and_resumed(backend: Backend) -> None:
    ledger = Ledger()
    ledger.broken = {"reserve", "charge"}

    @workflow
    async def flow(ctx: Context) -> None:
        for name in ("reserve", "charge", "ship"):
            await ctx.step(name, ledger.do, name, compensate=ledger.undo)
        raise ValueError("address unknown")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed, match="address unknown") as raised:
            await backend.result(engine, handle)
        assert raised.value.failure.undone == ("ship",)
        assert raised.value.failure.not_undone == ("charge", "reserve")
        ledger.broken = {"reserve"}
        await engine.retry_compensation(handle.run_id, reason="the bank is back", by="ops")
        with pytest.raises(RunFailed, match="address unknown") as raised:
            await backend.result(engine, handle)
        assert raised.value.failure.undone == ("ship", "charge")
        assert raised.value.failure.not_undone == ("reserve",)
        ledger.broken = set()
        await engine.retry_compensation(handle.run_id)
        with pytest.raises(RunCompensated, match="address unknown") as raised:
            await backend.result(engine, handle)
        with pytest.raises(RunFinished, match="is compensated: retry_compensation does not apply"):
            await engine.retry_compensation(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert raised.value.failure.undone == ("ship", "charge", "reserve")
    assert raised.value.failure.not_undone == ()
    assert ledger.made == [
        "reserve", "charge", "ship", "undo ship", "undo charge", "undo reserve", "undo charge", "undo reserve",
        "undo reserve",
    ]  # fmt: skip
    assert next(entry.data for entry in entries if entry.kind == "retry_compensation") == (
        '{"verb":"retry_compensation","reason":"the bank is back","by":"ops"}'
    )
    assert undos(entries) == [
        ("undo completed", "ship", 1),
        ("undo failed", "charge", 1),
        ("undo failed", "reserve", 1),
        ("undo completed", "charge", 1),
        ("undo failed", "reserve", 1),
        ("undo completed", "reserve", 1),
    ]


async def test_P28_a_failed_run_without_a_failed_compensation_has_none_to_resume(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert (await backend.ended(engine, handle)).state is State.FAILED
        with pytest.raises(RunFinished, match="is failed: retry_compensation does not apply"):
            await engine.retry_compensation(handle.run_id)


async def test_P28_a_cancelled_run_whose_compensation_is_resumed_ends_cancelled(backend: Backend) -> None:
    ledger = Ledger()
    ledger.broken = {"charge"}

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        await ctx.sleep("long", LONG)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        await handle.cancel(reason="no more")
        with pytest.raises(RunFailed, match="no more"):
            await handle.result(timeout=SOON)
        ledger.broken = set()
        await engine.retry_compensation(handle.run_id)
        with pytest.raises(RunCancelled, match="no more"):
            await handle.result(timeout=SOON)
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["charge", "undo charge", "undo charge"]
    assert [kind for kind in kinds(entries) if kind in ("cancel", "retry_compensation", "cancelled")] == [
        "cancel", "retry_compensation", "cancelled",
    ]  # fmt: skip


async def test_on_rollback_has_its_place_among_the_compensations(backend: Backend) -> None:
    ledger = Ledger()
    keys: list[str] = []

    def remove(path: str, why: str) -> None:
        keys.append(current_step().idempotency_key)
        ledger.made.append(f"remove {path} {why}")

    @workflow
    async def flow(ctx: Context) -> None:
        ctx.on_rollback("file", remove, "first", "x")
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        ctx.on_rollback("file", remove, "second", "y")
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunCompensated) as raised:
            await backend.result(engine, handle)
        run = await engine.get_run(handle.run_id)
    assert ledger.made == ["reserve", "charge", "undo charge", "remove second y", "undo reserve", "remove first x"]
    assert raised.value.failure.undone == ("charge", "file#2", "reserve", "file")
    assert keys == [f"{run.id}/file#2/undo", f"{run.id}/file/undo"]


async def test_on_rollback_is_not_called_when_all_goes_well_and_records_nothing(backend: Backend) -> None:
    ledger = Ledger()

    @workflow
    async def flow(ctx: Context) -> str:
        ctx.on_rollback("file", ledger.undo, "file")
        return "well"

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == "well"
        assert kinds(await engine.timeline(handle.run_id)) == ["triggered", "running", "completed"]
    assert ledger.made == []


async def test_on_rollback_survives_a_stop_between_two_compensations(backend: Backend) -> None:
    ledger = Ledger()
    undoing = asyncio.Event()

    async def blocks(name: str) -> None:
        if not undoing.is_set():
            undoing.set()
            await asyncio.Event().wait()
        await ledger.undo(name)

    @workflow
    async def flow(ctx: Context) -> None:
        ctx.on_rollback("first", ledger.undo, "first")
        await ctx.step("reserve", ledger.do, "reserve", compensate=blocks)
        ctx.on_rollback("second", ledger.undo, "second")
        raise ValueError("no")

    async with backend.engine(flow, drain_timeout=0.01) as engine:
        handle = await engine.trigger(flow)
        await undoing.wait()
        assert ledger.made == ["reserve", "undo second"]
    async with backend.engine(flow) as engine:
        with pytest.raises(RunCompensated, match="no"):
            await backend.result(engine, await engine.handle(flow, run_id=handle.run_id))
    assert ledger.made == ["reserve", "undo second", "undo reserve", "undo first"]


async def test_a_failing_on_rollback_is_retried_listed_and_resumed(backend: Backend) -> None:
    ledger = Ledger()
    remove = Fails(ledger, "remove")

    @workflow
    async def flow(ctx: Context) -> None:
        ctx.on_rollback("file", remove, retry=Retry(2, initial_delay=0.01))
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed) as raised:
            await backend.result(engine, handle)
        assert raised.value.failure.not_undone == ("file",)
        assert ledger.made == ["remove!", "remove!"]
        remove.broken = False
        await engine.retry_compensation(handle.run_id)
        with pytest.raises(RunCompensated) as raised:
            await backend.result(engine, handle)
    assert raised.value.failure.undone == ("file",)
    assert ledger.made == ["remove!", "remove!", "remove"]


async def test_a_compensation_has_its_own_retry_and_not_its_steps(backend: Backend) -> None:
    ledger = Ledger()
    calls: list[int] = []

    async def flaky(name: str) -> None:
        calls.append(current_step().attempt)
        if len(calls) < 3:
            raise ConnectionError("gone")
        await ledger.undo(name)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("other", ledger.do, "other", retry=5, compensate=Fails(ledger, "refund"))
        await ctx.step(
            "charge", ledger.do, "charge", compensate=flaky, compensate_retry=Retry(3, "fixed", initial_delay=0.01)
        )
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed) as raised:
            await backend.result(engine, handle)
        entries = await engine.timeline(handle.run_id)
    assert calls == [1, 2, 3]
    assert ledger.made == ["other", "charge", "undo charge", "refund!"]
    assert raised.value.failure.not_undone == ("other",)
    assert undos(entries) == [
        ("undo retrying", "charge", 1),
        ("undo retrying", "charge", 2),
        ("undo completed", "charge", 3),
        ("undo failed", "other", 1),
    ]


async def test_a_compensation_has_its_own_timeout(backend: Backend) -> None:
    ledger = Ledger()
    calls: list[str] = []

    async def hangs(name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step(
            "charge", ledger.do, "charge", compensate=hangs, compensate_timeout=0.05,
            compensate_retry=Retry(2, initial_delay=0.01),
        )  # fmt: skip
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunCompensated):
            await backend.result(engine, handle)
        failed = [entry for entry in await engine.timeline(handle.run_id) if entry.kind == "undo retrying"]
    assert calls == ["charge", "charge"]
    assert len(failed) == 1
    assert "TimeoutError" in str(failed[0].data)


async def test_options_of_a_compensation_that_is_not_there_are_refused(backend: Backend) -> None:
    said: list[str] = []

    @workflow
    async def flow(ctx: Context) -> None:
        options: tuple[dict[str, Any], ...] = ({"compensate_retry": 3}, {"compensate_timeout": 1.0})
        for one in options:
            try:
                await ctx.step("a", str, **one)
            except InvalidArgument as error:
                said.append(str(error))

    await backend.run(flow)
    assert said == ["step 'a': compensate_retry and compensate_timeout go with compensate"] * 2


async def test_a_result_that_cannot_be_stored_is_undone_with_its_own_retry(backend: Backend) -> None:
    ledger = Ledger()
    seen: list[Any] = []

    class Odd:
        pass

    def odd() -> Any:
        ledger.made.append("odd")
        return Odd()

    async def undo(value: Any) -> None:
        seen.append(value)
        ledger.made.append("undo odd" if len(seen) > 1 else "undo odd!")
        if len(seen) == 1:
            raise ConnectionError("gone")

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        try:
            await ctx.step("odd", odd, compensate=undo, compensate_retry=Retry(2, initial_delay=0.01), retry=4)
        except StepFailed as error:
            return f"{error.attempts} {error.error_type.rpartition('.')[2]}"
        return "stored"

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == "1 ResultTypeUnknown"
    assert ledger.made == ["reserve", "odd", "undo odd!", "undo odd"]
    assert all(isinstance(value, Odd) for value in seen)


async def test_an_unstorable_result_that_cannot_be_undone_is_listed_when_the_run_fails(backend: Backend) -> None:
    ledger = Ledger()

    def odd() -> Any:
        return object()

    async def undo(value: Any) -> None:
        raise ConnectionError("gone")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("odd", odd, compensate=undo)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed, match="odd") as raised:
            await backend.result(engine, handle)
    assert type(raised.value) is RunFailed
    assert raised.value.failure.not_undone == ("odd",)
    assert raised.value.failure.undone == ("reserve",)


async def test_steps_that_ran_at_once_are_undone_in_reverse_order_of_completion_also_after_a_stop(
    backend: Backend,
) -> None:
    ledger = Ledger()
    gates = {name: asyncio.Event() for name in "abc"}
    undoing = asyncio.Event()

    async def gated(name: str) -> str:
        await gates[name].wait()
        ledger.made.append(name)
        return name

    async def undo(name: str) -> None:
        if not undoing.is_set():
            undoing.set()
            await asyncio.Event().wait()
        await ledger.undo(name)

    async def complete_in_order(engine: Engine, run_id: str) -> None:
        for n, name in enumerate("bca", 1):
            gates[name].set()
            async with asyncio.timeout(SOON):
                while kinds(await engine.timeline(run_id)).count("completed") < n:  # noqa: ASYNC110 - no event of it
                    await asyncio.sleep(0.002)

    @workflow
    async def flow(ctx: Context) -> None:
        await asyncio.gather(*(ctx.step(name, gated, name, compensate=undo) for name in "abc"))
        await ctx.step("never", asyncio.Event().wait)

    async with backend.engine(flow, drain_timeout=0.01) as engine:
        handle = await engine.trigger(flow)
        await complete_in_order(engine, handle.run_id)
        await handle.cancel()
        await undoing.wait()
    async with backend.engine(flow) as engine:
        with pytest.raises(RunCancelled):
            await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON)
    assert ledger.made == ["b", "c", "a", "undo a", "undo c", "undo b"]


async def test_a_compensation_in_a_thread_is_waited_for(backend: Backend) -> None:
    ledger = Ledger()
    thread: list[str] = []

    def undo(name: str) -> None:
        thread.append(threading.current_thread().name)
        ledger.made.append(f"undo {name}")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("a", ledger.do, "a", compensate=undo)
        raise ValueError("no")

    async with backend.engine(flow) as engine:
        assert (await backend.ended(engine, await engine.trigger(flow))).state is State.COMPENSATED
    assert thread != [threading.main_thread().name]
    assert ledger.made == ["a", "undo a"]


async def test_a_recorded_step_whose_compensation_the_code_does_not_reach_any_more_is_listed(backend: Backend) -> None:
    ledger = Ledger()
    undoing = asyncio.Event()

    async def blocks(name: str) -> None:
        undoing.set()
        await asyncio.Event().wait()

    @workflow(name="flow")
    async def first(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=blocks)
        raise ValueError("no")

    @workflow(name="flow")
    async def deployed(ctx: Context) -> None:
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        raise ValueError("no")

    async with backend.engine(first, drain_timeout=0.01) as engine:
        handle = await engine.trigger(first)
        await undoing.wait()
    async with backend.engine(deployed) as engine:
        with pytest.raises(RunFailed) as raised:
            await backend.result(engine, await engine.handle(deployed, run_id=handle.run_id))
    assert raised.value.failure.undone == ("charge",)
    assert raised.value.failure.not_undone == ("reserve",)
    assert ledger.made == ["reserve", "charge", "undo charge"]


async def test_a_result_that_can_neither_be_stored_nor_undone_fails_a_run_that_has_nothing_else_to_undo(
    backend: Backend,
) -> None:
    def odd() -> Any:
        return object()

    async def undo(value: Any) -> None:
        raise ConnectionError("gone")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("odd", odd, compensate=undo)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed, match="odd") as raised:
            await backend.result(engine, handle)
    assert raised.value.failure.not_undone == ("odd",)
