"""Full load for a long time, with kills: what grows, and what becomes slower."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression, median

from tests.chaos.arena import Arena, Place, arena
from tests.chaos.gates_workers import complaints
from tests.chaos.load import Load
from tests.chaos.report import Row, gate
from tests.chaos.verdict import judge
from tests.chaos.workers import Worker

SOAK = "soak"

LEASE = 2.0
_SAMPLES = 240
"""How often the worker that is not killed is looked at, at most every half second."""
_SLACK = {"descriptors": 5.0, "threads": 2.0, "connections": 5.0}
"""What may be there beside the median of earlier: connections and threads are made when they are needed."""


@dataclass(frozen=True)
class Sample:
    """The worker that is not killed, at one moment.

    Attributes:
        at: Seconds since the beginning.
        ended: Orders that had ended.
        memory: Resident, in MB.
        connections: Of all workers and callers to the database.
    """

    at: float
    ended: int
    memory: float
    descriptors: int
    threads: int
    connections: int


async def soak(
    place: Place,
    *,
    seconds: float,
    workers: int,
    at_once: int,
    every: float,
    patience: float,
    slope: float = 1.0,
    ratio: float = 0.9,
    without: str = "",
) -> Row:
    """All workers but the first are killed in turn; the first must not grow, and nothing may become slower.

    Args:
        every: Seconds between kills.
        slope: MB a minute by which its memory may grow, after a quarter of the time.
        ratio: Of the orders in the first quarter that have to end in the last one.
    """
    fault = f"{seconds / 60:g} min at full load, {workers} workers, one killed every {every:g} s"
    with gate(SOAK, fault, "runs of 5 steps") as row:
        options = {"lease": LEASE, "concurrency": 2 * at_once, "poll_interval": 0.5}
        async with arena(place) as site, site.client() as client:
            herd = await site.up(workers, options=options, without=without)
            load = Load(client, 100_000_000, at_once, patience)
            samples, killed, began = list[Sample](), 0, time.monotonic()
            load.start()
            while (at := time.monotonic() - began) < seconds and not load.over:
                samples.append(await _sample(site, herd[0], at, load))
                if at > (killed + 1) * every:
                    victim = 1 + killed % (workers - 1)
                    killed += 1
                    await herd[victim].kill()
                    herd[victim] = await site.worker(options=options, without=without)
                await asyncio.sleep(max(0.5, seconds / _SAMPLES))
            load.finish()
            await load.through()
            verdict = await judge(site, load)
            row.n, row.violations = verdict.runs, verdict.violations
            row.violations += complaints(site, "has lost its lease")
            grown, row.remarks = _growth(samples, seconds, slope, ratio)
            row.violations += grown
            row.remarks += f", {killed} kills, {verdict.repeated} effects repeated"
    return row


async def _sample(site: Arena, worker: Worker, at: float, load: Load) -> Sample:
    proc = Path(f"/proc/{worker.pid}")
    pages = int((proc / "statm").read_text().split()[1])
    [[connections]] = await site.ask("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    return Sample(
        at,
        len(load.ended),
        pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        len(list((proc / "fd").iterdir())),
        len(list((proc / "task").iterdir())),
        connections,
    )


def _growth(samples: Sequence[Sample], seconds: float, slope: float, ratio: float) -> tuple[list[str], str]:
    """What has grown more than it may, or become slower; and how it was."""
    quarters = [
        [one for one in samples if part * seconds / 4 <= one.at < (part + 1) * seconds / 4] for part in range(4)
    ]
    if not all(len(quarter) > 1 for quarter in quarters):
        return [f"soak: only {len(samples)} looks at the worker"], ""
    warm = [one for quarter in quarters[1:] for one in quarter]
    grew = 60 * linear_regression([one.at for one in warm], [one.memory for one in warm]).slope
    first, last = (_rate(quarter) for quarter in (quarters[0], quarters[-1]))
    found: list[str] = []
    if grew >= slope:
        found.append(f"soak: the memory grows by {grew:.2f} MB a minute, from {warm[0].memory:.0f} MB")
    for what, slack in _SLACK.items():
        before, after = (median(float(getattr(one, what)) for one in part) for part in (quarters[1], quarters[-1]))
        if after > before + slack:
            found.append(f"soak: {what} have grown from {before:g} to {after:g}")
    if last < ratio * first:
        found.append(f"soak: {last:.1f} orders a second in the last quarter, {first:.1f} in the first")
    now = warm[-1]
    return found, (
        f"memory {now.memory:.0f} MB and {grew:+.2f} MB a minute, {now.descriptors} descriptors, "
        f"{now.threads} threads, {now.connections} connections, "
        f"{first:.1f} orders/s in the first quarter and {last:.1f} in the last"
    )


def _rate(samples: Sequence[Sample]) -> float:
    first, last = samples[0], samples[-1]
    return (last.ended - first.ended) / (last.at - first.at)
