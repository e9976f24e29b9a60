"""Retries, timeouts and timers: delays as documented, slots free while waiting, nothing early, nothing left over."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise

import pytest

from durable import Context, NonRetryable, Retry, RetryAfter, State, StepFailed, current_step, workflow
from durable.testing import MemoryStore, VirtualClock
from tests.engine.backends import SOON, Backend, virtual


async def delays(retry: Retry | int, error: BaseException | None = None) -> list[float]:
    """The seconds between the attempts of a step that always fails, on the virtual clock."""
    backend = virtual()
    starts: list[datetime] = []

    async def fails() -> None:
        starts.append(backend.now())
        raise error or ConnectionError("gone")

    @workflow
    async def retried(ctx: Context) -> None:
        await ctx.step("fails", fails, retry=retry)

    async with backend.engine(retried) as engine:
        handle = await engine.trigger(retried)
        run = await backend.ended(engine, handle)
        assert run.state is State.FAILED
    return [(later - earlier).total_seconds() for earlier, later in pairwise(starts)]


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (Retry(1), []),
        (3, [1, 2]),
        (Retry(), [1, 2]),
        (Retry(6, initial_delay=0.5), [0.5, 1, 2, 4, 8]),
        (Retry(4, factor=10, initial_delay=1), [1, 10, 30]),
        (Retry(4, factor=10, initial_delay=1, max_delay=timedelta(hours=1)), [1, 10, 100]),
        (Retry(5, "linear", initial_delay=2), [2, 4, 6, 8]),
        (Retry(4, "linear", initial_delay=20), [20, 30, 30]),
        (Retry(4, "fixed", initial_delay=7), [7, 7, 7]),
        (Retry(3, initial_delay=0), [0, 0]),
    ],
)
async def test_P21_observed_delays_equal_the_documented_ones(retry: Retry | int, expected: list[float]) -> None:
    assert await delays(retry) == expected


async def test_P21_jitter_only_shortens() -> None:
    for delay, most in zip(await delays(Retry(5, initial_delay=8, jitter=0.25)), (8, 16, 30, 30), strict=True):
        assert 0.75 * most <= delay <= most


@pytest.mark.parametrize("error", [ValueError(), AssertionError(), TimeoutError(), KeyError("x"), StopIteration()])
async def test_P21_any_exception_is_retried(error: Exception) -> None:
    assert await delays(Retry(3, "fixed"), error) == [1, 1]


async def test_P21_what_is_declared_fatal_is_not_retried() -> None:
    assert await delays(3, NonRetryable("card stolen")) == []
    assert await delays(Retry(3, unless=ValueError), UnicodeError()) == []
    assert await delays(Retry(3, on=OSError), ValueError()) == []
    assert await delays(Retry(3, "fixed", on=(OSError, KeyError)), KeyError()) == [1, 1]


async def test_P21_retry_after_replaces_the_delay_and_the_attempts_still_count() -> None:
    assert await delays(Retry(3, initial_delay=1), RetryAfter(timedelta(minutes=2))) == [120, 120]
    assert await delays(Retry(3, on=OSError), RetryAfter(0.5)) == [0.5, 0.5]


async def test_P22_a_long_backoff_holds_no_slot(backend: Backend) -> None:
    """One slot, and the linger is shorter than the wait: the other run ends while this one waits."""
    order: list[str] = []
    failed = asyncio.Event()

    async def flaky() -> None:
        order.append(f"attempt {current_step().attempt}")
        failed.set()
        if current_step().attempt == 1:
            raise ConnectionError("gone")

    @workflow
    async def waits(ctx: Context) -> None:
        await ctx.step("flaky", flaky, retry=Retry(2, initial_delay=0.4))

    @workflow
    async def passes(ctx: Context) -> None:
        order.append("another run")

    async with backend.engine(waits, passes, concurrency=1, linger=0.01) as engine:
        first = await engine.trigger(waits)
        await failed.wait()
        other = await engine.trigger(passes)
        await other.result(timeout=SOON)
        run = await engine.get_run(first.run_id)
        await backend.result(engine, first)
    assert order == ["attempt 1", "another run", "attempt 2"]
    assert run.state is State.SLEEPING
    assert run.owner is None


async def test_P22_the_attempt_count_goes_on_after_a_restart(backend: Backend) -> None:
    attempts: list[int] = []
    failed = asyncio.Event()

    async def flaky() -> int:
        attempts.append(current_step().attempt)
        failed.set()
        if len(attempts) < 3:
            raise ConnectionError("gone")
        return current_step().attempt

    @workflow
    async def waits(ctx: Context) -> int:
        return await ctx.step("flaky", flaky, retry=Retry(3, "fixed", initial_delay=0.2))

    async with backend.engine(waits) as engine:
        handle = await engine.trigger(waits)
        await failed.wait()
    async with backend.engine(waits) as engine:
        again = await engine.handle(waits, run_id=handle.run_id)
        assert await backend.result(engine, again) == 3
    assert attempts == [1, 2, 3]


async def test_P23_nothing_of_a_timed_out_coroutine_runs_afterwards(backend: Backend) -> None:
    events: list[str] = []

    async def slow() -> None:
        step = current_step()
        try:
            await asyncio.Event().wait()
            events.append("went on")
        finally:
            events.append(f"unwound {step.attempt} {step.cancelled}")

    @workflow
    async def bounded(ctx: Context) -> str:
        try:
            await ctx.step("slow", slow, timeout=0.02, retry=Retry(2, initial_delay=0.01))
        except StepFailed as failed:
            events.append("failed")
            return f"{failed.is_a(TimeoutError)} {failed.attempts} {failed.message}"
        return "no"

    assert await backend.run(bounded) == "True 2 no result within 0.02 s"
    assert events == ["unwound 1 True", "unwound 2 True", "failed"]


async def test_P23_the_engines_step_timeout_is_the_default(backend: Backend) -> None:
    async def slow() -> None:
        await asyncio.Event().wait()

    @workflow
    async def bounded(ctx: Context) -> list[str]:
        found: list[str] = []
        for timeout in (None, 0.02):
            try:
                await ctx.step("slow", slow, timeout=timeout)
            except StepFailed as failed:
                found.append(failed.message)
        return found

    async with backend.engine(bounded, step_timeout=0.01) as engine:
        found = await backend.result(engine, await engine.trigger(bounded))
    assert found == ["no result within 0.01 s", "no result within 0.02 s"]


async def test_P23_a_timed_out_threads_result_is_dropped_and_the_next_attempt_waits_for_its_end(
    backend: Backend,
) -> None:
    """And waiting is no attempt: the thread outlives many timeouts, and the second attempt is still the second."""
    release = threading.Event()
    events: list[str] = []

    def slow() -> str:
        attempt = current_step().attempt
        events.append(f"start {attempt}")
        if attempt == 1:
            release.wait(SOON)
        events.append(f"end {attempt} {current_step().cancelled}")
        return f"attempt {attempt}"

    @workflow
    async def bounded(ctx: Context) -> str:
        asyncio.get_running_loop().call_later(0.3, release.set)
        return await ctx.step("slow", slow, timeout=0.05, retry=Retry(3, initial_delay=0.01))

    assert await backend.run(bounded) == "attempt 2"
    assert events == ["start 1", "end 1 True", "start 2", "end 2 False"]


async def test_P23_no_attempt_starts_after_the_run_has_failed(backend: Backend) -> None:
    attempts: list[int] = []
    once = asyncio.Event()

    async def flaky() -> None:
        attempts.append(current_step().attempt)
        once.set()
        raise ConnectionError("gone")

    async def fatal() -> None:
        await once.wait()
        raise ValueError("over")

    @workflow
    async def fails(ctx: Context) -> None:
        await asyncio.gather(
            ctx.step("flaky", flaky, retry=Retry(9, "fixed", initial_delay=0.05)), ctx.step("fatal", fatal)
        )

    async with backend.engine(fails) as engine:
        handle = await engine.trigger(fails)
        run = await backend.ended(engine, handle)
        made = len(attempts)
        probe = await engine.trigger(fails, delay=0.2)  # long enough for three more attempts
        once.clear()
        await backend.ended(engine, probe)
        entries = await engine.timeline(handle.run_id)
    assert run.state is State.FAILED
    assert made in (1, 2)
    assert max(entry.attempt or 0 for entry in entries if entry.name == "flaky") == made


async def test_P23_a_step_that_refuses_its_cancellation_is_abandoned_with_its_stack(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("durable.steps.UNWIND", 0.05)
    release = asyncio.Event()

    async def stubborn() -> str:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    @workflow
    async def bounded(ctx: Context) -> str:
        try:
            return await ctx.step("stubborn", stubborn, timeout=0.02)
        except StepFailed as failed:
            return failed.message

    assert await backend.run(bounded) == "no result within 0.02 s"
    release.set()
    (record,) = [record for record in caplog.records if "is abandoned" in record.getMessage()]
    assert "await release.wait()" in record.getMessage()


async def test_P26_nothing_wakes_early_by_the_stores_clock(backend: Backend) -> None:
    woken: list[tuple[int, datetime]] = []

    @workflow
    async def naps(ctx: Context, n: int) -> None:
        await ctx.sleep("nap", 0.01 * n)
        await ctx.step("woken", lambda: woken.append((n, backend.now())))
        await ctx.sleep_until("until", ctx.now() + timedelta(seconds=0.01 * n))
        await ctx.step("woken", lambda: woken.append((n, backend.now())))

    async with backend.engine(naps, linger=0) as engine:
        handles = await engine.trigger_many(naps, list(range(1, 21)))
        for handle in handles:
            await backend.result(engine, handle)
        for n, handle in enumerate(handles, 1):
            due = [
                datetime.fromisoformat(entry.data or "")
                for entry in await engine.timeline(handle.run_id)
                if entry.kind == "sleeping"
            ]
            ends = [entry.at for entry in await engine.timeline(handle.run_id) if entry.kind == "woke"]
            seen = [at for number, at in woken if number == n]
            assert len(due) == len(ends) == len(seen) == 2
            assert [end >= wanted for end, wanted in zip(ends, due, strict=True)] == [True, True]
            assert [at >= wanted for at, wanted in zip(seen, due, strict=True)] == [True, True]


async def test_a_30_day_sleep_passes_in_no_time_on_the_virtual_clock() -> None:
    clock = VirtualClock()
    backend = Backend("virtual", lambda: store, clock)
    store = MemoryStore(clock=clock)
    start = clock.now()

    @workflow
    async def patient(ctx: Context) -> list[str]:
        await ctx.sleep("month", timedelta(days=30))
        one = ctx.now()
        await ctx.sleep_until("new year", datetime(2027, 1, 1, tzinfo=one.tzinfo))
        return [one.isoformat(), ctx.now().isoformat()]

    async with backend.engine(patient).client() as engine:  # run_until_idle executes where no worker runs
        handle = await engine.trigger(patient)
        await engine.run_until_idle()
        assert await handle.status() == State.SLEEPING
        clock.advance(timedelta(days=29, hours=23))
        await engine.run_until_idle()
        assert await handle.status() == State.SLEEPING
        await engine.run_until_idle(skip_time=True)
        expected = [(start + timedelta(days=30)).isoformat(), "2027-01-01T00:00:00+00:00"]
        assert await handle.result(timeout=SOON) == expected


async def test_advancing_the_virtual_clock_wakes_a_running_engine() -> None:
    backend = virtual()
    asleep = asyncio.Event()

    @workflow
    async def naps(ctx: Context) -> str:
        asleep.set()
        await ctx.sleep("day", timedelta(days=1))
        return "awake"

    async with backend.engine(naps, linger=0) as engine:
        handle = await engine.trigger(naps)
        await asleep.wait()
        await engine.run_until_idle()
        assert backend.clock is not None
        backend.clock.advance(timedelta(days=1))  # far beyond the lease, which is renewed first
        assert await handle.result(timeout=SOON) == "awake"
        entries = await engine.timeline(handle.run_id)
    assert "takeover" not in {entry.kind for entry in entries}


async def test_a_sleep_until_a_time_that_is_past_goes_on_at_once(backend: Backend) -> None:
    @workflow
    async def late(ctx: Context) -> str:
        await ctx.sleep_until("past", ctx.now() - timedelta(days=1))
        await ctx.sleep("none", 0)
        return "on"

    assert await backend.run(late, linger=0) == "on"


@pytest.mark.parametrize("timeout", [None, SOON])
async def test_a_step_that_exits_the_interpreter_fails_like_any_other(backend: Backend, timeout: float | None) -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    def leaves_in_thread() -> None:
        raise SystemExit(3)

    @workflow
    async def exits(ctx: Context) -> list[str]:
        found: list[str] = []
        for fn in (leaves, leaves_in_thread):
            try:
                await ctx.step("leaves", fn, timeout=timeout)
            except StepFailed as failed:
                found.append(failed.message)
        return found

    assert await backend.run(exits) == ["the step function raised SystemExit"] * 2


async def test_what_a_failed_step_held_is_let_go_without_the_collector(backend: Backend) -> None:
    """The traceback of a failure refers to the frames that it went through; none of them keeps the failure."""
    held: list[weakref.ref[object]] = []

    class Connection:
        pass

    async def refused() -> None:
        connection = Connection()
        held.append(weakref.ref(connection))
        raise ConnectionError("refused")

    @workflow
    async def tries(ctx: Context) -> bool:
        gc.disable()
        try:
            with suppress(StepFailed):
                await ctx.step("refused", refused)
            return held[-1]() is None
        finally:
            gc.enable()

    assert await backend.run(tries)
