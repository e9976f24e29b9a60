"""The stores that the engine's promises are tested on, and the few verbs in which those tests are written.

A backend is one set of data. ``store()`` is what another process would open on it; ``engine()`` an engine on such
a store. It knows nothing of single promises.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from durable import Engine, Run, RunFailed, RunHandle, State, WorkerOptions, Workflow
from durable.store import Store
from durable.stores.memory import MemoryStore
from durable.stores.postgres import PostgresStore
from durable.stores.sqlite import SQLiteStore
from durable.testing import VirtualClock
from tests.emptying import emptying

SOON = 20.0
"""Seconds within which everything that a test waits for happens, on a machine that others use too."""


class Backend:
    """One store's data, for one test.

    Args:
        name: ``memory``, ``virtual`` (memory on a virtual clock), ``sqlite`` or ``postgres``.
        make_store: A store as another process would have it.
        clock: The virtual clock, where there is one.
    """

    def __init__(self, name: str, make_store: Callable[[], Store], clock: VirtualClock | None = None) -> None:
        self.name = name
        self.store = make_store
        self.clock = clock

    def engine(
        self,
        *workflows: Workflow[Any, Any],
        store: Store | None = None,
        services: Mapping[str, Any] | None = None,
        step_timeout: float | None = None,
        **worker: Any,
    ) -> Engine:
        """An engine on this data; what is not named here is a ``WorkerOptions``."""
        worker.setdefault("drain_timeout", 2.0)
        return Engine(
            self.store() if store is None else store,
            workflows=workflows,
            services=services,
            worker=WorkerOptions(**worker),
            step_timeout=step_timeout,
        )

    async def result(self, engine: Engine, handle: RunHandle[Any]) -> Any:
        """The run's result, or what ``result`` raises; virtual time moves as far as that takes."""
        await self.idle(engine)
        return await handle.result(timeout=SOON)

    async def idle(self, engine: Engine) -> None:
        """On a virtual clock, let all time pass that runs wait for."""
        if self.clock is not None:
            async with asyncio.timeout(SOON):
                await engine.run_until_idle(skip_time=True)

    async def ended(self, engine: Engine, handle: RunHandle[Any]) -> Run:
        """The run, once it has ended in whatever way."""
        with suppress(RunFailed):  # the caller looks at the run
            await self.result(engine, handle)
        return await engine.get_run(handle.run_id)

    async def until(self, engine: Engine, run_id: str, state: State) -> Run:
        """The run, once it is in ``state``; virtual time moves as far as that takes."""
        await self.idle(engine)
        async with asyncio.timeout(SOON):
            while (run := await engine.get_run(run_id)).state is not state:  # noqa: ASYNC110 - only ends are announced
                await asyncio.sleep(0.002)
        return run

    async def run(self, flow: Workflow[Any, Any], *args: Any, **worker: Any) -> Any:
        """The result of one run on an engine of its own."""
        async with self.engine(flow, **worker) as engine:
            return await self.result(engine, await engine.trigger(flow, *args))

    def now(self) -> datetime:
        """The time by the clock that decides, asked past the engine."""
        return datetime.now(UTC) if self.clock is None else self.clock.now()


class PostgresBackend(Backend):
    """A schema of this test process, emptied for each test."""

    def __init__(self, url: str, schema: str, owner: psycopg.Connection[Any]) -> None:
        super().__init__("postgres", lambda: PostgresStore(url, schema=schema, pool_size=2))
        self._owner = owner
        owner.execute(emptying(schema))

    def now(self) -> datetime:
        row = self._owner.execute("SELECT clock_timestamp()").fetchone()
        assert row is not None
        now: datetime = row[0]
        return now


def memory() -> Backend:
    store = MemoryStore()
    return Backend("memory", lambda: store)


def virtual() -> Backend:
    clock = VirtualClock()
    store = MemoryStore(clock=clock)
    return Backend("virtual", lambda: store, clock)


def sqlite(path: Path) -> Backend:
    return Backend("sqlite", lambda: SQLiteStore(path))


class Passes:
    """What a workflow function saw, each time it ran from the top.

    The function calls ``begin()`` first and then notes values; after the run, ``agree()`` says that no pass saw
    anything else than the others.
    """

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def begin(self) -> Callable[[Any], Any]:
        noted: list[Any] = []
        self.seen.append(noted)

        def note(value: Any) -> Any:
            noted.append(value)
            return value

        return note

    def agree(self, least: int = 2) -> list[Any]:
        """The values of the last pass; each earlier one saw the beginning of them.

        Args:
            least: So many passes there were at least, or nothing was replayed.
        """
        assert len(self.seen) >= least, f"{len(self.seen)} passes: nothing was replayed"
        last = self.seen[-1]
        for noted in self.seen:
            assert noted == last[: len(noted)]
            assert [type(value) for value in noted] == [type(value) for value in last[: len(noted)]]
        return last


class Listener(logging.Handler):
    """Hears a line of the log.

    Args:
        text: Some part of it.

    Attributes:
        heard: Set once the line is there.
        line: The line.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.heard = asyncio.Event()
        self.line = ""
        self._text = text

    def emit(self, record: logging.LogRecord) -> None:
        if self._text in record.getMessage():
            self.line = record.getMessage()
            self.heard.set()
