"""The long forms: ``python -m tests.chaos [gate …]``, ``make chaos``. Writes the table into docs/reliability.md.

Without names it runs every gate, and ends with an error when one has found something.
"""

from __future__ import annotations

import asyncio
import os
import platform
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from durable.testing.postgres import own_postgres
from tests.chaos import gates_database, gates_link, gates_load, gates_workers
from tests.chaos.arena import Place
from tests.chaos.report import HEADER, Row
from tests.chaos.workers import Nursery

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
PATIENCE = 60.0

GATES: dict[str, Callable[[Place], Awaitable[Row]]] = {
    "kills": lambda place: gates_workers.kills(
        place, runs=10_000, kills=400, workers=4, at_once=40, patience=PATIENCE, within=2.0
    ),
    "stops": lambda place: gates_workers.stops(place, runs=3_000, stops=60, workers=4, at_once=40, patience=PATIENCE),
    "zombies": lambda place: gates_workers.zombies(place, each=10, rounds=8),
    "postgres": lambda place: gates_database.postgres_kills(
        place, runs=10_000, kills=30, workers=4, at_once=40, patience=PATIENCE, within=5.0
    ),
    "terminations": lambda place: gates_database.terminations(
        place, runs=10_000, waves=200, workers=4, at_once=40, patience=PATIENCE
    ),
    "commits": lambda place: gates_link.lost_commits(
        place, runs=10_000, share=0.05, workers=2, at_once=20, patience=PATIENCE
    ),
    "link": lambda place: gates_link.bad_link(
        place, seconds=300, latency=0.2, lease=5.0, at_once=20, patience=2 * PATIENCE
    ),
    "disk": lambda place: gates_database.full_disk(
        place, runs=4_000, megabytes=320, workers=3, at_once=40, patience=PATIENCE, within=30.0
    ),
    "loops": lambda place: gates_load.blocked_loops(place, runs=60, workers=4, lease=2.0),
    "timers": lambda place: gates_load.timers(place, number=50_000, ahead=90, workers=2),
    "keys": lambda place: gates_load.equal_keys(place, keys=100, callers=200, engines=8),
    "clocks": lambda place: gates_load.wrong_clocks(place, _library(), runs=200, skew=600),
}

"""The gates at their full sizes."""

CONTROLS: dict[str, Callable[[Place], Awaitable[Row]]] = {
    "disk": lambda place: gates_database.full_disk(
        place, runs=1_000, megabytes=320, workers=2, at_once=40, patience=5, within=30.0, without="believes"
    ),
    "clocks": lambda place: gates_load.wrong_clocks(place, _library(), runs=12, skew=600, without="hosts_clock"),
}
"""The controls of what not every machine can do, so that the suite cannot have them: they must be red."""


def _library() -> Path:
    found = gates_load.faketime()
    assert found is not None, "asked before"
    return found


def impossible(name: str) -> str:
    """Why a gate cannot be run on this machine; empty when it can."""
    if name == "disk" and not gates_database.may_mount():
        return "disk full: not run, this machine lets us mount no small disk"
    if name == "clocks" and gates_load.faketime() is None:
        return "shifted clocks: not run, libfaketime is not installed (`LIBFAKETIME` may name it)"
    return ""


async def run(names: list[str]) -> tuple[list[Row], list[str]]:
    """The rows, and what could not be run."""
    rows: list[Row] = []
    reasons = [reason for name in names if (reason := impossible(name))]
    with own_postgres() as server, Nursery() as nursery:
        print(server.line, HEADER, sep="\n")
        place = Place(server, nursery)
        for name in names:
            if not impossible(name):
                rows.append(await GATES[name](place))
            if name in CONTROLS and not impossible(name):
                print("The control, without the guard that the gate is about; it has to find something:")
                if not (await CONTROLS[name](place)).violations:
                    rows[-1].violations.append("its control has found nothing: the gate proves nothing")
    return rows, reasons


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GB of memory, Python {platform.python_version()}"


def section(rows: list[Row], reasons: list[str]) -> str:
    """The text between the marks of the page."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    measured = f"Measured on {datetime.now(UTC):%Y-%m-%d} at commit {commit or 'unknown'}: {machine()}."
    lines = [measured, "", HEADER, *(row.line for row in rows)]
    if reasons:
        lines += ["", *(f"* {reason}" for reason in reasons)]
    found = [f"* {row.gate}: {violation}" for row in rows for violation in row.violations[:20]]
    return "\n".join([*lines, *(["", "Found:", "", *found] if found else [])])


def write(page: Path, text: str) -> None:
    """Put ``text`` between the marks of the page."""
    before = page.read_text("utf-8")
    after, number = re.subn(
        r"(<!-- chaos -->\n).*?(\n<!-- end -->)", lambda marks: f"{marks[1]}{text}{marks[2]}", before, flags=re.DOTALL
    )
    assert number == 1, f"{page} has no place for the table"
    page.write_text(after, "utf-8")


def main() -> None:
    names = sys.argv[1:] or list(GATES)
    if unknown := set(names) - GATES.keys():
        sys.exit(f"no such gate: {', '.join(sorted(unknown))}; there are {', '.join(GATES)}")
    rows, reasons = asyncio.run(run(names))
    text = section(rows, reasons)
    print(text)
    if names == list(GATES):  # a part of the table is no table
        write(PAGE, text)
    if any(row.violations for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
