"""Exceptions as text: whole, bounded, storable, without local variables."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import failures
from durable.codec import PLAIN
from durable.errors import PayloadError, StepFailed
from durable.failures import capture, from_json, to_json, with_compensations
from durable.model import Failure

anything = st.text(st.characters(exclude_categories=()))


class CardError(ValueError):
    pass


class Loud(Exception):
    """Its text is made by a method that fails."""

    def __str__(self) -> str:
        raise RuntimeError("broken __str__")


def raised(error: BaseException) -> BaseException:
    secret = "local variable"
    try:
        assert secret
        raise error
    except BaseException as caught:
        return caught


def test_a_failure_tells_type_message_traceback_and_classes() -> None:
    failure = capture(raised(CardError("no such card")))
    assert failure.error_type == f"{__name__}.CardError"
    assert failure.message == "no such card"
    assert failure.summary == "CardError: no such card"
    assert failure.traceback.startswith("Traceback (most recent call last):\n")
    assert "in raised\n    raise error\n" in failure.traceback
    assert failure.traceback.endswith("CardError: no such card\n")
    assert "local variable" not in failure.traceback
    assert failure.step is None


def test_built_in_types_have_their_short_name() -> None:
    assert capture(ValueError("x")).error_type == "ValueError"


def test_is_a_asks_the_recorded_class_names() -> None:
    failed = StepFailed("charge", 1, from_json(to_json(capture(CardError("x")))))
    for kind in (CardError, ValueError, Exception, BaseException):
        assert failed.is_a(kind)
    for kind in (TypeError, OSError):
        assert not failed.is_a(kind)


def test_causes_contexts_notes_and_groups_are_in_the_traceback() -> None:
    first = raised(KeyError("the cause"))
    second = CardError("the effect")
    second.add_note("order 17")
    second.__cause__ = first
    text = capture(raised(ExceptionGroup("several", [cast("Exception", raised(second)), OSError("other")]))).traceback
    for part in (
        "KeyError: 'the cause'",
        "direct cause",
        "CardError: the effect",
        "order 17",
        "several",
        "OSError: other",
    ):
        assert part in text


async def carried(fn: Any, *args: Any) -> BaseException:
    with ThreadPoolExecutor(1) as pool:
        try:
            await asyncio.get_running_loop().run_in_executor(pool, fn, *args)
        except Exception as error:
            return error
    raise AssertionError("nothing was raised")


async def test_the_traceback_starts_at_the_users_code() -> None:
    def step() -> None:
        PLAIN.encode(object(), "x")

    text = capture(await carried(step)).traceback
    frames = [line for line in text.splitlines() if line.startswith("  File ")]
    # The first frame that is not ours is the test's own `carried`; ours below the user's stay.
    assert "in carried" in frames[0]
    assert any("durable/codec.py" in line for line in frames)
    with pytest.raises(PayloadError) as caught:
        PLAIN.encode(object(), "x")
    ours = caught.value.with_traceback(caught.tb.tb_next)
    assert "  File " not in capture(ours).traceback


def test_a_failed_step_is_named_and_brings_its_own_traceback() -> None:
    inner = capture(raised(CardError("no such card")))
    failed = StepFailed("charge#2", 3, inner)
    failure = capture(raised(failed))
    assert failure.step == "charge#2"
    assert "no such card" in failure.message
    assert failure.traceback.count("Traceback (most recent call last):") == 2
    assert inner.traceback in failure.traceback
    translated = RuntimeError("order failed")
    translated.__cause__ = failed
    assert capture(translated).step == "charge#2"
    assert capture(ExceptionGroup("", [OSError(), failed])).step == "charge#2"
    handled = RuntimeError("something else")
    handled.__context__ = failed
    assert capture(handled).step is None


def circular() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


def many_causes() -> BaseException:
    error = ValueError("x" * 1000)
    for _ in range(300):
        following = ValueError("x" * 1000)
        following.__cause__ = error
        error = following
    return error


def recursing() -> BaseException:
    def even(n: int) -> Any:
        return odd(n + 1)

    def odd(n: int) -> Any:
        return even(n + 1)

    try:
        even(0)
    except RecursionError as error:
        return error
    raise AssertionError


def with_notes(notes: Any) -> BaseException:
    error = ValueError("x")
    error.__notes__ = notes
    return error


HOSTILE: dict[str, Any] = {
    "str raises": Loud,
    "nul": lambda: ValueError("a\0b"),
    "surrogate": lambda: ValueError("a\ud800b"),
    "10 MB": lambda: ValueError("x" * 10_000_000),
    "10 MB of control characters": lambda: ValueError("\x01" * 10_000_000),
    "10 MB of emoji": lambda: ValueError("\U0001f600" * 2_500_000),
    "long words": lambda: ValueError("://" + "a" * 1_000_000),
    "long name": lambda: type("E" * 100_000, (ValueError,), {})("x"),
    "surrogate name": lambda: renamed("E\udcff")("x"),
    "strange module": lambda: type("E", (ValueError,), {"__module__": None})("x"),
    "many classes": lambda: many_classes()("x"),
    "circular causes": circular,
    "many causes": many_causes,
    "recursion": recursing,
    "notes": lambda: with_notes(["\ud800" * 100_000]),
    "strange notes": lambda: with_notes(5),
    "no text": ValueError,
    "step with huge failure": lambda: StepFailed("k" * 500, 1, Failure("E", "m" * 60_000, "t" * 60_000)),
    "exit": lambda: SystemExit(3),
}


def many_classes() -> Any:
    kind: Any = ValueError
    for n in range(100):
        kind = type(f"E{n}" + "x" * 400, (kind,), {})
    return kind


def renamed(name: str) -> Any:
    kind: Any = type("E", (ValueError,), {})
    kind.__qualname__ = name
    return kind


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_P50_any_exception_becomes_a_bounded_storable_text(make: Any) -> None:
    error = raised(make())
    failure = capture(error)
    text = to_json(failure)
    assert len(text.encode()) <= 64_000
    assert "\\u0000" not in text
    assert from_json(text) == failure
    assert failure.error_type
    assert failure.classes
    assert failure.traceback


def test_what_is_cut_says_so_and_keeps_the_end_of_the_traceback() -> None:
    failure = capture(raised(ValueError("start" + "x" * 1_000_000)))
    assert failure.message.startswith("start")
    assert "characters left out" in failure.message
    text = capture(many_causes()).traceback
    assert "characters left out" in text
    assert text.startswith("ValueError")
    assert text.endswith("x\n")


def test_a_broken_str_does_not_hide_the_type() -> None:
    failure = capture(raised(Loud()))
    assert failure.error_type.endswith("Loud")
    assert failure.message == "<no message: its __str__ raised RuntimeError>"
    assert "in raised" in failure.traceback


def test_P55_a_failure_shows_no_password_of_a_database_url() -> None:
    failure = capture(raised(OSError("cannot reach postgresql://app:hunter2@db/app")))
    assert "hunter2" not in to_json(failure)
    assert "postgresql://app:***@db/app" in failure.message


def test_P55_a_cut_does_not_leave_half_a_password() -> None:
    for before in range(11_900, 12_000):
        text = "x" * before + " postgresql://app:hunter2hunter2@db/app " + "y" * 12_000
        assert "hunt" not in to_json(capture(ValueError(text)))


def test_a_long_word_does_not_stop_the_event_loop() -> None:
    """A quadratic pattern for URLs took 4 s for it. CPU time: how busy the machine is does not count."""
    before = time.process_time()
    capture(ValueError("a" * 100_000 + "://" + "a:" * 50_000))
    assert time.process_time() - before < 1


@given(anything, anything)
def test_P50_any_text_is_stored(message: str, note: str) -> None:
    error = ValueError(message)
    error.add_note(note)
    failure = capture(error)
    assert from_json(to_json(failure)) == failure
    if message.isprintable() and "://" not in message and "password" not in message.lower():
        assert failure.message == message


def test_compensations_are_added() -> None:
    failure = with_compensations(capture(ValueError("x")), ["a", "b#2"], ["c"])
    assert from_json(to_json(failure)) == failure
    assert (failure.undone, failure.not_undone) == (("a", "b#2"), ("c",))


def test_json_has_no_empty_fields_and_unknown_ones_are_left_out() -> None:
    text = to_json(Failure("E", "m"))
    assert json.loads(text) == {"error_type": "E", "message": "m"}
    assert from_json('{"error_type": "E", "message": "m", "later": 1}') == Failure("E", "m")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        '{"error_type": "E"}',
        '{"error_type": 5, "message": "m"}',
        '{"error_type": "E", "message": null}',
        '{"error_type": "E", "message": "m", "classes": "C"}',
        '{"error_type": "E", "message": "m", "classes": ["C", 5]}',
        '{"error_type": "E", "message": "m", "step": 5}',
        '{"error_type": "E", "message": "m", "traceback": []}',
        "[" * 50_000,
        '"\\ud800"',
    ],
)
def test_P54_stored_garbage_is_a_payload_error(text: str | None) -> None:
    with pytest.raises(PayloadError, match="the stored failure"):
        from_json(text)


def test_formatting_that_fails_leaves_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise TypeError("broken")

    monkeypatch.setattr(traceback.TracebackException, "from_exception", broken)
    failure = failures.capture(ValueError("x"))
    assert failure.message == "x"
    assert failure.traceback == "<no traceback: formatting it raised TypeError>"
