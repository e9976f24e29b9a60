"""Several processes on one file: nothing is lost, nobody starves, nobody waits for a process that died."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durable.errors import StoreUnavailable
from durable.model import RunFilter
from durable.schedules import CatchUp, Overlap, Schedule, ScheduleSpec, ScheduleWrite
from durable.store import Hint
from durable.stores.sqlite import SQLiteStore
from durable.stores.sqlite import store as store_module
from tests.sqlite.conftest import ROOT, Peer
from tests.sqlite.peer import ROUTE, new_runs, step

StartPeers = Callable[[int], Awaitable[list[Peer]]]


@pytest.fixture
async def waiting(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set when a connection of this process has found the file busy and waits."""
    loop, event, sleep = asyncio.get_running_loop(), asyncio.Event(), time.sleep

    def seen(seconds: float) -> None:
        loop.call_soon_threadsafe(event.set)
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", seen)
    return event


def intact(path: Path) -> bool:
    database = sqlite3.connect(path)
    try:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    finally:
        database.close()


async def test_P42_eight_processes_create_and_migrate_one_file(peers: StartPeers, path: Path) -> None:
    everyone = await peers(8)
    assert not list(path.parent.iterdir())
    versions = await asyncio.gather(*(peer.ask("open") for peer in everyone))
    assert versions == [SQLiteStore(path).latest_version] * 8


async def test_P08_eight_processes_never_claim_one_run_twice(peers: StartPeers, store: SQLiteStore) -> None:
    runs = new_runs(600)
    await store.create_runs(runs)
    everyone = await peers(8)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    taken = await asyncio.gather(*(peer.ask("take_all", f"w{n}", 7) for n, peer in enumerate(everyone)))
    assert sorted(run_id for ids in taken for run_id in ids) == sorted(run.id for run in runs)


async def test_P39_processes_that_fire_the_same_schedules_fire_each_tick_once(
    peers: StartPeers, store: SQLiteStore
) -> None:
    now = store.clock.now().replace(microsecond=0)
    ticks = [now - timedelta(seconds=second) for second in range(20, 0, -1)]
    dates: dict[str, Any] = {"every": 1.0, "end_at": now, "catch_up": CatchUp.ALL}
    for number, overlap in enumerate(20 * [Overlap.ALLOW, Overlap.QUEUE]):
        spec = ScheduleSpec(f"s{number}", *ROUTE[:2], overlap=overlap, max_queued=100, **dates)
        await store.write_schedules([ScheduleWrite(Schedule(spec, ticks[0], ticks[0], now, now))])
    everyone = await peers(3)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    counts = await asyncio.gather(*(peer.ask("fire", 2) for peer in everyone))
    assert sum(counts) == 40 * len(ticks)
    for number in range(40):
        assert [tick.at for tick in await store.ticks(f"s{number}", ticks[0], now, 100)] == ticks
        assert len(await store.list_runs(RunFilter(schedule=f"s{number}"), 100, None)) == len(ticks)


async def test_a_small_commit_finds_its_turn_beside_a_busy_process(peers: StartPeers, store: SQLiteStore) -> None:
    """The longest wait is 0.03 s; with SQLite's own way of waiting and no gap after a write it was up to 0.75 s."""
    await store.create_runs(new_runs(401))
    (busy,) = await peers(1)
    await busy.ask("open")
    assert len(await busy.ask("take", "busy", 400)) == 400
    await store.register("small", 60)
    (run,) = (await store.claim("small", [ROUTE], 1, "batch", {})).runs
    done = asyncio.ensure_future(busy.ask("flush", "busy", 60, 8))
    waits: list[float] = []
    while not done.done():
        sent = time.monotonic()
        await store.commit("small", [step(run.ref, len(waits) + 1, store.clock.now())])
        waits.append(time.monotonic() - sent)
    assert len(waits) > 20
    assert max(waits) < 0.25
    assert (await done)["longest"] < 0.8


async def test_a_commit_of_another_process_is_a_hint_and_an_own_one_is_not(
    peers: StartPeers, store: SQLiteStore
) -> None:
    (peer,) = await peers(1)
    await peer.ask("open")
    await store.close()
    await store.open()  # what the peer wrote so far is old news
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    end = store.subscribe(heard.put_nowait)
    await store.create_runs(new_runs(1))
    store.announce(Hint.WORK)
    await store.get_runs([])  # the thread looks around after a write, before it takes the next call
    assert heard.empty()
    await peer.ask("create", 1)
    assert await heard.get() == Hint.WORK | Hint.ENDED | Hint.REQUEST | Hint.SCHEDULE
    end()
    await peer.ask("create", 1)
    await store.create_runs(new_runs(1))
    await store.get_runs([])
    assert heard.empty()


async def test_a_writer_that_is_killed_inside_its_transaction_holds_nobody_up(
    peers: StartPeers, store: SQLiteStore, waiting: asyncio.Event
) -> None:
    (peer,) = await peers(1)
    await peer.ask("hold")
    creating = asyncio.ensure_future(store.create_runs(new_runs(1)))
    await waiting.wait()
    await peer.kill()
    assert [one.created for one in await creating] == [True]
    assert not store.renew("half-written", 1.0).alive


async def test_who_waits_too_long_is_told_and_has_written_nothing(
    peers: StartPeers, path: Path, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.05)
    monkeypatch.setattr(store_module, "_RENEW_PATIENCE", 0.05)
    hasty = SQLiteStore(path)
    await hasty.open()
    await hasty.register("w", 60)
    (peer,) = await peers(1)
    await peer.ask("hold")
    (new,) = new_runs(1)
    with pytest.raises(StoreUnavailable, match="another process has been writing"):
        await hasty.create_runs([new])
    with pytest.raises(StoreUnavailable, match="another process has been writing"):
        await asyncio.to_thread(hasty.renew, "w", 60)
    assert await hasty.get_runs([new.id]) == []  # readers never wait
    await peer.ask("let_go")
    assert [one.created for one in await hasty.create_runs([new])] == [True]
    assert hasty.renew("w", 60).alive
    await hasty.close()


async def test_P05_a_renewal_does_not_wait_behind_the_store_thread(store: SQLiteStore) -> None:
    import threading

    await store.register("w", 60)
    gate = threading.Event()
    assert store._thread is not None
    blocked = store._thread.call(gate.wait)
    assert (await asyncio.to_thread(store.renew, "w", 60)).alive
    gate.set()
    await blocked


async def test_P11_kill_9_in_the_middle_of_flushes_leaves_whole_flushes(
    peers: StartPeers, store: SQLiteStore, path: Path
) -> None:
    runs = new_runs(50)
    await store.create_runs(runs)
    (peer,) = await peers(1)
    await peer.ask("open")
    await peer.ask("take", "w", 50)
    peer.tell("flush_for_ever", "w")
    acknowledged = 0
    for _ in range(40):
        acknowledged = await peer.answer()
    await peer.kill()
    lengths = {len(await store.history(run.id)) for run in runs}
    assert len(lengths) == 1
    assert lengths.pop() >= acknowledged
    assert intact(path)


def run_script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


FORK = """
import asyncio, gc, os, sys
from durable.errors import StoreUnavailable
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.peer import ROUTE, new_runs, step

store = SQLiteStore(sys.argv[1])

async def set_up():
    await store.open()
    await store.migrate()
    await store.register("w", 60)
    store.renew("w", 60)

async def in_child():
    refused = 0
    for call in (lambda: store.create_runs(new_runs(1)), lambda: asyncio.to_thread(store.renew, "w", 60)):
        try:
            await call()
        except StoreUnavailable:
            refused += 1
    await store.close()
    print("child refused", refused, flush=True)

async def go_on():
    await store.create_runs(new_runs(1))
    assert store.renew("w", 60).alive
    await store.close()
    print("parent went on")

loop = asyncio.new_event_loop()
loop.run_until_complete(set_up())
child = os.fork()
if child == 0:
    asyncio.run(in_child())
    del store
    gc.collect()  # closes its connections; leaving by sys.exit would also close the parent's epoll
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
loop.run_until_complete(go_on())
"""


def test_a_connection_is_not_used_in_a_forked_child(path: Path) -> None:
    done = run_script(FORK, str(path))
    assert (done.returncode, done.stdout.splitlines()) == (0, ["child refused 2", "parent went on"]), done.stderr
    assert intact(path)


LEAVE_OPEN = """
import asyncio, sys
from durable.stores.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await store.migrate()
    store.subscribe(print)

asyncio.run(main())
"""


def test_a_store_that_is_left_open_keeps_no_process_alive(path: Path) -> None:
    done = run_script(LEAVE_OPEN, str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
