"""The seam over Postgres: which named statements make up each of its methods, on which connection.

The protocol is explained beside the statements, in ``sql/postgres/queries``. This module knows nothing of
workflows; what is hot goes through a lane of its own, everything else through a small pool.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

from durable.clock import ServerClock
from durable.errors import (
    InvalidArgument,
    PayloadError,
    StoreUnavailable,
    without_password,
)
from durable.model import (
    Created,
    Effect,
    Emitted,
    NewRun,
    NewSignal,
    Outcome,
    Published,
    Queue,
    Reaped,
    Renewal,
    Request,
    RunRef,
    RunWrite,
    Sent,
    Start,
    State,
    Unread,
)
from durable.sql import check_schema, migrations, statements
from durable.store import Clock, Hint, Route
from durable.stores.postgres import (
    creating,
    effects,
    foreign,
    literals,
    migrating,
    pruning,
    requesting,
    rows,
    transactions,
    turns,
)
from durable.stores.postgres import events as publishing
from durable.stores.postgres import signals as signalling
from durable.stores.postgres import writes as flushing
from durable.stores.postgres.claiming import ONLY, Claiming
from durable.stores.postgres.connections import Server
from durable.stores.postgres.foreign import OnPostgresConnection
from durable.stores.postgres.hints import Hints
from durable.stores.postgres.lease import LeaseConnection
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.oversight import Oversight
from durable.stores.postgres.queues import Limits
from durable.stores.postgres.reading import Reading
from durable.stores.postgres.reaping import STUCK_AFTER, Blockers
from durable.stores.postgres.routing import Routes
from durable.stores.postgres.schedules import Schedules
from durable.stores.postgres.sessions import FLUSHES, SHARD, Sessions
from durable.stores.postgres.transactions import Transactions
from durable.stores.postgres.wire import Call

_LANES = ("claim", "start", *FLUSHES, "effect", *transactions.LANES)
"""Each under a row of its own with the worker's lease, for what it sends at the same time as the others."""
_MARK = "/* only this run */"


class PostgresStore(Claiming, Reading, Schedules, Oversight):
    """Runs in a schema of a Postgres database.

    Constructing it does no I/O.

    Args:
        url: ``postgresql://…`` or a libpq DSN.
        schema: Where the tables are; a plain lower-case name.
        pool_size: Connections for reads and rare operations, at least 2. Seven more are dedicated: two to commits,
            one each to claims, triggers, listening, notifying and the heartbeat; and up to ten more are opened for
            ``ctx.transaction`` when it is used.
        prepare_threshold: Uses of a statement after which a connection prepares it; None behind a pooler in
            transaction mode that does not know prepared statements.

    Raises:
        InvalidArgument: The URL, the schema or the pool's size is not valid.
    """

    def __init__(
        self, url: str, *, schema: str = "durable", pool_size: int = 4, prepare_threshold: int | None = 0
    ) -> None:
        if pool_size < 2:
            raise InvalidArgument(f"pool_size is {pool_size}, and must be at least 2")
        self._schema = check_schema(schema)
        self._server = Server(url, prepare_threshold)
        self._server.check()
        self._given_url, self._url = url, without_password(url)
        self._prepare_threshold = prepare_threshold
        self._pool_size = pool_size
        self._statements = _prepared(schema)
        self._migrations = migrations("postgres", schema)
        self._clock = ServerClock()
        self._lease = LeaseConnection(self._server, self._statements["renew"])
        self._hints = Hints(self._server, schema, self._statements["notify"])
        self._routes = Routes()
        self._limits = Limits()
        self._sweeps = turns.Sweeps()
        self._pruning = pruning.Pruning(SHARD)
        self._opened = 0
        self._opening: asyncio.Lock | None = None
        self._sessions: Sessions | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"<PostgresStore {self._url} schema={self._schema}>"

    @property
    def clock(self) -> Clock:
        return self._clock

    @property
    def url(self) -> str:
        return self._url

    def twin(self) -> PostgresStore:
        return PostgresStore(
            self._given_url, schema=self._schema, pool_size=self._pool_size, prepare_threshold=self._prepare_threshold
        )

    # -- life -------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect; engines that share the store open it several times.

        Raises:
            StoreUnavailable: The server cannot be reached.
            ConfigurationError: The database's encoding is not UTF8.
        """
        self._opening = self._opening or asyncio.Lock()
        async with self._opening:
            if self._opened == 0:
                await self._connect()
            self._opened += 1

    async def _connect(self) -> None:
        sessions = Sessions(self._server, self._pool_size, self._statements)
        try:
            await sessions.open()
            sent = time.monotonic()
            [[now]] = await sessions.read("server_now")
            place = await foreign.place(sessions)
        except BaseException:
            await sessions.close()
            raise
        self._clock.observe(now, sent)
        self._lease.open()
        self._hints.open()
        self._loop = asyncio.get_running_loop()
        self._sessions = sessions
        self._blockers = Blockers(sessions)
        self._on_connection = OnPostgresConnection(place, self._statements)
        self._transactions = Transactions(sessions, self._schema)

    async def close(self) -> None:
        """Undo one ``open``; the last one closes every connection and ends every task."""
        if self._opening is None:
            return
        async with self._opening:
            self._opened = max(0, self._opened - 1)
            if self._opened == 0 and self._sessions is not None:
                sessions, self._sessions = self._sessions, None
                self._lease.close()
                await self._transactions.close()
                await self._hints.close()
                await sessions.close()

    async def schema_version(self) -> int:
        """The version of the schema in the database, 0 when there is none.

        Raises:
            ConfigurationError: The role may not use the schema.
        """
        return await self._use.on_connection(lambda connection: migrating.version(connection, self._schema))

    @property
    def latest_version(self) -> int:
        return len(self._migrations)

    async def migrate(self) -> None:
        """Bring the schema to ``latest_version``. Safe from many processes at once.

        Raises:
            SchemaTooNew: The database is ahead of this code.
            ConfigurationError: The role may not change the schema.
        """
        await self._use.on_connection(lambda connection: migrating.migrate(connection, self._schema, self._migrations))

    def migration_script(self, present: int) -> str:
        return migrating.script(self._schema, self._migrations[present:])

    @property
    def _use(self) -> Sessions:
        if self._sessions is None:
            raise StoreUnavailable("the store is not open")
        return self._sessions

    # -- workers ----------------------------------------------------------------------------------

    async def register(self, worker: str, lease: float, host: str = "", pid: int = 0) -> None:
        named = worker, str(lease), literals.words(_LANES), host, str(pid)
        await self._use.write("register", self._call("register", *named))

    def renew(self, worker: str, lease: float) -> Renewal:
        """Extend the lease; from the heartbeat thread only."""
        renewal, sent = self._lease.renew(worker, lease)
        assert self._loop is not None, "renewed only between open and close"
        with suppress(RuntimeError):  # the loop was closed meanwhile: nobody reads the clock any more
            # On the loop: the clock's two values are read there, and must not be seen half written.
            self._loop.call_soon_threadsafe(self._clock.observe, renewal.now, sent)
        return renewal

    async def unregister(self, worker: str) -> None:
        await self._use.write(
            "unregister",
            self._call("delete_worker", worker),
            self._call("leave_orderly", worker),
            *self._release(limit=5, worker=worker),
        )

    async def reap(self, limit: int = 5) -> Reaped:
        calls = [self._call("delete_expired"), *self._release(limit), self._call("stuck_workers", str(STUCK_AFTER))]
        _, released, *_, [[stuck]] = await self._use.write("reap", *calls)
        answers = [released]
        if stuck:
            await self._blockers.end()
            _, released, *_ = await self._use.write("reap", *calls)
            answers.append(released)
        self._sweeps.soon()
        return rows.reaped(row for [row] in answers)

    def _release(self, limit: int, worker: str | None = None) -> list[Call]:
        error = rows.gave_up(limit)
        return [
            self._call("release_orphans", str(limit), error, worker),
            self._call("tell_parents", "{}", literals.ids([]), "true"),
            *turns.left_by_the_dead(self._use, SHARD),
            effects.freed_by_deaths(self._use),
            self._call("forget_claims"),
            self._call("forget_requests"),
        ]

    # -- execution, fenced ------------------------------------------------------------------------

    async def unread(self, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
        known = literals.known(run_ids)
        return await signalling.unread(self._use, SHARD, worker, known) if known else {}

    async def owned(self, worker: str) -> list[RunRef]:
        return [RunRef(*row) for row in await self._use.read("owned", worker)]

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if not writes:
            return []
        asking: list[Call] = []
        calls: list[Call] = []
        if any(write.also is not None or write.ref.linked for write in writes):
            asking = signalling.lost(self._use, worker, writes)
            calls += [*asking, *await self._beside(worker, writes)]
        if again := [write for write in writes if write.change is not None and write.change.drop_failed]:
            calls.append(await self._set_aside(again))
        calls += (leaving := turns.leaving(self._use, SHARD, writes))
        name, lane = self._use.idle_flush()
        first = self._call("commit_writes", *flushing.parameters(worker, name, writes))
        try:
            answers, *others = await lane.transaction(first, *calls)
        except PayloadError as error:
            return await self._commit_the_rest(worker, writes, error)
        answers += others[0] if asking else []
        if len(leaving) > 1 and self._sweeps.passed(others[-1]):
            self.announce(Hint.WORK)  # to the other processes: a run that was queued is ready
        return await self._explained(writes, answers) if answers else [Outcome.APPLIED] * len(writes)

    async def _beside(self, worker: str, writes: Sequence[RunWrite]) -> list[Call]:
        """What some of the writes do to others than their runs, each in a statement of its own."""
        new = [Route(run.workflow, run.version, run.queue) for w in writes if w.also for run in w.also.children]
        routes = await self._routes.numbers(self._use, new)
        return [
            *signalling.children(self._use, worker, writes, routes),
            *signalling.consumed(self._use, worker, writes),
            *publishing.awaited(self._use, worker, writes),
            *publishing.emitted(self._use, writes),
            *effects.ended(self._use, worker, writes),
            *signalling.ends(self._use, writes),
            *effects.freed(self._use, writes),
        ]

    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        return await effects.take(self._use, worker, ref, key, step)

    async def transact(
        self,
        worker: str,
        work: Callable[[Any], Any],
        on_loop: bool,
        write: Callable[[Any], Awaitable[RunWrite]],
    ) -> Outcome:
        return await self._transactions.run(worker, work, on_loop, write)

    async def _set_aside(self, writes: Sequence[RunWrite]) -> Call:
        """What another run attempt sets aside, decided on the stored history: only this worker adds to it."""
        refs = [write.ref for write in writes]
        stored = await requesting.outlines(self._use, refs)
        keys = [requesting.to_set_aside(stored[write.ref.id], write) for write in writes]
        return self._call("set_aside", *flushing.aside(refs, keys))

    async def _commit_the_rest(self, worker: str, writes: Sequence[RunWrite], error: PayloadError) -> list[Outcome]:
        """Some records may be stored already: this is the second sending of a flush whose answer was lost.

        Raises:
            PayloadError: None is, so it is ``error``.
        """
        stored = await self._stored_records(writes)
        if not stored:
            raise error
        runs = await self._stored_runs(writes)
        again = [flushing.again(write, worker, runs.get(write.ref.id), stored) for write in writes]
        rest = [answer for answer in again if isinstance(answer, RunWrite)]
        answers = iter(await self.commit(worker, rest))
        return [next(answers) if isinstance(answer, RunWrite) else answer for answer in again]

    async def _explained(self, writes: Sequence[RunWrite], answers: list[rows.Row]) -> list[Outcome]:
        """The outcomes when some writes were not applied now: they may have been applied by an earlier sending."""
        if any(run_id is None for run_id, _ in answers):
            return [Outcome.LEASE_LOST] * len(writes)
        found = {run_id: Outcome(outcome) for run_id, outcome in answers}
        lost = [write for write in writes if found.get(write.ref.id) is Outcome.LEASE_LOST]
        runs, stored = await self._stored_runs(lost), await self._stored_records(lost)
        for write in lost:
            if flushing.was_applied(write, runs.get(write.ref.id), stored):
                found[write.ref.id] = Outcome.APPLIED
        return [found.get(write.ref.id, Outcome.APPLIED) for write in writes]

    async def _stored_runs(self, writes: Sequence[RunWrite]) -> dict[str, flushing.Standing]:
        return {row[0]: row[1:] for row in await self._use.read("stored_runs", *flushing.refs(writes))}

    async def _stored_records(self, writes: Sequence[RunWrite]) -> flushing.Stored:
        found = await self._use.read("stored_records", *flushing.record_keys(writes))
        return {(row[0], row[1]): row[2:] for row in found}

    # -- anybody ----------------------------------------------------------------------------------

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        if not runs:
            return []
        numbers = await self._routes.numbers(self._use, [Route(run.workflow, run.version, run.queue) for run in runs])
        first: dict[str, NewRun] = {}
        for run in runs:
            first.setdefault(run.id, run)
        if len(first) < len(runs):
            answers = iter(await self.create_runs(list(first.values()), start))
            again = iter(await self.create_runs([run for run in runs if first[run.id] is not run]))
            return [next(answers if first[run.id] is run else again) for run in runs]
        if start is None:
            return await creating.create(self._use, runs, numbers)
        known = self._limits
        return await creating.start(self._use, runs, numbers, start, known.version, known.limited)

    async def create_with_signal(self, run: NewRun, signal: NewSignal) -> tuple[Created, Sent]:
        routes = await self._routes.numbers(self._use, [Route(run.workflow, run.version, run.queue)])
        return await signalling.create_with(self._use, run, signal, routes)

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[Sent]:
        return await signalling.send(self._use, signals)

    async def publish(self, events: Sequence[Published]) -> None:
        await publishing.publish(self._use, SHARD, events)

    async def emitted(self, after: str | None, limit: int) -> list[Emitted]:
        return await publishing.log(self._use, SHARD, after, limit)

    async def put_queues(self, queues: Sequence[Queue]) -> None:
        await self._limits.put(self._use, queues)

    async def queues(self) -> list[Queue]:
        return await self._limits.refresh(self._use)

    @property
    def on_connection(self) -> OnPostgresConnection | None:
        return None if self._sessions is None else self._on_connection

    async def request(self, run_id: str, request: Request) -> State | None:
        self._sweeps.soon()
        return await requesting.ask(self._use, SHARD, literals.existing(run_id), request)

    async def retry_from(self, run_id: str, step: str, request: Request) -> State | None:
        return await requesting.ask(self._use, SHARD, literals.existing(run_id), request, step)

    async def prune(self, before: datetime, limit: int) -> int:
        return await self._pruning.prune(self._use, before, limit)

    async def delete(self, run_id: str) -> bool:
        return await pruning.delete(self._use, SHARD, literals.existing(run_id))

    # -- hints ------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        return self._hints.subscribe(callback)

    def announce(self, hint: Hint) -> None:
        self._hints.announce(hint)

    def _call(self, name: str, *parameters: Parameter) -> Call:
        return self._use.call(name, *parameters)


@cache
def _prepared(schema: str) -> Mapping[str, bytes]:
    """What is sent: with the two claims once more for one run, which they look up by its id."""
    found = statements("postgres", schema)
    marked = [(name + ONLY, sql.replace(_MARK, "AND r.id = $10::uuid")) for name, sql in found.items() if _MARK in sql]
    return {name: _without_comments(sql) for name, sql in (*found.items(), *marked)}


def _without_comments(sql: str) -> bytes:
    """What the server need not read, and would show in ``pg_stat_activity`` instead of the statement's beginning."""
    return "\n".join(line for line in sql.splitlines() if not line.startswith("--")).encode()
