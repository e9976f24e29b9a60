"""Postgres is killed, with all its processes, and comes back."""

from __future__ import annotations

import asyncio
import time

import pytest

from durable import Engine, StoreUnavailable
from durable.testing.postgres import OwnServer
from tests.processes import flows
from tests.processes.children import Site

BACK_WITHIN = 5.0


async def trigger_on(client: Engine, acknowledged: dict[str, int], stop: asyncio.Event) -> None:
    """A caller under load; it counts what was acknowledged."""
    while not stop.is_set():
        item = len(acknowledged)
        try:
            handle = await client.trigger(flows.loaded, item)
        except StoreUnavailable:
            continue
        acknowledged[handle.run_id] = item


@pytest.mark.parametrize("lease", [0.5, 10.0], ids=["leases_expire", "leases_hold"])
async def test_P10_postgres_is_killed_under_load_and_nothing_acknowledged_is_lost(
    postgres_site: Site, durable_postgres: OwnServer, lease: float
) -> None:
    site = postgres_site
    workers = await site.workers(2, options={"lease": lease, "concurrency": 10})
    acknowledged: dict[str, int] = {}
    stop = asyncio.Event()
    async with site.client() as client:
        async with asyncio.TaskGroup() as callers:
            for _ in range(4):
                callers.create_task(trigger_on(client, acknowledged, stop))
            for worker in workers:
                await worker.expect("did")
            await asyncio.to_thread(durable_postgres.kill)
            for worker in workers:
                worker.events.clear()
            await asyncio.to_thread(durable_postgres.start)
            accepting = time.monotonic()
            for worker in workers:
                await worker.expect("did", within=BACK_WITHIN - (time.monotonic() - accepting))
            before = len(acknowledged)
            await site.until(lambda: len(acknowledged) > before or None, BACK_WITHIN, "trigger")
            stop.set()
        assert len(acknowledged) > before
        async with asyncio.timeout(40):
            for run_id, item in acknowledged.items():
                handle = await client.handle(flows.loaded, run_id=run_id)
                assert await handle.result() == item
    assert all(worker.unread("up") == [] and worker.unread("stopped") == [] for worker in workers)
