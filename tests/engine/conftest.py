"""Every promise of the engine, on every store: the fixture ``backend``, and narrower ones beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from durable.stores.postgres import PostgresStore
from durable.testing.postgres import runtime_role
from tests.engine.backends import Backend, PostgresBackend, memory, sqlite, virtual
from tests.engine.evicting import NOT_SO, evict_after_every_record

_SCHEMA = "engine_tests"


_EVICT = os.environ.get("EVICT") == "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In evict mode, leave out what counts passes."""
    here = Path(__file__).parent
    out = [one for one in items if _EVICT and here in one.path.parents and one.name.partition("[")[0] in NOT_SO]
    if out:
        config.hook.pytest_deselected(items=out)
        items[:] = [one for one in items if one not in out]


@pytest.fixture(autouse=_EVICT)
def _evicting(monkeypatch: pytest.MonkeyPatch) -> None:
    evict_after_every_record(monkeypatch)


@pytest.fixture(scope="session")
async def _schema_owner(postgres_url: str) -> psycopg.Connection[object]:
    """The schema that the tests on Postgres share, migrated once by the role that may."""
    store = PostgresStore(postgres_url, schema=_SCHEMA)
    await store.open()
    await store.migrate()
    await store.close()
    return psycopg.connect(postgres_url, autocommit=True)


@pytest.fixture(scope="session")
def _owner(_schema_owner: psycopg.Connection[object]) -> Iterator[psycopg.Connection[object]]:
    yield _schema_owner
    _schema_owner.close()


@pytest.fixture(scope="session")
def _runtime_url(postgres_url: str, _owner: psycopg.Connection[object]) -> Iterator[str]:
    with runtime_role(postgres_url, _SCHEMA) as url:
        yield url


@pytest.fixture
def postgres(_runtime_url: str, _owner: psycopg.Connection[object]) -> PostgresBackend:
    """Postgres, as a role that may not change the schema."""
    return PostgresBackend(_runtime_url, _SCHEMA, _owner)


@pytest.fixture(params=["memory", "virtual", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """Memory on the host's clock and on a virtual one, SQLite, Postgres."""
    return _made(request, tmp_path)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def real_time(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """The backends whose time passes by itself."""
    return _made(request, tmp_path)


def _made(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "postgres":
        made: Backend = request.getfixturevalue("postgres")
        return made
    if request.param == "sqlite":
        return sqlite(Path(shutil.copy(request.getfixturevalue("migrated_file"), tmp_path)))
    return memory() if request.param == "memory" else virtual()
