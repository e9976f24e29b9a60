"""A run from its trigger to its result: what goes in, what comes out, and what ``ctx`` gives in between."""

from __future__ import annotations

import asyncio
import logging
import threading
from functools import partial
from typing import Any

import pytest

from durable import Context, CurrentStep, DurableError, Retry, RunFailed, current_step, workflow
from durable.store import Store
from tests.engine.backends import SOON, Backend, Passes
from tests.engine.wrapped import Between, Call


async def double(n: int) -> int:
    return 2 * n


def double_in_thread(n: int) -> int:
    return 2 * n


async def seen_step() -> tuple[str, str, int, bool, str]:
    return _described(current_step())


def seen_step_in_thread() -> tuple[str, str, int, bool, str]:
    assert threading.current_thread() is not threading.main_thread()
    return _described(current_step())


def _described(step: CurrentStep) -> tuple[str, str, int, bool, str]:
    return step.run_id, step.name, step.attempt, step.cancelled, step.idempotency_key


class Doubler:
    """Step functions come in all the forms that Python has for callables."""

    async def method(self, n: int) -> int:
        return 2 * n

    def __call__(self, n: int) -> int:
        return 2 * n


@workflow
async def adds_up(ctx: Context, n: int) -> int:
    """A workflow as small as the README's."""
    a = await ctx.step("double", double, n)
    return await ctx.step("again", double_in_thread, a)


async def test_a_run_returns_the_result_of_its_function(backend: Backend) -> None:
    assert await backend.run(adds_up, 3) == 12


async def test_each_kind_of_callable_is_a_step_function(backend: Backend) -> None:
    @workflow
    async def calls_all(ctx: Context) -> list[int]:
        doubler = Doubler()
        return [
            await ctx.step("function", double, 1),
            await ctx.step("in thread", double_in_thread, 1),
            await ctx.step("method", doubler.method, 1),
            await ctx.step("partial", partial(double, n=1)),
            await ctx.step("partial in thread", partial(double_in_thread, n=1)),
            await ctx.step("object", doubler, 1),
            await ctx.step("lambda that returns a coroutine", lambda: double(1)),
            await ctx.step("lambda", lambda: 2),
        ]

    assert await backend.run(calls_all) == [2] * 8


async def test_an_input_may_be_left_out_when_there_is_none_or_it_has_a_default(backend: Backend) -> None:
    @workflow
    async def takes_nothing(ctx: Context) -> str:
        return "nothing"

    @workflow
    async def has_default(ctx: Context, n: int | None = 5) -> int | None:
        return n

    async with backend.engine(takes_nothing, has_default) as engine:
        handles = [
            await engine.trigger(takes_nothing),
            await engine.trigger(has_default),
            await engine.trigger(has_default, 6),
            await engine.trigger(has_default, None),
        ]
        assert [await backend.result(engine, handle) for handle in handles] == ["nothing", 5, 6, None]


async def test_a_workflow_called_as_a_function_runs_inline(backend: Backend) -> None:
    @workflow
    async def outer(ctx: Context, n: int) -> int:
        inner = await adds_up(ctx, n)
        return await ctx.step("double", double, inner)  # the same names: this is double#2

    async with backend.engine(outer) as engine:
        handle = await engine.trigger(outer, 1)
        assert await backend.result(engine, handle) == 8
        completed = [entry.name for entry in await engine.timeline(handle.run_id) if entry.kind == "completed"]
        assert completed == ["double", "again", "double#2", "outer"]


async def test_a_failed_run_raises_with_the_original_message(backend: Backend) -> None:
    @workflow
    async def fails(ctx: Context) -> None:
        raise ValueError("no such card")

    with pytest.raises(RunFailed, match="ValueError: no such card") as raised:
        await backend.run(fails)
    assert raised.value.failure.error_type == "ValueError"
    assert "raise ValueError" in raised.value.failure.traceback


async def test_result_times_out_and_the_run_goes_on(backend: Backend) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def waits() -> str:
        entered.set()
        await leave.wait()
        return "late"

    @workflow
    async def slow(ctx: Context) -> str:
        return await ctx.step("waits", waits)

    async with backend.engine(slow) as engine:
        handle = await engine.trigger(slow)
        await entered.wait()
        with pytest.raises(TimeoutError):
            await handle.result(timeout=0.01)
        assert await handle.status() == "running"
        leave.set()
        assert await backend.result(engine, handle) == "late"
        assert await handle.status() == "completed"


async def test_ctx_gives_the_same_on_every_pass(backend: Backend) -> None:
    passes = Passes()

    @workflow(name="members", version="7")
    async def members(ctx: Context) -> None:
        note = passes.begin()
        for n in range(3):
            note(ctx.now())
            note(ctx.random.random())
            note(ctx.uuid4())
            note(ctx.idempotency_key("double"))
            note(await ctx.step("double", double, n))
            await ctx.sleep("nap", 0.02)
        note((ctx.run_id, ctx.workflow, ctx.version, dict(ctx.tags), ctx.services["greeting"]))

    async with backend.engine(members, services={"greeting": "hello"}, linger=0) as engine:
        handle = await engine.trigger(members, tags={"tenant": "acme"})
        await backend.result(engine, handle)
    seen = passes.agree(least=4)
    run_id = handle.run_id
    assert seen[-1] == (run_id, "members", "7", {"tenant": "acme"}, "hello")
    assert seen[3:15:5] == [f"{run_id}/double", f"{run_id}/double#2", f"{run_id}/double#3"]
    assert seen[0:15:5] == sorted(seen[0:15:5])  # ctx.now() never goes back
    assert len(set(seen[1:15:5])) == len(set(seen[2:15:5])) == 3


async def test_ctx_now_is_the_time_of_the_latest_record(backend: Backend) -> None:
    @workflow
    async def looks(ctx: Context) -> list[str]:
        before = ctx.now()
        await ctx.step("double", double, 1)
        return [before.isoformat(), ctx.now().isoformat()]

    async with backend.engine(looks) as engine:
        handle = await engine.trigger(looks)
        before, after = await backend.result(engine, handle)
        run = await engine.get_run(handle.run_id)
        (record,) = [entry for entry in await engine.timeline(handle.run_id) if entry.kind == "completed"][:1]
    assert run.started_at is not None
    assert before == run.started_at.isoformat()
    assert after == record.at.isoformat()


async def test_two_runs_draw_different_random_numbers(backend: Backend) -> None:
    @workflow
    async def draws(ctx: Context) -> list[str]:
        return [str(ctx.uuid4()), str(ctx.random.random())]

    async with backend.engine(draws) as engine:
        one, two = [await backend.result(engine, await engine.trigger(draws)) for _ in range(2)]
    assert set(one).isdisjoint(two)


async def test_a_logged_line_appears_once_whatever_the_number_of_passes(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    passes = Passes()

    @workflow
    async def talks(ctx: Context) -> None:
        passes.begin()
        for n in range(3):
            ctx.log.info("before %s", n)
            await ctx.step("double", double, n)
            ctx.log.info("after %s", n)
            await ctx.sleep("nap", 0.02)
        ctx.log.info("end")

    caplog.set_level(logging.INFO, "durable.workflow")
    async with backend.engine(talks, linger=0) as engine:
        handle = await engine.trigger(talks)
        await backend.result(engine, handle)
    passes.agree()
    records = [record for record in caplog.records if record.name == "durable.workflow"]
    lines = [record.getMessage() for record in records]
    assert lines == ["before 0", "after 0", "before 1", "after 1", "before 2", "after 2", "end"]
    assert {record.__dict__["run_id"] for record in records} == {handle.run_id}


async def test_current_step_is_known_in_coroutines_and_threads_and_nowhere_else(backend: Backend) -> None:
    @workflow
    async def steps(ctx: Context) -> list[tuple[str, str, int, bool, str]]:
        with pytest.raises(DurableError, match="only known inside a step function"):
            current_step()
        return [
            await ctx.step("seen", seen_step),
            await ctx.step("seen", seen_step_in_thread),
            await ctx.step("timed", seen_step, timeout=5),
            await ctx.step("timed", seen_step_in_thread, timeout=5),
        ]

    async with backend.engine(steps) as engine:
        handle = await engine.trigger(steps)
        found = await backend.result(engine, handle)
    run_id = handle.run_id
    assert found == [
        (run_id, "seen", 1, False, f"{run_id}/seen"),
        (run_id, "seen", 1, False, f"{run_id}/seen#2"),
        (run_id, "timed", 1, False, f"{run_id}/timed"),
        (run_id, "timed", 1, False, f"{run_id}/timed#2"),
    ]


async def test_the_idempotency_key_is_the_same_for_every_attempt_and_told_beforehand(backend: Backend) -> None:
    keys: list[str] = []

    async def flaky() -> None:
        keys.append(current_step().idempotency_key)
        if len(keys) < 3:
            raise ConnectionError("gone")

    @workflow
    async def foresees(ctx: Context) -> str:
        expected = ctx.idempotency_key("flaky")
        await ctx.step("flaky", flaky, retry=Retry(3, initial_delay=0.01))
        return expected

    async with backend.engine(foresees) as engine:
        handle = await engine.trigger(foresees)
        assert await backend.result(engine, handle) == f"{handle.run_id}/flaky"
    assert keys == [f"{handle.run_id}/flaky"] * 3


class KnowsClaimsOfNone(Between):
    """Tells when a claim has been answered for which no slot was free."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.claimed_none = asyncio.Event()

    async def around(self, name: str, call: Call) -> Any:
        _, args = self.calls[-1]
        answer = await call()
        if name == "claim" and args[2] == 0:
            self.claimed_none.set()
        return answer


async def test_a_free_slot_is_filled_also_after_a_claim_that_had_none_to_fill(real_time: Backend) -> None:
    gates = [asyncio.Event() for _ in range(3)]

    @workflow
    async def flow(ctx: Context, number: int) -> None:
        await ctx.step("pass", gates[number].wait)

    store = KnowsClaimsOfNone(real_time.store())
    async with real_time.engine(flow, store=store.store, concurrency=2, poll_interval=10 * SOON) as engine:
        handles = [await engine.trigger(flow, number) for number in range(3)]
        async with asyncio.timeout(SOON):
            await store.claimed_none.wait()
        gates[0].set()
        gates[2].set()
        await handles[2].result(timeout=SOON)
        gates[1].set()
        await handles[1].result(timeout=SOON)


@pytest.mark.parametrize(("slots", "claims"), [(120, [120]), (600, [200, 200, 200])])
async def test_few_slots_are_filled_by_one_claim_and_many_by_thirds(
    real_time: Backend, slots: int, claims: list[int]
) -> None:
    full = asyncio.Barrier(slots)

    @workflow
    async def flow(ctx: Context, _: int) -> None:
        await ctx.step("meet all others", full.wait)

    store = Between(real_time.store())
    engine = real_time.engine(flow, store=store.store, concurrency=slots, poll_interval=10 * SOON)
    async with engine.client():
        handles = await engine.trigger_many(flow, range(slots))
    async with engine:
        await asyncio.gather(*(handle.result(timeout=SOON) for handle in handles))
    assert [args[2] for args in store.made("claim") if args[2]][: len(claims)] == claims
