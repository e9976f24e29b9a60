"""Requests: every verb in every situation, what becomes of the run, and who is told."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import uuid4

import pytest

from durable import failures, states
from durable.errors import PayloadError, RunNotFound
from durable.model import Kind, Record, Request, RunFilter, State, Verb
from durable.store import Store
from durable.testing.conformance.harness import (
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
)
from durable.testing.conformance.situations import (
    CANCEL,
    ENDED,
    LEFT,
    LIVE,
    PAUSE,
    REQUESTS,
    RESUME,
    RETRY,
    SITUATIONS,
    STEPS,
    only,
    reach,
)
from durable.testing.conformance.writes import ERROR

_R, _C = State.RUNNING, State.COMPENSATING


class RequestConformance:
    # -- the table --------------------------------------------------------------------------------

    @pytest.mark.parametrize("verb", REQUESTS)
    @pytest.mark.parametrize("name", SITUATIONS)
    async def test_P29_a_request_applies_where_the_table_says_so(
        self, harness: StoreHarness, name: str, verb: Verb
    ) -> None:
        """And sent again it gives the same answer, and changes nothing."""
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await snapshot(store, run_id)
        expected = SITUATIONS[name].expected(verb)
        assert await store.request(run_id, REQUESTS[verb]) is expected
        after = await snapshot(store, run_id)
        if expected is None:
            assert after == before
        else:
            assert after != before
            assert after[0][0].state is expected
        for _ in range(2):
            assert await store.request(run_id, REQUESTS[verb]) is expected
            assert await snapshot(store, run_id) == after

    @pytest.mark.parametrize("verb", REQUESTS)
    async def test_a_request_about_no_run_is_an_error(self, harness: StoreHarness, verb: Verb) -> None:
        store = await harness.fresh()
        for run_id in (new_id(), "", "no id", "'; DROP TABLE runs; --"):
            with pytest.raises(RunNotFound):
                await store.request(run_id, REQUESTS[verb])

    @pytest.mark.parametrize("text", ["a\0b", "\ud800"], ids=["NUL", "surrogate"])
    @pytest.mark.parametrize("field", ["reason", "by"])
    async def test_P50_a_request_that_cannot_be_stored_is_refused(
        self, harness: StoreHarness, field: str, text: str
    ) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "running")
        before = await snapshot(store, run_id)
        with pytest.raises(PayloadError):
            await store.request(run_id, Request(Verb.CANCEL, **{field: text}))
        assert await snapshot(store, run_id) == before

    async def test_P50_reasons_come_back_as_they_were(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        for text in ("", "Zürich 🜚 \u202e'\"; DROP TABLE runs; --\\ {0} %s\n", "x" * 10_000):
            request = Request(Verb.PAUSE, text, text[:100], new_id())
            held = await reach(harness, store, "running")
            await store.request(held, request)
            assert (await read(store, held)).requested == request
            left = await reach(harness, store, "sleeping")
            await store.request(left, request)
            assert (await read(store, left)).reason == text
            assert _latest(await store.history(left)) == request

    # -- cancel -----------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["pending", "delayed", "paused before its start"])
    async def test_P29_a_run_that_never_started_is_cancelled_at_once(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await store.history(run_id)
        assert await store.request(run_id, CANCEL) is State.CANCELLED
        run = await read(store, run_id)
        assert (run.started_at, run.ready_at, run.owner, run.requested, run.reason) == (None, None, None, None, None)
        assert run.ended_at is not None
        assert run.ended_at >= run.created_at
        failure = failures.from_json(run.error)
        assert failure.error_type == "durable.errors.RunCancelled"
        assert CANCEL.reason in failure.message
        history = await store.history(run_id)
        assert history[:-1] == before
        assert (_latest(history), history[-1].seq) == (CANCEL, len(before) + 1)
        assert (history[-1].failed, history[-1].worker) == (False, None)
        assert [ended.id for ended in await store.ended([run_id])] == [run_id]
        assert (await (await Worker.start(store)).claim()).runs == []

    async def test_P29_the_key_of_a_cancelled_run_remains(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        (run_id,) = await create(store, new_run(key="k"))
        await store.request(run_id, CANCEL)
        assert await store.find_key("order", "k") == run_id
        (again,) = await store.create_runs([new_run(key="k")])
        assert (again.run_id, again.created) == (run_id, False)

    @pytest.mark.parametrize("name", [name for name in LEFT if SITUATIONS[name].state is not State.PAUSED])
    async def test_P29_a_started_run_that_nobody_holds_is_ready_at_once(self, harness: StoreHarness, name: str) -> None:
        """A worker has to replay it to know what to undo; it finds the request with the run, and writes the record."""
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await store.history(run_id)
        assert await store.request(run_id, CANCEL) is SITUATIONS[name].state
        run = await read(store, run_id)
        assert run.requested == CANCEL
        assert run.ready_at is not None
        worker = await Worker.start(store)
        answer = await worker.claim()
        assert [(one.run.requested, one.records) for one in answer.runs] == [(CANCEL, before)]
        assert list(answer.requests) == [(run_id, CANCEL)]

    @pytest.mark.parametrize(
        ("name", "state"), [("paused", State.PENDING), ("paused in compensation", State.COMPENSATING)]
    )
    async def test_P29_a_cancelled_run_leaves_its_pause(self, harness: StoreHarness, name: str, state: State) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        error = (await read(store, run_id)).error
        assert await store.request(run_id, CANCEL) is state
        run = await read(store, run_id)
        assert (run.state, run.reason, run.requested, run.error) == (state, None, CANCEL, error)
        _, one = await only(store)
        assert one.run.requested == CANCEL

    async def test_P29_cancel_takes_the_place_of_a_pause(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, PAUSE)
        assert await store.request(one.run.id, CANCEL) is _R
        assert await store.request(one.run.id, PAUSE) is None
        assert await store.request(one.run.id, RESUME) is None
        assert list((await worker.claim(limit=0)).requests) == [(one.run.id, CANCEL)]

    async def test_P29_the_first_of_several_who_cancel_is_named(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, CANCEL)
        assert await store.request(one.run.id, Request(Verb.CANCEL, "me too", "bob")) is _R
        assert (await read(store, one.run.id)).requested == CANCEL
        await worker.apply(one, change=states.park(_R, ready_at=NEVER, wakes=one.wakes))
        assert await store.request(one.run.id, Request(Verb.CANCEL, "me too", "bob")) is State.SLEEPING
        assert (await read(store, one.run.id)).requested == CANCEL

    # -- telling the holder -------------------------------------------------------------------------

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE], ids=["cancel", "pause"])
    @pytest.mark.parametrize("name", ["running", "compensating"])
    async def test_P30_the_holder_is_told_with_every_claim(
        self, harness: StoreHarness, name: str, request_: Request
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        if name == "compensating":
            await worker.apply(one, record(1), change=states.compensate(_R, ERROR))
        state = State(name)
        stranger, elsewhere = await Worker.start(store), Worker(await harness.another(), worker.id)
        assert list((await worker.claim()).requests) == []
        before = await store.history(one.run.id)
        assert await store.request(one.run.id, request_) is state
        run = await read(store, one.run.id)
        assert (run.state, run.owner, run.claim, run.ready_at) == (state, worker.id, one.run.claim, None)
        assert await store.history(one.run.id) == before  # its holder writes the record
        told = [(one.run.id, request_)]
        for claimer in (worker, elsewhere):
            for limit in (0, 5):
                assert list((await claimer.claim(limit=limit)).requests) == told
                assert list((await claimer.claim(limit=limit, routes=[])).requests) == told
        assert list((await stranger.claim()).requests) == []
        end = states.cancelled(state, ERROR) if request_ is CANCEL else states.pause(state, "why", asked=True)
        await worker.apply(one, record(2), change=end)
        assert list((await worker.claim(limit=0)).requests) == []
        assert (await read(store, one.run.id)).requested is None

    async def test_P30_requests_about_many_runs_are_told_together(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        ids = await create(store, *(new_run() for _ in range(6)))
        worker, other = await Worker.start(store), await Worker.start(store)
        mine = [one.run.id for one in (await worker.claim(limit=4)).runs]
        for run_id in ids:
            await store.request(run_id, CANCEL if run_id in mine[:2] else PAUSE)
        told = dict((await worker.claim(limit=0)).requests)
        assert told == {run_id: CANCEL if run_id in mine[:2] else PAUSE for run_id in mine}
        assert list((await other.claim()).requests) == []

    async def test_P30_a_claim_whose_answer_was_lost_tells_again(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "sleeping")
        await store.request(run_id, CANCEL)
        worker, batch = await Worker.start(store), str(uuid4())
        for _ in range(2):
            answer = await worker.claim(batch=batch)
            assert [one.run.requested for one in answer.runs] == [CANCEL]
            assert list(answer.requests) == [(run_id, CANCEL)]

    @pytest.mark.parametrize("request_", [CANCEL, PAUSE], ids=["cancel", "pause"])
    async def test_P29_a_request_outlives_the_worker_that_was_told(
        self, harness: StoreHarness, request_: Request
    ) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, request_)
        await worker.claim(limit=0)
        await harness.expire(worker.id)
        await store.reap()
        assert list((await worker.claim(limit=0)).requests) == []
        run = await read(store, one.run.id)
        assert (run.state, run.requested) == (State.PENDING, request_)
        second, again = await only(store)
        assert again.run.requested == request_
        await store.unregister(second.id)
        _, third = await only(store)
        assert third.run.requested == request_

    # -- pause and resume -----------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ["pending", "delayed", *(n for n in LEFT if SITUATIONS[n].expected(Verb.PAUSE))])
    async def test_a_run_that_nobody_holds_is_paused_at_once(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await store.history(run_id)
        assert await store.request(run_id, PAUSE) is State.PAUSED
        run = await read(store, run_id)
        assert (run.reason, run.ready_at, run.requested, run.ended_at) == (PAUSE.reason, None, None, None)
        history = await store.history(run_id)
        assert history[:-1] == before
        assert (_latest(history), history[-1].seq) == (PAUSE, len(history))
        answer = await (await Worker.start(store)).claim()
        assert (list(answer.runs), answer.next_ready_at, list(answer.requests)) == ([], None, [])

    @pytest.mark.parametrize("name", [name for name in LIVE if SITUATIONS[name].state is State.PAUSED])
    async def test_a_resumed_run_is_ready_at_once(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before, run = await store.history(run_id), await read(store, run_id)
        state = await store.request(run_id, RESUME)
        assert state is (_C if SITUATIONS[name].undoing else State.PENDING)
        resumed = await read(store, run_id)
        assert (resumed.reason, resumed.requested, resumed.error) == (None, None, run.error)
        history = await store.history(run_id)
        assert history[:-1] == before
        assert (_latest(history), history[-1].seq) == (RESUME, len(history))
        _, one = await only(store)
        assert (one.run.id, one.records) == (run_id, history)

    async def test_a_delayed_run_that_was_paused_starts_when_it_is_resumed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "delayed")
        await store.request(run_id, PAUSE)
        await store.request(run_id, RESUME)
        _, one = await only(store)
        assert [entry.kind for entry in one.records or ()] == [Kind.REQUEST, Kind.REQUEST]
        # It had never started when it was paused and resumed; now it has.
        assert await store.request(run_id, CANCEL) is _R

    async def test_a_run_paused_and_resumed_before_its_start_is_still_cancelled_at_once(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "paused before its start")
        assert await store.request(run_id, RESUME) is State.PENDING
        assert await store.request(run_id, CANCEL) is State.CANCELLED
        assert [entry.seq for entry in await store.history(run_id)] == [1, 2, 3]

    async def test_a_pause_that_is_not_carried_out_yet_is_withdrawn(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        before = await store.history(one.run.id)
        await store.request(one.run.id, PAUSE)
        assert await store.request(one.run.id, RESUME) is _R
        assert (await read(store, one.run.id)).requested is None
        assert await store.history(one.run.id) == before
        assert list((await worker.claim(limit=0)).requests) == []
        assert await store.request(one.run.id, RESUME) is None
        await worker.apply(one, change=states.complete(_R, "1"))

    async def test_a_pause_is_withdrawn_after_a_takeover_too(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, PAUSE)
        await harness.expire(worker.id)
        await store.reap()
        assert await store.request(one.run.id, RESUME) is State.PENDING
        _, again = await only(store)
        assert again.run.requested is None

    async def test_a_pause_asked_for_again_after_a_takeover_is_carried_out(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await store.request(one.run.id, PAUSE)
        await harness.expire(worker.id)
        await store.reap()
        assert await store.request(one.run.id, PAUSE) is State.PAUSED
        run = await read(store, one.run.id)
        assert (run.requested, run.ready_at, run.reason) == (None, None, PAUSE.reason)

    async def test_P20_a_history_in_memory_is_not_current_after_a_pause(self, harness: StoreHarness) -> None:
        """A warm execution would give its next record a seq that the request's record has."""
        store = await harness.fresh()
        worker, one = await claimed(store)
        await worker.apply(one, *STEPS, change=states.park(_R, ready_at=NEVER, wakes=one.wakes))
        await store.request(one.run.id, PAUSE)
        await store.request(one.run.id, RESUME)
        (again,) = (await worker.claim(warm={one.run.id: one.run.claim})).runs
        assert [entry.seq for entry in again.records or ()] == [1, 2, 3, 4]
        assert again.wakes > one.wakes

    async def test_requests_are_no_progress(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        worker, one = await claimed(store)
        await harness.expire(worker.id)
        await store.reap(limit=2)
        await store.request(one.run.id, PAUSE)
        await store.request(one.run.id, RESUME)
        assert (await read(store, one.run.id)).takeovers == 1
        second, again = await only(store)
        assert again.run.takeovers == 1
        await harness.expire(second.id)
        await store.reap(limit=2)
        assert (await read(store, one.run.id)).state is State.DEAD_LETTER

    # -- sent again, much later -----------------------------------------------------------------------

    async def test_P29_a_request_that_its_holder_carried_out_is_answered_when_it_is_sent_again(
        self, harness: StoreHarness
    ) -> None:
        """The answer to the first sending was lost, and the worker was quick: its record says what was asked."""
        store = await harness.fresh()
        ends = states.pause(_R, "why", asked=True), states.cancelled(_R, ERROR), states.fail(_R, ERROR)
        for request, leave in zip((PAUSE, CANCEL, CANCEL), ends, strict=True):
            worker, one = await claimed(store)
            await store.request(one.run.id, request)
            await worker.apply(one, _carried_out(1, request))
            assert await store.request(one.run.id, request) is _R
            await worker.apply(one, change=leave)
            before = await snapshot(store, one.run.id)
            assert await store.request(one.run.id, request) is leave.state
            assert await store.request(one.run.id, replace(request, id="a second one, in the same words")) is None
            assert await snapshot(store, one.run.id) == before

    # -- elsewhere ----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("name", ENDED)
    async def test_P29_no_request_but_a_retry_leaves_a_terminal_state(self, harness: StoreHarness, name: str) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        before = await snapshot(store, run_id)
        retried = {Verb.RETRY, Verb.RETRY_UNDO}
        for verb in set(Verb) - retried:
            assert await store.request(run_id, REQUESTS[verb]) is None
        if name in ("completed", "compensated", "cancelled"):
            for verb in retried:
                assert await store.request(run_id, REQUESTS[verb]) is None
        assert await snapshot(store, run_id) == before

    async def test_P29_the_same_words_are_not_the_same_request(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, "failed")
        second = replace(RETRY, id="second")
        await store.request(run_id, RETRY)
        worker, one = await only(store)
        assert await store.request(run_id, RETRY) is _R
        assert await store.request(run_id, second) is None
        await worker.apply(one, change=states.fail(_R, ERROR))
        before = await snapshot(store, run_id)
        assert await store.request(run_id, RETRY) is State.FAILED
        assert await snapshot(store, run_id) == before
        assert await store.request(run_id, second) is State.PENDING
        worker, one = await only(store)
        await worker.apply(one, change=states.complete(_R, "1"))
        assert await store.request(run_id, second) is State.COMPLETED
        assert await store.request(run_id, RETRY) is None

    @pytest.mark.parametrize("name", ["pending", "delayed", "paused before its start"])
    async def test_P29_a_second_cancel_of_a_cancelled_run_does_not_apply(
        self, harness: StoreHarness, name: str
    ) -> None:
        store = await harness.fresh()
        run_id = await reach(harness, store, name)
        assert await store.request(run_id, CANCEL) is State.CANCELLED
        assert await store.request(run_id, replace(CANCEL, id="second")) is None
        assert await store.request(run_id, CANCEL) is State.CANCELLED

    async def test_P49_lists_show_what_is_asked(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        asked = await reach(harness, store, "running")
        await reach(harness, store, "running")
        await store.request(asked, CANCEL)
        listed = await store.list_runs(RunFilter(state=_R), 10, None)
        assert [run.requested for run in listed] == [None, CANCEL]

    async def test_requests_leave_other_runs_alone(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        neighbours = [await reach(harness, store, name) for name in ("sleeping", "failed", "paused", "running")]
        before = await snapshot(store, *neighbours)
        for verb in Verb:
            for name in ("sleeping", "failed", "paused", "running", "failed in compensation"):
                await store.request(await reach_beside(harness, store, name), REQUESTS[verb])
        assert await snapshot(store, *neighbours) == before


async def reach_beside(harness: StoreHarness, store: Store, name: str) -> str:
    """As ``reach``, after whatever is ready was put out of the way of its worker."""
    worker = await Worker.start(store)
    for one in (await worker.claim()).runs:
        await worker.apply(one, change=states.fail(one.run.state, ERROR))
    return await reach(harness, store, name)


def _carried_out(seq: int, request: Request) -> Record:
    """The record that a worker writes."""
    return record(seq, f"/request/{seq}", Kind.REQUEST, failures.request_to_json(request))


def _latest(history: Sequence[Record]) -> Request:
    assert history
    assert history[-1].kind is Kind.REQUEST
    assert history[-1].key == f"/request/{history[-1].seq}"
    return failures.request_from_json(history[-1].data or "")
