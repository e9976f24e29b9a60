"""The run as a whole: its timeout, its attempts, and how often it may take its workers with it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

import pytest

from durable import (
    Context,
    Engine,
    HookEvent,
    NonRetryable,
    Retry,
    RunCompensated,
    RunDeadLettered,
    RunFailed,
    State,
    WorkerOptions,
    workflow,
)
from durable.testing import MemoryStore, VirtualClock
from tests.engine.backends import SOON, Backend, virtual
from tests.engine.test_cancel import LONG, held, kinds, recorded
from tests.engine.test_compensation import Ledger


@pytest.fixture
def clock_moved() -> Backend:
    """Memory on a virtual clock: time is the subject."""
    return virtual()


def advanced(backend: Backend, seconds: float) -> None:
    assert backend.clock is not None
    backend.clock.advance(seconds)


# -- the run's timeout ----------------------------------------------------------------------------


async def test_P24_a_run_timeout_stops_the_running_step_and_compensates_once(clock_moved: Backend) -> None:
    ledger = Ledger()
    begun, stopped = asyncio.Event(), asyncio.Event()

    async def hangs() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    @workflow(timeout=timedelta(minutes=1))
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", hangs, retry=9)
        await ctx.step("after", ledger.do, "after")

    async with clock_moved.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        advanced(clock_moved, 59)
        await asyncio.sleep(0)
        assert not stopped.is_set()
        advanced(clock_moved, 1)
        with pytest.raises(RunCompensated, match="did not end within its timeout") as raised:
            await handle.result(timeout=SOON)
        run = await engine.get_run(handle.run_id)
    assert stopped.is_set()
    assert raised.value.failure.error_type == "durable.errors.RunTimeout"
    assert raised.value.failure.undone == ("reserve",)
    assert ledger.made == ["reserve", "undo reserve"]
    assert run.started_at is not None
    assert run.ended_at is not None
    assert run.ended_at - run.started_at == timedelta(minutes=1)


async def test_P24_a_real_timeout_on_every_store(real_time: Backend) -> None:
    ledger = Ledger()

    @workflow(timeout=0.3)
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", asyncio.Event().wait)

    @workflow(timeout=0.3)
    async def nothing_done(ctx: Context) -> None:
        await ctx.sleep("long", LONG)

    async with real_time.engine(flow, nothing_done, poll_interval=30) as engine:
        handle, other = await engine.trigger(flow), await engine.trigger(nothing_done)
        with pytest.raises(RunCompensated, match="did not end within its timeout"):
            await handle.result(timeout=SOON)
        with pytest.raises(RunFailed, match="did not end within its timeout"):
            await other.result(timeout=SOON)
        assert await other.status() == State.FAILED
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_the_clock_starts_at_the_first_start_and_not_at_the_trigger(clock_moved: Backend) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await go_on.wait()

    @workflow(timeout=60)
    async def flow(ctx: Context) -> str:
        await ctx.step("slow", slow)
        return "in time"

    async with clock_moved.engine(flow).client() as client:
        handle = await client.trigger(flow, delay=LONG)
        waited = await client.trigger(flow)
    advanced(clock_moved, LONG)
    async with clock_moved.engine(flow) as engine:
        await begun.wait()
        advanced(clock_moved, 59)
        go_on.set()
        for run_id in (handle.run_id, waited.run_id):
            assert await (await engine.handle(flow, run_id=run_id)).result(timeout=SOON) == "in time"


@pytest.mark.parametrize("linger", [0.0, 30.0], ids=["evicted", "in memory"])
async def test_P24_a_parked_run_times_out_when_its_time_has_come(clock_moved: Backend, linger: float) -> None:
    ledger = Ledger()

    @workflow(timeout=60)
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.sleep("long", LONG)

    async with clock_moved.engine(flow, linger=linger) as engine:
        handle = await engine.trigger(flow)
        run = await held(engine, handle.run_id, State.SLEEPING)
        assert run.started_at is not None
        assert run.ready_at == run.started_at + timedelta(seconds=60)
        with pytest.raises(RunCompensated, match="did not end within its timeout"):
            await clock_moved.result(engine, handle)
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert run.started_at is not None
    assert run.ended_at == run.started_at + timedelta(seconds=60)
    assert "woke" not in kinds(entries)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_a_timeout_that_passed_while_no_worker_ran_applies_at_once(clock_moved: Backend) -> None:
    ledger = Ledger()
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow(timeout=60)
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("hangs", hangs)

    async with clock_moved.engine(flow, drain_timeout=0.01) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
    begun.clear()
    advanced(clock_moved, 61)
    async with clock_moved.engine(flow) as engine:
        with pytest.raises(RunCompensated, match="did not end within its timeout"):
            await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON)
    assert not begun.is_set()
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_a_run_that_waits_for_its_next_run_attempt_times_out_in_time(clock_moved: Backend) -> None:
    ledger = Ledger()

    @workflow(timeout=60, retry=Retry(5, initial_delay=LONG, max_delay=LONG))
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        raise ValueError("again")

    async with clock_moved.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunCompensated, match="did not end within its timeout"):
            await clock_moved.result(engine, handle)
        run = await engine.get_run(handle.run_id)
    assert run.started_at is not None
    assert run.ended_at == run.started_at + timedelta(seconds=60)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_a_timeout_during_a_pause_applies_after_resume(clock_moved: Backend) -> None:
    ledger = Ledger()

    @workflow(timeout=60)
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.sleep("nap", 30)
        await ctx.step("after", ledger.do, "after")

    async with clock_moved.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await held(engine, handle.run_id, State.SLEEPING)
        await engine.pause(handle.run_id)
        advanced(clock_moved, 120)
        await engine.run_until_idle()
        assert await handle.status() == State.PAUSED
        await engine.resume(handle.run_id)
        with pytest.raises(RunCompensated, match="did not end within its timeout"):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_a_timeout_does_not_stop_compensations_nor_change_their_error(clock_moved: Backend) -> None:
    ledger = Ledger()
    undoing, go_on = asyncio.Event(), asyncio.Event()

    async def blocks(name: str) -> None:
        undoing.set()
        await go_on.wait()
        await ledger.undo(name)

    @workflow(timeout=60)
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=blocks)
        raise ValueError("address unknown")

    async with clock_moved.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await undoing.wait()
        advanced(clock_moved, 61)
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(RunCompensated, match="address unknown"):
            await handle.result(timeout=SOON)
    assert ledger.made == ["reserve", "undo reserve"]


async def test_P24_an_operators_retry_gives_a_run_that_timed_out_its_time_anew(clock_moved: Backend) -> None:
    begun = asyncio.Event()

    async def hangs() -> None:
        if not begun.is_set():
            begun.set()
            await asyncio.Event().wait()

    @workflow(timeout=60)
    async def flow(ctx: Context) -> str:
        await ctx.step("hangs", hangs)
        await ctx.sleep("nap", 50)
        return "in time"

    async with clock_moved.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await begun.wait()
        advanced(clock_moved, 60)
        with pytest.raises(RunFailed, match="did not end within its timeout"):
            await handle.result(timeout=SOON)
        await engine.retry(handle.run_id)
        assert await clock_moved.result(engine, handle) == "in time"


# -- run attempts ---------------------------------------------------------------------------------


async def test_P25_run_attempts_back_off_and_keep_what_is_completed(clock_moved: Backend) -> None:
    ledger = Ledger()
    attempts: list[int] = []
    events: list[HookEvent] = []

    async def charge(attempt: int) -> str:
        attempts.append(attempt)
        if attempt < 3:
            raise ConnectionError(f"attempt {attempt}")
        return "charged"

    @workflow(retry=Retry(4, initial_delay=10, factor=3, max_delay=60))
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        return await ctx.step("charge", charge, ctx.attempt)

    engine = clock_moved.engine(flow)
    for name in ("run_started", "run_retried", "run_failed", "run_compensated", "run_completed"):
        engine.on(name, events.append)
    async with engine:
        handle = await engine.trigger(flow)
        assert await clock_moved.result(engine, handle) == "charged"
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["reserve"]
    assert attempts == [1, 2, 3]
    failed = [entry for entry in entries if entry.kind == "run attempt failed"]
    assert [entry.attempt for entry in failed] == [1, 2]
    assert "attempt 2" in str(failed[1].data)
    starts = [entry.at for entry in entries if entry.kind == "started" and entry.name == "charge"]
    assert [(later - earlier).total_seconds() for earlier, later in pairwise(starts)] == [
        pytest.approx(10, abs=1e-3), pytest.approx(30, abs=1e-3)
    ]  # fmt: skip
    assert run.started_at is not None
    assert [event.name for event in events] == ["run_started", "run_retried", "run_retried", "run_completed"]


async def test_P25_the_last_run_attempts_failure_is_one_failed_event_and_compensates_once(backend: Backend) -> None:
    ledger = Ledger()
    events: list[str] = []

    @workflow(retry=Retry(3, "fixed", initial_delay=0.02))
    async def flow(ctx: Context, undo: bool) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo if undo else None)
        ledger.made.append(f"attempt {ctx.attempt}")
        raise ValueError(f"attempt {ctx.attempt}")

    engine = backend.engine(flow)
    for name in ("run_retried", "run_failed", "run_compensated", "step_completed", "step_compensated"):
        engine.on(name, lambda event: events.append(event.name))
    async with engine:
        handle = await engine.trigger(flow, True)
        with pytest.raises(RunCompensated, match="attempt 3"):
            await backend.result(engine, handle)
        other = await engine.trigger(flow, False)
        with pytest.raises(RunFailed, match="attempt 3"):
            await backend.result(engine, other)
    one = ["reserve", "attempt 1", "attempt 2", "attempt 3"]
    assert ledger.made == [*one, "undo reserve", *one]
    assert events == [
        "step_completed", "run_retried", "run_retried", "step_compensated", "run_compensated",
        "step_completed", "run_retried", "run_retried", "run_failed",
    ]  # fmt: skip


async def test_P25_what_is_fatal_gets_no_other_run_attempt(backend: Backend) -> None:
    calls: list[int] = []

    @workflow(retry=5)
    async def flow(ctx: Context) -> None:
        calls.append(ctx.attempt)
        raise NonRetryable("no such order")

    async with backend.engine(flow) as engine:
        with pytest.raises(RunFailed, match="no such order"):
            await backend.result(engine, await engine.trigger(flow))
    assert calls == [1]


async def test_P25_the_attempts_count_on_in_another_worker(backend: Backend) -> None:
    attempts: list[int] = []

    @workflow(retry=Retry(3, "fixed", initial_delay=0.4))
    async def flow(ctx: Context) -> int:
        attempts.append(ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError("again")
        return ctx.attempt

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await recorded(engine, handle.run_id, "run attempt failed")
    async with backend.engine(flow) as engine:
        assert await backend.result(engine, await engine.handle(flow, run_id=handle.run_id)) == 3
    assert attempts == [1, 2, 3]


async def test_P25_the_next_run_attempt_is_in_time_also_beside_a_run_that_executes(backend: Backend) -> None:
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def neighbour(ctx: Context) -> None:
        await ctx.step("hangs", hangs)

    @workflow(retry=Retry(2, initial_delay=0.05))
    async def flow(ctx: Context) -> int:
        if ctx.attempt == 1:
            raise ValueError("again")
        return ctx.attempt

    async with backend.engine(flow, neighbour, poll_interval=LONG, drain_timeout=0.01) as engine:
        await engine.trigger(neighbour)
        await begun.wait()
        handle = await engine.trigger(flow)
        await recorded(engine, handle.run_id, "run attempt failed")
        if backend.clock is not None:
            backend.clock.advance(0.05)
        assert await handle.result(timeout=SOON) == 2


async def test_P25_a_failed_step_is_tried_again_with_all_its_attempts(backend: Backend) -> None:
    calls: list[str] = []

    async def charge() -> str:
        calls.append("charge")
        if len(calls) < 4:
            raise ConnectionError("gone")
        return "charged"

    @workflow(retry=Retry(2, initial_delay=0.02))
    async def flow(ctx: Context) -> str:
        return await ctx.step("charge", charge, retry=Retry(2, initial_delay=0.01))

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert await backend.result(engine, handle) == "charged"
        entries = await engine.timeline(handle.run_id)
    attempts = [(entry.kind, entry.attempt) for entry in entries if entry.name == "charge" and entry.kind != "started"]
    assert attempts == [("retrying", 1), ("failed", 2), ("retrying", 1), ("completed", 2)]


# -- dead letters ---------------------------------------------------------------------------------


class Killer:
    """Workers that die of one run: their engine is stopped at once after its lease was taken away."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.store = MemoryStore(clock=self.clock)
        self.begun = asyncio.Event()
        self.calls = 0
        self.harmless = False

    async def kills(self) -> str:
        self.calls += 1
        if self.harmless:
            return "survived"
        self.begun.set()
        await asyncio.Event().wait()
        return "never"

    async def die(self, *flows: object) -> None:
        """One worker claims and dies of it."""
        self.begun.clear()
        engine = self.engine(*flows)
        await engine.start()
        await self.begun.wait()
        for worker in list(self.store._workers):  # pyright: ignore[reportPrivateUsage]  # a kill -9, in one process
            self.store.expire(worker)
        await self.store.reap()
        await engine.stop()

    def engine(self, *flows: object) -> Engine:
        return Engine(self.store, workflows=flows, worker=WorkerOptions(drain_timeout=0.01, linger=0))  # type: ignore[arg-type]


async def test_P06_the_fifth_crash_without_progress_makes_a_dead_letter_and_a_retry_revives_it() -> None:
    killer = Killer()

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("fine", str)
        return await ctx.step("kills", killer.kills)

    client = killer.engine(flow)
    async with client.client():
        handle = await client.trigger(flow)
        for crash in range(1, 5):
            await killer.die(flow)
            run = await client.get_run(handle.run_id)
            assert (run.state, run.takeovers) == (State.PENDING, crash)
        await killer.die(flow)
        with pytest.raises(RunDeadLettered) as raised:
            await handle.result(timeout=SOON)
        assert "dead-lettered" in str(raised.value)
        assert [run.id for run in (await client.list_runs(state="dead_letter")).items] == [handle.run_id]
        assert killer.calls == 5
        assert await handle.cancel() is False
        assert await client.retry_all(dry_run=True) == 1
        await client.retry(handle.run_id, by="ops")
        killer.harmless = True
        async with killer.engine(flow) as engine:
            assert await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON) == "survived"
            entries = await engine.timeline(handle.run_id)
    assert (await_kinds := kinds(entries)).count("takeover") == 5
    assert await_kinds[-4:] == ["retry", "started", "completed", "completed"]
    assert sum(entry.kind == "completed" and entry.name == "fine" for entry in entries) == 1


async def test_P06_a_record_between_two_crashes_starts_the_count_anew() -> None:
    killer = Killer()
    passed: set[int] = set()

    async def step(n: int) -> int:
        if n in passed:
            return n
        passed.add(n)
        await killer.kills()
        return n

    @workflow
    async def flow(ctx: Context) -> list[int]:
        return [await ctx.step(f"step {n}", step, n) for n in range(7)]

    client = killer.engine(flow)
    async with client.client():
        handle = await client.trigger(flow)
        for _ in range(7):
            await killer.die(flow)
        assert (await client.get_run(handle.run_id)).state is State.PENDING
        async with killer.engine(flow) as engine:
            assert await (await engine.handle(flow, run_id=handle.run_id)).result(timeout=SOON) == list(range(7))


async def test_P06_the_neighbours_of_a_dead_letter_go_on() -> None:
    killer = Killer()
    events: list[HookEvent] = []

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("kills", killer.kills)

    @workflow
    async def neighbour(ctx: Context) -> str:
        await ctx.sleep("nap", LONG)
        return "fine"

    client = killer.engine(flow, neighbour)
    async with client.client():
        handle, other = await client.trigger(flow), await client.trigger(neighbour)
        for _ in range(5):
            await killer.die(flow, neighbour)
        assert await handle.status() == State.DEAD_LETTER
    engine = killer.engine(flow, neighbour)
    engine.on("run_completed", events.append)
    async with engine:
        await engine.run_until_idle(skip_time=True)
        assert await (await engine.handle(neighbour, run_id=other.run_id)).result(timeout=SOON) == "fine"
    assert [event.run_id for event in events] == [other.run_id]
