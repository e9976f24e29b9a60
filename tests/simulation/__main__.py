"""``make simulate SEEDS=10000``: many simulations on all processors, and the line of the table that they make."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.chaos.report import HEADER, PAGE, Row, write
from tests.simulation.run import Tally, batch

SIMULATION = "simulation"

_BATCH = 20
_WORTH_A_LINE = 1_000
"""Fewer seeds do not take the place of what stands in the table."""


def row(tally: Tally, red: list[str], first: int, seconds: float) -> Row:
    """The line of the table."""
    fault = "crashes, stops, pauses, cuts, lost, late and doubled calls, clock steps"
    return Row(
        SIMULATION,
        fault,
        "seeds",
        n=tally.seeds,
        violations=[text.partition("\n")[0] for text in red],
        seconds=seconds,
        remarks=f"{tally.ticks / tally.seeds:,.0f} ticks a seed, {tally.faults:,} faults, {tally.runs:,} runs, "
        f"{tally.effects:,} effects, {tally.checks:,} checks of every invariant",
        seeds=f"{first:,} to {first + tally.seeds - 1:,}",
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=1)
    asked = parser.parse_args()
    end = asked.first + asked.seeds
    batches = [range(start, min(start + _BATCH, end)) for start in range(asked.first, end, _BATCH)]
    began, total, found = time.monotonic(), Tally(), list[str]()
    # Not multiprocessing's own pool: it waits for ever for what a worker did that was killed.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in as_completed([pool.submit(batch, seeds) for seeds in batches]):
            tally, red = done.result()
            total.add(tally)
            found += red
            for text in red:
                print(text, flush=True)
            if total.seeds % 1000 < _BATCH:
                print(f"{total.seeds} seeds, {total.ticks} ticks, {len(found)} violations", file=sys.stderr, flush=True)
    line = row(total, found, asked.first, time.monotonic() - began)
    print(HEADER, line.line, *line.findings, sep="\n")
    if total.seeds >= _WORTH_A_LINE:
        write(PAGE, [line])
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
