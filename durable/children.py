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
        self._ended: asyncio.Future[Out_co] | None = None

    async def result(self) -> Out_co:
        """Wait for the child's end and return its result; the parent is parked meanwhile. It may be asked again.

        Raises:
            ChildFailed: The child ended without a result.
        """
        if self._ended is None:
            self._ended = asyncio.get_running_loop().create_future()
            try:
                self._ended.set_result(await self._outcome())
            except Exception as error:
                self._ended.set_exception(error)
            except BaseException:
                self._ended = None
                raise
        return await asyncio.shield(self._ended)

    def __repr__(self) -> str:
        return f"<child run {self.run_id}>"
