"""How many steps and runs one worker process carries, on a Postgres of its own with durable settings.

    python benchmarks/throughput.py [--seconds 8] [--in-flight 500] [--store postgres|sqlite|memory] [--only NAME]

The garbage collector is set as ``engine.run()`` does, or as Python does by itself with --collector default.

Scenarios: runs of ten steps, and runs of one step, drained (all triggered before the worker starts) and triggered
while they drain. It prints steps/s and runs/s, the CPU of the client and of the server per step, and how many
records a flush carried. Figures of one run on one machine are for orientation; compare two versions in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

from durable import Context, Engine, WorkerOptions, Workflow, workflow
from durable.collector import sparing_collector
from durable.model import Outcome, RunWrite
from durable.states import TERMINAL
from durable.store import Store
from durable.stores import store_for
from durable.testing.postgres import own_postgres


async def add(total: int, n: int) -> int:
    return total + n


@workflow
async def ten_steps(ctx: Context, start: int) -> int:
    total = start
    for n in range(10):
        total = await ctx.step(f"add-{n}", add, total, n)
    return total


@workflow
async def one_step(ctx: Context, start: int) -> int:
    return await ctx.step("add", add, start, 1)


class Flushes:
    """Counts what the committer sends, and knows when all runs have ended."""

    def __init__(self, store: Store) -> None:
        self.flushes = self.records = self._ended = self._expected = 0
        self._all_ended = asyncio.Event()
        self._commit = store.commit
        store.commit = self._counted  # type: ignore[method-assign]

    def expect(self, runs: int) -> None:
        self.flushes = self.records = self._ended = 0
        self._expected = runs
        self._all_ended.clear()

    async def all_ended(self) -> None:
        await self._all_ended.wait()

    async def _counted(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await self._commit(worker, writes)
        self.flushes += 1
        self.records += sum(len(write.records) for write in writes)
        self._ended += sum(write.change is not None and write.change.state in TERMINAL for write in writes)
        if self._ended >= self._expected:
            self._all_ended.set()
        return outcomes


@dataclass
class Figures:
    name: str
    runs: int
    steps: int
    seconds: float
    client_cpu: float
    server_cpu: float
    batch: float

    def row(self) -> str:
        micro = 1e6 / self.steps
        return (
            f"{self.name:34} {self.steps / self.seconds:>10,.0f} {self.runs / self.seconds:>9,.0f}"
            f" {self.client_cpu * micro:>9.1f} {self.server_cpu * micro:>9.1f} {self.batch:>7.0f} {self.seconds:>6.1f}"
        )


HEAD = f"{'scenario':34} {'steps/s':>10} {'runs/s':>9} {'client µs':>9} {'server µs':>9} {'batch':>7} {'s':>6}"


def processes_cpu(pids: Sequence[int]) -> float:
    """User and system seconds of the processes that still live, their ended children included."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def server_pids(postmaster: int | None) -> list[int]:
    if postmaster is None:
        return []
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


class Bench:
    def __init__(self, url: str, in_flight: int, postmaster: int | None) -> None:
        self.url = url
        self.in_flight = in_flight
        self.postmaster = postmaster

    def engine(self) -> tuple[Engine, Flushes]:
        store = store_for(self.url, "durable")
        flushes = Flushes(store)
        options = WorkerOptions(concurrency=self.in_flight)
        return Engine(store, workflows=[ten_steps, one_step], worker=options), flushes

    async def drained(self, work: Workflow[int, int], runs: int, steps: int) -> Figures:
        """All runs exist before the worker starts."""
        engine, flushes = self.engine()
        async with engine.client():
            for first in range(0, runs, 5000):
                await engine.trigger_many(work, list(range(first, min(first + 5000, runs))))
        meter = self.meter(flushes, runs)
        async with engine:
            await flushes.all_ended()
            return meter(f"{work.name}, {self.in_flight} in flight, drained", runs, steps)

    async def together(self, work: Workflow[int, int], runs: int, steps: int) -> Figures:
        """The worker runs while the runs are triggered."""
        engine, flushes = self.engine()
        async with engine:
            meter = self.meter(flushes, runs)
            for first in range(0, runs, 500):
                await engine.trigger_many(work, list(range(first, min(first + 500, runs))))
            await flushes.all_ended()
            return meter(f"{work.name}, {self.in_flight} in flight, with triggers", runs, steps)

    def meter(self, flushes: Flushes, runs: int) -> Callable[[str, int, int], Figures]:
        """Measure from here; what is returned ends it."""
        flushes.expect(runs)
        before, client = processes_cpu(server_pids(self.postmaster)), time.process_time()
        started = time.monotonic()

        def measured(name: str, runs: int, steps: int) -> Figures:
            seconds, client_cpu = time.monotonic() - started, time.process_time() - client
            server_cpu = processes_cpu(server_pids(self.postmaster)) - before
            batch = flushes.records / max(1, flushes.flushes)
            return Figures(name, runs, runs * steps, seconds, client_cpu, server_cpu, batch)

        return measured


@contextlib.contextmanager
def store_url(kind: str) -> Generator[tuple[str, int | None]]:
    if kind == "postgres":
        with own_postgres() as server:
            yield server.database("bench"), server.pid
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/bench.db", None
    else:
        yield "memory://", None


async def scenarios(url: str, postmaster: int | None, args: argparse.Namespace) -> None:
    bench = Bench(url, args.in_flight, postmaster)
    print(HEAD, flush=True)
    await bench.drained(ten_steps, 500, 10)  # warms up: plans, caches
    plan: list[tuple[str, Callable[[], Awaitable[Figures]]]] = [
        ("ten", lambda: bench.drained(ten_steps, args.runs, 10)),
        ("one", lambda: bench.drained(one_step, args.runs * 2, 1)),
        ("together", lambda: bench.together(one_step, args.runs * 2, 1)),
    ]
    for name, scenario in plan:
        if args.only in (None, name):
            for _ in range(args.repeat):
                print((await scenario()).row(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000, help="runs of ten steps; twice as many of one (10000)")
    parser.add_argument("--in-flight", type=int, default=500, help="concurrency of the worker (500)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each scenario (3)")
    parser.add_argument("--store", choices=("postgres", "sqlite", "memory"), default="postgres")
    parser.add_argument("--collector", choices=("spared", "default"), default="spared")
    parser.add_argument("--only", choices=("ten", "one", "together"))
    args = parser.parse_args()
    with store_url(args.store) as (url, postmaster):
        print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, {args.store}")
        with sparing_collector() if args.collector == "spared" else contextlib.nullcontext():
            asyncio.run(scenarios(url, postmaster, args))


if __name__ == "__main__":
    main()
