"""The table, and the programs that write it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import __main__ as program
from tests.chaos.arena import Place
from tests.chaos.disk import may_mount
from tests.chaos.report import PAGE, ROOT, Row, commit, gate, green, write


@pytest.fixture
def page(tmp_path: Path) -> Path:
    found = tmp_path / "page.md"
    found.write_text(PAGE.read_text("utf-8"), "utf-8")
    return found


def test_a_row_goes_into_the_page_and_leaves_the_others(page: Path) -> None:
    write(page, [Row("a gate", "a fault", "runs", n=3000, seconds=4.2)])
    write(page, [Row("another", "it", "runs", n=10, violations=["I1: it"]), Row("a third", "", "", 1, seconds=1200)])
    text = page.read_text("utf-8")
    [line] = [line for line in text.splitlines() if line.startswith("| a gate ")]
    assert line.startswith("| a gate | a fault | 3,000 runs | 0 | 0.001 | – | ")
    assert "| 4 s | 20" in line
    assert "* another: I1: it" in text
    assert "| 20 min |" in text
    for before in PAGE.read_text("utf-8").splitlines():
        assert before in text
    write(page, [Row("another", "it", "runs", n=10)])
    assert "* another: I1: it" not in page.read_text("utf-8")
    assert text.count("| gate |") == 1


def test_what_is_green_at_this_commit_need_not_be_measured_again(page: Path) -> None:
    write(page, [Row("a gate", "", "", 1), Row("another", "", "", 1, violations=["I1: it"])])
    assert green(page, ["a gate", "another", "a third"]) == {"a gate"}
    page.write_text(page.read_text("utf-8").replace(commit(), "another1"), "utf-8")
    assert green(page, ["a gate"]) == set()


async def _broken(_: Place) -> Row:
    with gate("one", "", "") as row:
        row.n = int("this is no number")
    return row


def test_a_gate_that_fails_itself_is_red_and_stops_no_other(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def sound(_: Place) -> Row:
        with gate("two", "", "", "7") as row:
            row.n = 1
        return row

    monkeypatch.setattr(program, "GATES", {"1": program.Gate("one", _broken), "2": program.Gate("two", sound)})
    assert not asyncio.run(program.run(["1", "2"], page))
    text = page.read_text("utf-8")
    assert "* one: gate: ValueError(" in text
    assert "| two |" in text


async def test_a_control_that_only_breaks_has_found_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def sound(_: Place) -> Row:
        with gate("one", "", "") as row:
            row.n = 1
        return row

    monkeypatch.setattr(program, "GATES", {"1": program.Gate("one", sound, _broken)})
    row = await program.measured("1", Place.__new__(Place))
    assert row.violations == ["control: it has found nothing, so the gate proves nothing"]


def test_the_small_disk_goes_with_its_process() -> None:
    """Killed, as a `make chaos` may be: no mount is left behind."""
    if not may_mount():
        return  # the gate itself says so where it is asked for
    text = (
        "import sys, time; from tests.chaos.disk import server_on, small_disk\n"
        "with small_disk(100) as disk, server_on(disk) as server:\n"
        "    print(disk, server.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", text], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        disk, server = process.stdout.readline().split()
        assert os.path.ismount(disk)
        process.send_signal(signal.SIGKILL)
    _gone(Path(disk))
    _gone(Path("/proc") / server)


def _gone(path: Path) -> None:
    """Wait for it: a shell cleans up after the process."""
    subprocess.run(
        ["/bin/sh", "-c", 'while [ -e "$1" ]; do sleep 0.1; done', "wait", str(path)], check=True, timeout=60
    )
