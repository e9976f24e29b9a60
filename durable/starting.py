"""Runs that are triggered in a process whose worker has free slots: they are created already claimed.

A claim and its round trip less: a run that nobody else has to find goes from its trigger to its first step in one
transaction. It knows nothing of executions; who has room and what begins is the worker's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from durable.errors import StoreUnavailable
from durable.ids import new_id
from durable.model import ClaimedRun, Created, NewRun, Start
from durable.store import Route, Store


class Starter(Protocol):
    """The worker, as its triggers see it."""

    id: str

    def room(self) -> int:
        """For how many runs there are slots that no other run is waiting for."""
        ...

    def begin(self, batch: str, runs: Sequence[ClaimedRun]) -> None:
        """These runs are claimed now."""
        ...

    def reconcile(self) -> None:
        """What the store says that the worker holds has to be compared with what it knows."""
        ...


class Starting:
    """The triggers of one worker's process.

    Args:
        store: Where the runs are created.
        worker: Who may start them.
        routes: What it executes.
    """

    def __init__(self, store: Store, worker: Starter, routes: Collection[Route]) -> None:
        self._store = store
        self._worker = worker
        self._routes = frozenset(routes)
        self._unsure: set[str] = set()  # the answer to their trigger was lost
        self.under_way: set[str] = set()
        """Runs that may be claimed already, by a trigger that has not been answered: they have their slots."""

    async def create(self, runs: Sequence[NewRun], told: Callable[[Sequence[Created]], None]) -> list[Created]:
        """Create ``runs``, and begin with those that were created claimed.

        Args:
            told: Called with the answers before anything begins.
        """
        start = self._start(runs)
        if start is None:
            created = await self._store.create_runs(runs)
            told(created)
            self._after_doubt(runs)
            return created
        self.under_way |= start.run_ids
        try:
            created = await self._store.create_runs(runs, start)
        except StoreUnavailable:
            self._unsure |= start.run_ids
            raise
        finally:
            self.under_way -= start.run_ids
        told(created)
        claimed = [answer.claimed for answer in created if answer.claimed is not None]
        if claimed and start.worker == self._worker.id:  # else the lease was lost meanwhile, and these runs with it
            self._worker.begin(start.batch, claimed)
        return created

    def _start(self, runs: Sequence[NewRun]) -> Start | None:
        worker, room = self._worker.id, self._worker.room()
        if not worker or room <= 0:
            return None
        wanted = [run.id for run in runs if self._is_ours(run)]
        if not wanted:
            return None
        return Start(worker, new_id(self._store.clock.now()), frozenset(wanted[:room]))

    def _is_ours(self, run: NewRun) -> bool:
        """One that is sent again is left to the claims: it may exist already."""
        plain = run.concurrency_key is None and run.debounce is None and run.ready_at is None and not run.delay
        return plain and run.id not in self._unsure and Route(run.workflow, run.version, run.queue) in self._routes

    def _after_doubt(self, runs: Sequence[NewRun]) -> None:
        """Whatever the first sending has done is done by now: this one has waited for it.

        The reconciliation of every lease finds those as well whose trigger was given up.
        """
        if self._unsure and not self._unsure.isdisjoint(found := {run.id for run in runs}):
            self._unsure -= found
            self._worker.reconcile()
