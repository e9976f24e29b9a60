"""Observers, what is recorded of a failure, and what a timeline shows of both: nothing of it changes a run."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import AsyncExitStack
from typing import Any, get_args

import pytest

from durable import (
    Context,
    Engine,
    Failure,
    HookEvent,
    InvalidArgument,
    Retry,
    RunCancelled,
    RunDeadLettered,
    RunFailed,
    State,
    StepFailed,
    WorkerOptions,
    workflow,
)
from durable import failures as stored
from durable.hooks import EventName
from durable.testing.conformance.harness import Worker
from tests.engine.backends import SOON, Backend, Listener
from tests.engine.test_cancel import LONG, held
from tests.engine.test_compensation import Ledger
from tests.engine.test_pause import Fails
from tests.engine.test_replay import EVICT

EVENTS: tuple[EventName, ...] = get_args(EventName)


def observed(engine: Engine, events: list[HookEvent]) -> None:
    for name in EVENTS:
        engine.on(name, events.append)


def names(events: list[HookEvent]) -> list[str]:
    return [event.name for event in events]


# -- observers ------------------------------------------------------------------------------------


async def test_P46_each_event_of_a_run_is_told_once_in_the_order_of_the_commits(backend: Backend) -> None:
    ledger = Ledger()
    events: list[HookEvent] = []
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("reserve", ledger.do, "reserve", compensate=ledger.undo)
        await ctx.sleep("nap", EVICT)
        await ctx.step("charge", charge, retry=Retry(2, initial_delay=0.01))

    engine = backend.engine(flow, linger=0)
    observed(engine, events)
    async with engine:
        handle = await engine.trigger(flow)
        await backend.ended(engine, handle)
    assert [(event.name, event.step, event.attempt) for event in events] == [
        ("run_triggered", None, None),
        ("run_started", None, None),
        ("step_started", "reserve", 1),
        ("step_completed", "reserve", 1),
        ("step_started", "charge", 1),
        ("step_retried", "charge", 1),
        ("step_started", "charge", 2),
        ("step_failed", "charge", 2),
        ("step_started", "reserve/undo", 1),
        ("step_compensated", "reserve", 1),
        ("run_compensated", None, None),
    ]
    assert {event.run_id for event in events} == {handle.run_id}
    assert {event.workflow for event in events} == {"flow"}
    assert all(event.at.tzinfo is not None for event in events)


async def test_P06_a_dead_letter_is_told_once_by_one_of_several_workers(backend: Backend) -> None:
    ledger = Ledger()
    events: list[HookEvent] = []

    @workflow
    async def deadly(ctx: Context) -> None:
        await ctx.step("never", ledger.do, "never")

    @workflow
    async def fine(ctx: Context) -> str:
        return await ctx.step("a", ledger.do, "a")

    store = backend.store()
    async with backend.engine(deadly, fine, store=store).client() as client:
        handle, neighbour = await client.trigger(deadly), await client.trigger(fine)
        for death in range(5):
            worker = await Worker.start(store, lease=-1)  # it has died by now
            await worker.claim(routes=[deadly.route, fine.route] if death == 4 else [deadly.route])
            if death < 4:
                await store.reap()
        engines = [backend.engine(fine) for _ in range(3)]
        for engine in engines:
            observed(engine, events)
        async with AsyncExitStack() as stack:
            for engine in engines:
                await stack.enter_async_context(engine)
            with pytest.raises(RunDeadLettered):
                await handle.result(timeout=SOON)
            assert await backend.result(engines[0], neighbour) == "a"
        dead = [event for event in events if event.run_id == handle.run_id]
        assert [(event.name, event.workflow) for event in dead] == [("run_dead_lettered", "deadly")]
        assert names(events).count("took_over") == 1
    assert ledger.made.count("never") == 0


async def test_P46_observers_that_raise_change_no_run_and_are_logged(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = Ledger()
    heard: list[str] = []

    def raises(event: HookEvent) -> None:
        raise RuntimeError(f"observer of {event.name}")

    async def raises_later(event: HookEvent) -> None:
        raise RuntimeError(f"async observer of {event.name}")

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("a", ledger.do, "a")

    engine = backend.engine(flow)
    for name in EVENTS:
        engine.on(name, raises)
        engine.on(name, raises_later)
        engine.on(name, lambda event: heard.append(event.name))
    with caplog.at_level(logging.ERROR, "durable.hooks"):
        async with engine:
            assert await backend.result(engine, await engine.trigger(flow)) == "a"
    told = ["run_triggered", "run_started", "step_started", "step_completed", "run_completed"]
    assert heard == told
    assert [record.getMessage() for record in caplog.records] == [
        f"a callback for {name} raised" for name in told for _ in range(2)
    ]


async def test_P46_an_observer_that_blocks_holds_up_no_run_and_no_stop(backend: Backend) -> None:
    blocked, release = threading.Event(), threading.Event()

    def blocks(event: HookEvent) -> None:
        blocked.set()
        release.wait(SOON)

    @workflow
    async def flow(ctx: Context, n: int) -> int:
        return await ctx.step("a", abs, n, returns=int)

    engine = backend.engine(flow)
    for name in EVENTS:
        engine.on(name, blocks)
    try:
        await engine.start()
        handles = [await engine.trigger(flow, n) for n in range(20)]
        await backend.idle(engine)
        assert [await handle.result(timeout=SOON) for handle in handles] == list(range(20))
        assert blocked.is_set()
        began = time.monotonic()
        await engine.stop()
        assert time.monotonic() - began < 5
    finally:
        release.set()


async def test_P46_a_slow_async_observer_is_waited_for_in_order_and_holds_up_no_run(backend: Backend) -> None:
    go_on, heard = asyncio.Event(), list[str]()
    all_heard = asyncio.Event()

    async def slow(event: HookEvent) -> None:
        await go_on.wait()
        heard.append(event.name)
        if event.name == "run_completed":
            all_heard.set()

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("a", str)
        return "done"

    engine = backend.engine(flow)
    for name in EVENTS:
        engine.on(name, slow)
    async with engine:
        assert await backend.result(engine, await engine.trigger(flow)) == "done"
        assert heard == []
        go_on.set()
        async with asyncio.timeout(SOON):
            await all_heard.wait()
    assert heard == ["run_triggered", "run_started", "step_started", "step_completed", "run_completed"]


async def test_P46_what_has_happened_is_told_before_stop_returns(backend: Backend) -> None:
    heard: list[str] = []

    async def nearly(event: HookEvent) -> None:
        await asyncio.sleep(0)
        heard.append(event.name)

    @workflow
    async def flow(ctx: Context, n: int) -> int:
        return await ctx.step("a", abs, n, returns=int)

    engine = backend.engine(flow)
    engine.on("run_completed", nearly)
    engine.on("step_completed", lambda event: heard.append(event.name))
    async with engine:
        handles = [await engine.trigger(flow, n) for n in range(20)]
        await backend.idle(engine)
        for handle in handles:
            await handle.result(timeout=SOON)
    assert heard.count("run_completed") == 20
    assert heard.count("step_completed") == 20


async def test_P46_an_engine_that_is_started_again_tells_its_observers_again(backend: Backend) -> None:
    heard: list[str] = []
    later: list[str] = []

    async def asynchronous(event: HookEvent) -> None:
        later.append(event.name)

    @workflow
    async def flow(ctx: Context) -> str:
        return "done"

    engine = backend.engine(flow)
    engine.on("run_completed", lambda event: heard.append(event.name))
    engine.on("run_completed", asynchronous)
    for n in range(1, 4):
        async with engine:
            assert await backend.result(engine, await engine.trigger(flow)) == "done"
        assert heard == later == ["run_completed"] * n


async def test_P46_an_observer_may_use_the_engine(backend: Backend) -> None:
    found: list[State] = []
    told = asyncio.Event()

    @workflow
    async def flow(ctx: Context) -> str:
        return "done"

    engine = backend.engine(flow)

    async def looks(event: HookEvent) -> None:
        assert event.run_id is not None
        found.append((await engine.get_run(event.run_id)).state)
        told.set()

    engine.on("run_completed", looks)
    async with engine:
        assert await backend.result(engine, await engine.trigger(flow)) == "done"
        async with asyncio.timeout(SOON):
            await told.wait()
    assert found == [State.COMPLETED]


async def test_the_events_of_an_operator(backend: Backend) -> None:
    """What a process asks of a run that nobody holds, it carries out: its observers hear of it."""
    ledger = Ledger()
    events: list[HookEvent] = []
    charge = Fails(ledger)

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("charge", charge)

    client = backend.engine(flow)
    observed(client, events)
    async with client.client():
        handle = await client.trigger(flow, delay=LONG)
        await client.pause(handle.run_id, reason="look first")
        await client.resume(handle.run_id)
        await client.cancel(handle.run_id)
        failing = await client.trigger(flow)
        async with backend.engine(flow) as worker:
            with pytest.raises(RunFailed):
                await backend.result(worker, await worker.handle(flow, run_id=failing.run_id))
        await client.retry(failing.run_id)
        async with backend.engine(flow) as worker:
            with pytest.raises(RunFailed):
                await backend.result(worker, await worker.handle(flow, run_id=failing.run_id))
        assert await client.retry_all(state="failed") == 1
    assert names(events) == [
        "run_triggered", "run_paused", "run_resumed", "run_cancelled", "run_triggered", "run_retried", "run_retried",
    ]  # fmt: skip
    assert events[1].detail == "look first"
    assert [event.run_id for event in events] == [handle.run_id] * 4 + [failing.run_id] * 3


async def test_the_events_of_a_worker_that_is_asked(backend: Backend) -> None:
    events: list[HookEvent] = []
    begun = asyncio.Event()

    async def hangs() -> None:
        begun.set()
        await asyncio.Event().wait()

    @workflow
    async def flow(ctx: Context, hang: bool) -> None:
        if hang:
            await ctx.step("hangs", hangs)
        await ctx.sleep("long", LONG)

    engine = backend.engine(flow)
    observed(engine, events)
    async with engine:
        handle = await engine.trigger(flow, True)
        await begun.wait()
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result(timeout=SOON)
        other = await engine.trigger(flow, False)
        await held(engine, other.run_id, State.SLEEPING)
        await engine.pause(other.run_id, reason="why")
    assert names(events) == [
        "run_triggered", "run_started", "step_started", "run_cancelled", "run_triggered", "run_started", "run_paused",
    ]  # fmt: skip


def test_there_is_no_other_event_and_a_callback_can_be_called(backend: Backend) -> None:
    engine = backend.engine()
    with pytest.raises(InvalidArgument, match="no event 'run_ended'; there are run_triggered, run_started"):
        engine.on("run_ended", print)
    with pytest.raises(InvalidArgument, match="the callback for 'run_failed' is not callable"):
        engine.on("run_failed", "print")  # type: ignore[arg-type]  # the mistake under test


# -- what is recorded of a failure ----------------------------------------------------------------


class CardDeclined(Exception):
    pass


def _charge(card_number: str) -> None:
    try:
        raise ConnectionError("the bank hung up")
    except ConnectionError as error:
        declined = CardDeclined("declined")
        declined.add_note("ask the customer for another card")
        raise declined from error


async def test_a_failure_tells_type_message_notes_and_causes_but_no_locals_and_the_same_on_replay(
    backend: Backend,
) -> None:
    seen: list[Failure] = []
    told: list[Any] = []

    @workflow
    async def flow(ctx: Context, card_number: str) -> None:
        try:
            await ctx.step("charge", _charge, card_number)
        except StepFailed as error:
            seen.append(error.failure)
            told.append((error.__cause__, error.is_a(CardDeclined), error.is_a(ConnectionError)))
            await ctx.sleep("nap", EVICT)
            raise

    async with backend.engine(flow, linger=0) as engine:
        handle = await engine.trigger(flow, "4000-0000-0000-0002")
        with pytest.raises(RunFailed, match="declined") as raised:
            await backend.result(engine, handle)
        entries = await engine.timeline(handle.run_id)
    assert told == [(None, True, False)] * 2
    assert seen[0] == seen[1]
    failure = seen[0]
    assert failure.error_type == f"{__name__}.CardDeclined"
    assert failure.message == "declined"
    for text in (
        "ask the customer for another card", "the bank hung up", "The above exception was the direct cause", "_charge",
    ):  # fmt: skip
        assert text in failure.traceback
        assert text in raised.value.failure.traceback
    recorded = next(entry.data for entry in entries if entry.kind == "failed" and entry.name == "charge")
    assert stored.from_json(recorded) == failure
    assert "4000-0000" not in str(recorded)
    assert "4000-0000" not in raised.value.failure.traceback
    assert raised.value.failure.step == "charge"


async def test_a_redaction_hook_sees_every_text_before_it_is_stored(backend: Backend) -> None:
    ledger = Ledger()
    ledger.broken = {"a"}

    def fails() -> None:
        card = f"4000-{0:04}-{0:04}-{2:04}"  # the traceback shows lines of code
        raise ValueError(f"card {card} is bad")

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("a", ledger.do, "a", compensate=ledger.undo)
        await ctx.step("charge", fails, retry=Retry(2, initial_delay=0.01))

    engine = Engine(
        backend.store(), workflows=[flow], redact=lambda text: text.replace("4000-0000-0000-0002", "<card>").upper()
    )
    async with engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed, match="CARD <CARD> IS BAD"):
            await backend.result(engine, handle)
        everything = repr(await engine.get_run(handle.run_id)) + repr(await engine.timeline(handle.run_id))
    assert "4000-0000" not in everything
    assert "CANNOT UNDO A" in everything
    assert everything.count("CARD <CARD> IS BAD") >= 3


async def test_a_redaction_hook_that_raises_loses_the_text_and_nothing_else(backend: Backend) -> None:
    async def fails() -> None:
        raise ValueError("secret")

    def broken(text: str) -> str:
        raise KeyError(text)

    @workflow
    async def flow(ctx: Context) -> None:
        await ctx.step("charge", fails)

    listener = Listener("the redaction hook raised")
    logging.getLogger("durable.engine").addHandler(listener)
    try:
        async with Engine(backend.store(), workflows=[flow], redact=broken) as engine:
            handle = await engine.trigger(flow)
            with pytest.raises(RunFailed, match="the redaction hook raised") as raised:
                await backend.result(engine, handle)
            everything = repr(await engine.get_run(handle.run_id)) + repr(await engine.timeline(handle.run_id))
    finally:
        logging.getLogger("durable.engine").removeHandler(listener)
    assert listener.heard.is_set()
    assert "secret" not in everything
    assert raised.value.failure.error_type == "durable.errors.StepFailed"
    assert raised.value.failure.step == "charge"


@pytest.mark.parametrize("answer", [None, 7, b"bytes", "\0\ud800"], ids=["None", "int", "bytes", "unstorable"])
async def test_a_redaction_hook_that_answers_nonsense_fails_no_run_but_the_one_that_failed(
    backend: Backend, answer: Any
) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        raise ValueError("secret")

    @workflow
    async def fine(ctx: Context) -> str:
        return "fine"

    engine = Engine(
        backend.store(), workflows=[flow, fine], redact=lambda _: answer, worker=WorkerOptions(drain_timeout=2)
    )
    async with engine:
        handle = await engine.trigger(flow)
        with pytest.raises(RunFailed) as raised:
            await backend.result(engine, handle)
        assert await backend.result(engine, await engine.trigger(fine)) == "fine"
    assert raised.value.failure.error_type == "ValueError"
    assert "secret" not in str(raised.value)
