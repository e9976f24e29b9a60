"""SIGSTOP past the lease, then SIGCONT; and event loops that user code blocks."""

from __future__ import annotations

import signal

import pytest

from durable import RunCompensated, TimelineEntry
from tests.processes import flows
from tests.processes.children import Child, Site

LEASE = 1.0
SLACK = 4.0  # seconds, beside the two that are promised: other tests run beside these


async def stop_outside_every_transaction(child: Child) -> None:
    """On SQLite a process stopped within one would stop all others (they could not even take over)."""
    child.say("hold")
    await child.expect("held", command="renew")
    await child.expect("held", command="go")
    child.signal(signal.SIGSTOP)


def written_by(worker: str, timeline: list[TimelineEntry]) -> list[TimelineEntry]:
    return [entry for entry in timeline if entry.worker == worker and entry.kind != "takeover"]


async def test_P04_what_a_worker_writes_after_its_lease_is_rejected_whatever_it_is(site: Site) -> None:
    options = {"lease": LEASE, "poll_interval": 0.2, "drain_timeout": 0.2}
    survivor = await site.start(options=options, open=True, barrier=True)  # what takes time comes before the naps begin
    zombie = await site.worker(options=options, watch=True)
    zombie_id = (await zombie.expect("registered"))["worker"]
    await survivor.expect("ready")
    async with site.client() as client:
        runs = {kind: await client.trigger(workflow) for kind, workflow in flows.BEFORE.items()}
        for run in runs.values():
            await zombie.expect("holding", run=run.run_id)
        await zombie.expect("write", run=runs["→ compensating"].run_id, parts=["step"], outcome="applied")
        await stop_outside_every_transaction(zombie)
        assert {write["outcome"] for write in zombie.unread("write")} == {"applied"}
        survivor.say("start")
        before = {kind: await client.timeline(run.run_id) for kind, run in runs.items()}
        for run in runs.values():
            await survivor.expect("holding", within=LEASE + 2 + SLACK, run=run.run_id)

        zombie.events.clear()
        zombie.say("go")
        zombie.signal(signal.SIGCONT)
        attempts = {kind: await zombie.expect("write", run=runs[kind].run_id) for kind in flows.BEFORE_SIGTERM}
        zombie.signal(signal.SIGTERM)
        attempts["→ pending"] = await zombie.expect("write", run=runs["→ pending"].run_id)
        assert await zombie.exit_code() == 0
        for kind, attempt in attempts.items():
            assert kind in attempt["parts"], f"the run before {kind!r} wrote {attempt}"
        assert {write["outcome"] for write in [*attempts.values(), *zombie.unread("write")]} == {"lease_lost"}

        with pytest.raises(RunCompensated, match="out of stock"):
            await runs["undo"].result(timeout=10)
        for kind, run in runs.items():
            if kind != "undo":
                assert await run.result(timeout=10) == survivor.pid, kind
            timeline = await client.timeline(run.run_id)
            assert written_by(zombie_id, timeline) == written_by(zombie_id, before[kind]), kind
            assert [entry.worker for entry in timeline if entry.kind == "takeover"] == [zombie_id], kind
    assert site.done(runs["→ compensating"].run_id) == ["a"]
    assert site.done(runs["undo"].run_id) == ["a", "b", "undo a"]
    assert {effect.pid for effect in site.effects if effect.what.startswith("undo")} == {survivor.pid}


async def test_P04_a_worker_that_finds_its_lease_lost_starts_anew_under_another_id(site: Site) -> None:
    options = {"lease": LEASE, "poll_interval": 0.2, "drain_timeout": 0.0}
    zombie = await site.worker(options=options, watch=True)
    old = (await zombie.expect("registered"))["worker"]
    async with site.client() as client:
        run = await client.trigger(flows.three_steps)
        await zombie.expect("holding", run=run.run_id)
        survivor = await site.worker(options=options)
        await stop_outside_every_transaction(zombie)
        await survivor.expect("holding", within=LEASE + 2 + SLACK, run=run.run_id)
        zombie.say("renew")
        zombie.signal(signal.SIGCONT)
        zombie.say("go")
        assert (await zombie.expect("registered"))["worker"] != old
        survivor.signal(signal.SIGTERM)
        assert await run.result(timeout=10) == [zombie.pid] * 3
    assert site.done().count("first") == site.done().count("third") == 1
    assert "has lost its lease" in zombie.log


async def test_P05_a_blocked_event_loop_keeps_its_lease_and_is_reported_with_its_stack(site: Site) -> None:
    workers = await site.workers(2, options={"lease": 1.5})
    async with site.client() as client:
        run = await client.trigger(flows.blocks_the_loop, 3.0)
        pid = await run.result(timeout=15)
        kinds = [entry.kind for entry in await client.timeline(run.run_id)]
    assert "takeover" not in kinds
    assert [effect.pid for effect in site.effects] == [pid]
    [blocked] = [worker for worker in workers if worker.pid == pid]
    assert "the event loop has been blocked for" in blocked.log
    assert "in sleep_on_the_loop" in blocked.log
    assert "lost its lease" not in blocked.log
