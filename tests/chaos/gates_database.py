"""Faults of the database: killed, its sessions ended, its disk full."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from durable.testing.postgres import OwnServer
from tests.chaos.arena import Arena, Place, arena
from tests.chaos.disk import server_on, small_disk
from tests.chaos.gates_workers import complaints
from tests.chaos.load import Load
from tests.chaos.report import Row, gate
from tests.chaos.verdict import judge

RESTARTS, TERMINATIONS, DISK = "Postgres kill -9", "pg_terminate_backend", "disk full"

LEASE = 2.0
OPTIONS = {"lease": LEASE, "concurrency": 100, "poll_interval": 0.5}


async def postgres_kills(
    place: Place,
    *,
    runs: int,
    kills: int,
    workers: int,
    at_once: int,
    patience: float,
    within: float,
    lossy: bool = False,
) -> Row:
    """kill -9 of every process of Postgres under load, and its start.

    Args:
        within: Seconds after it accepts connections until there is progress: an effect, and a trigger.
        lossy: The control: the server acknowledges commits before they are on the disk.
    """
    with gate(RESTARTS, f"{kills} restarts under load, {workers} workers", "runs of 5 steps") as row:
        async with arena(place) as site:
            if lossy:
                await _acknowledge_early(site)
            async with site.client() as client:
                await site.up(workers, options=OPTIONS)
                load = Load(client, runs, at_once, patience)
                load.start()
                back: list[float] = []
                for number in range(kills):
                    if not await load.reached(ended=(number + 1) * runs // (kills + 2)):
                        break
                    back.append(await _restarted(place.server, site, load, patience))
                await load.through()
                verdict = await judge(site, load)
            row.n, row.violations = verdict.runs, verdict.violations
            row.violations += [f"progress: {seconds:.1f} s after it accepts" for seconds in back if seconds > within]
            if len(back) < kills:
                row.violations.append(f"only {len(back)} restarts before the load was over")
            row.violations += complaints(site, "has lost its lease")
            row.remarks = (
                f"{len(load.acknowledged):,} acknowledged, {verdict.repeated} effects repeated, "
                f"progress after at most {max(back, default=0):.1f} s"
            )
    return row


async def _acknowledge_early(site: Arena) -> None:
    database = site.direct.rpartition("/")[2]
    await site.ask(f"ALTER DATABASE {database} SET synchronous_commit = off")
    await site.ask(f"ALTER DATABASE {database} SET commit_delay = 0")


async def _restarted(server: OwnServer, site: Arena, load: Load, patience: float) -> float:
    """Kill, start; seconds from its accepting connections to the first effect and the first trigger after it."""
    await asyncio.to_thread(server.kill)
    size, acknowledged = site.ledger.stat().st_size, len(load.acknowledged)
    await asyncio.to_thread(server.start)
    accepting = time.monotonic()

    def progress() -> bool:
        return site.ledger.stat().st_size > size and len(load.acknowledged) > acknowledged

    while not progress() and time.monotonic() - accepting < patience:  # noqa: ASYNC110 - a file does not call us
        await asyncio.sleep(0.02)
    return time.monotonic() - accepting


async def terminations(
    place: Place, *, runs: int, waves: int, workers: int, at_once: int, patience: float, without: str = ""
) -> Row:
    """Every session of every worker and caller is ended by an operator, again and again."""
    with gate(TERMINATIONS, f"{waves} storms over all sessions", "runs of 5 steps") as row:
        async with arena(place) as site, site.client() as client:
            await site.up(workers, options={**OPTIONS, "lease": 10.0}, without=without)
            load = Load(client, runs, at_once, patience)
            load.start()
            ended = 0
            for number in range(waves):
                if not await load.reached(ended=(number + 1) * runs // (waves + 2)):
                    break
                ended += len(
                    await site.ask(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                )
            await load.through()
            verdict = await judge(site, load)
            row.n, row.violations = verdict.runs, verdict.violations
            takeovers = await site.ask("SELECT count(*) FROM durable.history WHERE kind = 'takeover'")
            if takeovers != [(0,)]:
                row.violations.append(f"takeover: {takeovers[0][0]} from workers that were alive")
            row.violations += complaints(site)
            row.remarks = f"{ended:,} sessions ended, {verdict.repeated} effects repeated"
    return row


# -- a full disk ----------------------------------------------------------------------------------


async def full_disk(
    place: Place,
    *,
    runs: int,
    megabytes: int,
    workers: int,
    at_once: int,
    patience: float,
    within: float,
    without: str = "",
) -> Row:
    """The database's disk is filled to the last byte under load, and freed again; no worker is restarted.

    When the server itself has ended for want of room for its log, an operator starts it again.
    """
    fault = f"a disk of {megabytes} MB filled and freed, {workers} workers"
    with gate(DISK, fault, "runs of 5 steps") as row, small_disk(megabytes) as disk, server_on(disk) as server:
        async with arena(Place(server, place.nursery)) as site, site.client() as client:
            await site.up(workers, options=OPTIONS, without=without)
            load = Load(client, runs, at_once, patience)
            load.start()
            await load.reached(ended=runs // 4)
            ballast = disk / "ballast"
            stood = await _stands_still(load, ballast)
            ballast.unlink()
            freed = time.monotonic()
            await asyncio.to_thread(server.start)
            ended = len(load.ended)
            await load.reached(ended=min(ended + 1, runs))
            resumed = time.monotonic() - freed
            await load.through()
            verdict = await judge(site, load)
            row.n, row.violations = verdict.runs, verdict.violations
            if not stood:
                row.violations.append("the work went on all the time: the disk was not full")
            if resumed > within:
                row.violations.append(f"resumed {resumed:.1f} s after the disk was freed")
            row.violations += complaints(site, "has lost its lease")
            row.violations += [f"worker {worker.pid} has ended" for worker in site.workers if worker.gone.is_set()]
            row.remarks = f"resumed after {resumed:.1f} s, {verdict.repeated} effects repeated"
    return row


async def _stands_still(load: Load, ballast: Path) -> bool:
    """Whether no order ends for three seconds, within thirty, while all that becomes free is filled again.

    The schedule may go on for longer: a tick finds room in pages that are there.
    """
    ended, since, began = -1, time.monotonic(), time.monotonic()
    while time.monotonic() - began < 30:
        await asyncio.to_thread(_fill, ballast)
        await asyncio.sleep(0.1)
        if len(load.ended) != ended:
            ended, since = len(load.ended), time.monotonic()
        elif time.monotonic() - since > 3:
            return True
    return False


def _fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue
