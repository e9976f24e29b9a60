"""Wrong arguments are refused at the call, and the message says what is right: nothing is accepted and ignored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    Context,
    Debounce,
    Engine,
    InvalidArgument,
    Queue,
    Rate,
    ResultTypeUnknown,
    WorkerOptions,
    workflow,
)
from durable.testing import MemoryStore
from tests.engine.backends import Backend


@dataclass
class Approval:
    by: str


async def one(number: int) -> int:
    return number


@workflow
async def child(ctx: Context, number: int) -> int:
    return number


INSIDE: dict[str, tuple[Callable[[Any], Any], type[Exception], str]] = {
    "a wait for a value": (lambda ctx: ctx.wait_for("a", Approval("x")), InvalidArgument, "wait 'a'"),
    "a wait with a timeout for a type": (lambda ctx: ctx.wait_for("a", 5), InvalidArgument, "wait 'a'"),
    "a wait for what is no data": (lambda ctx: ctx.wait_for("a", asyncio.Lock), InvalidArgument, "Lock"),
    "an event's key for a type": (lambda ctx: ctx.wait_for_event("a", "key"), InvalidArgument, "wait 'a'"),
    "any of a list": (lambda ctx: ctx.wait_for_any("a", ["x"]), InvalidArgument, "mapping of names to types"),
    "any of nothing": (lambda ctx: ctx.wait_for_any("a", {}), InvalidArgument, "mapping of names to types"),
    "a function as a child": (lambda ctx: ctx.call("a", one, 1), InvalidArgument, "use ctx.step"),
    "a workflow as a step": (lambda ctx: ctx.step("a", child, 1), InvalidArgument, "use ctx.call"),
    "a child with a key": (lambda ctx: ctx.call("a", child, 1, key="k"), TypeError, "takes no key; there are"),
    "a child's input by name": (lambda ctx: ctx.start("a", child, number=1), TypeError, "takes no number"),
    "a child with a version": (lambda ctx: ctx.call("a", child, 1, version="1"), InvalidArgument, "its own"),
    "a map that is swapped": (lambda ctx: ctx.map("a", [1], one), InvalidArgument, "fn must be"),
    "a map over a number": (lambda ctx: ctx.map("a", one, 5), InvalidArgument, "items must be"),
    "a map's unknown option": (lambda ctx: ctx.map("a", one, [1], workers=1), TypeError, "takes no workers"),
    "retries for children": (lambda ctx: ctx.map("a", child, [1], retry=3), TypeError, "takes no retry"),
    "child options for steps": (lambda ctx: ctx.map("a", one, [1], child={}), TypeError, "takes no child"),
    "a map's child with a key": (lambda ctx: ctx.map("a", child, [1], child={"key": "k"}), TypeError, "no key"),
    "a map's compensation": (lambda ctx: ctx.map("a", one, [1], compensate="x"), InvalidArgument, "compensate must"),
    "a retry without what it retries": (
        *(lambda ctx: ctx.map("a", one, [1], compensate_retry=3), InvalidArgument, "go with compensate"),
    ),
    "a step's compensation": (lambda ctx: ctx.step("a", one, 1, compensate="x"), InvalidArgument, "compensate must"),
    "a transaction's": (lambda ctx: ctx.transaction("a", one, compensate="x"), InvalidArgument, "compensate must"),
    "a rollback": (lambda ctx: ctx.on_rollback("a", "x"), InvalidArgument, "fn must be a function"),
    "an emitted object": (lambda ctx: ctx.emit("a", Approval("x")), ResultTypeUnknown, "emit plain data"),
}


@pytest.mark.parametrize("case", INSIDE)
async def test_a_wrong_argument_of_an_operation_is_refused_at_the_call(case: str) -> None:
    call, error, message = INSIDE[case]

    @workflow
    async def flow(ctx: Context) -> str:
        with pytest.raises(error, match=message):
            await call(ctx)
        return "refused"

    async with Engine(MemoryStore(), workflows=[flow, child]) as engine:
        handle = await engine.trigger(flow)
        assert await handle.result(timeout=20) == "refused"
        assert not (await engine.list_runs(parent=handle.run_id)).items


@pytest.mark.parametrize("method", ["trigger", "trigger_many", "signal_with_start"])
async def test_an_option_that_there_is_not_is_refused(method: str) -> None:
    async with Engine(MemoryStore(), workflows=[child]).client() as engine:
        arguments: tuple[Any, ...] = ([1],) if method == "trigger_many" else (1, "name")[: 1 + (method != "trigger")]
        key = {"key": "k"} if method == "signal_with_start" else {}
        with pytest.raises(TypeError, match=r"takes no queu; there are .*queue"):
            await getattr(engine, method)(child, *arguments, queu="slow", **key)
        assert not (await engine.list_runs()).items


# -- outside of runs --------------------------------------------------------------------------------

OUTSIDE: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a function as a workflow": (lambda engine: engine.trigger(one, 1), "one.* is not a workflow: decorate it with"),
    "a function's handle": (lambda engine: engine.handle(one, key="k"), "one.* is not a workflow: decorate it with"),
    "a policy without a key": (
        *(lambda engine: engine.trigger(child, 1, concurrency_policy="queue"), "goes with concurrency_key"),
    ),
    "a policy with no key": (
        lambda engine: engine.trigger(child, 1, concurrency_key=None, concurrency_policy="reject"),
        "goes with concurrency_key",
    ),
    "a debounce key": (lambda engine: engine.trigger(child, 1, debounce="k"), r"such as Debounce\(.*, not str"),
    "a negative debounce": (
        *(lambda engine: engine.trigger(child, 1, debounce=Debounce("k", timedelta(-1))), "debounce delay must be"),
    ),
    "one input for many": (lambda engine: engine.trigger_many(child, 1), "inputs must be a list.*, not int"),
    "one key for many": (lambda engine: engine.trigger_many(child, [1], keys=1), "keys must be a list.*, not int"),
    "a queue's name as its limits": (lambda engine: engine.set_limits("x"), r"such as Queue\(.*, not str"),
    "a list of queues": (lambda engine: engine.set_limits([Queue("x")]), r"such as Queue\(.*, not list"),
    "a number as a rate": (
        *(
            lambda engine: engine.set_limits(Queue("a", rate=_any(10))),
            r"'a': rate must be a Rate, such as Rate\(.*, not int",
        ),
    ),
    "a number as a key's rate": (
        *(lambda engine: engine.set_limits(Queue("a", rate_per_key=_any(1))), "'a': rate_per_key must be a Rate"),
    ),
    "a rate of no time": (
        *(lambda engine: engine.set_limits(Queue("a", rate=Rate(1, timedelta(0)))), "per must be more than 0 s"),
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
async def test_a_wrong_argument_of_a_client_is_refused_at_the_call(case: str) -> None:
    call, message = OUTSIDE[case]
    async with Engine(MemoryStore(), workflows=[child]).client() as engine:
        with pytest.raises(InvalidArgument, match=message):
            await call(engine)
        assert not (await engine.list_runs()).items
        assert not await engine.limits()


DECLARED: dict[str, tuple[Callable[[], Any], str]] = {
    "a worker's only queue": (lambda: WorkerOptions(queues="emails"), r"such as \['mail'\], not str"),
    "a worker's number of queues": (lambda: WorkerOptions(queues=_any(5)), r"such as \['mail'\], not int"),
    "names as limits": (lambda: Engine(MemoryStore(), queues=_any(["a"])), r"such as Queue\(.*, not str"),
    "one queue's limits": (
        lambda: Engine(MemoryStore(), queues=_any(Queue("a"))),
        "a list of Queue objects, not Queue",
    ),
    "names of signals": (lambda: workflow(signals=_any(["a"]))(_waits), "a mapping of names to types.*, not list"),
    "a value as a signal's type": (lambda: workflow(signals={"a": 5})(_waits), "'a' must have the type of its payload"),
}


@pytest.mark.parametrize("case", DECLARED)
def test_a_wrong_declaration_is_refused(case: str) -> None:
    declare, message = DECLARED[case]
    with pytest.raises(InvalidArgument, match=message):
        declare()


def test_a_workflow_may_declare_a_signal_without_a_payload() -> None:
    assert workflow(signals={"a": None, "b": Any, "c": Approval})(_waits).signals.keys() == {"a", "b", "c"}


@pytest.mark.parametrize("after", ["junk", "", "-1", "1-", "1-1-1", "9" * 19, "9" * 20 + "-1", "1-" + "9" * 10, "²", 7])
async def test_what_is_no_cursor_of_the_log_is_refused(backend: Backend, after: Any) -> None:
    async with backend.engine().client() as engine:
        with pytest.raises(InvalidArgument, match="cursor"):
            await engine.events(after=after)


PAYLOADS: dict[str, tuple[Callable[[Any, str], Any], str]] = {
    "a signal": (lambda engine, run: engine.signal(run, "a", Approval("x")), r"send plain data, .*@workflow\(signals"),
    "a signal that is declared as anything": (
        *(lambda engine, run: engine.signal(run, "any", Approval("x")), "send plain data"),
    ),
    "a signal with a start": (
        lambda engine, _: engine.signal_with_start("waits", None, "a", Approval("x"), key="k"),
        "send plain data",
    ),
    "an event": (lambda engine, _: engine.publish("a", Approval("x")), "publish plain data, such as"),
    "an input by name": (
        lambda engine, _: engine.trigger("waits", Approval("x")),
        "give plain data, .*workflow itself",
    ),
}


@pytest.mark.parametrize("case", PAYLOADS)
async def test_a_payload_of_no_known_type_is_refused_with_what_its_sender_can_do(case: str) -> None:
    send, message = PAYLOADS[case]
    store = MemoryStore()
    flow = workflow(name="waits", signals={"any": Any})(_waits)
    async with Engine(store, workflows=[flow]).client() as engine, Engine(store).client() as nameless:
        run = (await engine.trigger(flow)).run_id
        by_name = case in ("an input by name", "a signal with a start")
        with pytest.raises(ResultTypeUnknown, match=message) as refused:
            await send(nameless if by_name else engine, run)
        assert "annotate" not in str(refused.value)
        assert len((await engine.list_runs()).items) == 1


# -- durations --------------------------------------------------------------------------------------


async def test_the_time_of_a_rate_is_given_in_seconds_or_as_a_timedelta() -> None:
    minute = Queue("a", rate=Rate(5, timedelta(minutes=1)), rate_per_key=Rate(1, per=timedelta(milliseconds=1)))
    assert minute == Queue("a", rate=Rate(5, 60.0), rate_per_key=Rate(1, 0.001))
    assert minute.rate is not None
    assert minute.rate.interval == 12_000_000
    async with Engine(MemoryStore(), queues=[minute]).client() as engine:
        assert await engine.limits() == [minute]
        await engine.set_limits(Queue("a", rate=Rate(5, timedelta(hours=1))))
        assert await engine.limits() == [Queue("a", rate=Rate(5, 3600.0))]


async def test_the_times_of_debouncing_are_given_in_seconds_or_as_a_timedelta() -> None:
    debounce = Debounce("k", timedelta(hours=2), timedelta(hours=3))
    assert debounce == Debounce("k", 7200.0, max_delay=10_800.0)
    assert Debounce("k", timedelta(seconds=1)) == Debounce("k", 1.0, None)
    async with Engine(MemoryStore(), workflows=[child]).client() as engine:
        run = await engine.get_run((await engine.trigger(child, 1, debounce=debounce)).run_id)
        assert run.ready_at is not None
        assert run.ready_at - run.created_at == timedelta(hours=2)


def _any(value: Any) -> Any:
    return value


async def _waits(ctx: Context) -> None:
    await ctx.wait_for("a", Any)
