"""The worker program that the tests start, stop and kill, and the nursery that forks it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Any, cast

import durable.clock
from durable import Engine, WorkerOptions
from durable.model import Claimed, Outcome, Renewal, RunWrite
from durable.store import Route, Store
from durable.stores import postgres, sqlite, store_for
from tests.processes import flows
from tests.processes.nursery import forked
from tests.processes.stage import Gate, stage, tell

BEFORE_THE_FORK = (postgres, sqlite)
"""What `store_for` imports when it is called: for each child anew, if the nursery had not."""


@dataclass(frozen=True)
class Config:
    """What a child is told.

    Attributes:
        url: The store.
        ledger: The file of effects.
        options: Of the worker.
        open: Nothing is held in this process.
        watch: Tell about every write, and obey ``hold``.
        skew: Seconds by which this process's clock is off.
        barrier: Wait for the command ``start`` before the engine starts.
    """

    url: str
    ledger: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    open: bool = False
    watch: bool = False
    skew: float = 0.0
    barrier: bool = False


class ToldEngine(Engine):
    """Tells the test when it is up, and when it begins to stop."""

    async def start(self) -> None:
        await super().start()
        tell("up")

    async def stop(self) -> None:
        tell("stopping")
        await super().stop()


class Watched:
    """A store that tells what became of each write.

    After the command ``hold`` renewals and claims wait at its door, so that the process can be stopped outside every
    transaction, and ``go`` lets claims in again. Renewals stay outside until ``renew``: what the worker then writes
    it writes without having heard that it has lost its lease.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held = threading.Event()
        stage.on("hold", self._held.set)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def register(self, worker: str, *args: Any) -> None:
        await self._store.register(worker, *args)
        tell("registered", worker=worker)

    def renew(self, worker: str, lease: float) -> Renewal:
        if self._held.is_set():
            self._at("renew").passed_by_thread()
        return self._store.renew(worker, lease)

    async def claim(self, worker: str, routes: Sequence[Route], *args: Any, **named: Any) -> Claimed:
        if self._held.is_set():
            await self._at("go").passed()
        return await self._store.claim(worker, routes, *args, **named)

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await self._store.commit(worker, writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            tell("write", run=write.ref.id, parts=_parts(write), outcome=outcome)
        return outcomes

    def _at(self, command: str) -> Gate:
        tell("held", command=command)
        return stage.gate(command)


def _parts(write: RunWrite) -> list[str]:
    records = [f"{record.kind} failed" if record.failed else str(record.kind) for record in write.records]
    return [*records, *([f"→ {write.change.state}"] if write.change is not None else [])]


def shift_clocks(skew: float) -> None:
    """Put the time of day of this process off; the architecture test knows that only ``durable.clock`` asks it."""

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + timedelta(seconds=skew)

    true_time = time.time
    time.time = lambda: true_time() + skew
    durable.clock.datetime = Shifted  # type: ignore[attr-defined]


def main(config: Config) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    if config.skew:
        shift_clocks(config.skew)
    stage.begin(config.ledger, opened=config.open)
    stage.listen()
    store = store_for(config.url, "durable")
    if config.watch:
        store = cast("Store", Watched(store))
    engine = ToldEngine(store, workflows=flows.ALL, worker=WorkerOptions(**config.options))
    engine.on("run_dead_lettered", lambda event: tell("dead letter", run=event.run_id, workflow=event.workflow))
    tell("ready", pid=os.getpid())
    if config.barrier:
        stage.gate("start").passed_by_thread()
    engine.run()
    tell("stopped")


if __name__ == "__main__":
    main(Config(**forked()))
