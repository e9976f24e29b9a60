"""The server, the databases and the processes of a measurement."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import psycopg

from benchmarks.contestants.base import Contestant
from durable.testing.postgres import OwnServer, own_postgres

SETTINGS = {
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "15min",
    "max_connections": "200",
}
"""Beside fsync, synchronous_commit and full_page_writes, which are on. A checkpoint in the middle of one
measurement and not of another would be what is compared."""


class TooLong(Exception):
    """A measurement did not end in its time."""


class Wrong(Exception):
    """The work was not done, or not all of it."""


class Target(NamedTuple):
    """A contestant's database, empty but for its tables."""

    contestant: type[Contestant]
    url: str


class Process:
    """A contestant's process. Used as a context manager it is killed at the end, whatever it does."""

    def __init__(self, target: Target, action: str, in_flight: int, arguments: dict[str, Any]) -> None:
        self._name = f"{target.contestant.name}, {action}"
        spec = {
            "contestant": target.contestant.name,
            "url": target.url,
            "in_flight": in_flight,
            "action": action,
            "arguments": arguments,
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen[bytes](
            [sys.executable, "-m", "benchmarks.child"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._lines = b""
        self._say(json.dumps(spec))

    def begin(self, timeout: float = 60) -> None:
        """Wait until it is ready, and let it begin."""
        self.answer(timeout)
        self.nudge()

    def nudge(self) -> None:
        self._say("")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next thing that it says."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._lines:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TooLong(f"{self._name}: no answer in {timeout:.0f} s")
                chunk = os.read(self._process.stdout.fileno(), 65536)
                if not chunk:
                    raise Wrong(f"{self._name}: {self._last_words()}")
                self._lines += chunk
        line, _, self._lines = self._lines.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._errors.close()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Lab:
    """One server for all measurements, with an empty database for each."""

    def __init__(self, server: OwnServer) -> None:
        self.server = server
        self._databases = 0
        self._templates: dict[type[Contestant], str] = {}

    @contextlib.contextmanager
    def target(self, contestant: type[Contestant]) -> Generator[Target]:
        """A new database with the contestant's tables, and gone afterwards. No checkpoint is near."""
        self._databases += 1
        if contestant.store == "sqlite":
            folder = tempfile.mkdtemp(prefix="durable-bench-")
            try:
                target = Target(contestant, f"sqlite:///{folder}/bench.db")
                self.call(target, "install")
                yield target
            finally:
                shutil.rmtree(folder)
            return
        name, template = f"bench_{self._databases}", self._template(contestant)
        self.sql(self.server.url, f"CREATE DATABASE {name} TEMPLATE {template}")
        self.sql(self.server.url, "CHECKPOINT")
        try:
            yield Target(contestant, url_of(self.server, name))
        finally:
            self.server.drop_database(name)

    def _template(self, contestant: type[Contestant]) -> str:
        """A database with its tables, made once: a schema of forty migrations takes longer than a measurement."""
        if contestant not in self._templates:
            name = f"template_{len(self._templates)}"
            self.call(Target(contestant, self.server.database(name)), "install")
            self._templates[contestant] = name
        return self._templates[contestant]

    def process(self, target: Target, action: str, in_flight: int = 500, **arguments: Any) -> Process:
        return Process(target, action, in_flight, arguments)

    def call(
        self, target: Target, action: str, *, in_flight: int = 500, timeout: float = 120, **arguments: Any
    ) -> dict[str, Any]:
        """What a process of its own says of ``action``."""
        with self.process(target, action, in_flight, **arguments) as process:
            process.begin()
            return process.answer(timeout)

    def sql(self, url: str, query: str) -> Any:
        """The first value that the statement returns, if it returns any."""
        with psycopg.connect(url, autocommit=True) as connection:
            cursor = connection.execute(query.encode())
            row = cursor.fetchone() if cursor.description is not None else None
            return None if row is None else row[0]

    def until(self, target: Target, query: str, timeout: float) -> None:
        """Ask until the answer is true."""
        deadline = time.monotonic() + timeout
        while not self.sql(target.url, query):
            if time.monotonic() > deadline:
                raise TooLong(f"{target.contestant.name}: not in {timeout:.0f} s: {query}")
            time.sleep(0.05)

    def version(self) -> str:
        return str(self.sql(self.server.url, "SHOW server_version")).split()[0]

    def settings(self) -> dict[str, str]:
        """Those that matter, as the server has them."""
        names = ("fsync", "synchronous_commit", "full_page_writes", *SETTINGS, "shared_preload_libraries")
        return {name: str(self.sql(self.server.url, f"SHOW {name}")) for name in names}

    def wal(self) -> int:
        """Bytes of WAL that the server has written."""
        return int(self.sql(self.server.url, "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn"))

    def size(self, target: Target) -> int:
        """Bytes on disk."""
        if target.contestant.store == "sqlite":
            return sum(file.stat().st_size for file in Path(target.url.removeprefix("sqlite:///")).parent.iterdir())
        return int(self.sql(target.url, "SELECT pg_database_size(current_database())"))


def url_of(server: OwnServer, database: str) -> str:
    return urlsplit(server.url)._replace(path=f"/{database}").geturl()


@contextlib.contextmanager
def laboratory() -> Generator[Lab]:
    """A server of our own with `SETTINGS`, gone afterwards."""
    with own_postgres(durable=True) as server:
        lab = Lab(server)
        for name, value in SETTINGS.items():
            lab.sql(server.url, f"ALTER SYSTEM SET {name} = '{value}'")
        if lab.sql(server.url, "SELECT true FROM pg_available_extensions WHERE name = 'pg_stat_statements'"):
            lab.sql(server.url, "ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
        server.restart()
        yield lab
