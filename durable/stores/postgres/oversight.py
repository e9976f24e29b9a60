"""Looking after the system, as methods of the store: workers, counts, tokens, and what may be wrong here."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import AsyncConnection, errors

from durable.clock import HostClock
from durable.errors import ConfigurationError
from durable.model import Reaped, State
from durable.reports import Census, Depth, Finding, Scope, StoredToken, Token, WorkerInfo
from durable.sql import Migration
from durable.stores.findings import abandoned, counted, missing, stranded
from durable.stores.postgres import literals
from durable.stores.postgres.sessions import SHARD, Sessions
from durable.stores.postgres.wire import Row

_LONG = 300.0
"""Seconds after which a transaction keeps vacuum from too much."""
_AWRY = 1.0
"""Seconds by which a process's clock may differ from the server's before that is worth a word."""
_INDEX = re.compile(r"^CREATE (?:UNIQUE )?INDEX (\w+) ON [^;]+;", re.MULTILINE)


class Oversight(ABC):
    """A part of ``PostgresStore``, which has the connections."""

    _schema: str
    _migrations: Sequence[Migration]

    @property
    @abstractmethod
    def _use(self) -> Sessions: ...

    @abstractmethod
    async def reap(self, limit: int = 5) -> Reaped: ...

    async def workers(self) -> list[WorkerInfo]:
        return [WorkerInfo(*row) for row in await self._use.read("workers")]

    async def census(self) -> Census:
        rows = await self._use.read("census", SHARD)
        now, runs, ready = rows[0][0], dict[tuple[str, State], int](), dict[str, list[Row]]()
        for row in rows[1:]:
            _, queue, workflow, state, count, *_ = row
            runs[workflow, State(state)] = runs.get((workflow, State(state)), 0) + count
            ready.setdefault(queue, []).append(row)
        depths: dict[str, Depth] = {}
        for queue, parts in ready.items():
            oldest = min((row[6] for row in parts if row[6] is not None), default=now)
            depths[queue] = Depth(sum(row[5] for row in parts), (now - oldest).total_seconds())
        return Census(now, runs, depths)

    # -- tokens -----------------------------------------------------------------------------------

    async def put_token(self, token: StoredToken) -> bool:
        one, call = token.token, self._use.call
        expires_at = None if one.expires_at is None else one.expires_at.isoformat()
        new = one.name, token.prefix, token.digest, " ".join(sorted(one.scopes)), one.created_at.isoformat(), expires_at
        _, [[digest]] = await self._use.write("put_token", call("put_token", *new), call("named_token", one.name))
        return bool(digest == token.digest)

    async def tokens(self) -> list[StoredToken]:
        return [_token(row) for row in await self._use.read("list_tokens")]

    async def find_tokens(self, prefix: str) -> list[StoredToken]:
        return [_token(row) for row in await self._use.read("find_tokens", prefix)]

    async def delete_token(self, name: str) -> bool:
        [deleted] = await self._use.write("delete_token", self._use.call("delete_token", name))
        return bool(deleted)

    # -- defects ----------------------------------------------------------------------------------

    async def examine(self) -> Sequence[Finding]:
        if (role := _role(await self._use.read("missing_rights", self._schema))).severity == "error":
            return [role]  # it may not even look at the rest
        return [
            role,
            await self._clock_finding(),
            _durability(await self._use.read("settings")),
            missing(await self._missing_indexes(), "indexes"),
            _transactions(await self._use.read("long_transactions", str(_LONG)), await self._sees_all()),
            stranded(await self._stranded()),
            abandoned(*(await self._use.read("expired_leases"))[0]),
        ]

    async def repair(self) -> Sequence[str]:
        done: list[str] = []
        if (reaped := await self.reap()).released:
            done.append(f"took over {counted(reaped.released, 'run')} of workers whose leases had expired")
        if found := await self._stranded():
            call = self._use.call("free_stranded", SHARD, literals.ids(found))
            [freed] = await self._use.write("free_stranded", call)
            if freed:
                done.append(f"made {counted(len(freed), 'run')} ready that nothing would have woken")
        for name in await self._missing_indexes():
            await self._make_index(name)
            done.append(f"made the index {name} anew")
        return done

    async def _stranded(self) -> list[str]:
        return [run_id for [run_id] in await self._use.read("stranded_runs", SHARD)]

    async def _sees_all(self) -> bool:
        return bool((await self._use.read("settings"))[0][3])

    async def _clock_finding(self) -> Finding:
        before = HostClock().now()
        [[server]] = await self._use.read("server_now")
        after = HostClock().now()
        apart = max((before - server).total_seconds(), (server - after).total_seconds(), 0.0)
        if apart <= _AWRY:
            return Finding("clock", "ok", "this machine's clock agrees with the server's")
        return Finding(
            "clock",
            "warning",
            f"this machine's clock and the server's are {apart:.1f} s apart",
            "synchronise both by NTP; durable goes by the server's, but logs and your own code do not",
        )

    # -- indexes ----------------------------------------------------------------------------------

    def _indexes(self) -> Mapping[str, str]:
        """Name → statement of every index that the migrations make."""
        return {found[1]: found[0] for migration in self._migrations for found in _INDEX.finditer(migration.sql)}

    async def _missing_indexes(self) -> list[str]:
        usable = {name for [name] in await self._use.read("usable_indexes", self._schema)}
        return sorted(self._indexes().keys() - usable)

    async def _make_index(self, name: str) -> None:
        """Without a lock that would stop the workers; an unusable one, which such a making has left, is dropped."""
        statement = self._indexes()[name].replace(f"INDEX {name} ON", f"INDEX CONCURRENTLY {name} ON", 1)

        async def make(connection: AsyncConnection[Any]) -> None:
            try:
                await connection.execute(f'DROP INDEX CONCURRENTLY IF EXISTS "{self._schema}".{name}'.encode())
                await connection.execute(statement.encode())
            except errors.InsufficientPrivilege as error:
                raise ConfigurationError(
                    f"this role may not make the index {name} ({error.diag.message_primary}): repair as the role "
                    "that migrates"
                ) from None

        await self._use.on_connection(make)


def _token(row: Row) -> StoredToken:
    name, scopes, created_at, expires_at, digest = row
    return StoredToken(Token(name, frozenset(map(Scope, scopes.split())), created_at, expires_at), digest)


def _role(lacking: Sequence[Row]) -> Finding:
    if not lacking:
        return Finding("role", "ok", "the role has the rights that it needs")
    names = ", ".join(f"{what} {name}" for what, name in lacking)
    return Finding(
        "role",
        "error",
        f"this role lacks rights on {names}",
        "run sql/postgres/grants.sql as the role that migrates, after each migration",
        count=len(lacking),
    )


def _durability(rows: Sequence[Row]) -> Finding:
    [(synchronous_commit, fsync, full_page_writes, _)] = rows
    unsafe = [
        f"{name}={value}"
        for name, value in (
            ("synchronous_commit", synchronous_commit),
            ("fsync", fsync),
            ("full_page_writes", full_page_writes),
        )
        if value == "off"
    ]
    if not unsafe:
        return Finding("durability", "ok", "what is committed survives a crash of the server")
    lost = "the whole database may be" if fsync == "off" or full_page_writes == "off" else "the last commits may be"
    return Finding(
        "durability",
        "error" if lost.startswith("the whole") else "warning",
        f"{', '.join(unsafe)}: when the server crashes {lost} lost, and steps whose records were lost run again",
        "set them to on, for the server or with ALTER ROLE … SET",
        count=len(unsafe),
    )


def _transactions(rows: Sequence[Row], sees_all: bool) -> Finding:
    if not rows:
        note = "" if sees_all else ", as far as this role may see: GRANT pg_read_all_stats to it to see all"
        return Finding("transactions", "ok", f"no transaction has been open for {_LONG:.0f} s{note}")
    pid, whose, seconds = rows[0]
    return Finding(
        "transactions",
        "warning",
        f"{counted(len(rows), 'transaction')} open for more than {_LONG:.0f} s; the oldest, of {whose} ({pid}), for "
        f"{seconds:.0f} s: vacuum cannot remove what has died since, and claims get slower",
        f"end it: SELECT pg_terminate_backend({pid})" if pid.isdecimal() else f"end it: ROLLBACK PREPARED '{pid}'",
        count=len(rows),
    )
