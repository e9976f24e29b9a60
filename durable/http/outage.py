"""Notices that the store does not answer, so that nobody waits for it longer than a client's own patience.

It asks the store only when some request has waited for long, and as long as any waits and there is no answer. It knows
no engine: how the store is asked is given. What it knows decides how long a request may take, never what is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from durable.errors import DurableError

_LONG = 1.0
"""Seconds after which a request that has no answer yet is a reason to ask the store."""

_PATIENCE = 2.0
"""Seconds in which the store has to answer. With the one before it is less than the 5 s after which many clients give
up, and then know less than a 503 says."""

_PAUSE = 0.25
"""Seconds between two questions while it is away."""

_SHORT = 0.5
"""Seconds that a request may take while it is away: it may be back, and not everything needs it."""


class Allowance:
    """The time of one request.

    Args:
        seconds: From now on.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.timeout = asyncio.timeout(seconds)
        self.patient = False
        """It takes long by design, whether the store answers or not."""

    def extend(self, seconds: float) -> None:
        """Let it take so many seconds from now on; when it is over it stays so, also before its task has noticed."""
        if not self.timeout.expired():  # under a load that holds the loop up, both happen in one pass of it
            self.timeout.reschedule(asyncio.get_running_loop().time() + seconds)


class Outage:
    """Whether the store is away.

    Args:
        ask: Returns when the store has answered; None: it is never asked.
    """

    def __init__(self, ask: Callable[[], Awaitable[object]] | None) -> None:
        self._ask = ask
        self._asking: asyncio.Task[None] | None = None
        self._waiting: set[Allowance] = set()
        self.away = False

    @asynccontextmanager
    async def within(self, seconds: float) -> AsyncGenerator[Allowance]:
        """The time of a request: so many seconds, and less as soon as the store is away.

        Raises:
            TimeoutError: It was over.
        """
        allowance = Allowance(min(seconds, _SHORT) if self.away else seconds)
        suspicion = asyncio.get_running_loop().call_later(_LONG, self._suspect)
        self._waiting.add(allowance)
        try:
            async with allowance.timeout:
                yield allowance
        finally:
            suspicion.cancel()
            self._waiting.discard(allowance)

    def _suspect(self) -> None:
        if self._ask is not None and self._asking is None:
            self._asking = asyncio.create_task(self._look(self._ask), name="durable http outage")

    async def _look(self, ask: Callable[[], Awaitable[object]]) -> None:
        try:
            while self._waiting and not await _answers(ask):
                if not self.away:
                    self.away = True
                    for allowance in self._waiting:
                        if not allowance.patient:
                            allowance.extend(0.0)
                await asyncio.sleep(_PAUSE)
        finally:
            self.away = False
            self._asking = None


async def _answers(ask: Callable[[], Awaitable[object]]) -> bool:
    try:
        async with asyncio.timeout(_PATIENCE):
            await ask()
    except (DurableError, TimeoutError):
        return False
    return True
