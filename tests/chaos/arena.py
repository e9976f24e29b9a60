"""A database of its own for each gate, with auditors inside, and the workers and callers of the gate around it."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import psycopg

from durable import Engine
from durable.stores.postgres import PostgresStore
from durable.testing._servers import url_with
from durable.testing.postgres import OwnServer
from tests.chaos import flows, poison, stale
from tests.chaos.program import Config
from tests.chaos.sabotage import WITHOUT
from tests.chaos.workers import Worker
from tests.processes.nursery import PATIENCE, Nursery

T = TypeVar("T")

_numbers = count(1)

AUDIT = """
CREATE TABLE books (run_id text NOT NULL, nonce text NOT NULL);
CREATE TABLE audit (what text NOT NULL);

CREATE FUNCTION audit_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO audit VALUES ('I3: a record was changed: ' || OLD.run_id || '/' || OLD.key);
    ELSIF NEW.kind <> 'takeover' AND NEW.worker IS NOT NULL
          AND NOT EXISTS (SELECT FROM durable.workers WHERE id = NEW.worker) THEN
        INSERT INTO audit VALUES ('I4: written without a lease: ' || NEW.run_id || '/' || NEW.key);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON durable.history FOR EACH ROW EXECUTE FUNCTION audit_history();

CREATE FUNCTION audit_runs() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO audit VALUES ('I2: a run has left a final state: ' || OLD.id || ' was ' || OLD.state);
    RETURN NULL;
END $$;
CREATE TRIGGER audit AFTER UPDATE ON durable.runs FOR EACH ROW
WHEN (OLD.ended_at IS NOT NULL
      AND (OLD.state, OLD.result, OLD.error) IS DISTINCT FROM (NEW.state, NEW.result, NEW.error))
EXECUTE FUNCTION audit_runs();
"""
"""Inside the database, so that no write is overlooked: I2, I3 and I4, while they happen."""


@dataclass(frozen=True)
class Place:
    """Where gates take place.

    Attributes:
        server: A Postgres that may be killed.
        nursery: Where workers come from.
    """

    server: OwnServer
    nursery: Nursery


class Arena:
    """One gate's database, ledger and workers.

    Attributes:
        url: Of the database, for workers and callers; a gate may put a link between.
        direct: Of the database, for the judges.
        workers: All that were ever started.
    """

    def __init__(self, place: Place, url: str, folder: Path) -> None:
        self.url = self.direct = url
        self.ledger = folder / "ledger"
        self.workers: list[Worker] = []
        self._nursery = place.nursery
        self._folder = folder
        self._changed = asyncio.Event()

    async def worker(self, nursery: Nursery | None = None, *, url: str = "", **config: Any) -> Worker:
        """A worker that may not be up yet."""
        settings = Config(url=url or self.url, ledger=str(self.ledger), **config)
        log = self._folder / f"log-{len(self.workers)}"
        self.workers.append(Worker(nursery or self._nursery, asdict(settings), log, self._changed.set))
        return self.workers[-1]

    async def up(self, number: int, **config: Any) -> list[Worker]:
        """Workers that are up."""
        started = [await self.worker(**config) for _ in range(number)]
        for worker in started:
            await self.until(lambda worker=worker: worker.take("up"), "worker that is up")  # type: ignore[misc]
        return started

    @asynccontextmanager
    async def client(self, *, without: str = "") -> AsyncGenerator[Engine]:
        """A caller: an engine of this process without a worker."""
        store = PostgresStore(self.url)
        if without:
            WITHOUT[without](store)
        async with Engine(store, workflows=[*flows.ALL, *stale.ALL, *poison.ALL]).client() as engine:
            yield engine

    async def until(self, find: Callable[[], T | None], what: str, within: float = PATIENCE) -> T:
        """What ``find`` finds, which is asked again after every event of a worker."""
        try:
            async with asyncio.timeout(within):
                while (found := find()) is None:
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            logs = "\n".join(f"-- {worker.pid}: {worker.log[-2000:]}" for worker in self.workers[-8:])
            raise AssertionError(f"no {what} within {within:g} s\n{logs}") from None

    def rows(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.direct, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    async def ask(self, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """`rows`, beside the loop."""
        return await asyncio.to_thread(self.rows, query, *parameters)

    async def close(self) -> None:
        for worker in self.workers:
            await worker.close()


@asynccontextmanager
async def arena(place: Place) -> AsyncGenerator[Arena]:
    """An empty database with the schema and its auditors; gone at the end, with all workers."""
    name = f"chaos_{next(_numbers)}"
    url = await _database(place.server, name)
    with tempfile.TemporaryDirectory(prefix="durable-chaos-") as folder:
        found = Arena(place, url, Path(folder))
        try:
            yield found
        finally:
            await found.close()
            await asyncio.to_thread(place.server.start)
            await asyncio.to_thread(place.server.drop_database, name)


async def _database(server: OwnServer, name: str) -> str:
    """A copy of a database that was migrated once for the whole server: a quarter of the time."""
    if server not in _templates:
        first = await asyncio.to_thread(server.database, name)
        async with Engine(first).client():
            await asyncio.to_thread(_execute, first, AUDIT)
        _templates[server] = f"{name}_template"
        await asyncio.to_thread(_execute, server.url, f"ALTER DATABASE {name} RENAME TO {_templates[server]}")
    await asyncio.to_thread(_execute, server.url, f"CREATE DATABASE {name} TEMPLATE {_templates[server]}")
    return url_with(server.url, path=f"/{name}")


def _execute(url: str, statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statements.encode())


_templates: WeakKeyDictionary[OwnServer, str] = WeakKeyDictionary()
