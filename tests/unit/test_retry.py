"""The retry policy: delays as documented, and what is tried again."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.durations import MAX_SECONDS, seconds
from durable.errors import InvalidArgument, NonRetryable, NotSerializable, RetryAfter
from durable.retry import Retry, as_retry


def delays(retry: Retry, unit: float = 0.0) -> list[float]:
    return [retry.delay_before(attempt, unit) for attempt in range(2, 8)]


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        (Retry(), [1, 2, 4, 8, 16, 30]),
        (Retry(initial_delay=0.5, factor=3), [0.5, 1.5, 4.5, 13.5, 30, 30]),
        (Retry(backoff="linear", initial_delay=10), [10, 20, 30, 30, 30, 30]),
        (Retry(backoff="fixed", initial_delay=2.5), [2.5] * 6),
        (Retry(initial_delay=0), [0] * 6),
        (Retry(initial_delay=30), [30] * 6),
        (Retry(initial_delay=timedelta(minutes=2), max_delay=timedelta(minutes=5)), [120, 240, 300, 300, 300, 300]),
    ],
    ids=repr,
)
def test_P21_delays_are_the_documented_ones_including_the_first(retry: Retry, expected: list[float]) -> None:
    assert delays(retry) == expected


def test_jitter_takes_away_up_to_its_fraction() -> None:
    retry = Retry(initial_delay=10, jitter=0.2)
    assert retry.delay_before(2, 0.0) == 10
    assert retry.delay_before(2, 0.5) == pytest.approx(9)
    assert retry.delay_before(2, 0.999) == pytest.approx(8, abs=0.01)
    assert Retry(initial_delay=10, jitter=1.0).delay_before(2, 0.75) == pytest.approx(2.5)


@pytest.mark.parametrize("factor", [2.0, 1e308])
@pytest.mark.parametrize("attempt", [1_000, 5_000, 10**9])
def test_a_late_attempt_waits_no_longer_than_the_longest_delay(factor: float, attempt: int) -> None:
    assert Retry(max_attempts=2**40, factor=factor).delay_before(attempt, 0.0) == 30
    assert Retry(max_attempts=2**40, factor=factor, initial_delay=0).delay_before(attempt, 0.0) == 0


@given(
    st.sampled_from(["exponential", "linear", "fixed"]),
    st.floats(0, 1e6),
    st.floats(0, 1e6),
    st.floats(1, 1e9),
    st.floats(0, 1),
    st.integers(2, 10_000),
    st.floats(0, 1, exclude_max=True),
)
def test_P21_every_delay_is_a_duration_within_its_bounds(
    backoff: Any, one: float, other: float, factor: float, jitter: float, attempt: int, unit: float
) -> None:
    retry = Retry(2, backoff, min(one, other), max(one, other), factor, jitter)
    delay = retry.delay_before(attempt, unit)
    assert 0 <= delay <= max(one, other)
    assert retry.delay_before(2, 0.0) == min(one, other)
    assert retry.delay_before(attempt, 0.0) <= retry.delay_before(attempt + 1, 0.0)


def test_P21_any_exception_is_tried_again_unless_it_is_declared_fatal() -> None:
    retry = Retry(max_attempts=3)
    for error in (ValueError(), KeyError(), ExceptionGroup("", [OSError()]), TimeoutError(), RetryAfter(1)):
        assert retry.wants_retry(error, 1)
        assert retry.wants_retry(error, 2)
        assert not retry.wants_retry(error, 3)
        assert not retry.wants_retry(error, 4)
    assert not Retry(max_attempts=1).wants_retry(ValueError(), 1)
    assert not retry.wants_retry(KeyboardInterrupt(), 1)


class Declined(NonRetryable):
    pass


def test_what_ends_the_attempts() -> None:
    retry = Retry(on=(OSError, NonRetryable, NotSerializable), unless=(FileNotFoundError,))
    assert retry.wants_retry(OSError(), 1)
    assert not retry.wants_retry(FileNotFoundError(), 1)
    assert not retry.wants_retry(ValueError(), 1)
    assert not retry.wants_retry(Declined(), 1)
    assert not retry.wants_retry(NotSerializable(), 1)
    assert not Retry(unless=Exception).wants_retry(OSError(), 1)
    assert Retry(on=OSError).wants_retry(ConnectionError(), 1)


def test_retry_after_asks_for_an_attempt_and_says_when() -> None:
    retry = Retry(on=OSError, max_attempts=3)
    assert retry.wants_retry(RetryAfter(5), 1)
    assert not retry.wants_retry(RetryAfter(5), 3)
    assert not Retry(unless=RetryAfter).wants_retry(RetryAfter(5), 1)
    assert retry.delay_after(RetryAfter(500), 1, 0.9) == 500
    assert retry.delay_after(RetryAfter(timedelta(minutes=1)), 1, 0.9) == 60
    assert retry.delay_after(RetryAfter(0), 1, 0.9) == 0
    assert retry.delay_after(OSError(), 1, 0.0) == 1
    assert retry.delay_after(OSError(), 2, 0.0) == 2


def test_a_retry_after_without_sense_leaves_a_usable_delay() -> None:
    retry = Retry()
    assert retry.delay_after(RetryAfter(-5), 1, 0.0) == 0
    assert retry.delay_after(RetryAfter(math.inf), 1, 0.0) == MAX_SECONDS
    assert retry.delay_after(RetryAfter(math.nan), 2, 0.0) == 2


def test_as_retry() -> None:
    policy = Retry(5)
    assert as_retry(None) is None
    assert as_retry(policy) is policy
    assert as_retry(4) == Retry(max_attempts=4)
    for wrong in (0, -1, True, False, 2.0, "3", Retry):
        with pytest.raises(InvalidArgument, match="attempts"):
            as_retry(cast("Any", wrong))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_attempts": 0}, "at least 1"),
        ({"max_attempts": True}, "must be an int, not bool"),
        ({"max_attempts": 2.0}, "must be an int, not float"),
        ({"backoff": "quadratic"}, "exponential, linear, fixed, not 'quadratic'"),
        ({"backoff": None}, "exponential, linear, fixed"),
        ({"backoff": ["fixed"]}, "exponential, linear, fixed"),
        ({"initial_delay": -1}, "initial_delay must be between"),
        ({"initial_delay": True}, "initial_delay must be .* not bool"),
        ({"initial_delay": math.nan}, "initial_delay .* NaN"),
        ({"initial_delay": 60}, r"initial_delay \(60 s\) is above max_delay \(30 s\)"),
        ({"max_delay": math.inf}, "max_delay must be between"),
        ({"max_delay": timedelta(days=-1)}, "max_delay must be between"),
        ({"max_delay": "30"}, "max_delay must be"),
        ({"factor": 0.5}, "factor must be at least 1, not 0.5"),
        ({"factor": math.nan}, "factor must be at least 1"),
        ({"factor": math.inf}, "factor must be at least 1"),
        ({"factor": 10**400}, "factor is too large"),
        ({"factor": True}, "factor must be a number, not bool"),
        ({"jitter": 1.1}, "jitter must be between 0 and 1"),
        ({"jitter": -0.1}, "jitter must be between 0 and 1"),
        ({"jitter": math.nan}, "jitter must be between 0 and 1"),
        ({"jitter": None}, "jitter must be a number"),
        ({"on": "OSError"}, "on must be an exception class"),
        ({"on": [OSError]}, "on must be an exception class"),
        ({"on": OSError()}, "on must be an exception class"),
        ({"unless": (OSError, int)}, "unless must be an exception class"),
    ],
    ids=str,
)
def test_every_argument_is_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Retry(**arguments)


def test_a_policy_is_a_value() -> None:
    assert Retry(initial_delay=timedelta(seconds=1)) == Retry(initial_delay=1.0)
    assert hash(Retry()) == hash(Retry())
    assert Retry(initial_delay=timedelta(seconds=2)).initial_delay == 2.0
    with pytest.raises(FrozenInstanceError):
        cast("Any", Retry()).max_attempts = 5


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0.0), (1.5, 1.5), (timedelta(milliseconds=250), 0.25), (MAX_SECONDS, MAX_SECONDS), (-0.0, 0.0)],
)
def test_durations_become_float_seconds(value: float | timedelta, expected: float) -> None:
    assert seconds(value, "timeout") == expected
    assert type(seconds(value, "timeout")) is float


@pytest.mark.parametrize(
    "value",
    [-1, -1e-9, math.nan, math.inf, -math.inf, True, "1", None, 10**400, timedelta.max, timedelta(days=-1), 1j],
    ids=repr,
)
def test_what_is_no_duration_is_refused_by_name(value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^timeout "):
        seconds(value, "timeout")
