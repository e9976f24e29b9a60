"""Events that are published for whoever awaits them, and the log of what runs emit.

Every function is called on the store's thread. Which run gets which event is a rule of the tables
(``0002_signals.sql``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from durable.errors import InvalidArgument
from durable.model import Emitted, Published
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection


def encode_events(events: Sequence[Published]) -> str:
    return documents.encode([(e.id, e.topic, e.key, e.data, round(e.retention * 1_000_000)) for e in events])


def publish(db: Connection, now: Callable[[], int], events: str) -> None:
    """Store each of ``encode_events``; each run that awaits it gets it as a signal, in the same transaction."""
    db.write("publish", lambda: (now(), events))


def emitted(db: Connection, after: str | None, limit: int) -> list[Emitted]:
    """The log after the cursor, which is the number of an entry."""
    rows = json.loads(db.value("emitted", {"after": _number(after), "at_most": limit}))
    return [Emitted(f"{n:019}", run_id, key, documents.moment(at), data) for n, run_id, key, at, data in rows]


def _number(cursor: str | None) -> int:
    if cursor is None:
        return 0
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) == 19 and int(cursor) < 2**63):
        raise InvalidArgument(f"{cursor[:40]!r} is no cursor of this log")
    return int(cursor)
