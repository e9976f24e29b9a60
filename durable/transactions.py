"""``ctx.transaction``: a step whose effect and record are one transaction of the store's own database.

So the effect happens exactly once: either both are there, or neither. The record is drafted when the function has
returned and it is the step's turn; nothing else of the run is delivered until the commit has been answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from durable.committer import resending
from durable.exchange import Exchange
from durable.model import Outcome, Record, RunWrite
from durable.replay import Operation
from durable.steps import UNWIND, Call, current_step, log_abandoned


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
                return self._recorded(self._core.deliver(op), call)
            attempt = await self._attempts.run(op, self._within(op, call))
            if attempt.error is not None:
                await self._failed(op, call, attempt.error, attempt)
            return attempt.value
        finally:
            self._end(op)

    def _within(self, op: Operation, call: Call) -> Call:
        """A call that does ``call`` in a transaction, again while the store does not answer."""

        async def made() -> Any:
            return await resending(partial(self._once, op, call), lambda: self._execution.lost)

        return Call(made, (), call.codec, True, call.retry, None)  # the timeout is the function's, not the commit's

    async def _once(self, op: Operation, call: Call) -> Any:
        started, draft = time.monotonic(), _Draft(self._loop.create_future())

        async def write(raw: Any) -> RunWrite:
            if draft.given_up:
                raise asyncio.CancelledError("the function's result is not wanted any more")
            draft.returned.set_result(None)
            text, value = call.codec.round_trip(raw, op)
            if not self._core.direct(op):
                await self._in_turn(op)
            now, duration = self._host.clock.now(), time.monotonic() - started
            compensable = call.compensate is not None
            draft.record = self._core.draft(op, now, text, current_step().attempt, duration, compensable)
            draft.value = value
            return RunWrite(self._execution.ref, [draft.record])

        transaction = asyncio.ensure_future(self._host.transact(partial(_called, call), call.on_loop, write))
        cancelled = await _ended(transaction, draft, call.timeout, op.key)
        answered = transaction.done() and not transaction.cancelled() and transaction.exception() is None
        outcome = transaction.result() if answered else None
        applied = outcome is Outcome.APPLIED
        if draft.record is not None:
            self._core.settle(op, draft.record if applied else None)
            if applied:
                self._compensations.register(draft.record, call, draft.value)
        if applied and (cancelled is None or not self._execution.stopped):
            return draft.value  # what is committed stands, and a replay returns it: the cancellation came too late
        if cancelled is not None:
            raise cancelled
        if draft.given_up:
            raise TimeoutError(f"no result within {call.timeout:g} s")
        if not answered:
            return transaction.result()  # raises
        self._execution.lose()
        return await self._loop.create_future()  # it is being unwound


@dataclass(slots=True)
class _Draft:
    """What has become of the function in one transaction."""

    returned: asyncio.Future[None]  # done when it has returned: the timeout does not count any more
    record: Record | None = None  # once it was this one's turn
    value: Any = None
    given_up: bool = False  # it was cancelled, or is late: nothing of it is to be written


async def _ended(
    transaction: asyncio.Future[Outcome], draft: _Draft, timeout: float | None, what: str
) -> asyncio.CancelledError | None:
    """Wait for the end of a transaction; the cancellation that has come meanwhile, if any.

    Before the draft a cancellation, or the timeout, takes it back. After the draft it is waited for: until it is known
    whether it was committed, nothing else of the run can be delivered.
    """
    cancelled: asyncio.CancelledError | None = None
    first: list[asyncio.Future[Any]] = [transaction, draft.returned]
    try:
        await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        draft.given_up = not transaction.done() and not draft.returned.done()
        if not draft.given_up:
            await asyncio.wait([transaction])
    except asyncio.CancelledError as error:
        cancelled, draft.given_up = error, draft.record is None
    if draft.given_up:
        current_step().cancelled = True
        transaction.cancel()
    while not transaction.done():
        try:
            _, refusing = await asyncio.wait([transaction], timeout=UNWIND if draft.given_up else None)
        except asyncio.CancelledError as error:
            cancelled = error
        else:
            if refusing:
                log_abandoned(transaction, what)
                break
    return cancelled


def _called(call: Call, connection: Any) -> Any:
    return call.fn(connection, *call.args)
