"""Callers: each triggers an order, does what the order needs from outside, and waits for its end. And a schedule."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import TypeVar

from durable import Engine, RunFailed, RunHandle, State, StoreUnavailable
from tests.chaos import flows

T = TypeVar("T")

PULSE = "pulse"
"""The schedule that stands beside the orders."""

EVERY = 1.0
"""Seconds between its ticks."""


class Load:
    """Orders, a number of them at a time, while a schedule ticks.

    Args:
        client: Through which they are triggered.
        orders: How many.
        at_once: How many have been triggered and not ended, at most.
        patience: Seconds without the end of any order after which the callers give up.

    Attributes:
        acknowledged: Number of the order → its run, for which the engine said that it exists.
        ended: Orders whose end was heard.
        errors: What callers were told that they must not be told.
        signalled: Runs that were sent a signal, which was acknowledged.
    """

    def __init__(self, client: Engine, orders: int, at_once: int, patience: float) -> None:
        self.acknowledged: dict[int, str] = {}
        self.ended: set[int] = set()
        self.signalled: set[str] = set()
        self.errors: list[str] = []
        self.results: dict[str, list[str]] = {}
        self._client = client
        self._numbers: Iterator[int] = iter(range(orders))
        self._at_once = at_once
        self._patience = patience
        self._news = asyncio.Event()
        self._callers: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._callers = asyncio.get_running_loop().create_task(self._call())

    async def reached(self, ended: int, acknowledged: int = 0) -> bool:
        """Wait for so many ends and so many acknowledgements; False when the callers are through before."""
        assert self._callers is not None
        while len(self.ended) < ended or len(self.acknowledged) < acknowledged:
            if self._callers.done():
                return False
            self._news.clear()
            waiting = asyncio.ensure_future(self._news.wait())
            await asyncio.wait([waiting, self._callers], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        return True

    @property
    def over(self) -> bool:
        """Nobody calls any more."""
        return self._callers is not None and self._callers.done()

    def finish(self) -> None:
        """No further orders."""
        self._numbers = iter(())

    async def through(self) -> None:
        """Every order has ended, or nothing has for so long that the verdict may say which have not.

        Then no tick is fired any more, and the runs of all ticks have ended.
        """
        assert self._callers is not None
        heard = -1
        while not self._callers.done() and heard < len(self.ended):
            heard = len(self.ended)
            await asyncio.wait([self._callers], timeout=self._patience)
        self._callers.cancel()
        try:
            await self._callers
        except asyncio.CancelledError:
            return
        except ExceptionGroup as errors:
            self.errors += [repr(error) for error in errors.exceptions]
        try:
            async with asyncio.timeout(self._patience):
                await self._calm()
        except TimeoutError:
            self.errors.append("I6: after the faults the schedule does not tick, or its runs do not end")

    async def _calm(self) -> None:
        """The schedule has ticked once more, ticks no more, and its runs have ended."""
        fired = (await again(lambda: self._client.get_schedule(PULSE))).fired
        while (await again(lambda: self._client.get_schedule(PULSE))).fired == fired:  # noqa: ASYNC110
            await asyncio.sleep(EVERY / 4)  # a tick calls nobody
        await again(lambda: self._client.pause_schedule(PULSE, "the load is through"))
        for state in (State.PENDING, State.RUNNING):
            ask = partial(self._client.list_runs, workflow=PULSE, state=state)
            while (await again(ask)).items:  # noqa: ASYNC110
                await asyncio.sleep(EVERY / 4)

    async def _call(self) -> None:
        await again(
            lambda: self._client.schedule(flows.pulse, name=PULSE, every=EVERY, overlap="allow", catch_up="all")
        )
        async with asyncio.TaskGroup() as callers:
            for _ in range(self._at_once):
                callers.create_task(self._one_after_the_other())

    async def _one_after_the_other(self) -> None:
        while (number := next(self._numbers, None)) is not None:
            handle = await self._triggered(number)
            if handle is None:
                continue
            self.acknowledged[number] = handle.run_id
            self._news.set()
            await self._carry_through(number, handle)
            self.ended.add(number)
            self._news.set()

    async def _triggered(self, number: int) -> RunHandle[list[str]] | None:
        """Every other order has a key, so that the caller may ask again; without one it does not, and cannot know."""
        if number % 2:
            return await again(lambda: self._client.trigger(flows.order, number, key=f"order {number}"))
        try:
            return await self._client.trigger(flows.order, number)
        except StoreUnavailable:
            return None

    async def _carry_through(self, number: int, handle: RunHandle[list[str]]) -> None:
        if number % 10 == flows.SIGNALLED:
            paid = f"paid {number}"
            await again(lambda: self._client.signal(handle.run_id, "paid", paid, signal_id=paid))
            self.signalled.add(handle.run_id)
        try:
            self.results[handle.run_id] = await again(handle.result)
        except RunFailed:
            assert number % 10 == flows.FAILS, f"order {number} failed"


async def again(send: Callable[[], Awaitable[T]]) -> T:
    """``send()``, as a caller does that does not give up."""
    while True:
        try:
            return await send()
        except StoreUnavailable:
            await asyncio.sleep(0.05)
