"""One run in one process: from its claim until it has ended, is parked, or is given back.

It drives the replay core: it waits where the core says wait, calls user functions, and writes what the core
records. The rules it keeps:

* Nothing with an effect starts before the commit of what came before it: each attempt passes ``_gate``. The
  value itself is handed on before, so the last record and the completion share a commit.
* As soon as nothing executes, the run is parked: the lease goes back, the slot is free. The coroutine stays in
  memory for the linger and goes on there if this worker claims the run again before anybody else.
* Unwinding is cancellation, of the workflow's task and of every open operation in whatever task it stands.
  While it lasts every operation raises ``CancelledError`` again; what the function returns or raises is ignored.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random, random
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from durable import failures, states
from durable.committer import Committer, Pending
from durable.errors import DurableError, PayloadError, StepFailed
from durable.model import Change, ClaimedRun, Failure, Kind, Outcome, Record, RunWrite, State
from durable.replay import SETTLE, Operation, Replay
from durable.steps import UNWIND, Call, CurrentStep, StillRunning, invoke, log_abandoned
from durable.store import Clock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine

_log = logging.getLogger("durable.execution")

_GRACE = 0.02
"""Seconds for which a run with several tasks rests before it is parked. Wake-ups between tasks take several
passes of the loop, and nothing shows from outside which task the next one will wake."""


class Host(Protocol):
    """What an execution needs of its worker."""

    committer: Committer
    clock: Clock
    linger: float
    threads: StillRunning
    deadline: float  # time.monotonic() after which no step may start

    def renewed(self) -> Awaitable[None]:
        """Return after the next successful renewal."""
        ...

    def left(self, execution: Execution, change: Change) -> None:
        """The run was ended, parked or given back; that is committed."""
        ...

    def rested(self) -> None:
        """The run waits for time in its slot."""
        ...

    def gone(self, execution: Execution) -> None:
        """The execution has ended in this process: nothing of it runs any more."""
        ...


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
        self.parked = False
        self._wakes = claimed.wakes
        self._host = host
        self._main: asyncio.Task[Any] | None = None  # the workflow function, later the compensations
        self._encode_result: Callable[[Any], str | None] = lambda _: None
        self._last: Pending | None = None  # the latest write
        self._busy = 0  # open operations that execute, or are about to
        self._timers: dict[str, tuple[datetime, Operation]] = {}
        self._cancel_timer: Callable[[], None] | None = None
        self._ticking = False
        self._idle = 0  # passes of the loop without activity
        self._activity = 0
        self._several_tasks = False
        self._draining = False
        self._giving_back = False
        self._lost = False
        self._unparked: asyncio.Event | None = None
        self._undo: dict[str, tuple[int, Call]] = {}  # step key → seq of its record, compensation
        self._random: Random | None = None

    # -- life -------------------------------------------------------------------------------------

    def start(self, body: Coroutine[Any, Any, Any], encode_result: Callable[[Any], str | None]) -> None:
        """Run ``body``, the workflow function called with its ``ctx`` and input."""
        self._encode_result = encode_result
        self._main = asyncio.get_running_loop().create_task(body, name=f"durable {self.run.workflow} {self.run.id}")
        self._main.add_done_callback(self._body_done)

    def resume(self, claimed: ClaimedRun) -> None:
        """This worker has claimed the run again while its coroutine was still here."""
        self.run, self.ref, self._wakes = claimed.run, claimed.ref, claimed.wakes
        self.parked = False
        if self._unparked is not None:
            self._unparked.set()
        self._fire_timers()
        self._touch()

    def drain(self) -> None:
        """Start no further step; give the run back when nothing executes any more."""
        self._draining = True
        self._touch()

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
    def resting(self) -> bool:
        """Only time, or something from outside, can move this run."""
        return not self._busy and not self._ticking and bool(self._timers)

    # -- operations -------------------------------------------------------------------------------

    async def step(self, op: Operation, call: Call) -> Any:
        """A step: its recorded result, or its attempts until one is final."""
        self._begin(op)
        try:
            if not self.core.begin(op, op.scope):
                await self._turn(op)
            if op.recorded is not None:
                return self._recorded(op, call)
            if self.state is State.COMPENSATING:
                await self._stop_body()
            return await self._execute(op, call)
        finally:
            self._end(op)

    async def sleep(self, op: Operation, due_at: Callable[[datetime], datetime]) -> None:
        """A sleep: its end is computed once, when it is called, and committed then."""
        self._begin(op)
        try:
            if not self.core.begin(op, op.scope):
                await self._turn(op)
            if op.recorded is not None:
                self.core.deliver(op)
                return
            if self.state is State.COMPENSATING:
                await self._stop_body()
            if self.parked:
                await self._resumed()
            if op.scheduled is None:
                now = self._host.clock.now()
                self._write(self.core.note(op, now, due_at(now)))
            assert op.scheduled is not None and op.scheduled.due_at is not None
            await self._until(op, op.scheduled.due_at)
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
        if self._random is None:
            self._random = Random(self.run.seed)
        return self._random

    def _begin(self, op: Operation) -> None:
        if self.stopped and op.kind is not Kind.UNDO:
            raise asyncio.CancelledError("the run does not go on here")
        op.scope = task = asyncio.current_task()
        if task is not self._main:
            self._several_tasks = True
        if self._ticking:
            self._touch()

    def _end(self, op: Operation) -> None:
        """After a delivery nothing; after a cancellation the operation is forgotten, without a record."""
        self.core.drop(op)
        if self._ticking:
            self._touch()

    async def _turn(self, op: Operation) -> None:
        op.future = future = asyncio.get_running_loop().create_future()
        self._touch()
        await future

    def _recorded(self, op: Operation, call: Call) -> Any:
        record = self.core.deliver(op)
        try:
            if record.failed:
                failure = failures.from_json(record.data)
                raise StepFailed(op.key, record.attempt, failure)
            value = call.codec.decode(record.data, f"the recorded result of step {op.key!r}")
        except PayloadError as error:
            self.refuse(error)
        self._register(record, call, value)
        return value

    def _register(self, record: Record, call: Call, value: Any) -> None:
        if call.compensate is not None:
            undo = Call(call.compensate, (value,), call.codec, call.retry, call.timeout)
            self._undo[record.key] = (record.seq, undo)

    # -- attempts ---------------------------------------------------------------------------------

    async def _execute(self, op: Operation, call: Call) -> Any:
        attempt, started, error, raw = await self._attempts(op, call)
        text, value = "", None
        if error is None:
            try:
                text, value = call.codec.round_trip(raw, f"the result of step {op.key!r}")
            except PayloadError as refused:
                error = refused
                await self._undo_unstorable(op, call, raw)
        duration = time.monotonic() - started
        if not self.core.direct(op):
            self.core.offer(op)
            await self._turn(op)
        now = self._host.clock.now()
        if error is None:
            compensable = call.compensate is not None
            record = self.core.conclude(
                op, now, text, attempt=attempt, duration=duration, compensable=compensable
            )
            self._write(record)
            if compensable:
                self._register(record, call, value)
            return value
        failure = failures.capture(error)
        self._write(
            self.core.conclude(op, now, failures.to_json(failure), failed=True, attempt=attempt, duration=duration)
        )
        raise StepFailed(op.key, attempt, failure)

    async def _attempts(self, op: Operation, call: Call) -> tuple[int, float, Exception | None, Any]:
        """Call until an attempt succeeds or is the last: its number, start, error or None, value."""
        earlier = self.core.attempts(op.key)
        attempt = len(earlier) + 1
        if earlier and earlier[-1].due_at is not None:
            await self._until(op, earlier[-1].due_at)
        self._busy += 1
        try:
            while True:
                started = time.monotonic()
                if (
                    (self._last is not None and not self._last.done)
                    or self._draining
                    or self.parked
                    or started >= self._host.deadline
                ):
                    await self._gate()
                    started = time.monotonic()
                try:
                    step = CurrentStep(self.run.id, op.key, attempt)
                    return attempt, started, None, await invoke(call, step, self._host.threads)
                except Exception as error:
                    if call.retry is None or not call.retry.wants_retry(error, attempt):
                        return attempt, started, error, None
                    delay = call.retry.delay_after(error, attempt, random())
                    now = self._host.clock.now()
                    due_at = now + timedelta(seconds=delay)
                    text = failures.to_json(failures.capture(error))
                    self._write(
                        self.core.failed_attempt(op, now, text, attempt, time.monotonic() - started, due_at)
                    )
                self._busy -= 1
                try:
                    await self._until(op, due_at)
                finally:
                    self._busy += 1
                attempt += 1
        finally:
            self._busy -= 1
            if self._draining or self._timers:
                self._touch()

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
                    self._touch()
                    await asyncio.get_running_loop().create_future()
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

    async def _undo_unstorable(self, op: Operation, call: Call, raw: Any) -> None:
        """The effect has happened and its result cannot be recorded: its own compensation runs at once."""
        if call.compensate is not None:
            undo = Call(call.compensate, (raw,), call.codec, call.retry, call.timeout)
            await self._compensation(op.key, undo)

    # -- time -------------------------------------------------------------------------------------

    async def _until(self, op: Operation, due_at: datetime) -> None:
        """Return at ``due_at``; a sleep also in its turn."""
        if due_at <= self._host.clock.now() and self.core.direct(op):
            return
        op.future = future = asyncio.get_running_loop().create_future()
        self._timers[op.key] = (due_at, op)
        if self.core.direct(op) and not self._several_tasks and not self._draining and self._parkable():
            self._park()
        else:
            self._touch()
        try:
            await future
        finally:
            self._timers.pop(op.key, None)

    def _fire_timers(self) -> None:
        """What is due goes on, in the order in which it became due."""
        self._cancel_timer = None
        now = self._host.clock.now()
        for due_at, op in sorted(self._timers.values(), key=lambda timer: timer[0]):
            if due_at > now:
                break
            del self._timers[op.key]
            if op.kind is Kind.SLEEP:
                self.core.offer(op)
            else:
                _go(op)
        self._touch()

    def _arm_timer(self) -> None:
        self._disarm_timer()
        if self._timers:
            self._cancel_timer = self._host.clock.call_at(min(due for due, _ in self._timers.values()), self._on_timer)

    def _disarm_timer(self) -> None:
        if self._cancel_timer is not None:
            self._cancel_timer()
            self._cancel_timer = None

    def _on_timer(self) -> None:
        if not self.parked and not self._lost:
            self._fire_timers()

    # -- turns ------------------------------------------------------------------------------------

    def _touch(self) -> None:
        """Something happened: count passes of the loop from here."""
        self._idle = 0
        self._activity += 1
        if not self._ticking and not self.parked:
            self._ticking = True
            asyncio.get_running_loop().call_soon(self._tick)

    def _tick(self) -> None:
        """One pass of the loop without activity."""
        self._idle += 1
        if (op := self.core.next_delivery(self._idle)) is not None:
            self._idle = 0
            _go(op)
        else:
            for op in self.core.startable(self._idle):
                self._idle = 0
                _go(op)
        if self.core.unsettled or self._idle < SETTLE:
            asyncio.get_running_loop().call_soon(self._tick)
            return
        self._ticking = False
        self._rest()

    def _rest(self) -> None:
        """Nothing moves by itself: give back, park, or wait for a timer in place."""
        if self._main is None or self._main.done() or self.parked or self._lost:
            return
        if self._draining and not self._busy:
            if not self._giving_back:
                self._spawn(self.stop(UNWIND))
        elif not self._parkable():
            self._arm_timer()
            self._host.rested()
        elif self._several_tasks and self._host.linger:
            self._arm_timer()
            asyncio.get_running_loop().call_later(_GRACE, self._park_if_quiet, self._activity)
        else:
            self._park()

    def _parkable(self) -> bool:
        """Nothing executes, and something other than a short backoff is waited for."""
        if self._busy or not self._timers or (self.stopped and self.state is not State.COMPENSATING):
            return False
        soon = self._host.clock.now() + timedelta(seconds=self._host.linger)
        return any(op.kind is Kind.SLEEP or due > soon for due, op in self._timers.values())

    def _park_if_quiet(self, activity: int) -> None:
        if activity == self._activity and not self.parked and not self._lost and self._parkable():
            self._park()

    def _park(self) -> None:
        self._disarm_timer()
        self.parked = True
        ready_at = min(due for due, _ in self._timers.values())
        self._write(change=states.park(self.state, ready_at=ready_at, wakes=self._wakes))

    # -- the end ----------------------------------------------------------------------------------

    def _body_done(self, task: asyncio.Task[Any]) -> None:
        if self.stopped or self._lost:
            return  # it is being unwound; whoever unwinds it goes on
        self.stopped = True
        if self.core.open:
            self._spawn(self._end_after_leftovers(task))
        else:
            self._ended(task)

    async def _end_after_leftovers(self, task: asyncio.Task[Any]) -> None:
        await self._unwound(UNWIND)
        self._ended(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if self._lost:
            return
        if self.state is State.COMPENSATING:  # the original error stands; what the replay came to is ignored
            self._run_compensations(failures.from_json(self.run.error))
            return
        error: BaseException | None
        if task.cancelled():
            error = DurableError("the workflow function raised CancelledError, and nobody had cancelled it")
        else:
            error = task.exception()
        if error is None:
            try:
                self._write(change=states.complete(self.state, self._encode_result(task.result())))
                return
            except PayloadError as refused:
                error = refused
        failure = failures.capture(error)
        if self._undo:
            self._run_compensations(failure)
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
        await asyncio.get_running_loop().create_future()
        raise AssertionError("unreachable")

    async def _compensate_after_replay(self) -> None:
        await self._unwound(UNWIND)
        if not self._lost and not self._giving_back:
            self._run_compensations(failures.from_json(self.run.error))

    def _run_compensations(self, failure: Failure) -> None:
        self._several_tasks = False
        self._main = self._spawn(self._compensate(failure))

    async def _compensate(self, failure: Failure) -> None:
        """Undo what has succeeded, last first; one that fails does not stop the others."""
        if self.state is State.RUNNING:
            change = states.compensate(self.state, failures.to_json(failure))
            self._write(change=change)
            self.state = change.state
        undone: list[str] = []
        not_undone = [key for key in self._compensable() if key not in self._undo]
        for key, (_, undo) in sorted(self._undo.items(), key=lambda item: -item[1][0]):
            (undone if await self._compensation(key, undo) else not_undone).append(key)
        failure = failures.with_compensations(failure, undone, not_undone)
        change = states.fail if not_undone else states.compensated
        self._write(change=change(self.state, failures.to_json(failure)))

    def _compensable(self) -> list[str]:
        return [r.key for r in self.core.recorded(Kind.STEP) if r.compensable and not r.failed]

    async def _compensation(self, key: str, undo: Call) -> bool:
        """One compensation: recorded once, with its own attempts. Returns whether it succeeded."""
        op = self.core.operation(f"{key}/undo", Kind.UNDO)
        self._begin(op)
        try:
            if not self.core.begin(op, op.scope):
                await self._turn(op)
            if op.recorded is not None:
                return not self.core.deliver(op).failed
            attempt, started, error, _ = await self._attempts(op, undo)
            failed = error is not None
            text = failures.to_json(failures.capture(error)) if error is not None else None
            now, duration = self._host.clock.now(), time.monotonic() - started
            self._write(self.core.conclude(op, now, text, failed=failed, attempt=attempt, duration=duration))
            return not failed
        finally:
            self._end(op)

    # -- unwinding --------------------------------------------------------------------------------

    async def _unwound(self, within: float) -> bool:
        """Cancel everything that is left of the run here, and wait; what refuses is abandoned.

        Returns False when the run had ended by itself already.
        """
        self.stopped = True
        self._disarm_timer()
        main = self._main
        assert main is not None
        ended_before = main.done() and not self.core.open
        tasks = {op.scope for op in self.core.open.values() if isinstance(op.scope, asyncio.Task)} | {main}
        tasks.discard(asyncio.current_task())
        alive = [task for task in tasks if not task.done()]
        for task in alive:
            task.cancel()
        if alive:
            _, refusing = await asyncio.wait(alive, timeout=min(within, UNWIND))
            for task in refusing:
                log_abandoned(task, f"run {self.run.id}")
        return not ended_before

    # -- writing ----------------------------------------------------------------------------------

    def _write(self, record: Record | None = None, change: Change | None = None) -> None:
        self._last = self._host.committer.write(self.ref, self._settled, record, change)

    def _settled(self, write: RunWrite, outcome: Outcome | DurableError) -> None:
        """A flush with a write of this run has returned."""
        if self._lost:
            return
        change = write.change
        if outcome is Outcome.APPLIED:
            if change is not None and not change.keep:
                self._host.left(self, change)
        elif isinstance(outcome, PayloadError):
            _log.error("run %s: the database refuses its data: %s", self.run.id, outcome)
            self._spawn(self._pause(f"{type(outcome).__name__}: {outcome}"))
        else:
            self.lose()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        _background.add(task)
        task.add_done_callback(_background_done)
        return task


_background: set[asyncio.Task[None]] = set()  # asyncio itself keeps only weak references


def _background_done(task: asyncio.Task[None]) -> None:
    _background.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a bug in the engine ended one of its tasks", exc_info=error)


def _go(op: Operation) -> None:
    future = op.future
    if isinstance(future, asyncio.Future) and not future.done():
        future.set_result(None)
