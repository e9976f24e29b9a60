"""``make simulate SEEDS=10000``: many simulations on all processors, and the line of the report that they make."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path

from tests.simulation.run import Tally, batch

REPORT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- simulation: begin -->", "<!-- simulation: end -->"
_BATCH = 20


def machine() -> str:
    """The machine, as the report names it."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text().splitlines() if found.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} × {names[0] if names else platform.machine()}, Python {platform.python_version()}"


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def table(tally: Tally, found: int, first: int, seconds: float) -> str:
    """The section of the report."""
    seeds = f"{first:,} to {first + tally.seeds - 1:,}"
    faults = f"{tally.faults:,}: crashes, stops, pauses, cuts, lost, late and doubled calls, clock steps"
    size = (
        f"{tally.seeds:,} seeds, {tally.ticks:,} ticks, {tally.runs:,} runs, {tally.effects:,} effects, "
        f"{tally.checks:,} checks of every invariant"
    )
    bound = f"under {3 / tally.seeds:.1g} a seed (95 %)" if not found else f"{found / tally.seeds:.1g} a seed"
    return "\n".join(
        (
            f"Measured on {datetime.now(UTC):%Y-%m-%d} at commit {commit()}, {machine()}, in {seconds / 60:.0f} min.",
            "",
            "| gate | faults | N | found | bound on the rate | seeds |",
            "|---|---|---|---|---|---|",
            f"| simulation | {faults} | {size} | {found} | {bound} | {seeds} |",
        )
    )


def put(section: str) -> None:
    """Replace the section in the report."""
    text = REPORT.read_text()
    before, rest = text.split(BEGIN)
    REPORT.write_text(f"{before}{BEGIN}\n{section}\n{END}{rest.split(END)[1]}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    asked = parser.parse_args()
    end = asked.first + asked.seeds
    batches = [range(start, min(start + _BATCH, end)) for start in range(asked.first, end, _BATCH)]
    began, total, found = time.monotonic(), Tally(), 0
    # Not multiprocessing's own pool: it waits for ever for what a worker did that was killed.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(batch, seeds) for seeds in batches]):
            tally, red = done.result()
            total.add(tally)
            found += len(red)
            for text in red:
                print(text, flush=True)
            if total.seeds % 1000 < _BATCH:
                print(f"{total.seeds} seeds, {total.ticks} ticks, {found} violations", file=sys.stderr, flush=True)
    section = table(total, found, asked.first, time.monotonic() - began)
    print(section)
    if asked.write:
        put(section)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
