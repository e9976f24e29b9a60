"""The work of the engine on Postgres, counted: what no other load on the machine can change.

    python -m benchmarks.counted          the table of this tree
    python -m benchmarks.counted --write  …and into tests/postgres/counted.json, which a test compares

Statements and round trips are counted on the wire, by a relay that reads the frontend's messages; rows and WAL by the
server. Looks at the queue stand apart: one more or less depends on when a hint arrives, so there is only a least
number of them; what each consists of is exact. Of rows and WAL the table has the mean of the repetitions, without
full-page images: how many there are depends on when the last checkpoint was, not on the engine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import psycopg

from durable import Context, Engine, State, WorkerOptions, Workflow, workflow
from durable.sql import statements
from durable.stores import store_for
from durable.testing.postgres import own_postgres

TABLE = Path(__file__).parents[1] / "tests" / "postgres" / "counted.json"
CROWD = 500
REPEATS = 20

_SETTINGS = {
    "full_page_writes": "off",
    "autovacuum": "off",  # its writes are not the engine's
    "checkpoint_timeout": "1d",
    "bgwriter_delay": "10s",
}
_BESIDE = {"renew", "notify", "server_now"}
"""Statements of the heartbeat and of hints: they come when time has passed, not when work was done."""
_CLAIMS = {"claim_runs", "claim_limited", "look"}
_UNCOUNTED = {"workers", "migrations", "routes"}
"""Tables of the life of workers and schemas, not of runs."""


# -- the work -------------------------------------------------------------------------------------


async def add(total: int, n: int) -> int:
    return total + n


@workflow
async def one_step(ctx: Context, start: int) -> int:
    return await ctx.step("add", add, start, 1)


@workflow
async def three_steps(ctx: Context, start: int) -> int:
    for n in range(3):
        start = await ctx.step(f"add-{n}", add, start, n)
    return start


@workflow
async def ten_steps(ctx: Context, start: int) -> int:
    for n in range(10):
        start = await ctx.step(f"add-{n}", add, start, n)
    return start


@workflow
async def sleeps(ctx: Context, start: int) -> int:
    await ctx.sleep("nap", 86_400)
    return start


@workflow
async def waits(ctx: Context, start: int) -> int:
    return start + await ctx.wait_for("more", int)


@workflow
async def calls_a_child(ctx: Context, start: int) -> int:
    return await (await ctx.start("child", one_step, start)).result()


FLOWS = [one_step, three_steps, ten_steps, sleeps, waits, calls_a_child]


async def _trigger(engine: Engine) -> None:
    await engine.trigger(one_step, 1)


async def _trigger_many(engine: Engine) -> None:
    await engine.trigger_many(one_step, list(range(CROWD)))


def _until_idle(flow: Workflow[int, int]) -> Callable[[Engine], Awaitable[None]]:
    async def one(engine: Engine) -> None:
        await engine.trigger(flow, 1)
        await engine.run_until_idle()

    return one


async def _signal(engine: Engine) -> None:
    run = await engine.trigger(waits, 1)
    await engine.run_until_idle()
    await engine.signal(run.run_id, "more", 1)
    await engine.run_until_idle()


async def _crowd(engine: Engine) -> None:
    await engine.trigger_many(ten_steps, list(range(CROWD)))
    await engine.run_until_idle()


@dataclass(frozen=True)
class Scenario:
    """Something to count.

    Args:
        act: Does it once.
        left: The state in which it leaves every run; pending: in an engine without a worker.
        times: Divides the figures of one repetition: how many runs, or steps, it is about.
        repeats: How often it is done.
        shares: Several runs are on their way, and which of their writes share a flush is decided by the machine.
    """

    act: Callable[[Engine], Awaitable[None]]
    left: State = State.COMPLETED
    times: int = 1
    repeats: int = REPEATS
    shares: bool = False


SCENARIOS: dict[str, Scenario] = {
    "trigger": Scenario(_trigger, State.PENDING),
    f"trigger, {CROWD} in one call, each": Scenario(_trigger_many, State.PENDING, times=CROWD, repeats=3),
    "run of one step": Scenario(_until_idle(one_step)),
    "run of three steps": Scenario(_until_idle(three_steps)),
    "run of ten steps": Scenario(_until_idle(ten_steps)),
    "run that sleeps, until it is parked": Scenario(_until_idle(sleeps), State.SLEEPING),
    "run that waits for a signal, which comes": Scenario(_signal),
    "run with a child of one step": Scenario(_until_idle(calls_a_child), shares=True),
    f"step of ten-step runs, {CROWD} in flight": Scenario(_crowd, times=10 * CROWD, repeats=3, shares=True),
}


# -- the wire -------------------------------------------------------------------------------------


class Wire:
    """A relay in front of a server that reads what clients send.

    Attributes:
        url: The same database, through the relay.
        executed: Statements, by their names under ``sql/``; others by their first words.
        syncs: How often a client asked for an answer.
        looks: The same apart for what claims: its statements, and how often.
    """

    def __init__(self, url: str, schema: str) -> None:
        self._target = urlsplit(url)
        self._names = {_bare(sql): name for name, sql in statements("postgres", schema).items()}
        self._tasks: set[asyncio.Task[None]] = set()
        self.url = ""
        self.executed: Counter[str] = Counter()
        self.syncs = 0
        self.looks: Counter[tuple[str, ...]] = Counter()

    def clear(self) -> None:
        self.executed.clear()
        self.looks.clear()
        self.syncs = 0

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator[None]:
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        user, _, _ = self._target.netloc.rpartition("@")
        port = server.sockets[0].getsockname()[1]
        self.url = urlunsplit(self._target._replace(netloc=f"{user}@127.0.0.1:{port}", query="sslmode=disable"))
        try:
            yield
        finally:
            server.close()
            await asyncio.gather(*self._tasks)  # each ends when its client, the store, hangs up

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream = await asyncio.open_connection(self._target.hostname, self._target.port)
        ends = [asyncio.create_task(self._read(reader, upstream[1])), asyncio.create_task(_copy(upstream[0], writer))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            writer.close()
            upstream[1].close()
            self._tasks.discard(task)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Messages are a letter, a length and a body; the first one of a connection has no letter."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            length = await reader.readexactly(4)
            writer.write(length + await reader.readexactly(int.from_bytes(length) - 4))
            known: dict[bytes, str] = {}
            bound, sent = "", list[str]()
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(int.from_bytes(head[1:]) - 4)
                writer.write(head + body)
                kind = head[:1]
                if kind == b"P":
                    name, sql, *_ = body.split(b"\0", 2)
                    known[name] = self._name(sql.decode())
                elif kind == b"B":
                    bound = known[body.split(b"\0", 2)[1]]
                elif kind == b"E":
                    sent.append(bound)
                elif kind == b"S":
                    self._count(sent)
                    sent = []

    def _count(self, sent: list[str]) -> None:
        """One round trip."""
        if not sent or any(what in _BESIDE or " " in what for what in sent):
            return
        if any(what in _CLAIMS for what in sent):
            self.looks[tuple(sent)] += 1
        else:
            self.executed.update(sent)
            self.syncs += 1

    def _name(self, sql: str) -> str:
        found = self._names.get(_bare(sql))
        if found is None:  # a claim of one run is the claim with a condition more
            found = self._names.get(_bare(sql.replace("AND r.id = $10::uuid", "/* only this run */")), sql[:40])
        return "BEGIN" if found.startswith("BEGIN") else found


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()


def _bare(sql: str) -> str:
    return " ".join(re.sub(r"--.*", "", sql).split())


# -- counting -------------------------------------------------------------------------------------


@dataclass
class Counted:
    """What one repetition of a scenario took, divided by its ``times``."""

    looks: int = 0
    look: list[list[str]] = field(default_factory=list[list[str]])
    statements: dict[str, float] = field(default_factory=dict[str, float])
    round_trips: float = 0.0
    transactions: float = 0.0
    rows: dict[str, dict[str, float]] = field(default_factory=dict[str, dict[str, float]])
    wal_records: float = 0.0
    wal_bytes: float = 0.0


class _Seen(NamedTuple):
    """On the wire, in one repetition."""

    executed: Counter[str]
    syncs: int
    looks: Counter[tuple[str, ...]]


class Server:
    """A server for counting, with one empty database after the other."""

    def __init__(self, url: Callable[[str], str]) -> None:
        self._database = url
        self._number = 0

    async def count(self, scenario: Scenario) -> Counted:
        self._number += 1
        url = self._database(f"counted_{self._number}")
        async with Engine(url).client() as engine:
            await engine.migrate()
        wire = Wire(url, "durable")
        with psycopg.connect(url, autocommit=True) as watching:
            async with wire.listening():
                seen: list[_Seen] = []
                await self._repeat(wire, scenario, 1, seen)  # routes are made, and the tables have their first pages
                seen.clear()
                before = await asyncio.to_thread(_stored, watching)
                await self._repeat(wire, scenario, scenario.repeats, seen)
                after = await asyncio.to_thread(_stored, watching)
            states = watching.execute("SELECT DISTINCT state FROM durable.runs").fetchall()
            assert states == [(scenario.left.value,)], states
        one = min(seen, key=lambda one: (one.syncs, one.looks.total()))
        times, all_of = scenario.times, scenario.times * scenario.repeats
        rows = {
            table: {what: round(number / all_of, 2) for what, number in _less(after, before, table).items() if number}
            for table in sorted(after.keys() - _UNCOUNTED - {"wal"})
        }
        wal = _less(after, before, "wal")
        return Counted(
            min(found.looks.total() for found in seen),
            sorted(map(list, {look for found in seen for look in found.looks})),
            {name: round(number / times, 4) for name, number in sorted(one.executed.items())},
            round(one.syncs / times, 4),
            round(one.executed["COMMIT"] / times, 4),
            {table: what for table, what in rows.items() if what},
            round(wal["records"] / all_of, 2),
            round(wal["bytes"] / all_of, 1),
        )

    async def idle(self, looks: int) -> tuple[Counter[tuple[str, ...]], Counter[str]]:
        """What a worker without runs sends in so many polls: its looks, and the rest."""
        self._number += 1
        wire = Wire(self._database(f"counted_{self._number}"), "durable")
        async with wire.listening():
            worker = WorkerOptions(lease=600, poll_interval=0.02)
            async with Engine(store_for(wire.url, "durable"), workflows=FLOWS, worker=worker) as engine:
                await engine.run_until_idle()
                wire.clear()
                while wire.looks.total() < looks:
                    await asyncio.sleep(0.02)
                return wire.looks.copy(), wire.executed.copy()

    async def _repeat(self, wire: Wire, scenario: Scenario, repeats: int, seen: list[_Seen]) -> None:
        options = WorkerOptions(concurrency=CROWD, linger=0, lease=600, poll_interval=600)
        engine = Engine(store_for(wire.url, "durable"), workflows=FLOWS, worker=options)
        works = scenario.left is not State.PENDING
        async with engine if works else engine.client():
            if works:
                await engine.run_until_idle()
            for _ in range(repeats):
                wire.clear()
                await scenario.act(engine)
                seen.append(_Seen(wire.executed.copy(), wire.syncs, wire.looks.copy()))


def _stored(connection: psycopg.Connection[Any]) -> dict[str, dict[str, float]]:
    """Rows and WAL since ever, once every other session has ended: each tells its figures at its end."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while connection.execute(others).fetchone() != (0,):
        time.sleep(0.01)
    found: dict[str, dict[str, float]] = {}
    rows = "SELECT relname, n_tup_ins, n_tup_upd, n_tup_hot_upd, n_tup_del FROM pg_stat_user_tables"
    for table, *numbers in connection.execute(rows):
        found[table] = dict(zip(("inserted", "updated", "hot", "deleted"), numbers, strict=True))
    for records, size in connection.execute("SELECT wal_records, wal_bytes FROM pg_stat_wal"):
        found["wal"] = {"records": records, "bytes": float(size)}
    return found


def _less(after: dict[str, dict[str, float]], before: dict[str, dict[str, float]], table: str) -> dict[str, float]:
    return {what: number - before[table][what] for what, number in after[table].items()}


@contextmanager
def counting_server() -> Generator[Server]:
    """A server of its own, on which nothing writes but the engine."""
    with own_postgres(durable=False) as server:
        with psycopg.connect(server.url, autocommit=True) as connection:
            for name, value in _SETTINGS.items():
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'".encode())
            connection.execute("SELECT pg_reload_conf()")
        yield Server(server.database)


async def count_all() -> dict[str, Counted]:
    with counting_server() as server:
        return {name: await server.count(scenario) for name, scenario in SCENARIOS.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="into the table that the test compares")
    args = parser.parse_args()
    found = asyncio.run(count_all())
    text = json.dumps({name: vars(one) for name, one in found.items()}, indent=1, ensure_ascii=False) + "\n"
    if args.write:
        TABLE.write_text(text, "utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
