"""What the recording operations of ``ctx`` do: a step, a sleep, a compensation.

Each is answered by the replay core, carried out by ``attempts``, and recorded here. What becomes of the run is the
execution's.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from durable import failures
from durable.attempts import Attempt, Attempts
from durable.compensation import Compensations, undo_of
from durable.effects import SharedEffects, ended
from durable.errors import PayloadError, StepFailed
from durable.host import Host
from durable.model import Kind, Record
from durable.pulse import Pulse
from durable.replay import Operation, Replay
from durable.steps import Call

if TYPE_CHECKING:
    from durable.execution import Execution


class Operations:
    """The operations of one execution."""

    def __init__(
        self,
        execution: Execution,
        core: Replay,
        host: Host,
        pulse: Pulse,
        attempts: Attempts,
        compensations: Compensations,
    ) -> None:
        self._execution = execution
        self._core = core
        self._host = host
        self._pulse = pulse
        self._attempts = attempts
        self._compensations = compensations
        self._shared = SharedEffects(execution, host, pulse, attempts)
        self._loop = asyncio.get_running_loop()

    async def step(self, op: Operation, call: Call) -> Any:
        """A step: its recorded result, or its attempts until one is final."""
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                return self._recorded(self._core.deliver(op), call)
            if call.shared is not None:
                text = await self._shared.made_elsewhere(op, call.shared, self._open)
                if text is not None:
                    return await self._made_elsewhere(op, call, text)
            attempt = await self._attempts.run(op, call)
            error = attempt.error
            if error is None:
                try:
                    text, value = call.codec.round_trip(attempt.value, op)
                except PayloadError as refused:
                    error = refused
                    await self._undo_unstorable(op, call, attempt.value)
                else:
                    if not self._core.direct(op):
                        await self._in_turn(op)
                    self._succeeded(op, call, text, value, attempt)
                    return value
            await self._failed(op, call, error, attempt)
        except asyncio.CancelledError:
            self._give_up(op, call)
            raise
        finally:
            if op.key in self._core.open or self._pulse.ticking:
                self._end(op)

    async def sleep(self, op: Operation, due_at: Callable[[datetime], datetime]) -> None:
        """A sleep: its end is computed once, when it is called, and committed then."""
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                self._core.deliver(op)
                return
            while self._attempts.parked:
                await self._attempts.resumed()
            if op.scheduled is None:
                now = self._host.clock.now()
                self._execution.write(self._core.note(op, now, due_at(now)))
            await self._execution.until(op, _due(op))
            self._execution.write(self._core.conclude(op, self._host.clock.now()))
        finally:
            self._end(op)

    def _begin(self, op: Operation) -> bool:
        """Whether the operation may go on at once; else it has to ``_wait``."""
        execution = self._execution
        if execution.stopped and op.kind is not Kind.UNDO:
            raise asyncio.CancelledError("the run does not go on here")
        task = current_task(self._loop)
        if task is not execution.main:
            execution.several_tasks = True
        if self._pulse.ticking:
            self._pulse.touch()
        op.held = not self._core.begin(op, task)
        return not op.held and execution.verdict is None

    async def _wait(self, op: Operation) -> None:
        """Return when the operation may go on: to its recorded result, or to its start."""
        if op.held:
            await self._pulse.turn(op)
        if op.recorded is None and self._execution.verdict is not None and op.kind is not Kind.UNDO:
            self._execution.stop_body()
            await self._loop.create_future()  # unwinding cancels it

    async def _open(self) -> None:
        """Return when the run may go on to write: it is neither parked nor being stopped."""
        while self._attempts.parked or self._attempts.closed:
            self._pulse.touch()
            await self._attempts.resumed()

    async def _in_turn(self, op: Operation) -> None:
        """Return when the live result of ``op`` is the next to be delivered."""
        self._core.offer(op)
        await self._pulse.turn(op)

    def _end(self, op: Operation) -> None:
        """After a delivery nothing; after a cancellation the operation is forgotten, without a record."""
        # After a cancellation it may be that nothing is left but waits, and the run is to be parked.
        if self._core.drop(op) or self._pulse.ticking:
            self._pulse.touch()

    def _recorded(self, record: Record, call: Call) -> Any:
        """The recorded end of a step, or of an item."""
        key = record.key
        try:
            if record.failed:
                undo = self._core.operation(f"{key}/undo", Kind.UNDO).recorded
                if undo is not None and undo.failed:
                    self._compensations.lost(key)
                raise StepFailed(key, record.attempt, failures.from_json(record.data))
            value = call.codec.decode(record.data, f"the recorded result of step {key!r}")
        except PayloadError as error:
            self._execution.refuse(error)
        self._compensations.register(record, call, value)
        return value

    def _give_up(self, op: Operation, call: Call) -> None:
        """Where the run's own code has cancelled a step, nobody makes its shared effect any more; it is free.

        This run may be who asks next, and would wait for itself. It may have been taken in an earlier pass. A run that
        is parked frees it when it ends.
        """
        execution = self._execution
        if call.shared is not None and op.recorded is None and not execution.stopped and not execution.parked:
            execution.write(also=ended(call.shared, op.key, kept=False))

    async def _made_elsewhere(self, op: Operation, call: Call, text: str) -> Any:
        """Another run's step has made the effect: its result is recorded here too. It is that run's to undo."""
        if not self._core.direct(op):
            await self._in_turn(op)
        try:
            value = call.codec.decode(text, f"the shared result of step {op.key!r}")
        except PayloadError as error:
            self._execution.refuse(error)
        self._execution.write(self._core.conclude(op, self._host.clock.now(), text))
        return value

    def _succeeded(self, op: Operation, call: Call, text: str, value: Any, attempt: Attempt) -> None:
        now, compensable = self._host.clock.now(), call.compensate is not None
        record = self._core.conclude(op, now, text, False, attempt.attempt, attempt.duration, compensable)
        self._execution.write(record, None, None if call.shared is None else ended(call.shared, op.key, kept=True))
        if compensable:
            self._compensations.register(record, call, value)

    async def _failed(self, op: Operation, call: Call, error: Exception, attempt: Attempt) -> NoReturn:
        duration, failure = attempt.duration, self._host.capture(error)
        if call.retry is not None and call.retry.pauses_after(error):
            self._attempts.failed(op, failure, attempt.attempt, duration, 0.0)
            self._execution.pause_here(f"step {op.key!r} has no attempt left: {failure.summary}")
        if not self._core.direct(op):
            await self._in_turn(op)
        text, now = failures.to_json(failure), self._host.clock.now()
        record = self._core.conclude(op, now, text, failed=True, attempt=attempt.attempt, duration=duration)
        self._execution.write(record, also=ended(call.shared, op.key, kept=False))
        raise StepFailed(op.key, attempt.attempt, failure)

    async def undo(self, key: str, call: Call) -> bool:
        """One compensation: recorded once, with its own attempts. Returns whether it succeeded."""
        op = self._core.operation(f"{key}/undo", Kind.UNDO)
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                return not self._core.deliver(op).failed
            attempt = await self._attempts.run(op, call)
            error, text = attempt.error, None
            if error is not None:
                failure = self._host.capture(error)
                if call.retry is not None and call.retry.pauses_after(error):
                    self._attempts.failed(op, failure, attempt.attempt, attempt.duration, 0.0)
                    self._execution.pause_here(f"the compensation of {key!r} has no attempt left: {failure.summary}")
                text = failures.to_json(failure)
            now, number, duration = self._host.clock.now(), attempt.attempt, attempt.duration
            record = self._core.conclude(op, now, text, failed=error is not None, attempt=number, duration=duration)
            self._execution.write(record, also=None if error is not None else ended(call.shared, key, kept=False))
            return error is None
        finally:
            self._end(op)

    async def _undo_unstorable(self, op: Operation, call: Call, raw: Any) -> None:
        """The effect has happened and its result cannot be recorded: its own compensation runs at once."""
        if call.compensate is not None and not await self.undo(op.key, undo_of(call, raw)):
            self._compensations.lost(op.key)

    def on_rollback(self, op: Operation, call: Call) -> None:
        """Have ``call`` made when the run is undone, in its place among the compensations."""
        self._compensations.add(op.key, call)


def _due(op: Operation) -> datetime:
    assert op.scheduled is not None
    assert op.scheduled.due_at is not None
    return op.scheduled.due_at
