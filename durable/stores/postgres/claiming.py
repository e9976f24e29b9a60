"""Claims: ready runs with their histories and signals, and what is asked of those that a worker holds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime

from durable.clock import ServerClock
from durable.errors import StoreUnavailable
from durable.model import Claimed
from durable.store import Route
from durable.stores.postgres import events as publishing
from durable.stores.postgres import literals, rows
from durable.stores.postgres import signals as signalling
from durable.stores.postgres.connections import REPEATS
from durable.stores.postgres.queues import Limits
from durable.stores.postgres.routing import Routes
from durable.stores.postgres.sessions import SHARD, Sessions
from durable.stores.postgres.turns import Sweeps

ONLY = "_only"
"""What the names of the claims for one run end in."""


class Claiming(ABC):
    """A part of ``PostgresStore``, which has the connections."""

    _clock: ServerClock
    _routes: Routes
    _limits: Limits
    _sweeps: Sweeps
    _turn = 0

    @property
    @abstractmethod
    def _use(self) -> Sessions: ...

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
        if unasked and not done and not any(self._limits.limited(route.queue) for route in routes):
            quiet, next_ready_at = await self._look(worker, routes)
            if quiet:
                return Claimed([], next_ready_at, [], [])
        return await self._claim(worker, routes, limit, batch, warm, done)

    async def claim_run(self, worker: str, route: Route, run_id: str, batch: str, warm: Mapping[str, int]) -> Claimed:
        return await self._claim(worker, [route], 1, batch, warm, (), literals.existing(run_id))

    async def _look(self, worker: str, routes: Sequence[Route]) -> tuple[bool, datetime | None]:
        """Whether a claim would find and do nothing, and when the next run becomes due."""
        numbers = await self._routes.numbers(self._use, routes)
        wanted = literals.scalars([numbers[route] for route in routes])
        [[quiet, next_ready_at]] = await self._use.read("look", SHARD, wanted, worker, self._limits.version)
        return quiet, next_ready_at

    async def _claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str],
        *only: str,
    ) -> Claimed:
        numbers = await self._routes.numbers(self._use, routes)
        wanted = [numbers[route] for route in routes]
        self._turn += 1
        first = self._turn % max(1, len(wanted))  # routes rotate: under a full load each comes first in turn
        turned = literals.scalars(wanted[first:] + wanted[:first])
        asked = (turned, str(limit), batch, literals.ids(list(warm)), literals.scalars(list(warm.values())))
        await self._sweeps.sweep(self._use, SHARD)
        for _ in range(REPEATS):
            known = self._limits.version
            limited = self._limits.claim(self._use, worker, SHARD, routes, turned)
            claim = ("claim_runs" if limited is None else "claim_limited") + (ONLY if only else "")
            lane = self._use.claim
            [drained], *answers = await lane.transaction(
                self._use.call("drain_wakes", SHARD),
                *(limited.before if limited else ()),
                self._use.call(claim, worker, SHARD, *asked, literals.ids(done), known, *only),
                self._use.call("claim_histories", worker, batch),
                self._use.call("claim_signals", worker, batch),
                self._use.call("claim_rest", SHARD, turned, worker, batch),
                *(limited.after if limited else ()),
            )
            sent = lane.sent
            first = len(limited.before) if limited else 0
            runs, histories, inboxes, [rest] = answers[first : first + 4]
            now, ready, requested, signalled, stirred, version = rest
            self._clock.observe(now, sent)
            if version not in {None, known or ""}:
                await self._limits.refresh(self._use)
                continue
            if limited:
                runs, ready = limited.answer(answers, limit, now, ready)
            elif runs and runs[-1][0] is None:
                runs, ready = runs[:-1], now
            again = await publishing.after_claim(self._use, SHARD, now, signalling.Drained(*drained), stirred)
            if again is not None:
                ready = again if ready is None else min(ready, again)
            taken = rows.claimed(runs, histories, signalling.by_run(inboxes), self._routes.by_number, worker, warm)
            return Claimed(taken, ready, rows.requests(requested), signalled)
        raise StoreUnavailable("claim: the limits of queues change all the time")
