"""Faults of load and of time: blocked event loops, timers that are due at once, callers with one key, wrong clocks."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from durable import Engine, RunFailed, RunHandle
from tests.chaos import flows
from tests.chaos.arena import Place, arena
from tests.chaos.gates_workers import SLOW, complaints
from tests.chaos.ledger import read
from tests.chaos.report import Row, gate
from tests.chaos.workers import PROGRAM
from tests.processes.nursery import PATIENCE, Nursery

T = TypeVar("T")

LOOPS, TIMERS = "blocked event loop", "timers due at once (P26)"
KEYS, CLOCKS = "trigger storm (P36)", "shifted clocks (P09)"

_LIBRARIES = (
    Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"),
    Path("/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1"),
    Path("/usr/lib/faketime/libfaketime.so.1"),
    Path("/usr/local/lib/faketime/libfaketime.so.1"),
)


async def blocked_loops(place: Place, *, runs: int, workers: int, lease: float, without: str = "") -> Row:
    """Steps that block their worker's event loop for longer than the lease, one after the other."""
    blocked = 1.5 * lease
    with gate(LOOPS, f"steps that block it for {blocked:g} s, lease {lease:g} s", "steps") as row:
        async with arena(place) as site, site.client() as client:
            options = {"lease": lease, "concurrency": 2, "poll_interval": 0.2}
            herd = await site.up(workers, options=options, without=without)
            handles = [await client.trigger(flows.stiff, blocked) for _ in range(runs)]
            try:
                await _all(handles, PATIENCE + runs * blocked)
            except (TimeoutError, RunFailed) as error:
                row.violations.append(f"I2: {error!r}")
            effects = Counter((effect.run_id, effect.key) for effect in read(site.ledger).effects)
            takeovers = await site.ask("SELECT run_id::text FROM durable.history WHERE kind = 'takeover'")
            row.n = len(effects)
            row.violations += [f"takeover: {run_id} from a worker that was alive" for (run_id,) in takeovers]
            row.violations += [f"I7: {number} times: {one}" for one, number in effects.items() if number > 1]
            if not any("the event loop has been blocked for" in worker.log for worker in herd):
                row.violations.append("nobody has reported a blocked loop")
            row.violations += complaints(site)
    return row


async def timers(place: Place, *, number: int, ahead: float, workers: int, without: str = "") -> Row:
    """Sleeping runs that are due at the same instant; they drain without an error, and none before it.

    Args:
        ahead: Seconds from now to that instant.
    """
    with gate(TIMERS, f"{workers} workers", "timers") as row:
        async with arena(place) as site, site.client() as client:
            await site.up(workers, options={"concurrency": 500, "linger": 0.0}, without=without)
            [[now]] = await site.ask("SELECT now()")
            due: datetime = now + timedelta(seconds=ahead)
            handles: list[RunHandle[datetime]] = []
            for start in range(0, number, 1000):
                handles += await client.trigger_many(flows.timer, [due] * min(1000, number - start))
            [[asleep]] = await site.ask("SELECT count(*) FROM durable.runs WHERE state = 'sleeping'")
            await _all(handles, PATIENCE + ahead + number / 200)
            [[early]] = await site.ask("SELECT count(*) FROM durable.runs WHERE ended_at < %s", due)
            [[drained]] = await site.ask("SELECT extract(epoch FROM max(ended_at) - %s)::float8 FROM durable.runs", due)
            states = await site.ask("SELECT state, count(*) FROM durable.runs GROUP BY 1")
            row.n = number
            if early:
                row.violations.append(f"early: {early} runs woke before they were due")
            if states != [("completed", number)]:
                row.violations.append(f"I2: {states}")
            row.violations += complaints(site)
            row.remarks = f"{asleep:,} asleep when the last was triggered, drained after {drained:.1f} s"
    return row


async def equal_keys(place: Place, *, keys: int, callers: int, engines: int, without: str = "") -> Row:
    """Many callers at once in several engines trigger the same keys: one run for each, and everybody gets its id."""
    with gate(KEYS, f"{callers} callers for each of {keys} keys, {engines} engines", "triggers") as row:
        async with arena(place) as site:
            clients = [site.client(without=without) for _ in range(engines)]
            opened = [await client.__aenter__() for client in clients]
            try:

                async def call(engine: Engine, key: int) -> tuple[int, str, bool]:
                    handle = await engine.trigger(flows.nap, 0.0, key=f"key {key}")
                    return key, handle.run_id, handle.created

                calls = [call(opened[caller % engines], key) for caller in range(callers) for key in range(keys)]
                answers = await asyncio.gather(*calls)
            finally:
                for client in clients:
                    await client.__aexit__(None, None, None)
            ids = {key: {run_id for one, run_id, _ in answers if one == key} for key in range(keys)}
            created = Counter(key for key, _, made in answers if made)
            stored = await site.ask("SELECT count(*) FROM durable.runs")
            row.n = len(answers)
            row.violations += [f"I1: key {key} has {len(found)} runs" for key, found in ids.items() if len(found) > 1]
            row.violations += [f"I1: key {key} was created {n} times" for key, n in created.items() if n > 1]
            if stored != [(keys,)]:
                row.violations.append(f"I1: {stored[0][0]} runs for {keys} keys")
    return row


def faketime() -> Path | None:
    """The library that shows processes another time, where it is installed; or where ``LIBFAKETIME`` says."""
    given = os.environ.get("LIBFAKETIME")
    return next((path for path in (*([Path(given)] if given else []), *_LIBRARIES) if path.exists()), None)


async def wrong_clocks(place: Place, *, runs: int, skew: float, without: str = "") -> Row:
    """Two workers whose clocks are wrong, one ahead and one behind: times are the database's. Needs `faketime`."""
    library = faketime()
    with gate(CLOCKS, f"libfaketime, {skew:g} s ahead and behind", "sleeps") as row:
        settings = {"LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        nurseries = [Nursery(PROGRAM, {**settings, "FAKETIME": f"{sign}{skew:g}s"}) for sign in "+-"]
        try:
            async with arena(place) as site, site.client() as client:
                options = {"lease": 10.0, "poll_interval": 0.2, "concurrency": 5, "linger": 0.0}  # few: both get some
                for nursery in nurseries:
                    worker = await site.worker(nursery, options=options, pace=SLOW, without=without)
                    await site.until(lambda worker=worker: worker.take("up"), "worker that is up")  # type: ignore[misc]
                handles = [await client.trigger(flows.nap, 1.0) for _ in range(runs)]
                slept: list[float] = []
                try:
                    slept = await _all(handles, PATIENCE)
                except TimeoutError:
                    row.violations.append(f"I2: runs have not ended within {PATIENCE:g} s")
                pids = {effect.pid for effect in read(site.ledger).effects}
                [[off]] = await site.ask(
                    "SELECT count(*) FROM durable.history WHERE abs(extract(epoch FROM at - now())) > 300"
                )
                takeovers = await site.ask("SELECT 1 FROM durable.history WHERE kind = 'takeover'")
                row.n = len(handles)
                row.violations += [f"early: slept {seconds:.2f} s instead of 1" for seconds in slept if seconds < 1]
                row.violations += [
                    f"late: slept {seconds:.2f} s instead of 1" for seconds in slept if seconds > PATIENCE
                ]
                if off:
                    row.violations.append(f"time: {off} records are minutes away from the database's time")
                if takeovers:
                    row.violations.append(f"takeover: {len(takeovers)} from workers that were alive")
                if len(pids) < 2:
                    row.violations.append("one of the workers did nothing")
                row.remarks = f"slept {min(slept, default=0):.2f} to {max(slept, default=0):.2f} s"
        finally:
            for nursery in nurseries:
                nursery.close()
    return row


async def _all(handles: list[RunHandle[T]], within: float) -> list[T]:
    async with asyncio.timeout(within):
        return list(await asyncio.gather(*(handle.result() for handle in handles)))
