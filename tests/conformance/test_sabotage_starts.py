"""The suite finds a store that gives out, with a trigger, what a claim would not give out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pytest

from durable.model import Created, NewRun, Start
from durable.stores.memory import MemoryStore
from durable.stores.memory.rows import Row
from durable.testing.conformance import StoreConformance, StoreHarness
from tests.conformance.test_memory import MemoryHarness


class _NoFence(MemoryStore):
    """Whoever triggers gets the run, whether its worker has a lease or not."""

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        if start is not None and start.worker not in self._workers:
            await self.register(start.worker, 60.0)
        return await super().create_runs(runs, start)


class _WhateverIsInItsWay(MemoryStore):
    def _may_start(self, row: Row, now: datetime) -> bool:
        del row, now
        return True


class _NotTheNamed(MemoryStore):
    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        named = None if start is None else start._replace(run_ids=frozenset(run.id for run in runs))
        return await super().create_runs(runs, named)


class _TwoTransactions(MemoryStore):
    """Created first, then claimed by whoever triggered: meanwhile others have seen it."""

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        created = await super().create_runs(runs)
        if start is None or start.worker not in self._workers:
            return created
        for run in runs:
            row = self._rows.get(run.id)
            if row is not None and row.new.concurrency_key is None and run.queue not in self._limits:
                self._lease(row, start.worker, self._clock.now())
        return created


class _Harness(MemoryHarness):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store

    async def fresh(self) -> MemoryStore:
        return self._store


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (_NoFence, "test_P04_without_a_lease_the_run_is_created_for_others", []),
        (_NoFence, "test_P04_whoever_loses_the_lease_meanwhile_leaves_no_run_behind", []),
        (_WhateverIsInItsWay, "test_what_is_not_due_or_has_a_line_is_not_claimed", ["at", "delay", "concurrency key"]),
        (_WhateverIsInItsWay, "test_P38_a_run_of_a_limited_queue_is_left_to_the_claims", []),
        (_NotTheNamed, "test_only_those_that_are_named_are_claimed", []),
        (_TwoTransactions, "test_a_run_that_is_created_claimed_is_as_a_claim_would_have_it", []),
        (_TwoTransactions, "test_P11_sent_again_it_is_there_once_and_owned_tells_of_it", []),
    ],
)
async def test_a_broken_rule_turns_its_test_red(broken: type[MemoryStore], test: str, arguments: list[str]) -> None:
    run = getattr(StoreConformance(), test)
    for given in [[argument] for argument in arguments] or [[]]:
        harness: StoreHarness = _Harness(broken())
        with pytest.raises(AssertionError):
            await run(harness, *given)
