"""A site for each test, on SQLite and on a Postgres with durable settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import count
from pathlib import Path

import pytest

from durable.testing.postgres import OwnServer
from tests.processes.children import Site
from tests.processes.nursery import Nursery

_numbers = count(1)


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    with Nursery("tests.processes.program") as found:
        yield found


@pytest.fixture
async def postgres_site(durable_postgres: OwnServer, tmp_path: Path, nursery: Nursery) -> AsyncIterator[Site]:
    name = f"processes_{next(_numbers)}"
    site = Site(durable_postgres.database(name), tmp_path, nursery)
    yield site
    await site.close()
    durable_postgres.drop_database(name)


@pytest.fixture
async def sqlite_site(tmp_path: Path, nursery: Nursery) -> AsyncIterator[Site]:
    site = Site(f"sqlite:///{tmp_path / 'durable.db'}", tmp_path, nursery)
    yield site
    await site.close()


@pytest.fixture(params=["sqlite", "postgres"])
def site(request: pytest.FixtureRequest) -> Site:
    """On each store that several processes can share."""
    found: Site = request.getfixturevalue(f"{request.param}_site")
    return found
