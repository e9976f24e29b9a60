"""Memory, SQLite, Postgres and the oracle agree on random streams of operations; stores that break a rule do not."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from durable.model import Change, Outcome, RunRef, RunWrite, Signal
from durable.stores.memory import MemoryStore
from durable.stores.memory.rows import Row
from durable.testing.conformance.streams import LENGTH, play
from durable.testing.conformance.subjects import Divergence, Subject
from tests.conformance.test_memory import MemoryHarness
from tests.model.stores import opened, shortened

OPERATIONS = 2_000
"""`make model` makes 200,000. These are the same each time: what a new seed finds shall not break another change."""

STREAMS = st.lists(st.integers(0, 2**32 - 1), min_size=LENGTH, max_size=LENGTH)
"""Hypothesis shortens a stream by making seeds 0: such an operation is left out."""


@pytest.mark.timeout(900)  # 20 s of processor time; on a busy machine many times that
def test_P11_stores_and_oracle_agree(postgres_url: str) -> None:
    made = 0
    with asyncio.Runner() as runner:
        opening = opened(postgres_url)
        stores = runner.run(opening.__aenter__())

        @settings(
            max_examples=OPERATIONS // LENGTH + 4,  # some of which leave operations out
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
        )
        @given(STREAMS)
        def agree(seeds: list[int]) -> None:
            nonlocal made
            made += runner.run(stores.play(seeds))

        try:
            agree()
        finally:
            runner.run(opening.__aexit__(None, None, None))
    assert made >= OPERATIONS


# -- stores that break a rule ---------------------------------------------------------------------


class _NoCounter(MemoryStore):
    """What wakes a run is not counted."""

    def _wake(self, row: Row, now: datetime) -> None:
        super()._wake(row, now)
        row.wakes -= 1


class _NotCompared(MemoryStore):
    """A park is applied, whatever has come since the counter was read."""

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        super()._change(row, change._replace(wakes=None), now)


class _NoClaimNumber(MemoryStore):
    """A worker that lives may write about whatever it held once."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        claims = {one: row.claim for one, row in self._rows.items()}
        refs = [RunRef(one.ref.shard, one.ref.id, claims.get(one.ref.id, 0), one.ref.linked) for one in writes]
        return await super().commit(worker, [replace(one, ref=ref) for one, ref in zip(writes, refs, strict=True)])


class _NoFence(MemoryStore):
    """A dead worker's writes are applied to what nobody has claimed since."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await super().commit(worker, writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            row = self._rows.get(write.ref.id)
            if outcome is Outcome.LEASE_LOST and row is not None and row.claim == write.ref.claim and row.owner is None:
                row.records.update((one.key, one) for one in write.records)
        return outcomes


class _LosesSignals(MemoryStore):
    """A signal to a run that somebody holds is lost."""

    def _deliver(self, row: Row, signal: Signal, now: datetime) -> None:
        if row.owner is None:
            super()._deliver(row, signal, now)


class _DoublesRecords(MemoryStore):
    """A record that is sent again is written again."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        there = {one: set(row.records) for one, row in self._rows.items()}
        outcomes = await super().commit(worker, writes)
        for write in writes:
            for record in write.records:
                if record.key in there.get(write.ref.id, ()):
                    again = record._replace(key=f"{record.key}#2", worker=worker)
                    self._rows[write.ref.id].records[again.key] = again
        return outcomes


class _Harness(MemoryHarness):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store


@pytest.mark.parametrize("kind", [_NoCounter, _NotCompared, _NoClaimNumber, _NoFence, _LosesSignals, _DoublesRecords])
async def test_the_streams_find_a_store_that_breaks_a_rule(kind: type[MemoryStore]) -> None:
    async def played(seeds: Sequence[int]) -> int:
        harness = _Harness(kind())
        return await play([Subject(kind.__name__, await harness.fresh(), harness)], seeds)

    rng = random.Random(1)
    for _ in range(OPERATIONS // LENGTH):
        seeds = [rng.getrandbits(32) for _ in range(LENGTH)]
        try:
            await played(seeds)
        except Divergence:
            break
    else:
        pytest.fail(f"{OPERATIONS:,} operations agree with a store that breaks a rule")
    few, message = await shortened(played, seeds)
    assert len(few) <= LENGTH // 2
    assert kind.__name__ in message
