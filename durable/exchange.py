"""What a run exchanges with the rest of the world: it waits for signals and events, calls children, emits.

All that comes in is a signal in the inbox. A wait is recorded when it is called and when it ends; a child is made by
the write that records its call, so that a replayed parent finds the same one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from durable import failures
from durable.codec import Codec
from durable.errors import ChildFailed, PayloadError, WaitTimeout
from durable.inbox import Accept
from durable.model import Also, Awaited, Failure, Kind, NewRun, Signal, State
from durable.operations import Operations
from durable.replay import Operation
from durable.waits import accepts

_LOOK_AGAIN = timedelta(seconds=1)
"""Between two looks for the end of a child that will not be told: after an operator's retry from a step."""


class Wait:
    """What a wait accepts.

    Args:
        codecs: The name of a signal → its payload's type.
        timeout: Seconds from the call; None: no deadline.
        event: Topic, key, and how many seconds before the call an event may have been published.
        named: The result says which of the names it was.
    """

    __slots__ = ("codecs", "event", "named", "timeout")

    def __init__(
        self,
        codecs: Mapping[str, Codec],
        timeout: float | None,
        event: tuple[str, str, float] | None = None,
        named: bool = False,
    ) -> None:
        self.codecs = codecs
        self.timeout = timeout
        self.event = event
        self.named = named


class Exchange(Operations):
    """Operations that wait for the outside, or tell it something."""

    # -- waiting ----------------------------------------------------------------------------------

    async def wait(self, op: Operation, wait: Wait) -> Any:
        """The payload of the next signal that fits; with several names, ``(name, payload)``.

        Raises:
            WaitTimeout: Nothing came before the deadline.
        """
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                return self._waited(op, wait)
            await self._open()
            if op.scheduled is None:
                self._call(op, wait)
            value: list[Any] = []
            signal = await self._brought(op, wait.codecs, lambda signal: self._fits(signal, wait, value))
            now = self._host.clock.now()
            if signal is None:
                self._execution.write(self._core.conclude(op, now, failed=True))
                raise WaitTimeout(op.key)
            text = json.dumps([signal.name, json.loads(signal.data)]) if wait.named else signal.data
            self._execution.write(self._core.conclude(op, now, text), also=Also(consumed=[signal.id]))
            return (signal.name, value[-1]) if wait.named else value[-1]
        finally:
            self._end(op)

    def _call(self, op: Operation, wait: Wait) -> None:
        now = self._host.clock.now()
        due_at = None if wait.timeout is None else now + timedelta(seconds=wait.timeout)
        also = None
        if wait.event is not None:
            topic, key, lookback = wait.event
            also = Also(awaited=[Awaited(topic, key, now - timedelta(seconds=lookback))])
        text = accepts(op.key, [*wait.codecs], None if wait.event is None else wait.event[:2])
        self._execution.write(self._core.note(op, now, due_at, text), also=also)

    def _waited(self, op: Operation, wait: Wait) -> Any:
        record = self._core.deliver(op)
        if record.failed:
            raise WaitTimeout(op.key)
        try:
            if not wait.named:
                [codec] = wait.codecs.values()
                return codec.decode(record.data, f"the recorded result of wait {op.key!r}")
            name, payload = json.loads(record.data or "null")
            if name not in wait.codecs:
                raise PayloadError(f"wait {op.key!r} has received {name!r}, and accepts {', '.join(wait.codecs)}")
            return name, wait.codecs[name].decode(json.dumps(payload), f"the recorded result of wait {op.key!r}")
        except PayloadError as error:
            self._execution.refuse(error)

    def _fits(self, signal: Signal, wait: Wait, value: list[Any]) -> bool:
        """Whether the payload is what the wait declares; one that is not is consumed, and the run waits on."""
        try:
            value.append(wait.codecs[signal.name].decode(signal.data, f"the payload of signal {signal.name!r}"))
        except PayloadError as error:
            text = failures.to_json(self._host.capture(error))
            record = self._core.remark(Kind.REFUSED, "/refused/{seq}", self._host.clock.now(), text)
            self._execution.write(record, also=Also(consumed=[signal.id]))
            return False
        return True

    async def _brought(self, op: Operation, names: Collection[str], fits: Accept) -> Signal | None:
        """The next signal of one of the names that ``fits``, in its turn; None when the deadline came first."""
        inbox = self._pulse.inbox

        def accept(signal: Signal) -> bool:
            if not fits(signal):
                return False
            op.brought = signal
            return True

        def arrived(signal: Signal) -> bool:
            if not accept(signal):
                return False
            self._pulse.timers.pop(op.key, None)
            self._core.offer(op)
            self._pulse.touch()
            return True

        try:
            if inbox.take(names, accept):
                if not self._core.direct(op):
                    await self._in_turn(op)
            else:
                inbox.wait(op.key, names, arrived)
                await self._execution.outside(op)
        except asyncio.CancelledError:
            inbox.forget(op.key)
            if op.brought is not None:
                inbox.put_back(op.brought)
            raise
        return op.brought

    # -- children ---------------------------------------------------------------------------------

    async def start(self, op: Operation, child: NewRun) -> str:
        """Make the child, unless it was made before; its run id."""
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                return self._core.deliver(op).data or ""
            await self._open()
            if not self._core.direct(op):
                await self._in_turn(op)
            record = self._core.conclude(op, self._host.clock.now(), child.id)
            self._execution.write(record, also=Also(children=[child]))
            self._execution.children[op.key] = child.id
            return child.id
        finally:
            self._end(op)

    def outcome_of(self, key: str) -> Operation:
        """The operation that waits for the child which was called as ``key``."""
        return self._core.operation(f"{key}/woke", Kind.WOKE)

    async def outcome(self, op: Operation, codec: Codec) -> Any:
        """The child's result.

        Raises:
            ChildFailed: It ended without one.
        """
        key = op.key.removesuffix("/woke")
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                self._execution.child_ended(key)
                return self._child_ended(key, self._core.data_of(key) or "", self._core.deliver(op).data, codec)
            await self._open()
            run_id = self._execution.children.get(key) or self._core.data_of(key) or ""
            if self._core.end_was_told(key):
                return await self._look_up(op, key, run_id, codec)
            # A child that was called under this key before an operator's retry is another one.
            signal = await self._brought(op, (f"child/{key}",), lambda signal: signal.id == run_id)
            assert signal is not None, "a child has no deadline"
            self._execution.child_ended(key)
            record = self._core.conclude(op, self._host.clock.now(), signal.data, failed=not has_result(signal.data))
            self._execution.write(record, also=Also(consumed=[signal.id]))
            return self._child_ended(key, run_id, signal.data, codec)
        finally:
            self._end(op)

    async def _look_up(self, op: Operation, key: str, run_id: str, codec: Codec) -> Any:
        """The end of a child that was told before an operator's retry set that aside: it is not told again."""
        data = await self._end_of(op, run_id)
        if not self._core.direct(op):
            await self._in_turn(op)
        self._execution.child_ended(key)
        self._execution.write(self._core.conclude(op, self._host.clock.now(), data, failed=not has_result(data)))
        return self._child_ended(key, run_id, data, codec)

    async def _end_of(self, op: Operation, run_id: str) -> str:
        """How a child has ended; one that was retried too is looked for again and again, parked in between."""
        while True:
            await self._open()
            self._attempts.busy += 1  # the answer must not find the run parked
            try:
                data = await self._host.child_end(run_id)
            finally:
                self._attempts.busy -= 1
            if data is not None:
                return data
            await self._execution.until(op, self._host.clock.now() + _LOOK_AGAIN)

    def _child_ended(self, key: str, run_id: str, data: str | None, codec: Codec) -> Any:
        end: dict[str, Any] = json.loads(data or "{}")
        if end["state"] != State.COMPLETED:
            failure = Failure("unknown", "") if end["error"] is None else failures.from_json(json.dumps(end["error"]))
            raise ChildFailed(key, run_id, end["state"], failure)
        try:
            return codec.decode(json.dumps(end["result"]), f"the result of child {key!r}")
        except PayloadError as error:
            self._execution.refuse(error)

    # -- telling ----------------------------------------------------------------------------------

    async def emit(self, op: Operation, text: str) -> None:
        """Record ``text`` for those who read the log, once."""
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                self._core.deliver(op)
                return
            await self._open()
            if not self._core.direct(op):
                await self._in_turn(op)
            self._execution.write(self._core.conclude(op, self._host.clock.now(), text), also=Also(emits=True))
        finally:
            self._end(op)


def has_result(end: str) -> bool:
    """Whether the end of a child is one with a result."""
    state: str = json.loads(end)["state"]
    return state == State.COMPLETED
