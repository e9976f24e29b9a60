"""SIGKILL: whatever the moment, another worker goes on, and what was recorded does not happen again."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter

import pytest

from durable import RunCompensated, RunDeadLettered
from tests.processes import flows
from tests.processes.children import Child, Site

LEASE = 1.0
OPTIONS = {"lease": LEASE}


def the_other(children: list[Child], child: Child) -> Child:
    return next(candidate for candidate in children if candidate is not child)


async def test_P01_kill_in_a_step_another_worker_takes_over_in_time_and_repeats_only_that_step(site: Site) -> None:
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.three_steps)
        victim, _ = await site.first(workers, "holding", run=handle.run_id)
        survivor = the_other(workers, victim)
        victim.signal(signal.SIGKILL)
        await survivor.expect("holding", within=LEASE + 2, run=handle.run_id)
        survivor.say("go")
        result = await handle.result(timeout=10)
        timeline = await client.timeline(handle.run_id)
    assert result == [victim.pid, survivor.pid, survivor.pid]
    assert site.done() == ["first", "second begun", "second begun", "second", "third"]
    [takeover] = [entry for entry in timeline if entry.kind == "takeover"]
    [first, *_] = [entry for entry in timeline if entry.kind == "completed" and entry.name == "first"]
    assert takeover.worker == first.worker is not None  # it names the worker that died
    attempts = [entry.attempt for entry in timeline if entry.kind == "started" and entry.name == "second"]
    assert attempts == [1], "a crash consumes no attempt"


async def test_P02_kill_between_two_compensations_the_rest_is_undone_in_reverse_order_and_once(site: Site) -> None:
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.undone)
        victim, _ = await site.first(workers, "holding", gate="undo", step="c")
        assert site.done()[-1] == "undo d"
        victim.signal(signal.SIGKILL)
        survivor = the_other(workers, victim)
        await survivor.expect("holding", within=LEASE + 2, gate="undo", step="c")
        survivor.say("undo")
        with pytest.raises(RunCompensated, match="out of stock") as raised:
            await handle.result(timeout=10)
    assert site.done() == ["a", "b", "c", "d", "undo d", "undo c", "undo b", "undo a"]
    assert [effect.pid for effect in site.effects] == [victim.pid] * 5 + [survivor.pid] * 3
    assert raised.value.failure.undone == ("d", "c", "b", "a")
    assert raised.value.failure.not_undone == ()


async def test_P06_a_run_that_kills_five_workers_is_given_up_and_its_neighbours_go_on(site: Site) -> None:
    lengths = [15, 20]
    await site.workers(6, options={"lease": 0.7})
    async with site.client() as client:
        neighbours = await client.trigger_many(flows.steady, lengths)
        deadly = await client.trigger(flows.deadly)
        with pytest.raises(RunDeadLettered):
            await deadly.result(timeout=20)
        assert site.done(deadly.run_id) == ["kill"] * 5
        async with asyncio.timeout(20):
            assert [await handle.result() for handle in neighbours] == lengths
        timeline = await client.timeline(deadly.run_id)
    dead = [entry.worker for entry in timeline if entry.kind == "takeover"]
    assert len(dead) == len(set(dead)) == 5
    # A step that was running when its worker was killed runs again; all others run once.
    work = Counter(effect.run_id for effect in site.effects if effect.what == "work")
    assert all(length <= work[handle.run_id] <= length + 5 for handle, length in zip(neighbours, lengths, strict=True))
