"""One run in one process: from its claim until it has ended, is parked, or is given back.

It drives the replay core: it waits where the core says wait, calls user functions, and writes what the core
records. The rules it keeps:

* Nothing with an effect starts before the commit of what came before it: each attempt passes the gate. The value
  itself is handed on before, so that the last record and the completion share a commit.
* As soon as nothing executes, the run is parked: the lease goes back, the slot is free. The coroutine stays in
  memory for the linger and goes on there if this worker claims the run again before anybody else.
* Unwinding is cancellation, of the workflow's task and of every open operation in whatever task it stands.
  While it lasts every operation raises ``CancelledError`` again; what the function returns or raises is ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from random import Random, random
from typing import Any, NoReturn

from durable import failures, states
from durable.committer import Pending
from durable.compensation import Compensations, undo_of
from durable.errors import DurableError, PayloadError, StepFailed
from durable.host import Host
from durable.model import Change, ClaimedRun, Failure, Kind, Outcome, Record, RunWrite, State
from durable.pulse import Pulse
from durable.replay import Operation, Replay
from durable.steps import UNWIND, Call, CurrentStep, invoke, log_abandoned

_log = logging.getLogger("durable.execution")

_GRACE = 0.02
"""Seconds for which a run with several tasks rests before it is parked. Wake-ups between tasks take several
passes of the loop, and nothing shows from outside which task the next one will wake."""


class Execution:
    """The life of a claimed run in this process.

    Args:
        claimed: What the claim returned.
        host: The worker.
    """

    def __init__(self, claimed: ClaimedRun, host: Host) -> None:
        self.run = claimed.run
        self.ref = claimed.ref
        self.core = Replay(claimed.records or (), claimed.run.started_at or claimed.run.created_at)
        self.state = claimed.run.state
        self.stopped = False
        """The workflow function may start nothing any more: it has ended, or is being unwound."""
        self._wakes = claimed.wakes
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(self.core, host.clock, self._loop, self._rested)
        self._main: asyncio.Task[Any] | None = None  # the workflow function, later the compensations
        self._encode_result: Callable[[Any], str | None] = lambda _: None
        self._last: Pending | None = None  # the latest write
        self._busy = 0  # open operations that execute, or are about to
        self._several_tasks = False
        self._draining = False
        self._giving_back = False
        self._lost = False
        self._unparked: asyncio.Event | None = None
        self._compensations = Compensations()
        self._random: Random | None = None

    # -- life -------------------------------------------------------------------------------------

    def start(self, body: Coroutine[Any, Any, Any], encode_result: Callable[[Any], str | None]) -> None:
        """Run ``body``, the workflow function called with its ``ctx`` and input."""
        self._encode_result = encode_result
        self._main = self._loop.create_task(body, name=self.run.id)
        self._main.add_done_callback(self._body_done)

    def resume(self, claimed: ClaimedRun) -> None:
        """This worker has claimed the run again while its coroutine was still here."""
        self.run, self.ref, self._wakes = claimed.run, claimed.ref, claimed.wakes
        self._pulse.thaw()
        if self._unparked is not None:
            self._unparked.set()

    def drain(self) -> None:
        """Start no further step; give the run back when nothing executes any more."""
        self._draining = True
        self._pulse.touch()

    async def stop(self, within: float) -> None:
        """Cancel what still executes, and give the run back: no attempt is consumed."""
        self._giving_back = True
        if await self._unwound(within) and not self._lost and not self.parked:
            self._write(change=states.release(self.state))

    async def evict(self, within: float = UNWIND) -> None:
        """Forget the coroutine of a run that is not ours any more."""
        await self._unwound(within)
        self._host.gone(self)

    def lose(self) -> None:
        """The lease is lost: whatever is still here writes nothing and ends."""
        if not self._lost:
            self._lost = True
            self._spawn(self.evict())

    @property
    def parked(self) -> bool:
        """The lease was given back, until a time or a wake-up; the coroutine may still be here."""
        return self._pulse.frozen

    @property
    def resting(self) -> bool:
        """Only time, or something from outside, can move this run."""
        # One that is parked and still here waits for the commit of its park.
        return not self._busy and not self._pulse.ticking and bool(self._pulse.timers) and not self.parked

    # -- operations -------------------------------------------------------------------------------

    async def step(self, op: Operation, call: Call) -> Any:
        """A step: its recorded result, or its attempts until one is final."""
        try:
            await self._begun(op)
            if op.recorded is not None:
                return self._recorded(op, call)
            attempt, started, error, raw = await self._attempts(op, call)
            if error is None:
                try:
                    text, value = call.codec.round_trip(raw, f"the result of step {op.key!r}")
                except PayloadError as refused:
                    error = refused
                    await self._undo_unstorable(op, call, raw)
                else:
                    return await self._succeeded(op, call, text, value, attempt, time.monotonic() - started)
            await self._failed(op, failures.capture(error), attempt, time.monotonic() - started)
        finally:
            self._end(op)

    async def sleep(self, op: Operation, due_at: Callable[[datetime], datetime]) -> None:
        """A sleep: its end is computed once, when it is called, and committed then."""
        try:
            await self._begun(op)
            if op.recorded is not None:
                self.core.deliver(op)
                return
            if self.parked:
                await self._resumed()
            if op.scheduled is None:
                now = self._host.clock.now()
                self._write(self.core.note(op, now, due_at(now)))
            await self._until(op, _due(op))
            self._write(self.core.conclude(op, self._host.clock.now()))
        finally:
            self._end(op)

    def refuse(self, error: DurableError) -> NoReturn:
        """The code does not fit the history, or the stored data the code: pause, and unwind from here."""
        reason = f"{type(error).__name__}: {error}"
        if not self.stopped:
            self.stopped = True
            _log.warning("run %s is paused: %s", self.run.id, reason)
            self._spawn(self._pause(reason))
        raise asyncio.CancelledError(reason)

    @property
    def random(self) -> Random:
        """The run's own source of random numbers."""
        if self._random is None:
            self._random = Random(self.run.seed)
        return self._random

    async def _begun(self, op: Operation) -> None:
        """Return when the operation may go on: to its recorded result, or to its start."""
        undo = op.kind is Kind.UNDO
        if self.stopped and not undo:
            raise asyncio.CancelledError("the run does not go on here")
        task = asyncio.current_task(self._loop)
        if task is not self._main:
            self._several_tasks = True
        if self._pulse.ticking:
            self._pulse.touch()
        if not self.core.begin(op, task):
            await self._pulse.turn(op)
        if op.recorded is None and self.state is State.COMPENSATING and not undo:
            await self._stop_body()

    def _end(self, op: Operation) -> None:
        """After a delivery nothing; after a cancellation the operation is forgotten, without a record."""
        self.core.drop(op)
        if self._pulse.ticking:
            self._pulse.touch()

    def _recorded(self, op: Operation, call: Call) -> Any:
        record = self.core.deliver(op)
        try:
            if record.failed:
                raise StepFailed(op.key, record.attempt, failures.from_json(record.data))
            value = call.codec.decode(record.data, f"the recorded result of step {op.key!r}")
        except PayloadError as error:
            self.refuse(error)
        self._compensations.register(record, call, value)
        return value

    async def _succeeded(self, op: Operation, call: Call, text: str, value: Any, attempt: int, duration: float) -> Any:
        if not self.core.direct(op):
            self.core.offer(op)
            await self._pulse.turn(op)
        compensable = call.compensate is not None
        record = self.core.conclude(
            op, self._host.clock.now(), text, attempt=attempt, duration=duration, compensable=compensable
        )
        self._write(record)
        if compensable:
            self._compensations.register(record, call, value)
        return value

    async def _failed(self, op: Operation, failure: Failure, attempt: int, duration: float) -> NoReturn:
        if not self.core.direct(op):
            self.core.offer(op)
            await self._pulse.turn(op)
        text = failures.to_json(failure)
        self._write(
            self.core.conclude(op, self._host.clock.now(), text, failed=True, attempt=attempt, duration=duration)
        )
        raise StepFailed(op.key, attempt, failure)

    # -- attempts ---------------------------------------------------------------------------------

    async def _attempts(self, op: Operation, call: Call) -> tuple[int, float, Exception | None, Any]:
        """Call until an attempt succeeds or is the last: its number, start, error or None, value."""
        attempt = 1
        if earlier := self.core.attempts(op.key):
            attempt += len(earlier)
            if (due_at := earlier[-1].due_at) is not None:
                await self._until(op, due_at)
        self._busy += 1
        try:
            while True:
                started = time.monotonic()
                if (self._last is not None and not self._last.done) or self._held_back(started):
                    await self._gate()
                    started = time.monotonic()
                try:
                    step = CurrentStep(self.run.id, op.key, attempt)
                    return attempt, started, None, await invoke(call, step, self._host.threads)
                except Exception as error:
                    if call.retry is None or not call.retry.wants_retry(error, attempt):
                        return attempt, started, error, None
                    delay = call.retry.delay_after(error, attempt, random())
                    due_at = self._attempt_failed(op, error, attempt, time.monotonic() - started, delay)
                self._busy -= 1
                try:
                    await self._until(op, due_at)
                finally:
                    self._busy += 1
                attempt += 1
        finally:
            self._busy -= 1
            if self._draining or self._pulse.timers:
                self._pulse.touch()

    def _attempt_failed(self, op: Operation, error: Exception, attempt: int, duration: float, delay: float) -> datetime:
        now = self._host.clock.now()
        due_at = now + timedelta(seconds=delay)
        text = failures.to_json(failures.capture(error))
        self._write(self.core.failed_attempt(op, now, text, attempt, duration, due_at))
        return due_at

    def _held_back(self, now: float) -> bool:
        return self._draining or self.parked or now >= self._host.deadline

    async def _gate(self) -> None:
        """Return when an attempt may start: all before it is committed, the lease holds, nobody drains."""
        while True:
            if self._last is not None and not self._last.done:
                await self._last.wait()
            elif self.parked:
                await self._resumed()
            elif self._draining:
                self._busy -= 1
                try:
                    self._pulse.touch()
                    await self._loop.create_future()
                finally:
                    self._busy += 1
            elif time.monotonic() >= self._host.deadline:
                await self._host.renewed()
            else:
                return

    async def _resumed(self) -> None:
        """Something that is not ours went on while the run was parked: what it calls waits for the next claim."""
        self._unparked = self._unparked or asyncio.Event()
        self._unparked.clear()
        await self._unparked.wait()

    # -- rest -------------------------------------------------------------------------------------

    async def _until(self, op: Operation, due_at: datetime) -> None:
        direct = self.core.direct(op)
        if direct and due_at <= self._host.clock.now():
            return
        # One task, and it stands right here: nothing else can move, so there is nothing to wait for.
        at_once = direct and not self._several_tasks and not self._draining
        await self._pulse.until(op, due_at, self._rested if at_once else self._pulse.touch)

    def _rested(self) -> None:
        """Nothing moves by itself: give back, park, or wait for a timer in place."""
        if self._main is None or self._main.done() or self.parked or self._lost:
            return
        if self._draining and not self._busy:
            if not self._giving_back:
                self._giving_back = True
                self._spawn(self.stop(UNWIND))
        elif self._pulse.due:  # a park would lead back here, and without a linger never any further
            self._pulse.fire()
        elif not self._parkable():
            self._pulse.arm()
            self._host.rested()
        elif self._several_tasks and self._host.linger:
            self._pulse.arm()
            self._loop.call_later(_GRACE, self._park_if_quiet, self._pulse.activity)
        else:
            self._park()

    def _parkable(self) -> bool:
        """Nothing executes, and something other than a short backoff is waited for."""
        timers = self._pulse.timers.values()
        if self._busy or not timers or (self.stopped and self.state is not State.COMPENSATING):
            return False
        soon = self._host.clock.now() + timedelta(seconds=self._host.linger)
        return any(op.kind is Kind.SLEEP or due > soon for due, op in timers)

    def _park_if_quiet(self, activity: int) -> None:
        if activity == self._pulse.activity and not self.parked and not self._lost and self._parkable():
            self._park()

    def _park(self) -> None:
        self._pulse.freeze()
        ready_at = min(due for due, _ in self._pulse.timers.values())
        self._write(change=states.park(self.state, ready_at=ready_at, wakes=self._wakes))

    # -- the end ----------------------------------------------------------------------------------

    def _body_done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # it is looked at here, or does not matter: asyncio need not report it
        if self.stopped or self._lost:
            return  # it is being unwound; whoever unwinds it goes on
        self.stopped = True
        if self.core.open:
            self._spawn(self._end_after_leftovers(task))
        else:
            self._ended(task)

    async def _end_after_leftovers(self, task: asyncio.Task[Any]) -> None:
        """Operations that are left when the function has ended are cancelled."""
        await self._unwound(UNWIND)
        self._ended(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._lost:
            return
        if self.state is State.COMPENSATING:  # the original error stands; what the replay came to is ignored
            self._compensate(failures.from_json(self.run.error))
            return
        error: BaseException | None
        if task.cancelled():
            error = DurableError("the workflow function raised CancelledError, and nobody had cancelled it")
        elif (error := task.exception()) is None:
            try:
                text = self._encode_result(task.result())
            except PayloadError as refused:
                error = refused
            else:
                self._write(change=states.complete(self.state, text))
                return
        failure = failures.capture(error)
        if self._compensations:
            self._compensate(failure)
        else:
            self._write(change=states.fail(self.state, failures.to_json(failure)))

    async def _pause(self, reason: str) -> None:
        await self._unwound(UNWIND)
        if not self._lost:
            self._write(change=states.pause(self.state, reason))

    # -- compensation -----------------------------------------------------------------------------

    async def _stop_body(self) -> NoReturn:
        """The run is compensating and the function has come to what it had not done: it goes no further."""
        if not self.stopped:
            self.stopped = True
            self._spawn(self._compensate_after_replay())
        await self._loop.create_future()
        raise AssertionError("nobody resolves it: unwinding cancels it")

    async def _compensate_after_replay(self) -> None:
        await self._unwound(UNWIND)
        if not self._lost and not self._giving_back:
            self._compensate(failures.from_json(self.run.error))

    def _compensate(self, failure: Failure) -> None:
        self._several_tasks = False
        self._main = self._spawn(self._compensating(failure))

    async def _compensating(self, failure: Failure) -> None:
        if self.state is State.RUNNING:
            change = states.compensate(self.state, failures.to_json(failure))
            self._write(change=change)
            self.state = change.state
        compensable = [r for r in self.core.recorded(Kind.STEP) if r.compensable and not r.failed]
        undone, not_undone = await self._compensations.run(compensable, self._undo)
        end = states.fail if not_undone else states.compensated
        failure = failures.with_compensations(failure, undone, not_undone)
        self._write(change=end(self.state, failures.to_json(failure)))

    async def _undo(self, key: str, call: Call) -> bool:
        """One compensation: recorded once, with its own attempts. Returns whether it succeeded."""
        op = self.core.operation(f"{key}/undo", Kind.UNDO)
        try:
            await self._begun(op)
            if op.recorded is not None:
                return not self.core.deliver(op).failed
            attempt, started, error, _ = await self._attempts(op, call)
            text = None if error is None else failures.to_json(failures.capture(error))
            now, duration = self._host.clock.now(), time.monotonic() - started
            self._write(self.core.conclude(op, now, text, failed=error is not None, attempt=attempt, duration=duration))
            return error is None
        finally:
            self._end(op)

    async def _undo_unstorable(self, op: Operation, call: Call, raw: Any) -> None:
        """The effect has happened and its result cannot be recorded: its own compensation runs at once."""
        if call.compensate is not None:
            await self._undo(op.key, undo_of(call, raw))

    # -- unwinding --------------------------------------------------------------------------------

    async def _unwound(self, within: float) -> bool:
        """Cancel everything that is left of the run here, and wait; what refuses is abandoned.

        Returns False when the run had ended by itself already.
        """
        self.stopped = True
        self._pulse.disarm()
        assert self._main is not None
        tasks: set[asyncio.Task[Any]] = {op.scope for op in self.core.open.values()} | {self._main}
        mine = asyncio.current_task(self._loop)
        alive = [task for task in tasks if task is not mine and not task.done()]
        for task in alive:
            task.cancel()
        if alive:
            _, refusing = await asyncio.wait(alive, timeout=min(within, UNWIND))
            for task in refusing:
                log_abandoned(task, f"run {self.run.id}")
        return bool(alive)

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, record: Record | None = None, change: Change | None = None) -> None:
        self._last = self._host.committer.write(self.ref, self._settled, record, change)

    def _settled(self, write: RunWrite, outcome: Outcome | DurableError) -> None:
        """A flush with a write of this run has returned."""
        change = write.change
        if self._lost:
            return
        if outcome is Outcome.APPLIED:
            if change is not None and not change.keep:
                self._host.left(self, change)
        elif isinstance(outcome, PayloadError):
            _log.error("run %s: the database refuses its data: %s", self.run.id, outcome)
            self._spawn(self._pause(f"{type(outcome).__name__}: {outcome}"))
        else:
            self.lose()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        _background.add(task)
        task.add_done_callback(self._spawned_ended)
        return task

    def _spawned_ended(self, task: asyncio.Task[None]) -> None:
        _background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("run %s is paused: a bug in the engine", self.run.id, exc_info=error)
            self.stopped = True
            if not self._lost:
                self._write(change=states.pause(self.state, f"a bug in the engine: {error!r}"))


_background: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references


def _due(op: Operation) -> datetime:
    assert op.scheduled is not None
    assert op.scheduled.due_at is not None
    return op.scheduled.due_at
