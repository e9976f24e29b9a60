"""Schedules, as methods of the store. The rules are those of ``timetable``; what is fired is decided elsewhere."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from durable.schedules import Due, Found, Previous, Schedule, ScheduleWrite, Ticked
from durable.scheduling import from_json, skipped_from_json, skipped_to_json, to_json
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection
from durable.stores.sqlite.creating import ask_replaced, replaces
from durable.stores.sqlite.documents import maybe_micros, maybe_moment, micros, moment

T = TypeVar("T")

_MAX_DOCUMENT = 64 * 1024 * 1024  # characters a statement, as for runs
_MAX_REPLACING = 20
"""Writes of one transaction that make earlier runs give way: each asks in Python, 0.7 ms in which all writers wait."""


class Schedules(ABC):
    """A part of ``SQLiteStore``, which has the thread and the connection."""

    @abstractmethod
    def _now(self) -> int: ...

    @abstractmethod
    async def _read(self, fn: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def _write(self, fn: Callable[[Connection], T]) -> T: ...

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        encoded = [_encode(write) for write in writes]  # what cannot be stored is refused before anything is written
        answers: list[bool] = []
        for begin, end in _lots(writes, encoded):
            answers += await self._write_some(writes[begin:end], f"[{','.join(encoded[begin:end])}]")
        return answers

    async def _write_some(self, writes: Sequence[ScheduleWrite], document: str) -> list[bool]:
        return await self._write(lambda db: _apply(db, self._now, writes, document))

    async def delete_schedule(self, name: str) -> bool:
        documents.encode(name)
        return await self._write(lambda db: db.write("unschedule", lambda: {"name": name}) > 0)

    async def find_schedules(self, names: Sequence[str]) -> list[Found]:
        parameters = {"names": documents.encode(list(dict.fromkeys(names)))}
        return await self._read(lambda db: _decode_found(json.loads(db.value("find_schedules", parameters))))

    async def list_schedules(self, limit: int, after: str | None) -> list[Schedule]:
        parameters = {"at_most": limit, "after": after or ""}  # no name is empty
        return await self._read(lambda db: [_decode(row) for row in json.loads(db.value("list_schedules", parameters))])

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        behind = (
            {"after": 0, "after_name": ""} if after is None else {"after": micros(after[0]), "after_name": after[1]}
        )

        def due(db: Connection) -> Due:
            now = self._now()
            found, following = json.loads(db.value("due_schedules", {"now": now, "at_most": limit, **behind}))
            return Due(moment(now), _decode_found(found), maybe_moment(following))

        return await self._read(due)

    async def ticks(self, name: str, since: datetime, until: datetime, limit: int) -> list[Ticked]:
        between: Mapping[str, Any] = {"name": name, "since": micros(since), "until": micros(until), "at_most": limit}
        return await self._read(
            lambda db: [Ticked(moment(at), run_id) for at, run_id in json.loads(db.value("ticks", {**between}))]
        )


def _apply(db: Connection, now: Callable[[], int], writes: Sequence[ScheduleWrite], document: str) -> list[bool]:
    if not any(replaces(run) for write in writes for run in write.runs):
        return _send(db, now, writes, document)[0]
    # Which runs have to make way is decided one by one: see `requests`.
    with db.transaction():
        applied, new = _send(db, now, writes, document)
        for write in new:
            for run in write.runs:
                if replaces(run) and db.value("exists", {"id": run.id}):
                    ask_replaced(db, now, run)
        return applied


def _send(
    db: Connection, now: Callable[[], int], writes: Sequence[ScheduleWrite], document: str
) -> tuple[list[bool], list[ScheduleWrite]]:
    """Whether each was applied, and those that had not been before."""
    db.write("schedule", lambda: (now(), document))
    rows: dict[int, int] = dict(json.loads(db.value("scheduled")))
    return [pos in rows for pos in range(len(writes))], [writes[pos] for pos, again in rows.items() if not again]


def _lots(writes: Sequence[ScheduleWrite], encoded: Sequence[str]) -> list[tuple[int, int]]:
    """Where to divide the writes, so that no statement is too long and no transaction too slow: usually nowhere."""
    bounds, size = [0], 0
    for number, (write, text) in enumerate(zip(writes, encoded, strict=True)):
        weight = len(text) + _MAX_DOCUMENT // _MAX_REPLACING * any(map(replaces, write.runs))
        if number > bounds[-1] and size + weight > _MAX_DOCUMENT:
            bounds.append(number)
            size = 0
        size += weight
    return list(zip(bounds, [*bounds[1:], len(encoded)], strict=True)) if encoded else []


def _encode(write: ScheduleWrite) -> str:
    new, before = write.schedule, write.before
    row = (
        new.spec.name,
        to_json(new.spec),
        maybe_micros(new.next_at),
        maybe_micros(new.due_at),
        micros(new.created_at),
        micros(new.updated_at),
        new.paused,
        maybe_micros(new.last_at),
        new.fired,
        skipped_to_json(new.skipped),
        new.revision,
    )
    seen = None if before is None else (micros(before.created_at), before.revision, maybe_micros(before.next_at))
    return f"[{documents.encode(row)},{documents.encode(seen)},{documents.encode_new_runs(write.runs)}]"


def _decode(row: list[Any]) -> Schedule:
    spec, next_at, due_at, created_at, updated_at, paused, last_at, fired, skipped, revision = row
    return Schedule(
        from_json(spec),
        maybe_moment(next_at),
        maybe_moment(due_at),
        moment(created_at),
        moment(updated_at),
        paused,
        maybe_moment(last_at),
        fired,
        skipped_from_json(skipped),
        revision,
    )


def _decode_found(rows: list[Any]) -> list[Found]:
    return [Found(_decode(row), _previous(runs)) for row, runs in rows]


def _previous(runs: list[tuple[str, int]]) -> Previous:
    return Previous(
        tuple(run_id for run_id, queued in runs if not queued), tuple(run_id for run_id, queued in runs if queued)
    )
