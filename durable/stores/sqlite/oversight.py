"""Looking after the system, as methods of the store: workers, counts, tokens, and what may be wrong with the file."""

from __future__ import annotations

import asyncio
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from durable.clock import HostClock
from durable.model import Reaped, State
from durable.reports import Census, Depth, Finding, Scope, StoredToken, Token, WorkerInfo
from durable.sql import migrations
from durable.stores.findings import abandoned, counted, missing, stranded
from durable.stores.sqlite.connection import Connection, split
from durable.stores.sqlite.documents import encode, maybe_micros, maybe_moment, micros, moment

T = TypeVar("T")

_PART = re.compile(r"^CREATE (?:UNIQUE )?(?:INDEX|TRIGGER) (\w+)", re.MULTILINE)
_LARGE_LOG = 256 * 1024 * 1024
"""Bytes of the write-ahead log beyond which somebody keeps SQLite from taking it back."""


class Oversight(ABC):
    """A part of ``SQLiteStore``, which has the thread and the connection."""

    _path: Path
    _clock: HostClock

    @abstractmethod
    def _connect_another(self) -> Connection: ...

    @abstractmethod
    async def _read(self, fn: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def _write(self, fn: Callable[[Connection], T]) -> T: ...

    @abstractmethod
    async def reap(self, limit: int = 5) -> Reaped: ...

    async def workers(self) -> list[WorkerInfo]:
        now = micros(self._clock.now())
        return [
            WorkerInfo(worker, host, pid, moment(started_at), moment(expires_at), expires_at > now, held)
            for worker, host, pid, started_at, expires_at, held in json.loads(await self._value("workers"))
        ]

    async def census(self) -> Census:
        now = self._clock.now()
        runs, oldest, ready = dict[tuple[str, State], int](), dict[str, int](), dict[str, int]()
        for queue, workflow, state, count, due, first in json.loads(await self._value("census", {"now": micros(now)})):
            runs[workflow, State(state)] = runs.get((workflow, State(state)), 0) + count
            ready[queue] = ready.get(queue, 0) + due
            oldest[queue] = min(oldest.get(queue, micros(now)), micros(now) if first is None else first)
        ages = {queue: timedelta(microseconds=micros(now) - first).total_seconds() for queue, first in oldest.items()}
        return Census(now, runs, {queue: Depth(count, ages[queue]) for queue, count in ready.items()})

    # -- tokens -----------------------------------------------------------------------------------

    async def put_token(self, token: StoredToken) -> bool:
        one = token.token
        times = micros(one.created_at), maybe_micros(one.expires_at)
        document = encode([one.name, token.prefix, token.digest, " ".join(sorted(one.scopes)), *times])

        def put(db: Connection) -> bool:
            db.write("put_token", lambda: {"token": document})
            return bool(db.value("named_token", {"name": one.name}) == token.digest)

        return await self._write(put)

    async def tokens(self) -> list[StoredToken]:
        return _tokens(await self._value("tokens"))

    async def find_tokens(self, prefix: str) -> list[StoredToken]:
        return _tokens(await self._value("find_tokens", {"prefix": prefix}))

    async def delete_token(self, name: str) -> bool:
        return await self._write(lambda db: db.write("delete_token", lambda: {"name": name})) > 0

    # -- defects ----------------------------------------------------------------------------------

    async def examine(self) -> Sequence[Finding]:
        if (integrity := await asyncio.to_thread(self._integrity)).severity == "error":
            return [integrity]
        sound = [integrity, self._log_finding(), missing(await self._missing_parts(), "indexes and triggers")]
        if sound[-1].severity == "error":  # the statements below name their indexes
            return sound
        workers, held = json.loads(await self._value("expired_leases", {"now": micros(self._clock.now())}))
        return [*sound, stranded(await self._stranded()), abandoned(workers, held)]

    async def repair(self) -> Sequence[str]:
        done: list[str] = []
        for name in await self._missing_parts():  # first: the rules of the tables hold for what follows
            await self._make(_parts()[name])
            done.append(f"made {name} anew")
        if (reaped := await self.reap()).released:
            done.append(f"took over {counted(reaped.released, 'run')} of workers whose leases had expired")
        if found := await self._stranded():
            runs, now = encode(found), micros(self._clock.now())
            freed = await self._write(lambda db: db.write("free_stranded", lambda: {"runs": runs, "now": now}))
            if freed:
                done.append(f"made {counted(freed, 'run')} ready that nothing would have woken")
        return done

    async def _make(self, sql: str) -> None:
        await self._write(lambda db: db.define(sql))

    async def _stranded(self) -> list[str]:
        found: list[str] = json.loads(await self._value("stranded_runs"))
        return found

    async def _missing_parts(self) -> list[str]:
        there = set(json.loads(await self._value("parts")))
        return [name for name in _parts() if name not in there]

    def _integrity(self) -> Finding:
        """On a connection of its own: it reads the whole file, and nobody waits for that."""
        connection = self._connect_another()
        try:
            said = connection.value("quick_check")
        finally:
            connection.close()
        if said == "ok":
            return Finding("integrity", "ok", "the file is sound")
        return Finding(
            "integrity",
            "error",
            f"the file is damaged: {said}",
            "stop all workers, and restore a backup, or rescue what can be read: sqlite3 FILE .recover",
            count=1,
        )

    def _log_finding(self) -> Finding:
        log = Path(f"{self._path}-wal")
        size = log.stat().st_size if log.exists() else 0
        if size <= _LARGE_LOG:
            return Finding("transactions", "ok", "the write-ahead log is small: no transaction stays open")
        return Finding(
            "transactions",
            "warning",
            f"the write-ahead log has {size / 1024 / 1024:,.0f} MB: somebody has had a transaction open for long, and "
            "every read gets slower",
            f"end the process that reads {self._path.name} and does not stop",
            count=1,
        )

    async def _value(self, statement: str, parameters: Mapping[str, Any] | None = None) -> Any:
        return await self._read(lambda db: db.value(statement, dict(parameters or {})))


def _parts() -> dict[str, str]:
    """Name → statement of every index and trigger that the migrations make."""
    statements = (sql for migration in migrations("sqlite") for sql in split(migration.sql))
    return {found[1]: sql for sql in statements if (found := _PART.search(sql)) is not None}


def _tokens(document: str) -> list[StoredToken]:
    return [
        StoredToken(Token(name, frozenset(map(Scope, scopes.split())), moment(created), maybe_moment(expires)), digest)
        for name, scopes, created, expires, digest in json.loads(document)
    ]
