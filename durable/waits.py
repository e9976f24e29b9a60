"""What a run waits for, read from its history: each call of a wait, a sleep or a child whose end was not delivered."""

from __future__ import annotations

from collections.abc import Sequence

from durable.model import Record
from durable.reports import OpenWait


def open_waits(records: Sequence[Record]) -> list[OpenWait]:
    """The open waits, in the order in which they were called."""
    raise NotImplementedError
