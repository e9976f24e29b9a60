"""Deleting runs: one, or those that ended long ago, found by walking the primary key, which is time.

An index on the end of runs would have to be touched by every completion. So a look reads some thousand runs along the
key, from the oldest, and what it saw is remembered: a stretch of a million runs that sleep is looked at once, which
takes a second, and again only when one that ended since can be old enough.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from durable.errors import RunNotFound, StoreUnavailable
from durable.states import TERMINAL
from durable.stores.postgres import events, literals, rows
from durable.stores.postgres.requesting import PAUSE, TRIES
from durable.stores.postgres.sessions import Sessions

_BATCH = 100
"""Runs deleted in one transaction, each with its whole history: 4 ms with 10 records each, 2.2 s with 10,000."""
_SKEW = timedelta(hours=1)
"""How far the clock of who made a run's id may be ahead of the server's."""
_COMMIT = timedelta(minutes=1)
"""A run ends at the beginning of the transaction that ends it; it shows at most so much later."""
_FIRST = str(UUID(int=0))
_ALWAYS = datetime.min.replace(tzinfo=UTC)


class _Stretch(NamedTuple):
    """The runs after those of the stretch before, up to an id."""

    until: str
    due: datetime  # none of them ended before


class Pruning:
    """What this process knows of where runs ended long ago are not."""

    def __init__(self, shard: str) -> None:
        self._shard = shard
        self._known: list[_Stretch] = []  # from the oldest, without a gap

    async def prune(self, sessions: Sessions, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` runs that ended before ``before``. Fewer: there are no more that nobody holds."""
        gone, at, end = 0, _FIRST, _id_at(before + _SKEW)
        while gone < limit and (at := self._next(at, before)) < end:
            gone += await self._look(sessions, at, end, before, limit - gone)
            at = self._end_of_stretch(at)
        await sessions.write("prune", events.forget_call(sessions, self._shard))
        return gone

    async def _look(self, sessions: Sessions, after: str, end: str, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` of those that one look finds after an id; remember what it saw."""
        when = before.isoformat()
        [(found, last, earliest, now)] = await sessions.read("ended_before", self._shard, after, end, when)
        deleted = 0
        for start in range(0, min(len(found), limit), _BATCH):
            ids = literals.ids(found[start : min(start + _BATCH, limit)])
            [batch, _] = await sessions.write(
                "prune",
                sessions.call("delete_runs", self._shard, ids, when),
                sessions.call("forget_merged", self._shard, ids),
            )
            deleted += len(batch)
        due = min(earliest or now, now - _COMMIT) if deleted == len(found) else _ALWAYS
        self._learn(after, _Stretch(last or end, due))
        return deleted

    def _next(self, at: str, before: datetime) -> str:
        """The first place from ``at`` on that has to be looked at."""
        start = _FIRST
        for stretch in self._known:
            if start >= at and stretch.due < before:
                return start
            start = stretch.until
        return max(at, start)

    def _end_of_stretch(self, at: str) -> str:
        return next(stretch.until for stretch in self._known if stretch.until > at)

    def _learn(self, after: str, seen: _Stretch) -> None:
        """Put ``seen`` in the place of what was known there. The stretch it ends in keeps its rest."""
        earlier = [stretch for stretch in self._known if stretch.until <= after]
        later = [stretch for stretch in self._known if stretch.until > seen.until]
        if after > (earlier[-1].until if earlier else _FIRST):  # somebody else pruned here at the same time
            earlier.append(_Stretch(after, _ALWAYS))
        self._known = [*earlier, seen, *later]


async def delete(sessions: Sessions, shard: str, run_id: str) -> bool:
    """Delete one terminal run; False when it is not.

    Raises:
        RunNotFound: There is no such run.
        StoreUnavailable: Another transaction holds it.
    """
    ids = literals.ids([run_id])
    calls = [sessions.call("delete_runs", shard, ids, "infinity"), sessions.call("forget_merged", shard, ids)]
    for _ in range(TRIES):
        [deleted, _] = await sessions.write("delete", *calls)
        if deleted:
            return True
        found = [rows.run(row) for row in await sessions.read("get_runs", shard, literals.ids([run_id]))]
        if not found:
            raise RunNotFound(f"there is no run {run_id!r}")
        if found[0].state not in TERMINAL:
            return False
        await asyncio.sleep(PAUSE)
    raise StoreUnavailable(f"delete: another transaction holds run {run_id}")


def _id_at(when: datetime) -> str:
    """No id made up to ``when`` is greater: they are UUIDv7."""
    milliseconds = min(max(int(when.timestamp() * 1000), 0), (1 << 48) - 1)
    return str(UUID(int=(milliseconds << 80) | ((1 << 80) - 1)))
