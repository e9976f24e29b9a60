"""Wrong arguments are refused at the call, and the message says what is right: nothing is accepted and ignored."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from durable import Context, Engine, InvalidArgument, ResultTypeUnknown, workflow
from durable.testing import MemoryStore


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
