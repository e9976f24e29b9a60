"""Limits of queues on SQLite, and the claim, which obeys them.

Every function is called on the store's thread. Who has a place, who is blocked, and whose turn it is when something is
free again, are rules of the tables (``0003_queues.sql``) and of the claim (``queues.sql``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from durable.model import Queue, Rate
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection

_AHEAD = 200
"""Runs that a claim looks at beyond what it may take: some of limited queues that it cannot take may stand in front."""

_LOOKS = 50
"""A claim looks so often, each time a transaction of its own, then it says that there is more to look at."""


def take(
    db: Connection,
    now: Callable[[], int],
    worker: str,
    batch: str,
    routes: str,
    limit: int,
    done: str,
    one: str | None = None,
) -> int | None:
    """Claim up to ``limit`` runs, which are in the table ``claimed`` then. When it has not looked at all: the time.

    Args:
        one: The id of the only run to claim; None: any.
    """
    left = at_most = max(limit, 0)
    for look in range(_LOOKS):
        parameters = (worker, batch, routes, left, done, _AHEAD, look > 0, one)
        db.write("claim", lambda: (now(), *parameters))  # noqa: B023
        taken = db.value("admitted")
        if taken is None or taken >= at_most:
            return None
        left = at_most - taken
    return now()


def encode_queues(queues: Sequence[Queue]) -> str:
    """The last of each name."""
    named = {queue.name: queue for queue in queues}
    return documents.encode(
        [
            (
                queue.name,
                queue.concurrency,
                queue.per_key,
                *_rate(queue.rate),
                *_rate(queue.rate_per_key),
                queue.unlimited,
            )
            for queue in named.values()
        ]
    )


def _rate(rate: Rate | None) -> tuple[int | None, float | None, int | None]:
    return (None, None, None) if rate is None else (rate.limit, float(rate.per), rate.interval)


def decode_queues(document: str) -> list[Queue]:
    return [
        Queue(name, concurrency, per_key, _read(*rate), _read(*key_rate))
        for name, concurrency, per_key, *rates in json.loads(document)
        for rate, key_rate in [(rates[:2], rates[2:])]
    ]


def _read(limit: int | None, per: float | None) -> Rate | None:
    return None if limit is None or per is None else Rate(limit, per)
