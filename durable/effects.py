"""Effects that several runs share under one key: who makes it, and who waits for its result.

The store says who makes it; the write that records the step's end says what came of it, and wakes who waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING

from durable.attempts import Attempts
from durable.host import Host
from durable.model import Also, Awaited, EffectEnd, Signal
from durable.pulse import Pulse
from durable.replay import Operation

if TYPE_CHECKING:
    from durable.execution import Execution

_TOPIC = "/effect"
_EARLIER = timedelta(seconds=5)
"""How far this process's idea of the store's time may be ahead: an end that is told before it counts too. One too many
only has the store asked again."""


class SharedEffects:
    """The shared effects of one execution."""

    def __init__(self, execution: Execution, host: Host, pulse: Pulse, attempts: Attempts) -> None:
        self._execution = execution
        self._host = host
        self._pulse = pulse
        self._attempts = attempts
        self._shared: dict[str, str] = {}  # effect → the last signal about it

    async def made_elsewhere(self, op: Operation, key: str, opened: Callable[[], Awaitable[None]]) -> str | None:
        """The result as JSON, once another step has made the effect; None when ``op`` shall make it now.

        While another makes it, the run waits, and is parked. ``opened`` returns when operations may begin.
        """
        while True:
            await opened()
            since = self._host.clock.now() - _EARLIER
            self._attempts.busy += 1  # the answer must not find the run parked
            try:
                effect = await self._host.take_effect(self._execution.ref, key, op.key)
            finally:
                self._attempts.busy -= 1
            if effect.mine:
                self._execution.link()
                return None
            if effect.done:
                return effect.data or "null"
            self._execution.write(also=Also(awaited=[Awaited(_TOPIC, key, since)]))
            signal = await signal_in_no_turn(self._pulse, op.key, f"event/{_TOPIC}/{key}")
            if self._shared.get(key) != signal.id:
                # The run is told once, for its oldest wait: the other steps that wait for this effect ask again too.
                self._shared[key] = signal.id  # who gets it from here passes it on to nobody
                self._pulse.inbox.share(signal)
            self._execution.write(also=Also(consumed=[signal.id]))


def ended(key: str | None, step: str, kept: bool) -> Also | None:
    """What the write of a step's end says about the effect ``key`` that it has made."""
    return None if key is None else Also(effects=[EffectEnd(key, step, kept)])


async def signal_in_no_turn(pulse: Pulse, waiter: str, name: str, wanted: str | None = None) -> Signal:
    """The next signal of this name, for engine code, which needs no order among results.

    Args:
        waiter: A key under which nobody else waits.
        wanted: The id of the only one that will do; None: any.
    """
    inbox = pulse.inbox
    brought: asyncio.Future[Signal] = asyncio.get_running_loop().create_future()

    def accept(signal: Signal) -> bool:
        if wanted is not None and signal.id != wanted:
            return False
        brought.set_result(signal)
        pulse.touch()
        return True

    if not inbox.take((name,), accept):
        inbox.wait(waiter, (name,), accept)
        pulse.touch()
    try:
        return await brought
    except asyncio.CancelledError:
        inbox.forget(waiter)
        if brought.done() and not brought.cancelled():
            inbox.put_back(brought.result())
        raise
