"""Where the tests get their Postgres from. Without one the run fails and says what to do; nothing is skipped."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durable import Engine
from durable.testing.postgres import (
    GivenServer,
    OwnServer,
    PostgresNotFound,
    PostgresServer,
    find_postgres,
    own_postgres,
    runtime_role,
)

pytest.register_assert_rewrite("durable.testing.conformance")  # library code that asserts like a test

_SHARED = pytest.StashKey[PostgresServer]()
_LINE = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """One cluster for the whole run: the process that distributes the tests starts it before its workers."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell that starts the tests in the background has them ignore Ctrl-C, and every process that they start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    workerinput: dict[str, Any] | None = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.stash[_LINE] = workerinput["postgres_line"]
        config.stash[_SHARED] = GivenServer(workerinput["postgres_url"], config.stash[_LINE])
    elif config.getoption("numprocesses", None) and not config.getoption("collectonly"):
        try:
            server = find_postgres().start(False)
        except PostgresNotFound as error:
            raise pytest.UsageError(str(error)) from None
        config.stash[_SHARED] = server
        config.stash[_LINE] = server.line
    else:
        # Tests that need no database start at once: the server starts when the first one asks for it.
        try:
            config.stash[_LINE] = find_postgres().line
        except PostgresNotFound as error:
            config.stash[_LINE] = str(error)


def pytest_unconfigure(config: pytest.Config) -> None:
    if (server := config.stash.get(_SHARED, None)) is not None:
        server.close()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    server = node.config.stash[_SHARED]
    node.workerinput["postgres_url"] = server.url
    node.workerinput["postgres_line"] = server.line


def pytest_report_header(config: pytest.Config) -> str:
    return config.stash[_LINE]


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> PostgresServer:
    """The server that all tests share, with settings that make it quick. Never stop it: see `durable_postgres`."""
    if (server := pytestconfig.stash.get(_SHARED, None)) is None:
        server = pytestconfig.stash[_SHARED] = find_postgres().start(False)
    return server


@pytest.fixture(scope="session")
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """URL of an empty database of this test process alone, as the role that may migrate."""
    name = f"durable_test_{os.getpid()}_{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
    yield postgres_server.database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def postgres_runtime_url(postgres_url: str) -> Iterator[str]:
    """The same database as a role without DDL rights, which may use the rows of schema ``durable``.

    For other schemas use `durable.testing.postgres.runtime_role`.
    """
    with runtime_role(postgres_url, "durable") as url:
        yield url


@pytest.fixture(scope="session")
def _own_server() -> Iterator[OwnServer]:
    with own_postgres() as server:
        yield server


@pytest.fixture
def durable_postgres(_own_server: OwnServer) -> OwnServer:
    """A running server of this test process alone, with durable settings, that the test may kill and restart.

    Make a database with ``durable_postgres.database(name)``: what earlier tests wrote is still there.
    """
    _own_server.start()
    return _own_server


@pytest.fixture(scope="session")
async def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to be copied: 10 ms instead of 60 for a new one."""
    path = tmp_path_factory.mktemp("migrated") / "runs.db"
    await Engine(f"sqlite:///{path}").migrate()
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"], "all of it is in the one file"
    return path
