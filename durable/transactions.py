"""``ctx.transaction``: a step whose effect and record are one transaction of the store's own database.

So the effect happens exactly once: either both are there, or neither. The record is drafted when the function has
returned and it is the step's turn; nothing else of the run is delivered until the commit has been answered.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

from durable.committer import resending
from durable.exchange import Exchange
from durable.model import Outcome, Record, RunWrite
from durable.replay import Operation
from durable.steps import Call, current_step


class Transactions(Exchange):
    """Operations that share a transaction with their record."""

    async def transaction(self, op: Operation, call: Call) -> Any:
        """The result of ``call.fn(connection, *call.args)``; committed together with its record.

        Raises:
            StepFailed: The last attempt failed; nothing of it was written.
        """
        try:
            if not self._begin(op):
                await self._wait(op)
            if op.recorded is not None:
                return self._recorded(op, call)
            drafts: list[tuple[Record, Any]] = []
            attempt = await self._attempts.run(op, self._within(op, call, drafts))
            if attempt.error is not None:
                await self._failed(op, call, attempt.error, attempt)
            return drafts[-1][1]
        finally:
            self._end(op)

    def _within(self, op: Operation, call: Call, drafts: list[tuple[Record, Any]]) -> Call:
        """A call that does ``call`` in a transaction, again while the store does not answer."""

        async def made() -> None:
            await resending(partial(self._once, op, call, drafts), lambda: self._execution.lost)

        return Call(made, (), call.codec, True, call.retry, call.timeout)

    async def _once(self, op: Operation, call: Call, drafts: list[tuple[Record, Any]]) -> None:
        started, drafted = time.monotonic(), len(drafts)

        async def write(raw: Any) -> RunWrite:
            text, value = call.codec.round_trip(raw, f"the result of step {op.key!r}")
            if not self._core.direct(op):
                await self._in_turn(op)
            now, duration = self._host.clock.now(), time.monotonic() - started
            compensable = call.compensate is not None
            record = self._core.draft(op, now, text, current_step().attempt, duration, compensable)
            drafts.append((record, value))
            return RunWrite(self._execution.ref, [record])

        work = partial(_called, call)
        transaction = asyncio.ensure_future(self._host.transact(work, call.on_loop, write))
        try:
            outcome = await asyncio.shield(transaction)
        except asyncio.CancelledError:
            if len(drafts) == drafted:  # nothing is under way to the database but the user's own statements
                transaction.cancel()
            await asyncio.wait([transaction])
            if len(drafts) > drafted:
                committed = not transaction.cancelled() and transaction.exception() is None
                self._settled(op, call, drafts[-1], committed and transaction.result() is Outcome.APPLIED)
            raise
        except BaseException:
            if len(drafts) > drafted:
                self._settled(op, call, drafts[-1], False)
            raise
        self._settled(op, call, drafts[-1], outcome is Outcome.APPLIED)
        if outcome is not Outcome.APPLIED:
            self._execution.lose()
            await self._loop.create_future()  # it is being unwound

    def _settled(self, op: Operation, call: Call, draft: tuple[Record, Any], committed: bool) -> None:
        record, value = draft
        self._core.settle(op, record if committed else None)
        if committed:
            self._compensations.register(record, call, value)


def _called(call: Call, connection: Any) -> Any:
    return call.fn(connection, *call.args)
