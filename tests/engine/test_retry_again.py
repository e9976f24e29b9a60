"""An operator's retry: what is kept, what is repeated, and what happens when its answer is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from durable import (
    Context,
    Engine,
    InvalidArgument,
    Retry,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunNotFound,
    State,
    StoreUnavailable,
    workflow,
)
from tests.engine.backends import SOON, Backend
from tests.engine.test_cancel import LONG, held, kinds
from tests.engine.test_compensation import Ledger
from tests.engine.test_pause import Fails, paused
from tests.engine.wrapped import GoesDown, LosesAnswers

NOBODY = "00000000-0000-7000-8000-000000000000"


# -- retry ----------------------------------------------------------------------------------------


async def test_a_retry_keeps_what_succeeded_and_repeats_what_failed(backend: Backend) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve")
        return await ctx.step("charge", charge, retry=Retry(2, initial_delay=0.01))

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert (await backend.ended(engine, handle)).state is State.FAILED
        charge.broken = False
        await engine.retry(handle.run_id, reason="the bank is back", by="ops")
        assert await backend.result(engine, handle) == "charge"
        run = await engine.get_run(handle.run_id)
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["reserve", "charge!", "charge!", "charge"]
    assert run.error is None
    assert kinds(entries) == [
        "triggered", "running", "started", "completed", "started", "retrying", "started", "failed", "retry",
        "started", "completed", "completed",
    ]  # fmt: skip
    assert [entry.attempt for entry in entries if entry.name == "charge"] == [1, 1, 2, 2, 1, 1]


async def test_a_retry_of_a_run_that_was_partly_undone_repeats_what_was_undone_and_keeps_what_was_not(
    backend: Backend,
) -> None:
    ledger = Ledger()
    ledger.broken.add("charge")
    ship = Fails(ledger, "ship")

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", ledger.do, "charge", compensate=ledger.undo)
        return await ctx.step("ship", ship)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        assert (await backend.ended(engine, handle)).state is State.FAILED
        assert ledger.made == ["reserve", "charge", "ship!", "undo charge", "undo reserve"]
        ledger.made.clear()
        await engine.retry(handle.run_id)
        assert (await backend.ended(engine, handle)).state is State.FAILED
        assert ledger.made == ["reserve", "ship!", "undo charge", "undo reserve"]
        ledger.made.clear()
        ship.broken = False
        await engine.retry(handle.run_id)
        assert await backend.result(engine, handle) == "ship"
    assert ledger.made == ["reserve", "ship"]


async def test_a_retry_from_a_step_repeats_it_and_all_after_it(backend: Backend) -> None:
    ledger = Ledger()
    ship = Fails(ledger, "ship")

    @workflow
    async def flow(ctx: Context) -> str:
        for _ in range(2):
            await ctx.step("reserve", ledger.do, "reserve")
        await ctx.sleep("nap", 0.01)
        return await ctx.step("ship", ship)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await backend.ended(engine, handle)
        ship.broken = False
        for wrong in ("nothing", "", "reserve#3"):
            with pytest.raises(RunNotFound, match=f"no record '{wrong}'"):
                await engine.retry(handle.run_id, from_step=wrong)
        assert await handle.status() == State.FAILED
        await engine.retry(handle.run_id, from_step="reserve#2")
        assert await backend.result(engine, handle) == "ship"
        entries = await engine.timeline(handle.run_id)
    assert ledger.made == ["reserve", "reserve", "ship!", "reserve", "ship"]
    assert kinds(entries).count("woke") == 2


async def test_retries_by_filter_first_only_count(backend: Backend) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context, n: int) -> str:
        return await ctx.step("charge", charge)

    @workflow
    async def other(ctx: Context) -> str:
        return await ctx.step("charge", charge)

    async with backend.engine(flow, other) as engine:
        handles = [await engine.trigger(flow, n, tags={"odd": f"{n % 2}"}) for n in range(5)]
        extra = await engine.trigger(other)
        for handle in (*handles, extra):
            await backend.ended(engine, handle)
        charge.broken = False
        made = len(ledger.made)
        assert await engine.retry_all() == 0
        assert await engine.retry_all(state="failed", dry_run=True) == 6
        assert await engine.retry_all(state="failed", workflow="flow", tags={"odd": "0"}, dry_run=True) == 3
        assert len(ledger.made) == made
        assert await engine.retry_all(state="failed", workflow="flow", tags={"odd": "0"}) == 3
        for handle in handles[::2]:
            assert await handle.result(timeout=SOON) == "charge"
        states = [str(await handle.status()) for handle in (*handles, extra)]
        assert states == ["completed", "failed", "completed", "failed", "completed", "failed"]
        assert await engine.retry_all(state=State.FAILED) == 3
        for handle in (*handles, extra):
            assert await handle.result(timeout=SOON) == "charge"
        for wrong in ("completed", "compensated", "cancelled", "running", "nonsense"):
            with pytest.raises(InvalidArgument, match="only failed and dead_letter runs can be retried"):
                await engine.retry_all(state=wrong)


async def test_each_verb_that_does_not_apply_says_why(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        return

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await backend.result(engine, handle)
        run_id = handle.run_id
        for call, said in (
            (engine.pause(run_id), "is completed: pause does not apply"),
            (engine.resume(run_id), "is completed: resume does not apply"),
            (engine.retry(run_id), "is completed: retry does not apply"),
            (engine.retry(run_id, from_step="x"), "is completed: retry does not apply"),
            (engine.retry_compensation(run_id), "is completed: retry_compensation does not apply"),
        ):
            with pytest.raises(RunFinished, match=said):
                await call
        unknown: tuple[Coroutine[Any, Any, object], ...] = (
            engine.pause(NOBODY), engine.resume(NOBODY), engine.retry(NOBODY), engine.retry(NOBODY, from_step="x"),
            engine.retry_compensation(NOBODY), engine.delete(NOBODY), engine.timeline(NOBODY),
        )  # fmt: skip
        for asked in unknown:
            with pytest.raises(RunNotFound, match=NOBODY):
                await asked
        wrong: tuple[Coroutine[Any, Any, object], ...] = (
            engine.pause("x"), engine.resume(""), engine.retry("x"), engine.delete("x"), engine.cancel("x"),
        )  # fmt: skip
        for asked in wrong:
            with pytest.raises(InvalidArgument, match="run_id"):
                await asked


async def test_a_failed_run_is_retried_by_one_of_ten_at_once(backend: Backend) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("charge", charge)

    async def retried(engine: Engine, run_id: str, n: int) -> bool:
        try:
            await engine.retry(run_id, by=f"{n}")
        except RunFinished:
            return False
        return True

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        charge.broken = False
        answers = await asyncio.gather(*(retried(engine, handle.run_id, n) for n in range(10)))
        assert await backend.result(engine, handle) == "charge"
    assert answers.count(True) == 1
    assert ledger.made == ["charge!", "charge"]


# -- answers that are lost ------------------------------------------------------------------------


async def test_P11_a_request_whose_answer_is_lost_is_carried_out_once_and_answered_as_the_first(
    real_time: Backend,
) -> None:
    ledger = Ledger()
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.step("charge", charge, retry=Retry(1, on_exhausted="pause"))
        await ctx.sleep("long", LONG)
        return "done"

    lossy = LosesAnswers(real_time.store(), "request")
    client = real_time.engine(flow, store=lossy.store)
    async with real_time.engine(flow) as engine, client.client():
        handle = await engine.trigger(flow)
        run_id = handle.run_id
        await paused(engine, run_id)
        charge.broken = False
        await client.resume(run_id, by="a")
        await held(engine, run_id, State.SLEEPING)
        await client.pause(run_id, by="b")
        assert (await engine.get_run(run_id)).state is State.PAUSED
        assert await client.cancel(run_id, by="c")
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
        assert not await engine.cancel(run_id, by="c")
        entries = await engine.timeline(run_id)
    assert lossy.lost == 3
    assert [kind for kind in kinds(entries) if kind in ("resume", "pause", "cancel")] == ["resume", "pause", "cancel"]
    assert ledger.made == ["reserve", "charge!", "charge", "undo reserve"]


async def test_P11_a_request_is_given_up_when_the_store_does_not_come_back(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durable.client._REQUEST_PATIENCE", 0.1)

    @workflow
    async def flow(ctx: Context) -> None: ...

    store = GoesDown(backend.store())
    async with backend.engine(flow, store=store.store).client() as client:
        handle = await client.trigger(flow)
        store.down = True
        with pytest.raises(StoreUnavailable):
            await client.cancel(handle.run_id)
        store.down = False
        assert await handle.status() == State.PENDING
        assert len({request for _, request in store.made("request")}) == 1 < len(store.made("request"))


@pytest.mark.parametrize("from_step", [None, "reserve"])
async def test_P11_a_retry_whose_answer_is_lost_is_one_retry(real_time: Backend, from_step: str | None) -> None:
    ledger = Ledger()
    go_on = asyncio.Event()

    async def charge() -> str:
        if ledger.do("charge") and ledger.made.count("charge") == 1:
            raise ConnectionError("the bank is down")
        await go_on.wait()
        return "charged"

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("reserve", ledger.do, "reserve")
        return await ctx.step("charge", charge)

    lossy = LosesAnswers(real_time.store(), "request", "retry_from")
    client = real_time.engine(flow, store=lossy.store)
    async with real_time.engine(flow) as engine, client.client():
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed):
            await handle.result(timeout=SOON)
        await client.retry(handle.run_id, from_step=from_step)
        go_on.set()
        assert await handle.result(timeout=SOON) == "charged"
        entries = await engine.timeline(handle.run_id)
    assert lossy.lost == 1
    assert kinds(entries).count("retry") == 1
    assert ledger.made == ["reserve", "charge", *(["reserve"] if from_step else []), "charge"]
