"""Faults of the way to the database: answers that are lost, silence, half-open connections, resets."""

from __future__ import annotations

import asyncio
import time

from durable import RunHandle
from tests.chaos import flows
from tests.chaos.arena import Arena, Place, arena
from tests.chaos.gates_workers import SLOW, complaints
from tests.chaos.ledger import read
from tests.chaos.load import Load, again
from tests.chaos.proxy import Link
from tests.chaos.report import Row, gate
from tests.chaos.verdict import judge
from tests.processes.nursery import PATIENCE

COMMITS, LINK = "lost COMMIT answers", "bad link"

_HANGING_UP = 45.0
"""Seconds after which a worker has hung up a connection that does not answer: 40, and a little."""

_GRACE = 0.5
"""Seconds between the engine's look at its deadline and the first line of the step, on a machine that does other things
too. Less than the margin that the deadline keeps to the end of a lease of more than 2.5 s."""


async def lost_commits(
    place: Place,
    *,
    runs: int,
    share: float,
    workers: int,
    at_once: int,
    patience: float,
    least: int = 1,
    without: str = "",
) -> Row:
    """The answer to a COMMIT is lost with its connection: it was applied, and nobody knows.

    Args:
        least: So many commits there must be.
        without: A guard that the callers lack, or the workers.
    """
    with gate(COMMITS, f"{share:.0%} of all, workers' and callers'", "commits", seeds="0") as row:
        async with arena(place) as site, Link(site.direct) as link:
            site.url = link.url
            async with site.client(without=without if without == "doubles" else "") as client:
                await site.up(workers, options={"lease": 5.0}, without=without if without != "doubles" else "")
                load = Load(client, runs, at_once, patience)
                link.passed = 0
                link.swallow = share
                load.start()
                await load.through()
                link.swallow = 0.0
                verdict = await judge(site, load)
            row.n, row.violations = link.passed + link.swallowed, verdict.violations
            if not link.swallowed or row.n < least:
                row.violations.append(f"{link.swallowed} of {row.n} answers were lost: too few to prove anything")
            row.violations += complaints(site)
            row.remarks = f"{link.swallowed:,} lost, {verdict.runs:,} runs, {verdict.repeated} effects repeated"
    return row


async def bad_link(
    place: Place,
    *,
    seconds: float,
    latency: float,
    lease: float,
    at_once: int,
    patience: float,
    hanging_up: float = _HANGING_UP,
    without: str = "",
) -> Row:
    """One of two workers has a slow link that falls silent, is cut, and is left half-open.

    Silences shorter than the lease must not lose it; during longer ones no step begins past the worker's own deadline.

    Args:
        hanging_up: Seconds that connections are left half-open, once in each round; 0 for never.
    """
    fault = f"{latency * 1000:.0f} ms latency, silence within and beyond the lease of {lease:g} s, resets, half-open"
    with gate(LINK, fault, "steps") as row:
        options = {"lease": lease, "concurrency": 4 * at_once, "poll_interval": 0.2}
        async with arena(place) as site, site.client() as client, Link(site.direct) as link:
            [far] = await site.up(1, url=link.url, options=options, pace=SLOW, without=without)
            link.latency = latency / 2
            load = Load(client, 1_000_000, at_once, patience)
            load.start()
            await load.reached(ended=at_once)
            await site.up(1, options={**options, "concurrency": 2 * at_once}, pace=SLOW)  # the far one has to do most
            needless, half_open, slow = 0, 0, list[RunHandle[None]]()
            end, rounds = time.monotonic() + seconds, 0
            while time.monotonic() < end:
                rounds += 1
                slow += await client.trigger_many(flows.dawdler, [1.5 * lease] * 3 * at_once)
                before = await _takeovers(site)
                await _silent(link, lease * 0.3)
                await asyncio.sleep(lease / 2)
                needless += await _takeovers(site) - before
                link.reset()
                slow += await client.trigger_many(
                    flows.dawdler, [2.5 * lease] * 3 * at_once
                )  # they begin in the silence
                await asyncio.sleep(lease / 2)
                await _silent(link, lease * 2.5)
                await asyncio.sleep(lease / 2)
                if hanging_up:
                    slow += await client.trigger_many(flows.dawdler, [2.5 * lease] * 3 * at_once)
                    await asyncio.sleep(lease / 2)
                    half_open += link.leave_half_open()
                    await asyncio.sleep(hanging_up)
            load.finish()
            await load.through()
            async with asyncio.timeout(PATIENCE + 10 * lease):
                await asyncio.gather(*(again(handle.result) for handle in slow))
            verdict = await judge(site, load)
            effects = [effect for effect in read(site.ledger).effects if effect.pid == far.pid]
            late = [effect for effect in effects if effect.late > _GRACE]
            row.n, row.violations = verdict.effects, verdict.violations
            row.violations += [f"deadline: {one.key} of {one.run_id} began {one.late:.2f} s past it" for one in late]
            if needless:
                row.violations.append(f"takeover: {needless} runs after a silence shorter than the lease")
            if not effects:
                row.violations.append("the worker behind the link did nothing")
            if hanging_up and not half_open:
                row.violations.append("no connection was left half-open")
            # A transaction whose connection is half-open is hung up after 40 s; its run was dropped long before.
            row.violations += complaints(site, "has lost its lease", "does not end 5 s after its cancellation")
            row.remarks = (
                f"{rounds} rounds, {half_open} connections half-open, {verdict.runs:,} runs, "
                f"{len(effects):,} steps behind it, {verdict.repeated} effects repeated"
            )
    return row


async def _silent(link: Link, seconds: float) -> None:
    link.silence()
    await asyncio.sleep(seconds)
    link.listen()


async def _takeovers(site: Arena) -> int:
    [[number]] = await site.ask("SELECT count(*) FROM durable.history WHERE kind = 'takeover'")
    return int(number)
