"""What an operator, a monitor or a gateway learns of the system: workers, waits, counts, tokens, defects."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from durable.errors import (
    ConfigurationError,
    DurableError,
    InvalidArgument,
    SchemaOutdated,
    SchemaTooNew,
    StoreUnavailable,
)
from durable.names import check_name
from durable.operator import Operator
from durable.reports import PREFIX, Census, Finding, NewToken, OpenWait, Scope, StoredToken, Token, WorkerInfo
from durable.states import TERMINAL
from durable.store import Hint
from durable.waits import open_waits

_MARK = "durable_"
"""What a secret begins with, so that scanners of repositories and logs know one."""


_NEEDED = frozenset({"role", "indexes", "integrity"})
"""Checks of a store without which nothing else can be asked of it."""

_GRANTS = "run sql/postgres/grants.sql as the role that migrates"


class Inspector(Operator):
    """A client that also looks after the system."""

    async def workers(self) -> list[WorkerInfo]:
        """The workers that are registered, the oldest first: who they are, whether they live, what they hold.

        One that died stays until another worker, or ``repair``, has found it: seconds after its lease expired.
        """
        self._check_connected()
        return sorted(await self._store.workers(), key=lambda worker: (worker.started_at, worker.id))

    async def open_waits(self, run_id: str) -> list[OpenWait]:
        """What the run waits for, the oldest first: signals, events, children, sleeps; nothing once it has ended.

        It is read from the run's history: what the function has only just called may not be there yet. A wait that
        accepts several signals is there once for each. A run that is being undone waits for nothing of its function's.

        Raises:
            RunNotFound: There is no such run.
        """
        run = await self.get_run(run_id)
        if run.state in TERMINAL or run.error is not None:
            return []
        return open_waits(await self._store.history(run.id))

    async def census(self) -> Census:
        """The runs that have not ended, by workflow and state; and by queue what is ready, and for how long."""
        self._check_connected()
        return await self._store.census()

    # -- tokens -----------------------------------------------------------------------------------

    async def create_token(
        self, name: str, scopes: Iterable[Scope | str], expires: datetime | timedelta | None = None
    ) -> NewToken:
        """Make a token for the HTTP runtime. Its secret is in the answer and nowhere else: only its hash is stored.

        Args:
            name: Unique; as a workflow's name.
            scopes: What its holder may do, at least one; see ``Scope``.
            expires: When it is refused, or how long from now; None: when it is revoked.

        Raises:
            InvalidArgument: The name is taken, a scope is unknown, or the end has passed or has no time zone.
        """
        self._check_connected()
        name, wanted = check_name(name, "token name"), _scopes(scopes)
        now = self._store.clock.now()
        expires_at = _expiry(expires, now)
        secret = _MARK + secrets.token_urlsafe(32)
        token = Token(name, wanted, now, expires_at)
        if not await self._store.put_token(StoredToken(token, _digest(secret))):
            raise InvalidArgument(f"there is a token {name!r} already: revoke it first, or choose another name")
        return NewToken(name, secret, wanted, expires_at)

    async def tokens(self) -> list[Token]:
        """All tokens by name, those that have expired included; never a secret."""
        self._check_connected()
        return [stored.token for stored in await self._store.tokens()]

    async def revoke_token(self, name: str) -> bool:
        """Refuse the token from now on; False when there is none of this name."""
        self._check_connected()
        return await self._store.delete_token(check_name(name, "token name"))

    async def find_token(self, secret: str) -> Token | None:
        """The token with this secret; None when there is none, it was revoked, or it has expired.

        The lookup goes by a part of the hash, the comparison takes the same time wherever two hashes differ: how long
        an answer takes says nothing about any secret.
        """
        self._check_connected()
        digest = _digest(secret)
        for stored in await self._store.find_tokens(digest[:PREFIX]):
            if hmac.compare_digest(stored.digest, digest):
                end = stored.token.expires_at
                return stored.token if end is None or self._store.clock.now() < end else None
        return None

    # -- defects ----------------------------------------------------------------------------------

    async def diagnose(self) -> list[Finding]:
        """Look for what is wrong with the database and the runs in it: ``durable doctor``. Only reads.

        The engine need not run, and the schema need not exist: that the database does not answer is a finding too.

        Returns:
            One finding for each check, those that are well included. Where one is an error without which others cannot
            be made, those are left out.
        """
        try:
            await self._store.open()
        except DurableError as error:
            return [_unreachable(error)]
        try:
            return await self._findings()
        except StoreUnavailable as error:
            return [_unreachable(error)]
        finally:
            await self._store.close()

    async def _findings(self) -> list[Finding]:
        reached = Finding("connectivity", "ok", f"{self._store.url} answers")
        try:
            present = await self._store.schema_version()
        except ConfigurationError as error:
            if isinstance(error, StoreUnavailable):
                raise
            return [reached, Finding("role", "error", str(error), _GRANTS, count=1)]
        schema = _schema(present, self._store.latest_version)
        if schema.severity == "error":
            return [reached, schema]
        findings = [reached, schema, *await self._store.examine()]
        if any(one.severity == "error" and one.check in _NEEDED for one in findings):
            return findings
        return [*findings, _manned(await self._store.workers(), await self._store.census())]

    async def repair(self) -> list[str]:
        """Put right what ``diagnose`` calls repairable; a line for each thing that was done. Safe while workers work.

        Raises:
            StoreUnavailable: The database cannot be reached.
            SchemaOutdated, SchemaTooNew: The schema is not the one that this code knows.
            ConfigurationError: The role may not do it.
        """
        await self._store.open()
        try:
            await self._check_schema()
            done = list(await self._store.repair())
            self._store.announce(Hint.WORK)
            return done
        finally:
            await self._store.close()

    async def _check_schema(self) -> None:
        present, latest = await self._store.schema_version(), self._store.latest_version
        if present != latest:
            finding = _schema(present, latest)
            raise (SchemaTooNew if present > latest else SchemaOutdated)(f"{finding.message}: {finding.remedy}")


def _unreachable(error: DurableError) -> Finding:
    remedy = "see that the server runs, that the URL names it, and that its user may log in from here"
    return Finding("connectivity", "error", str(error), remedy, count=1)


def _schema(present: int, latest: int) -> Finding:
    if present == latest:
        return Finding("schema", "ok", f"the schema has version {present}, which this code needs")
    if present > latest:
        message = f"the schema has version {present}, and this code knows {latest}"
        return Finding("schema", "error", message, "deploy a newer version of this program", count=1)
    what = f"the schema has version {present}" if present else "there is no schema"
    message = f"{what}, and this code needs version {latest}"
    return Finding("schema", "error", message, "run `durable migrate`, as a role that may change the schema", count=1)


def _manned(workers: Sequence[WorkerInfo], census: Census) -> Finding:
    """Whether anybody works on what is ready."""
    living = sum(worker.alive for worker in workers)
    ready = sum(depth.ready for depth in census.queues.values())
    if living or not ready:
        return Finding("workers", "ok", f"workers that live: {living}; runs that are ready: {ready}")
    age = max(depth.age for depth in census.queues.values())
    message = f"no worker lives; runs that are ready: {ready}, the oldest for {age:.0f} s"
    return Finding("workers", "warning", message, "start a worker: `durable worker`", count=ready)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _scopes(scopes: Iterable[Scope | str]) -> frozenset[Scope]:
    if isinstance(scopes, str):
        raise InvalidArgument("scopes must be a list, such as ['read', 'trigger']")
    try:
        wanted = frozenset(Scope(scope) for scope in scopes)
    except ValueError as error:
        raise InvalidArgument(f"{error}; there are {', '.join(Scope)}") from None
    if not wanted:
        raise InvalidArgument(f"a token needs a scope; there are {', '.join(Scope)}")
    return wanted


def _expiry(expires: datetime | timedelta | None, now: datetime) -> datetime | None:
    end = now + expires if isinstance(expires, timedelta) else expires
    if end is not None and end.tzinfo is None:
        raise InvalidArgument("expires has no time zone")
    if end is not None and end <= now:
        raise InvalidArgument("expires must lie in the future")
    return end
