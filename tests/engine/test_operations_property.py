"""Random workflows of all operations, with crashes and evictions after any commit: nothing is lost, nothing twice.

A workflow is a random tree of steps, sleeps, waits, children, fan-outs, branches and races, and follows it from a plan
that is its input. Signals and events come from outside at random points, until every run has ended. ``Crashing`` takes
the worker's lease away beside a commit; the worker goes on for some passes before it hears of that. What then holds:

* each pass of a run saw, of what was committed when it ended, the same values in the same order as the last one;
* every run ends; with signals that were all sent before, with the result that it has without crashes;
* each signal was received by one wait or is unread; each call has one child, each emit one entry in the log.

Everything follows from the seed: ``OPERATIONS_SEEDS=2000`` tries so many, ``OPERATIONS_FIRST=17`` begins there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

import pytest

from durable import ChildFailed, Context, Engine, Retry, RunFinished, StepFailed, WaitTimeout, WorkerOptions, workflow
from durable.model import Kind, Outcome, RunWrite
from durable.states import TERMINAL
from durable.stores.memory.rows import Row
from durable.testing import MemoryStore, VirtualClock
from tests.engine.backends import SOON

SEEDS = int(os.environ.get("OPERATIONS_SEEDS", "25"))
FIRST = int(os.environ.get("OPERATIONS_FIRST", "1"))

NAMES = ("a", "b", "c")
"""Of the signals and events that come from outside. A wait for another name gets only what was sent before."""

ACTIONS = 400
"""Things that happen outside, at most, until every run has ended."""


Plan = dict[str, Any]
"""One operation of a plan."""


# -- random workflows -----------------------------------------------------------------------------


class Plans:
    """Random plans: a plan is a list of operations, each a dict.

    Args:
        rng: Decides.
        fed: Every wait is for a name of its own; the signals are sent before, and what comes of it is decided.
    """

    def __init__(self, rng: Random, *, fed: bool) -> None:
        self.rng = rng
        self.fed = fed
        self.number = self.in_child = 0
        self.wanted: list[str] = []  # names of the signals to send before

    def plan(self, depth: int) -> list[dict[str, Any]]:
        return [self.operation(depth) for _ in range(self.rng.randint(1, 3 if depth < 2 else 5))]

    def operation(self, depth: int) -> dict[str, Any]:
        simple = [
            "step",
            "step",
            "flaky",
            "sleep",
            "wait",
            "wait",
            "timed wait",
            "any",
            "event",
            "emit",
            "shared",
            "map",
        ]
        deep = ["gather", "gather", "race", "call", "start", "children"] if depth else []
        kind = self.rng.choice(simple + deep)
        if self.fed and self.in_child and kind in ("wait", "any"):  # nobody can send to it before
            kind = "step"
        self.number += 1
        made: dict[str, Any] = {"kind": kind, "name": f"{kind} {self.number}"}
        if (adds := getattr(self, f"_{kind.replace(' ', '_')}", None)) is not None:
            adds(made, depth)
        return made

    def child(self, depth: int) -> list[dict[str, Any]]:
        self.in_child += 1
        made = self.plan(depth - 1)
        self.in_child -= 1
        if self.rng.random() < 0.2:
            made.append({"kind": "raise", "name": "raise"})
        return made

    def _step(self, made: dict[str, Any], _: int) -> None:
        made["fails"] = self.rng.random() < 0.2

    def _sleep(self, made: dict[str, Any], _: int) -> None:
        made["seconds"] = self.rng.choice([0, 1, 5])

    def _wait(self, made: dict[str, Any], _: int) -> None:
        made["signal"] = self._signal(made)

    def _timed_wait(self, made: dict[str, Any], _: int) -> None:
        made["signal"] = "never" if self.fed else self.rng.choice(NAMES)
        made["timeout"] = self.rng.choice([0, 2, 10])

    def _any(self, made: dict[str, Any], _: int) -> None:
        made["signals"] = [self._signal(made), "never"] if self.fed else self.rng.sample(NAMES, 2)

    def _event(self, made: dict[str, Any], _: int) -> None:
        made["topic"] = "never" if self.fed else self.rng.choice(NAMES)
        made["timeout"] = self.rng.choice([1, 6])

    def _shared(self, made: dict[str, Any], _: int) -> None:
        made["key"] = self.rng.choice("xyz")

    def _map(self, made: dict[str, Any], _: int) -> None:
        items = self.rng.randint(0, 6)
        made["fails"] = [self.rng.random() < 0.15 for _ in range(items)]
        made["collect"] = self.fed or self.rng.random() < 0.5
        made["concurrency"] = self.rng.choice([1, 2, 10])

    def _gather(self, made: dict[str, Any], depth: int) -> None:
        made["plans"] = [self.plan(depth - 1) for _ in range(self.rng.randint(2, 3))]

    def _race(self, made: dict[str, Any], depth: int) -> None:
        self._gather(made, depth)
        if self.fed:  # who wins would depend on the passes
            made["kind"] = "gather"

    def _call(self, made: dict[str, Any], depth: int) -> None:
        made["plan"] = self.child(depth)

    _start = _call

    def _children(self, made: dict[str, Any], depth: int) -> None:
        made["plans"] = [self.child(depth) for _ in range(self.rng.randint(1, 4))]
        made["collect"] = self.fed or self.rng.random() < 0.5
        made["concurrency"] = self.rng.choice([1, 2, 10])

    def _signal(self, made: dict[str, Any]) -> str:
        if not self.fed:
            return self.rng.choice(NAMES)
        self.wanted.append(f"for {made['name']}")
        return self.wanted[-1]


@dataclass
class Pass:
    """One execution of a workflow function from its beginning."""

    noted: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])  # record key, value
    committed: set[str] | None = None  # the record keys there were when a crash ended it; None: no crash did


class Follower:
    """The workflow that follows plans, and what its runs saw."""

    def __init__(self) -> None:
        self.passes: dict[str, list[Pass]] = {}
        self.flaked: set[str] = set()

        @workflow(name="follows")
        async def follows(ctx: Context, plan: Any) -> Any:
            here = Pass()
            self.passes.setdefault(ctx.run_id, []).append(here)
            return await self.follow(ctx, "", plan, here)

        self.workflow = follows

    async def follow(self, ctx: Context, prefix: str, plan: list[Plan], here: Pass) -> list[Any]:
        values: list[Any] = []
        for operation in plan:
            record, value = await self.operate(ctx, prefix, operation, here)
            if record:
                here.noted.append((f"{prefix}{record}", value))
            values.append(value)
        return values

    async def operate(self, ctx: Context, prefix: str, op: Plan, here: Pass) -> tuple[str, Any]:
        """The key of the record that stands for the result, if one does, and the result."""
        name, key = op["name"], op["name"]
        match op["kind"]:
            case "step":
                return key, await failing(ctx.step(name, self.effect, name, op["fails"]))
            case "flaky":
                retry = Retry(5, "fixed", initial_delay=3)
                return key, await ctx.step(name, self.flaky, f"{ctx.run_id}/{prefix}{name}", retry=retry)
            case "shared":
                return key, await ctx.step(name, self.effect, op["key"], False, idempotency_key=op["key"])
            case "sleep":
                await ctx.sleep(name, op["seconds"])
                return f"{key}/woke", None
            case "raise":
                raise ValueError("the plan says so")
            case "emit":
                await ctx.emit(name, name)
                return key, None
            case "gather":
                return "", list(await asyncio.gather(*self.sides(ctx, prefix, op, here)))
            case "race":
                return "", await race([asyncio.ensure_future(side) for side in self.sides(ctx, prefix, op, here)])
            case "map":
                fails: list[bool] = op["fails"]
                items = list(enumerate(fails))
                return key, await failing(ctx.map(name, self.item, items, **how(op)))
            case "children":
                return key, await failing(ctx.map(name, self.workflow, op["plans"], **how(op)))
            case "call":
                return f"{key}/woke", await failing(ctx.call(name, self.workflow, op["plan"]))
            case "start":
                child = await ctx.start(name, self.workflow, op["plan"])
                await ctx.step(f"beside {name}", self.effect, "beside", False)
                return f"{key}/woke", await failing(child.result())
            case "any":
                return f"{key}/woke", await failing(ctx.wait_for_any(name, dict.fromkeys(op["signals"], Any)))
            case "event":
                event = ctx.branch(name).wait_for_event(op["topic"], timeout=op["timeout"])
                return f"{key}/{op['topic']}/woke", await failing(event)
            case _:
                wait = ctx.branch(name).wait_for(op["signal"], timeout=op.get("timeout"))
                return f"{key}/{op['signal']}/woke", await failing(wait)

    def sides(self, ctx: Context, prefix: str, op: Plan, here: Pass) -> Iterator[Coroutine[Any, Any, Any]]:
        for number, plan in enumerate(op["plans"]):
            side = f"{op['name']} {number}"
            yield self.follow(ctx.branch(side), f"{prefix}{side}/", plan, here)

    async def effect(self, name: str, fails: bool) -> str:
        for _ in range(len(name) % 4):
            await asyncio.sleep(0)
        if fails:
            raise ValueError(name)
        return f"did {name}"

    async def flaky(self, key: str) -> str:
        if key not in self.flaked:
            self.flaked.add(key)
            raise ConnectionError("the first time")
        return "did it"

    async def item(self, item: tuple[int, bool]) -> str:
        number, fails = item
        return await self.effect("x" * number, fails)


async def failing(result: Awaitable[Any]) -> Any:
    """The result, or which failure it was."""
    try:
        found = await result
    except (StepFailed, ChildFailed, WaitTimeout) as error:
        return type(error).__name__
    if not isinstance(found, list | tuple):
        return found
    values = cast("Iterable[Any]", found)  # of a fan-out, or the name and the payload of a signal
    return [type(one).__name__ if isinstance(one, Exception) else one for one in values]


async def race(sides: list[asyncio.Future[Any]]) -> list[Any]:
    """What those have come to that ended first; the others are cancelled."""
    await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
    ended = [side.result() if side.done() else None for side in sides]
    for side in sides:
        side.cancel()
    await asyncio.gather(*sides, return_exceptions=True)
    return ended


def how(op: Plan) -> dict[str, Any]:
    return {"concurrency": op["concurrency"], "on_error": "collect" if op["collect"] else "raise"}


# -- the world outside ----------------------------------------------------------------------------


class Crashing(MemoryStore):
    """Takes the worker's lease away beside some of its commits.

    Args:
        rng: Decides which.
        often: How many of them, 0 to 1.
        before: Also before a commit, which is refused then; else only after it.
        crashed: Called after each.
    """

    def __init__(
        self, clock: VirtualClock, rng: Random, often: float, *, before: bool, crashed: Callable[[], None]
    ) -> None:
        super().__init__(clock=clock)
        self._rng = rng
        self._often = often
        self._before = before
        self._crashed = crashed

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        progress = any(write.records or write.change for write in writes)  # else it could crash there for ever
        crash = self._rng.random() < min(self._often, 1.0 if progress else 0.3)
        if crash and self._before and self._rng.random() < 0.3:
            await self._crash(worker)
            return await super().commit(worker, writes)
        outcomes = await super().commit(worker, writes)
        if crash:
            await self._crash(worker)
        return outcomes

    async def _crash(self, worker: str) -> None:
        self.expire(worker)
        await self.reap(limit=10**6)
        self._crashed()

    @property
    def rows(self) -> dict[str, Row]:
        return self._rows


class World:
    """One plan, executed from beginning to end.

    Args:
        seed: Of all that is random outside.
        often: Of the crashes.
        linger: Of the worker.
        wanted: Names of the signals that are sent before; without any, they come at random.
    """

    def __init__(self, seed: int, often: float, linger: float, wanted: Sequence[str]) -> None:
        self.rng = Random(f"{seed} {often} {linger}")
        self.clock = VirtualClock()
        self.follower = Follower()
        self.wanted = wanted
        self.store = Crashing(self.clock, self.rng, often, before=often < 1, crashed=self.crashed)
        options = WorkerOptions(lease=600, linger=linger, drain_timeout=0, poll_interval=30)
        self.engine = Engine(self.store, workflows=[self.follower.workflow], worker=options)
        self.sent: dict[str, dict[int, str]] = {}  # run id → number → name
        self.number = 0

    def crashed(self) -> None:
        """The worker hears of it some passes later."""
        for run_id, passes in self.follower.passes.items():
            for one in passes:
                if one.committed is None:
                    one.committed = set(self.store.rows[run_id].records)
        worker, lost = self.engine._worker, self.store  # pyright: ignore[reportPrivateUsage]
        assert worker is not None
        gone = worker.id

        def hears(passes: int) -> None:
            if passes:
                asyncio.get_running_loop().call_soon(hears, passes - 1)
            elif worker.id == gone:
                worker._lease_lost()  # pyright: ignore[reportPrivateUsage]

        assert lost is self.store
        hears(self.rng.randint(0, 25))

    async def end(self, plan: list[Plan]) -> Row:
        """The run that follows the plan, once it and all its children have ended."""
        async with self.engine.client() as client:
            run_id = (await client.trigger(self.follower.workflow, plan)).run_id
            for name in self.wanted:
                await self.signal(run_id, name)
        async with self.engine:
            for _ in range(ACTIONS):
                await self.rests()
                if all(row.state in TERMINAL for row in self.store.rows.values()):
                    return self.store.rows[run_id]
                await self.happens()
        states = Counter(row.state for row in self.store.rows.values())
        raise AssertionError(f"not all runs have ended: {states}")

    async def rests(self) -> None:
        if self.rng.random() < 0.7:
            async with asyncio.timeout(SOON):
                await self.engine.run_until_idle()
        else:
            for _ in range(self.rng.randint(0, 40)):
                await asyncio.sleep(0)

    async def happens(self) -> None:
        """Time passes, or something is sent."""
        due = self.clock.next_due()
        if due is not None and (self.wanted or self.rng.random() < 0.4):
            self.clock.set(due)
        elif not self.wanted:
            self.number += 1
            if self.rng.random() < 0.2:
                await self.engine.publish(self.rng.choice(NAMES), self.number)
            else:
                alive = [run_id for run_id, row in self.store.rows.items() if row.state not in TERMINAL]
                with suppress(RunFinished):
                    await self.signal(self.rng.choice(alive), self.rng.choice(NAMES))

    async def signal(self, run_id: str, name: str) -> None:
        self.number += 1
        await self.engine.signal(run_id, name, self.number)
        self.sent.setdefault(run_id, {})[self.number] = name


# -- what holds -----------------------------------------------------------------------------------


def passes_agree(world: World) -> None:
    for run_id, passes in world.follower.passes.items():
        last = passes[-1].noted
        assert len({key for key, _ in last}) == len(last)
        order = {key: number for number, (key, _) in enumerate(last)}
        for one in passes[:-1]:
            keys = set(order) if one.committed is None else one.committed
            seen = [entry for entry in one.noted if entry[0] in keys]
            assert sorted(seen, key=lambda entry: order[entry[0]]) == seen, f"{run_id}: another order"
            assert seen == [entry for entry in last if entry in seen], f"{run_id}: other values"


def signals_are_received_once(world: World) -> None:
    for run_id, row in world.store.rows.items():
        received = [
            value[1] if key.startswith("any") or "/any " in key else value
            for key, value in world.follower.passes[run_id][-1].noted
            if _is_wait(key) and value != "WaitTimeout"
        ]
        assert len(set(received)) == len(received)
        sent = world.sent.get(run_id, {})
        consumed = {int(row.inbox[one].data) for one in row.consumed if row.inbox[one].name in {*NAMES, *world.wanted}}
        assert set(received) == consumed <= set(sent)
        assert {int(one.data) for one in row.unread() if one.name in {*NAMES, *world.wanted}} == set(sent) - consumed


def _is_wait(key: str) -> bool:
    kinds = [part.rpartition(" ")[0] for part in key.split("/")]
    return "wait" in kinds or "timed wait" in kinds or "any" in kinds


def children_and_emits_exist_once(world: World) -> None:
    rows = world.store.rows.values()
    calls = [
        (row.new.id, record.key, record.data)
        for row in rows
        for record in row.records.values()
        if record.kind is Kind.CALL
    ]
    made = [(row.new.parent, row.new.parent_key, row.new.id) for row in rows if row.new.parent is not None]
    assert sorted(map(str, calls)) == sorted(map(str, made))
    emits = [(row.new.id, one.key) for row in rows for one in row.records.values() if one.kind is Kind.EMIT]
    logged = [(entry.run_id, entry.key) for _, entry in world.store._emitted]  # pyright: ignore[reportPrivateUsage]
    assert sorted(logged) == sorted(emits)


def numbered_once(world: World) -> None:
    for row in world.store.rows.values():
        seqs = [record.seq for record in row.records.values()]
        assert len(set(seqs)) == len(seqs)


async def checked(seed: int, *, fed: bool, often: float, linger: float) -> str | None:
    """The result of the plan of this seed, with so many crashes."""
    plans = Plans(Random(seed), fed=fed)
    plan = plans.plan(2)
    world = World(seed, often, linger, plans.wanted)
    root = await world.end(plan)
    for holds in (passes_agree, signals_are_received_once, children_and_emits_exist_once, numbered_once):
        holds(world)
    return root.result


@pytest.fixture(autouse=True)
def no_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one time here that is the host's: a run with several tasks is parked a little later."""
    monkeypatch.setattr("durable.execution._GRACE", 0.0)


CRASHES = [(1.0, 0.0), (0.3, 0.0), (0.0, 0.0), (0.3, 60.0)]
"""How often, and the linger. Without either each pass ends when the run parks."""


@pytest.mark.parametrize(("often", "linger"), CRASHES, ids=str)
async def test_P11_what_was_sent_before_leads_to_the_result_without_crashes(often: float, linger: float) -> None:
    for seed in range(FIRST, FIRST + SEEDS):
        print(f"seed {seed}")
        expected = await checked(seed, fed=True, often=0.0, linger=60.0)
        assert await checked(seed, fed=True, often=often, linger=linger) == expected
        assert expected is not None
        json.loads(expected)


@pytest.mark.parametrize(("often", "linger"), CRASHES, ids=str)
async def test_P31_whatever_comes_at_whatever_moment_is_received_once(often: float, linger: float) -> None:
    for seed in range(FIRST, FIRST + SEEDS):
        print(f"seed {seed}")
        await checked(seed, fed=False, often=often, linger=linger)
