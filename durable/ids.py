"""Run and worker ids: UUIDv7 (RFC 9562, section 5.7), so that the primary key is in the order of time."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from uuid import UUID

from durable.errors import InvalidArgument

_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))  # any digit → one whose first two bits are 10
_last = (0, 0)  # milliseconds, the 12 bits after them


def new_id(now: datetime) -> str:
    """A new id for the time ``now``; ids made by one process rise within a millisecond (method 1 of the RFC)."""
    global _last  # noqa: PLW0603  (the RFC's monotonicity is a property of the process)
    milliseconds = int(now.timestamp() * 1000)
    last, counter = _last
    if milliseconds > last:
        counter = secrets.randbits(11)
    else:
        milliseconds, counter = last, counter + 1
        if counter >> 12:
            milliseconds, counter = last + 1, 0
    _last = (milliseconds, counter)
    # Spelled here: a UUID object that is made and printed takes as long as all the rest.
    time, rest = f"{milliseconds:012x}", os.urandom(8).hex()
    return f"{time[:8]}-{time[8:]}-7{counter:03x}-{_VARIANT[rest[0]]}{rest[1:4]}-{rest[4:]}"


def check_run_id(value: str) -> str:
    """``value`` in canonical form.

    Raises:
        InvalidArgument: It is not a UUIDv7. Lists are in the order of the ids; use ``key`` for your own identity.
    """
    try:
        parsed = UUID(value)
    except (ValueError, AttributeError, TypeError):
        parsed = None
    if parsed is None or parsed.version != 7:
        raise InvalidArgument(f"run_id {value!r} is not a UUIDv7; an identity of your own goes into key=")
    return str(parsed)
