"""Cancel and pause from another process, while the run's worker works, stands still, or dies."""

from __future__ import annotations

import signal
import time

import pytest

from durable import RunCancelled, State, TimelineEntry
from tests.processes import flows
from tests.processes.children import Site
from tests.processes.test_stall import stop_outside_every_transaction, written_by

LEASE = 1.0
OPTIONS = {"lease": LEASE}
UNASKED = 60.0  # seconds between two looks without a hint: whoever waited for one would fail the test


def kinds(timeline: list[TimelineEntry], *wanted: str) -> list[str]:
    return [entry.kind for entry in timeline if entry.kind in wanted]


@pytest.mark.parametrize("kind", ["cancellable", "listening_thread"])
async def test_P30_a_cancel_from_another_process_reaches_a_running_step_at_once(site: Site, kind: str) -> None:
    worker = await site.worker(options={"lease": 60.0, "poll_interval": UNASKED})
    delays: list[float] = []
    async with site.client() as client:
        for _ in range(5):
            handle = await client.trigger(flows.endless, kind)
            await worker.expect("holding", run=handle.run_id)
            asked = time.monotonic()  # one clock for all processes of a machine
            assert await handle.cancel(reason="changed my mind", by="the customer")
            delays.append((await worker.expect("cancelled", step=kind))["at"] - asked)
            with pytest.raises(RunCancelled, match="changed my mind"):
                await handle.result(timeout=5)
            assert site.done(handle.run_id) == [f"first of {kind}", "undo first"]
            assert kinds(await client.timeline(handle.run_id), "cancel", "cancelled") == ["cancel", "cancelled"]
    print("seconds from the call to the step:", [round(delay, 4) for delay in delays])
    assert max(delays) < 1


async def test_P30_a_worker_without_a_free_slot_hears_a_cancel(site: Site) -> None:
    worker = await site.worker(options={"lease": 60.0, "poll_interval": UNASKED, "concurrency": 1})
    async with site.client() as client:
        handle = await client.trigger(flows.endless, "cancellable")
        await worker.expect("holding", run=handle.run_id)
        following = await client.trigger(flows.quick, 1)
        asked = time.monotonic()
        assert await handle.cancel()
        assert (await worker.expect("cancelled"))["at"] - asked < 1
        assert await following.result(timeout=5) == 1  # the slot is free again


async def test_P29_P04_a_cancel_while_the_holder_stands_still_is_carried_out_by_the_taker_alone(site: Site) -> None:
    options = {"lease": LEASE, "poll_interval": 0.2, "drain_timeout": 0.2}
    zombie = await site.worker(options=options, watch=True)
    zombie_id = (await zombie.expect("registered"))["worker"]
    async with site.client() as client:
        handle = await client.trigger(flows.reserved, "go")
        await zombie.expect("holding", run=handle.run_id)
        survivor = await site.worker(options=options)
        await stop_outside_every_transaction(zombie)
        before = await client.timeline(handle.run_id)
        assert await handle.cancel(by="the customer")
        with pytest.raises(RunCancelled):
            await handle.result(timeout=LEASE + 5)
        after = await client.timeline(handle.run_id)

        zombie.events.clear()
        zombie.say("go")
        zombie.signal(signal.SIGCONT)
        assert (await zombie.expect("write", run=handle.run_id))["outcome"] == "lease_lost"
        zombie.signal(signal.SIGTERM)
        assert await zombie.exit_code() == 0
        assert {write["outcome"] for write in zombie.unread("write")} <= {"lease_lost"}
        assert await client.timeline(handle.run_id) == after
    assert written_by(zombie_id, after) == written_by(zombie_id, before)
    assert kinds(after, "takeover", "cancel", "cancelled") == ["takeover", "cancel", "cancelled"]
    assert [effect.what for effect in site.effects if effect.pid == survivor.pid] == ["undo reserve"]
    assert site.done().count("undo reserve") == 1


async def test_P29_a_cancel_that_its_worker_heard_and_died_of_is_carried_out_by_the_next(site: Site) -> None:
    workers = await site.workers(2, options=OPTIONS)
    async with site.client() as client:
        handle = await client.trigger(flows.endless, "stubborn")
        victim, _ = await site.first(workers, "holding", step="stubborn")
        assert await handle.cancel(reason="enough")
        await victim.expect("cancelled", step="stubborn")  # and it does not obey: nothing is undone yet
        victim.signal(signal.SIGKILL)
        with pytest.raises(RunCancelled, match="enough"):
            await handle.result(timeout=LEASE + 5)
        timeline = await client.timeline(handle.run_id)
        assert not await handle.cancel()
    assert kinds(timeline, "cancel") == ["cancel"]
    assert kinds(timeline, "takeover", "cancelled") == ["takeover", "cancelled"]
    assert site.done() == ["first of stubborn", "undo first"]
    assert [effect.pid == victim.pid for effect in site.effects] == [True, False]


async def test_a_cancel_that_its_worker_never_heard_is_carried_out_by_the_next(site: Site) -> None:
    victim = await site.worker(options=OPTIONS, watch=True)
    async with site.client() as client:
        handle = await client.trigger(flows.reserved, "go")
        await victim.expect("holding", run=handle.run_id)
        await stop_outside_every_transaction(victim)
        assert await handle.cancel()
        victim.signal(signal.SIGKILL)
        survivor = await site.worker(options=OPTIONS)
        with pytest.raises(RunCancelled):
            await handle.result(timeout=LEASE + 5)
        timeline = await client.timeline(handle.run_id)
    assert kinds(timeline, "takeover", "cancel", "cancelled") == ["takeover", "cancel", "cancelled"]
    assert [(effect.what, effect.pid) for effect in site.effects] == [
        *(("reserve", victim.pid), ("held begun", victim.pid), ("undo reserve", survivor.pid))
    ]


async def test_a_pause_lets_the_running_step_end_and_nothing_follows_it_until_resume(site: Site) -> None:
    worker = await site.worker(options=OPTIONS, watch=True)
    async with site.client() as client:
        handle = await client.trigger(flows.three_steps)
        await worker.expect("holding", run=handle.run_id)
        await client.pause(handle.run_id, reason="the warehouse is on fire", by="ops")
        await worker.expect("write", run=handle.run_id, parts=["request"], outcome="applied")
        assert await handle.status() is State.RUNNING  # its step executes still
        worker.say("go")
        await worker.expect("write", run=handle.run_id, parts=["step"], outcome="applied")
        await worker.expect("write", run=handle.run_id, parts=["→ paused"], outcome="applied")
        paused = await client.get_run(handle.run_id)
        assert (paused.state, paused.reason, paused.requested) == (State.PAUSED, "the warehouse is on fire", None)

        worker.signal(signal.SIGKILL)  # nobody holds it: there is nothing to take over
        survivor = await site.worker(options=OPTIONS)
        others = await client.trigger_many(flows.quick, list(range(20)))
        assert [await other.result(timeout=10) for other in others] == list(range(20))
        assert site.done(handle.run_id) == ["first", "second begun", "second"]
        await client.resume(handle.run_id)
        assert await handle.result(timeout=5) == [worker.pid, worker.pid, survivor.pid]
        timeline = await client.timeline(handle.run_id)
    assert site.done(handle.run_id) == ["first", "second begun", "second", "third"]
    assert kinds(timeline, "pause", "resume", "takeover", "completed") == [
        *("completed", "pause", "completed", "resume", "completed", "completed")
    ]
