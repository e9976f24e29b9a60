"""Queues, priorities, limits, concurrency keys and debouncing, through engines."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from durable import (
    ConcurrencyConflict,
    Context,
    Debounce,
    Engine,
    InvalidArgument,
    Queue,
    Rate,
    RunCancelled,
    State,
    WorkerOptions,
    workflow,
)
from tests.engine.backends import SOON, Backend


class Gauge:
    """Counts what executes at the same time, by a label."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []

    def reset(self) -> None:
        for counted in (self.now, self.most, self.order):
            counted.clear()

    @contextmanager
    def running(self, label: str) -> Generator[None]:
        self.order.append(label)
        self.now[label] += 1
        self.most[label] = max(self.most[label], self.now[label])
        try:
            yield
        finally:
            self.now[label] -= 1


gauge = Gauge()


@pytest.fixture(autouse=True)
def _new_gauge() -> None:
    gauge.reset()


async def measured(label: str) -> str:
    with gauge.running(label):
        await asyncio.sleep(0.002)
    return label


@workflow(queue="reports")
async def report(ctx: Context, label: str) -> str:
    return await ctx.step("write", measured, label)


@workflow
async def asks(ctx: Context, label: str = "") -> str:
    return await ctx.wait_for("answer", str)


async def reached(engine: Engine, run_id: str, state: State) -> None:
    async with asyncio.timeout(SOON):
        while (await engine.get_run(run_id)).state is not state:  # noqa: ASYNC110 - only ends are announced
            await asyncio.sleep(0.002)


async def test_a_worker_executes_the_queues_it_subscribes_to(backend: Backend) -> None:
    async with backend.engine(report, queues=["reports"]) as engine:
        elsewhere = await engine.trigger(report, "a", queue="other")
        assert await backend.result(engine, await engine.trigger(report, "b")) == "b"
        assert await elsewhere.status() is State.PENDING
        assert [run.queue for run in (await engine.list_runs(queue="other")).items] == ["other"]
    async with backend.engine(report, queues=["other"]) as engine:
        assert await backend.result(engine, await engine.handle(report, run_id=elsewhere.run_id)) == "a"


async def test_priority_goes_first(backend: Backend) -> None:
    engine = backend.engine(report, concurrency=1)
    async with engine.client():
        for number, priority in enumerate((9, 5, 0, 3)):
            await engine.trigger(report, str(priority), priority=priority, key=str(number))
    async with backend.engine(report, concurrency=1) as engine:
        for number in range(4):
            await backend.result(engine, await engine.handle(report, key=str(number)))
    assert gauge.order == ["0", "3", "5", "9"]


async def test_a_queue_never_runs_more_than_its_limit_over_all_workers(backend: Backend) -> None:
    async with backend.engine(report, concurrency=20) as one, backend.engine(report, concurrency=20) as two:
        await one.set_limits(Queue("reports", concurrency=3))
        handles = await one.trigger_many(report, ["x"] * 40)
        if backend.clock is not None:
            await asyncio.gather(backend.idle(one), backend.idle(two))
        for handle in handles:
            assert await handle.result(SOON) == "x"
    assert gauge.most == {"x": 3}


async def test_a_key_never_runs_more_than_its_share_and_stands_in_nobodys_way(backend: Backend) -> None:
    async with backend.engine(report, concurrency=20) as engine:
        await engine.set_limits(Queue("reports", per_key=1))
        handles = [
            handle
            for tenant in ("acme", "bolt", "cove")
            for handle in await engine.trigger_many(report, [tenant] * 8, limit_key=tenant)
        ]
        for handle in handles:
            await backend.result(engine, handle)
    assert gauge.most == {"acme": 1, "bolt": 1, "cove": 1}


async def test_a_run_that_waits_uses_no_place(backend: Backend) -> None:
    async with backend.engine(asks) as engine:
        await engine.set_limits(Queue("default", concurrency=1))
        first, second = await engine.trigger_many(asks, ["", ""])
        await reached(engine, first.run_id, State.WAITING)
        await reached(engine, second.run_id, State.WAITING)
        for handle in (second, first):
            await engine.signal(handle.run_id, "answer", "yes")
            assert await backend.result(engine, handle) == "yes"


async def test_a_rate_spreads_the_starts(backend: Backend) -> None:
    async with backend.engine(report, concurrency=20) as engine:
        await engine.set_limits(Queue("reports", rate=Rate(5, per=0.2)))
        handles = await engine.trigger_many(report, ["x"] * 15)
        for handle in handles:
            await backend.result(engine, handle)
        starts = [(await engine.get_run(handle.run_id)).started_at for handle in handles]
        began = sorted(start for start in starts if start is not None)
        # Five at once, then one in 40 ms: the fifteenth 400 ms after the first.
        assert (began[14] - began[0]).total_seconds() >= 0.399
    assert len(gauge.order) == 15


async def test_limits_are_stored_and_lifted(backend: Backend) -> None:
    async with backend.engine(report) as engine:
        await engine.set_limits(Queue("a", concurrency=1), Queue("b", per_key=2, rate=Rate(3, 60)))
        assert [queue for queue in await engine.limits() if queue.name in "ab"] == [
            Queue("a", concurrency=1),
            Queue("b", per_key=2, rate=Rate(3, 60)),
        ]
        await engine.set_limits(Queue("a"), Queue("b"))


@pytest.mark.parametrize(
    "wrong",
    [
        Queue(""),
        Queue("a/b"),
        Queue("a", concurrency=0),
        Queue("a", per_key=True),
        Queue("a", rate=Rate(0)),
        Queue("a", rate=Rate(1, per=0)),
        Queue("a", rate_per_key=Rate(1, per=-1)),
    ],
    ids=repr,
)
async def test_a_wrong_limit_is_refused(backend: Backend, wrong: Queue) -> None:
    with pytest.raises(InvalidArgument):
        Engine(backend.store(), queues=[wrong], worker=WorkerOptions())
    async with backend.engine(report) as engine:
        with pytest.raises(InvalidArgument):
            await engine.set_limits(wrong)


# -- concurrency keys -----------------------------------------------------------------------------


async def test_P37_of_many_starts_with_one_key_one_is_active_and_the_losers_learn_its_id(backend: Backend) -> None:
    async with backend.engine(asks) as engine:

        async def start() -> str:
            try:
                return (await engine.trigger(asks, concurrency_key="cart 1")).run_id
            except ConcurrencyConflict as conflict:
                return f"not {conflict.run_id}"

        answers = Counter(await asyncio.gather(*(start() for _ in range(50))))
        [winner] = [answer for answer in answers if not answer.startswith("not ")]
        assert answers == {winner: 1, f"not {winner}": 49}
        await engine.signal(winner, "answer", "done")
        await backend.result(engine, await engine.handle(asks, run_id=winner))
        assert (await engine.trigger(asks, concurrency_key="cart 1")).run_id != winner


async def test_existing_gives_the_active_run(backend: Backend) -> None:
    async with backend.engine(asks) as engine:
        first = await engine.trigger(asks, concurrency_key="k")
        again = await engine.trigger(asks, "other", concurrency_key="k", concurrency_policy="existing")
        assert (again.run_id, again.created) == (first.run_id, False)
        other = await engine.trigger(asks, concurrency_key="another")
        assert other.created


async def test_queue_runs_one_after_the_other(backend: Backend) -> None:
    async with backend.engine(report) as engine:
        handles = [
            await engine.trigger(report, "x", concurrency_key="k", concurrency_policy="queue") for _ in range(10)
        ]
        for handle in handles:
            assert await backend.result(engine, handle) == "x"
    assert gauge.most == {"x": 1}


async def test_replace_cancels_the_active_run_and_starts_after_it(backend: Backend) -> None:
    async with backend.engine(asks) as engine:
        first = await engine.trigger(asks, concurrency_key="k")
        await reached(engine, first.run_id, State.WAITING)
        second = await engine.trigger(asks, concurrency_key="k", concurrency_policy="replace")
        with pytest.raises(RunCancelled):
            await backend.result(engine, first)
        await reached(engine, second.run_id, State.WAITING)
        await engine.signal(second.run_id, "answer", "yes")
        assert await backend.result(engine, second) == "yes"


async def test_an_unknown_policy_is_refused(backend: Backend) -> None:
    async with backend.engine(asks) as engine:
        with pytest.raises(InvalidArgument, match="replace"):
            await engine.trigger(asks, concurrency_key="k", concurrency_policy="ignore")


# -- debouncing -----------------------------------------------------------------------------------


async def test_triggers_that_follow_each_other_become_one_run_with_the_last_input(backend: Backend) -> None:
    async with backend.engine(report) as engine:
        handles = [await engine.trigger(report, f"input {n}", debounce=Debounce("doc 1", delay=0.2)) for n in range(4)]
        assert len({handle.run_id for handle in handles}) == 1
        assert [handle.created for handle in handles] == [True, False, False, False]
        assert await backend.result(engine, handles[0]) == "input 3"
        later = await engine.trigger(report, "input 4", debounce=Debounce("doc 1", delay=0))
        assert later.run_id != handles[0].run_id
        assert await backend.result(engine, later) == "input 4"


@pytest.mark.parametrize("wrong", [{"key": "k"}, {"delay": 1}], ids=str)
async def test_what_does_not_go_with_debouncing_is_refused(backend: Backend, wrong: dict[str, Any]) -> None:
    async with backend.engine(report) as engine:
        with pytest.raises(InvalidArgument, match="debounce"):
            await engine.trigger(report, "x", debounce=Debounce("d", delay=1), **wrong)
