"""The servers that tests run on: a given one, a cluster of our own, a container.

A server is started by its constructor. Where the binaries come from is the finder's business (`postgres`).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib
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
from base64 import b64encode
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlsplit

from durable.errors import ConfigurationError

DOCKER_IMAGE = "postgres:17-alpine"

# What an operator would have, against what ordinary tests can do without: they lose nothing in a crash.
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
_FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS = {
    "max_connections": "400",  # several test processes at once, each with stores of eight connections
    "timezone": "UTC",
    "lc_messages": "C",
}
_PROC = Path("/proc/self/task")  # Linux; elsewhere there is always a ps
_START_TIMEOUT = 60.0  # seconds; a start takes one, crash recovery on a slow disk several


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

        self.drop_database(name)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return url_with(self.url, path=f"/{quote(name)}")

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


class GivenServer(PostgresServer):
    """The server behind ``DURABLE_TEST_DATABASE_URL``. Its role needs CREATEDB and CREATEROLE."""

    def __init__(self, url: str, line: str) -> None:
        self._url, self.line = url, line

    @property
    def url(self) -> str:
        return self._url

    def close(self) -> None:
        """Nothing: others use it."""


class Account(NamedTuple):
    """Whom the server runs as."""

    uid: int
    gid: int

    def popen(self) -> dict[str, Any]:
        """Arguments for ``subprocess``; none when it is ourselves."""
        if os.geteuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def server_account() -> Account:
    """Ourselves; as root, under which Postgres refuses to run, ``nobody``."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def version_of(bin_dir: Path, account: Account | None = None) -> str | None:
    """The version of the server in ``bin_dir``, if it runs here, as ``account`` or else as ourselves, and is usable."""
    if not (bin_dir / "initdb").exists():
        return None
    options = account.popen() if account else {}
    try:
        # Not in the present directory, which the account may be unable to enter.
        result = subprocess.run(
            [bin_dir / "postgres", "--version"], capture_output=True, text=True, check=False, cwd="/", **options
        )
    except OSError:
        return None  # not there, not for this machine, or not readable for the account
    version = re.search(r"\d+(\.\d+)?", result.stdout)
    return version.group() if version and result.returncode == 0 and float(version.group()) >= 15 else None


_WATCHER = """
PATH=$PATH:/usr/bin:/bin
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
        self._account = server_account()
        self._password = secrets.token_urlsafe(16)  # others on this machine reach 127.0.0.1 too
        self._process: subprocess.Popen[bytes] | None = None
        # The path of a socket has at most 103 characters, and the temporary directory of some systems half of that.
        place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # noqa: S108
        self.home = Path(tempfile.mkdtemp(prefix="durable-pg-", dir=place))
        os.chown(self.home, self._account.uid, self._account.gid)
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "durable-pg", str(self.home)], stdin=subprocess.PIPE, start_new_session=True
        )
        try:
            self._bin = bin_dir if version_of(bin_dir, self._account) else self._copy_of(bin_dir)
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
        password.write_text(verifier(self._password))
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
            self._port = free_port()
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

    def _copy_of(self, bin_dir: Path) -> Path:
        """The binaries where the account can read them, beside the libraries that they find by a relative path."""
        install = bin_dir.parent
        package = install.parent
        libraries = package.with_name(f"{package.name}.libs")
        target = self.home / "server" / package.name / install.name
        shutil.copytree(install, target, symlinks=True, ignore=shutil.ignore_patterns("include"))
        if libraries.is_dir():
            shutil.copytree(libraries, self.home / "server" / libraries.name)
        if version_of(target / "bin", self._account) is None:
            raise ConfigurationError(f"the server binaries of {install} do not run on this machine")
        return target / "bin"

    def _tail(self) -> str:
        return "\n".join((self.home / "log").read_text("utf-8", "replace").splitlines()[-10:])


def url_with(url: str, **parts: str) -> str:
    """``url`` with other parts; ``urlunsplit`` would lose the ``//`` of one without a host."""
    _, netloc, path, query, _ = urlsplit(url)._replace(**parts)
    return f"postgresql://{netloc}{path}" + (f"?{query}" if query else "")


def verifier(password: str) -> str:
    """What a server keeps of a random password (SCRAM-SHA-256, RFC 5802 section 3), after one round of hashing.

    The usual 4,096 rounds make a guessed password expensive, and are half of the processor time of each connection.
    """
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    texts = [b64encode(part).decode() for part in (salt, stored, server)]
    return "SCRAM-SHA-256$1:{}${}:{}".format(*texts)


def free_port() -> int:
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


class Container(OwnServer):
    """A container with a fixed port, so that it comes back where it was."""

    def __init__(self, line: str, *, durable: bool) -> None:
        self.line = line
        self._port, self._password = free_port(), secrets.token_urlsafe(16)
        settings = _SETTINGS | (_DURABLE if durable else _FAST)
        command = ["postgres", *(word for name, value in settings.items() for word in ("-c", f"{name}={value}"))]
        postgres: Any = importlib.import_module("testcontainers.community.postgres")
        container = postgres.PostgresContainer(
            DOCKER_IMAGE, username="postgres", password=self._password, dbname="postgres", driver=None
        )
        self._container = container.with_bind_ports(5432, self._port).with_command(command).start()
        self._host = container.get_container_host_ip()

    @property
    def url(self) -> str:
        return f"postgresql://postgres:{self._password}@{self._host}:{self._port}/postgres"

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
