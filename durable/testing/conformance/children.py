"""Children: made by the write that records their call, and heard of by their parent however they end."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from durable import states
from durable.errors import PayloadError
from durable.model import (
    Also,
    Change,
    ClaimedRun,
    Kind,
    NewRun,
    Outcome,
    Record,
    RunFilter,
    RunWrite,
    State,
    Unread,
)
from durable.store import Store
from durable.testing.conformance.harness import (
    NEVER,
    StoreHarness,
    Worker,
    claimed,
    create,
    ids_of,
    new_id,
    new_run,
    read,
    record,
)
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME, RETRY
from durable.testing.conformance.writes import ERROR

_R = State.RUNNING
_Ends = Callable[[StoreHarness, Store, str], Awaitable[None]]


class ChildConformance:
    # -- how a child begins -------------------------------------------------------------------------

    async def test_P35_a_child_is_made_with_the_record_of_its_call(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = _child(one, "kyc", tags={"n": "1"}, input='{"who": "Zoë"}', priority=2, limit_key="k")
        await worker.apply(one, _call(1, child), also=Also(children=[child]))
        found = await read(store, child.id)
        assert (found.state, found.parent, found.tags, found.input) == (
            State.PENDING,
            one.run.id,
            {"n": "1"},
            '{"who": "Zoë"}',
        )
        assert (found.queue, found.priority, found.limit_key, found.linked) == ("default", 2, "k", True)
        assert (found.shard, found.started_at, found.owner) == (one.run.shard, None, None)
        (again,) = (await worker.claim()).runs
        assert (again.run.id, again.ref.linked, again.records, again.signals) == (child.id, True, [], [])

    async def test_a_run_that_is_nobodys_child_is_not_linked(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        _, one = await claimed(store)
        assert (one.run.parent, one.run.linked, one.ref.linked) == (None, False, False)

    async def test_P35_a_call_sent_again_makes_one_child(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = _child(one)
        call = RunWrite(one.ref, [_call(1, child)], also=Also(children=[child]))
        for _ in range(3):
            assert await worker.commit(call) == [Outcome.APPLIED]
        assert [run.id for run in await store.list_runs(RunFilter(parent=one.run.id), 10, None)] == [child.id]
        await _end_by_commit(store, child.id, states.complete(_R, "1"))
        assert await store.delete(child.id)
        assert await worker.commit(call) == [Outcome.APPLIED]
        assert await store.get_runs([child.id]) == []

    async def test_P04_a_zombie_makes_no_child(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        zombie, one = await claimed(store)
        child = _child(one)
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        call = RunWrite(one.ref, [_call(2, child)], also=Also(children=[child]))
        assert await zombie.commit(call) == [Outcome.LEASE_LOST]
        again = await (await Worker.start(store)).take()
        assert (again.run.id, await zombie.commit(call)) == (one.run.id, [Outcome.LEASE_LOST])
        assert await store.get_runs([child.id]) == []

    async def test_P35_children_of_many_parents_in_one_commit(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, *(new_run() for _ in range(20)))
        worker = await Worker.start(store)
        parents = (await worker.claim()).runs
        writes: list[RunWrite] = []
        for one in parents:
            children = [_child(one, f"kyc[{n}]") for n in range(5)]
            calls = [_call(n + 1, child) for n, child in enumerate(children)]
            writes.append(RunWrite(one.ref, calls, also=Also(children=children)))
        lost = RunWrite(writes[0].ref._replace(id=new_id()), [record(1)], also=Also(children=[_child(parents[0], "x")]))
        assert await worker.commit(*writes, lost) == [Outcome.APPLIED] * 20 + [Outcome.LEASE_LOST]
        for write in writes:
            assert write.also is not None
            listed = await store.list_runs(RunFilter(parent=write.ref.id), 10, None)
            assert {run.id for run in listed} == {child.id for child in write.also.children}

    async def test_a_child_that_cannot_be_stored_is_refused_and_nothing_is_written(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = _child(one, input='"\0"')
        with pytest.raises(PayloadError):
            await worker.write(one, _call(1, child), also=Also(children=[child]))
        assert await store.history(one.run.id) == []
        assert await store.get_runs([child.id]) == []

    async def test_P49_runs_are_listed_by_parent_and_by_queue(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        other, two = await claimed(store)
        mine = [_child(one, "a"), _child(one, "b", queue="slow"), _child(one, "c", workflow="kyc")]
        theirs = [_child(two, "a", queue="slow")]
        await worker.apply(one, *(_call(n + 1, child) for n, child in enumerate(mine)), also=Also(children=mine))
        await other.apply(two, _call(1, theirs[0]), also=Also(children=theirs))

        async def listed(where: RunFilter, limit: int = 10, before: str | None = None) -> list[str]:
            return [run.id for run in await store.list_runs(where, limit, before)]

        a, b, c = (child.id for child in mine)
        assert await listed(RunFilter(parent=one.run.id)) == [c, b, a]
        assert await listed(RunFilter(parent=one.run.id), 2) == [c, b]
        assert await listed(RunFilter(parent=one.run.id), 2, b) == [a]
        assert await listed(RunFilter(parent=one.run.id, workflow="kyc")) == [c]
        assert await listed(RunFilter(queue="slow")) == [theirs[0].id, b]
        assert await listed(RunFilter(queue="slow", parent=one.run.id)) == [b]
        assert await listed(RunFilter(parent=new_id())) == []

    # -- how its parent hears of it -----------------------------------------------------------------

    @pytest.mark.parametrize("parked", [True, False])
    @pytest.mark.parametrize(
        "end",
        ["completed", "completed with nothing", "failed", "cancelled", "compensated", "given up", "never started"],
    )
    async def test_P34_a_child_that_ends_wakes_its_parent_before_and_after_the_park(
        self, harness: StoreHarness, end: str, parked: bool
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one, parked=parked)
        await _ENDS[end](harness, store, child)
        if not parked:
            assert (await worker.claim(0, ())).signalled == [one.run.id]
            await worker.wait(one)
        again = await worker.take()
        ended = await read(store, child)
        assert again.run.id == one.run.id
        assert _heard(again) == [(child, "child/kyc", _end_of(ended.state, ended.result, ended.error))]
        assert ended.state in states.TERMINAL

    async def test_P34_with_one_slot_parent_and_child_both_finish(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, parent = await claimed(store)
        generations = [parent]
        for key in ("first", "second", "third"):
            child = _child(generations[-1], key)
            await worker.wait(generations[-1], _call(1, child), also=Also(children=[child]))
            (one,) = (await worker.claim(1)).runs
            assert one.run.id == child.id
            generations.append(one)
        await worker.apply(generations.pop(), change=states.complete(_R, '"deep"'))
        while generations:
            (one,) = (await worker.claim(1)).runs
            assert one.run.id == generations.pop().run.id
            assert [end["result"] for _, _, end in _heard(one)] == ["deep"]
            await worker.apply(one, change=states.complete(_R, '"deep"'))
        assert (await read(store, parent.run.id)).state is State.COMPLETED

    async def test_P34_a_child_ends_in_the_same_commit_as_its_parent_parks(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        (held,) = (await worker.claim()).runs
        park = RunWrite(one.ref, change=states.park(_R, ready_at=None, wakes=one.wakes, waiting=True))
        done = RunWrite(held.ref, change=states.complete(_R, "1"))
        assert await worker.commit(park, done) == [Outcome.APPLIED] * 2
        assert ids_of((await worker.take()).signals) == [child]

    async def test_P34_a_childs_end_against_its_parents_park_is_never_missed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(store)
        helper = await Worker.start(other)
        for number in range(15):
            child = _child(one, f"c{number}")
            await worker.apply(one, _call(2 * number + 1, child), also=Also(children=[child]))
            held = await helper.take()
            await asyncio.gather(helper.apply(held, change=states.complete(_R, "1")), worker.wait(one))
            one = await worker.take()
            assert child.id in ids_of(one.signals)
            woke = record(2 * number + 2, f"c{number}/woke", Kind.WOKE)
            await worker.apply(one, woke, also=Also(consumed=[child.id]))

    async def test_P34_many_children_that_end_together_are_all_heard(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        children = [_child(one, f"kyc[{n}]") for n in range(100)]
        calls = [_call(n + 1, child) for n, child in enumerate(children)]
        await worker.wait(one, *calls, also=Also(children=children))
        runs = (await worker.claim()).runs
        writes = [RunWrite(run.ref, change=states.complete(_R, str(n))) for n, run in enumerate(runs)]
        assert await worker.commit(*writes) == [Outcome.APPLIED] * 100
        results = {run.run.id: n for n, run in enumerate(runs)}
        heard = _heard(await worker.take())
        assert {(run_id, end["result"]) for run_id, _, end in heard} == set(results.items())
        assert {(run_id, name) for run_id, name, _ in heard} == {
            (child.id, f"child/{child.parent_key}") for child in children
        }
        assert len(heard) == 100

    async def test_P11_an_end_sent_again_is_heard_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        (held,) = (await worker.claim()).runs
        for _ in range(3):
            await worker.apply(held, change=states.complete(_R, "1"))
        unread = await worker.unread(one)
        assert ids_of(unread.signals) == [child]
        await worker.apply(one, record(2, "kyc/woke", Kind.WOKE), also=Also(consumed=[child]))
        await worker.apply(held, change=states.complete(_R, "1"))
        await worker.wait(one, wakes=(await worker.unread(one)).wakes)
        assert (await worker.claim()).runs == []

    async def test_P04_a_zombies_end_of_a_child_is_not_heard(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one, parked=True)
        zombie = await Worker.start(store)
        held = await zombie.take()
        await harness.expire(zombie.id)
        assert (await store.reap()).released == 1
        assert await zombie.write(held, change=states.complete(_R, "1")) is Outcome.LEASE_LOST
        again = await worker.take()
        assert again.run.id == child
        await worker.apply(again, change=states.fail(_R, ERROR))
        assert [end["state"] for _, _, end in _heard(await worker.take())] == ["failed"]

    async def test_P34_a_child_that_has_not_ended_is_not_heard_of(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one, parked=True)
        helper = await Worker.start(store)
        held = await helper.take()
        await harness.expire(helper.id)
        assert (await store.reap()).released == 1  # taken over, not given up
        helper = await Worker.start(store)
        held = await helper.take()
        await helper.apply(held, record(2), change=states.release(_R))
        held = await helper.take()
        await helper.apply(held, change=states.pause(_R, "why"))
        assert await store.request(child, RESUME) is State.PENDING
        held = await helper.take()
        await store.unregister(helper.id)
        assert [run.run.id for run in (await worker.claim()).runs] == [child]

    # -- a parent that does not listen ----------------------------------------------------------------

    async def test_P34_a_paused_parent_hears_of_it_after_the_resume(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one, parked=True)
        assert await store.request(one.run.id, PAUSE) is State.PAUSED
        await _end_by_commit(store, child, states.complete(_R, "1"))
        assert (await worker.claim()).runs == []
        assert await store.request(one.run.id, RESUME) is State.PENDING
        assert ids_of((await worker.take()).signals) == [child]

    async def test_P35_a_parent_that_failed_before_its_child_ended_hears_of_it_when_it_is_retried(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        await worker.apply(one, change=states.fail(_R, ERROR))
        before = await read(store, one.run.id)
        await _end_by_commit(store, child, states.complete(_R, "1"))
        assert (await worker.claim()).runs == []
        assert await read(store, one.run.id) == before
        assert await store.request(one.run.id, RETRY) is State.PENDING
        assert ids_of((await worker.take()).signals) == [child]

    @pytest.mark.parametrize("gone", [True, False])
    async def test_P34_a_child_outlives_its_parent(self, harness: StoreHarness, gone: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        await worker.apply(one, change=states.complete(_R, "1"))
        if gone:
            assert await store.delete(one.run.id)
        await _end_by_commit(store, child, states.complete(_R, "2"))
        assert (await read(store, child)).result == "2"
        assert (await worker.claim()).runs == []
        if gone:
            await create(store, new_run(id=one.run.id))
            assert (await worker.take()).signals == []

    async def test_P34_a_child_that_is_retried_and_ends_again_is_heard_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        await _end_by_commit(store, child, states.fail(_R, ERROR))
        assert await store.request(child, RETRY) is State.PENDING
        await _end_by_commit(store, child, states.complete(_R, "1"))
        assert [end["state"] for _, _, end in _heard(await worker.unread(one))] == ["failed"]

    async def test_P52_a_child_is_deleted_by_itself(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        child = await _called(worker, one)
        await _end_by_commit(store, child, states.complete(_R, "1"))
        assert await store.prune(NEVER, 10) == 1
        assert await store.get_runs([child]) == []
        assert ids_of((await worker.unread(one)).signals) == [child]


def _child(parent: ClaimedRun, key: str = "kyc", **other: Any) -> NewRun:
    return replace(new_run(parent=parent.run.id, parent_key=key, shard=parent.run.shard), **other)


def _call(seq: int, child: NewRun) -> Record:
    return record(seq, child.parent_key or "", Kind.CALL, child.id)


async def _called(worker: Worker, parent: ClaimedRun, *, parked: bool = False) -> str:
    """A child of the run, called as ``kyc``; the parent waits for it, or goes on."""
    child = _child(parent)
    if parked:
        await worker.wait(parent, _call(1, child), also=Also(children=[child]))
    else:
        await worker.apply(parent, _call(1, child), also=Also(children=[child]))
    return child.id


def _heard(parent: ClaimedRun | Unread) -> list[tuple[str, str, dict[str, Any]]]:
    return [(signal.id, signal.name, json.loads(signal.data)) for signal in parent.signals]


def _end_of(state: State, result: str | None, error: str | None) -> dict[str, Any]:
    return {"state": state.value, "result": json.loads(result or "null"), "error": json.loads(error or "null")}


async def _end_by_commit(store: Store, run_id: str, change: Change) -> None:
    worker = await Worker.start(store)
    one = await worker.take()
    assert one.run.id == run_id
    await worker.apply(one, change=change)


def _ends(change: Change, *, undoing: bool = False) -> _Ends:
    async def end(_: StoreHarness, store: Store, run_id: str) -> None:
        worker = await Worker.start(store)
        one = await worker.take()
        assert one.run.id == run_id
        if undoing:
            await worker.apply(one, record(1, compensable=True), change=states.compensate(_R, ERROR))
        await worker.apply(one, record(2), change=change)

    return end


async def _give_up(harness: StoreHarness, store: Store, run_id: str) -> None:
    worker = await Worker.start(store)
    assert (await worker.take()).run.id == run_id
    await harness.expire(worker.id)
    assert (await store.reap(limit=1)).released == 1


async def _cancel_at_once(_: StoreHarness, store: Store, run_id: str) -> None:
    assert await store.request(run_id, CANCEL) is State.CANCELLED
    assert await store.request(run_id, CANCEL) is State.CANCELLED  # sent again


_ENDS: dict[str, _Ends] = {
    "completed": _ends(states.complete(_R, '{"ok": [false, null, 0, "", "é", {"a": "\\"b\\\\"}]}')),
    "completed with nothing": _ends(states.complete(_R, None)),
    "failed": _ends(states.fail(_R, ERROR)),
    "cancelled": _ends(states.cancelled(_R, ERROR)),
    "compensated": _ends(states.compensated(State.COMPENSATING, ERROR), undoing=True),
    "given up": _give_up,
    "never started": _cancel_at_once,
}
