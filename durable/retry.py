"""The retry policy: whether another attempt is made, and how long it waits.

Decisions only: the random number is an argument, and nobody waits here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, cast, get_args

from durable.durations import MAX_SECONDS, as_float, seconds
from durable.errors import InvalidArgument, NonRetryable, PayloadError, RetryAfter

Backoff = Literal["exponential", "linear", "fixed"]
Errors = type[BaseException] | tuple[type[BaseException], ...]


@dataclass(frozen=True, slots=True)
class Retry:
    """How often an operation is tried, and how long each further attempt waits.

    The wait before the second attempt is ``initial_delay``. Before the third, fourth, … it is, with
    ``"exponential"``, ``factor`` times the one before; with ``"linear"``, one ``initial_delay`` longer; with
    ``"fixed"``, the same; never more than ``max_delay``.

    Args:
        max_attempts: Attempts in all, the first included; at least 1. Default 3.
        backoff: ``"exponential"`` (default), ``"linear"`` or ``"fixed"``.
        initial_delay: Seconds or timedelta before the second attempt. Default 1 s.
        max_delay: The longest wait, seconds or timedelta; not below ``initial_delay``. Default 30 s.
        factor: What exponential backoff multiplies with; at least 1. Default 2.
        jitter: The fraction of each wait, 0 to 1, that chance may take away. With 0.2 a wait of 10 s becomes
            8 to 10 s, with 1.0 anything up to 10 s. It only shortens, so that ``max_delay`` holds. Default 0.
        on: An exception class, or a tuple of them, that is tried again. Default ``Exception``.
        on_exhausted: What follows the last attempt: ``"fail"`` (default), or ``"pause"``: the run is paused with the
            reason, and an operator's resume makes one more attempt. ``NonRetryable`` and ``unless`` fail in any case.
        unless: An exception class, or a tuple of them, that is not; it wins over ``on``. Default none.

    Raises:
        InvalidArgument: An argument is out of its range.
    """

    max_attempts: int = 3
    backoff: Backoff = "exponential"
    initial_delay: float | timedelta = 1.0
    max_delay: float | timedelta = 30.0
    factor: float = 2.0
    jitter: float = 0.0
    on: Errors = Exception
    unless: Errors = ()
    on_exhausted: Literal["fail", "pause"] = "fail"

    def __post_init__(self) -> None:
        _check_attempts(self.max_attempts)
        if self.backoff not in get_args(Backoff):
            raise InvalidArgument(f"backoff must be one of {', '.join(get_args(Backoff))}, not {self.backoff!r:.50}")
        initial, longest = seconds(self.initial_delay, "initial_delay"), seconds(self.max_delay, "max_delay")
        if initial > longest:
            raise InvalidArgument(f"initial_delay ({initial:g} s) is above max_delay ({longest:g} s): raise max_delay")
        object.__setattr__(self, "initial_delay", initial)
        object.__setattr__(self, "max_delay", longest)
        object.__setattr__(self, "factor", _number(self.factor, "factor", least=1.0, most=math.inf))
        object.__setattr__(self, "jitter", _number(self.jitter, "jitter", least=0.0, most=1.0))
        _check_errors(self.on, "on")
        _check_errors(self.unless, "unless")
        if self.on_exhausted not in ("fail", "pause"):
            raise InvalidArgument(f"on_exhausted must be 'fail' or 'pause', not {self.on_exhausted!r:.50}")

    def wants_retry(self, error: BaseException, attempt: int) -> bool:
        """Whether another attempt follows attempt number ``attempt``, which ended with ``error``.

        ``NonRetryable`` and ``unless`` end the attempts. So does ``PayloadError``: the function has had its
        effect, and a second one would not make its value fit. ``RetryAfter`` asks for one whatever ``on`` says.
        """
        if attempt >= self.max_attempts or isinstance(error, (NonRetryable, PayloadError)):
            return False
        if isinstance(error, self.unless):
            return False
        return isinstance(error, (RetryAfter, self.on) if isinstance(self.on, type) else (RetryAfter, *self.on))

    def pauses_after(self, error: BaseException) -> bool:
        """Whether the run is paused after the last attempt has ended with ``error``, instead of the step failing."""
        return self.on_exhausted == "pause" and self.wants_retry(error, 0)

    def delay_before(self, attempt: int, unit: float) -> float:
        """Seconds to wait before attempt number ``attempt`` (2 or higher).

        Args:
            attempt: The number of the attempt that is going to be made.
            unit: A random number, 0 ≤ unit < 1; it matters only with ``jitter``.
        """
        initial, longest = cast("float", self.initial_delay), cast("float", self.max_delay)
        earlier = attempt - 2  # waits before this one
        if self.backoff == "fixed":
            delay = initial
        elif self.backoff == "linear":
            delay = initial * (earlier + 1)
        else:
            delay = _grown(initial, self.factor, earlier)
        return min(delay, longest) * (1.0 - self.jitter * unit)

    def delay_after(self, error: BaseException, attempt: int, unit: float) -> float:
        """Seconds to wait after attempt number ``attempt`` ended with ``error``.

        ``RetryAfter``'s delay replaces the policy's: at least 0, at most a hundred years. One that is not a
        number says nothing, and the policy's stands.
        """
        if isinstance(error, RetryAfter) and not math.isnan(error.delay):
            return min(max(error.delay, 0.0), MAX_SECONDS)
        return self.delay_before(attempt + 1, unit)


def as_retry(value: Retry | int | None) -> Retry | None:
    """The policy that a ``retry=`` argument means: a number is short for ``Retry(max_attempts=number)``.

    Raises:
        InvalidArgument: It is neither a ``Retry``, nor a number of attempts of at least 1, nor None.
    """
    if value is None or isinstance(value, Retry):
        return value
    return Retry(max_attempts=value)


def _grown(initial: float, factor: float, times: int) -> float:
    try:
        return initial * factor**times
    except OverflowError:  # 2.0 ** 1024; the caller caps it
        return math.inf if initial else 0.0


def _check_attempts(value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidArgument(f"the number of attempts must be an int, not {type(value).__qualname__}")
    if value < 1:
        raise InvalidArgument(f"the number of attempts counts the first one too and must be at least 1, not {value}")


def _number(value: object, what: str, *, least: float, most: float) -> float:
    number = as_float(value, what)
    if not (math.isfinite(number) and least <= number <= most):
        wanted = f"at least {least:g}" if math.isinf(most) else f"between {least:g} and {most:g}"
        raise InvalidArgument(f"{what} must be {wanted}, not {number:g}")
    return number


def _check_errors(value: object, what: str) -> None:
    classes = cast("tuple[object, ...]", value) if isinstance(value, tuple) else (value,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in classes):
        raise InvalidArgument(f"{what} must be an exception class or a tuple of them, not {value!r:.80}")
