"""Looking after the system through the engine: workers, waits, the census, tokens, ticks, the meter."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar

import pytest

from durable import (
    ConfigurationError,
    Context,
    Engine,
    InvalidArgument,
    OpenWait,
    Queue,
    Retry,
    RunNotFound,
    Scope,
    State,
    StoreUnavailable,
    UnknownWorkflow,
    workflow,
)
from durable.testing import MemoryStore
from tests.engine.backends import SOON, Backend
from tests.engine.wrapped import BadRenewals, GoesDown

T = TypeVar("T")


def add(value: int) -> int:
    return value + 1


async def eventually(ask: Callable[[], Awaitable[T]], right: Callable[[T], bool]) -> T:
    """The answer, once it is right."""
    async with asyncio.timeout(SOON):
        while not right(answer := await ask()):  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
    return answer


def names(waits: list[OpenWait]) -> list[tuple[str, str]]:
    return [(wait.kind, wait.name) for wait in waits]


@workflow
async def order(ctx: Context, value: int) -> int:
    first: int = await ctx.step("first", add, value)
    approved: int = await ctx.wait_for("approval")
    return await ctx.step("last", add, first + approved)


# -- workers --------------------------------------------------------------------------------------


async def test_a_worker_says_where_it_is_and_what_it_holds(backend: Backend) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    @workflow
    async def held(ctx: Context) -> None:
        async def wait() -> None:
            running.set()
            await go_on.wait()

        await ctx.step("wait", wait)

    async with backend.engine(held) as engine, backend.engine().client() as beside:
        handle = await engine.trigger(held)
        await asyncio.wait_for(running.wait(), SOON)
        (worker,) = await beside.workers()
        assert (worker.host, worker.pid, worker.alive, worker.running) == (socket.gethostname(), os.getpid(), True, 1)
        assert worker.lease_until > worker.started_at
        go_on.set()
        await backend.result(engine, handle)
        await eventually(beside.workers, lambda workers: workers[0].running == 0)
    async with backend.engine().client() as beside:
        assert await beside.workers() == []


async def test_workers_are_in_the_order_of_their_start(backend: Backend) -> None:
    engines = [backend.engine() for _ in range(3)]
    for engine in engines:
        await engine.start()
    workers = await engines[0].workers()
    assert len(workers) == 3
    assert [one.started_at for one in workers] == sorted(one.started_at for one in workers)
    for engine in engines:
        await engine.stop()


# -- open waits -----------------------------------------------------------------------------------


async def test_open_waits_name_what_would_wake_the_run(backend: Backend) -> None:
    @workflow
    async def child(ctx: Context) -> None:
        await ctx.wait_for("never")

    @workflow
    async def waits(ctx: Context) -> None:
        assert await ctx.wait_for("first") == 1
        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.wait_for("second", timeout=5000.0))
            group.create_task(ctx.wait_for_any("decision", {"yes": Any, "no": Any}))
            group.create_task(ctx.wait_for_any("third", {"third": Any}))
            group.create_task(ctx.wait_for_event("paid", key="order/7"))
            group.create_task(ctx.wait_for_event("closed"))
            group.create_task(ctx.sleep("nap", timedelta(days=9999)))
            group.create_task(ctx.call("ship", child))

    async with backend.engine(waits, child) as engine:
        handle = await engine.trigger(waits)
        await _parked(engine, handle.run_id, 1)
        (first,) = await engine.open_waits(handle.run_id)
        assert (first.kind, first.name, first.deadline, first.key) == ("signal", "first", None, "first")
        await engine.signal(handle.run_id, "first", 1)
        await _parked(engine, handle.run_id, 8)
        waits_now = await engine.open_waits(handle.run_id)
        assert sorted(names(waits_now)) == [
            *(("child", "ship"), ("event", "closed"), ("event", "paid/order/7")),
            *(("signal", "no"), ("signal", "second"), ("signal", "third"), ("signal", "yes")),
            ("sleep", "nap"),
        ]
        by_name = {wait.name: wait for wait in waits_now}
        assert by_name["yes"].key == by_name["no"].key == "decision"
        deadline = by_name["second"].deadline
        assert deadline is not None
        assert (deadline - by_name["second"].since).total_seconds() == pytest.approx(5000, abs=1)
        assert (by_name["nap"].deadline, by_name["yes"].deadline) != (None, deadline)
        await engine.cancel(handle.run_id)
        await backend.until(engine, handle.run_id, State.CANCELLED)
        assert await engine.open_waits(handle.run_id) == []


async def test_the_names_of_waits_are_those_of_the_signals_in_branches_and_again(backend: Backend) -> None:
    @workflow
    async def twice(ctx: Context) -> None:
        left = ctx.branch("left")
        await left.wait_for("approval")
        await left.wait_for("approval")

    async with backend.engine(twice) as engine:
        handle = await engine.trigger(twice)
        await _parked(engine, handle.run_id, 1)
        await engine.signal(handle.run_id, "approval", None)
        asking = partial(engine.open_waits, handle.run_id)
        found = await eventually(asking, lambda waits: [wait.key for wait in waits] == ["left/approval#2"])
        assert names(found) == [("signal", "approval")]


async def test_open_waits_of_a_run_that_is_not_there_is_an_error(backend: Backend) -> None:
    async with backend.engine().client() as engine:
        with pytest.raises(RunNotFound):
            await engine.open_waits("018f0000-0000-7000-8000-000000000000")
        with pytest.raises(InvalidArgument, match="UUIDv7"):
            await engine.open_waits("what")


async def _parked(engine: Engine, run_id: str, waits: int) -> None:
    await eventually(partial(engine.open_waits, run_id), lambda found: len(found) >= waits)


# -- the census -----------------------------------------------------------------------------------


async def test_the_census_counts_what_has_not_ended(backend: Backend) -> None:
    async with backend.engine(order).client() as engine:
        for value in range(3):
            await engine.trigger(order, value)
        first = await engine.trigger(order, 9)
        assert await engine.tick(first.run_id) is State.WAITING
        census = await engine.census()
        assert dict(census.runs) == {("order", State.PENDING): 3, ("order", State.WAITING): 1}
        assert census.queues["default"].ready == 3


# -- ticks ----------------------------------------------------------------------------------------


async def test_a_tick_advances_one_run_until_it_rests(backend: Backend) -> None:
    async with backend.engine(order).client() as engine:
        handle, other = await engine.trigger(order, 1), await engine.trigger(order, 1)
        assert await engine.tick(handle.run_id) is State.WAITING
        assert await engine.tick(handle.run_id) is State.WAITING  # nothing of it is ready
        await engine.signal(handle.run_id, "approval", 10)
        assert await engine.tick(handle.run_id) is State.COMPLETED
        assert await engine.tick(handle.run_id) is State.COMPLETED
        assert await handle.result(timeout=SOON) == 13
        untouched = await engine.get_run(other.run_id)
        assert (untouched.state, untouched.claim) == (State.PENDING, 0)
        assert await engine.workers() == []


async def test_a_tick_leaves_children_and_sleeps_to_others(backend: Backend) -> None:
    @workflow
    async def child(ctx: Context) -> int:
        return 7

    @workflow
    async def parent(ctx: Context) -> int:
        value = await ctx.call("child", child)
        await ctx.sleep("nap", timedelta(days=1))
        return value

    async with backend.engine(parent, child).client() as engine:
        handle = await engine.trigger(parent)
        assert await engine.tick(handle.run_id) is State.WAITING
        (one,) = (await engine.list_runs(parent=handle.run_id)).items
        assert one.state is State.PENDING
        assert await engine.tick(one.id) is State.COMPLETED
        assert await engine.tick(handle.run_id) is State.SLEEPING


async def test_a_tick_of_a_failing_run_ends_at_its_backoff(backend: Backend) -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise ValueError("no such card")

    @workflow
    async def failing(ctx: Context) -> None:
        await ctx.step("charge", fail, retry=Retry(max_attempts=2, initial_delay=3600.0, max_delay=3600.0))

    async with backend.engine(failing).client() as engine:
        handle = await engine.trigger(failing)
        state = await engine.tick(handle.run_id)
        assert state not in (State.FAILED, State.RUNNING)
        assert len(calls) == 1
        assert (await engine.get_run(handle.run_id)).owner is None


async def test_a_tick_keeps_a_pause_a_limit_and_another_worker(backend: Backend) -> None:
    running, go_on = asyncio.Event(), asyncio.Event()

    @workflow
    async def held(ctx: Context) -> None:
        async def wait() -> None:
            running.set()
            await go_on.wait()

        await ctx.step("wait", wait)

    async with backend.engine(held, order) as worker, backend.engine(held, order).client() as engine:
        handle = await worker.trigger(held)
        await asyncio.wait_for(running.wait(), SOON)
        assert await engine.tick(handle.run_id) is State.RUNNING
        assert (await engine.get_run(handle.run_id)).claim == 1
        go_on.set()
        await backend.result(worker, handle)
    async with backend.engine(order).client() as engine:
        paused = await engine.trigger(order, 1)
        await engine.pause(paused.run_id)
        assert await engine.tick(paused.run_id) is State.PAUSED
        await engine.set_limits(Queue("narrow", concurrency=1))
        ids = [(await engine.trigger(order, n, queue="narrow")).run_id for n in range(2)]
        assert [await engine.tick(run_id) for run_id in ids] == [State.WAITING, State.WAITING]  # a place at a time


async def test_a_cancelled_run_is_undone_by_a_tick(backend: Backend) -> None:
    undone: list[int] = []

    @workflow
    async def careful(ctx: Context) -> None:
        await ctx.step("hold", add, 1, compensate=undone.append)
        await ctx.wait_for("approval")

    async with backend.engine(careful).client() as engine:
        handle = await engine.trigger(careful)
        assert await engine.tick(handle.run_id) is State.WAITING
        await engine.cancel(handle.run_id)
        assert await engine.tick(handle.run_id) is State.CANCELLED
        assert undone == [2]


async def test_what_cannot_be_ticked_is_a_typed_error(backend: Backend) -> None:
    async with backend.engine(order).client() as engine:
        handle = await engine.trigger(order, 1)
        with pytest.raises(RunNotFound):
            await engine.tick("018f0000-0000-7000-8000-000000000000")
        with pytest.raises(InvalidArgument, match="UUIDv7"):
            await engine.tick("ORD-1")
    async with backend.engine().client() as stranger:
        with pytest.raises(UnknownWorkflow, match="order"):
            await stranger.tick(handle.run_id)
    with pytest.raises(ConfigurationError, match="not running"):
        await backend.engine(order).tick(handle.run_id)


async def test_a_tick_while_the_store_is_away_is_an_error() -> None:
    away = GoesDown(MemoryStore())
    async with Engine(away.store, workflows=[order]).client() as engine:
        handle = await engine.trigger(order, 1)
        away.down = True
        with pytest.raises(StoreUnavailable):
            await engine.tick(handle.run_id)
        away.down = False
        assert await engine.tick(handle.run_id) is State.WAITING


async def test_a_tick_that_is_given_up_gives_the_run_back(backend: Backend) -> None:
    running = asyncio.Event()

    @workflow
    async def stuck(ctx: Context) -> None:
        async def wait() -> None:
            running.set()
            await asyncio.Event().wait()

        await ctx.step("wait", wait)

    async with backend.engine(stuck, drain_timeout=0.05).client() as engine:
        handle = await engine.trigger(stuck)
        tick = asyncio.create_task(engine.tick(handle.run_id))
        await asyncio.wait_for(running.wait(), SOON)
        tick.cancel()
        with pytest.raises(asyncio.CancelledError):
            await tick
        run = await engine.get_run(handle.run_id)
        assert (run.state, run.owner, run.takeovers) == (State.PENDING, None, 0)


# -- tokens ---------------------------------------------------------------------------------------


async def test_a_token_is_shown_once_and_found_by_its_secret(backend: Backend) -> None:
    async with backend.engine().client() as engine, backend.engine().client() as other:
        new = await engine.create_token("ci", ["read", Scope.TRIGGER])
        assert re.fullmatch(r"durable_[\w-]{43}", new.secret)
        assert new.secret not in repr(new)
        (stored,) = await other.tokens()
        assert (stored.name, set(stored.scopes), stored.expires_at) == ("ci", {Scope.READ, Scope.TRIGGER}, None)
        assert new.secret not in repr(stored)
        assert await other.find_token(new.secret) == stored
        for wrong in ("", new.secret[:-1], new.secret + "x", new.secret.upper(), "durable_", "\udcff", "\0"):
            assert await other.find_token(wrong) is None
        assert await other.revoke_token("ci")
        assert await engine.find_token(new.secret) is None
        assert not await engine.revoke_token("ci")
        assert await engine.tokens() == []


async def test_two_secrets_are_never_the_same(backend: Backend) -> None:
    async with backend.engine().client() as engine:
        secrets = {(await engine.create_token(f"t{n}", ["read"])).secret for n in range(20)}
        assert len(secrets) == 20


async def test_a_token_expires(backend: Backend) -> None:
    async with backend.engine().client() as engine:
        now = backend.now()
        soon = await engine.create_token("soon", ["read"], expires=timedelta(seconds=0.3))
        later = await engine.create_token("later", ["read"], expires=now + timedelta(days=1))
        assert await engine.find_token(later.secret) is not None
        if backend.clock is not None:
            assert await engine.find_token(soon.secret) is not None
            backend.clock.advance(timedelta(seconds=0.3))
        await eventually(partial(engine.find_token, soon.secret), lambda token: token is None)
        assert await engine.find_token(later.secret) is not None
        assert [token.name for token in await engine.tokens()] == ["later", "soon"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "", "scopes": ["read"]}, "empty"),
        ({"name": "a/b", "scopes": ["read"]}, "reserved"),
        ({"name": "ci", "scopes": []}, "needs a scope"),
        ({"name": "ci", "scopes": "read"}, "must be a list"),
        ({"name": "ci", "scopes": ["reed"]}, "'reed'.*read, read:payload, trigger, operate, admin"),
        ({"name": "ci", "scopes": ["read"], "expires": datetime(2100, 1, 1)}, "no time zone"),  # noqa: DTZ001
        ({"name": "ci", "scopes": ["read"], "expires": timedelta(seconds=-1)}, "future"),
        ({"name": "taken", "scopes": ["read"]}, "already"),
    ],
    ids=["no name", "name", "no scope", "text", "scope", "naive", "past", "taken"],
)
async def test_a_token_that_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    async with Engine("memory://").client() as engine:
        await engine.create_token("taken", ["read"])
        with pytest.raises(InvalidArgument, match=message):
            await engine.create_token(**arguments)
        assert len(await engine.tokens()) == 1


# -- diagnose and repair --------------------------------------------------------------------------


async def test_a_healthy_system_has_only_good_findings(backend: Backend) -> None:
    async with backend.engine(order) as engine:
        handle = await engine.trigger(order, 1)
        await backend.until(engine, handle.run_id, State.WAITING)
        findings = await engine.diagnose()
        wrong = [one for one in findings if one.severity != "ok" and one.check != "durability"]  # tests do not sync
        assert wrong == []
        assert [one.check for one in findings][:2] == ["connectivity", "schema"]
        assert await engine.repair() == []


async def test_runs_that_nobody_works_on_are_a_finding(backend: Backend) -> None:
    async with backend.engine(order).client() as engine:
        await engine.trigger(order, 1)
        (finding,) = [one for one in await engine.diagnose() if one.check == "workers"]
        assert (finding.severity, finding.count) == ("warning", 1)
        assert "durable worker" in finding.remedy


async def test_diagnose_needs_no_running_engine(backend: Backend) -> None:
    engine = backend.engine(order)
    await engine.migrate()
    assert [one.check for one in await engine.diagnose() if one.severity == "error" and one.check != "durability"] == []
    assert await engine.repair() == []
    with pytest.raises(ConfigurationError, match="not running"):
        await engine.workers()


async def test_a_store_that_does_not_answer_is_a_finding() -> None:
    (finding,) = await Engine("postgresql://user:s3cret@127.0.0.1:9/none").diagnose()
    assert (finding.check, finding.severity) == ("connectivity", "error")
    assert finding.remedy
    assert "s3cret" not in str(finding)
    with pytest.raises(StoreUnavailable):
        await Engine("postgresql://user:s3cret@127.0.0.1:9/none").repair()


# -- the meter ------------------------------------------------------------------------------------


class Noted:
    """A meter that keeps what it is told."""

    def __init__(self) -> None:
        self.claims: list[tuple[float, int]] = []
        self.commits: list[tuple[float, int]] = []
        self.renewals: list[bool] = []
        self.steps: list[tuple[str, str, bool]] = []
        self.durations: list[float] = []

    def claimed(self, seconds: float, runs: int) -> None:
        self.claims.append((seconds, runs))

    def committed(self, seconds: float, writes: int) -> None:
        self.commits.append((seconds, writes))

    def renewed(self, ok: bool) -> None:
        self.renewals.append(ok)

    def step(self, workflow: str, name: str, seconds: float, failed: bool) -> None:
        self.steps.append((workflow, name, failed))
        self.durations.append(seconds)


async def test_a_meter_hears_of_claims_commits_and_steps(backend: Backend) -> None:
    calls: list[int] = []

    def flaky() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("again")

    def refuse() -> None:
        raise ValueError("no")

    @workflow
    async def measured(ctx: Context) -> None:
        await ctx.step("hold", add, 1, compensate=add)
        left = ctx.branch("left")
        await left.step("inner", add, 1)
        await left.step("inner", add, 1)
        await ctx.map("many", add, [1, 2])
        await ctx.step("flaky", flaky, retry=Retry(max_attempts=2, initial_delay=0.0))
        await ctx.step("refuse", refuse)

    engine, meter = backend.engine(measured), Noted()
    engine.meter = meter
    async with engine:
        with pytest.raises(InvalidArgument, match="before the engine starts"):
            engine.meter = None
        handle = await engine.trigger(measured)
        await backend.ended(engine, handle)
    assert [(name, failed) for _, name, failed in meter.steps] == [
        *(("hold", False), ("inner", False), ("inner", False), ("many", False), ("many", False)),
        *(("flaky", True), ("flaky", False), ("refuse", True), ("hold/undo", False)),
    ]
    assert {one for one, _, _ in meter.steps} == {"measured"}
    assert sum(runs for _, runs in meter.claims) >= 1
    assert sum(writes for _, writes in meter.commits) >= 1
    measured_times = [*meter.durations, *(seconds for seconds, _ in (*meter.claims, *meter.commits))]
    assert all(0 <= seconds < SOON for seconds in measured_times)


async def test_a_meter_hears_of_renewals_and_of_those_that_failed() -> None:
    store, meter = BadRenewals(MemoryStore(), misses=1), Noted()
    engine = Engine(store.store, workflows=[order])
    engine.worker_options = engine.worker_options.replaced(lease=0.9)
    engine.meter = meter
    async with engine:
        await eventually(engine.workers, lambda _: len(meter.renewals) >= 3)
    assert meter.renewals[:3] == [False, True, True]
