"""Published events, who gets them, and the log of what runs emit."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import Also, Awaited, ClaimedRun, Emitted, Kind, Outcome, Published, Record, RunWrite, State
from durable.store import Store
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    StoreHarness,
    Worker,
    claimed,
    create,
    ids_of,
    new_id,
    new_run,
    record,
    send,
    until,
)
from durable.testing.conformance.situations import RETRY, only
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_DAY = 86400.0


class EventConformance:
    # -- who gets an event --------------------------------------------------------------------------

    async def test_P31_every_run_that_waits_gets_the_event_and_goes_on(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        await create(store, *(new_run() for _ in range(30)))
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs
        for one in runs[:25]:
            await _await(worker, one)
        for one in runs[25:]:
            await worker.wait(one)
        event = _event(data='{"ok": [false, null, 0, ""]}')
        await other.publish([event])
        await _drain(store)
        got = (await worker.claim()).runs
        assert sorted(one.run.id for one in got) == sorted(one.run.id for one in runs[:25])
        for one in got:
            ((signal_id, name, data, at),) = one.signals
            assert (signal_id, name, data) == (event.id, "event/paid/order-1", event.data)
            assert at.utcoffset() is not None

    async def test_P31_topic_and_key_are_both_compared(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        waits = [("paid", "order-1"), ("paid", "order-2"), ("paid", ""), ("shipped", "order-1"), ("paid/order-1", "")]
        await create(store, *(new_run() for _ in waits))
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs  # created at the same time, so in any order
        for one, (topic, key) in zip(runs, waits, strict=True):
            await _await(worker, one, topic=topic, key=key)
        for at, (topic, key) in enumerate(waits):
            event = _event(topic=topic, key=key)
            await store.publish([event])
            await _drain(store)
            one = await worker.take()
            assert (one.run.id, ids_of(one.signals)) == (runs[at].run.id, [event.id])
            assert one.signals[0].name == f"event/{topic}/{key}"

    async def test_P31_a_run_that_holds_its_lease_is_told(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, parks=False)
        event = _event()
        await store.publish([event])
        await _drain(store)
        assert (await worker.claim(0, ())).signalled == [one.run.id]
        assert ids_of((await worker.unread(one)).signals) == [event.id]
        await worker.wait(one)
        assert ids_of((await worker.take()).signals) == [event.id]

    async def test_P31_several_events_in_one_call_reach_their_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(10)))
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs
        for number, one in enumerate(runs):
            await _await(worker, one, key=f"k{number}")
        events = [_event(key=f"k{number}") for number in range(10)]
        await store.publish(events)
        await store.publish([])
        await _drain(store)
        got = {one.run.id: ids_of(one.signals) for one in (await worker.claim()).runs}
        assert got == {one.run.id: [event.id] for one, event in zip(runs, events, strict=True)}

    # -- a little late ------------------------------------------------------------------------------

    async def test_P31_a_run_that_begins_to_wait_gets_the_oldest_that_is_retained(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        events = [_event() for _ in range(3)]
        for event in events:
            await store.publish([event])
            await _drain(store)
        worker, one = await claimed(store)
        for seq, event in enumerate(events, 1):
            await _await(worker, one, seq)
            await _drain(store)
            one = await worker.take()
            assert ids_of(one.signals)[-1] == event.id
        assert ids_of(one.signals) == [event.id for event in events]
        await _await(worker, one, 4)
        await _drain(store)
        assert (await worker.claim()).runs == []

    async def test_P31_an_event_from_before_since_is_not_given(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        old, new = _event(), _event()
        await store.publish([old])
        since = await _later(store)
        worker, one = await claimed(store)
        await _await(worker, one, since=since)
        await _drain(store)
        assert (await worker.claim()).runs == []
        await store.publish([new])
        await _drain(store)
        one = await worker.take()
        assert ids_of(one.signals) == [new.id]
        await _await(worker, one, 2, since=LONG_AGO)
        await _drain(store)
        assert ids_of((await worker.take()).signals) == [new.id, old.id]

    async def test_P31_an_event_is_gone_after_its_retention(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        brief, kept = _event(retention=0.05), _event()
        await store.publish([brief, kept])
        await until(store, store.clock.now() + timedelta(seconds=0.3))
        worker, one = await claimed(store)
        await _await(worker, one)
        await _drain(store)
        assert ids_of((await worker.take()).signals) == [kept.id]

    async def test_P31_a_run_that_waits_already_gets_an_event_without_retention(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one)
        event = _event(retention=0.0)
        await store.publish([event])
        await _later(store)
        await _drain(store)
        assert ids_of((await worker.take()).signals) == [event.id]

    async def test_P31_a_clock_that_is_ahead_misses_nothing_that_comes_after(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, since=NEVER)
        await _drain(store)
        event = _event()
        await store.publish([event])
        await _drain(store)
        assert ids_of((await worker.take()).signals) == [event.id]

    # -- once -------------------------------------------------------------------------------------

    async def test_P33_an_event_published_again_is_given_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one)
        event = _event()
        await store.publish([event, event])
        await store.publish([event])
        await _drain(store)
        one = await worker.take()
        assert ids_of(one.signals) == [event.id]
        await _await(worker, one, 2, also=Also(consumed=[event.id]))
        await store.publish([event])
        await _drain(store)
        assert (await worker.claim()).runs == []
        following = _event()
        await store.publish([following])
        await _drain(store)
        assert ids_of((await worker.take()).signals) == [following.id]

    async def test_P33_one_event_ends_one_wait(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, 1, parks=False)
        await _await(worker, one, 2, parks=False)
        first, second, third = (_event() for _ in range(3))
        for event in (first, second, third):
            await store.publish([event])
            await _drain(store)
        assert ids_of((await worker.unread(one)).signals) == [first.id, second.id]

    async def test_P11_a_wait_sent_again_is_one_wait(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        first, second = _event(), _event()
        wait = RunWrite(one.ref, [record(1, "e", Kind.WAIT, None)], also=_awaiting())
        for _ in range(3):
            assert await worker.commit(wait) == [Outcome.APPLIED]
        await store.publish([first])
        await _drain(store)
        for _ in range(3):
            assert await worker.commit(wait) == [Outcome.APPLIED]
        await store.publish([second])
        await _drain(store)
        assert ids_of((await worker.unread(one)).signals) == [first.id]

    async def test_P04_a_zombie_awaits_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        zombie, one = await claimed(store)
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        wait = RunWrite(one.ref, [record(2, "e", Kind.WAIT, None)], also=_awaiting())
        assert await zombie.commit(wait) == [Outcome.LEASE_LOST]
        worker = await Worker.start(store)
        again = await worker.take()
        assert await zombie.commit(wait) == [Outcome.LEASE_LOST]
        await store.publish([_event()])
        await _drain(store)
        assert (await worker.unread(again)).signals == []

    # -- at the same time ---------------------------------------------------------------------------

    async def test_P31_an_event_and_a_wait_at_the_same_time_do_not_miss_each_other(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        for seq in range(1, 21):
            event = _event(key=f"k{seq}")
            await asyncio.gather(other.publish([event]), _await(worker, one, seq, key=f"k{seq}"))
            await _drain(store)
            one = await worker.take()
            assert ids_of(one.signals)[-1] == event.id

    async def test_P31_many_publishers_and_waiters_at_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        await create(store, *(new_run() for _ in range(20)))
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs
        event = _event()
        await asyncio.gather(
            *(_await(worker, one) for one in runs), *((store, other)[n % 2].publish([event]) for n in range(4))
        )
        await _drain(store)
        got = {one.run.id: ids_of(one.signals) for one in (await worker.claim()).runs}
        assert got == {one.run.id: [event.id] for one in runs}

    # -- ends -------------------------------------------------------------------------------------

    async def test_P31_a_run_that_failed_while_it_waited_gets_the_event_when_it_is_retried(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, parks=False)
        await worker.apply(one, change=states.fail(_R, ERROR))
        event = _event()
        await store.publish([event])
        await _drain(store)
        assert (await worker.claim()).runs == []
        assert await store.request(one.run.id, RETRY) is State.PENDING
        assert ids_of((await worker.take()).signals) == [event.id]

    async def test_P52_a_wait_goes_with_its_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, parks=False)
        await worker.apply(one, change=states.complete(_R, "1"))
        assert await store.delete(one.run.id)
        await create(store, new_run(id=one.run.id))
        again = await worker.take()
        await store.publish([_event()])
        await _drain(store)
        assert (await worker.unread(again)).signals == []

    async def test_an_event_that_cannot_be_stored_is_refused_with_those_beside_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, parks=False)
        with pytest.raises(PayloadError):
            await store.publish([_event(), _event(data='"\0"')])
        await _drain(store)
        assert (await worker.unread(one)).signals == []

    async def test_an_event_finds_its_place_behind_what_came_before(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await _await(worker, one, parks=False)
        await send(store, one.run.id, "before")
        event = _event()
        await store.publish([event])
        await _drain(store)
        await send(store, one.run.id, "after")
        assert ids_of((await worker.unread(one)).signals) == ["before", event.id, "after"]

    async def test_an_event_from_before_makes_a_run_ready_when_it_is_given_and_not_earlier(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        await store.publish([_event()])
        await create(store, new_run(), new_run())
        worker = await Worker.start(store)
        later, earlier = (await worker.claim()).runs
        await worker.wait(earlier)
        await send(store, earlier.run.id, "x")
        await _drain(store)
        await _later(store)
        await _await(worker, later)
        await _drain(store)
        (first,), (second,) = (await worker.claim(1)).runs, (await worker.claim(1)).runs
        assert (first.run.id, second.run.id) == (earlier.run.id, later.run.id)
        assert first.signals[0].at < second.signals[0].at

    # -- the log ------------------------------------------------------------------------------------

    async def test_P48_what_a_run_emits_is_in_the_log_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        assert await store.emitted(None, 10) == []
        records = [record(1), _emit(2, "a", '{"n": 1}'), _emit(3, "b", "null")]
        for _ in range(3):
            await worker.apply(one, *records, also=Also(emits=True))
        log = await _log(store, 2)
        assert [(entry.run_id, entry.key, entry.data) for entry in log] == [
            (one.run.id, "a", '{"n": 1}'),
            (one.run.id, "b", "null"),
        ]
        assert [entry.at for entry in log] == [records[1].at, records[2].at]
        await worker.apply(one, _emit(4, "a#2", "0"), change=states.complete(_R, "1"), also=Also(emits=True))
        await worker.apply(one, _emit(4, "a#2", "0"), change=states.complete(_R, "1"), also=Also(emits=True))
        assert [entry.key for entry in await _log(store, 1, log[-1].cursor)] == ["a#2"]

    async def test_P48_a_consumer_with_a_cursor_sees_each_entry_once_and_in_order(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        await create(store, *(new_run() for _ in range(8)))
        writers = [await Worker.start((store, other)[n % 2]) for n in range(2)]
        held: list[tuple[Worker, ClaimedRun]] = []
        for writer in writers:
            held.extend((writer, one) for one in (await writer.claim(4)).runs)
        seen: list[tuple[str, str]] = []
        cursor: str | None = None

        async def consume() -> None:
            nonlocal cursor
            for entry in await other.emitted(cursor, 5):
                seen.append((entry.run_id, entry.key))
                cursor = entry.cursor

        for seq in range(1, 7):
            await asyncio.gather(
                *(writer.apply(one, _emit(seq, f"e{seq}", str(seq)), also=Also(emits=True)) for writer, one in held),
                consume(),
            )
        async with asyncio.timeout(60):
            while len(seen) < 48:
                await consume()
                await asyncio.sleep(0)
        await consume()
        assert sorted(seen) == sorted((one.run.id, f"e{seq}") for _, one in held for seq in range(1, 7))
        for _, one in held:
            assert [key for run_id, key in seen if run_id == one.run.id] == [f"e{seq}" for seq in range(1, 7)]

    async def test_P48_the_log_is_read_in_pages_from_any_cursor(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        for seq in range(1, 13):
            await worker.apply(one, _emit(seq, f"e{seq}", str(seq)), also=Also(emits=True))
        log = await _log(store, 12)
        assert [entry.data for entry in log] == [str(seq) for seq in range(1, 13)]
        for at, entry in enumerate(log):
            assert list(await store.emitted(entry.cursor, 3)) == log[at + 1 : at + 4]
        assert list(await store.emitted(None, 0)) == []

    async def test_P48_a_zombie_emits_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        zombie, one = await claimed(store)
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        emit = _emit(2, "a", "1")
        assert await zombie.write(one, emit, also=Also(emits=True)) is Outcome.LEASE_LOST
        heir, again = await only(store)
        assert await zombie.write(one, emit, also=Also(emits=True)) is Outcome.LEASE_LOST
        await heir.apply(again, _emit(2, "b", "2"), also=Also(emits=True))
        assert [entry.key for entry in await _log(store, 1)] == ["b"]

    async def test_P52_entries_go_with_their_run_and_cursors_stay(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, gone = await claimed(store)
        other, kept = await claimed(store)
        await worker.apply(gone, _emit(1, "a", "1"), also=Also(emits=True))
        await other.apply(kept, _emit(1, "b", "2"), also=Also(emits=True))
        await worker.apply(gone, _emit(2, "c", "3"), change=states.complete(_R, "1"), also=Also(emits=True))
        log = await _log(store, 3)
        assert [entry.key for entry in log] == ["a", "b", "c"]
        assert await store.delete(gone.run.id)
        assert await store.emitted(None, 10) == [log[1]]
        assert await store.emitted(log[0].cursor, 10) == [log[1]]
        assert await store.emitted(log[2].cursor, 10) == []
        await other.apply(kept, _emit(2, "d", "4"), also=Also(emits=True))
        assert [entry.key for entry in await _log(store, 1, log[2].cursor)] == ["d"]


def _event(*, topic: str = "paid", key: str = "order-1", data: str = "true", retention: float = _DAY) -> Published:
    return Published(new_id(), topic, key, data, retention)


def _awaiting(topic: str = "paid", key: str = "order-1", since: datetime = LONG_AGO) -> Also:
    return Also(awaited=[Awaited(topic, key, since)])


async def _await(
    worker: Worker,
    run: ClaimedRun,
    seq: int = 1,
    *,
    topic: str = "paid",
    key: str = "order-1",
    since: datetime = LONG_AGO,
    parks: bool = True,
    also: Also | None = None,
) -> None:
    """Have the run wait for an event, and park."""
    waiting = _awaiting(topic, key, since)
    waiting.consumed = [] if also is None else also.consumed
    call = record(seq, f"wait{seq}", Kind.WAIT, None)
    if parks:
        await worker.wait(run, call, also=waiting)
    else:
        await worker.apply(run, call, also=waiting)


async def _drain(store: Store) -> None:
    """Make a claim of some worker, with which events become signals."""
    worker = await Worker.start(store)
    assert (await worker.claim(0, ())).runs == []
    await store.unregister(worker.id)


async def _later(store: Store) -> datetime:
    """A time after all that has happened."""
    await until(store, store.clock.now() + timedelta(milliseconds=400))
    return store.clock.now() - timedelta(milliseconds=200)


def _emit(seq: int, key: str, data: str) -> Record:
    return record(seq, key, Kind.EMIT, data)


async def _log(store: Store, count: int, after: str | None = None) -> list[Emitted]:
    """The log after the cursor, once it has so many entries: transactions of others may hold them back for a while."""
    log: list[Emitted] = []
    async with asyncio.timeout(60):
        while len(log) < count:
            log = list(await store.emitted(after, 100))
            await asyncio.sleep(0)
    assert len(log) == count
    return log
