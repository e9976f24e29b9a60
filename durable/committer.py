"""Group commit: many callers, one transaction at a time, or two.

A flush starts when the previous one of its lane returns, with everything that has gathered meanwhile. There is
no timer: an idle system pays one pass of the event loop, and a busy one commits hundreds of records at once. What
is gathered for one run is folded into one write, so a flush touches each run once.

A lost connection is an unknown outcome: the same batch is sent again until the store answers; every write is
made so that sending it again changes nothing. Data that the database refuses is isolated by halving the batch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from durable.errors import DurableError, PayloadError, StoreUnavailable
from durable.model import Also, Change, Outcome, Record, RunRef, RunWrite
from durable.store import Store

Answer = TypeVar("Answer")
Item = TypeVar("Item")
T = TypeVar("T")

Settled = Callable[[RunWrite, Outcome | DurableError], None]
"""Told about each write of a run when its flush has returned."""

_log = logging.getLogger("durable.committer")

_MAX_BATCH = 1000
_FEW = 128
"""Up to so many runs that write share one flush: what each flush costs beside its writes outweighs what two in flight
gain, where the server writes some of the runs while others execute. Ten-step runs, 8 in flight: 1.9 times the steps at
a third of the processor time; 100: 1.3 times; from 200 on two are faster."""
_LARGE = 200_000
"""Characters of records from which two are better for fewer runs too: 50 of a megabyte, 1.8 times."""
_RESEND_FIRST, _RESEND_MAX = 0.05, 1.0  # seconds between two sendings of a batch; doubling
_BUSY_PAUSE = 0.005  # seconds before a run that somebody else held is tried again


class Lane(Generic[Item]):
    """One flush at a time, for as long as there is something to take.

    Args:
        take: The next batch; empty when there is none.
        flush: Commits one batch and resolves its items; it must not raise.
    """

    def __init__(self, take: Callable[[], list[Item]], flush: Callable[[list[Item]], Awaitable[None]]) -> None:
        self._take = take
        self._flush = flush
        self._running: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to take."""
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._run())

    @property
    def busy(self) -> bool:
        return self._running is not None

    async def drained(self) -> None:
        """Return when nothing is left to take, and nothing in flight."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        try:
            while True:
                # A function that returns with its last step is seen to have ended one pass of the loop later: its end
                # shares the commit, and an idle system carries a run of three steps in three commits, not in four.
                await asyncio.sleep(0)
                if not (batch := self._take()):
                    return
                await self._flush(batch)
                await asyncio.sleep(0)  # whom the flush has answered goes on, and comes along: 250 in a batch, not 120
        finally:
            self._running = None


async def resending(send: Callable[[], Awaitable[T]], give_up: Callable[[], bool]) -> T:
    """``send()`` until the store answers, or until ``give_up()`` after a failure.

    Raises:
        StoreUnavailable: It was given up.
    """
    pause = _RESEND_FIRST
    while True:
        try:
            return await send()
        except StoreUnavailable as error:
            if give_up():
                raise
            if pause == _RESEND_FIRST:  # once an outage
                _log.warning("the store does not answer, sending again until it does: %s", " ".join(str(error).split()))
        await asyncio.sleep(pause)
        pause = min(pause * 2, _RESEND_MAX)


class Pending(RunWrite):
    """What is gathered for one run, and who waits for its commit.

    One is made per step and lives through a flush, with hundreds of others: the fewer objects it consists of, the less
    the garbage collector has to look at.
    """

    __slots__ = ("_folded", "_into", "_loop", "_settled", "_waiters", "done")

    def __init__(
        self,
        ref: RunRef,
        records: list[Record],
        change: Change | None,
        also: Also | None,
        settled: Settled,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.ref = ref
        self.records = records
        self.change = change
        self.also = also
        self.done = False
        """It was answered."""
        self._settled = settled
        self._loop = loop
        self._waiters: list[asyncio.Future[None]] | None = None
        self._into: Pending | None = None  # what it was folded into
        self._folded: Pending | None = None  # what was folded into it

    def committed(self) -> asyncio.Future[None]:
        """Done when it is committed. One future a waiter: cancelling one waiter leaves the others alone."""
        if self._into is not None:
            return self._into.committed()
        waiter = self._loop.create_future()
        if self._waiters is None:
            self._waiters = [waiter]
        else:
            self._waiters.append(waiter)
        return waiter

    def settle(self, outcome: Outcome | DurableError) -> None:
        """Applied: wake the waiters. Otherwise the execution is told, and it unwinds them."""
        self.answered(outcome is Outcome.APPLIED)
        self._settled(self, outcome)

    def answered(self, applied: bool) -> None:
        self.done = True
        if applied and self._waiters is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
        if self._folded is not None:
            self._folded.answered(applied)

    def put_before(self, later: Pending) -> None:
        """Fold this one, which was not applied, into the same run's next one."""
        later.records[:0] = self.records
        later.change = _at_once(self.change, later.change)
        if self.also is not None:
            later.also = _together(self.also, later.also)
        self._into, later._folded = later, self


class Committer:
    """Group commit of one worker's fenced writes.

    Args:
        store: Where to.
        worker: Whose lease every write proves.
        closed: Whether the lease is known to be lost, so that resending has no purpose.
        measured: Called after each flush that the store has answered: seconds, and how many runs it has touched.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        closed: Callable[[], bool],
        measured: Callable[[float, int], None] | None = None,
    ) -> None:
        self._store = store
        self._worker = worker
        self._closed = closed
        self._measured = measured
        self._loop = asyncio.get_running_loop()
        self._open: dict[str, Pending] = {}  # gathered and not sent, by run
        self._sent: set[str] = set()  # runs with a write in flight
        self._size = 0  # characters of records that were written since nothing was gathered
        self._first, self._second = Lane(self._take, self._flush), Lane(self._take, self._flush)

    def write(
        self,
        ref: RunRef,
        settled: Settled,
        record: Record | None = None,
        change: Change | None = None,
        also: Also | None = None,
    ) -> Pending:
        """Gather a record, a change, or both. The next flush carries them, after all that came before."""
        if record is not None and record.data is not None:
            self._size += len(record.data)
        pending = self._open.get(ref.id)
        if pending is None:
            records = [] if record is None else [record]
            pending = self._open[ref.id] = Pending(ref, records, change, also, settled, self._loop)
            self._wake()
            return pending
        pending.ref = ref  # it may have become linked
        if record is not None:
            pending.records.append(record)
        if also is not None:
            pending.also = _together(pending.also, also)
        if change is not None:
            pending.change = _at_once(pending.change, change)
        return pending

    def _wake(self) -> None:
        if not self._first.busy:
            self._first.wake()
        elif not self._second.busy and self._worth_two:
            self._second.wake()

    @property
    def _worth_two(self) -> bool:
        return len(self._open) + len(self._sent) > _FEW or self._size > _LARGE

    def _take(self) -> list[Pending]:
        """The next flush's writes. What is left here is taken by the lane that flushes, when its flush has returned."""
        if self._sent and not self._worth_two:
            return []
        # Behind what is in flight of the same run: else its end could be committed before its last record.
        batch = [pending for run_id, pending in self._open.items() if run_id not in self._sent]
        burst = self._size > _LARGE or len(batch) > 2 * _FEW
        if burst and not self._sent and self._first.busy and self._second.busy:
            del batch[(len(batch) + 1) // 2 :]  # the other lane is about to take the other half
        del batch[_MAX_BATCH:]
        for pending in batch:
            del self._open[pending.ref.id]
            self._sent.add(pending.ref.id)
        if not self._open:
            self._size = 0
        return batch

    async def drained(self) -> None:
        while self._first.busy or self._second.busy:  # what one lane has committed may have caused a write in another
            await self._first.drained()
            await self._second.drained()

    async def _flush(self, batch: list[Pending]) -> None:
        try:
            await self._commit(batch)
        finally:
            self._sent.difference_update(pending.ref.id for pending in batch)

    async def _commit(self, batch: list[Pending]) -> None:
        sent = time.monotonic()
        try:
            outcomes = await resending(lambda: self._store.commit(self._worker, batch), self._closed)
        except PayloadError as error:
            await self._isolate(batch, error)
        except DurableError as error:
            for pending in batch:
                pending.settle(error)
        except Exception as error:
            _log.exception("a commit failed in a way that it must not")
            for pending in batch:
                pending.settle(DurableError(f"commit failed: {error!r}"))
        else:
            if self._measured is not None:
                self._measured(time.monotonic() - sent, len(batch))
            await self._settle(batch, outcomes)

    async def _isolate(self, batch: list[Pending], error: PayloadError) -> None:
        """Find the write whose data the database refuses; the others are committed. O(log n) sendings a culprit."""
        if len(batch) == 1:
            batch[0].settle(error)
            return
        middle = len(batch) // 2
        await self._commit(batch[:middle])
        await self._commit(batch[middle:])

    async def _settle(self, batch: list[Pending], outcomes: Sequence[Outcome]) -> None:
        busy = 0
        for pending, outcome in zip(batch, outcomes, strict=True):
            if outcome is Outcome.BUSY:
                self._again(pending)
                busy += 1
            else:
                pending.settle(outcome)
        if busy == len(batch):
            await asyncio.sleep(_BUSY_PAUSE)

    def _again(self, pending: Pending) -> None:
        """Put a busy run's write into the next flush, before what has gathered for the run meanwhile."""
        later = self._open.get(pending.ref.id)
        if later is not None:
            pending.put_before(later)
        else:
            self._open[pending.ref.id] = pending


def _together(first: Also | None, second: Also | None) -> Also | None:
    if first is None or second is None:
        return second if first is None else first
    return Also(
        first.children + second.children,
        first.consumed + second.consumed,
        first.awaited + second.awaited,
        first.effects + second.effects,
        first.emits or second.emits,
    )


def _at_once(first: Change | None, then: Change | None) -> Change | None:
    """One change for two of a run: it begins to compensate, and leaves before that is committed (a drain, a pause)."""
    if first is None or then is None:
        return then if first is None else first
    assert first.keep, "a change that gives the lease back is a run's last write"
    return then if then.error is not None else then._replace(error=first.error)


class Sender(Generic[Item, Answer]):
    """Group commit of what needs no lease: triggers, signals, events. Apart from the workers' writes.

    Args:
        send: Sends a batch to the store; one answer for each item, in order.
        patience: Seconds for which a batch is sent again while the store does not answer.
    """

    def __init__(self, send: Callable[[list[Item]], Awaitable[Sequence[Answer]]], patience: float = 10.0) -> None:
        self._send = send
        self._patience = patience
        self._gathered: list[_Wanted[Item, Answer]] = []
        self._lane = Lane(self._take, self._flush)

    async def send(self, item: Item) -> Answer:
        """The store's answer to ``item``.

        Raises:
            StoreUnavailable: No answer within the patience; whether it was stored is unknown.
            PayloadError: The database refuses the data.
        """
        [answer] = await self.send_all([item])
        return answer

    async def send_all(self, items: Sequence[Item]) -> list[Answer]:
        """As ``send``, for each; they may go in several flushes. Raises when one of them is refused."""
        if not items:
            return []
        answers = _Answers[Answer](len(items))
        for place, item in enumerate(items):
            self._gathered.append(_Wanted(item, answers, place))
        self._lane.wake()
        return await answers.all

    async def drained(self) -> None:
        await self._lane.drained()

    def _take(self) -> list[_Wanted[Item, Answer]]:
        batch, self._gathered = self._gathered[:_MAX_BATCH], self._gathered[_MAX_BATCH:]
        return batch

    async def _flush(self, batch: list[_Wanted[Item, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience
        try:
            answers = await resending(
                lambda: self._send([wanted.item for wanted in batch]), lambda: loop.time() >= deadline
            )
        except PayloadError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._flush(batch[:middle])
                await self._flush(batch[middle:])
            else:
                batch[0].answers.fail(error)
        except Exception as error:
            for wanted in batch:
                wanted.answers.fail(error)
        else:
            for wanted, answer in zip(batch, answers, strict=True):
                wanted.answers.put(wanted.place, answer)


class _Wanted(NamedTuple, Generic[Item, Answer]):
    """One item of a call."""

    item: Item
    answers: _Answers[Answer]
    place: int


class _Answers(Generic[Answer]):
    """What becomes of the items of one call: one future for all of them, 15 µs an item less than a task for each."""

    def __init__(self, count: int) -> None:
        self.all: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._found: dict[int, Answer] = {}
        self._count = count

    def put(self, place: int, answer: Answer) -> None:
        self._found[place] = answer
        if len(self._found) == self._count and not self.all.done():
            self.all.set_result([self._found[place] for place in range(self._count)])

    def fail(self, error: Exception) -> None:
        if not self.all.done():
            self.all.set_exception(error)
