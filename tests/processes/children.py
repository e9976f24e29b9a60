"""Child processes as the tests see them: started, signalled, and waited for by what they say, never by time."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from durable import Engine
from tests.processes import flows
from tests.processes.nursery import PATIENCE, Event, Forked, Nursery
from tests.processes.program import Config
from tests.processes.stage import Effect, effects

T = TypeVar("T")


class Child(Forked):
    """One worker process. Made by `Site.start`."""

    def __init__(self, site: Site, nursery: Nursery, config: Config, log: Path) -> None:
        super().__init__(nursery, asdict(config), log, site.news)
        self._site = site

    async def expect(self, event: str, within: float = PATIENCE, **details: Any) -> Event:
        """The next event of this name with these details; each event is returned once."""
        _, found = await self._site.first([self], event, within, **details)
        return found

    def unread(self, event: str) -> list[Event]:
        """The events of this name that nobody has expected yet."""
        return [candidate for candidate in self.events if candidate["event"] == event]

    @property
    def warnings(self) -> list[str]:
        """Entries of its log that are worse than INFO, with all their lines."""
        entries = re.split(r"^(?=[A-Z]+ )", self.log, flags=re.MULTILINE)
        return [entry for entry in entries if entry.startswith(("WARNING ", "ERROR ", "CRITICAL "))]


class Site:
    """One test's database, ledger and processes.

    Attributes:
        url: Of the store; empty at first.
        ledger: The file that steps write their effects to, outside the engine.
    """

    def __init__(self, url: str, folder: Path, nursery: Nursery) -> None:
        self.url = url
        self.ledger = folder / "ledger"
        self.children: list[Child] = []
        self._folder = folder
        self._nursery = nursery
        self._changed = asyncio.Event()

    @property
    def effects(self) -> list[Effect]:
        return effects(self.ledger)

    def done(self, run_id: str | None = None) -> list[str]:
        """What was done, in order, for one run or for all."""
        return [effect.what for effect in self.effects if run_id in (None, effect.run_id)]

    async def start(self, **config: Any) -> Child:
        """Start a worker process, with `program.Config`'s settings; it may not be up yet."""
        settings = Config(url=self.url, ledger=str(self.ledger), **config)
        child = Child(self, self._nursery, settings, self._folder / f"log-{len(self.children)}")
        self.children.append(child)
        return child

    async def workers(self, number: int, **config: Any) -> list[Child]:
        """Workers that are up."""
        children = [await self.start(**config) for _ in range(number)]
        for child in children:
            await child.expect("up")
        return children

    async def worker(self, **config: Any) -> Child:
        """A worker that is up."""
        return (await self.workers(1, **config))[0]

    @asynccontextmanager
    async def client(self) -> AsyncGenerator[Engine]:
        """An engine of the test process, without a worker."""
        async with Engine(self.url, workflows=flows.ALL).client() as engine:
            yield engine

    async def first(
        self, children: list[Child], event: str, within: float = PATIENCE, **details: Any
    ) -> tuple[Child, Event]:
        """The first of the children that says so, and what it says."""

        def find() -> tuple[Child, Event] | None:
            for child in children:
                if (found := child.take(event, **details)) is not None:
                    return child, found
            return None

        return await self.until(find, within, f"{event} {details or ''}")

    async def until(self, find: Callable[[], T | None], within: float, what: str) -> T:
        """What ``find`` finds, which is asked again after every event of a child."""
        try:
            async with asyncio.timeout(within):
                while (found := find()) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            raise AssertionError(f"no {what} within {within:g} s\n{self.report()}") from None

    def news(self) -> None:
        self._changed.set()

    def report(self) -> str:
        """Logs and the latest unread events of all children, for a failure's message."""
        return "\n".join(f"-- {child.pid}: {child.events[-20:]}\n{child.log}" for child in self.children)

    async def close(self) -> None:
        for child in self.children:
            await child.close()
