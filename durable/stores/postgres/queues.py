"""Limits of queues: which are known, what a claim that names a limited one sends, and how they are put.

A claim proves that it knows the present limits by naming their version: with another one it takes nothing, learns the
new ones and is sent again. So a new limit holds for every claim that begins after ``put_queues`` has returned, in every
process, and a claim of unlimited queues pays nothing. It knows neither workflows nor what is in a run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import uuid4

from durable.model import Queue, Rate
from durable.store import Route
from durable.stores.postgres import literals
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call, Row

_PASSED_BY = timedelta(milliseconds=20)
"""After what time a queue that another claim held is looked at again; such a claim takes a millisecond or two."""


class Limits:
    """The limits that this process knows.

    Attributes:
        version: Of what it knows; None: there were none.
    """

    def __init__(self) -> None:
        self.version: str | None = None
        self._queues: dict[str, Queue] = {}
        self._keyed: set[str] = set()  # those that block runs of single keys, or did

    def limited(self, queue: str) -> bool:
        """Whether the queue is known to have limits."""
        return queue in self._queues

    async def refresh(self, sessions: Sessions) -> list[Queue]:
        """Read them; those of all queues that have any, by name."""
        rows = await sessions.read("limits")
        self.version = rows[0][0]
        self._queues = {row[1]: _queue(row[1:-1]) for row in rows if row[1] is not None}
        self._keyed = {row[1] for row in rows if row[3] is not None or row[6] is not None or row[8]}
        return [queue for _, queue in sorted(self._queues.items()) if not queue.unlimited]

    async def put(self, sessions: Sessions, queues: Iterable[Queue]) -> None:
        """Store limits, unless they are stored already."""
        wanted = {queue.name: queue for queue in queues}
        stored = {queue.name: queue for queue in await self.refresh(sessions)}
        changed = [queue for name, queue in wanted.items() if stored.get(name, Queue(name)) != queue]
        if not changed:
            return
        names = literals.columns([queue.name for queue in changed])
        version = str(uuid4())
        await sessions.write(
            "put_queues",
            sessions.call("new_limits", version),
            sessions.call("put_limits", *_limits(changed), *names),
            sessions.call("look_again", *names),
            sessions.call("tell_workers", version),
        )
        await self.refresh(sessions)

    def claim(
        self, sessions: Sessions, worker: str, shard: str, routes: Iterable[Route], numbers: str
    ) -> LimitedClaim | None:
        """What a claim of ``routes`` sends besides the usual; None when none of them is limited."""
        names = sorted({route.queue for route in routes if route.queue in self._queues})
        if not names:
            return None
        return LimitedClaim(sessions, worker, shard, self.version, names, self._keyed, numbers)


class LimitedClaim:
    """The statements around ``claim_limited``, and what their answers mean."""

    def __init__(
        self,
        sessions: Sessions,
        worker: str,
        shard: str,
        version: str | None,
        queues: Sequence[str],
        keyed: set[str],
        numbers: str,
    ) -> None:
        names = literals.columns(queues)
        self.before: list[Call] = [sessions.call("hold_queues", worker, shard, version, *names)]
        if with_keys := [queue for queue in queues if queue in keyed]:
            self.before.append(sessions.call("promote_keys", shard, *literals.columns(with_keys)))
        self.after: list[Call] = [sessions.call("limits_rest", shard, numbers, *names)]

    def answer(self, answers: Sequence[list[Row]], limit: int, now: datetime, ready: datetime | None) -> _Rest:
        """The runs among the answers to all statements, and when to claim again.

        Args:
            answers: In the order in which the statements were sent.
            limit: How many runs were asked for.
            now: The server's time.
            ready: When the next run becomes due.
        """
        runs = [row for row in answers[len(self.before)] if row[0] is not None]
        times = [time for time in (ready, answers[-1][0][0]) if time is not None]
        if not all(held for _, held in answers[0]):
            times.append(now + _PASSED_BY)
        if len(runs) < limit and len(runs) < len(answers[len(self.before)]):
            times.append(now)
        return runs, min(times, default=None)


_Rest = tuple[list[Row], datetime | None]


def _queue(row: Row) -> Queue:
    """From ``limits``, without the first and the last column."""
    name, concurrency, per_key, rate, rate_per, key_rate, key_per = row
    return Queue(name, concurrency, per_key, _rate(rate, rate_per), _rate(key_rate, key_per))


def _rate(limit: int | None, per: float | None) -> Rate | None:
    return None if limit is None or per is None else Rate(limit, per)


def _limits(queues: Sequence[Queue]) -> list[Parameter]:
    """$1 to $8 of ``put_limits``."""
    return [
        literals.scalars([queue.concurrency for queue in queues]),
        literals.scalars([queue.per_key for queue in queues]),
        *_rates([queue.rate for queue in queues]),
        *_rates([queue.rate_per_key for queue in queues]),
    ]


def _rates(rates: Sequence[Rate | None]) -> list[Parameter]:
    return [
        literals.scalars([None if rate is None else rate.limit for rate in rates]),
        literals.scalars([None if rate is None else rate.per for rate in rates]),
        literals.scalars([None if rate is None else rate.interval for rate in rates]),
    ]
