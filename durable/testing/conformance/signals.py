"""Signals: what is kept, for whom, in which order, and when the run goes on because of one."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import Also, Kind, NewSignal, Outcome, Request, Sent, State, Verb
from durable.store import Store
from durable.testing.conformance.harness import (
    NEVER,
    ROUTE,
    StoreHarness,
    Worker,
    claimed,
    create,
    ids_of,
    new_id,
    new_run,
    read,
    record,
    send,
)
from durable.testing.conformance.situations import CANCEL, ENDED, PAUSE, RESUME, RETRY, reach
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_PAYLOADS = {
    "false": "false",
    "null": "null",
    "zero": "0",
    "empty": '""',
    "true": "true",
    "list": "[]",
    "object": '{"approved": true, "by": {"name": "Zoë ☂ 𝄞"}, "n": [1, 2.5, -0.0, 1e400, 12345678901234567890]}',
    "quotes": '"it\'s \\"{a,b}\\" \\\\ \\u0000 \\ud83d $1 %s"',
    "spaces": ' {"b" : 1,  "a":2, "a":3} ',
}


class SignalConformance:
    # -- what is kept -----------------------------------------------------------------------------

    @pytest.mark.parametrize("payload", _PAYLOADS)
    async def test_P31_any_payload_arrives_as_it_was_sent(self, harness: StoreHarness, payload: str) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        earliest = store.clock.now()
        await send(store, run_id, "s1", name="approval", data=_PAYLOADS[payload])
        one = await (await Worker.start(store)).take()
        ((signal_id, name, data, at),) = one.signals
        assert (signal_id, name, data) == ("s1", "approval", _PAYLOADS[payload])
        assert abs(at - earliest).total_seconds() < 60
        assert at.utcoffset() is not None

    async def test_P31_a_signal_is_kept_until_it_is_consumed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        await send(store, run_id, "before its start")
        worker = await Worker.start(store)
        one = await worker.take()
        assert ids_of(one.signals) == ["before its start"]
        await worker.apply(one, record(1), change=states.release(_R))
        one = await worker.take()
        assert ids_of(one.signals) == ["before its start"]
        await harness.expire(worker.id)
        assert (await store.reap()).released == 1
        heir = await Worker.start(store)
        one = await heir.take()
        assert ids_of(one.signals) == ["before its start"]
        assert await heir.unread(one) == await heir.unread(one)
        assert ids_of((await heir.unread(one)).signals) == ["before its start"]

    async def test_P31_signals_are_read_in_the_order_in_which_they_came(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        first, second = await create(store, new_run(), new_run())
        sent: dict[str, list[str]] = {first: [], second: []}
        for number in range(12):
            batch = [
                NewSignal(run_id, f"{(number * 7 + at * 5) % 11}-{number}-{at}", f"n{at % 2}", str(at))
                for at in range(4)
                for run_id in (first, second)
            ]
            assert await store.send_signals(batch) == [Sent.ACCEPTED] * 8
            for signal in batch:
                sent[signal.run_id].append(signal.id)
        for one in (await (await Worker.start(store)).claim()).runs:
            assert ids_of(one.signals) == sent[one.run.id]

    async def test_P31_each_wait_consumes_its_own(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "a", "b", "c", "d")
        await worker.apply(one, record(1, "w/woke", Kind.WOKE, "true"), also=Also(consumed=["b"]))
        assert ids_of((await worker.unread(one)).signals) == ["a", "c", "d"]
        woke = [record(2, "w#2/woke", Kind.WOKE, "true"), record(3, "w#3/woke", Kind.WOKE, "true")]
        await worker.apply(one, *woke, change=states.release(_R), also=Also(consumed=["d", "a"]))
        assert ids_of((await worker.take()).signals) == ["c"]

    async def test_a_run_that_is_warm_gets_its_signals_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.wait(one)
        await send(store, one.run.id, "a")
        (again,) = (await worker.claim(warm={one.run.id: one.run.claim})).runs
        assert (again.records, ids_of(again.signals)) == (None, ["a"])

    async def test_P31_a_claim_sent_again_has_the_signals(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store)
        await send(store, run_id, "a")
        worker, batch = await Worker.start(store), new_id()
        (one,) = (await worker.claim(batch=batch)).runs
        (again,) = (await worker.claim(batch=batch)).runs
        assert one.signals == again.signals
        assert ids_of(again.signals) == ["a"]

    async def test_many_signals_to_many_runs_in_one_call(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_ids = await create(store, *(new_run() for _ in range(50)))
        batch = [NewSignal(run_id, f"s{n}", "approval", str(n)) for n in range(10) for run_id in run_ids]
        assert await store.send_signals(batch) == [Sent.ACCEPTED] * 500
        runs = (await (await Worker.start(store)).claim()).runs
        assert [ids_of(one.signals) for one in runs] == [[f"s{n}" for n in range(10)]] * 50
        assert await store.send_signals([]) == []

    # -- once, and to whom ------------------------------------------------------------------------

    async def test_P33_the_same_id_twice_is_one_signal(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1", "s1")
        await send(other, one.run.id, "s1", name="another", data="2")
        unread = await worker.unread(one)
        assert [(signal.id, signal.name, signal.data) for signal in unread.signals] == [("s1", "approval", "true")]
        await worker.apply(one, record(1, "w/woke", Kind.WOKE), also=Also(consumed=["s1"]))
        await send(store, one.run.id, "s1")
        assert (await worker.unread(one)).signals == []
        await worker.wait(one, wakes=(await worker.unread(one)).wakes)
        await send(store, one.run.id, "s1")
        assert (await worker.claim()).runs == []

    async def test_P33_ids_belong_to_their_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_ids = await create(store, new_run(), new_run())
        for run_id in run_ids:
            await send(store, run_id, "same")
        runs = (await (await Worker.start(store)).claim()).runs
        assert [ids_of(one.signals) for one in runs] == [["same"], ["same"]]

    async def test_P33_many_who_send_one_signal_at_once_send_it_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        await asyncio.gather(*(send((store, other)[n % 2], one.run.id, f"s{n % 3}") for n in range(30)))
        assert sorted(ids_of((await worker.unread(one)).signals)) == ["s0", "s1", "s2"]

    @pytest.mark.parametrize("name", ENDED)
    async def test_P33_a_run_that_has_ended_takes_no_signal(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        assert await store.send_signals([NewSignal(run_id, "s1", "approval", "true")]) == [Sent.FINISHED]
        assert (await (await Worker.start(store)).claim()).runs == []

    async def test_P33_each_signal_has_its_answer_in_order(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ended = await reach(harness, store, "completed")
        live, waiting = await create(store, new_run(), new_run())
        batch = [
            NewSignal(run_id, "s1", "approval", "true") for run_id in (ended, live, new_id(), waiting, ended, live)
        ]
        answers = [Sent.FINISHED, Sent.ACCEPTED, Sent.NOT_FOUND, Sent.ACCEPTED, Sent.FINISHED, Sent.ACCEPTED]
        assert await store.send_signals(batch) == answers
        assert await store.send_signals(batch) == answers

    async def test_P33_a_signal_sent_again_after_the_run_has_ended_was_accepted(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1")
        await worker.apply(one, change=states.complete(_R, "1"))
        await send(store, one.run.id, "s1")
        assert await store.send_signals([NewSignal(one.run.id, "s2", "approval", "true")]) == [Sent.FINISHED]

    async def test_what_cannot_be_stored_is_refused_and_nothing_is_sent(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        good = NewSignal(one.run.id, "good", "approval", "true")
        for bad in (
            NewSignal(one.run.id, "bad", "approval", '"\0"'),
            NewSignal(one.run.id, "b\0d", "approval", "1"),
            NewSignal(one.run.id, "bad", "\ud800", "1"),
        ):
            with pytest.raises(PayloadError):
                await store.send_signals([good, bad])
        assert (await worker.unread(one)).signals == []

    # -- waking -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("deadline", [True, False])
    async def test_P32_a_run_that_waits_is_ready_with_the_next_claim(
        self, harness: StoreHarness, deadline: bool
    ) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        ready_at = NEVER if deadline else None
        await worker.apply(one, change=states.park(_R, ready_at=ready_at, wakes=one.wakes, waiting=True))
        assert (await worker.claim()).runs == []
        await send(other, one.run.id, "s1")
        again = await worker.take()
        assert (again.run.id, again.run.state, ids_of(again.signals)) == (one.run.id, _R, ["s1"])
        assert again.wakes != one.wakes

    async def test_P31_a_signal_between_claim_and_park_is_not_missed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1")
        await worker.wait(one)
        assert ids_of((await worker.take()).signals) == ["s1"]

    async def test_P31_a_park_to_sleep_compares_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1")
        assert (await worker.claim()).signalled == [one.run.id]
        await worker.apply(one, change=states.park(_R, ready_at=NEVER, wakes=one.wakes))
        assert ids_of((await worker.take()).signals) == ["s1"]

    async def test_P31_a_park_that_knows_of_its_signals_stands(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "for another wait")
        assert (await worker.claim()).signalled == [one.run.id]
        unread = await worker.unread(one)
        assert ids_of(unread.signals) == ["for another wait"]
        assert unread.wakes != one.wakes
        await worker.wait(one, wakes=unread.wakes)
        assert (await worker.claim()).runs == []
        assert (await read(store, one.run.id)).state is State.WAITING

    async def test_P31_a_signal_against_a_park_is_never_lost(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        for number in range(25):
            await asyncio.gather(send(other, one.run.id, f"s{number}"), worker.wait(one))
            one = await worker.take()
            assert f"s{number}" in ids_of(one.signals)
            consumed = Also(consumed=[f"s{number}"])
            await worker.apply(one, record(number + 1, f"w{number}/woke", Kind.WOKE), also=consumed)

    async def test_P31_a_holder_is_told_with_every_claim_until_it_asks(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        neighbour, two = await claimed(store)
        assert (await worker.claim()).signalled == []
        await send(other, one.run.id, "s1")
        for limit in (0, 0, 1000):
            assert (await worker.claim(limit, [ROUTE] if limit else ())).signalled == [one.run.id]
        assert (await neighbour.claim()).signalled == []
        await worker.unread(one)
        assert (await worker.claim()).signalled == []
        await send(other, one.run.id, "s2")
        await send(other, two.run.id, "s3")
        assert (await worker.claim()).signalled == [one.run.id]
        assert (await neighbour.claim()).signalled == [two.run.id]

    async def test_a_run_that_comes_with_its_signals_is_not_told_of_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1")
        assert (await worker.claim()).signalled == [one.run.id]
        await worker.apply(one, change=states.release(_R))
        answer = await worker.claim()
        assert ([ids_of(run.signals) for run in answer.runs], answer.signalled) == ([["s1"]], [])
        assert (await worker.claim()).signalled == []

    async def test_only_the_holder_reads_what_is_unread(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        neighbour, two = await claimed(store)
        await send(store, one.run.id, "s1")
        assert list(await store.unread(worker.id, [one.run.id, two.run.id, new_id()])) == [one.run.id]
        assert await store.unread(neighbour.id, [one.run.id]) == {}
        assert await store.unread(new_id(), [one.run.id]) == {}
        assert await store.unread(worker.id, []) == {}
        await worker.apply(one, change=states.release(_R))
        assert await store.unread(worker.id, [one.run.id]) == {}

    # -- a signal does not start a run early --------------------------------------------------------

    @pytest.mark.parametrize("name", ["delayed", "sleeping", "backing off", "compensating", "paused"])
    async def test_P26_a_signal_does_not_end_any_other_rest(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await _REST[name](store)
        before = await read(store, run_id)
        await send(store, run_id, "s1")
        worker = await Worker.start(store)
        assert (await worker.claim()).runs == []
        assert (await worker.claim()).runs == []
        assert await read(store, run_id) == before
        for request in _START[name]:
            assert await store.request(run_id, request) is not None
        one = await worker.take()
        assert (one.run.id, ids_of(one.signals)) == (run_id, ["s1"])

    async def test_P31_a_run_that_is_paused_while_it_waits_gets_its_signal_after_the_resume(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.wait(one)
        assert await store.request(one.run.id, PAUSE) is State.PAUSED
        await send(store, one.run.id, "s1")
        assert (await worker.claim()).runs == []
        assert await store.request(one.run.id, RESUME) is State.PENDING
        assert ids_of((await worker.take()).signals) == ["s1"]

    async def test_P31_a_retry_keeps_what_is_unread_and_nothing_else(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "read", "unread")
        woke = record(1, "w/woke", Kind.WOKE)
        await worker.apply(one, woke, change=states.fail(_R, ERROR), also=Also(consumed=["read"]))
        assert await store.request(one.run.id, RETRY) is State.PENDING
        assert ids_of((await worker.take()).signals) == ["unread"]

    async def test_P29_a_cancel_and_a_signal_at_once_both_arrive(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        for _ in range(8):
            worker, one = await claimed(store)
            await worker.wait(one)
            await asyncio.gather(send(other, one.run.id, "s1"), store.request(one.run.id, CANCEL))
            again = await worker.take()
            assert (ids_of(again.signals), again.run.requested) == (["s1"], CANCEL)
            await worker.apply(again, change=states.cancelled(_R, ERROR))

    # -- fences and sending again -------------------------------------------------------------------

    async def test_P04_a_zombie_consumes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        zombie, one = await claimed(store)
        await send(store, one.run.id, "s1")
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        heir = await Worker.start(store)
        woke, consumed = record(2, "w/woke", Kind.WOKE), Also(consumed=["s1"])
        assert await zombie.write(one, woke, also=consumed) is Outcome.LEASE_LOST
        again = await heir.take()
        assert ids_of(again.signals) == ["s1"]
        assert await zombie.write(one, woke, also=consumed) is Outcome.LEASE_LOST
        stale = again.ref._replace(claim=one.run.claim)
        assert await heir.write(stale, woke, also=consumed) is Outcome.LEASE_LOST
        assert ids_of((await heir.unread(again)).signals) == ["s1"]

    @pytest.mark.parametrize("parks", [True, False])
    async def test_P11_a_consumption_sent_again_consumes_once(self, harness: StoreHarness, parks: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "s1", "s2")
        unread = await worker.unread(one)
        change = states.park(_R, ready_at=None, wakes=unread.wakes, waiting=True) if parks else None
        woke = record(1, "w/woke", Kind.WOKE)
        for _ in range(3):
            await worker.apply(one, woke, change=change, also=Also(consumed=["s1"]))
        if parks:
            assert (await worker.claim()).runs == []
            await send(store, one.run.id, "s3")
            assert ids_of((await worker.take()).signals) == ["s2", "s3"]
        else:
            assert ids_of((await worker.unread(one)).signals) == ["s2"]

    # -- trigger and signal together ----------------------------------------------------------------

    async def test_P31_a_run_is_created_with_its_first_signal(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        new = new_run(key="order-1", request="r1")
        signal = NewSignal(new.id, "s1", "approval", "true")
        for _ in range(2):
            created, sent = await store.create_with_signal(new, signal)
            assert (created.run_id, created.created, created.conflict, sent) == (new.id, True, None, Sent.ACCEPTED)
        again = new_run(key="order-1")
        created, sent = await store.create_with_signal(again, NewSignal(again.id, "s2", "approval", "false"))
        assert (created.run_id, created.created, created.conflict, sent) == (new.id, False, None, Sent.ACCEPTED)
        worker = await Worker.start(store)
        one = await worker.take()
        assert (one.run.id, ids_of(one.signals)) == (new.id, ["s1", "s2"])
        await worker.wait(one)
        late = new_run(key="order-1")
        created, sent = await store.create_with_signal(late, NewSignal(late.id, "s3", "approval", "1"))
        assert (created.run_id, sent) == (new.id, Sent.ACCEPTED)
        assert ids_of((await worker.take()).signals) == ["s1", "s2", "s3"]

    async def test_P33_a_trigger_with_a_signal_to_a_run_that_has_ended(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store, key="order-1")
        await worker.apply(one, change=states.complete(_R, "1"))
        new = new_run(key="order-1")
        created, sent = await store.create_with_signal(new, NewSignal(new.id, "s1", "approval", "true"))
        assert (created.run_id, created.created, sent) == (one.run.id, False, Sent.FINISHED)
        assert (await worker.claim()).runs == []

    async def test_P36_a_refused_trigger_sends_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store, key="order-1")
        new = new_run(key="order-1", input_hash="other")
        created, sent = await store.create_with_signal(new, NewSignal(new.id, "s1", "approval", "true"))
        assert (created.run_id, created.created, sent) == (one.run.id, False, Sent.NOT_FOUND)
        assert created.conflict is not None
        assert (await worker.unread(one)).signals == []

    async def test_P36_many_triggers_with_signals_make_one_run_with_all_of_them(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        runs = [new_run(key="order-1") for _ in range(20)]
        answers = await asyncio.gather(
            *(
                (store, other)[n % 2].create_with_signal(new, NewSignal(new.id, f"s{n}", "approval", str(n)))
                for n, new in enumerate(runs)
            )
        )
        assert sum(created.created for created, _ in answers) == 1
        assert len({created.run_id for created, _ in answers}) == 1
        assert {sent for _, sent in answers} == {Sent.ACCEPTED}
        one = await (await Worker.start(store)).take()
        assert sorted(ids_of(one.signals)) == sorted(f"s{n}" for n in range(20))

    # -- the end ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("prune", [True, False])
    async def test_P52_signals_go_with_their_run(self, harness: StoreHarness, prune: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await send(store, one.run.id, "read", "unread")
        await worker.apply(
            one, record(1, "w/woke", Kind.WOKE), change=states.complete(_R, "1"), also=Also(consumed=["read"])
        )
        assert (await store.prune(NEVER, 10) == 1) if prune else await store.delete(one.run.id)
        assert await store.send_signals([NewSignal(one.run.id, "read", "approval", "1")]) == [Sent.NOT_FOUND]
        await create(store, new_run(id=one.run.id))
        again = await worker.take()
        assert again.signals == []
        await send(store, one.run.id, "read")
        assert ids_of((await worker.unread(again)).signals) == ["read"]


async def _delayed(store: Store) -> str:
    (run_id,) = await create(store, new_run(ready_at=NEVER))
    return run_id


async def _sleeping(store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, change=states.park(_R, ready_at=NEVER, wakes=one.wakes))
    return one.run.id


async def _backing_off(store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, record(1, "/attempt/1", Kind.RUN_ATTEMPT, ERROR), change=states.try_again(_R, NEVER))
    return one.run.id


async def _compensating(store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, record(1, compensable=True), change=states.compensate(_R, ERROR))
    await worker.apply(one, change=states.park(State.COMPENSATING, ready_at=NEVER, wakes=one.wakes))
    return one.run.id


async def _paused(store: Store) -> str:
    worker, one = await claimed(store)
    await worker.apply(one, change=states.pause(_R, "why"))
    return one.run.id


_REST: dict[str, Callable[[Store], Awaitable[str]]] = {
    "delayed": _delayed,
    "sleeping": _sleeping,
    "backing off": _backing_off,
    "compensating": _compensating,
    "paused": _paused,
}
_AGAIN = (PAUSE, RESUME)
_START: dict[str, tuple[Request, ...]] = {
    "delayed": _AGAIN,
    "sleeping": _AGAIN,
    "backing off": _AGAIN,
    "compensating": (Request(Verb.CANCEL),),
    "paused": (RESUME,),
}
"""What has each of them go on at once."""
