"""Signals, events and the log of emits, as workflow functions and their callers see them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator

from durable import (
    Context,
    Engine,
    InvalidArgument,
    NondeterminismError,
    PayloadError,
    RunFailed,
    RunFinished,
    RunNotFound,
    State,
    WaitTimeout,
    workflow,
)
from tests.engine.backends import SOON, Backend, Passes


@dataclass
class Approval:
    by: str
    granted: bool


@workflow(signals={"approval": Approval})
async def approved(ctx: Context) -> Approval:
    return await ctx.wait_for("approval", Approval)


@workflow
async def three(ctx: Context) -> list[Any]:
    return [await ctx.wait_for("item") for _ in range(3)]


async def waiting(backend: Backend, engine: Engine, run_id: str) -> None:
    """Return when the run is parked."""
    await backend.until(engine, run_id, State.WAITING)


@pytest.fixture(params=[1.0, 0.0], ids=["lingering", "evicted"])
def linger(request: pytest.FixtureRequest) -> float:
    value: float = request.param
    return value


# -- one signal, one wait -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [False, None, 0, "", [], {}, "x", 1.5, {"a": [None]}], ids=repr)
async def test_P31_a_signal_before_the_wait_is_kept_whatever_its_payload(backend: Backend, value: Any) -> None:
    go_on = asyncio.Event()

    @workflow
    async def flow(ctx: Context) -> Any:
        await ctx.step("until it was sent", go_on.wait)
        return [await ctx.wait_for("answer")]

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await engine.signal(handle.run_id, "answer", value)
        go_on.set()
        assert await backend.result(engine, handle) == [value]


async def test_P31_each_wait_consumes_its_own_in_the_order_of_arrival(backend: Backend, linger: float) -> None:
    async with backend.engine(three, linger=linger) as engine:
        handle = await engine.trigger(three)
        for number in range(3):
            await waiting(backend, engine, handle.run_id)
            await engine.signal(handle.run_id, "item", number)
        assert await backend.result(engine, handle) == [0, 1, 2]


async def test_P31_many_signals_at_once_are_consumed_once_each(backend: Backend) -> None:
    async with backend.engine(three).client() as client:  # nobody executes it before all are there
        handle = await client.trigger(three)
        for number in range(5):
            await client.signal(handle.run_id, "item", number)
    async with backend.engine(three) as engine:
        assert await backend.result(engine, await engine.handle(three, run_id=handle.run_id)) == [0, 1, 2]


async def test_P33_the_same_signal_id_twice_is_one_signal(backend: Backend) -> None:
    async with backend.engine(three) as engine:
        handle = await engine.trigger(three)
        await engine.signal(handle.run_id, "item", "a", signal_id="1")
        await waiting(backend, engine, handle.run_id)
        await engine.signal(handle.run_id, "item", "a", signal_id="1")
        await engine.signal(handle.run_id, "item", "b", signal_id="2")
        await engine.signal(handle.run_id, "item", "c", signal_id="3")
        assert await backend.result(engine, handle) == ["a", "b", "c"]


async def test_P33_a_signal_to_a_finished_or_missing_run_is_refused(backend: Backend) -> None:
    async with backend.engine(approved) as engine:
        handle = await engine.trigger(approved)
        await engine.signal(handle.run_id, "approval", Approval("ann", True))
        assert await backend.result(engine, handle) == Approval("ann", True)
        with pytest.raises(RunFinished, match=handle.run_id):
            await engine.signal(handle.run_id, "approval", Approval("ann", True))
        with pytest.raises(RunNotFound):
            await engine.signal("01890000-0000-7000-8000-000000000000", "other")


@pytest.mark.parametrize("name", ["", "a/b", "a#2", "x" * 201])
async def test_P50_a_signal_with_a_bad_name_is_refused(backend: Backend, name: str) -> None:
    async with backend.engine(approved) as engine:
        handle = await engine.trigger(approved)
        with pytest.raises(InvalidArgument, match="signal name"):
            await engine.signal(handle.run_id, name)


async def test_a_payload_that_does_not_fit_the_declared_type_is_the_senders_error(backend: Backend) -> None:
    async with backend.engine(approved) as engine:
        handle = await engine.trigger(approved)
        with pytest.raises(PayloadError, match="approval"):
            await engine.signal(handle.run_id, "approval", {"by": "ann"})
        await engine.signal(handle.run_id, "approval", Approval("bob", False))
        assert await backend.result(engine, handle) == Approval("bob", False)


async def test_a_payload_that_does_not_fit_the_wait_is_set_aside_and_the_run_waits_on(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> Approval:
        return await ctx.wait_for("approval", Approval)

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await engine.signal(handle.run_id, "approval", "yes")
        await engine.signal(handle.run_id, "approval", {"by": "bob", "granted": True})
        assert await backend.result(engine, handle) == Approval("bob", True)
        entries = await engine.timeline(handle.run_id)
        [refused] = [entry.data or "" for entry in entries if entry.kind == "signal refused"]
        assert "approval" in refused
        assert [entry.kind for entry in entries if entry.name == "approval"] == ["waiting", "received"]


# -- deadlines ------------------------------------------------------------------------------------


async def test_P32_a_wait_with_a_deadline_ends_by_itself(backend: Backend, linger: float) -> None:
    passes = Passes()

    @workflow
    async def flow(ctx: Context) -> str:
        note = passes.begin()
        try:
            await ctx.wait_for("approval", timeout=0.05)
        except TimeoutError as error:
            note(str(error))
        await ctx.sleep("on", 0.05)
        return "reminded"

    async with backend.engine(flow, linger=linger) as engine:
        assert await backend.result(engine, await engine.trigger(flow)) == "reminded"
    passes.agree(least=1 if linger else 2)


async def test_P32_a_wait_that_timed_out_never_eats_the_next_signal(backend: Backend) -> None:
    timed_out, go_on = asyncio.Event(), asyncio.Event()

    async def between() -> None:
        timed_out.set()
        await go_on.wait()

    @workflow
    async def flow(ctx: Context) -> Any:
        with pytest.raises(WaitTimeout):
            await ctx.wait_for("answer", timeout=0.02)
        await ctx.step("between", between)
        return await ctx.wait_for("answer")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        if backend.clock is not None:
            idle = asyncio.ensure_future(backend.idle(engine))
            await timed_out.wait()
            await engine.signal(handle.run_id, "answer", 7)
            go_on.set()
            await idle
        else:
            await timed_out.wait()
            await engine.signal(handle.run_id, "answer", 7)
            go_on.set()
        assert await backend.result(engine, handle) == 7


async def test_P32_a_wait_that_the_runs_own_code_cancels_eats_nothing(backend: Backend) -> None:
    cancelled, go_on = asyncio.Event(), asyncio.Event()

    async def between() -> None:
        cancelled.set()
        await go_on.wait()

    @workflow
    async def flow(ctx: Context) -> list[Any]:
        first = asyncio.ensure_future(ctx.wait_for("answer"))
        await ctx.step("a step", asyncio.sleep, 0)
        first.cancel()
        await asyncio.wait([first])
        await ctx.step("between", between)
        return [await ctx.wait_for("answer"), await ctx.wait_for("answer")]

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await cancelled.wait()
        await engine.signal(handle.run_id, "answer", 1)
        await engine.signal(handle.run_id, "answer", 2)
        go_on.set()
        assert await backend.result(engine, handle) == [1, 2]


# -- several --------------------------------------------------------------------------------------


async def test_a_wait_for_several_names_takes_what_comes_first(backend: Backend, linger: float) -> None:
    passes = Passes()

    @workflow
    async def flow(ctx: Context) -> list[str]:
        note = passes.begin()
        return [note(await ctx.wait_for_any("decision", {"yes": int, "no": Approval}))[0] for _ in range(2)]

    async with backend.engine(flow, linger=linger) as engine:
        handle = await engine.trigger(flow)
        await waiting(backend, engine, handle.run_id)
        await engine.signal(handle.run_id, "no", {"by": "ann", "granted": False})
        await waiting(backend, engine, handle.run_id)
        await engine.signal(handle.run_id, "other", 1)
        await engine.signal(handle.run_id, "yes", 3)
        assert await backend.result(engine, handle) == ["no", "yes"]
    assert passes.agree(least=1)[:2] == [("no", Approval("ann", False)), ("yes", 3)]


async def test_waits_side_by_side_each_get_their_signal(backend: Backend, linger: float) -> None:
    @workflow
    async def flow(ctx: Context) -> list[int]:
        return list(await asyncio.gather(*(ctx.wait_for(f"part {n}", int) for n in range(5))))

    async with backend.engine(flow, linger=linger) as engine:
        handle = await engine.trigger(flow)
        for number in (3, 0, 4, 1, 2):
            await waiting(backend, engine, handle.run_id)
            await engine.signal(handle.run_id, f"part {number}", number)
        assert await backend.result(engine, handle) == [0, 1, 2, 3, 4]


async def test_a_signal_reaches_a_run_that_is_busy_beside_its_wait(backend: Backend) -> None:
    got, go_on = asyncio.Event(), asyncio.Event()

    @workflow
    async def flow(ctx: Context) -> str:
        async def answer() -> str:
            text: str = await ctx.wait_for("answer", str)
            got.set()
            return text

        text, _ = await asyncio.gather(answer(), ctx.step("long", go_on.wait))
        return text

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await engine.signal(handle.run_id, "answer", "now")
        async with asyncio.timeout(SOON):
            await got.wait()  # while the step is still running
        go_on.set()
        assert await backend.result(engine, handle) == "now"


@pytest.mark.parametrize("operation", ["wait", "event", "call"])
async def test_P14_except_exception_around_a_wait_does_not_swallow_the_park(backend: Backend, operation: str) -> None:
    swallowed: list[BaseException] = []

    @workflow
    async def child(ctx: Context) -> str:
        return await ctx.wait_for("answer", str)

    @workflow
    async def flow(ctx: Context) -> str:
        try:
            if operation == "wait":
                return await ctx.wait_for("answer", str)
            if operation == "event":
                return str(await ctx.wait_for_event("answer"))
            return await ctx.call("child", child)
        except Exception as error:
            swallowed.append(error)
            return "swallowed"

    async with backend.engine(flow, child, linger=0) as engine:
        handle = await engine.trigger(flow)
        await waiting(backend, engine, handle.run_id)
        if operation == "event":
            await engine.publish("answer", "it")
        elif operation == "wait":
            await engine.signal(handle.run_id, "answer", "it")
        else:
            [called] = (await engine.list_runs(parent=handle.run_id)).items
            await engine.signal(called.id, "answer", "it")
        assert await backend.result(engine, handle) == "it"
    assert not swallowed


async def test_P18_a_wait_that_was_a_step_pauses_the_run(backend: Backend) -> None:
    changed = False

    @workflow
    async def flow(ctx: Context) -> None:
        if changed:
            await ctx.wait_for("thing")
        else:
            await ctx.step("thing", asyncio.sleep, 0)
        await ctx.wait_for("go on")

    async with backend.engine(flow, linger=0) as engine:
        handle = await engine.trigger(flow)
        await waiting(backend, engine, handle.run_id)
        changed = True
        await engine.signal(handle.run_id, "go on")
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert NondeterminismError.__name__ in (run.reason or "")
        assert "step" in (run.reason or "")
        assert "wait" in (run.reason or "")


async def test_cancelling_a_run_that_waits_ends_it(backend: Backend) -> None:
    async with backend.engine(approved) as engine:
        handle = await engine.trigger(approved)
        await waiting(backend, engine, handle.run_id)
        await engine.cancel(handle.run_id)
        assert (await backend.until(engine, handle.run_id, State.CANCELLED)).ended_at is not None


async def test_a_paused_run_gets_the_signal_after_it_is_resumed(backend: Backend) -> None:
    async with backend.engine(approved) as engine:
        handle = await engine.trigger(approved)
        await waiting(backend, engine, handle.run_id)
        await engine.pause(handle.run_id)
        await engine.signal(handle.run_id, "approval", Approval("ann", True))
        assert (await engine.get_run(handle.run_id)).state is State.PAUSED
        await engine.resume(handle.run_id)
        assert await backend.result(engine, handle) == Approval("ann", True)


# -- signal with start ----------------------------------------------------------------------------


async def test_signal_with_start_makes_the_run_once_and_signals_it_each_time(backend: Backend) -> None:
    async with backend.engine(three) as engine:
        handles = [await engine.signal_with_start(three, None, "item", n, key="cart 1") for n in range(3)]
        assert {handle.run_id for handle in handles} == {handles[0].run_id}
        assert [handle.created for handle in handles] == [True, False, False]
        assert await backend.result(engine, handles[0]) == [0, 1, 2]
        with pytest.raises(RunFinished):
            await engine.signal_with_start(three, None, "item", 3, key="cart 1")


# -- events ---------------------------------------------------------------------------------------


async def test_an_event_reaches_every_run_that_waits_for_its_key(backend: Backend, linger: float) -> None:
    @workflow
    async def flow(ctx: Context, key: str) -> Any:
        return await ctx.wait_for_event("price", float, key=key)

    async with backend.engine(flow, linger=linger) as engine:
        handles = [await engine.trigger(flow, key) for key in ("tea", "tea", "tea", "rum")]
        for handle in handles:
            await waiting(backend, engine, handle.run_id)
        await engine.publish("price", 1.5, key="tea")
        await engine.publish("price", 9.0, key="rum")
        assert [await handle.result(SOON) for handle in handles] == [1.5, 1.5, 1.5, 9.0]


async def test_a_run_that_waits_a_little_late_still_gets_the_event_and_each_only_once(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[Any]:
        got = [await ctx.wait_for_event("tick"), await ctx.wait_for_event("tick")]
        with pytest.raises(WaitTimeout):
            await ctx.wait_for_event("tick", timeout=0.05)
        return got

    async with backend.engine(flow) as engine:
        await engine.publish("tick", 1)
        await engine.publish("tick", 2)
        assert await backend.result(engine, await engine.trigger(flow)) == [1, 2]


# -- the log --------------------------------------------------------------------------------------


async def test_P48_emit_is_logged_once_per_position_and_a_cursor_sees_each_once(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> None:
        for number in range(3):
            await ctx.emit("progress", number)
            await ctx.wait_for("on")

    async with backend.engine(flow, linger=0) as engine:
        handle = await engine.trigger(flow)
        seen: list[Any] = []
        cursor = None
        for number in range(1, 4):
            await waiting(backend, engine, handle.run_id)
            async with asyncio.timeout(SOON):
                while len(seen) < number:  # an entry is shown when no earlier transaction is open, of whatever database
                    page = await engine.events(after=cursor)
                    seen += [(entry.key, entry.data) for entry in page.items]
                    cursor = page.next_cursor
                    await asyncio.sleep(0.002)
            await engine.signal(handle.run_id, "on")
        await backend.result(engine, handle)
        assert not (await engine.events(after=cursor)).items
        everything = await engine.events()
    assert seen == [("progress", 0), ("progress#2", 1), ("progress#3", 2)]
    assert [(entry.key, entry.data) for entry in everything.items] == seen
    assert {entry.run_id for entry in everything.items} == {handle.run_id}


async def test_a_failed_run_keeps_its_signals_for_an_operators_retry(backend: Backend) -> None:
    broken = True

    @workflow
    async def flow(ctx: Context) -> Any:
        if broken:
            raise ValueError("not yet")
        return await ctx.wait_for("answer")

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow, delay=0.05)
        await engine.signal(handle.run_id, "answer", 5)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        broken = False
        await engine.retry(handle.run_id)
        assert await backend.result(engine, handle) == 5


async def test_P32_waits_that_are_cancelled_put_their_signals_back_in_the_order_of_arrival(backend: Backend) -> None:
    @workflow
    async def flow(ctx: Context) -> list[int]:
        waits = [asyncio.create_task(ctx.wait_for_any(f"wait {n}", {"answer": int})) for n in range(3)]
        for _ in range(3):  # less than it takes until the first one gets what it has taken
            await asyncio.sleep(0)
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)
        got = [wait.result()[1] for wait in waits if not wait.cancelled()]
        return got + [await ctx.wait_for("answer", int) for _ in waits[len(got) :]]

    async with backend.engine(flow).client() as client:
        handle = await client.trigger(flow)
        for number in range(3):
            await client.signal(handle.run_id, "answer", number)
    async with backend.engine(flow) as engine:
        assert await backend.result(engine, await engine.handle(flow, run_id=handle.run_id)) == [0, 1, 2]


async def test_P32_a_wait_that_is_unwound_leaves_its_signal_to_the_next_pass_and_not_to_another_wait(
    backend: Backend,
) -> None:
    taken = asyncio.Event()

    def takes(number: int) -> int:
        taken.set()
        return number

    @workflow
    async def flow(ctx: Context) -> list[Any]:
        async def number() -> int:
            _, got = await ctx.wait_for_any("number", {"answer": Annotated[int, AfterValidator(takes)]})
            return int(got)

        async def text() -> str:
            await ctx.step("after the other", asyncio.sleep, 0)
            _, got = await ctx.wait_for_any("text", {"answer": str})
            return str(got)

        return list(await asyncio.gather(number(), text()))

    engine = backend.engine(flow, drain_timeout=0)
    await engine.start()
    handle = await engine.trigger(flow)
    await waiting(backend, engine, handle.run_id)
    await engine.signal(handle.run_id, "answer", 7)
    await taken.wait()
    await engine.stop()
    async with backend.engine(flow) as engine:
        await engine.signal(handle.run_id, "answer", "seven")
        assert await backend.result(engine, await engine.handle(flow, run_id=handle.run_id)) == [7, "seven"]
        assert "signal refused" not in [entry.kind for entry in await engine.timeline(handle.run_id)]


async def test_an_operators_retry_from_within_a_wait_for_an_event_waits_for_the_next_one(backend: Backend) -> None:
    broken = True

    @workflow
    async def flow(ctx: Context) -> int:
        price = asyncio.create_task(ctx.wait_for_event("price", int))
        await asyncio.sleep(0)
        await ctx.step("after the call", asyncio.sleep, 0)
        value = await price
        if broken:
            raise ValueError("no")
        return value

    async with backend.engine(flow) as engine:
        handle = await engine.trigger(flow)
        await waiting(backend, engine, handle.run_id)
        await engine.publish("price", 1)
        with pytest.raises(RunFailed):
            await backend.result(engine, handle)
        broken = False
        await engine.retry(handle.run_id, from_step="after the call")
        await waiting(backend, engine, handle.run_id)
        await engine.publish("price", 2)
        assert await backend.result(engine, handle) == 2
