"""Workers whose clocks are ten minutes off, in either direction, against the database's (Postgres)."""

from __future__ import annotations

import signal
from datetime import UTC, datetime, timedelta

from tests.processes import flows
from tests.processes.children import Site

LEASE = 1.0
SLACK = 4.0  # seconds, beside the two that are promised: other tests run beside these
SKEW = 600.0


async def test_P09_sleeps_delays_and_leases_keep_database_time(postgres_site: Site) -> None:
    site = postgres_site
    fast = await site.worker(options={"lease": LEASE}, skew=SKEW)
    async with site.client() as client:
        by_fast = await client.trigger(flows.nap_between, 1.0)
        held = await client.trigger(flows.three_steps)
        await fast.expect("holding", run=held.run_id)
        assert await by_fast.result(timeout=10) == [fast.pid] * 2
        slow = await site.worker(options={"lease": LEASE}, skew=-SKEW)
        # Both renew for three leases; a lease kept on the wrong clock would be taken over at once, or never.
        long = await client.trigger(flows.works_on, 3 * LEASE)
        assert await long.result(timeout=15) in {fast.pid, slow.pid}
        held_so_far = await client.timeline(held.run_id)
        assert [entry for entry in held_so_far if entry.kind == "takeover"] == []

        fast.signal(signal.SIGKILL)
        await slow.expect("holding", within=LEASE + 2 + SLACK, run=held.run_id)
        slow.say("go")
        assert await held.result(timeout=10) == [fast.pid, slow.pid, slow.pid]
        delayed = await client.trigger(flows.nap_between, 1.0, delay=1.0)
        assert await delayed.result(timeout=15) == [slow.pid] * 2

        for handle, delay in ((by_fast, 0.0), (delayed, 1.0)):
            timeline = await client.timeline(handle.run_id)
            at = {(entry.kind, entry.name): entry.at for entry in timeline}
            slept = at["woke", "nap"] - at["sleeping", "nap"]
            assert timedelta(seconds=1) <= slept < timedelta(seconds=2)
            started = at["running", "nap_between"] - at["triggered", "nap_between"]
            assert timedelta(seconds=delay) <= started < timedelta(seconds=delay + 1)
            for entry in timeline:
                assert abs(entry.at - datetime.now(UTC)) < timedelta(seconds=60), entry


async def test_P09_the_shifted_clock_is_shifted(sqlite_site: Site) -> None:
    """The control: SQLite's clock is the host's, and a worker that is ahead writes times that are ahead."""
    worker = await sqlite_site.worker(options={"lease": LEASE}, skew=SKEW)
    async with sqlite_site.client() as client:
        handle = await client.trigger(flows.nap_between, 0.2)
        assert await handle.result(timeout=10) == [worker.pid] * 2
        [ended] = [
            entry
            for entry in await client.timeline(handle.run_id)
            if entry.kind == "completed" and entry.name == "after"
        ]
    assert ended.at - datetime.now(UTC) > timedelta(seconds=SKEW / 2)
