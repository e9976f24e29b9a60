"""SIGKILL: whatever the moment, another worker goes on, and what was recorded does not happen again."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from datetime import timedelta

import pytest

from durable import RunCompensated, RunDeadLettered
from tests.processes import flows
from tests.processes.children import Child, Site
from tests.processes.nursery import PATIENCE

LEASE = 1.0
SLACK = 4.0  # seconds, beside the two that are promised: other tests run beside these
OPTIONS = {"lease": LEASE}
LINGER = 1.0  # the default: a shorter backoff is waited for in the slot, a longer one parked


def the_other(children: list[Child], child: Child) -> Child:
    return next(candidate for candidate in children if candidate is not child)


async def test_P01_kill_in_a_step_another_worker_takes_over_in_time_and_repeats_only_that_step(site: Site) -> None:
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.three_steps)
        victim, _ = await site.first(workers, "holding", run=handle.run_id)
        survivor = the_other(workers, victim)
        victim.signal(signal.SIGKILL)
        await survivor.expect("holding", within=LEASE + 2 + SLACK, run=handle.run_id)
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
        await survivor.expect("holding", within=LEASE + 2 + SLACK, gate="undo", step="c")
        survivor.say("undo")
        with pytest.raises(RunCompensated, match="out of stock") as raised:
            await handle.result(timeout=10)
    assert site.done() == ["a", "b", "c", "d", "undo d", "undo c", "undo b", "undo a"]
    assert [effect.pid for effect in site.effects] == [victim.pid] * 5 + [survivor.pid] * 3
    assert raised.value.failure.undone == ("d", "c", "b", "a")
    assert raised.value.failure.not_undone == ()


@pytest.mark.parametrize("delay", [0.8, 1.5], ids=["in_its_slot", "parked"])
async def test_P02_P22_kill_in_the_backoff_of_a_compensation_its_attempts_go_on(site: Site, delay: float) -> None:
    victim = await site.worker(options=OPTIONS, watch=True)
    async with site.client() as client:
        handle = await client.trigger(flows.undone_with_patience, delay)
        expected = {"attempt failed": 1, "→ compensating": 2 if delay > LINGER else 1}  # it begins, and it is parked

        def in_backoff() -> bool | None:
            written = Counter(part for write in victim.unread("write") for part in write["parts"])
            return all(written[part] == number for part, number in expected.items()) or None

        await site.until(in_backoff, PATIENCE, "backoff")
        victim.signal(signal.SIGKILL)
        survivor = await site.worker(options=OPTIONS)
        with pytest.raises(RunCompensated, match="out of stock") as raised:
            await handle.result(timeout=LEASE + 2 + 2 * delay + 5)
        timeline = await client.timeline(handle.run_id)
    tries = [f"undo b, attempt {number}" for number in (1, 2, 3)]
    assert site.done() == ["a", "b", "c", "undo c", *tries, "undo a"]
    assert [effect.pid for effect in site.effects] == [victim.pid] * 5 + [survivor.pid] * 3
    assert raised.value.failure.undone == ("c", "b", "a")
    attempts = [(entry.kind, entry.attempt) for entry in timeline if entry.name == "b" and entry.kind != "started"]
    assert [kind for kind, _ in attempts if kind.startswith("undo ")] == [
        *("undo started", "undo retrying", "undo started", "undo retrying", "undo started", "undo completed")
    ]
    assert [attempt for kind, attempt in attempts if kind == "undo started"] == [1, 2, 3]
    waits = [entry.at for entry in timeline if entry.name == "b" and entry.kind in {"undo retrying", "undo started"}]
    pauses = [later - earlier for earlier, later in zip(waits[1:4:2], waits[2:5:2], strict=True)]
    assert min(pauses) >= timedelta(seconds=delay - 0.01)
    assert len([entry for entry in timeline if entry.kind == "takeover"]) == (1 if delay <= LINGER else 0)


async def test_P24_the_clock_of_a_run_timeout_goes_on_over_a_kill(site: Site) -> None:
    limit = timedelta(seconds=4)
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.in_four_seconds)
        victim, _ = await site.first(workers, "holding", run=handle.run_id)
        victim.signal(signal.SIGKILL)
        await the_other(workers, victim).expect("holding", within=LEASE + 2 + SLACK, run=handle.run_id)
        with pytest.raises(RunCompensated) as raised:
            await handle.result(timeout=15)
        timeline = await client.timeline(handle.run_id)
    assert raised.value.failure.error_type.endswith("RunTimeout")
    at = {entry.kind: entry.at for entry in timeline}
    assert at["running"] + limit <= at["compensated"] < at["takeover"] + limit
    assert site.done() == ["reserve", "slow begun", "slow begun", "undo reserve"]


async def test_P25_run_attempts_are_counted_on_over_a_kill(site: Site) -> None:
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.three_run_attempts)
        victim, _ = await site.first(workers, "holding", run=handle.run_id)
        victim.signal(signal.SIGKILL)
        survivor = the_other(workers, victim)
        await survivor.expect("holding", within=LEASE + 2 + SLACK, run=handle.run_id)
        survivor.say("go")
        with pytest.raises(RunCompensated, match="in vain"):
            await handle.result(timeout=10)
        timeline = await client.timeline(handle.run_id)
    assert site.done() == ["reserve", "effort 1", "effort 2", "effort 2", "effort 3", "undo reserve"]
    assert [entry.attempt for entry in timeline if entry.kind == "run attempt failed"] == [1, 2]
    assert [entry.kind for entry in timeline].count("compensated") == 1


async def test_P06_a_run_that_kills_five_workers_is_given_up_and_its_neighbours_go_on(site: Site) -> None:
    lengths = [15, 20]
    workers = await site.workers(6, options={"lease": 1.5})  # a claim that only lapsed would count as a kill
    async with site.client() as client:
        neighbours = await client.trigger_many(flows.steady, lengths)
        deadly = await client.trigger(flows.deadly)
        with pytest.raises(RunDeadLettered):
            await deadly.result(timeout=40)
        assert site.done(deadly.run_id) == ["kill"] * 5
        async with asyncio.timeout(20):
            assert [await handle.result() for handle in neighbours] == lengths
        timeline = await client.timeline(deadly.run_id)
    survivor, _ = await site.first(workers, "dead letter", run=deadly.run_id, workflow=flows.deadly.name)
    survivor.signal(signal.SIGTERM)
    await survivor.exit_code()
    assert [event for child in site.children for event in child.unread("dead letter")] == []
    dead = [entry.worker for entry in timeline if entry.kind == "takeover"]
    assert len(dead) == len(set(dead)) == 5
    # A step that was running when its worker was killed runs again; all others run once.
    work = Counter(effect.run_id for effect in site.effects if effect.what == "work")
    assert all(length <= work[handle.run_id] <= length + 5 for handle, length in zip(neighbours, lengths, strict=True))
