"""What the gates have found in the engine, made small: one test for each."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pytest

from durable import Context, Engine, workflow
from durable.model import Claimed, Reaped, Renewal, RunRef, Unread
from durable.store import Route
from durable.stores.memory import MemoryStore


class _LosesTheLease(MemoryStore):
    """The worker hears of its lost lease while it waits for a reaping; what it asks then needs a worker's id."""

    def __init__(self) -> None:
        super().__init__()
        self.engine: Engine | None = None
        self.asked_as: list[str] = []
        self.lost = False

    async def reap(self, limit: int = 5) -> Reaped:
        worker = self.engine._worker if self.engine is not None else None
        if worker is not None and worker.id and not self.lost:
            self.lost = True
            worker._reconcile_at = 0.0  # as after a claim that has failed
            await self.unregister(worker.id)
            worker._on_renewal(worker.id, Renewal(False, datetime.now(UTC), None))
        return await super().reap(limit)

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
        *,
        unasked: bool = False,
    ) -> Claimed:
        self.asked_as.append(worker)
        return await super().claim(worker, routes, limit, batch, warm, done, unasked=unasked)

    async def owned(self, worker: str) -> list[RunRef]:
        self.asked_as.append(worker)
        return await super().owned(worker)

    async def unread(self, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
        self.asked_as.append(worker)
        return await super().unread(worker, run_ids)


@workflow
async def quick(ctx: Context) -> str:
    return "done"


async def test_a_lease_that_is_lost_during_a_reaping_is_no_failed_claim(caplog: pytest.LogCaptureFixture) -> None:
    """On Postgres the claim without a worker's id was an error of its own, logged and told to the hooks."""
    store = _LosesTheLease()
    async with Engine(store, workflows=[quick]) as engine:
        store.engine = engine
        assert engine._worker is not None
        engine._worker._next_expiry = engine._store.clock.now()
        engine._worker.poke()
        async with asyncio.timeout(20):
            while not store.lost:  # noqa: ASYNC110 - the claim loop's next turn
                await asyncio.sleep(0)
            handle = await engine.trigger(quick)
            assert await handle.result() == "done"
    assert "" not in store.asked_as
    assert "has lost its lease" in caplog.text
