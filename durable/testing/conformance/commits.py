"""Committing: each write whole or not at all, once, in order; and what each change makes of the run."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from datetime import timedelta, timezone

import pytest

from durable import states
from durable.model import Kind, Outcome, Record, Request, RunRef, RunWrite, State, Verb
from durable.states import CLAIMABLE
from durable.store import Store
from durable.testing.conformance.harness import (
    AT,
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
    snapshot,
    until,
)
from durable.testing.conformance.writes import ERROR, WRITES, prepare

_R, _C = State.RUNNING, State.COMPENSATING
_RESUME = Request(Verb.RESUME)


class CommitConformance:
    # -- records ----------------------------------------------------------------------------------

    async def test_every_field_of_a_record_comes_back(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        wide = AT.astimezone(timezone(timedelta(hours=5, minutes=45)))
        entries = [
            Record(1, "charge", Kind.STEP, AT, '{"b": 1, "a":  [1.50]}', False, 3, 0.1 + 0.2, 7, True, None, None),
            Record(2, "ship/attempt/1", Kind.ATTEMPT, wide, ERROR, True, 1, 12.5, 8, False, NEVER, None),
            Record(3, "nap", Kind.SLEEP, AT, None, due_at=AT + timedelta(microseconds=1)),
            Record(4, "nap/woke", Kind.WOKE, AT, None, begun=9),
            Record(5, "charge/undo", Kind.UNDO, AT, "null", attempt=2, duration=1e-6),
        ]
        await worker.apply(one, *entries[:2])
        await worker.apply(one, *entries[2:])
        assert await store.history(one.run.id) == [entry._replace(worker=worker.id) for entry in entries]

    @pytest.mark.parametrize(
        "data",
        [
            '"\\u0000 \\ud83d\\ude00"',
            '"Zürich 東京 🜚 \u202e e\u0301 \u2028"',
            '{"a": 1, "a": 2}',
            '{"z": 1, "a": 2, "big": ' + "9" * 5000 + ', "f": 1e400, "t": 1.10}',
            ' [ 1 ,\t"two"\n] ',
            '""',
            "false",
            "0",
            '"' + "x" * 1_000_000 + '"',
        ],
        ids=["nul", "unicode", "duplicate keys", "numbers", "spaces", "empty", "false", "zero", "1 MB"],
    )
    async def test_P50_json_text_comes_back_as_it_was(self, harness: StoreHarness, data: str) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store, input=data)
        assert one.run.input == data
        await worker.apply(one, record(1, data=data))
        await worker.apply(one, change=states.compensate(_R, data))
        await worker.apply(one, record(2, data=data, failed=True), change=states.compensated(_C, data))
        run = await read(store, one.run.id)
        assert (run.input, run.error) == (data, data)
        assert [entry.data for entry in await store.history(one.run.id)] == [data, data]
        second, other = await claimed(store)
        await second.apply(other, change=states.complete(_R, data))
        assert (await read(store, other.run.id)).result == data

    async def test_history_is_in_the_order_of_seq(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1, "zebra"), record(2, "Apfel"))
        await worker.apply(one, record(3, "apple"))
        await worker.apply(one, *(record(seq, f"x{20 - seq}") for seq in range(4, 14)))
        keys = [entry.key for entry in await store.history(one.run.id)]
        assert keys == ["zebra", "Apfel", "apple", *(f"x{20 - seq}" for seq in range(4, 14))]

    async def test_P11_a_record_sent_again_with_what_follows_it_is_written_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1))
        await worker.apply(one, record(1), record(2), change=states.complete(_R, "1"))
        assert [entry.seq for entry in await store.history(one.run.id)] == [1, 2]
        assert (await read(store, one.run.id)).state is State.COMPLETED

    async def test_a_record_is_never_overwritten(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1, "charge", data='"first"'))
        await worker.write(one, record(2, "charge", data='"second"'))
        assert [(entry.seq, entry.data) for entry in await store.history(one.run.id)] == [(1, '"first"')]

    async def test_equal_keys_of_two_runs_are_two_records(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await create(store, new_run(), new_run())
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs
        assert await worker.commit(*(RunWrite(one.ref, [record(1, data=f'"{one.run.id}"')]) for one in runs)) == [
            Outcome.APPLIED,
            Outcome.APPLIED,
        ]
        for one in runs:
            assert [entry.data for entry in await store.history(one.run.id)] == [f'"{one.run.id}"']

    # -- many runs in one commit ------------------------------------------------------------------

    async def test_a_commit_answers_for_each_write_in_order(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(5)))
        worker = await Worker.start(store)
        runs = {one.run.id: one for one in (await worker.claim()).runs}
        a, b, c, d, e = (runs[run_id] for run_id in ids)
        await worker.apply(b, change=states.release(_R))
        other = await Worker.start(store)
        assert (await other.take()).run.id == b.run.id
        outcomes = await worker.commit(
            RunWrite(a.ref, [record(1), record(2)], states.complete(_R, '"a"')),
            RunWrite(b.ref, [record(1)], states.complete(_R, '"b"')),
            RunWrite(c.ref, [record(1)]),
            RunWrite(d.ref, [record(1)], states.park(_R, ready_at=NEVER, wakes=d.wakes)),
            RunWrite(RunRef(0, new_id(), 1), [record(1)]),
            RunWrite(e.ref, change=states.fail(_R, ERROR)),
        )
        lost = Outcome.LEASE_LOST
        applied = Outcome.APPLIED
        assert outcomes == [applied, lost, applied, applied, lost, applied]
        states_now = [(await read(store, run_id)).state for run_id in ids]
        assert states_now == [State.COMPLETED, State.RUNNING, State.RUNNING, State.SLEEPING, State.FAILED]
        assert [len(await store.history(run_id)) for run_id in ids] == [2, 0, 1, 1, 0]
        assert await worker.commit() == []

    async def test_five_hundred_runs_in_one_commit(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(500)))
        worker = await Worker.start(store)
        runs = (await worker.claim()).runs
        outcomes = await worker.commit(
            *(RunWrite(one.ref, [record(1), record(2)], states.complete(_R, f'"{one.run.id}"')) for one in runs)
        )
        assert outcomes == [Outcome.APPLIED] * 500
        ended = await store.ended(ids)
        assert {run.id: run.result for run in ended} == {run_id: f'"{run_id}"' for run_id in ids}

    # -- sending again ----------------------------------------------------------------------------

    @pytest.mark.parametrize("name", WRITES)
    async def test_P11_a_write_sent_again_is_applied_once(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await prepare(WRITES[name], worker, one)
        write = WRITES[name].make(one)
        assert await worker.commit(write) == [Outcome.APPLIED]
        after = await snapshot(store, one.run.id)
        assert await worker.commit(write) == [Outcome.APPLIED]
        assert await snapshot(store, one.run.id) == after

    # -- ending -----------------------------------------------------------------------------------

    async def test_a_completed_run_has_its_result_and_is_nobodys(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.complete(_R, '{"paid": true}'))
        run = await read(store, one.run.id)
        assert (run.state, run.result, run.error) == (State.COMPLETED, '{"paid": true}', None)
        assert (run.owner, run.ready_at, run.claim) == (None, None, 1)
        assert run.ended_at is not None
        assert run.started_at is not None
        assert run.ended_at >= run.started_at
        assert (await worker.claim()).runs == []

    async def test_a_failed_run_has_its_error_and_is_nobodys(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.fail(_R, ERROR))
        run = await read(store, one.run.id)
        assert (run.state, run.result, run.error, run.owner, run.ready_at) == (State.FAILED, None, ERROR, None, None)
        assert run.ended_at is not None
        assert (await worker.claim()).runs == []

    async def test_P29_nothing_leaves_a_final_state(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.complete(_R, "1"))
        after = await snapshot(store, one.run.id)
        await worker.write(one, record(1))
        for change in (states.fail(_R, ERROR), states.pause(_R, "x"), states.release(_R), states.compensate(_R, ERROR)):
            await worker.write(one, change=change)
        assert await store.request(one.run.id, _RESUME) is None
        await store.unregister(worker.id)
        await store.reap()
        assert await snapshot(store, one.run.id) == after

    # -- parking ----------------------------------------------------------------------------------

    async def test_a_sleeping_run_is_ready_when_its_time_has_come(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        wake = store.clock.now() + timedelta(milliseconds=120)
        await worker.apply(one, change=states.park(_R, ready_at=wake, wakes=one.wakes))
        run = await read(store, one.run.id)
        assert (run.state, run.ready_at, run.owner) == (State.SLEEPING, wake, None)
        woken = await worker.claim()
        while not woken.runs:
            assert woken.next_ready_at == wake
            await until(store, wake)
            woken = await worker.claim()
        assert store.clock.now() >= wake
        assert (woken.runs[0].run.state, woken.runs[0].run.claim) == (State.RUNNING, 2)

    async def test_a_park_until_the_past_is_ready_at_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.park(_R, ready_at=LONG_AGO, wakes=one.wakes))
        assert (await worker.take()).run.claim == 2

    async def test_a_waiting_run_without_a_deadline_is_not_ready(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.park(_R, ready_at=None, wakes=one.wakes, waiting=True))
        run = await read(store, one.run.id)
        assert (run.state, run.ready_at, run.owner) == (State.WAITING, None, None)
        answer = await worker.claim()
        assert (list(answer.runs), answer.next_ready_at) == ([], None)

    @pytest.mark.parametrize("ready_at", [None, NEVER], ids=["wait", "sleep"])
    async def test_a_park_that_missed_a_wake_is_ready_at_once(self, harness: StoreHarness, ready_at: None) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        park = states.park(_R, ready_at=ready_at, wakes=one.wakes + 1, waiting=ready_at is None)
        await worker.apply(one, record(1), change=park)
        assert (await read(store, one.run.id)).state in CLAIMABLE
        again = await worker.take()
        assert (again.run.id, again.run.claim) == (one.run.id, 2)

    async def test_a_resume_is_a_wake_that_a_park_can_miss(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.pause(_R, "why"))
        assert await store.request(one.run.id, _RESUME) is State.PENDING
        again = await worker.take()
        assert again.wakes > one.wakes
        await worker.apply(again, change=states.park(_R, ready_at=None, wakes=one.wakes, waiting=True))
        assert (await worker.take()).run.claim == 4  # the resume raised it as well

    async def test_a_released_run_is_ready_at_once(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), change=states.release(_R))
        run = await read(store, one.run.id)
        assert (run.state, run.owner, run.ended_at, run.takeovers) == (State.PENDING, None, None, 0)
        assert run.ready_at is not None
        assert (await (await Worker.start(store)).take()).run.id == one.run.id

    # -- pausing ----------------------------------------------------------------------------------

    async def test_P54_a_paused_run_waits_for_resume(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), change=states.pause(_R, "recorded as a sleep: 'nap'"))
        run = await read(store, one.run.id)
        assert (run.state, run.reason, run.owner, run.ready_at) == (
            State.PAUSED,
            "recorded as a sleep: 'nap'",
            None,
            None,
        )
        assert (await worker.claim()).runs == []
        assert await store.request(one.run.id, _RESUME) is State.PENDING
        run = await read(store, one.run.id)
        assert (run.state, run.reason) == (State.PENDING, None)
        again = await worker.take()
        assert (again.run.state, [entry.seq for entry in again.records or ()]) == (State.RUNNING, [1, 2])

    # -- compensating -----------------------------------------------------------------------------

    async def test_a_run_enters_compensation_with_its_error_and_keeps_its_lease(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, record(1), change=states.compensate(_R, ERROR))
        run = await read(store, one.run.id)
        assert (run.state, run.error, run.owner, run.claim) == (_C, ERROR, worker.id, 1)
        assert (run.ended_at, run.ready_at) == (None, None)
        await worker.apply(one, record(2, "s1/undo", Kind.UNDO), change=states.compensated(_C, '"undone: s1"'))
        run = await read(store, one.run.id)
        assert (run.state, run.error, run.owner) == (State.COMPENSATED, '"undone: s1"', None)
        assert run.ended_at is not None

    async def test_a_run_stays_in_compensation_through_everything(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, change=states.compensate(_R, ERROR))
        await worker.apply(one, change=states.park(_C, ready_at=LONG_AGO, wakes=one.wakes))
        assert await _state_and_error(store, one.run.id) == (_C, ERROR)
        one = await worker.take()
        assert (one.run.state, one.run.error, one.run.claim) == (_C, ERROR, 2)
        await worker.apply(one, change=states.release(_C))
        one = await worker.take()
        await worker.apply(one, change=states.pause(_C, "why"))
        assert await store.request(one.run.id, _RESUME) is _C
        assert await _state_and_error(store, one.run.id) == (_C, ERROR)
        one = await worker.take()
        await harness.expire(worker.id)
        assert (await store.reap()).released == 1
        assert await _state_and_error(store, one.run.id) == (_C, ERROR)
        last = await Worker.start(store)
        one = await last.take()
        assert (one.run.state, one.run.error) == (_C, ERROR)
        await store.unregister(last.id)
        assert await _state_and_error(store, one.run.id) == (_C, ERROR)


async def _state_and_error(store: Store, run_id: str) -> tuple[State, str | None]:
    run = await read(store, run_id)
    return run.state, run.error
