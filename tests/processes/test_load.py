"""Many processes on one database, from its first migration on."""

from __future__ import annotations

import asyncio
from collections import Counter

from tests.processes import flows
from tests.processes.children import Site

STEPS = 3


async def test_P42_P08_eight_workers_migrate_an_empty_database_at_once_and_never_share_a_run(site: Site) -> None:
    runs = 300
    workers = [await site.start(barrier=True, options={"lease": 10, "concurrency": 5}) for _ in range(8)]
    for worker in workers:
        await worker.expect("ready")
    for worker in workers:
        worker.say("start")
    for worker in workers:
        await worker.expect("up")
    async with site.client() as client:
        handles = await client.trigger_many(flows.spread, list(range(runs)))
        async with asyncio.timeout(40):
            assert await asyncio.gather(*(handle.result() for handle in handles)) == list(range(runs))
    done = Counter((effect.run_id, effect.what) for effect in site.effects)
    assert len(done) == runs * STEPS
    assert set(done.values()) == {1}
    of_run: dict[str, set[int]] = {}
    for effect in site.effects:
        of_run.setdefault(effect.run_id, set()).add(effect.pid)
    assert {len(pids) for pids in of_run.values()} == {1}, "a run has moved although no worker had died"
    assert len({effect.pid for effect in site.effects}) > 1
    assert [line for worker in workers for line in worker.warnings] == []


async def test_two_workers_under_load_both_make_progress_and_no_error_surfaces(site: Site) -> None:
    runs = 600
    workers = await site.workers(2, options={"lease": 10, "concurrency": 20})
    async with site.client() as client:
        handles = await client.trigger_many(flows.spread, list(range(runs)))
        async with asyncio.timeout(40):
            assert await asyncio.gather(*(handle.result() for handle in handles)) == list(range(runs))
    share = Counter(effect.pid for effect in site.effects)
    assert sum(share.values()) == runs * STEPS
    assert min(share[worker.pid] for worker in workers) > runs * STEPS / 10, share
    assert [line for worker in workers for line in worker.warnings] == []
