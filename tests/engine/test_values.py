"""Values: equal in value and type on every pass; what cannot be stored, and what can no longer be read."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from durable import (
    Context,
    NotSerializable,
    PayloadError,
    PayloadTooLarge,
    ResultTypeUnknown,
    Retry,
    RunFailed,
    RunHandle,
    State,
    StepFailed,
    workflow,
)
from tests.engine.backends import Backend, Passes
from tests.engine.test_replay import EVICT, OUTLIVES_A_STOP


class Colour(enum.Enum):
    RED = "red"


class Money(BaseModel):
    amount: Decimal
    currency: str = "EUR"


@dataclasses.dataclass(frozen=True)
class Order:
    id: str
    prices: tuple[Money, ...]
    placed: datetime
    colour: Colour | None = None


ORDER = Order("ord_1", (Money(amount=Decimal("1.10")),), datetime(2026, 3, 1, 12, tzinfo=UTC), Colour.RED)


def returns(annotation: Any, value: Any) -> Callable[[], Any]:
    def fn() -> Any:
        return value

    fn.__annotations__["return"] = annotation
    return fn


VALUES: list[tuple[Any, Any]] = [
    (None, None),
    (bool, False),
    (int, 2**80),
    (float, 0.1),
    (str, "ünï \N{PILE OF POO} \0"),
    (bytes, b"\xff\x00"),
    (Decimal, Decimal("1.10")),
    (datetime, datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)),
    (date, date(2026, 3, 1)),
    (timedelta, timedelta(days=3, microseconds=1)),
    (UUID, UUID(int=7)),
    (Colour, Colour.RED),
    (Money, Money(amount=Decimal("2.50"), currency="USD")),
    (Order, ORDER),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (list[Money], [Money(amount=Decimal(1))]),
    (dict[str, Order], {"one": ORDER}),
    (Money | None, None),
    (int | str, "5"),
    (Any, {"plain": [1, None, "x"]}),
]


async def test_P16_values_are_equal_in_value_and_type_on_every_pass(backend: Backend) -> None:
    passes = Passes()

    @workflow
    async def values(ctx: Context) -> Order:
        note = passes.begin()
        for annotation, value in VALUES:
            note(await ctx.step("value", returns(annotation, value)))
        note(await ctx.step("declared here", lambda: ORDER, returns=Order))
        await ctx.sleep("nap", EVICT)
        return ORDER

    result = await backend.run(values, linger=0)
    seen = passes.agree()
    expected = [value for _, value in VALUES] + [ORDER]
    assert seen == expected
    assert [type(value) for value in seen] == [type(value) for value in expected]
    assert result == ORDER
    assert type(result.prices) is tuple


async def test_P16_an_input_arrives_as_its_type(backend: Backend) -> None:
    @workflow
    async def takes(ctx: Context, order: Order) -> bool:
        return order == ORDER and type(order.prices) is tuple

    assert await backend.run(takes, ORDER, linger=0) is True


async def test_P16_the_workflow_sees_what_was_stored_and_not_what_the_step_keeps(backend: Backend) -> None:
    """Else a list that the step appends to later would differ after a crash."""
    kept: list[int] = [1]

    async def leaks() -> list[int]:
        return kept

    @workflow
    async def mutates(ctx: Context) -> bool:
        found = await ctx.step("leaks", leaks)
        return found is not kept

    assert await backend.run(mutates) is True


@pytest.mark.parametrize(
    ("value", "annotation", "error"),
    [
        (float("nan"), float, NotSerializable),
        ("\ud800", str, NotSerializable),
        (object(), Any, ResultTypeUnknown),
        (datetime(2026, 1, 1, tzinfo=UTC), Any, ResultTypeUnknown),
        ({1: "a"}, Any, ResultTypeUnknown),
        ("x" * (5 << 20), str, PayloadTooLarge),
        ("five", int, NotSerializable),
    ],
)
async def test_P17_a_result_that_cannot_be_stored_fails_its_step_on_the_first_attempt_and_is_undone(
    backend: Backend, value: Any, annotation: Any, error: type[PayloadError]
) -> None:
    calls: list[str] = []
    passes = Passes()

    def charge() -> Any:
        calls.append("charge")
        return value

    charge.__annotations__["return"] = annotation

    def refund(result: Any) -> None:
        calls.append("refund")
        assert result is value

    @workflow
    async def unstorable(ctx: Context) -> str:
        note = passes.begin()
        try:
            await ctx.step("charge", charge, compensate=refund, retry=3)
        except StepFailed as failed:
            note((failed.step, failed.attempts, failed.is_a(error), failed.is_a(PayloadError), failed.message))
            note(failed.__cause__)
        await ctx.sleep("nap", EVICT)
        return "went on"

    async with backend.engine(unstorable, linger=0) as engine:
        handle = await engine.trigger(unstorable)
        assert await backend.result(engine, handle) == "went on"
        undone = [entry.name for entry in await engine.timeline(handle.run_id) if entry.kind == "undo completed"]
    (step, attempts, is_a, is_payload, message), cause = passes.agree()
    assert (step, attempts, is_a, is_payload, cause) == ("charge", 1, True, True, None)
    assert "'charge'" in message
    assert calls == ["charge", "refund"]
    assert undone == ["charge"]


async def test_P17_an_unstorable_step_that_fails_its_run_is_undone_once_and_the_others_too(backend: Backend) -> None:
    calls: list[str] = []

    async def reserve() -> int:
        return 1

    def undo(name: str) -> Callable[[Any], None]:
        return lambda _: calls.append(name)

    @workflow
    async def unstorable(ctx: Context) -> None:
        await ctx.step("reserve", reserve, compensate=undo("reserve"))
        await ctx.step("charge", object, compensate=undo("charge"))

    async with backend.engine(unstorable) as engine:
        run = await backend.ended(engine, await engine.trigger(unstorable))
    assert run.state is State.COMPENSATED
    assert calls == ["charge", "reserve"]


async def test_P17_a_run_whose_result_cannot_be_stored_fails_and_says_so(backend: Backend) -> None:
    @workflow
    async def unstorable(ctx: Context) -> Any:
        return object()

    with pytest.raises(RunFailed, match="ResultTypeUnknown: the result of workflow 'unstorable'"):
        await backend.run(unstorable)


async def test_step_failed_tells_the_same_on_every_pass(backend: Backend) -> None:
    passes = Passes()

    class CardRefused(ConnectionError):
        pass

    async def refuses() -> None:
        raise CardRefused("no such card")

    @workflow
    async def catches(ctx: Context) -> None:
        note = passes.begin()
        try:
            await ctx.step("charge", refuses, retry=Retry(2, initial_delay=0.01))
        except StepFailed as failed:
            note((failed.step, failed.attempts, failed.error_type, failed.message, failed.traceback, str(failed)))
            note([failed.is_a(kind) for kind in (CardRefused, ConnectionError, OSError, Exception, ValueError)])
            note(failed.__cause__)
        await ctx.sleep("nap", EVICT)

    await backend.run(catches, linger=0)
    (step, attempts, error_type, message, traceback, text), classes, cause = passes.agree()
    assert (step, attempts, message, cause) == ("charge", 2, "no such card", None)
    assert error_type.endswith("CardRefused")
    assert "raise CardRefused" in traceback
    assert text == "step 'charge' failed after 2 attempts: CardRefused: no such card"
    assert classes == [True, True, True, True, False]


async def test_P54_a_recorded_result_that_no_longer_decodes_pauses_and_a_deploy_and_resume_finish_the_run(
    backend: Backend,
) -> None:
    calls: list[str] = []
    asleep = asyncio.Event()

    def old() -> dict[str, str]:
        calls.append("charge")
        return {"amount": "a lot"}

    def fixed() -> dict[str, str]:
        raise AssertionError("it is recorded")

    def new() -> Money:
        raise AssertionError("it is recorded")

    def refund(_: object) -> None:
        calls.append("refund")

    def version(fn: Callable[[], Any]) -> Any:
        @workflow(name="pays")
        async def pays(ctx: Context) -> str:
            try:
                paid = await ctx.step("charge", fn, compensate=refund)
                asleep.set()
                await ctx.sleep("cooling", OUTLIVES_A_STOP)
            except Exception:
                calls.append("swallowed")
                raise
            return f"paid {paid['amount']}"

        return pays

    first, broken, repaired = version(old), version(new), version(fixed)
    async with backend.engine(first) as engine:
        handle = await engine.trigger(first)
        await asleep.wait()
    async with backend.engine(broken) as engine:
        run = await backend.until(engine, handle.run_id, State.PAUSED)
        assert run.reason is not None
        assert "recorded result of step 'charge' does not fit" in run.reason
        assert run.error is None
    async with backend.engine(repaired) as engine:
        await engine.resume(handle.run_id)
        again: Any = await engine.handle(repaired, run_id=handle.run_id)
        assert await backend.result(engine, again) == "paid a lot"
        assert (await engine.get_run(handle.run_id)).reason is None
    assert calls == ["charge"]


async def test_P54_an_input_that_no_longer_decodes_pauses_the_run(backend: Backend) -> None:
    @workflow(name="takes")
    async def before(ctx: Context, n: str) -> str:
        return n

    @workflow(name="takes")
    async def after(ctx: Context, n: int) -> str:
        return str(n)

    async with backend.engine(before).client() as engine:
        handle = await engine.trigger(before, "five")
    async with backend.engine(after) as engine:
        run = await backend.until(engine, handle.run_id, State.PAUSED)
    assert run.reason is not None
    assert "input of workflow 'takes' does not fit int" in run.reason


async def test_P54_an_input_that_is_missing_pauses_the_run(backend: Backend) -> None:
    """A client that knows no workflows cannot know what they take."""

    @workflow
    async def takes(ctx: Context, n: int) -> str:
        return repr(n)

    async with backend.engine().client() as engine:
        handle: RunHandle[Any] = await engine.trigger("takes")
    async with backend.engine(takes) as engine:
        run = await backend.until(engine, handle.run_id, State.PAUSED)
    assert run.reason is not None
    assert "input" in run.reason
