"""A child run, as the workflow function that started it sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Out_co = TypeVar("Out_co", covariant=True)


class ChildHandle(Generic[Out_co]):
    """A child that ``ctx.start`` has made.

    Attributes:
        run_id: The child's run id.
    """

    def __init__(self, run_id: str, outcome: Callable[[], Coroutine[Any, Any, Out_co]]) -> None:
        self.run_id = run_id
        self._outcome = outcome
        self._asking: asyncio.Future[None] | None = None  # by one task; the others wait
        self._ended: asyncio.Future[Out_co] | None = None

    async def result(self) -> Out_co:
        """Wait for the child's end and return its result; the parent is parked meanwhile. It may be asked again.

        Raises:
            ChildFailed: The child ended without a result.
        """
        while self._ended is None:
            if self._asking is None:
                await self._ask()
            else:
                await asyncio.wait([self._asking])  # who asks may be cancelled: then another one asks
        return self._ended.result()

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        asking = self._asking = loop.create_future()
        try:
            ended: asyncio.Future[Out_co] = loop.create_future()
            try:
                ended.set_result(await self._outcome())
            except Exception as error:
                ended.set_exception(error)
            self._ended = ended
        finally:
            self._asking = None
            asking.set_result(None)

    def __repr__(self) -> str:
        return f"<child run {self.run_id}>"
