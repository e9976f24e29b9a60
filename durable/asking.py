"""What executions ask of the store through their worker: asked until the store answers, or the lease is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from durable import failures
from durable.committer import resending
from durable.errors import RunNotFound
from durable.model import Effect, Outcome, Request, RunRef, RunWrite, Verb
from durable.store import Hint, Store

T = TypeVar("T")

_REASON = 400
"""Characters of the reason for which a child is cancelled; it is stored in 512 bytes."""


class Asking:
    """A worker, as far as its executions ask it for something.

    Args:
        store: Which answers.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._given_up = False  # stopping, and the store does not answer
        self.id = ""

    def poke(self) -> None:
        """There may be something to claim."""
        raise NotImplementedError

    async def cancel(self, run_id: str, reason: str) -> None:
        """Ask for the cancellation of a child; one that has ended, or is gone, is left alone."""
        with suppress(RunNotFound):
            await self._until_answered(lambda: self._store.request(run_id, Request(Verb.CANCEL, reason[:_REASON])))
            self._store.announce(Hint.WORK | Hint.REQUEST)
            self.poke()

    async def child_end(self, run_id: str) -> str | None:
        """How a child has ended, as its signal would say it; None when it has not."""
        for run in await self._until_answered(lambda: self._store.ended([run_id])):
            return failures.end_to_json(run.state, run.result, run.error)
        return None

    async def take_effect(self, ref: RunRef, key: str, step: str) -> Effect:
        """Who makes an effect that runs share."""
        effect = await self._until_answered(lambda: self._store.take_effect(self.id, ref, key, step))
        if effect is None:  # the lease is lost: the execution is about to hear of it, and to be unwound
            await asyncio.get_running_loop().create_future()
        assert effect is not None
        return effect

    async def transact(
        self, work: Callable[[Any], Any], on_loop: bool, write: Callable[[Any], Awaitable[RunWrite]]
    ) -> Outcome:
        """``Store.transact`` under this worker's lease."""
        return await self._store.transact(self.id, work, on_loop, write)

    async def _until_answered(self, send: Callable[[], Awaitable[T]]) -> T:
        worker = self.id
        return await resending(send, lambda: worker != self.id or self._given_up)
