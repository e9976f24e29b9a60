"""``ctx.map``: one function, or one child workflow, for each of many items, a bounded number at a time.

The items run engine code only, so their results need no order among each other: the fan-out as a whole is one operation
that is delivered once, and its items are records ``<key>[<n>]`` on the way. A fan-out that is interrupted goes on with
the items that have no record.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from durable import failures
from durable.codec import Codec
from durable.effects import signal_in_no_turn
from durable.errors import ChildFailed, NondeterminismError, PayloadError, StepFailed
from durable.exchange import has_result
from durable.model import Also, Kind, NewRun, Record
from durable.replay import Operation
from durable.steps import UNWIND, Call
from durable.tasks import unwound
from durable.transactions import Transactions

_Item = Callable[[int], Awaitable[Any]]


class FanOut(Transactions):
    """Fan-outs over steps and over child runs."""

    async def map_steps(
        self, op: Operation, calls: Callable[[int], Call], count: int, concurrency: int, collect: bool
    ) -> list[Any]:
        """The results of ``count`` steps, in the order of the items.

        Args:
            calls: Makes the call of an item.
            concurrency: Items that are under way at the same time.
            collect: Failures take the place of results; else the first one cancels what is under way and is raised.

        Raises:
            StepFailed: An item has failed, and ``collect`` is off.
        """

        def again(record: Record, index: int) -> Any:
            return self._recorded(record, calls(index))

        async def one(index: int) -> Any:
            return await self._step_item(f"{op.key}[{index}]", calls(index))

        return await self._map(op, count, concurrency, collect, Kind.STEP, again, one)

    async def map_children(
        self,
        op: Operation,
        children: Callable[[int, str], NewRun],
        codec: Codec,
        count: int,
        concurrency: int,
        collect: bool,
    ) -> list[Any]:
        """The results of ``count`` child runs, in the order of the items.

        Args:
            children: Makes the child of an item, called under a record key.
            codec: Of the children's results.

        Raises:
            ChildFailed: A child has ended without a result, and ``collect`` is off.
        """

        def again(record: Record, index: int) -> Any:
            key = f"{op.key}[{index}]"
            self._execution.child_ended(key)
            return self._child_ended(key, self._core.data_of(key) or "", record.data, codec)

        async def one(index: int) -> Any:
            return await self._child_item(f"{op.key}[{index}]", index, children, codec)

        return await self._map(op, count, concurrency, collect, Kind.WOKE, again, one)

    async def _map(
        self,
        op: Operation,
        count: int,
        concurrency: int,
        collect: bool,
        kind: Kind,
        again: Callable[[Record, int], Any],
        one: _Item,
    ) -> list[Any]:
        try:
            if not self._begin(op):
                await self._wait(op)
            found = _Found(count, collect)
            for record in self._core.items(op.key):
                index = _index_of(record.key, op.key)
                if index >= count:
                    self._refuse(op, f"{count} items, and item {index} is recorded")
                if record.kind is kind:
                    found.take(index, partial(again, record, index))
                elif record.kind is (Kind.CALL if kind is Kind.STEP else Kind.STEP):
                    self._refuse(op, f"item {index} is recorded as a {record.kind}")
            if op.recorded is not None:
                recorded = self._core.deliver(op).data
                if recorded != str(count):
                    self._refuse(op, f"{count} items, and {recorded} are recorded")
                if found.error is None and found.open:
                    self._refuse(op, f"{found.open} were left out after a failure, which is collected now")
            else:
                await self._open()
                await self._missing(found, concurrency, one)
                if not self._core.direct(op):
                    await self._in_turn(op)
                self._execution.write(self._core.conclude(op, self._host.clock.now(), str(count)))
            if found.error is not None:
                raise found.error
            return found.results
        finally:
            self._end(op)

    def _refuse(self, op: Operation, why: str) -> NoReturn:
        self._execution.refuse(NondeterminismError(f"fan-out {op.key!r} has other items than recorded: {why}"))

    async def _missing(self, found: _Found, concurrency: int, one: _Item) -> None:
        """Make the items that have no record."""
        todo = found.missing()
        self._execution.several_tasks = True

        async def pull() -> None:
            for index in todo:
                if found.error is not None:
                    return
                await found.receive(index, one(index))

        tasks = {asyncio.ensure_future(pull()) for _ in range(min(concurrency, found.open))}
        try:
            while tasks and found.error is None:
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            await unwound(tasks, UNWIND, f"an item of run {self._execution.run.id}")

    # -- items ------------------------------------------------------------------------------------

    async def _step_item(self, key: str, call: Call) -> Any:
        op = Operation(key, Kind.STEP, None, None)
        attempt = await self._attempts.run(op, call)
        error, text, value = attempt.error, None, None
        if error is None:
            try:
                text, value = call.codec.round_trip(attempt.value, op)
            except PayloadError as refused:
                error = refused
                await self._undo_unstorable(op, call, attempt.value)
        failure = None if error is None else self._host.capture(error)
        if failure is not None and error is not None and call.retry is not None and call.retry.pauses_after(error):
            self._attempts.failed(op, failure, attempt.attempt, attempt.duration, 0.0)
            self._execution.pause_here(f"step {key!r} has no attempt left: {failure.summary}")
        record = self._core.item(
            key,
            Kind.STEP,
            self._host.clock.now(),
            text if failure is None else failures.to_json(failure),
            failed=failure is not None,
            attempt=attempt.attempt,
            duration=attempt.duration,
            compensable=failure is None and call.compensate is not None,
        )
        self._execution.write(record)
        if failure is not None:
            raise StepFailed(key, attempt.attempt, failure)
        self._compensations.register(record, call, value)
        return value

    async def _child_item(self, key: str, index: int, children: Callable[[int, str], NewRun], codec: Codec) -> Any:
        run_id = self._core.data_of(key)
        if run_id is None:
            await self._open()
            child = children(index, key)
            record = self._core.item(key, Kind.CALL, self._host.clock.now(), child.id)
            self._execution.write(record, also=Also(children=[child]))
            self._execution.children[key] = run_id = child.id
        also, woke = None, f"{key}/woke"
        if self._core.end_was_told(key):  # it was told before an operator's retry, and is not told again
            data = await self._end_of(Operation(woke, Kind.WOKE, None, None), run_id)
        else:
            signal = await signal_in_no_turn(self._pulse, key, f"child/{key}", run_id)
            data, also = signal.data, Also(consumed=[signal.id])
        self._execution.child_ended(key)
        record = self._core.item(woke, Kind.WOKE, self._host.clock.now(), data, failed=not has_result(data))
        self._execution.write(record, also=also)
        return self._child_ended(key, run_id, data, codec)


class _Found:
    """What has become of the items so far."""

    def __init__(self, count: int, collect: bool) -> None:
        self.results: list[Any] = [_MISSING] * count
        self.error: Exception | None = None
        """The first failure, unless failures are collected."""
        self._collect = collect

    @property
    def open(self) -> int:
        return sum(result is _MISSING for result in self.results)

    def missing(self) -> Iterator[int]:
        return iter([index for index, result in enumerate(self.results) if result is _MISSING])

    def take(self, index: int, result: Callable[[], Any]) -> None:
        try:
            self.results[index] = result()
        except (StepFailed, ChildFailed) as error:
            self._failed(index, error)

    async def receive(self, index: int, result: Awaitable[Any]) -> None:
        try:
            self.results[index] = await result
        except (StepFailed, ChildFailed) as error:
            self._failed(index, error)

    def _failed(self, index: int, error: Exception) -> None:
        self.results[index] = error
        if not self._collect:
            self.error = self.error or error


_MISSING: Any = object()


def _index_of(item: str, key: str) -> int:
    """The number in ``<key>[<n>]…``."""
    return int(item[len(key) + 1 :].partition("]")[0])
