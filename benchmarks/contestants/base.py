"""What the harness asks of a contestant: to install itself, to trigger, to work, and to say what its database holds."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, ClassVar, NamedTuple


def peer(module: str) -> Any:
    """A module of a peer. The peers are installed where `make bench` measures, and not where the checkers look: what
    comes from them is Any, instead of a type that only one of the two environments knows.
    """
    return importlib.import_module(module)


class Counts(NamedTuple):
    """What the database says: runs that ended successfully, and their recorded steps (None: it records none)."""

    runs: int
    steps: int | None


class Contestant(ABC):
    """One system in one process.

    Attributes:
        name: As it stands in the tables.
        packages: Whose versions are named in the results.
        settings: Which settings were chosen, and why they are its best.
        cannot: Scenarios, or figures of scenarios, that it has no means for, and why.
        pace: Steps per second to expect, by runs in flight: how much work a measurement gets. Rough.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    settings: ClassVar[str]
    cannot: ClassVar[Mapping[str, str]] = {}
    pace: ClassVar[Mapping[int, float]]
    store: ClassVar[str] = "postgres"

    def __init__(self, url: str, in_flight: int = 500) -> None:
        self.url = url
        self.in_flight = in_flight

    @abstractmethod
    async def install(self) -> None:
        """Make its tables in an empty database."""

    @abstractmethod
    def client(self) -> AbstractAsyncContextManager[None]:
        """Connected: it can trigger, and wait for results."""

    @abstractmethod
    def worker(self) -> AbstractAsyncContextManager[None]:
        """As ``client``, and it executes up to ``in_flight`` runs at a time."""

    @abstractmethod
    async def trigger_many(self, work: str, starts: Sequence[int]) -> Sequence[Any]:
        """Trigger a run for each, in the quickest way that it has; returns when all are committed."""

    @abstractmethod
    async def trigger(self, work: str, start: int) -> Any:
        """Trigger one run, as a request of a web application would; returns when it is committed."""

    async def result(self, run: Any) -> Any:
        """Wait for the run's end, and return what it returned."""
        raise NotImplementedError

    async def settle(self, steps: int) -> str:
        """Trigger a run that makes so many records and then waits, wait until it does, and return its id."""
        raise NotImplementedError

    async def resume(self, run: str) -> Any:
        """Let the run go on, in a process that knows nothing of it, and return what it returned."""
        raise NotImplementedError

    @abstractmethod
    def counts(self) -> Counts:
        """Asked of the database, over a connection of its own."""


def asked(url: str, query: str) -> tuple[int, int | None]:
    """The one row of a query for `Counts`."""
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0], row[1]
