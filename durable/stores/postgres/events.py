"""Published events, runs that await them, and the log of what runs emit.

Both sides of an event write only; who claims next compares them: see ``sql/postgres/queries/events.sql``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from durable.errors import InvalidArgument
from durable.model import Emitted, Kind, Published, RunWrite
from durable.stores.postgres import literals, signals
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call

_ROUNDS = 20
"""Transactions in which one claim compares what was stirred; the rest is for the claims that follow."""
_FORGET = "200"
"""Events past their retention that are deleted with each of them, which is more than one publishes between two."""


async def publish(sessions: Sessions, shard: str, events: Sequence[Published]) -> None:
    """Store the events."""
    if events:
        texts = literals.columns(
            [event.topic for event in events],
            [event.key for event in events],
            [event.id for event in events],
            [event.data for event in events],
        )
        retentions = literals.floats([max(event.retention, 0.0) for event in events])
        await sessions.create.transaction(sessions.call("add_events", shard, retentions, *texts))


async def after_claim(
    sessions: Sessions, shard: str, now: datetime, drained: signals.Drained, stirred: bool
) -> datetime | None:
    """What follows a claim's drain; when to claim again, if there is a reason."""
    await signals.forget(sessions, shard, drained.gone)
    given, left = await match(sessions, shard) if stirred else (False, False)
    if given:
        return now
    return now + signals.AGAIN if left or drained.left else None


async def match(sessions: Sessions, shard: str) -> tuple[bool, bool]:
    """Make signals of events that are awaited, in transactions of their own, and raise the counters of their runs.

    Returns:
        Whether some run got an event, and whether something is left to be compared.
    """
    given = False
    for _ in range(_ROUNDS):
        [[some, left, got_on]], [drained], _ = await sessions.write(
            "match_events",
            sessions.call("match_events", shard),
            sessions.call("drain_wakes", shard),
            forget_call(sessions, shard),
        )
        await signals.forget(sessions, shard, signals.Drained(*drained).gone)
        given = given or some
        if not left or not got_on:
            return given, left
    return given, True


def forget_call(sessions: Sessions, shard: str) -> Call:
    """Deletes some events past their retention."""
    return sessions.call("forget_events", shard, _FORGET)


def awaited(sessions: Sessions, worker: str, writes: Sequence[RunWrite]) -> list[Call]:
    """Stores the waits that the writes begin."""
    named = [(write, wait) for write in writes if write.also for wait in write.also.awaited]
    if not named:
        return []
    owners, waits = [write for write, _ in named], [wait for _, wait in named]
    marks_and_texts = literals.columns(
        signals.first_records(owners), [wait.topic for wait in waits], [wait.key for wait in waits]
    )
    since = literals.times([wait.since for wait in waits])
    parameters = [*signals.written(worker, owners), *marks_and_texts[:3], since, *marks_and_texts[3:]]
    return [sessions.call("await_events", *parameters)]


def emitted(sessions: Sessions, writes: Sequence[RunWrite]) -> list[Call]:
    """Copies the writes' ``EMIT`` records into the log."""
    named = [
        (write.ref, record.key)
        for write in writes
        if write.also and write.also.emits
        for record in write.records
        if record.kind is Kind.EMIT
    ]
    if not named:
        return []
    shards, ids = literals.scalars([ref.shard for ref, _ in named]), literals.ids([ref.id for ref, _ in named])
    return [sessions.call("log_emits", shards, ids, *literals.columns([key for _, key in named]))]


async def log(sessions: Sessions, shard: str, after: str | None, limit: int) -> list[Emitted]:
    """The log after a cursor.

    Raises:
        InvalidArgument: It is no cursor of this log.
    """
    xact, n = _place(after)
    found = await sessions.read("emitted", shard, xact, n, str(max(limit, 0)))
    return [Emitted(f"{xact}-{n}", run_id, key, at, data) for xact, n, run_id, key, at, data in found]


def _place(cursor: str | None) -> tuple[str, str]:
    xact, dash, n = ("0", "-", "0") if cursor is None else cursor.partition("-")
    if not (dash and _fits(xact, 2**64) and _fits(n, 2**31)):
        raise InvalidArgument(f"{(cursor or '')[:40]!r} is no cursor of the log")
    return xact, n


def _fits(number: str, bound: int) -> bool:
    return number.isascii() and number.isdecimal() and len(number) <= 20 and int(number) < bound
