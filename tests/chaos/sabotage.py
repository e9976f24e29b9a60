"""Guards that a worker can be started without, by name: what each gate has to notice.

Nothing in the package can switch a guard off; here statements and methods of one process's store are replaced.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import psycopg

import durable.worker
from durable.clock import ServerClock
from durable.errors import StoreUnavailable
from durable.ids import new_id
from durable.model import Claimed, Created, Kind, NewRun, Outcome, Record, Renewal, RunWrite, Start
from durable.stores.postgres import PostgresStore


def _rewrite(store: PostgresStore, statement: str, old: str, new: str) -> None:
    text = store._statements[statement].decode()
    assert old in text, f"{statement} has no {old!r} to take away"
    store._statements = {**store._statements, statement: text.replace(old, new).encode()}


def no_fence(store: PostgresStore) -> None:
    """What a worker writes is written, whoever holds the run by then."""
    fence = "SELECT 1 FROM durable.workers WHERE id = $1::uuid AND lane = $27::text FOR KEY SHARE"
    _rewrite(store, "commit_writes", fence, "SELECT 1 WHERE $27::text IS NOT NULL")
    for claim in ("c", "r"):
        for row in ("r", "x"):
            owned = f"({row}.owner = $1::uuid AND {row}.claim = {claim}.claim) IS TRUE"
            if owned in store._statements["commit_writes"].decode():
                _rewrite(store, "commit_writes", owned, "true")


def forgets(store: PostgresStore) -> None:
    """A claim does not see the latest record of a history, if it was written by a worker."""
    claim = store.claim

    def without_the_latest(records: Sequence[Record]) -> Sequence[Record]:
        latest = max((record.seq for record in records if record.kind is not Kind.TAKEOVER), default=0)
        return [record for record in records if record.seq != latest]

    async def forgetful(*args: Any, **named: Any) -> Claimed:
        answer = await claim(*args, **named)
        runs = [replace(run, records=without_the_latest(run.records)) if run.records else run for run in answer.runs]
        return replace(answer, runs=runs)

    store.claim = forgetful  # type: ignore[method-assign]


def believes(store: PostgresStore) -> None:
    """A commit without an answer counts as committed."""
    commit = store.commit

    async def credulous(worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        try:
            return await commit(worker, writes)
        except StoreUnavailable:
            return [Outcome.APPLIED] * len(writes)

    store.commit = credulous  # type: ignore[method-assign]


def doubles(store: PostgresStore) -> None:
    """A trigger that is sent again is another trigger."""
    create = store.create_runs

    async def again(runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        now = store.clock.now()
        return await create([replace(run, id=new_id(now), request=None) for run in runs], start)

    store.create_runs = again  # type: ignore[method-assign]


def no_keys(store: PostgresStore) -> None:
    """Keys do not count."""
    create = store.create_runs

    async def keyless(runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        return await create([replace(run, key=None) for run in runs], start)

    store.create_runs = keyless  # type: ignore[method-assign]


def early(store: PostgresStore) -> None:
    """What is due within the hour is due now."""
    _rewrite(store, "claim_runs", "r.ready_at <= now()", "r.ready_at <= now() + interval '1 hour'")
    now = store._clock.now
    store._clock.now = lambda: now() + timedelta(hours=1)  # type: ignore[method-assign]


class _Unasked(ServerClock):
    """Never asks the server, so it shows the host's time."""

    def observe(self, server_now: datetime, sent: float) -> None:
        return None


def hosts_clock(store: PostgresStore) -> None:
    """Times are this process's, not the database's."""
    store._clock = _Unasked()


def renews_on_the_loop(store: PostgresStore) -> None:
    """The heartbeat needs the event loop, as one that is a task does."""
    renew = store.renew

    def on_the_loop(worker: str, lease: float) -> Renewal:
        turned = threading.Event()
        assert store._loop is not None
        store._loop.call_soon_threadsafe(turned.set)
        turned.wait()
        return renew(worker, lease)

    store.renew = on_the_loop  # type: ignore[method-assign]


def no_deadline(store: PostgresStore) -> None:
    """The worker does not ask itself whether its lease may have ended."""
    durable.worker.Worker.deadline = property(lambda _: float("inf"))  # type: ignore[method-assign,assignment]


def mute(store: PostgresStore) -> None:
    """A worker that has once been without its database does nothing any more."""
    commit = store.commit
    silent = asyncio.Event()

    async def for_ever(worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        try:
            if silent.is_set():
                await asyncio.get_running_loop().create_future()
            return await commit(worker, writes)
        except StoreUnavailable:
            silent.set()
            raise

    store.commit = for_ever  # type: ignore[method-assign]


def pastes(store: PostgresStore) -> None:
    """Somebody looks for a run by a statement with the key's text in it."""
    create = store.create_runs

    async def careless(runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        for run in runs:
            if run.key is not None:
                with psycopg.connect(store._given_url, autocommit=True) as connection, suppress(psycopg.Error):
                    connection.execute(f"SELECT id FROM durable.runs WHERE key = '{run.key}'".encode())
        return await create(runs, start)

    store.create_runs = careless  # type: ignore[method-assign]


def simplifies(store: PostgresStore) -> None:
    """Texts lose what some databases cannot keep, and numbers what some cannot hold."""
    commit = store.commit

    def simple(data: str | None) -> str | None:
        return None if data is None else data.replace("\\u0000", "").replace("9007199254740993", "9007199254740992")

    async def lossy(worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        for write in writes:
            write.records[:] = [record._replace(data=simple(record.data)) for record in write.records]
        return await commit(worker, writes)

    store.commit = lossy  # type: ignore[method-assign]


def leaks(store: PostgresStore) -> None:
    """A worker that keeps something of every commit: memory, and a descriptor."""
    commit = store.commit
    kept: list[object] = []

    async def greedy(worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        kept.append(b"x" * 100_000)
        if len(kept) % 10 == 0 and len(kept) < 5_000:  # more than 500 are refused on some systems
            kept.append(open(os.devnull, "rb"))  # noqa: ASYNC230, PTH123, SIM115 - left open, that is the point
        return await commit(worker, writes)

    store.commit = greedy  # type: ignore[method-assign]


WITHOUT: dict[str, Callable[[PostgresStore], None]] = {
    what.__name__: what
    for what in (
        *(no_fence, forgets, believes, doubles, no_keys, early, hosts_clock, renews_on_the_loop, no_deadline),
        *(mute, leaks, pastes, simplifies),
    )
}
