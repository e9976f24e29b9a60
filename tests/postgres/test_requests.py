"""Requests on Postgres: what crosses with them, what is held, whose answer is lost, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import psycopg
import pytest

from durable import states
from durable.errors import RunNotFound, StoreUnavailable
from durable.model import Change, ClaimedRun, Kind, Outcome, RunWrite, State
from durable.requests import Plan
from durable.sql import statements
from durable.store import Hint
from durable.stores.postgres import PostgresStore, connections, requesting, sessions, writes
from durable.stores.postgres.connections import Lane
from durable.stores.postgres.wire import Call
from durable.testing.conformance.harness import (
    NEVER,
    Worker,
    claimed,
    create,
    new_id,
    new_run,
    read,
    record,
    snapshot,
)
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME, RETRY, only
from durable.testing.conformance.writes import ERROR
from tests.postgres.conftest import Postgres
from tests.postgres.proxy import Proxy

_R = State.RUNNING
_COMPLETE = states.complete(_R, "1")
_REQUESTS = "SELECT count(*) FROM durable.requests"

Leaving = Callable[[ClaimedRun], Change]


def _park(one: ClaimedRun) -> Change:
    return states.park(_R, ready_at=NEVER, wakes=one.wakes)


def _always(change: Change) -> Leaving:
    def leave(_: ClaimedRun) -> Change:
        return change

    return leave


# -- crossings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leave", "answer", "requested"),
    [
        (_always(_COMPLETE), None, False),
        (_always(states.fail(_R, ERROR)), None, False),
        (_park, State.SLEEPING, True),
        (_always(states.release(_R)), State.PENDING, True),
        (_always(states.pause(_R, "does not fit")), State.PENDING, True),
        (_always(states.compensate(_R, ERROR)), State.COMPENSATING, True),
    ],
    ids=["complete", "fail", "park", "release", "pause", "compensate"],
)
async def test_P29_a_flush_between_reading_and_writing_is_seen(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, leave: Leaving, answer: State | None, requested: bool
) -> None:
    """The request is decided for a run that executes, and then the run does something else."""
    store = await postgres.fresh()
    worker, one = await claimed(store)
    plan, crossed = requesting._plan, False

    async def planned(*arguments: Any) -> Any:
        nonlocal crossed
        decided = await plan(*arguments)
        if not crossed:
            crossed = True
            await worker.apply(one, record(1), change=leave(one))
        return decided

    monkeypatch.setattr(requesting, "_plan", planned)
    assert await store.request(one.run.id, CANCEL) is answer
    run = await read(store, one.run.id)
    assert (run.requested == CANCEL) is requested
    if requested and run.owner is None:
        assert (await only(store))[1].run.requested == CANCEL
    elif requested:
        assert dict((await worker.claim(limit=0)).requests) == {one.run.id: CANCEL}


async def test_P29_a_flush_that_meets_a_request_sends_again_and_finds_it(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    park = RunWrite(one.ref, [record(1)], _park(one))
    change_run = statements("postgres", postgres.schema)["change_run"].encode()
    as_read = ["running", worker.id, "1", str(one.wakes), None]
    becomes = ["running", '{"verb":"cancel"}', None, None, "0"]
    with psycopg.connect(postgres.url, cursor_factory=psycopg.RawCursor) as asking:
        cursor = asking.execute(change_run, ["0", one.run.id, *as_read, *becomes])
        assert cursor.fetchall() == [(True, True)]
        assert await store.commit(worker.id, [park]) == [Outcome.BUSY]
        assert await store.history(one.run.id) == []
    assert await store.commit(worker.id, [park]) == [Outcome.APPLIED]
    run = await read(store, one.run.id)
    assert run.state is State.SLEEPING
    assert run.ready_at is not None
    assert run.ready_at < NEVER


async def test_P25_what_another_run_attempt_sets_aside_waits_with_its_change(postgres: Postgres) -> None:
    """Busy is all or nothing: no record may be set aside for a change that was not made."""
    store = await postgres.fresh()
    worker, one = await claimed(store)
    await worker.apply(one, record(1), record(2, "ship", data=ERROR, failed=True))
    write = RunWrite(
        one.ref, [record(3, "/attempt/1", Kind.RUN_ATTEMPT, ERROR, failed=True)], states.try_again(_R, NEVER)
    )
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", one.run.id)
        assert await store.commit(worker.id, [write]) == [Outcome.BUSY]
        assert [entry.key for entry in await store.history(one.run.id)] == ["s1", "ship"]
    assert await store.commit(worker.id, [write]) == [Outcome.APPLIED]
    assert [entry.key for entry in await store.history(one.run.id)] == ["s1", "/1/ship", "/attempt/1"]


async def test_a_run_that_somebody_holds_is_not_waited_for(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requesting, "TRIES", 3)
    monkeypatch.setattr("durable.stores.postgres.pruning.TRIES", 3)
    store = await postgres.fresh()
    (run_id,) = await create(store)
    before = await snapshot(store, run_id)
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", run_id)
        for request in (CANCEL, PAUSE):
            with pytest.raises(StoreUnavailable, match="hold"):
                await store.request(run_id, request)
    assert await snapshot(store, run_id) == before
    assert await store.request(run_id, CANCEL) is State.CANCELLED
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR UPDATE", run_id)
        assert await store.prune(NEVER, 10) == 0
        with pytest.raises(StoreUnavailable, match="holds"):
            await store.delete(run_id)
    assert await store.prune(NEVER, 10) == 1


# -- lost answers ---------------------------------------------------------------------------------


async def test_P11_a_request_whose_answer_was_lost_is_carried_out_once(postgres: Postgres) -> None:
    await postgres.fresh()
    async with Proxy(postgres.url) as proxy:
        store = await postgres.another(proxy.url)
        (run_id,) = await create(store)
        expected = []
        for number, (request, state) in enumerate([(PAUSE, State.PAUSED), (RESUME, State.PENDING)], 1):
            answer = await _losing_one(proxy, partial(store.request, run_id, request))
            assert answer is state
            expected.append(f"/request/{number}")
            assert [entry.key for entry in await store.history(run_id)] == expected
        worker = await Worker.start(store)
        one = await worker.take()
        await worker.apply(one, record(3), change=states.fail(_R, ERROR))
        assert await _losing_one(proxy, lambda: store.retry_from(run_id, "s3", RETRY)) is State.PENDING
        assert [entry.key for entry in await store.history(run_id)] == [*expected, f"/{one.run.claim}/s3", "/request/4"]
        await store.request(run_id, PAUSE)
        await store.close()


async def _losing_one(proxy: Proxy, call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer to a call whose first COMMIT is not answered; it is sent again by the store, or by us."""
    proxy.swallow_next_commit()
    try:
        answer = await call()
    except StoreUnavailable:
        answer = await call()
    assert proxy.swallowed.is_set()
    return answer


# -- what is left behind --------------------------------------------------------------------------


@pytest.mark.parametrize("leave", [_always(_COMPLETE), _park, _always(states.pause(_R, "", asked=True))])
async def test_what_a_worker_was_told_is_forgotten_when_the_run_has_left(postgres: Postgres, leave: Leaving) -> None:
    store = await postgres.fresh()
    worker, one = await claimed(store)
    other_worker, other = await claimed(store)
    for run_id in (one.run.id, other.run.id):
        assert await store.request(run_id, PAUSE) is _R
    assert postgres.rows(_REQUESTS) == [(2,)]
    await worker.apply(one, change=leave(one))
    assert list((await worker.claim(limit=0)).requests) == []
    assert postgres.rows(_REQUESTS) == [(1,)]
    assert dict((await other_worker.claim(limit=0)).requests) == {other.run.id: PAUSE}
    assert await store.request(other.run.id, RESUME) is _R
    assert await store.request(other.run.id, CANCEL) is _R
    assert dict((await other_worker.claim(limit=0)).requests) == {other.run.id: CANCEL}
    await store.unregister(other_worker.id)
    assert postgres.rows(_REQUESTS) == [(0,)]


async def test_P30_a_request_made_while_an_earlier_one_is_being_forgotten_is_told(postgres: Postgres) -> None:
    """The claim takes an old row for settled, and a new request comes before it commits."""
    store, other = await postgres.fresh(), await postgres.another()
    worker, one = await claimed(store)
    await store.request(one.run.id, PAUSE)
    await store.request(one.run.id, RESUME)
    claim_rest = statements("postgres", postgres.schema)["claim_rest"].encode()
    with psycopg.connect(postgres.url, cursor_factory=psycopg.RawCursor) as claiming:
        parameters = ["0", "{}", worker.id, new_id()]
        ((_, _, asked, *_),) = claiming.execute(claim_rest, parameters).fetchall()
        assert asked is None
        assert await other.request(one.run.id, PAUSE) is _R
    assert dict((await worker.claim(limit=0)).requests) == {one.run.id: PAUSE}


async def test_no_completion_and_no_request_touches_an_index(apart: Postgres) -> None:
    """HOT: a new version of a row stays on its page if it has room, and no index hears of it; else none would."""
    store = await apart.fresh()
    worker = await Worker.start(store)
    shares: list[int] = []
    while len(shares) < 5 and max(shares, default=0) <= 180:
        await create(store, *(new_run() for _ in range(200)))
        ends = [RunWrite(one.ref, [record(1)], _COMPLETE) for one in (await worker.claim()).runs]
        # What the claim has left behind is room when no transaction of the whole server is older.
        ((latest,),) = apart.rows("SELECT pg_current_xact_id()::text")
        await apart.until(_NONE_OLDER, latest)
        flush = store._use.call("commit_writes", *writes.parameters(worker.id, "flush", ends))
        updated, hot = await _updates(store, store._use.flushes["flush"], flush)
        assert updated == 200
        shares.append(hot)
    assert max(shares) > 180
    apart.rows("VACUUM durable.runs")
    _, one = await claimed(store)
    run = await read(store, one.run.id)
    asking = requesting._calls(store._use, run, one.wakes, CANCEL, Plan(run.state, requested=CANCEL))
    assert await _updates(store, store._use.create, *asking) == (1, 1)
    assert (await read(store, one.run.id)).requested == CANCEL


_NONE_OLDER = (
    "SELECT pg_snapshot_xmin(pg_current_snapshot()) > %s::xid8 AND NOT EXISTS (SELECT FROM pg_stat_activity "
    "WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid())"
)


async def _updates(store: PostgresStore, lane: Lane, *calls: Call) -> tuple[int, int]:
    """How many rows of ``runs`` the calls update, and how many of those without touching an index."""
    count = (
        "SELECT pg_stat_get_xact_tuples_updated(oid), pg_stat_get_xact_tuples_hot_updated(oid) FROM pg_class "
        f"WHERE oid = '{store._schema}.runs'::regclass"
    )
    # Before and after: the server counts all that the connection has done and not reported yet.
    [before], *_, [after] = await lane.transaction(Call(count.encode()), *calls, Call(count.encode()))
    return after[0] - before[0], after[1] - before[1]


# -- deadlocks ------------------------------------------------------------------------------------


async def test_workers_cancellers_operators_and_pruning_never_deadlock(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        lost.append(getattr(error, "sqlstate", None))
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    stores = [await postgres.fresh(), await postgres.another(), await postgres.another()]
    ids = await create(stores[0], *(new_run(key=f"k{n}") for n in range(40)))
    working = True

    async def work(store: PostgresStore) -> None:
        worker = await Worker.start(store)
        for turn in range(30):
            answer = await worker.claim(limit=25)
            asked = dict(answer.requests)
            await worker.commit(*(RunWrite(o.ref, [_step(o, turn)]) for o in reversed(answer.runs)))
            await worker.commit(*(RunWrite(o.ref, [], _left(o, turn, asked)) for o in reversed(answer.runs)))
            await store.create_runs([new_run("noise", key=f"k{n}") for n in range(turn, turn + 5)])
            if turn % 10 == 9:
                await postgres.expire(worker.id)
                await store.reap(limit=1000)
                worker = await Worker.start(store)

    async def operate(store: PostgresStore) -> None:
        turn = 0
        while working:
            turn += 1
            run_id, request = ids[turn * 7 % 40], (CANCEL, PAUSE, RESUME, RETRY)[turn % 4]
            try:
                await store.request(run_id, request)
            except RunNotFound:
                ids[turn * 7 % 40] = (await store.create_runs([new_run(key=f"k{turn * 7 % 40}")]))[0].run_id
            if turn % 5 == 0:
                await store.prune(NEVER, 3)

    operators = [asyncio.create_task(operate(store)) for store in stores]
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(store) for store in stores[:2]))
    working = False
    await asyncio.gather(*operators)
    assert lost == []
    assert postgres.rows(
        "SELECT count(*) FROM durable.history AS h "
        "WHERE shard = 0 AND NOT EXISTS (SELECT FROM durable.runs WHERE id = h.run_id)"
    ) == [(0,)]


def _step(one: ClaimedRun, turn: int) -> Any:
    return record(1000 * one.run.claim + turn, f"{one.run.claim}", failed=turn % 3 == 0)


def _left(one: ClaimedRun, turn: int, asked: dict[str, Any]) -> Change:
    state = one.run.state
    if one.run.id in asked:
        return states.cancelled(state, ERROR) if asked[one.run.id] == CANCEL else states.pause(state, "", asked=True)
    if turn % 4 == 0:
        return states.fail(state, ERROR)
    return states.try_again(state, one.run.created_at) if turn % 4 == 1 and state is _R else states.release(state)


# -- hints ----------------------------------------------------------------------------------------


async def test_P30_a_hint_says_that_something_was_asked(postgres: Postgres) -> None:
    store, other = await postgres.fresh(), await postgres.another()
    heard: asyncio.Queue[Hint] = asyncio.Queue()
    other.subscribe(heard.put_nowait)
    async with asyncio.timeout(10):
        while heard.empty():  # until the other one listens
            store.announce(Hint.REQUEST)
            await asyncio.sleep(0.02)
    assert await heard.get() == Hint.REQUEST
