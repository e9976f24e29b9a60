"""Effects that runs share: made by one at a time, kept for all, free again when nobody makes them any more."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import Also, Awaited, Change, ClaimedRun, Effect, EffectEnd, Kind, Outcome, RunRef, RunWrite, State
from durable.store import EFFECT_TOPIC, Store
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    StoreHarness,
    Worker,
    claimed,
    create,
    new_id,
    new_run,
    read,
    record,
)
from durable.testing.conformance.situations import CANCEL, PAUSE, RETRY
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_KEY = "order:ORD-123:charge"
_Leaves = Callable[[StoreHarness, Store, Worker, RunRef], Awaitable[None]]


class EffectConformance:
    # -- who makes it -------------------------------------------------------------------------------

    async def test_P11_one_run_makes_the_effect_and_the_others_learn_who(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        helper, two = await claimed(other)
        assert await _take(worker, one) == Effect(True, one.run.id)
        assert await _take(helper, two, step="pay") == Effect(False, one.run.id)
        assert await _take(helper, two, key="another", step="pay") == Effect(True, two.run.id)
        assert await _take(worker, one) == Effect(True, one.run.id)
        assert await _take(worker, one, step="charge#2") == Effect(False, one.run.id)
        assert ((await read(store, one.run.id)).linked, (await read(store, two.run.id)).linked) == (True, True)

    async def test_P11_many_who_ask_at_once_are_told_of_one(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        held = [await claimed((store, other)[n % 2]) for n in range(12)]
        answers = await asyncio.gather(*(_take(worker, one) for worker, one in held))
        assert sum(effect.mine for effect in answers) == 1
        (maker,) = {effect.run_id for effect in answers}
        assert [effect.run_id for effect in answers if effect.mine] == [maker]
        assert [one.run.id for (_, one), effect in zip(held, answers, strict=True) if effect.mine] == [maker]

    async def test_P11_what_was_made_is_known_to_all(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        data = '{"receipt": ["é", null, 0]}'
        for _ in range(3):
            await worker.apply(_linked(one), record(1, "charge", data=data), also=_end(kept=True))
            assert await _take(helper, two, step="pay") == Effect(False, one.run.id, True, data)
        await worker.apply(_linked(one), change=states.complete(_R, "1"))
        assert await _take(helper, two, step="pay") == Effect(False, one.run.id, True, data)

    async def test_P11_a_result_of_nothing_is_a_result(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        await worker.apply(_linked(one), record(1, "charge", data="null"), also=_end(kept=True))
        assert await _take(helper, two) == Effect(False, one.run.id, True, "null")

    async def test_P04_a_zombie_takes_nothing_and_ends_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        zombie, one = await claimed(store)
        await _take(zombie, one)
        helper, two = await claimed(store)
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        assert await store.take_effect(zombie.id, one.ref, _KEY, "charge") is None
        assert await store.take_effect(zombie.id, one.ref, "another", "charge") is None
        made = record(2, "charge")
        assert await zombie.write(_linked(one), made, also=_end(kept=True)) is Outcome.LEASE_LOST
        assert await _take(helper, two) == Effect(False, one.run.id)
        again = await helper.take()
        assert await store.take_effect(helper.id, again.ref._replace(claim=one.run.claim), _KEY, "charge") is None
        assert await store.take_effect(helper.id, again.ref._replace(id=new_id()), _KEY, "charge") is None
        assert await zombie.write(_linked(one), made, also=_end(kept=False)) is Outcome.LEASE_LOST
        assert (again.ref.linked, await _take(helper, two)) == (True, Effect(False, one.run.id))
        assert await _take(helper, again) == Effect(True, one.run.id)
        assert await _take(helper, two, key="another") == Effect(True, two.run.id)

    async def test_what_cannot_be_stored_is_refused(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        for bad in ("\0", "a\0b", "\ud800"):
            with pytest.raises(PayloadError):
                await store.take_effect(worker.id, one.ref, bad, "charge")

    # -- what becomes of it ---------------------------------------------------------------------------

    async def test_P11_an_effect_that_failed_is_made_by_the_next_who_asks(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        failed = record(1, "charge", data=ERROR, failed=True)
        await worker.apply(_linked(one), failed, also=_end(kept=False))
        assert await _take(helper, two, step="pay") == Effect(True, two.run.id)
        await worker.apply(_linked(one), failed, also=_end(kept=False))  # sent again
        assert await _take(worker, one) == Effect(False, two.run.id)
        await helper.apply(_linked(two), record(1, "pay", data="2"), also=_end("pay", kept=True))
        assert await _take(worker, one) == Effect(False, two.run.id, True, "2")

    async def test_P11_nobody_ends_the_effect_of_another(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        await helper.apply(two, record(1, "charge"), also=_end(kept=True))
        await helper.apply(two, record(2, "pay"), also=_end("pay", kept=False))
        await worker.apply(_linked(one), record(1, "other"), also=_end("other", kept=True))
        assert await _take(helper, two) == Effect(False, one.run.id)
        assert await _take(worker, one) == Effect(True, one.run.id)

    @pytest.mark.parametrize("first", [0, 1])
    async def test_P11_who_gives_it_up_is_heard_beside_one_who_never_had_it(
        self, harness: StoreHarness, first: int
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await create(store, new_run())
        two = await worker.take()
        await _take(worker, one)
        writes = [RunWrite(_linked(one), [], None, _end(kept=False)), RunWrite(two.ref, [], None, _end(kept=False))]
        outcomes = await worker.commit(writes[first], writes[1 - first])
        assert outcomes == [Outcome.APPLIED] * 2
        assert await _take(worker, two, step="pay") == Effect(True, two.run.id)

    async def test_P28_an_effect_that_was_undone_is_made_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        await worker.apply(_linked(one), record(1, "charge", compensable=True), also=_end(kept=True))
        await worker.apply(_linked(one), record(2), change=states.compensate(_R, ERROR))
        assert await _take(helper, two) == Effect(False, one.run.id, True, '"done"')
        await worker.apply(_linked(one), record(3, "charge/undo", Kind.UNDO, "null"), also=_end(kept=False))
        assert await _take(helper, two) == Effect(True, two.run.id)

    async def test_P11_the_step_whose_record_was_set_aside_makes_it_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        kept = record(1, "charge", data='"first"')
        await worker.apply(_linked(one), kept, change=states.fail(_R, ERROR), also=_end(kept=True))
        assert await store.retry_from(one.run.id, "charge", RETRY) is State.PENDING
        one = await worker.take()
        assert await _take(helper, two) == Effect(False, one.run.id, True, '"first"')
        assert await _take(worker, one) == Effect(True, one.run.id)
        assert await _take(helper, two) == Effect(False, one.run.id)
        await worker.apply(one, record(9, "charge", data='"second"'), also=_end(kept=True))
        assert await _take(helper, two) == Effect(False, one.run.id, True, '"second"')

    @pytest.mark.parametrize("how", ["completed", "failed", "given up", "cancelled"])
    async def test_P11_a_run_that_ends_lets_go_of_what_it_was_making(self, harness: StoreHarness, how: str) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        await _take(worker, one, key="made", step="made")
        await worker.apply(_linked(one), record(1, "made"), also=_end("made", kept=True, key="made"))
        await _wait_for(helper, two)
        await _ENDS[how](harness, store, worker, _linked(one))
        await _drain(store)
        again = await helper.take()
        assert [signal.name for signal in again.signals] == [f"event/{EFFECT_TOPIC}/{_KEY}"]
        assert await _take(helper, again) == Effect(True, two.run.id)
        assert await _take(helper, again, key="made") == Effect(False, one.run.id, True, '"done"')

    @pytest.mark.parametrize("how", ["sleeps", "backs off", "is released", "is taken over", "is paused"])
    async def test_P11_a_run_that_only_leaves_keeps_what_it_is_making(self, harness: StoreHarness, how: str) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        await _LEAVES[how](harness, store, worker, _linked(one))
        assert await _take(helper, two) == Effect(False, one.run.id)

    # -- who waits for it -----------------------------------------------------------------------------

    @pytest.mark.parametrize("kept", [True, False])
    async def test_P31_who_waits_for_it_is_woken_and_asks_again(self, harness: StoreHarness, kept: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        waiters = [await claimed(store) for _ in range(5)]
        await _take(worker, one)
        for helper, two in waiters:
            assert await _take(helper, two) == Effect(False, one.run.id)
            await _wait_for(helper, two)
        assert (await worker.claim()).runs == []
        await worker.apply(_linked(one), record(1, "charge", failed=not kept), also=_end(kept=kept))
        await _drain(store)
        runs = (await worker.claim()).runs
        assert sorted(run.run.id for run in runs) == sorted(two.run.id for _, two in waiters)
        for run in runs:
            ((_, name, data, _),) = run.signals
            assert (name, data) == (f"event/{EFFECT_TOPIC}/{_KEY}", "null")
        answers = [await _take(worker, run) for run in runs]
        assert [effect.done for effect in answers] == [kept] * 5
        assert [effect.mine for effect in answers] == [not kept, False, False, False, False]

    async def test_P31_an_end_between_asking_and_waiting_is_not_missed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        assert not (await _take(helper, two)).mine
        await worker.apply(_linked(one), record(1, "charge"), also=_end(kept=True))
        await _drain(store)
        await _wait_for(helper, two)
        await _drain(store)
        again = await helper.take()
        assert [signal.name for signal in again.signals] == [f"event/{EFFECT_TOPIC}/{_KEY}"]

    async def test_P31_the_end_of_an_effect_against_a_wait_for_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        helper, two = await claimed(other)
        for seq in range(1, 16):
            key = f"k{seq}"
            await _take(worker, one, key=key, step=key)
            assert not (await _take(helper, two, key=key, step=key)).mine
            end = worker.apply(_linked(one), record(seq, key), also=_end(key, kept=True, key=key))
            await asyncio.gather(end, _wait_for(helper, two, seq, key=key))
            await _drain(store)
            two = await helper.take()
            assert two.signals[-1].name == f"event/{EFFECT_TOPIC}/{key}"

    async def test_P31_a_wait_needs_no_record_and_may_be_sent_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        for _ in range(2):
            await helper.apply(two, also=_awaiting(_KEY))
        await helper.wait(two)
        await worker.apply(_linked(one), record(1, "charge"), also=_end(kept=True))
        await _drain(store)
        two = await helper.take()
        assert {signal.name for signal in two.signals} == {f"event/{EFFECT_TOPIC}/{_KEY}"}
        for _ in range(2):
            await helper.apply(two, also=Also(consumed=[signal.id for signal in two.signals]))
        assert (await helper.unread(two)).signals == []
        assert await store.history(two.run.id) == []

    async def test_P31_an_end_ends_one_wait_of_each_run(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        for step in ("first", "second"):
            assert not (await _take(helper, two, step=step)).mine
            await helper.apply(two, also=_awaiting(_KEY))
        await helper.wait(two)
        await worker.apply(_linked(one), record(1, "charge"), also=_end(kept=True))
        await _drain(store)
        two = await helper.take()
        assert [signal.name for signal in two.signals] == [f"event/{EFFECT_TOPIC}/{_KEY}"]

    # -- the end ----------------------------------------------------------------------------------

    @pytest.mark.parametrize("prune", [True, False])
    async def test_P52_what_a_run_has_made_is_known_until_it_is_pruned(
        self, harness: StoreHarness, prune: bool
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        helper, two = await claimed(store)
        await _take(worker, one)
        made = record(1, "charge")
        await worker.apply(_linked(one), made, change=states.complete(_R, "1"), also=_end(kept=True))
        assert (await _take(helper, two)).done
        assert (await store.prune(NEVER, 10) == 1) if prune else await store.delete(one.run.id)
        assert await _take(helper, two) == Effect(True, two.run.id)


def _linked(run: ClaimedRun) -> RunRef:
    """The ref of a run that makes an effect."""
    return run.ref._replace(linked=True)


async def _take(worker: Worker, run: ClaimedRun, *, key: str = _KEY, step: str = "charge") -> Effect:
    effect = await worker.store.take_effect(worker.id, run.ref, key, step)
    assert effect is not None
    return effect


def _end(step: str = "charge", *, kept: bool, key: str = _KEY) -> Also:
    return Also(effects=[EffectEnd(key, step, kept)])


def _awaiting(key: str) -> Also:
    return Also(awaited=[Awaited(EFFECT_TOPIC, key, LONG_AGO)])


async def _wait_for(worker: Worker, run: ClaimedRun, seq: int = 1, *, key: str = _KEY) -> None:
    await worker.wait(run, record(seq, f"wait{seq}", Kind.WAIT, None), also=_awaiting(key))


async def _drain(store: Store) -> None:
    """Make a claim of some worker, with which events become signals."""
    worker = await Worker.start(store)
    assert (await worker.claim(0, ())).runs == []
    await store.unregister(worker.id)


def _changed(change: Change) -> _Leaves:
    async def leave(_: StoreHarness, __: Store, worker: Worker, ref: RunRef) -> None:
        await worker.apply(ref, change=change)

    return leave


async def _given_up(harness: StoreHarness, store: Store, worker: Worker, ref: RunRef) -> None:
    await harness.expire(worker.id)
    assert (await store.reap(limit=1)).released == 1
    assert (await read(store, ref.id)).state is State.DEAD_LETTER


async def _taken_over(harness: StoreHarness, store: Store, worker: Worker, ref: RunRef) -> None:
    await harness.expire(worker.id)
    assert (await store.reap()).released == 1
    assert (await read(store, ref.id)).owner is None


async def _paused(_: StoreHarness, store: Store, worker: Worker, ref: RunRef) -> None:
    await worker.apply(ref, change=states.park(_R, ready_at=NEVER, wakes=0))
    assert await store.request(ref.id, PAUSE) is State.PAUSED


async def _cancelled(_: StoreHarness, store: Store, worker: Worker, ref: RunRef) -> None:
    assert await store.request(ref.id, CANCEL) is _R
    await worker.apply(ref, change=states.cancelled(_R, ERROR))


_ENDS: dict[str, _Leaves] = {
    "completed": _changed(states.complete(_R, "1")),
    "failed": _changed(states.fail(_R, ERROR)),
    "given up": _given_up,
    "cancelled": _cancelled,
}
_LEAVES: dict[str, _Leaves] = {
    "sleeps": _changed(states.park(_R, ready_at=NEVER, wakes=0)),
    "backs off": _changed(states.try_again(_R, NEVER)),
    "is released": _changed(states.release(_R)),
    "is taken over": _taken_over,
    "is paused": _paused,
}
