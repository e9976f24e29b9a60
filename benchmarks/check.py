"""Is this tree slower than a commit? Both are measured in one run, in turns, so that the machine's load cancels out.

    make bench-check BASE=<commit>
    python -m benchmarks.check <commit> [--rounds 7] [--runs 1000] [--tolerance 0.1]

First the work that can be counted (see ``benchmarks.counted``): any growth of round trips, transactions or WAL of a
single run is told. Then short rounds, one tree after the other and the first one in turn: of each pair the ratio of CPU
per step, of this process and of the server, and of steps per second; median and range of the pairs. It ends with 1
when something has grown by more than the tolerance: a tenth, for steps per second a fifth, which are the noisiest.

Both trees run with this environment's packages and this tree's ``benchmarks``; only ``durable`` and ``sql`` differ.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.counted import CROWD, one_step, ten_steps
from durable import Engine, WorkerOptions
from durable.testing.postgres import OwnServer, own_postgres

ROOT = Path(__file__).parents[1]
COUNTED_TOLERANCE = 0.02
"""By which counts of one run alone may grow: WAL has a page split here or there."""
CROWD_TOLERANCE = 0.25
"""The same in a crowd, where the machine decides how many steps share a flush."""
NOISE = 2.0
"""Steps per second may change by so many times the tolerance of CPU."""

_COUNTED = ("round_trips", "transactions", "wal_records", "wal_bytes")
_FLOWS = {"ten": (ten_steps, 10), "one": (one_step, 1)}


# -- one tree -------------------------------------------------------------------------------------


def serve(url: str) -> None:
    """In a process of the tree that is measured: one round for each line that comes, one line of figures for each."""
    asyncio.run(_serve(url))


async def _serve(url: str) -> None:
    async with Engine(url).client() as engine:
        await engine.migrate()
    for line in sys.stdin:
        name, runs = line.split()
        print(json.dumps(await _round(url, name, int(runs))), flush=True)


async def _round(url: str, name: str, runs: int) -> dict[str, float]:
    """Trigger, then drain."""
    flow, steps = _FLOWS[name]
    engine = Engine(url, workflows=[flow], worker=WorkerOptions(concurrency=CROWD))
    cpu, began = time.process_time(), time.monotonic()
    async with engine.client():
        for first in range(0, runs, CROWD):
            await engine.trigger_many(flow, list(range(first, min(first + CROWD, runs))))
        await engine.run_until_idle()
    return {"cpu": time.process_time() - cpu, "seconds": time.monotonic() - began, "steps": runs * steps}


@dataclass
class Tree:
    """A tree that is measured.

    Args:
        folder: Has ``durable`` and ``sql``.
    """

    folder: Path

    def python(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", *arguments]

    @property
    def where(self) -> dict[str, Any]:
        # The directory in which it starts is looked into first: there is its durable; benchmarks are this tree's.
        return {"cwd": self.folder, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}

    def counted(self) -> Mapping[str, Mapping[str, Any]]:
        done = subprocess.run(self.python("benchmarks.counted"), stdout=subprocess.PIPE, check=True, **self.where)
        found: Mapping[str, Mapping[str, Any]] = json.loads(done.stdout)
        return found

    @contextmanager
    def serving(self, url: str) -> Generator[subprocess.Popen[str]]:
        command = self.python("benchmarks.check", "--serve", url)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **self.where) as process:
            yield process


@contextmanager
def tree_of(commit: str) -> Generator[Tree]:
    """What is measured of a commit, in a directory that goes away."""
    with tempfile.TemporaryDirectory(prefix="durable-check-") as folder:
        archive = ["git", "archive", "--format=tar", commit, "durable", "sql"]
        packed = subprocess.run(archive, cwd=ROOT, stdout=subprocess.PIPE, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=packed.stdout, check=True)
        yield Tree(Path(folder))


# -- two trees ------------------------------------------------------------------------------------


def counts(base: Tree, here: Tree) -> list[str]:
    """Print what has changed; what has grown too much."""
    before, after = base.counted(), here.counted()
    worse: list[str] = []
    print("\ncounted, only what has changed")
    for name, expected in before.items():
        allowed = CROWD_TOLERANCE if "in flight" in name else COUNTED_TOLERANCE
        for what in _COUNTED:
            old, new = float(expected[what]), float(after[name][what])
            if abs(new - old) <= 0.005 * old:
                continue
            line = f"{name}: {what.replace('_', ' ')} {old:g} → {new:g}"
            print(f"  {line}")
            if new > old * (1 + allowed):
                worse.append(line)
    return worse


def rounds(base: Tree, here: Tree, *, pairs: int, runs: int, tolerance: float) -> list[str]:
    """Print the ratios; what has grown too much."""
    worse: list[str] = []
    with own_postgres() as server:
        urls = [server.database(f"check_{number}") for number in range(2)]
        with base.serving(urls[0]) as first, here.serving(urls[1]) as second:
            both = (first, second)
            print(f"\nthis tree / base, {pairs} pairs of {runs} runs: median (range)")
            for name in _FLOWS:
                for process in both:
                    _measured(server, process, name, runs)  # warms up: plans, caches
                ratios: dict[str, list[float]] = {}
                for number in range(pairs):
                    order = both if number % 2 == 0 else both[::-1]
                    found = {process.pid: _measured(server, process, name, runs) for process in order}
                    for what, old in found[first.pid].items():
                        ratios.setdefault(what, []).append(found[second.pid][what] / old)
                worse += _told(name, ratios, tolerance)
            for process in both:
                assert process.stdin is not None
                process.stdin.close()
    return worse


def _measured(server: OwnServer, process: subprocess.Popen[str], name: str, runs: int) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    before = _server_cpu(server.pid)
    process.stdin.write(f"{name} {runs}\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        sys.exit("a tree could not be measured; what it said stands above")
    found: dict[str, float] = json.loads(line)
    steps = found["steps"]
    return {
        "CPU of the worker, per step": found["cpu"] / steps,
        "CPU of the server, per step": (_server_cpu(server.pid) - before) / steps,
        "seconds, per step": found["seconds"] / steps,
    }


def _server_cpu(postmaster: int) -> float:
    """User and system seconds of a postmaster, its living children and those that have ended."""
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    ticks = 0
    for pid in (postmaster, *children):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except FileNotFoundError:  # it has ended meanwhile: its share is its parent's now
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _told(name: str, ratios: Mapping[str, Sequence[float]], tolerance: float) -> list[str]:
    worse: list[str] = []
    for what, all_of in ratios.items():
        median = statistics.median(all_of)
        allowed = tolerance * (NOISE if what.startswith("seconds") else 1)
        line = f"{name} step{'s' * (name != 'one')}: {what} {median:.2f} ({min(all_of):.2f} to {max(all_of):.2f})"
        print(f"  {line}")
        if median > 1 + allowed:
            worse.append(f"{line}, allowed {1 + allowed:.2f}")
    return worse


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", default="HEAD", help="the commit to compare with (HEAD)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of rounds for each scenario (7)")
    parser.add_argument("--runs", type=int, default=1000, help="runs of a round (1000)")
    parser.add_argument("--tolerance", type=float, default=0.1, help="by which CPU per step may grow (0.1)")
    parser.add_argument("--serve", metavar="URL", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    here = Tree(ROOT)
    with tree_of(args.base) as base:
        print(f"base: {args.base}")
        worse = counts(base, here)
        worse += rounds(base, here, pairs=args.rounds, runs=args.runs, tolerance=args.tolerance)
    print("\n" + "\n".join(["slower than the base:", *worse] if worse else ["not slower than the base"]))
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
