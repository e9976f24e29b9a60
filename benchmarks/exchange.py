"""What runs that talk to others cost: fan-out, children, signals, transactions; on a store of its own.

    python -m benchmarks.exchange [--store postgres|sqlite|memory] [--size 1.0] [--only NAME]

Scenarios, with ``--size 1``: one parent with 10,000 children by ``ctx.map``; one run with 10,000 steps by ``ctx.map``;
10,000 signals to 500 waiting runs, from the first one sent until the last run has ended; 2,000 transactions
(``ctx.transaction``, one row each) in 200 runs; 1,000 parents with 10 children each on two worker processes (in memory:
two workers in this one). It prints operations per second, and the CPU of the client and of the server per operation.
Figures of one run on one machine are for orientation; compare two versions in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import processes_cpu, server_pids, store_url
from durable import Context, Engine, RunHandle, State, Store, WorkerOptions, workflow
from durable.collector import sparing_collector
from durable.stores import store_for

RUNS_THAT_WAIT = 500
IN_FLIGHT = 500
"""Items of a fan-out that are under way at the same time, and runs of a worker."""


async def add_one(number: int) -> int:
    return number + 1


@workflow
async def child(ctx: Context, number: int) -> int:
    return await ctx.step("add", add_one, number)


@workflow
async def many_children(ctx: Context, count: int) -> int:
    return sum(await ctx.map("child", child, range(count), concurrency=IN_FLIGHT))


@workflow
async def many_steps(ctx: Context, count: int) -> int:
    return sum(await ctx.map("add", add_one, range(count), concurrency=IN_FLIGHT))


@workflow
async def ten_children(ctx: Context, number: int) -> int:
    return sum(await ctx.map("child", child, range(number, number + 10)))


@workflow
async def signalled(ctx: Context, count: int) -> int:
    total = 0
    for _ in range(count):
        total += await ctx.wait_for("number", int)
    return total


async def insert_async(connection: Any, number: int) -> int:
    await connection.execute("INSERT INTO bench_ledger (number) VALUES (%s)", [number])
    return number


def insert(connection: Any, number: int) -> int:
    connection.execute("INSERT INTO bench_ledger (number) VALUES (?)", [number])
    return number


@workflow
async def ten_transactions(ctx: Context, number: int) -> int:
    write = ctx.services["insert"]
    for n in range(10):
        await ctx.transaction("insert", write, 10 * number + n, returns=int)
    return number


WORKFLOWS = (child, many_children, many_steps, ten_children, signalled, ten_transactions)
HEAD = f"{'scenario':44} {'operations/s':>12} {'client µs':>9} {'server µs':>9} {'s':>6}"


class Bench:
    def __init__(self, kind: str, url: str, postmaster: int | None, size: float) -> None:
        self.kind = kind
        self.url = url
        self.postmaster = postmaster
        self.size = size

    def of(self, count: int) -> int:
        return max(10, round(count * self.size))

    def engine(self, store: Store | None = None) -> Engine:
        services = {"insert": insert_async if self.kind == "postgres" else insert}
        options = WorkerOptions(concurrency=IN_FLIGHT)
        return Engine(store or self.store(), workflows=WORKFLOWS, services=services, worker=options)

    def store(self) -> Store:
        return store_for(self.url, "durable")

    @contextlib.contextmanager
    def measured(self, name: str, operations: int, pids: Iterable[int] = ()) -> Generator[None]:
        """Print what the block took. ``pids``: further processes of the client."""
        workers = list(pids)
        server, client = processes_cpu(server_pids(self.postmaster)), time.process_time() + processes_cpu(workers)
        started = time.monotonic()
        yield
        seconds = time.monotonic() - started
        client = time.process_time() + processes_cpu(workers) - client
        server = processes_cpu(server_pids(self.postmaster)) - server
        micro = 1e6 / operations
        print(
            f"{name:44} {operations / seconds:>12,.0f} {client * micro:>9.1f} {server * micro:>9.1f} {seconds:>6.1f}",
            flush=True,
        )

    # -- scenarios --------------------------------------------------------------------------------

    async def children(self) -> None:
        count = self.of(10_000)
        async with self.engine() as engine:
            with self.measured(f"1 parent, {count:,} children", count):
                total = await (await engine.trigger(many_children, count)).result()
        assert total == count * (count + 1) // 2

    async def steps(self) -> None:
        count = self.of(10_000)
        async with self.engine() as engine:
            with self.measured(f"1 run, {count:,} steps by map", count):
                total = await (await engine.trigger(many_steps, count)).result()
        assert total == count * (count + 1) // 2

    async def signals(self) -> None:
        """All runs wait before the first signal is sent; they get theirs in rounds, as fast as they are accepted."""
        each = max(1, self.of(10_000) // RUNS_THAT_WAIT)
        async with self.engine() as engine:
            handles = await engine.trigger_many(signalled, [each] * RUNS_THAT_WAIT)
            await all_wait(engine, handles)
            with self.measured(f"{each * len(handles):,} signals to {len(handles)} runs", each * len(handles)):
                for number in range(each):
                    await asyncio.gather(*(engine.signal(handle.run_id, "number", number) for handle in handles))
                totals = await asyncio.gather(*(handle.result() for handle in handles))
        assert totals == [sum(range(each))] * len(handles)

    async def transactions(self) -> None:
        if self.kind == "memory":
            return  # it has no connection to share
        runs = self.of(200)
        self.make_ledger()
        async with self.engine() as engine:
            with self.measured(f"{10 * runs:,} transactions in {runs} runs", 10 * runs):
                handles = await engine.trigger_many(ten_transactions, list(range(runs)))
                await asyncio.gather(*(handle.result() for handle in handles))

    async def two_workers(self) -> None:
        parents = self.of(1000)
        shared = self.store()
        client = self.engine(shared)
        async with client.client(), self.two(shared) as pids:
            with self.measured(f"{parents:,} parents, 10 children each, two workers", 11 * parents, pids):
                handles = await client.trigger_many(ten_children, list(range(parents)))
                totals = await asyncio.gather(*(handle.result() for handle in handles))
        assert totals == [10 * number + 55 for number in range(parents)]

    # -- what they need ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def two(self, shared: Store) -> AsyncGenerator[list[int]]:
        """Two workers; in processes of their own, whose ids are yielded, where the store can be shared by processes."""
        if self.kind == "memory":
            async with self.engine(shared), self.engine(shared):
                yield []
            return
        arguments = (sys.executable, "-m", "benchmarks.exchange", "--worker", self.url, "--store", self.kind)
        pipe = asyncio.subprocess.PIPE
        workers = [await asyncio.create_subprocess_exec(*arguments, stdout=pipe) for _ in range(2)]
        try:
            for worker in workers:
                assert worker.stdout is not None
                await worker.stdout.readline()  # it is there
            yield [worker.pid for worker in workers]
        finally:
            for worker in workers:
                worker.terminate()
            for worker in workers:
                await worker.wait()

    def make_ledger(self) -> None:
        statement = "CREATE TABLE IF NOT EXISTS bench_ledger (number integer)"
        if self.kind == "postgres":
            import psycopg

            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute(statement)
        else:
            import sqlite3

            with contextlib.closing(sqlite3.connect(Path(self.url.removeprefix("sqlite:///")))) as file:
                file.execute(statement)


async def all_wait(engine: Engine, handles: list[RunHandle[int]]) -> None:
    """Return when all of them are parked."""
    while True:
        parked = await engine.list_runs(workflow="signalled", state=State.WAITING, limit=1000)
        if len(parked.items) >= len(handles):
            return
        await asyncio.sleep(0.05)  # only ends are announced


async def work(bench: Bench) -> None:
    """A worker process, until it is told to stop."""
    async with bench.engine():
        print("working", flush=True)
        await asyncio.Event().wait()


async def scenarios(bench: Bench, only: str | None, repeat: int) -> None:
    print(HEAD, flush=True)
    plan: dict[str, Callable[[], Awaitable[None]]] = {
        "children": bench.children,
        "steps": bench.steps,
        "signals": bench.signals,
        "transactions": bench.transactions,
        "two-workers": bench.two_workers,
    }
    for name, scenario in plan.items():
        if only in (None, name):
            for _ in range(repeat):
                await scenario()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="times the numbers above (1)")
    parser.add_argument("--repeat", type=int, default=2, help="measurements of each scenario (2)")
    parser.add_argument("--store", choices=("postgres", "sqlite", "memory"), default="postgres")
    parser.add_argument("--only", choices=("children", "steps", "signals", "transactions", "two-workers"))
    parser.add_argument("--worker", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        with sparing_collector(), contextlib.suppress(KeyboardInterrupt):
            asyncio.run(work(Bench(args.store, args.worker, None, args.size)))
        return
    with store_url(args.store) as (url, postmaster), sparing_collector():
        print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {args.store}")
        asyncio.run(scenarios(Bench(args.store, url, postmaster, args.size), args.only, args.repeat))


if __name__ == "__main__":
    main()
