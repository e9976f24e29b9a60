"""SIGTERM: what runs may end, what does not is given back at once, and the process goes."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable import Engine, State, WorkerOptions
from tests.processes import flows
from tests.processes.children import Site
from tests.processes.stage import stage

LONG_LEASE = 60.0  # whoever had to wait for it would fail the test
SLACK = 3.0
"""Seconds for what is promised within one: other tests run beside these. Waiting for a step that refuses takes 5."""


@pytest.mark.parametrize("kind", ["cancellable", "stubborn", "endless_thread"])
async def test_P03_sigterm_gives_back_at_once_what_does_not_end_in_time(site: Site, kind: str) -> None:
    drain = 1.0
    leaving = await site.worker(options={"lease": LONG_LEASE, "drain_timeout": drain})
    async with site.client() as client:
        ends = await client.trigger(flows.drained)
        stays = await client.trigger(flows.endless, kind)
        await leaving.expect("holding", run=ends.run_id)
        await leaving.expect("holding", step=kind)
        staying = await site.worker(options={"lease": LONG_LEASE}, open=True)

        asked = time.monotonic()
        leaving.signal(signal.SIGTERM)
        await leaving.expect("stopping")
        later = await client.trigger(flows.quick, 1)
        leaving.say("go")
        assert await later.result(timeout=10) == 1
        assert await ends.result(timeout=drain + SLACK) == [leaving.pid, staying.pid]
        assert await leaving.exit_code() == 0
        assert time.monotonic() - asked < drain + SLACK
        await staying.expect("holding", within=2 + SLACK, step=kind)
        assert await stays.result(timeout=10) == staying.pid
        timelines = [entry.kind for run in (ends, stays, later) for entry in await client.timeline(run.run_id)]
    assert {"takeover", "failed", "retrying", "undo started"}.isdisjoint(timelines)
    assert {effect.pid for effect in site.effects if effect.run_id == later.run_id} == {staying.pid}
    assert site.done(ends.run_id) == ["ends in time begun", "ends in time", "next"]
    assert site.done(stays.run_id) == [f"first of {kind}"]
    assert staying.warnings == []


async def test_P03_a_second_signal_ends_at_once(site: Site) -> None:
    worker = await site.worker(options={"lease": 2, "drain_timeout": 60})
    async with site.client() as client:
        await client.trigger(flows.endless, "cancellable")
        await worker.expect("holding", step="cancellable")
        worker.signal(signal.SIGTERM)
        await worker.expect("stopping")
        worker.signal(signal.SIGTERM)
        assert await worker.exit_code(within=SLACK) == -signal.SIGTERM


async def test_P03_an_idle_worker_stops_at_once(site: Site) -> None:
    worker = await site.worker(options={"lease": LONG_LEASE, "drain_timeout": 60})
    worker.signal(signal.SIGINT)
    assert await worker.exit_code(within=SLACK) == 0
    assert worker.warnings == []


async def test_P03_after_stop_nothing_of_the_engine_is_left(site: Site, tmp_path: Path) -> None:
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    stage.begin(str(tmp_path / "own-ledger"), opened=True)
    engine = Engine(site.url, workflows=flows.ALL, worker=WorkerOptions(lease=1.0, drain_timeout=1.0))
    async with engine:
        done = await engine.trigger(flows.quick, 1)
        parked = await engine.trigger(flows.nap_between, 60.0)
        assert await done.result(timeout=10) == 1
        while await parked.status() is not State.SLEEPING:  # each look is a round trip to the store
            continue
    assert asyncio.all_tasks() <= tasks
    assert set(threading.enumerate()) <= threads  # the watcher of an earlier test's process may end meanwhile
    assert await asyncio.to_thread(connections_left, site.url) == []


def connections_left(url: str) -> list[Any]:
    """What is still connected to the database."""
    if url.startswith("sqlite"):
        return list(Path(url.removeprefix("sqlite:///")).parent.glob("*-wal"))  # the last connection removes it
    query = (
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
        "AND backend_type = 'client backend'"
    )
    deadline = time.monotonic() + 2
    with psycopg.connect(url, autocommit=True) as connection:
        while (rows := connection.execute(query).fetchall()) and time.monotonic() < deadline:
            continue  # the server notices the end of a connection a moment later
        return rows
