"""Any mix of what can happen to runs, against a small model of what must come of it.

The machine triggers runs, lets their steps and compensations succeed or fail, lets time pass, asks what operators ask,
and takes workers' leases away; the old workers stay, as zombies whose steps still end. After every rule the engine
comes to rest, and then each run is in the state that the model says, the calls that are open are those that the model
says, and nothing that was recorded has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from durable import Context, Engine, Retry, RunFinished, State, WorkerOptions, Workflow, workflow
from durable.model import Record
from durable.testing import MemoryStore, VirtualClock

T = TypeVar("T")

NAP, BACKOFF, DELAY = 10.0, 5.0, 20.0
CRASHES = 5
"""Takeovers without a new record that make a dead letter."""

Op = Literal["step", "free", "stubborn", "nap", "rollback", "return", "raise"]
COMPENSABLE = ("step", "stubborn")
PLANS = st.lists(st.sampled_from(["step", "step", "free", "stubborn", "nap", "rollback"]), min_size=1, max_size=5)


@dataclass
class Model:
    """One run as it has to be: no clock, no store, no asyncio.

    ``call`` is the key of the one call that is open; ``due`` when time alone moves the run.
    """

    plan: list[Op]
    run_attempts: int
    due: datetime | None
    state: State = State.PENDING
    call: str | None = None
    started: bool = False
    undoing: bool = False
    pausing: bool = False  # a pause is asked for, and a call is open
    cancelled: bool = False
    attempt: int = 1
    takeovers: int = 0
    position: int = 0
    done: set[int] = field(default_factory=set[int])  # steps that succeeded, and naps that are over
    naps: dict[int, datetime] = field(default_factory=dict[int, datetime])
    undone: set[int] = field(default_factory=set[int])
    not_undone: set[int] = field(default_factory=set[int])

    @property
    def ended(self) -> bool:
        return self.state in (State.COMPLETED, State.FAILED, State.COMPENSATED, State.CANCELLED, State.DEAD_LETTER)

    def go(self, now: datetime) -> None:
        """A worker has it: up to the next call, the next wait, or the end."""
        self.started, self.call, self.due = True, None, None
        if self.undoing:
            self._undo()
            return
        self.state = State.RUNNING
        for position, op in enumerate(self.plan):
            self.position = position
            if op in ("rollback", "return", "raise") or self.position in self.done:
                continue
            if self.cancelled:
                self._fail()
            elif op == "nap":
                if self.position not in self.naps:
                    self.takeovers = 0
                due = self.naps.setdefault(self.position, now + timedelta(seconds=NAP))
                if due <= now and not self.pausing:
                    self.takeovers = 0
                    self.done.add(self.position)
                    continue
                self._rest(State.SLEEPING, due)
            elif self.pausing:
                self._rest(State.PAUSED, None)
            else:
                self.call = f"{self.position}"
            return
        if self.plan[-1] == "return" and not self.cancelled:
            self._end(State.COMPLETED)
        elif self.attempt < self.run_attempts and not self.cancelled:
            self._try_again(now)
        else:
            self._fail()

    def _rest(self, state: State, due: datetime | None) -> None:
        self.state, self.due = (State.PAUSED, None) if self.pausing else (state, due)
        self.pausing = False

    def _try_again(self, now: datetime) -> None:
        self.attempt += 1
        self.takeovers = 0
        self._rest(State.PENDING, now + timedelta(seconds=BACKOFF))

    def _end(self, state: State) -> None:
        self.state, self.call, self.due, self.pausing = state, None, None, False

    def _registered(self) -> list[int]:
        """What is to be undone, the first first; and what was done but is out of reach counts as not undone."""
        before = range(self.position)
        self.not_undone |= {n for n in self.done if n >= self.position and self.plan[n] in COMPENSABLE}
        return [n for n in before if self.plan[n] in (*COMPENSABLE, "rollback")]

    def _fail(self) -> None:
        if self._registered() or self.not_undone:
            self.undoing = True
            self._undo()
        else:
            self._end(State.CANCELLED if self.cancelled else State.FAILED)

    def _undo(self) -> None:
        self.state, self.call = State.COMPENSATING, None
        for number in reversed(self._registered()):
            if number not in self.undone | self.not_undone:
                if self.pausing:
                    self._rest(State.PAUSED, None)
                else:
                    self.call = f"{number}/undo"
                return
        if self.not_undone:
            self._end(State.FAILED)
        else:
            self._end(State.CANCELLED if self.cancelled else State.COMPENSATED)

    def ends(self, now: datetime, *, well: bool) -> None:
        """The open call has ended."""
        assert self.call is not None
        number = int(self.call.partition("/")[0])
        self.takeovers = 0
        if self.undoing:
            (self.undone if well else self.not_undone).add(number)
            self._undo()
        elif well:
            self.done.add(number)
            self.go(now)
        elif self.plan[number] == "stubborn":
            self.call, self.state, self.pausing = None, State.PAUSED, False
        elif self.attempt < self.run_attempts:
            self.call = None
            self._try_again(now)
        else:
            self.call = None
            self._fail()

    def passes(self, now: datetime) -> None:
        if self.due is not None and self.due <= now:
            self.go(now)

    def cancel(self, now: datetime) -> bool:
        if self.ended:
            return False
        if not self.started:
            self._end(State.CANCELLED)
            return True
        if self.cancelled:
            return True
        self.cancelled, self.pausing, self.takeovers = True, False, 0
        if not (self.undoing and self.call):
            self.go(now)
        return True

    def pause(self) -> bool:
        if self.ended or self.cancelled or self.state is State.PAUSED:
            return False
        if self.call is None:
            self.state, self.due = State.PAUSED, None
        elif not self.pausing:
            self.pausing = True
            self.takeovers = 0
        return True

    def resume(self, now: datetime) -> bool:
        if self.state is State.PAUSED:
            self.go(now)
        elif self.pausing:
            self.pausing = False
        else:
            return False
        return True

    def retry(self, now: datetime) -> bool:
        if self.state not in (State.FAILED, State.DEAD_LETTER):
            return False
        self.done -= self.undone
        self.undone, self.not_undone = set(), set()
        self.undoing = self.cancelled = False
        self.takeovers = 0
        self.go(now)
        return True

    def retry_compensation(self, now: datetime, failed: set[int]) -> bool:
        if self.state is not State.FAILED or not failed:
            return False
        self.not_undone = set()
        self.takeovers = 0
        self.go(now)
        return True

    def crash(self, now: datetime) -> None:
        if self.call is None:
            return
        self.takeovers += 1
        if self.takeovers == CRASHES:
            self._end(State.DEAD_LETTER)
        elif self.pausing:
            self.call, self.state, self.pausing = None, State.PAUSED, False
        else:
            self.go(now)


@dataclass(eq=False)
class Call:
    """A user function that waits for the machine to say how it ends."""

    generation: int
    run_id: str
    key: str
    answer: asyncio.Future[None]


class Lifecycle(RuleBasedStateMachine):
    """The engine, driven beside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = VirtualClock()
        self.store = MemoryStore(clock=self.clock)
        self.models: dict[str, Model] = {}
        self.calls: list[Call] = []
        self.engines: list[Engine] = []
        self.written: dict[tuple[str, int], Record] = {}
        self.linger = 0.0
        self.asked = 0

    # -- driving ----------------------------------------------------------------------------------

    @initialize(linger=st.sampled_from([0.0, 60.0]))
    def begins(self, linger: float) -> None:
        self.linger = linger
        self.run(self.boot())

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        async def settled() -> T:
            answer = await coroutine
            await self.settle()
            return answer

        return self.loop.run_until_complete(settled())

    async def settle(self) -> None:
        """Pass through the loop until nothing in it is left to do: time is virtual, and nothing here uses a thread."""
        while True:
            await asyncio.sleep(0)
            if not vars(self.loop)["_ready"]:
                return

    async def boot(self) -> None:
        generation = len(self.engines)
        engine = Engine(
            self.store,
            workflows=[self.flow("once", None), self.flow("twice", Retry(2, "fixed", initial_delay=BACKOFF))],
            services={"generation": generation},
            worker=WorkerOptions(lease=600, linger=self.linger, drain_timeout=0),
        )
        self.engines.append(engine)
        await engine.start()

    def flow(self, name: str, retry: Retry | None) -> Workflow[list[str], None]:
        @workflow(name=name, retry=retry)
        async def follows(ctx: Context, plan: list[str]) -> None:
            call = partial(self.called, ctx.services["generation"], ctx.run_id)

            def undo(key: str) -> Callable[[None], Coroutine[Any, Any, None]]:
                async def undone(_: None) -> None:  # no lambda: that would be called in a thread, which takes time
                    await call(f"{key}/undo")

                return undone

            for number, op in enumerate(plan):
                if op == "rollback":
                    ctx.on_rollback(f"{number}", call, f"{number}/undo")
                elif op == "nap":
                    await ctx.sleep(f"{number}", NAP)
                elif op == "raise":
                    raise ValueError("the plan says so")
                elif op != "return":
                    await ctx.step(
                        f"{number}",
                        call,
                        f"{number}",
                        compensate=undo(f"{number}") if op in COMPENSABLE else None,
                        retry=Retry(1, on_exhausted="pause") if op == "stubborn" else None,
                    )

        return follows

    async def called(self, generation: int, run_id: str, key: str) -> None:
        call = Call(generation, run_id, key, self.loop.create_future())
        self.calls.append(call)
        try:
            await call.answer
        finally:
            self.calls.remove(call)

    @property
    def engine(self) -> Engine:
        return self.engines[-1]

    @property
    def live(self) -> list[Call]:
        return [call for call in self.calls if call.generation == len(self.engines) - 1]

    def some_run(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.models)), label="run")

    def somebody(self) -> str:
        """Somebody else each time: the same who asks again is answered as before."""
        self.asked += 1
        return f"operator {self.asked}"

    async def applies(self, request: Coroutine[Any, Any, None]) -> bool:
        try:
            await request
        except RunFinished:
            return False
        return True

    # -- rules ------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.models) < 4)
    @rule(ops=PLANS, ending=st.sampled_from(["return", "raise"]), twice=st.booleans(), delayed=st.booleans())
    def trigger(self, ops: list[Op], ending: Op, twice: bool, delayed: bool) -> None:
        plan: list[Op] = [*ops, ending]
        now = self.clock.now()
        name, delay = "twice" if twice else "once", DELAY if delayed else 0.0
        handle = self.run(self.engine.trigger(name, plan, delay=delay))
        model = Model(plan, 2 if twice else 1, now + timedelta(seconds=delay))
        model.passes(now)
        self.models[handle.run_id] = model

    @precondition(lambda self: bool(self.live))
    @rule(data=st.data(), well=st.booleans())
    def a_call_ends(self, data: st.DataObject, well: bool) -> None:
        live = sorted(self.live, key=lambda call: (call.run_id, call.key))
        call = data.draw(st.sampled_from(live), label="call")
        self.models[call.run_id].ends(self.clock.now(), well=well)
        self.run(self.answer(call, well))

    @precondition(lambda self: len(self.calls) > len(self.live))
    @rule(well=st.booleans())
    def a_call_of_a_worker_that_was_taken_for_dead_ends(self, well: bool) -> None:
        call = next(call for call in self.calls if call.generation < len(self.engines) - 1)
        self.run(self.answer(call, well))

    async def answer(self, call: Call, well: bool) -> None:
        if well:
            call.answer.set_result(None)
        else:
            call.answer.set_exception(ConnectionError("the machine says so"))

    @precondition(lambda self: bool(self.models))
    @rule(seconds=st.sampled_from([1.0, BACKOFF, NAP, DELAY]))
    def time_passes(self, seconds: float) -> None:
        async def advance() -> None:
            self.clock.advance(seconds)

        end = self.clock.now() + timedelta(seconds=seconds)
        self.run(advance())
        for model in self.models.values():
            model.passes(end)

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = self.some_run(data)
        expected = self.models[run_id].cancel(self.clock.now())
        assert self.run(self.engine.cancel(run_id, by=self.somebody())) == expected

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        run_id = self.some_run(data)
        expected = self.models[run_id].pause()
        assert self.run(self.applies(self.engine.pause(run_id, by=self.somebody()))) == expected

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        run_id = self.some_run(data)
        expected = self.models[run_id].resume(self.clock.now())
        assert self.run(self.applies(self.engine.resume(run_id, by=self.somebody()))) == expected

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        run_id = self.some_run(data)
        expected = self.models[run_id].retry(self.clock.now())
        assert self.run(self.applies(self.engine.retry(run_id, by=self.somebody()))) == expected

    @precondition(lambda self: bool(self.models))
    @rule(data=st.data())
    def retry_compensation(self, data: st.DataObject) -> None:
        run_id = self.some_run(data)
        failed = {
            int(record.key.partition("/")[0])
            for record in self.run(self.store.history(run_id))
            if record.kind == "undo" and record.failed and record.key[0] != "/"
        }
        expected = self.models[run_id].retry_compensation(self.clock.now(), failed)
        assert self.run(self.applies(self.engine.retry_compensation(run_id, by=self.somebody()))) == expected

    @precondition(lambda self: bool(self.models) and len(self.engines) < 12 and self.suspects_after_a_crash() <= 1)
    @rule()
    def a_worker_is_taken_for_dead(self) -> None:
        async def crash() -> None:
            for worker in list(self.store._workers):  # pyright: ignore[reportPrivateUsage]
                self.store.expire(worker)
            await self.store.reap(CRASHES)
            await self.boot()

        self.run(crash())
        for model in self.models.values():
            model.crash(self.clock.now())

    def suspects_after_a_crash(self) -> int:
        """A worker takes one suspect at a time; which of several goes first is not this model's question."""
        counts = (model.takeovers + (model.call is not None) for model in self.models.values() if not model.ended)
        return sum(count >= 2 for count in counts)

    # -- what holds -------------------------------------------------------------------------------

    @invariant()
    def the_runs_are_as_the_model_says(self) -> None:
        runs = {run.id: run for run in self.run(self.store.get_runs(list(self.models)))}
        for run_id, model in self.models.items():
            run = runs[run_id]
            calls = [call.key for call in self.live if call.run_id == run_id]
            assert (run.state, calls) == (model.state, [] if model.call is None else [model.call])
            assert (run.ended_at is not None) == model.ended
            if run.state is State.PAUSED:
                assert run.reason
            elif not model.ended:
                assert run.owner is not None or run.ready_at == model.due is not None

    @invariant()
    def what_is_recorded_stays_and_is_numbered_once(self) -> None:
        for run_id in self.models:
            records = self.run(self.store.history(run_id))
            assert [record.seq for record in records] == sorted({record.seq for record in records})
            counted = [record.key for record in records if record.kind == "undo" and record.key[0] != "/"]
            assert len(counted) == len(set(counted))
            for record in records:
                before = self.written.setdefault((run_id, record.seq), record)
                assert record.key.endswith(before.key)
                assert record._replace(key=before.key) == before

    def teardown(self) -> None:
        async def stop() -> None:
            for engine in self.engines:
                await engine.stop()

        self.loop.run_until_complete(stop())
        self.loop.close()


LifecycleTest = Lifecycle.TestCase
LifecycleTest.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
