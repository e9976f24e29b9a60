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
from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from functools import cached_property
from random import Random, random
from typing import Any, NoReturn

from durable import failures, states
from durable.alarms import Alarms
from durable.attempts import Attempts
from durable.compensation import Compensations
from durable.errors import DurableError, PayloadError, RunCancelled, RunTimeout
from durable.fanout import FanOut
from durable.host import Host
from durable.inbox import Inbox
from durable.model import (
    Also,
    Change,
    ClaimedRun,
    Failure,
    Kind,
    Outcome,
    Record,
    Request,
    RunWrite,
    State,
    Unread,
    Verb,
)
from durable.pulse import Pulse
from durable.replay import Operation, Replay
from durable.retry import Retry
from durable.steps import UNWIND
from durable.store import Clock
from durable.tasks import in_background, unwound

_log = logging.getLogger("durable.execution")

_GRACE = 0.02
"""Seconds for which a run with several tasks rests before it is parked: nothing shows whom a task will wake next."""

_BETWEEN = 0.5
"""Seconds for which a function that is to be undone may go on between its operations, at least: where a replay has
given it all that is recorded, it may still have to register what undoes an effect."""


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
        self.cancelled = False
        """Somebody asked for the cancellation: the run ends ``cancelled``."""
        self._wakes = claimed.wakes
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._pulse = Pulse(self.core, host.clock, self._loop, self._rested, Inbox(claimed.signals))
        self._attempts = Attempts(
            self.run, self.core, host, self.until, self.write, self._pulse.timers, self._pulse.touch
        )
        self.main: asyncio.Task[Any] | None = None
        """The workflow function, later the compensations."""
        self._encode_result: Callable[[Any], str | None]
        self._retry: Retry | None = None
        self._alarms = Alarms(host.clock, self._loop)
        self.verdict: Failure | None = None
        """Why the function goes no further than its history."""
        self._leave: Callable[[], Change] | None = None  # what to write when nothing executes any more
        self._leaving = self._given_back = False
        self.several_tasks = False
        """An operation was awaited in another task than ``main``."""
        self._lost = False
        self._compensations = Compensations()
        self.children: dict[str, str] = {}
        """Key of the call → run id of the children that were made here, and whose end was not delivered."""
        self._heard: set[str] = set()  # keys of the calls whose child's end was delivered here
        self.operations = FanOut(self, self.core, host, self._pulse, self._attempts, self._compensations)

    # -- life -------------------------------------------------------------------------------------

    def start(
        self,
        body: Coroutine[Any, Any, Any],
        encode_result: Callable[[Any], str | None],
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        """Run ``body``, the workflow function called with its ``ctx`` and input.

        Args:
            encode_result: The workflow's result as JSON.
            retry: The workflow's policy for run attempts.
            timeout: Seconds for the whole run, from its first start, or from an operator's retry.
        """
        self._encode_result, self._retry = encode_result, retry
        self.main = self._loop.create_task(body, name=self.run.id)
        self.main.add_done_callback(self._body_done)
        if self.state is State.COMPENSATING:
            self.verdict = failures.readable(self.run.error)
            self._alarms.after(_BETWEEN, self._stop_between)
        elif timeout is not None:
            self._alarms.set_deadline(self.run, self.core.recorded(Kind.REQUEST), timeout)
            self._arm_deadline()
        if self.run.requested is not None:
            self.ask(self.run.requested)

    def resume(self, claimed: ClaimedRun) -> None:
        """This worker has claimed the run again while its coroutine was still here."""
        self.run, self.ref, self._wakes = claimed.run, claimed.ref, claimed.wakes
        self._attempts.resume()
        self._pulse.inbox.add(claimed.signals)  # before the timers: what has come beats a deadline that has passed
        self._pulse.thaw()
        self._arm_deadline()
        if claimed.run.requested is not None:
            self.ask(claimed.run.requested)

    def signalled(self, unread: Unread) -> None:
        """Signals have come while this worker held the run."""
        self._wakes = unread.wakes
        self._pulse.inbox.add(unread.signals)

    @property
    def waiting(self) -> bool:
        """Something from outside is waited for."""
        return self._pulse.inbox.awaited

    def drain(self) -> None:
        """Start no further step; give the run back when nothing executes any more."""
        self._close(lambda: states.release(self.state))

    async def stop(self, within: float) -> None:
        """Cancel what still executes, and give the run back: no attempt is consumed."""
        self._leaving = True
        if await self._unwound(within) and not self._lost and not self.parked:
            self._give_back(states.release(self.state) if self._leave is None else self._leave())

    async def evict(self, within: float = UNWIND) -> None:
        """Forget the coroutine of a run that is not ours any more."""
        await self._unwound(within)
        self._host.gone(self)
        if self.main is not None and self.main.done() and not self.core.open:
            self._take_apart()

    def lose(self) -> None:
        """The lease is lost: whatever is still here writes nothing and ends."""
        if not self._lost:
            self._lost = True
            self._spawn(self.evict())

    @property
    def clock(self) -> Clock:
        return self._host.clock

    @property
    def lost(self) -> bool:  # the lease is lost: nothing is written here any more
        return self._lost

    @property
    def parked(self) -> bool:
        """The lease was given back, until a time or a wake-up; the coroutine may still be here."""
        return self._pulse.frozen

    @property
    def attempt(self) -> int:
        """The number of this run attempt, from 1."""
        return len(self.core.recorded(Kind.RUN_ATTEMPT)) + 1

    @property
    def resting(self) -> bool:
        """Only time, or something from outside, can move this run."""
        # One that is parked and still here waits for the commit of its park.
        waits = bool(self._pulse.timers) or self._pulse.inbox.awaited
        return waits and not self._attempts.busy and not self._pulse.ticking and not self.parked

    # -- requests ---------------------------------------------------------------------------------

    def ask(self, request: Request) -> None:
        """The run is to be cancelled or paused. Asked again until the run has left: only the first time counts."""
        if request.verb is Verb.CANCEL and not self.cancelled:
            self.cancelled = True
            self._attempts.reopen()
            self._leave = None
            self._carry_out(request)
            self._interrupt(self._host.capture(RunCancelled(self.run.id, request.reason)))
        elif request.verb is Verb.PAUSE and not self.cancelled and not self.pausing:
            self._carry_out(request)
            self._close(lambda: states.pause(self.state, request.reason or "paused by an operator", asked=True))

    @property
    def pausing(self) -> bool:
        """A pause was asked for, and something still executes."""
        return self._leave is not None

    def unask(self) -> None:
        """The request to pause was withdrawn before it was carried out."""
        if not self._leaving:
            self._leave = None
            self._attempts.reopen()

    def _carry_out(self, request: Request) -> None:
        text = failures.request_to_json(request)
        if any(record.data == text for record in self.core.recorded(Kind.REQUEST)):
            return  # whoever was told first has written it, and the run had not left it, or is to be undone to the end
        self.write(self.core.remark(Kind.REQUEST, "/request/{seq}", self._host.clock.now(), text))

    def _close(self, leave: Callable[[], Change]) -> None:
        """No attempt starts any more; when nothing executes, ``leave`` says what becomes of the run."""
        self._attempts.closed = True
        self._leave = self._leave or leave
        self._pulse.touch()

    def _interrupt(self, verdict: Failure) -> None:
        """The function goes no further; what it has done is undone.

        On replay it first goes through its history, so that its compensations are known.
        """
        if self.stopped or self.verdict is not None:
            return
        self.verdict = verdict
        if self.core.live and self.core.begun:
            self.stop_body()
        else:
            self._alarms.after(_BETWEEN, self._stop_between)

    def _stop_between(self) -> None:
        """The function awaits something of its own, perhaps for ever, where no operation tells it to stop."""
        if self.core.replaying and not self.stopped:
            self._alarms.after(_BETWEEN, self._stop_between)
        elif not self._lost and not self._leaving:
            self.stop_body()

    def _arm_deadline(self) -> None:
        if self.verdict is None and not self.stopped:
            self._alarms.arm(self._time_out)

    def _time_out(self) -> None:
        if not self._lost and not self.parked:
            self._interrupt(self._host.capture(RunTimeout(self.run.id)))

    # -- what operations ask for ---------------------------------------------------------------------

    @cached_property
    def random(self) -> Random:
        """The run's own source of random numbers."""
        return Random(self.run.seed)

    def refuse(self, error: DurableError) -> NoReturn:
        """The code does not fit the history, or the stored data the code: pause, and unwind from here."""
        self.pause_here(f"{type(error).__name__}: {error}")

    def pause_here(self, reason: str) -> NoReturn:
        """Something that an operator has to look at: pause, and unwind from here."""
        if not self.stopped or self.state is State.COMPENSATING:
            self.stopped = True
            _log.warning("run %s is paused: %s", self.run.id, reason)
            self._leave, self._leaving = lambda: states.pause(self.state, reason), True
            self._spawn(self._pause(reason))
        raise asyncio.CancelledError(reason)

    def link(self) -> None:
        """From now on the run's leaving concerns others."""
        self.ref = self.ref._replace(linked=True)

    def child_ended(self, key: str) -> None:
        """The end of the child that was called as ``key`` is delivered."""
        self._heard.add(key)
        self.children.pop(key, None)

    # -- rest -------------------------------------------------------------------------------------

    async def until(self, op: Operation, due_at: datetime) -> None:
        if self.core.direct(op) and due_at <= self._host.clock.now():
            return
        await self._pulse.until(op, due_at, self._rest_of(op))

    async def outside(self, op: Operation) -> None:
        """Return when something has been brought to ``op``, or its deadline has passed; in its turn."""
        due_at = None if op.scheduled is None else op.scheduled.due_at
        await self._pulse.until(op, due_at, self._rest_of(op))

    def _rest_of(self, op: Operation) -> Callable[[], None]:
        # One task, and it stands right here: nothing else can move, so there is nothing to wait for.
        at_once = self.core.direct(op) and not self.several_tasks and not self._attempts.closed
        return self._rested if at_once else self._pulse.touch

    def _rested(self) -> None:
        """Nothing moves by itself: give back, park, or wait for a timer in place."""
        if self._lost or self.main is None or self.main.done() or self.parked:
            return
        if self._attempts.closed and not self._attempts.busy:
            if not self._leaving:
                self._leaving = True
                self._spawn(self.stop(UNWIND))
        elif self._pulse.due:  # a park would lead back here, and without a linger never any further
            self._pulse.fire()
        elif not self._parkable():
            self._pulse.arm()
            self._host.rested()
        elif self.several_tasks and self._host.linger:
            self._pulse.arm()
            self._alarms.after(_GRACE, self._park_if_quiet, self._pulse.activity)
        else:
            self._park()

    def _parkable(self) -> bool:
        """Nothing executes, and something other than a short backoff is waited for."""
        timers = self._pulse.timers.values()
        if self._attempts.busy or (self.stopped and self.state is not State.COMPENSATING):
            return False
        if self._pulse.inbox.awaited:
            return True
        soon = self._host.clock.now() + timedelta(seconds=self._host.linger)
        return any(op.kind in (Kind.SLEEP, Kind.WOKE) or due > soon for due, op in timers)

    def _park_if_quiet(self, activity: int) -> None:
        if not self._lost and activity == self._pulse.activity and not self.parked and self._parkable():
            self._park()

    def _park(self) -> None:
        self._pulse.freeze()
        self._attempts.parked = True
        times = [due for due, _ in self._pulse.timers.values()]
        if self._alarms.deadline is not None and self.verdict is None:
            times.append(self._alarms.deadline)
        ready_at = min(times, default=None)
        self.write(change=states.park(self.state, ready_at=ready_at, wakes=self._wakes, waiting=self.waiting))

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
        """The function has returned or raised, and nothing of it is left."""
        if self._lost:
            return
        if self.verdict is not None:  # it stands; what the function came to is ignored
            self._undo_all(self.verdict)
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
                self.write(change=states.complete(self.state, text))
                return
        if self._retry is not None and self._retry.wants_retry(error, self.attempt):
            self._try_again(self._retry, error)
        else:
            self._undo_all(self._host.capture(error))

    def _try_again(self, retry: Retry, error: BaseException) -> None:
        """Another run attempt: completed records are kept, failed ones set aside, nothing is undone."""
        number, now = self.attempt, self._host.clock.now()
        due_at = now + timedelta(seconds=retry.delay_after(error, number, random()))
        text = failures.to_json(self._host.capture(error))
        record = self.core.remark(Kind.RUN_ATTEMPT, f"/attempt/{number}", now, text, number, due_at)
        ready_at = min(due_at, self._alarms.deadline or due_at)
        self.write(record, states.try_again(self.state, ready_at))

    async def _pause(self, reason: str) -> None:
        await self._unwound(UNWIND)
        self._give_back(states.pause(self.state, reason))

    def _give_back(self, change: Change) -> None:
        """The run leaves unfinished. A stop and a pause may unwind it at the same time: it leaves once, and paused."""
        if not self._lost and not self._given_back:
            self._given_back = True
            self.write(change=change)

    # -- compensation -----------------------------------------------------------------------------

    def stop_body(self) -> None:
        """There is a verdict, and the function has come to what it had not done: it goes no further."""
        if not self.stopped:
            self.stopped = True
            self._spawn(self._undo_after_unwinding())

    async def _undo_after_unwinding(self) -> None:
        await self._unwound(UNWIND)
        if not self._lost and not self._leaving and self.verdict is not None:
            self._undo_all(self.verdict)

    def _undo_all(self, failure: Failure) -> None:
        compensable = [r for r in self.core.recorded(Kind.STEP) if r.compensable and not r.failed]
        undo = bool(self._compensations or compensable) or self.state is State.COMPENSATING
        children = self.core.children(self._heard) | self.children
        if undo or children:
            self.verdict = failure
            self.several_tasks = False
            self.main = self._spawn(self._compensating(failure, compensable if undo else None, children.values()))
        else:
            self._finish(failure)

    async def _compensating(self, failure: Failure, compensable: list[Record] | None, children: Iterable[str]) -> None:
        if compensable is not None and self.state is State.RUNNING:
            change = states.compensate(self.state, failures.to_json(failure))
            self.write(change=change)
            self.state = change.state
        if (last := self._attempts.last) is not None and not last.done:
            await last.committed()  # what has led here stands, before anybody else is told; and one change a flush
        for run_id in children:  # asked again after a crash: asking twice is asking once
            await self._host.cancel(run_id, f"its parent {self.run.id} has failed: {failure.summary}")
        if compensable is None:
            self._finish(failure)
            return
        undone, not_undone = await self._compensations.run(compensable, self.operations.undo)
        self._finish(failures.with_compensations(failure, undone, not_undone))

    def _finish(self, failure: Failure) -> None:
        if failure.not_undone:
            end = states.fail
        elif self.cancelled:
            end = states.cancelled
        else:
            end = states.compensated if self.state is State.COMPENSATING else states.fail
        self.write(change=end(self.state, failures.to_json(failure)))

    # -- unwinding --------------------------------------------------------------------------------

    async def _unwound(self, within: float) -> bool:
        """Cancel all that is left here, and wait; what refuses is abandoned. False: the run had ended by itself."""
        if self.main is None:  # it is taken apart
            return False
        self.stopped = True
        self._pulse.disarm()
        self._pulse.inbox.forget_all()
        self._alarms.disarm()
        tasks: set[asyncio.Task[Any]] = {op.scope for op in self.core.open.values()} | {self.main}
        return await unwound(tasks, min(within, UNWIND), f"run {self.run.id}")

    # -- writing ----------------------------------------------------------------------------------

    def write(self, record: Record | None = None, change: Change | None = None, also: Also | None = None) -> None:
        """Gather a record, a change, or both for the next flush, with what else belongs to them."""
        self._attempts.last = self._host.committer.write(self.ref, self._settled, record, change, also)

    def _settled(self, write: RunWrite, outcome: Outcome | DurableError) -> None:
        """A flush with a write of this run has returned."""
        change = write.change
        if self._lost:
            return
        if outcome is Outcome.APPLIED:
            if self._host.hooks.active:
                self._host.hooks.written(self.run, write)
            if write.also is not None:
                self._host.stirred()
            if change is not None and not change.keep:
                self._host.left(self, change)
                if not self.parked and not self.core.open:
                    self._take_apart()
        elif isinstance(outcome, PayloadError):
            _log.error("run %s: the database refuses its data: %s", self.run.id, outcome)
            self._spawn(self._pause(f"{type(outcome).__name__}: {outcome}"))
        else:
            self.lose()

    def _take_apart(self) -> None:
        """The run has left, and nothing of it is left here: let its memory go now.

        Only the collector could free its parts, which refer to one another: a third of the time of one-step runs. An
        operation that was abandoned and still stands somewhere keeps all of it, to find out that the run is not ours.
        """
        self._lost = True  # a remark that came after its end is answered later than that, and concerns nobody
        self._alarms.silence()
        self._pulse.disarm()
        self.main = self._leave = None
        del self.operations, self._attempts, self._pulse

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return in_background(self._loop, coroutine, self._failed)

    def _failed(self, error: BaseException) -> None:
        _log.error("run %s is paused: a bug in the engine", self.run.id, exc_info=error)
        self.stopped = True
        if not self._lost:
            self.write(change=states.pause(self.state, f"a bug in the engine: {error!r}"))
