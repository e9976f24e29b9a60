"""Durations as the API takes them, ``float`` seconds or ``timedelta``, made into checked seconds.

Pure; it knows nothing about what is waited for.
"""

from __future__ import annotations

import math
from datetime import timedelta

from durable.errors import InvalidArgument

MAX_SECONDS = 100 * 365.25 * 86_400
"""A hundred years. Adding more to a date can leave the calendar, in Python or in a database."""


def seconds(value: float | timedelta, what: str) -> float:
    """``value`` in seconds.

    Args:
        value: Seconds as ``int`` or ``float``, or a ``timedelta``; finite, 0 to a hundred years.
        what: What it is, for the message: ``"timeout"``.

    Raises:
        InvalidArgument: It is no such duration; ``True`` and ``False`` are none.
    """
    given: object = value  # the annotation is a wish: callers without a type checker pass anything
    if isinstance(given, timedelta):
        number = given.total_seconds()
    elif isinstance(given, int | float) and not isinstance(given, bool):
        number = as_float(given, what)
    else:
        raise InvalidArgument(f"{what} must be seconds or a timedelta, not {type(given).__qualname__}")
    if math.isnan(number):
        raise InvalidArgument(f"{what} must be a number, not NaN")
    if not 0 <= number <= MAX_SECONDS:
        raise InvalidArgument(f"{what} must be between 0 s and 100 years, not {number:g} s")
    return number


def as_float(value: float, what: str) -> float:
    """``value`` as a float; an integer beyond its range is an ``InvalidArgument`` instead of an OverflowError."""
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgument(f"{what} is too large") from None
