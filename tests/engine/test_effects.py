"""Effects that runs share under one key: one makes it, all have its result."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import Context, InvalidArgument, RunFailed, State, Workflow, current_step, workflow
from durable.replay import SETTLE
from durable.store import Store
from tests.engine.backends import SOON, Backend
from tests.engine.wrapped import Between


class Bank:
    """A step function that can be held, and fails when told to."""

    def __init__(self) -> None:
        self.charges = 0
        self.refunds: list[str] = []
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.broken = False
        self.keys: list[str] = []

    async def charge(self) -> str:
        self.charges += 1
        self.keys.append(current_step().idempotency_key)
        self.begun.set()
        await self.go_on.wait()
        if self.broken:
            self.broken = False
            raise ConnectionError("the bank is down")
        return f"receipt {self.charges}"

    def refund(self, receipt: str) -> None:
        self.refunds.append(receipt)


def charging(bank: Bank) -> Workflow[str, str]:
    @workflow
    async def pay(ctx: Context, order: str) -> str:
        return await ctx.step("charge", bank.charge, idempotency_key=f"order:{order}:charge")

    return pay


async def test_two_runs_at_the_same_time_have_one_effect_and_the_second_waits_parked(backend: Backend) -> None:
    bank = Bank()
    pay = charging(bank)
    async with backend.engine(pay) as engine:
        first = await engine.trigger(pay, "1")
        await bank.begun.wait()
        second = await engine.trigger(pay, "1")
        async with asyncio.timeout(SOON):
            while await second.status() is not State.WAITING:  # noqa: ASYNC110 - only ends are announced
                await asyncio.sleep(0.002)
        bank.go_on.set()
        assert await backend.result(engine, first) == "receipt 1"
        assert await backend.result(engine, second) == "receipt 1"
        third = await engine.trigger(pay, "1")
        assert await backend.result(engine, third) == "receipt 1"
        other = await engine.trigger(pay, "2")
        assert await backend.result(engine, other) == "receipt 2"
    assert bank.charges == 2
    assert bank.keys == ["order:1:charge", "order:2:charge"]


async def test_many_runs_at_once_have_one_effect(backend: Backend) -> None:
    bank = Bank()
    pay = charging(bank)
    bank.go_on.set()
    async with backend.engine(pay) as engine:
        handles = await engine.trigger_many(pay, ["1"] * 30)
        assert {await backend.result(engine, handle) for handle in handles} == {"receipt 1"}
    assert bank.charges == 1


async def test_when_it_fails_the_one_that_waits_makes_it(backend: Backend) -> None:
    bank = Bank()
    bank.broken = True
    pay = charging(bank)
    async with backend.engine(pay) as engine:
        first = await engine.trigger(pay, "1")
        await bank.begun.wait()
        second = await engine.trigger(pay, "1")
        bank.go_on.set()
        with pytest.raises(RunFailed, match="the bank is down"):
            await backend.result(engine, first)
        assert await backend.result(engine, second) == "receipt 2"


async def test_when_it_is_undone_the_next_one_makes_it_anew(backend: Backend) -> None:
    bank = Bank()
    bank.go_on.set()

    @workflow
    async def flow(ctx: Context, fails: bool) -> str:
        receipt = await ctx.step("charge", bank.charge, idempotency_key="k", compensate=bank.refund)
        if fails:
            raise ValueError("undo it")
        return receipt

    async with backend.engine(flow) as engine:
        with pytest.raises(RunFailed):
            await backend.result(engine, await engine.trigger(flow, True))
        assert bank.refunds == ["receipt 1"]
        assert await backend.result(engine, await engine.trigger(flow, False)) == "receipt 2"


async def test_who_did_not_make_it_does_not_undo_it(backend: Backend) -> None:
    bank = Bank()
    bank.go_on.set()

    @workflow
    async def flow(ctx: Context, fails: bool) -> str:
        receipt = await ctx.step("charge", bank.charge, idempotency_key="k", compensate=bank.refund)
        if fails:
            raise ValueError("fails")
        return receipt

    async with backend.engine(flow) as engine:
        assert await backend.result(engine, await engine.trigger(flow, False)) == "receipt 1"
        with pytest.raises(RunFailed):
            await backend.result(engine, await engine.trigger(flow, True))
    assert not bank.refunds


async def test_a_run_that_is_cancelled_leaves_the_effect_to_who_waits(backend: Backend) -> None:
    bank = Bank()
    pay = charging(bank)
    async with backend.engine(pay) as engine:
        first = await engine.trigger(pay, "1")
        await bank.begun.wait()
        second = await engine.trigger(pay, "1")
        await first.cancel()
        async with asyncio.timeout(SOON):
            while await first.status() is not State.CANCELLED:  # noqa: ASYNC110 - only ends are announced
                await asyncio.sleep(0.002)
        bank.go_on.set()
        assert await backend.result(engine, second) == "receipt 2"


async def test_a_key_that_is_none_is_refused(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> str:
        for key in ("", "x" * 600, "a\nb"):
            with pytest.raises(InvalidArgument, match="idempotency key"):
                await ctx.step("charge", asyncio.sleep, 0, idempotency_key=key)
        return "refused"

    assert await backend.run(flow) == "refused"


class HoldsTheAnswer(Between):
    """Answers who makes an effect only when it is let go."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def take_effect(self, *args: Any) -> Any:
        self.asked.set()
        await self.go_on.wait()
        return await self._inner.take_effect(*args)


async def test_a_run_is_not_parked_while_it_asks_who_makes_an_effect(real_time: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[Any]:
        charge = ctx.step("charge", str, "receipt", idempotency_key="k")
        return list(await asyncio.gather(ctx.wait_for("answer", int), charge))

    store = HoldsTheAnswer(real_time.store())
    async with real_time.engine(flow, store=store.store, linger=0) as engine:
        handle = await engine.trigger(flow)
        await store.asked.wait()
        for _ in range(10 * SETTLE):  # more often than a run rests before it is parked
            await asyncio.sleep(0)
        assert await handle.status() is State.RUNNING
        store.go_on.set()
        await real_time.until(engine, handle.run_id, State.WAITING)
        assert "charge" in [entry.name for entry in await engine.timeline(handle.run_id)]
        await engine.signal(handle.run_id, "answer", 1)
        assert await real_time.result(engine, handle) == [1, "receipt"]


async def test_a_run_that_is_parked_asks_when_it_goes_on(real_time: Backend) -> None:
    parked = asyncio.Event()

    @workflow
    async def flow(ctx: Context) -> list[Any]:
        async def later() -> str:
            await parked.wait()
            return await ctx.step("charge", str, "receipt", idempotency_key="k")

        return list(await asyncio.gather(ctx.wait_for("answer", int), later()))

    async with real_time.engine(flow, linger=SOON) as engine:
        handle = await engine.trigger(flow)
        await real_time.until(engine, handle.run_id, State.WAITING)
        parked.set()
        await engine.signal(handle.run_id, "answer", 1)
        assert await real_time.result(engine, handle) == [1, "receipt"]


async def test_a_step_that_the_code_cancels_leaves_the_effect_to_the_next_one_of_this_run_too(backend: Backend) -> None:
    bank = Bank()

    @workflow
    async def flow(ctx: Context) -> str:
        first = asyncio.create_task(ctx.step("first", bank.charge, idempotency_key="k"))
        await ctx.step("until it has begun", bank.begun.wait)
        first.cancel()
        await asyncio.wait([first])
        await ctx.sleep("a replay comes to the same", 0.02)
        bank.go_on.set()
        return await ctx.step("second", bank.charge, idempotency_key="k")

    async with backend.engine(flow, linger=0) as engine:
        handles = await engine.trigger_many(flow, [None, None])
        assert {await backend.result(engine, handle) for handle in handles} <= {"receipt 2", "receipt 3"}


@pytest.mark.parametrize("fails", [False, True])
async def test_all_steps_of_a_run_that_wait_for_one_effect_go_on_when_it_ends(real_time: Backend, fails: bool) -> None:
    bank = Bank()
    bank.broken = fails

    @workflow
    async def three_times(ctx: Context, order: str) -> list[str]:
        names = ("one", "two", "three")
        return list(await asyncio.gather(*(ctx.step(n, bank.charge, idempotency_key="k") for n in names)))

    @workflow
    async def once(ctx: Context, order: str) -> str:
        return await ctx.step("charge", bank.charge, idempotency_key="k", retry=None)

    async with real_time.engine(once, three_times, linger=SOON) as engine:  # its coroutine waits, and asks once
        await engine.trigger(once, "1")
        await bank.begun.wait()
        handle = await engine.trigger(three_times, "1")
        await real_time.until(engine, handle.run_id, State.WAITING)
        bank.go_on.set()
        assert await real_time.result(engine, handle) == [f"receipt {bank.charges}"] * 3
        assert bank.charges == (2 if fails else 1)
