"""The suite finds a store that breaks a rule of the protocol: for each rule, one store without it, one red test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from durable.model import Claimed, Created, NewRun, Outcome, Record, Run, RunFilter, RunRef, RunSummary, RunWrite
from durable.store import Route
from durable.stores.memory import MemoryStore, _Ready
from durable.testing.conformance import StoreConformance, StoreHarness
from durable.testing.conformance.writes import WRITES
from tests.conformance.test_memory import MemoryHarness

_Arguments = tuple[Sequence[Route], int, str, Mapping[str, int]]
_EARLIER_CLAIM = "test_P04_a_write_of_an_earlier_claim_of_the_same_worker_is_not_applied"


class _NoFence(MemoryStore):
    """Nobody asks whether the worker's row is there; only another owner would stop it."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if worker not in self._workers:
            await self.register(worker, 60.0)
            for write in writes:
                row = self._rows[write.ref.id]
                row.owner = row.owner or worker
        return await super().commit(worker, writes)


class _FenceWithoutJoin(MemoryStore):
    """The change is refused, the records are written."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await super().commit(worker, writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            if outcome is Outcome.LEASE_LOST and write.ref.id in self._rows:
                self._rows[write.ref.id].records.update((one.key, one) for one in write.records)
        return outcomes


class _NoClaimNumber(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        refs = [RunRef(w.ref.shard, w.ref.id, self._rows[w.ref.id].claim) for w in writes]
        return await super().commit(worker, [replace(w, ref=ref) for w, ref in zip(writes, refs, strict=True)])


class _NoOwner(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if worker not in self._workers:
            return await super().commit(worker, writes)
        owners = [self._rows[write.ref.id].owner or worker for write in writes]
        return [(await super(_NoOwner, self).commit(o, [w]))[0] for o, w in zip(owners, writes, strict=True)]


class _NoWakeCounter(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        return await super().commit(
            worker, [replace(w, change=w.change and replace(w.change, wakes=None)) for w in writes]
        )


class _HalfAWrite(MemoryStore):
    """Records in one transaction, the change in another one that is lost."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        return await super().commit(worker, [replace(w, change=None) if w.records else w for w in writes])


class _Claims(MemoryStore):
    """A claim that differs from the right one in its arguments."""

    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, batch, warm

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
    ) -> Claimed:
        return await super().claim(worker, *self.arguments(routes, limit, batch, warm), done)


class _NoBatch(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, str(uuid4()), warm


class _NoVersions(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return list(self._ready), limit, batch, warm


class _WarmForEver(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, batch, {run_id: self._rows[run_id].claim for run_id in warm if run_id in self._rows}


class _Early(MemoryStore):
    """Runs are claimed ten seconds before they are due."""

    def _claim_batch(
        self, worker: str, indexes: list[_Ready], limit: int, batch: str, now: datetime, done: Sequence[str]
    ) -> list[RunRef]:
        return super()._claim_batch(worker, indexes, limit, batch, now + timedelta(seconds=10), done)


class _NoKeys(MemoryStore):
    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        return await super().create_runs([replace(run, key=None) for run in runs])


class _NoTakeoverCount(MemoryStore):
    async def reap(self, limit: int = 5) -> int:
        released = await super().reap(1000)
        for row in self._rows.values():
            row.takeovers = min(row.takeovers, 1)
        return released


class _LeavingIsDying(MemoryStore):
    async def unregister(self, worker: str) -> None:
        self.expire(worker)
        await self.reap()


class _Payloads(MemoryStore):
    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        runs: Sequence[Run] = await self.get_runs([one.id for one in await super().list_runs(where, limit, before)])
        return list(runs)


class _HistoryByKey(MemoryStore):
    async def history(self, run_id: str) -> list[Record]:
        return sorted(await super().history(run_id), key=lambda one: one.key)


class _Harness(MemoryHarness):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (_NoFence, "test_P04_a_reaped_worker_writes_nothing", [*WRITES]),
        (_FenceWithoutJoin, "test_P04_a_reaped_worker_writes_nothing", ["step", "attempt", "sleep", "woke"]),
        (_FenceWithoutJoin, _EARLIER_CLAIM, ["step", "record and complete", "undo"]),
        (_NoClaimNumber, _EARLIER_CLAIM, [*WRITES]),
        (_NoClaimNumber, "test_P11_a_park_sent_again_after_the_next_claim_is_not_applied_twice", []),
        (_NoOwner, "test_P04_a_live_worker_does_not_write_about_a_run_of_another", [*WRITES]),
        (_NoWakeCounter, "test_a_park_that_missed_a_wake_is_ready_at_once", [None]),
        (_NoWakeCounter, "test_a_resume_is_a_wake_that_a_park_can_miss", []),
        (_HalfAWrite, "test_five_hundred_runs_in_one_commit", []),
        (_NoBatch, "test_P11_a_claim_sent_again_gives_the_same_runs_and_no_more", []),
        (_NoVersions, "test_P07_a_worker_gets_only_what_it_can_execute", []),
        (_WarmForEver, "test_a_run_that_was_elsewhere_meanwhile_comes_with_its_history", []),
        (_Early, "test_P26_a_delayed_run_is_never_claimed_early", []),
        (_NoKeys, "test_P36_200_concurrent_triggers_with_one_key_are_one_run", []),
        (_NoTakeoverCount, "test_P06_the_fifth_takeover_without_progress_is_the_last", []),
        (_LeavingIsDying, "test_P03_a_worker_that_leaves_frees_its_runs_without_a_takeover", []),
        (_Payloads, "test_P49_a_summary_has_every_field_but_the_payloads", []),
        (_HistoryByKey, "test_history_is_in_the_order_of_seq", []),
    ],
)
async def test_a_broken_rule_turns_its_test_red(
    broken: type[MemoryStore], test: str, arguments: list[str | None]
) -> None:
    run = getattr(StoreConformance(), test)
    for argument in [[one] for one in arguments] or [[]]:
        harness: StoreHarness = _Harness(broken())
        with pytest.raises(AssertionError):
            await run(harness, *argument)
