"""What a run waits for, read from its history: each call of a wait, a sleep or a child whose end was not delivered.

A wait's record says what it accepts where its key does not: ``accepts`` writes it, `open_waits` reads it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from durable.model import Kind, Record
from durable.reports import OpenWait

_CALLED = frozenset({Kind.WAIT, Kind.SLEEP, Kind.CALL})


def base_name(key: str) -> str:
    """The name that was given to the operation: its key without its branch, item and occurrence."""
    return key.rpartition("/")[2].partition("#")[0].partition("[")[0]


def accepts(key: str, signals: Sequence[str], event: tuple[str, str] | None) -> str | None:
    """What a wait's record says about it; None for one signal of the wait's own name, as nearly all are.

    Args:
        key: The key of the wait.
        signals: The names of the signals that it accepts.
        event: Topic and key, when it is an event that it waits for.
    """
    if event is not None:
        return json.dumps({"event": list(event)})
    return None if list(signals) == [base_name(key)] else json.dumps({"signals": list(signals)})


def open_waits(records: Sequence[Record]) -> list[OpenWait]:
    """The open waits, in the order in which they were called; one that accepts several signals is in it for each.

    A wait that the function's own code has cancelled, with ``asyncio.timeout`` for example, has no end in the history,
    and is taken for open.
    """
    ended = {record.key for record in records if record.kind is Kind.WOKE}
    called = (r for r in records if r.kind in _CALLED and r.key[0] != "/" and f"{r.key}/woke" not in ended)
    return [wait for record in called for wait in _waits(record)]


def _waits(record: Record) -> Iterator[OpenWait]:
    name, rest = base_name(record.key), (record.at, record.due_at, record.key)
    if record.kind is Kind.SLEEP:
        yield OpenWait(name, "sleep", *rest)
    elif record.kind is Kind.CALL:
        yield OpenWait(name, "child", *rest)
    elif record.data is None:
        yield OpenWait(name, "signal", *rest)
    else:
        accepted = json.loads(record.data)
        if "event" in accepted:
            yield OpenWait("/".join(part for part in accepted["event"] if part), "event", *rest)
        for signal in accepted.get("signals", ()):
            yield OpenWait(signal, "signal", *rest)
