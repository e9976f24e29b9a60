"""The worker program of the gates, and the nursery that forks it."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from durable import Engine, WorkerOptions
from durable.heartbeat import margin
from durable.model import Outcome, Renewal, RunWrite
from durable.store import Store
from durable.stores.postgres import PostgresStore
from tests.chaos import flows, poison, stale
from tests.chaos.ledger import ledger
from tests.chaos.sabotage import WITHOUT
from tests.processes.nursery import forked
from tests.processes.program import Watched
from tests.processes.stage import stage, tell


@dataclass(frozen=True)
class Config:
    """What a worker is told.

    Attributes:
        url: The store.
        ledger: The file of effects.
        options: Of the worker.
        without: The guard that it lacks: a name of `sabotage.WITHOUT`.
        pace: Seconds that a step takes at most.
        watch: Tell about every write, and obey ``hold``.
        opened: Nothing is held in this process.
    """

    url: str
    ledger: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    without: str = ""
    pace: float = 0.01
    watch: bool = False
    opened: bool = False


class Deadlines:
    """Knows from the renewals alone, as the protocol has it, when this process has to stop beginning steps."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def register(self, worker: str, lease: float, *where: Any) -> None:
        sent = time.monotonic()
        await self._store.register(worker, lease, *where)
        ledger.worker(worker)
        ledger.deadline = sent + lease - margin(lease)

    def renew(self, worker: str, lease: float) -> Renewal:
        sent = time.monotonic()
        renewal = self._store.renew(worker, lease)
        if renewal.alive:
            ledger.deadline = sent + lease - margin(lease)
        return renewal


class WatchedAll(Watched):
    """Tells about transactions of the user's as well."""

    async def transact(
        self, worker: str, work: Callable[[Any], Any], on_loop: bool, write: Callable[[Any], Awaitable[RunWrite]]
    ) -> Outcome:
        written: list[RunWrite] = []

        async def noted(value: Any) -> RunWrite:
            written.append(await write(value))
            return written[-1]

        outcome = await self._store.transact(worker, work, on_loop, noted)
        tell("write", run=written[-1].ref.id, parts=["transaction"], outcome=outcome)
        return outcome


class ToldEngine(Engine):
    """Tells the test when it is up."""

    async def start(self) -> None:
        await super().start()
        tell("up")


def work(config: Config) -> None:
    """A worker's whole life."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    ledger.open(config.ledger)
    flows.pace.longest = config.pace
    stage.begin(config.ledger + ".stage", opened=config.opened)
    stage.listen()
    store = PostgresStore(config.url)
    if config.without:
        WITHOUT[config.without](store)
    seam = cast("Store", Deadlines(store))
    if config.watch:
        seam = cast("Store", WatchedAll(seam))
    ToldEngine(seam, workflows=[*flows.ALL, *stale.ALL, *poison.ALL], worker=WorkerOptions(**config.options)).run()
    tell("stopped")


if __name__ == "__main__":
    work(Config(**forked()))
