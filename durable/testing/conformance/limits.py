"""Limits of a key within a queue, and rates: what cannot be taken now stands in nobody's way, and is not forgotten."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from durable import states
from durable.model import NewSignal, Queue, Rate, State
from durable.store import Store
from durable.testing.conformance.harness import LONG_AGO, NEVER, StoreHarness, Worker, create, read, until
from durable.testing.conformance.queues import DONE, LEAVING, MAIL, RELEASE, get, get_ids, hold, mail
from durable.testing.conformance.situations import CANCEL, PAUSE, RESUME

_R = State.RUNNING
ONE_EACH = Queue("mail", per_key=1)
MAIL_2 = MAIL._replace(version="2")
HOUR = 3600.0


def at(second: int) -> datetime:
    """A time long past, so that the order of what is due is given."""
    return LONG_AGO + timedelta(seconds=second)


async def _cancelled(store: Store, run_id: str) -> None:
    assert await store.request(run_id, CANCEL) is State.CANCELLED


async def _paused(store: Store, run_id: str) -> None:
    assert await store.request(run_id, PAUSE) is State.PAUSED


_GOING: dict[str, Callable[[Store, str], Awaitable[None]]] = {"cancelled": _cancelled, "paused": _paused}


class LimitConformance:
    # -- places of a key --------------------------------------------------------------------------

    async def test_each_key_has_its_own_places(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", per_key=2)])
        keys = ["a", "a", "a", "b", None, None, None, "a", "b", "c"]
        worker, held = await hold(store, *(mail(limit_key=key, ready_at=at(n)) for n, key in enumerate(keys)))
        assert sorted(str(one.run.limit_key) for one in held) == ["None"] * 3 + ["a"] * 2 + ["b"] * 2 + ["c"]
        assert await get(worker) == []

    async def test_what_has_no_place_is_pending_and_comes_by_priority_then_age(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", priority=0, ready_at=at(0)))
        plan = [(5, 4), (9, 1), (5, 2), (0, 9), (5, 3)]
        ids = await create(store, *(mail(limit_key="a", priority=p, ready_at=at(n)) for p, n in plan))
        assert await get(worker) == []
        for run_id in ids:
            run = await read(store, run_id)
            assert (run.state, run.ready_at, run.owner, run.claim) == (State.PENDING, None, None, 0)
        got: list[str] = []
        while len(got) < len(plan):
            await worker.apply(one, change=DONE)
            (one,) = await get(worker)
            got.append(one.run.id)
        assert [plan[ids.index(run_id)] for run_id in got] == sorted(plan)

    async def test_a_new_run_waits_behind_those_of_its_key_that_were_blocked_before(
        self, harness: StoreHarness
    ) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)), mail(limit_key="a", ready_at=at(1)))
        assert await get(worker) == []
        (new,) = await create(store, mail(limit_key="a", ready_at=at(2)))
        await worker.apply(one, change=DONE)
        (two,) = await get(worker)
        assert two.run.id != new
        assert await get(worker) == []
        await worker.apply(two, change=DONE)
        assert await get_ids(worker) == [new]

    @pytest.mark.parametrize("leaving", LEAVING)
    async def test_who_leaves_lets_the_next_one_of_its_key_go_on(self, harness: StoreHarness, leaving: str) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)))
        other, (b,) = await hold(store, *(mail(limit_key="b", priority=0) for _ in range(2)))
        await create(store, *(mail(limit_key="a", priority=0) for _ in range(2)))
        assert await get(other) == []
        await LEAVING[leaving](harness, worker, one)
        (two,) = await get(other)
        assert (two.run.limit_key, two.run.priority) == ("a", 0)
        assert await get(other) == []
        await worker.store.unregister(worker.id)
        await other.apply(b, change=DONE)
        assert [one.run.limit_key for one in await get(other)] == ["b"]

    async def test_a_thousand_blocked_runs_stand_in_nobodys_way(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        await store.create_runs([mail(limit_key="a", priority=0, ready_at=at(n)) for n in range(1000)])
        (b,) = await create(store, mail(limit_key="b", priority=9))
        worker = await Worker.start(store)
        got = await get(worker, limit=3)
        assert len(got) == 2
        assert got[1].run.id == b
        # They have been looked at: this claim meets none of them.
        (c,) = await create(store, mail(limit_key="c", priority=9))
        answer = await worker.claim(1, [MAIL])
        assert [one.run.id for one in answer.runs] == [c]
        assert answer.next_ready_at is None

    async def test_the_limit_of_the_queue_and_that_of_the_key_hold_together(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", concurrency=2, per_key=1)])
        keys = ["a", "a", "b", "c", "a", "b", "c"]
        worker, held = await hold(store, *(mail(limit_key=key, ready_at=at(n)) for n, key in enumerate(keys)))
        got: list[str] = []
        while held:
            assert len(held) <= 2
            assert len({one.run.limit_key for one in held}) == len(held)
            one = held.pop(0)
            await worker.apply(one, change=DONE)
            got.append(one.run.limit_key or "")
            held += await get(worker)
        assert sorted(got) == sorted(keys)

    async def test_a_version_that_nobody_executes_does_not_hold_its_key_up(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        await create(store, *(mail(limit_key="a", version=version, ready_at=at(0)) for version in "121212"))
        worker = await Worker.start(store)
        held = await get(worker, MAIL, MAIL_2)
        assert len(held) == 1
        await worker.apply(held[0], change=DONE)
        ended = 0
        while got := await get(worker, MAIL):
            assert len(got) == 1
            await worker.apply(got[0], change=DONE)
            ended += 1
        assert ended == 3 - (held[0].run.version == "1")
        # And the other version goes on when somebody executes it.
        rest = 0
        while got := await get(worker, MAIL_2):
            assert len(got) == 1
            await worker.apply(got[0], change=DONE)
            rest += 1
        assert ended + rest == 5

    async def test_a_limit_key_means_nothing_where_there_are_no_limits(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("post", per_key=1)])
        worker, held = await hold(store, *(mail(limit_key="a") for _ in range(3)))
        assert len(held) == 3
        assert not any(one.ref.linked for one in held)
        await worker.apply(held[0], change=states.pause(_R, "by hand"))
        (paused,) = await create(store, mail(limit_key="a"))
        await store.request(paused, PAUSE)
        await store.request(held[0].run.id, RESUME)
        assert await get_ids(worker) == [held[0].run.id]

    @pytest.mark.parametrize("going", _GOING)
    async def test_who_goes_before_it_used_its_chance_leaves_it_to_the_next(
        self, harness: StoreHarness, going: str
    ) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)))
        ids = await create(store, *(mail(limit_key="a", ready_at=at(n)) for n in (1, 2, 3)))
        assert await get(worker) == []
        await _GOING[going](store, ids[1])  # while it is blocked
        await worker.apply(one, change=DONE)
        await _GOING[going](store, ids[0])  # when it may be ready
        assert await get_ids(worker) == [ids[2]]

    async def test_a_blocked_run_that_was_paused_goes_on_when_it_is_resumed(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)))
        (blocked,) = await create(store, mail(limit_key="a"))
        assert await get(worker) == []
        assert await store.request(blocked, PAUSE) is State.PAUSED
        assert await store.request(blocked, RESUME) is State.PENDING
        assert await get(worker) == []
        await worker.apply(one, change=DONE)
        (two,) = await get(worker)
        assert two.run.id == blocked

    async def test_a_paused_run_takes_no_place_when_one_is_free(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)))
        (blocked,) = await create(store, mail(limit_key="a"))
        assert await get(worker) == []
        await store.request(blocked, PAUSE)
        await worker.apply(one, change=DONE)
        assert await get(worker) == []
        assert (await read(store, blocked)).state is State.PAUSED
        await store.request(blocked, RESUME)
        assert await get_ids(worker) == [blocked]

    async def test_a_run_that_wakes_is_blocked_and_keeps_its_signals(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)))
        await worker.wait(one)
        other, (two,) = await hold(store, mail(limit_key="a"))
        for signal in ("s1", "s2"):
            await store.send_signals([NewSignal(one.run.id, signal, "approval", "1")])
            assert await get(worker) == []
        await store.request(one.run.id, CANCEL)
        assert await get(worker) == []
        await other.apply(two, change=DONE)
        (again,) = await get(worker)
        assert again.run.id == one.run.id
        assert [signal.id for signal in again.signals] == ["s1", "s2"]
        assert again.run.requested == CANCEL

    async def test_raising_or_ending_the_limit_frees_what_is_blocked(self, harness: StoreHarness) -> None:
        store, other = await harness.fresh(), await harness.another()
        await store.put_queues([ONE_EACH])
        worker, held = await hold(store, *(mail(limit_key="a") for _ in range(9)))
        assert len(held) == 1
        for limit, more in ((1, 0), (3, 2), (2, 0), (4, 1)):
            await other.put_queues([Queue("mail", per_key=limit)])
            assert len(await get(worker)) == more
        await other.put_queues([Queue("mail")])
        assert len(await get(worker)) == 5

    async def test_P11_writes_sent_again_free_no_second_place(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([ONE_EACH])
        worker, (one,) = await hold(store, *(mail(limit_key="a") for _ in range(4)))
        await worker.apply(one, change=RELEASE)
        for _ in range(2):
            await worker.write(one, change=RELEASE)
        assert len(await get(worker)) == 1
        await worker.write(one, change=RELEASE)
        assert await get(worker) == []

    # -- rates ------------------------------------------------------------------------------------

    async def test_a_rate_is_a_bucket_of_tokens(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate=Rate(4, HOUR))])
        await create(store, *(mail() for _ in range(6)))
        worker, before = await Worker.start(store), store.clock.now()
        assert len((await worker.claim(3, [MAIL])).runs) == 3
        answer = await worker.claim(3, [MAIL])
        assert len(answer.runs) == 1
        assert_near(answer.next_ready_at, before + timedelta(seconds=HOUR / 4))
        answer = await worker.claim(3, [MAIL])
        assert answer.runs == []
        assert_near(answer.next_ready_at, before + timedelta(seconds=HOUR / 4))

    async def test_a_used_up_rate_tells_nothing_when_nothing_is_due(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate=Rate(1, HOUR))])
        worker, _ = await hold(store, mail())
        assert (await worker.claim(3, [MAIL])).next_ready_at is None
        later = store.clock.now() + timedelta(seconds=1000)
        await create(store, mail(ready_at=later))
        assert (await worker.claim(3, [MAIL])).next_ready_at in (later, later + timedelta(seconds=HOUR - 1000))

    async def test_a_token_comes_with_time(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate=Rate(1, 0.2))])
        ids = await create(store, *(mail(ready_at=at(n)) for n in range(3)))
        worker = await Worker.start(store)
        got: list[str] = []
        while len(got) < 3:
            answer = await worker.claim(5, [MAIL])
            assert len(answer.runs) <= 1
            got += [one.run.id for one in answer.runs]
            if answer.next_ready_at is not None:
                await until(store, answer.next_ready_at)
        assert got == ids

    async def test_every_claim_takes_a_token_and_one_sent_again_takes_none(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate=Rate(3, HOUR), rate_per_key=Rate(3, HOUR))])
        await create(store, mail(limit_key="a"))
        worker = await Worker.start(store)
        for _ in range(3):
            batch = str(uuid4())
            (one,) = (await worker.claim(5, [MAIL], batch=batch)).runs
            for _ in range(2):
                (again,) = (await worker.claim(5, [MAIL], batch=batch)).runs
                assert again.ref == one.ref
            await worker.apply(one, change=RELEASE)
        assert (await worker.claim(5, [MAIL])).runs == []

    async def test_the_rate_of_a_key_holds_up_no_other_key(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate_per_key=Rate(2, HOUR))])
        await store.create_runs([mail(limit_key="a", priority=0, ready_at=at(n)) for n in range(300)])
        await create(store, *(mail(limit_key=key, priority=9) for key in ("b", "b", "b", None, None, None)))
        worker = await Worker.start(store)
        got = [one.run.limit_key for one in await get(worker, limit=20)]
        assert got == ["a", "a", *[key for key in got[2:] if key in ("b", None)]]
        assert (got.count("b"), got.count(None)) == (2, 3)
        answer = await worker.claim(20, [MAIL])
        assert answer.runs == []
        assert_near(answer.next_ready_at, store.clock.now() + timedelta(seconds=HOUR / 2))

    async def test_the_tokens_of_a_key_go_to_its_runs_by_priority_then_age(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate_per_key=Rate(1, 0.2))])
        plan = [(5, 4), (9, 1), (5, 2), (0, 9)]
        worker, (first,) = await hold(store, mail(limit_key="a", priority=0, ready_at=at(0)))
        ids = await create(store, *(mail(limit_key="a", priority=p, ready_at=at(n)) for p, n in plan))
        got: list[str] = []
        while len(got) < len(plan):
            answer = await worker.claim(5, [MAIL])
            got += [one.run.id for one in answer.runs]
            if answer.next_ready_at is not None:
                await until(store, answer.next_ready_at)
        assert [plan[ids.index(run_id)] for run_id in got] == sorted(plan)
        assert first.run.id not in got

    @pytest.mark.parametrize("going", _GOING)
    async def test_who_goes_before_its_token_is_due_leaves_it_to_the_next(
        self, harness: StoreHarness, going: str
    ) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", rate_per_key=Rate(1, 0.3))])
        worker, _ = await hold(store, mail(limit_key="a", ready_at=at(0)))
        ids = await create(store, *(mail(limit_key="a", ready_at=at(n)) for n in (1, 2)))
        answer = await worker.claim(5, [MAIL])
        assert answer.runs == []
        await _GOING[going](store, ids[0])
        while not (answer := await worker.claim(5, [MAIL])).runs:  # a clock that is a little ahead wakes a little early
            assert answer.next_ready_at is not None
            await until(store, answer.next_ready_at)
        assert [one.run.id for one in answer.runs] == [ids[1]]

    async def test_what_a_limit_refuses_takes_no_token(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", 1, None, Rate(2, HOUR), Rate(2, HOUR))])
        worker, (one,) = await hold(store, *(mail(limit_key="a") for _ in range(3)))
        for _ in range(3):
            assert await get(worker) == []
        await worker.apply(one, change=DONE)
        (two,) = await get(worker)
        await worker.apply(two, change=DONE)
        assert await get(worker) == []

    async def test_a_place_and_a_token_are_needed_both(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", per_key=1, rate_per_key=Rate(2, HOUR))])
        worker, (one,) = await hold(store, *(mail(limit_key="a", ready_at=at(n)) for n in range(4)))
        assert await get(worker) == []
        await worker.apply(one, change=DONE)
        (two,) = await get(worker)
        await worker.apply(two, change=DONE)
        answer = await worker.claim(5, [MAIL])
        assert answer.runs == []
        assert_near(answer.next_ready_at, store.clock.now() + timedelta(seconds=HOUR / 2))

    @pytest.mark.parametrize("queue", ["rate", "rate_per_key"])
    async def test_another_rate_begins_with_full_buckets_and_the_same_one_does_not(
        self, harness: StoreHarness, queue: str
    ) -> None:
        store = await harness.fresh()
        make: dict[str, Callable[[Rate], Queue]] = {
            "rate": lambda rate: Queue("mail", rate=rate),
            "rate_per_key": lambda rate: Queue("mail", rate_per_key=rate),
        }
        await store.put_queues([make[queue](Rate(1, HOUR))])
        worker, held = await hold(store, *(mail(limit_key="a") for _ in range(8)))
        assert len(held) == 1
        await store.put_queues([make[queue](Rate(1, HOUR))])
        assert await get(worker) == []
        await store.put_queues([make[queue](Rate(3, HOUR))])
        assert len(await get(worker)) == 3
        await store.put_queues([Queue("mail")])
        assert len(await get(worker)) == 4

    async def test_a_sleeping_run_is_not_due_by_a_token(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.put_queues([Queue("mail", 1, 1, Rate(5, HOUR), Rate(5, HOUR))])
        worker, (one,) = await hold(store, mail(limit_key="a", ready_at=at(0)), mail(limit_key="a", ready_at=at(1)))
        await worker.apply(one, change=states.park(_R, ready_at=NEVER, wakes=one.wakes))
        (two,) = await get(worker)
        await worker.apply(two, change=DONE)
        assert await get(worker) == []
        assert (await read(store, one.run.id)).ready_at == NEVER


def assert_near(when: datetime | None, expected: datetime) -> None:
    """The same time, but for what the test itself took."""
    assert when is not None
    assert abs(when - expected) < timedelta(seconds=30)
