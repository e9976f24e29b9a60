"""Retries, by an operator and by the run's own policy: what counts on, and what is set aside."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from durable import failures, states
from durable.errors import RunNotFound
from durable.model import Change, Kind, Outcome, Record, Request, RunWrite, State, Verb
from durable.store import Store
from durable.testing.conformance.harness import NEVER, StoreHarness, claimed, new_id, read, record, snapshot
from durable.testing.conformance.situations import (
    CANCEL,
    FAILED_STEP,
    RETRY,
    RETRY_UNDO,
    SITUATIONS,
    STEPS,
    UNDONE,
    only,
    reach,
)
from durable.testing.conformance.writes import ERROR

_R, _C = State.RUNNING, State.COMPENSATING


class RetryConformance:
    # -- by an operator -----------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["failed", "failed in compensation", "dead letter"])
    async def test_P29_a_retried_run_starts_anew_with_what_stands(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await read(store, run_id)
        assert before.ended_at is not None
        assert await store.request(run_id, RETRY) is State.PENDING
        run = await read(store, run_id)
        assert (run.error, run.result, run.reason, run.ended_at) == (None, None, None, None)
        assert (run.takeovers, run.requested, run.owner) == (0, None, None)
        assert (run.claim, run.started_at, run.input) == (before.claim + 1, before.started_at, before.input)
        assert run.ready_at is not None
        _, one = await only(store)
        assert (one.run.id, one.run.state) == (run_id, _R)
        assert one.records == await store.history(run_id)

    async def test_a_retry_keeps_what_succeeded_and_sets_aside_what_failed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed")
        before = await store.history(run_id)
        await store.request(run_id, RETRY)
        after = await store.history(run_id)
        assert _keys(after) == ["hold", "charge", "/1/ship/attempt/1", "/1/ship", "/request/5"]
        assert [entry._replace(key="") for entry in after[:-1]] == [entry._replace(key="") for entry in before]
        assert failures.request_from_json(after[-1].data or "") == RETRY

    async def test_P28_what_is_left_of_a_cancelled_run_is_undone_for_its_cancellation(
        self, harness: StoreHarness
    ) -> None:
        """It ends as the cancel promised; a retry that lets it go forward again takes the cancel back."""
        store = await harness.fresh()
        worker, one = await claimed(store)
        run_id, told = one.run.id, failures.request_to_json(CANCEL)
        await store.request(run_id, CANCEL)
        cancel = record(3, "/request/3", Kind.REQUEST, told)
        await worker.apply(one, *STEPS, cancel, change=states.compensate(_R, ERROR))
        not_undone = record(4, "hold/undo", Kind.UNDO, ERROR, failed=True)
        await worker.apply(one, not_undone, change=states.fail(_C, ERROR))
        assert (await read(store, run_id)).requested is None
        for n in range(2):
            again = replace(RETRY_UNDO, id=f"time {n}")
            for _ in range(2):  # sent again: no change
                assert await store.request(run_id, again) is State.COMPENSATING
                assert (await read(store, run_id)).requested == CANCEL
            worker, one = await only(store)
            assert one.run.requested == CANCEL
            assert list((await worker.claim(limit=0)).requests) == [(run_id, CANCEL)]
            await worker.apply(one, not_undone._replace(seq=6 + 2 * n), change=states.fail(_C, ERROR))
        assert await store.request(run_id, RETRY) is State.PENDING
        worker, one = await only(store)
        assert one.run.requested is None
        await worker.apply(one, change=states.compensate(_R, ERROR))
        await worker.apply(one, not_undone._replace(seq=20), change=states.fail(_C, ERROR))
        assert await store.request(run_id, RETRY_UNDO) is State.COMPENSATING
        assert (await read(store, run_id)).requested is None

    async def test_P28_a_retry_sets_aside_what_was_compensated_with_its_compensations(
        self, harness: StoreHarness
    ) -> None:
        """``hold`` was not undone, so it stands, and may be undone later: its failed compensation does not count."""
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed in compensation")
        await store.request(run_id, RETRY)
        assert _keys(await store.history(run_id)) == [
            *("hold", "/1/charge", "/1/ship/attempt/1", "/1/ship"),
            *("/1/charge/undo", "/1/hold/undo/attempt/1", "/1/hold/undo", "/request/8"),
        ]
        worker, one = await only(store)
        await worker.apply(one, record(9, "charge", compensable=True), record(10, "ship"))
        await worker.apply(one, record(11, "hold/undo", Kind.UNDO), change=states.complete(_R, "1"))

    async def test_P06_a_dead_letter_that_is_retried_has_all_its_attempts_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "dead letter")
        assert await store.request(run_id, RETRY) is State.PENDING
        keys = _keys(await store.history(run_id))
        assert keys == ["hold", "charge", "/1/ship/attempt/1", "/takeover/1", "/request/5"]

    async def test_P06_a_dead_letter_in_compensation_goes_forward_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS, *FAILED_STEP, change=states.compensate(_R, ERROR))
        await worker.apply(one, record(5, "charge/undo/attempt/1", Kind.ATTEMPT, ERROR, failed=True))
        await harness.expire(worker.id)
        await store.reap(limit=1)
        assert await store.request(one.run.id, RETRY) is State.PENDING
        run = await read(store, one.run.id)
        assert (run.state, run.error) == (State.PENDING, None)
        assert _keys(await store.history(run.id)) == [
            *("hold", "charge", "/1/ship/attempt/1", "/1/ship"),
            *("/1/charge/undo/attempt/1", "/takeover/1", "/request/7"),
        ]

    async def test_P13_attempts_of_a_step_that_succeeded_in_the_end_stay_with_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        entries = [
            record(1, "charge/attempt/1", Kind.ATTEMPT, ERROR, failed=True),
            record(2, "charge", attempt=2),
            record(3, "nap", Kind.SLEEP, None, due_at=NEVER),
            record(4, "nap/woke", Kind.WOKE, None),
            record(5, "charge#2", data=ERROR, failed=True),
            record(6, "charger", data='"its name begins like a failed one\'s"'),
            record(7, "ship/attempt/1", Kind.ATTEMPT, ERROR, failed=True),
        ]
        await worker.apply(one, *entries, change=states.fail(_R, ERROR))
        await store.request(one.run.id, RETRY)
        assert _keys(await store.history(one.run.id)) == [
            *("charge/attempt/1", "charge", "nap", "nap/woke", "/1/charge#2", "charger", "/1/ship/attempt/1"),
            "/request/8",
        ]

    async def test_a_run_can_be_retried_again_and_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed")
        for n in range(3):
            assert await store.request(run_id, Request(Verb.RETRY, f"time {n}")) is State.PENDING
            worker, one = await only(store)
            seq = len(one.records or ()) + 1
            await worker.apply(one, record(seq, "ship", data=ERROR, failed=True), change=states.fail(_R, ERROR))
        history = await store.history(run_id)
        assert [entry.seq for entry in history] == list(range(1, len(history) + 1))
        assert len(set(_keys(history))) == len(history)
        assert [entry.key for entry in history if entry.kind is Kind.STEP and entry.key.endswith("/ship")] == [
            *("/1/ship", "/3/ship", "/5/ship")
        ]
        assert history[-1].key == "ship"

    @pytest.mark.parametrize("change", [states.fail(_R, ERROR), None, states.release(_R), states.complete(_R, "1")])
    async def test_P04_an_execution_of_before_the_retry_writes_nothing(
        self, harness: StoreHarness, change: Change | None
    ) -> None:
        """Even the write that ended the run, sent again because its answer was lost."""
        store = await harness.fresh()
        worker, one = await claimed(store)
        end = RunWrite(one.ref, [*STEPS, *FAILED_STEP], states.fail(_R, ERROR))
        assert await worker.commit(end) == [Outcome.APPLIED]
        await store.request(one.run.id, RETRY)
        before = await snapshot(store, one.run.id)
        for write in (end, RunWrite(one.ref, [record(9)], change), RunWrite(one.ref, [*STEPS], change)):
            assert await worker.commit(write) == [Outcome.LEASE_LOST]
        assert await snapshot(store, one.run.id) == before
        await only(store)
        assert await worker.commit(end) == [Outcome.LEASE_LOST]

    async def test_P20_a_history_in_memory_is_not_current_after_a_retry(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS, *FAILED_STEP, change=states.fail(_R, ERROR))
        await store.request(one.run.id, RETRY)
        (again,) = (await worker.claim(warm={one.run.id: one.run.claim})).runs
        assert again.records == await store.history(one.run.id)

    async def test_a_retried_run_can_be_cancelled_and_then_has_something_to_undo(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed")
        await store.request(run_id, RETRY)
        assert await store.request(run_id, CANCEL) is State.PENDING
        _, one = await only(store)
        assert one.run.requested == CANCEL

    # -- from a step ----------------------------------------------------------------------------------

    async def test_a_retry_from_a_step_keeps_what_was_before_it(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await _failed_after_a_lot(store)
        before = await read(store, run_id)
        assert await store.retry_from(run_id, "charge", RETRY) is State.PENDING
        assert _keys(await store.history(run_id)) == [
            *("hold", "/1/charge/attempt/1", "nap", "/1/charge", "/1/nap/woke", "/1/ship", "/1/ship#2", "/request/8")
        ]
        run = await read(store, run_id)
        assert (run.state, run.error, run.ended_at, run.claim) == (State.PENDING, None, None, before.claim + 1)
        after = await snapshot(store, run_id)
        assert await store.retry_from(run_id, "charge", RETRY) is State.PENDING  # sent again
        assert await snapshot(store, run_id) == after
        _, one = await only(store)
        assert one.records == await store.history(run_id)

    async def test_a_retry_from_the_first_record_keeps_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await _failed_after_a_lot(store)
        await store.retry_from(run_id, "hold", RETRY)
        *aside, request = _keys(await store.history(run_id))
        assert len(aside) == 7
        assert all(key.startswith("/1/") for key in aside)
        assert request == "/request/8"

    async def test_a_retry_from_a_step_does_all_that_a_retry_does(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed in compensation")
        await store.retry_from(run_id, "ship", RETRY)
        by_step = _keys(await store.history(run_id))
        other = await reach_another(harness, store)
        await store.request(other, RETRY)
        assert by_step == _keys(await store.history(other))

    async def test_a_retry_from_a_step_that_is_not_there_is_an_error(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await _failed_after_a_lot(store)
        before = await snapshot(store, run_id)
        for step in ("nothing", "", "char", "charge/", "/takeover/1"):
            with pytest.raises(RunNotFound):
                await store.retry_from(run_id, step, RETRY)
        with pytest.raises(RunNotFound):
            await store.retry_from(new_id(), "charge", RETRY)
        assert await snapshot(store, run_id) == before
        await store.retry_from(run_id, "charge", RETRY)
        worker, one = await only(store)
        await worker.apply(one, change=states.fail(_R, ERROR))
        for step in ("charge", "/1/charge"):  # set aside: it is not there any more
            with pytest.raises(RunNotFound):
                await store.retry_from(run_id, step, replace(RETRY, id="second"))

    @pytest.mark.parametrize("name", [name for name in SITUATIONS if SITUATIONS[name].expected(Verb.RETRY) is None])
    async def test_P29_a_retry_from_a_step_applies_where_a_retry_does(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await snapshot(store, run_id)
        for step in ("hold", "nothing"):
            assert await store.retry_from(run_id, step, RETRY) is None
        assert await snapshot(store, run_id) == before

    # -- of compensations -------------------------------------------------------------------------------

    async def test_P28_the_remaining_compensations_are_retried(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed in compensation")
        before = await read(store, run_id)
        assert await store.request(run_id, RETRY_UNDO) is _C
        run = await read(store, run_id)
        assert (run.state, run.error, run.ended_at, run.takeovers) == (_C, ERROR, None, 0)
        assert (run.claim, run.requested) == (before.claim + 1, None)
        assert _keys(await store.history(run_id)) == [
            *("hold", "charge", "ship/attempt/1", "ship"),
            *("charge/undo", "/1/hold/undo/attempt/1", "/1/hold/undo", "/request/8"),
        ]
        worker, one = await only(store)
        assert (one.run.state, one.run.error) == (_C, ERROR)
        await worker.apply(one, record(9, "hold/undo", Kind.UNDO, "null"), change=states.compensated(_C, ERROR))
        assert await store.request(run_id, replace(RETRY_UNDO, id="second")) is None

    async def test_P28_a_run_whose_compensations_all_succeeded_has_none_to_retry(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS, *FAILED_STEP, change=states.compensate(_R, ERROR))
        await worker.apply(one, UNDONE, change=states.fail(_C, ERROR))
        before = await snapshot(store, one.run.id)
        assert await store.request(one.run.id, RETRY_UNDO) is None
        assert await snapshot(store, one.run.id) == before

    async def test_P28_a_compensation_that_is_set_aside_is_not_retried_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed in compensation")
        await store.request(run_id, RETRY)
        worker, one = await only(store)
        await worker.apply(one, record(9, "ship", data=ERROR, failed=True), change=states.fail(_R, ERROR))
        assert await store.request(run_id, RETRY_UNDO) is None

    # -- by the run's own policy --------------------------------------------------------------------------

    @pytest.mark.parametrize("together", [True, False], ids=["in one write", "in an earlier one"])
    async def test_P25_another_run_attempt_sets_failed_steps_aside(self, harness: StoreHarness, together: bool) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS)
        tried = record(5, "/attempt/1", Kind.RUN_ATTEMPT, ERROR, failed=True, due_at=NEVER)
        if not together:
            await worker.apply(one, *FAILED_STEP)
        write = RunWrite(one.ref, [*FAILED_STEP, tried] if together else [tried], states.try_again(_R, NEVER))
        before = [*STEPS, *FAILED_STEP, tried]
        assert await worker.commit(write) == [Outcome.APPLIED]
        run, history = (await snapshot(store, one.run.id))[0]
        assert _keys(history) == ["hold", "charge", "/1/ship/attempt/1", "/1/ship", "/attempt/1"]
        assert [entry._replace(key="", worker=None) for entry in history] == [e._replace(key="") for e in before]
        assert (run.state, run.ready_at, run.owner, run.claim) == (State.PENDING, NEVER, None, 1)
        assert (run.error, run.ended_at, run.reason) == (None, None, None)
        assert (await worker.claim()).runs == []
        # Sent again, because the answer was lost: the records are found where they were set aside.
        after = await snapshot(store, one.run.id)
        assert await worker.commit(write) == [Outcome.APPLIED]
        assert await snapshot(store, one.run.id) == after

    async def test_P25_each_run_attempt_sets_its_own_failures_aside(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1, "hold"))
        now = store.clock.now()
        for n in range(1, 4):
            seq = 2 * n
            failed = record(seq, "ship", data=ERROR, failed=True)
            tried = record(seq + 1, f"/attempt/{n}", Kind.RUN_ATTEMPT, ERROR, failed=True)
            await worker.apply(one, failed, tried, change=states.try_again(_R, now))
            assert (await read(store, one.run.id)).state is State.PENDING
            one = await worker.take()
            assert one.records == await store.history(one.run.id)
        assert _keys(one.records or ()) == [
            "hold",
            *(key for n in range(1, 4) for key in (f"/{n}/ship", f"/attempt/{n}")),
        ]
        await worker.apply(one, record(8, "ship"), change=states.complete(_R, "1"))

    async def test_P25_only_the_run_that_tries_again_is_touched(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        neighbour = await reach(harness, store, "failed")
        worker, other = await claimed(store)
        await worker.apply(other, *STEPS, *FAILED_STEP)
        before = await snapshot(store, neighbour)
        own = await store.history(other.run.id)
        second, one = await claimed(store)
        assert await second.commit(
            RunWrite(one.ref, [*STEPS, *FAILED_STEP], states.try_again(_R, NEVER)),
        ) == [Outcome.APPLIED]
        await worker.apply(other, record(9), change=states.fail(_R, ERROR))
        assert await snapshot(store, neighbour) == before
        assert (await store.history(other.run.id))[:-1] == own

    async def test_P04_a_lost_lease_sets_nothing_aside(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS, *FAILED_STEP)
        await harness.expire(worker.id)
        await store.reap()
        before = await snapshot(store, one.run.id)
        assert await worker.write(one, change=states.try_again(_R, NEVER)) is Outcome.LEASE_LOST
        await only(store)
        assert await worker.write(one, change=states.try_again(_R, NEVER)) is Outcome.LEASE_LOST
        assert await store.history(one.run.id) == before[0][1]


def _keys(records: Sequence[Record]) -> list[str]:
    return [entry.key for entry in records]


async def _failed_after_a_lot(store: Store) -> str:
    worker, one = await claimed(store)
    entries = [
        record(1, "hold", compensable=True),
        record(2, "charge/attempt/1", Kind.ATTEMPT, ERROR, failed=True),
        record(3, "nap", Kind.SLEEP, None, due_at=NEVER),
        record(4, "charge", attempt=2),
        record(5, "nap/woke", Kind.WOKE, None),
        record(6, "ship"),
        record(7, "ship#2", data=ERROR, failed=True),
    ]
    await worker.apply(one, *entries, change=states.fail(_R, ERROR))
    return one.run.id


async def reach_another(harness: StoreHarness, store: Store) -> str:
    """One more run whose compensation failed, after the ready one was put out of the way."""
    worker, one = await only(store)
    await worker.apply(one, change=states.fail(_R, ERROR))
    return await reach(harness, store, "failed in compensation")
