"""The virtual clock, and what the memory store does when a test moves it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest

from durable.errors import InvalidArgument
from durable.model import State
from durable.store import Hint, Route
from durable.testing import MemoryStore, VirtualClock
from durable.testing.conformance.harness import ROUTE, Worker, create, new_run, read

START = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


def test_time_stands_still_until_it_is_moved() -> None:
    clock = VirtualClock(START)
    assert clock.now() == clock.now() == START
    clock.advance(90)
    clock.advance(timedelta(microseconds=1))
    assert clock.now() == START + timedelta(seconds=90, microseconds=1)
    clock.set(datetime(2026, 3, 29, 5, 0, tzinfo=timezone(timedelta(hours=2))))
    assert clock.now() == datetime(2026, 3, 29, 3, 0, tzinfo=UTC)
    assert clock.now().tzinfo is UTC


def test_two_clocks_without_a_start_agree() -> None:
    assert VirtualClock().now() == VirtualClock().now()


def test_a_naive_time_and_a_way_back_are_refused() -> None:
    naive = datetime(2027, 1, 1)  # noqa: DTZ001 - the subject
    with pytest.raises(InvalidArgument, match="aware"):
        VirtualClock(naive)
    clock = VirtualClock(START)
    with pytest.raises(InvalidArgument, match="aware"):
        clock.set(naive)
    with pytest.raises(InvalidArgument, match="back"):
        clock.set(START - timedelta(microseconds=1))
    with pytest.raises(InvalidArgument, match="back"):
        clock.advance(-1)
    assert clock.now() == START


def test_callbacks_run_in_the_order_of_their_times_and_see_them() -> None:
    clock = VirtualClock(START)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: seen.append((name, (clock.now() - START).total_seconds()))

    for name, after in (("c", 30), ("a", 10), ("b", 20), ("a2", 10), ("late", 41)):
        clock.call_at(START + timedelta(seconds=after), note(name))
    clock.advance(40)
    assert seen == [("a", 10), ("a2", 10), ("b", 20), ("c", 30)]
    assert clock.now() == START + timedelta(seconds=40)
    assert clock.next_due() == START + timedelta(seconds=41)
    clock.advance(1)
    assert seen[4:] == [("late", 41)]
    assert clock.next_due() is None


def test_a_callback_may_ask_for_another_one_within_the_same_advance() -> None:
    clock = VirtualClock(START)
    ticks: list[datetime] = []

    def tick() -> None:
        ticks.append(clock.now())
        clock.call_at(clock.now() + timedelta(seconds=10), tick)

    clock.call_at(START + timedelta(seconds=10), tick)
    clock.advance(35)
    assert ticks == [START + timedelta(seconds=after) for after in (10, 20, 30)]


def test_a_callback_may_move_the_time_itself() -> None:
    clock = VirtualClock(START)
    clock.call_at(START + timedelta(seconds=1), lambda: clock.advance(60))
    clock.advance(10)
    assert clock.now() == START + timedelta(seconds=61)


def test_a_cancelled_callback_does_not_run() -> None:
    clock = VirtualClock(START)
    ran: list[str] = []
    cancel = clock.call_at(START + timedelta(seconds=1), lambda: ran.append("cancelled"))
    done = clock.call_at(START + timedelta(seconds=1), lambda: ran.append("kept"))
    cancel()
    cancel()
    assert clock.next_due() == START + timedelta(seconds=1)
    clock.advance(2)
    assert ran == ["kept"]
    done()


async def test_a_callback_for_the_past_runs_soon_but_not_at_once() -> None:
    clock = VirtualClock(START)
    ran = asyncio.Event()
    clock.call_at(START, ran.set)
    assert not ran.is_set()
    await ran.wait()


def test_listeners_hear_of_the_time_before_it_passes() -> None:
    clock = VirtualClock(START)
    heard: list[tuple[timedelta, datetime]] = []
    clock.call_at(START + timedelta(seconds=1), lambda: heard.append((timedelta(0), clock.now())))
    clock.listen(lambda by: heard.append((by, clock.now())))
    clock.advance(5)
    assert heard == [(timedelta(seconds=5), START), (timedelta(0), START + timedelta(seconds=1))]


# -- the memory store on it -----------------------------------------------------------------------


async def test_moving_the_clock_renews_the_leases_of_live_workers_only() -> None:
    clock = VirtualClock(START)
    store = MemoryStore(clock)
    await create(store, new_run(), new_run())
    alive, dead = await Worker.start(store, lease=30), await Worker.start(store, lease=30)
    (mine,) = (await alive.claim(limit=1)).runs
    (theirs,) = (await dead.claim(limit=1)).runs
    store.expire(dead.id)
    clock.advance(timedelta(days=365))
    assert (await store.reap()).released == 1
    assert (await read(store, mine.run.id)).owner == alive.id
    assert (await read(store, theirs.run.id)).state is State.PENDING
    renewal = store.renew(alive.id, 30)
    assert (renewal.alive, renewal.now, renewal.next_expiry) == (True, clock.now(), None)


async def test_expiring_a_worker_that_is_gone_does_not_bring_it_back() -> None:
    store = MemoryStore()
    worker = await Worker.start(store)
    await store.unregister(worker.id)
    store.expire(worker.id)
    assert not store.renew(worker.id, 30).alive


async def test_next_ready_at_is_where_skipping_time_jumps_to() -> None:
    clock = VirtualClock(START)
    store = MemoryStore(clock)
    assert store.next_ready_at() is None
    hour, day = timedelta(hours=1), timedelta(days=1)
    await create(store, new_run(), new_run("refund", ready_at=START + day), new_run(ready_at=START + hour))
    assert store.next_ready_at() == START + hour
    clock.set(START + hour)
    assert store.next_ready_at() == START + day
    worker = await Worker.start(store)
    assert len((await worker.claim()).runs) == 2
    clock.set(START + day)
    assert store.next_ready_at() is None
    assert len((await worker.claim(routes=[ROUTE, Route("refund", "1")])).runs) == 1


async def test_the_data_outlives_closing() -> None:
    store = MemoryStore()
    await store.open()
    (run_id,) = await create(store)
    await store.close()
    await store.open()
    assert (await read(store, run_id)).id == run_id


async def test_hints_reach_subscribers_on_other_event_loops() -> None:
    store = MemoryStore()
    subscribed, heard = threading.Event(), threading.Event()

    def elsewhere() -> None:
        async def listen() -> None:
            told = asyncio.Event()
            store.subscribe(lambda hint: told.set() if Hint.ENDED in hint else None)
            subscribed.set()
            await told.wait()
            heard.set()

        asyncio.run(listen())

    other = threading.Thread(target=elsewhere)
    other.start()
    await asyncio.to_thread(subscribed.wait)
    store.announce(Hint.ENDED)
    assert await asyncio.to_thread(heard.wait, 30)
    other.join()
    # That loop is closed, and its subscription was never ended: the others hear as before.
    told = asyncio.Event()
    end = store.subscribe(lambda _: told.set())
    store.announce(Hint.WORK)
    await told.wait()
    end()
