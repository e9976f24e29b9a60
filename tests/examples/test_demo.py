"""The demo as its users run it: a command, with real processes, a real kill, and exit codes."""

from __future__ import annotations

import os
import re
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 90.0  # seconds a demo may take on a machine that is busy with other tests


@contextmanager
def _demo(folder: Path, *arguments: str, database: str = "") -> Generator[subprocess.Popen[str]]:
    """The demo in a process of its own. Its temporary files are in ``folder``."""
    environment = {**os.environ, "DATABASE_URL": database, "TMPDIR": str(folder), "COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.orders.demo", *arguments],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _read_until(process: subprocess.Popen[str], text: str) -> str:
    """Its output up to the first line that contains ``text``."""
    assert process.stdout is not None
    lines = list[str]()
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"it ended without {text!r}:\n{''.join(lines)}")


def _pids(output: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"started, pid (\d+)", output)]


def _wait_for_end(pid: int) -> None:
    """Return when a process that is not our child has ended; a zombie has."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended, _, _ = select.select([handle], [], [], _LIMIT)
        assert ended, f"process {pid} is still there"
    finally:
        os.close(handle)


def _folder_of(folder: Path) -> Path:
    found = list(folder.glob("durable-demo-*"))
    assert len(found) == 1
    return found[0]


def _sections(output: str) -> Mapping[str, str]:
    """The final table: what stands left → the figure beside it."""
    rows = re.findall(r"^│ ([^│]+?) +│ +([^│]+?) │", output, re.MULTILINE)
    return dict(rows)


def _one_database(request: pytest.FixtureRequest, store: str) -> str:
    return request.getfixturevalue("postgres_url") if store == "postgres" else ""


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_P01_the_demo_kills_a_worker_and_its_books_balance(
    store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database = _one_database(request, store)
    with _demo(tmp_path, "--orders", "120", database=database) as process:
        output, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == 0, output + errors
    assert errors == ""
    table = _sections(output)
    assert table["orders in"] == "120"
    assert int(table["completed"]) + int(table["compensated"]) == 120
    assert int(table["compensated"]) > 0
    assert table["failed"] == "0"
    assert table["charges"] == "120"
    assert table["refunds"] == table["compensated"]
    assert table["reservations held"] == table["shipments"] == table["completed"]
    assert int(table["repetitions recognised"]) > 0
    assert int(table["runs in the killed worker"]) > 0
    assert float(table["kill to takeover"].removesuffix(" s")) > 1.0, "nothing may be taken over while the lease holds"
    assert "The books balance" in output
    assert re.search(r"SIGKILL: worker \d is dead, with \d+ runs in its hands", output)
    assert re.search(r"worker \d took over all \d+ runs of worker \d", output)
    for pid in _pids(output):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(tmp_path.iterdir()) == []
    if database:
        with psycopg.connect(database) as connection:
            left = connection.execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'durable_demo_%'")
            assert left.fetchall() == []


def test_a_charge_that_nobody_ordered_makes_the_demo_fail(tmp_path: Path) -> None:
    with _demo(tmp_path, "--orders", "10") as process:
        output = _read_until(process, "worker 2 started")
        with closing(sqlite3.connect(_folder_of(tmp_path) / "ledger.db")) as ledger, ledger:
            ledger.execute(
                "INSERT INTO charges (idempotency_key, order_id, amount, currency)"
                " VALUES ('a second key', 'ord-260003', 1, 'EUR')"
            )
        rest, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == 1, output + rest + errors
    assert errors == ""
    assert "The books do not balance: 1 problems" in rest
    assert "  ord-260003: completed, but charged: " in rest
    assert f"Kept: {_folder_of(tmp_path)}" in rest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demo_ends_what_it_has_started(number: signal.Signals, code: int, tmp_path: Path) -> None:
    with _demo(tmp_path) as process:
        output = _read_until(process, "worker 2 started")
        process.send_signal(number)
        _, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == code
    assert errors.startswith("demo: stopped")
    assert errors.count("\n") == 1
    pids = _pids(output)
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list(tmp_path.iterdir()) == []


def test_the_children_of_a_killed_demo_end_by_themselves(tmp_path: Path) -> None:
    with _demo(tmp_path) as process:
        pids = _pids(_read_until(process, "worker 2 started"))
        process.kill()
        process.wait()
        for pid in pids:
            _wait_for_end(pid)


@pytest.mark.parametrize(
    "database",
    [
        "nonsense",
        "mysql://user:geheim@localhost/shop",
        "postgresql://user:geheim@127.0.0.1:1/shop",
        "postgresql://user:ge heim@[::1/shop",
        "sqlite:////no/such/folder/shop.db",
        "memory://",
    ],
)
def test_P43_P55_a_bad_database_url_is_one_line_without_the_password(database: str, tmp_path: Path) -> None:
    with _demo(tmp_path, database=database) as process:
        output, errors = process.communicate(timeout=_LIMIT)
        assert process.returncode == 2
    assert output == ""
    assert errors.startswith("demo: ")
    assert errors.count("\n") == 1
    assert "heim" not in errors
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_demo_in_the_same_file_is_noticed(tmp_path: Path) -> None:
    files, database = tmp_path / "files", f"sqlite:///{tmp_path / 'shop.db'}"
    files.mkdir()
    results = list[tuple[int, str]]()
    for _ in range(2):
        with _demo(files, "--orders", "1", database=database) as process:
            _, errors = process.communicate(timeout=_LIMIT)
            results.append((process.returncode, errors))
    assert results[0] == (0, "")
    assert results[1][0] == 2
    assert "has these orders already" in results[1][1]
