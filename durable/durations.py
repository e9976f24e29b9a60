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
    number = value.total_seconds() if isinstance(value, timedelta) else as_float(value, what)
    if math.isnan(number):
        raise InvalidArgument(f"{what} must be a number, not NaN")
    if not 0 <= number <= MAX_SECONDS:
        raise InvalidArgument(f"{what} must be between 0 s and 100 years, not {number:g} s")
    return number


def as_float(value: object, what: str) -> float:
    """``value`` as a float. What is no number, or an integer beyond a float's range, is an ``InvalidArgument``."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise InvalidArgument(f"{what} must be a number, not {type(value).__qualname__}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgument(f"{what} is too large") from None
