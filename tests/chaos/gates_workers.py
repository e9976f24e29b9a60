"""Faults of workers: killed, stopped past their lease, and what they write after it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Sequence
from random import Random

from tests.chaos.arena import Arena, Place, arena
from tests.chaos.ledger import read
from tests.chaos.load import Load
from tests.chaos.report import Row, gate
from tests.chaos.stale import BEFORE
from tests.chaos.verdict import judge
from tests.chaos.workers import Worker
from tests.processes.nursery import PATIENCE

KILLS, STOPS, ZOMBIES = "worker SIGKILL", "worker SIGSTOP", "zombies (P04)"

LEASE = 1.0
SLOW = 0.1  # seconds that a step takes at most where a worker is to be struck in the middle of many


async def kills(
    place: Place,
    *,
    runs: int,
    kills: int,
    workers: int,
    at_once: int,
    patience: float,
    within: float,
    without: str = "",
) -> Row:
    """SIGKILL to one worker after the other under load, each replaced at once.

    Args:
        patience: Seconds without any end after which the load is over.
        within: Seconds beyond the lease that the 99th percentile of the takeovers may take.
    """
    fault = f"{kills} kills, {workers} workers, lease {LEASE:g} s"
    with gate(KILLS, fault, "runs of 5 steps", seeds=f"{kills}") as row:
        options = {"lease": LEASE, "concurrency": 2 * at_once, "poll_interval": 0.5}
        random, deaths = Random(kills), dict[int, float]()
        async with arena(place) as site, site.client() as client:
            herd = await site.up(workers, options=options, without=without)
            load = Load(client, runs, at_once, patience)
            load.start()
            for number in range(kills):
                if not await load.reached(ended=(number + 1) * runs // (kills + 2)):
                    break
                victim = await busy(site, herd, random)
                deaths[victim.pid] = time.monotonic()
                await victim.kill()
                herd[herd.index(victim)] = await site.worker(options=options, without=without)
            await load.through()
            verdict = await judge(site, load, deaths)
            row.n, row.violations = verdict.runs, verdict.violations
            slow = verdict.longest_takeover()
            if slow > LEASE + within:
                row.violations.append(f"takeover: the 99th percentile is {slow:.2f} s, the lease {LEASE:g}")
            if len(deaths) < kills:
                row.violations.append(f"only {len(deaths)} workers were killed before the load was over")
            row.remarks = (
                f"{verdict.records:,} records, {verdict.repeated} effects repeated, "
                f"{len(verdict.takeovers)} takeovers, 99 % within {slow:.2f} s"
            )
            row.violations += complaints(site, "has lost its lease")  # a busy machine may starve one of them too
    return row


async def busy(site: Arena, herd: Sequence[Worker], random: Random) -> Worker:
    """One of those that hold runs: a fault that strikes an idle worker proves little."""
    pids = read(site.ledger).pids
    owners = "SELECT DISTINCT owner::text FROM durable.runs WHERE owner IS NOT NULL"
    holding = {pids.get(owner) for (owner,) in await site.ask(owners)}
    return random.choice([worker for worker in herd if worker.pid in holding] or list(herd))


def complaints(site: Arena, *expected: str) -> list[str]:
    """What workers have logged as an error and should not have."""
    lines = [line for worker in site.workers for line in worker.complaints]
    return [f"a worker's log: {line}" for line in lines if not any(text in line for text in expected)]


async def stops(
    place: Place, *, runs: int, stops: int, workers: int, at_once: int, patience: float, without: str = ""
) -> Row:
    """SIGSTOP under load, past the lease, then SIGCONT: the zombie goes on where it stood."""
    fault = f"{stops} stops past the lease, {workers} workers"
    with gate(STOPS, fault, "runs of 5 steps", seeds=f"{stops}") as row:
        options = {"lease": LEASE, "concurrency": 2 * at_once, "poll_interval": 0.5}
        random = Random(stops)
        async with arena(place) as site, site.client() as client:
            herd = await site.up(workers, options=options, pace=SLOW, without=without)
            load = Load(client, runs, at_once, patience)
            load.start()
            stopped = 0
            for number in range(stops):
                if not await load.reached(ended=(number + 1) * runs // (stops + 2)):
                    break
                zombie = await busy(site, herd, random)
                zombie.signal(signal.SIGSTOP)
                stopped += 1
                await taken_over(site, zombie)
                zombie.signal(signal.SIGCONT)
            await load.through()
            verdict = await judge(site, load)
            row.n, row.violations = verdict.runs, verdict.violations
            if stopped < stops:
                row.violations.append(f"only {stopped} workers were stopped before the load was over")
            row.remarks = f"{verdict.records:,} records, {verdict.repeated} effects repeated"
            row.violations += complaints(site, "has lost its lease")
    return row


async def taken_over(site: Arena, worker: Worker) -> None:
    """Return when the leases of this process have expired, and their rows are gone."""
    ids = [worker_id for worker_id, pid in read(site.ledger).pids.items() if pid == worker.pid]
    async with asyncio.timeout(PATIENCE):
        while await site.ask("SELECT 1 FROM durable.workers WHERE id = ANY (%s::uuid[])", ids):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # the database does not call us


async def zombies(place: Place, *, each: int, rounds: int, without: str = "") -> Row:
    """A worker is stopped before writes of every kind, its runs are taken over, it is continued: what does it write?"""
    name = f"{len(BEFORE)} kinds of writes, {rounds} workers stopped past the lease"
    with gate(ZOMBIES, name, "stale writes") as row:
        outcomes: Counter[str] = Counter()
        for _ in range(rounds):
            async with arena(place) as site:
                outcomes += await _stale_writes(site, each, without, row.violations)
                row.violations += [what for (what,) in await site.ask("SELECT what FROM audit")]
        row.n = outcomes.total()
        if applied := row.n - outcomes["lease_lost"]:
            row.violations.append(f"I4: {applied} stale writes were not rejected: {dict(outcomes)}")
        row.remarks = ", ".join(f"{number:,} {outcome}" for outcome, number in outcomes.items())
    return row


async def _stale_writes(site: Arena, each: int, without: str, violations: list[str]) -> Counter[str]:
    options = {"lease": LEASE, "poll_interval": 0.2, "drain_timeout": 0.2, "concurrency": 1000}
    [zombie] = await site.up(1, options=options, watch=True, without=without)
    async with site.client() as client:
        runs: dict[str, str] = {}
        for kind, workflow in BEFORE.items():
            for handle in await client.trigger_many(workflow, [None] * each):
                runs[handle.run_id] = kind
        await _holding(site, zombie, runs)
        [survivor] = await site.up(1, options=options, opened=True)
        zombie.say("hold")
        for door in ("renew", "go"):
            await site.until(lambda door=door: zombie.take("held", command=door), "held door")  # type: ignore[misc]
        zombie.signal(signal.SIGSTOP)
        await _holding(site, survivor, runs)
        zombie.events.clear()
        zombie.say("go")
        zombie.signal(signal.SIGCONT)
        by_itself = {run_id: kind for run_id, kind in runs.items() if kind != "→ pending"}
        await _wrote(site, zombie, by_itself)
        zombie.signal(signal.SIGTERM)
        await _wrote(site, zombie, runs)
        await zombie.exit_code()
        writes = [event for event in zombie.events if event["event"] == "write"]
        for run_id, kind in runs.items():
            parts = {part for write in writes if write["run"] == run_id for part in write["parts"]}
            if kind not in parts:
                violations.append(f"the run before {kind!r} wrote {parts}")
    return Counter(write["outcome"] for write in writes)


async def _holding(site: Arena, worker: Worker, runs: dict[str, str]) -> None:
    """Return when the worker stands in each of the runs."""

    def all_stand() -> bool | None:
        standing = {event["run"] for event in worker.events if event["event"] == "holding"}
        return runs.keys() <= standing or None

    await site.until(all_stand, f"{len(runs)} runs that stand")


async def _wrote(site: Arena, worker: Worker, runs: dict[str, str]) -> None:
    def missing() -> set[str]:
        return set(runs) - {event["run"] for event in worker.events if event["event"] == "write"}

    try:
        await site.until(lambda: True if not missing() else None, f"writes about {len(runs)} runs")
    except AssertionError as error:
        raise AssertionError(f"no write before {sorted(runs[run_id] for run_id in missing())}") from error
