"""One schedule, many engines on one machine, some of them killed: every tick has exactly one run.

``make ticks`` does it with ten engines for two minutes; the suite with fewer for some seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter

from durable import RunSummary
from tests.processes import flows
from tests.processes.children import Child, Site

ENGINES = int(os.environ.get("TICK_ENGINES", "3"))
SECONDS = int(os.environ.get("TICK_SECONDS", "7"))
KILL_EVERY = 3.0  # seconds
OPTIONS = {"lease": 1.0, "concurrency": 20}


async def test_P39_P40_each_second_is_one_run_whatever_dies(site: Site) -> None:
    engines = await site.workers(ENGINES, options=OPTIONS)
    async with site.client() as client:
        await client.schedule(flows.ticked, name="seconds", every=1, overlap="allow", catch_up="all")
        killed = await kill_one_after_the_other(site, engines)
        await client.pause_schedule("seconds", note="the test has seen enough")
        runs: list[RunSummary] = []
        cursor = None
        while True:
            page = await client.list_runs(schedule="seconds", limit=50, cursor=cursor)
            runs += page.items
            if (cursor := page.next_cursor) is None:
                break
        results = [await (await client.handle(flows.ticked, run_id=run.id)).result(30) for run in runs]
    seconds = sorted(results)
    assert seconds == [seconds[0] + number for number in range(len(seconds))], "a tick is missing, or was fired twice"
    assert len(seconds) >= SECONDS - 2
    assert sorted(run.tick.timestamp() for run in runs if run.tick is not None) == seconds
    effects = Counter(effect.what for effect in site.effects)
    assert set(effects) == {f"tick {second:g}" for second in seconds}
    assert effects.total() - len(effects) <= killed * OPTIONS["concurrency"], "repeated without a crash"
    assert killed >= SECONDS // KILL_EVERY // 2, "on a machine that is too busy for it"


async def kill_one_after_the_other(site: Site, engines: list[Child]) -> int:
    """For ``SECONDS``; for each that is killed another one starts. Returns how many."""
    killed, loop = 0, asyncio.get_running_loop()
    end = loop.time() + SECONDS
    while (left := end - loop.time()) > 0:
        await asyncio.sleep(min(left, KILL_EVERY))  # time is what this test is about: ticks pass in it
        if loop.time() < end:
            victim = engines[killed % len(engines)]
            victim.signal(signal.SIGKILL)
            await victim.exit_code()
            engines[killed % len(engines)] = await site.start(options=OPTIONS)  # up when it is up: the next kill is due
            killed += 1
    return killed
