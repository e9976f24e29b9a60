"""Published events, those who await them, and the log of what runs emit, in the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from durable.errors import InvalidArgument
from durable.model import Awaited, Emitted, Kind, Published, Signal
from durable.store import Clock
from durable.stores.memory.rows import Row, refuse_unstorable
from durable.stores.memory.shared import Shared

Topic = tuple[str, str]
"""A topic and a key."""


@dataclass(frozen=True, slots=True)
class _Event:
    id: str
    data: str
    at: datetime
    expires_at: datetime


class Events(Shared):
    """Publish, await, and the log."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._events: dict[Topic, dict[str, _Event]] = {}  # retained, by id, in the order of publication
        self._awaiting: dict[Topic, list[str]] = {}  # ids of runs, once for each of their waits, the longest first
        self._emitted: list[tuple[int, Emitted]] = []
        self._emits = 0

    async def publish(self, events: Sequence[Published]) -> None:
        for event in events:
            refuse_unstorable((event.id, event.topic, event.key, event.data))
        with self._lock:
            now = self._clock.now()
            for event in events:
                self._publish(event, now)

    def _publish(self, new: Published, now: datetime) -> None:
        topic = (new.topic, new.key)
        retained = self._retained(topic, now)
        if new.id in retained:
            return
        event = _Event(new.id, new.data, now, now + timedelta(seconds=new.retention))
        self._events.setdefault(topic, retained)[event.id] = event
        waiting = self._awaiting.pop(topic, [])
        given: set[str] = set()
        for run_id in waiting:  # each run once: another wait of the same run is for the next event
            if run_id not in given and self._give(self._rows[run_id], topic, event, now):
                given.add(run_id)
            else:
                self._awaiting.setdefault(topic, []).append(run_id)

    def _await(self, row: Row, awaited: Awaited, now: datetime) -> None:
        topic = (awaited.topic, awaited.key)
        for event in self._retained(topic, now).values():
            if event.at >= awaited.since and self._give(row, topic, event, now):
                return
        self._awaiting.setdefault(topic, []).append(row.new.id)

    def _give(self, row: Row, topic: Topic, event: _Event, now: datetime) -> bool:
        """Put the event into the run's inbox; False when it was given to the run before."""
        if event.id in row.inbox:
            return False
        self._deliver(row, Signal(event.id, "event/" + "/".join(topic), event.data, now), now)
        return True

    def _retained(self, topic: Topic, now: datetime) -> dict[str, _Event]:
        """The events of the topic that a run which begins to wait still gets; the others are dropped."""
        retained = {event.id: event for event in self._events.pop(topic, {}).values() if event.expires_at > now}
        if retained:
            self._events[topic] = retained
        return retained

    async def emitted(self, after: str | None, limit: int) -> list[Emitted]:
        with self._lock:
            start = 0 if after is None else _number(after)
            return [entry for number, entry in self._emitted if number > start][:limit]

    def _log(self, row: Row, keys: Sequence[str]) -> None:
        """Add the ``EMIT`` records among these of the run to the log."""
        for record in (row.records[key] for key in keys):
            if record.kind is Kind.EMIT:
                self._emits += 1
                entry = Emitted(str(self._emits), row.new.id, record.key, record.at, record.data or "null")
                self._emitted.append((self._emits, entry))

    def _forget(self, row: Row) -> None:
        super()._forget(row)
        if any(record.kind is Kind.EMIT for record in row.records.values()):
            self._emitted = [entry for entry in self._emitted if entry[1].run_id != row.new.id]
        for topic, waiting in list(self._awaiting.items()):
            left = [run_id for run_id in waiting if run_id != row.new.id]
            if left:
                self._awaiting[topic] = left
            else:
                del self._awaiting[topic]


def _number(cursor: str) -> int:
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 19):
        raise InvalidArgument(f"{cursor[:40]!r} is no cursor of this log")
    return int(cursor)
