"""The table of docs/reliability.md: one line a gate, each with the machine, the day and the commit of its own.

Whoever measures a gate replaces its line and leaves the others, so that a table is complete after several sittings.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
import traceback
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"

COLUMNS = ("gate", "fault", "N", "found", "bound on the rate", "seeds", "machine", "duration", "measured", "remarks")
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"

FAILED = "gate"
"""What a violation begins with that is none of the engine's: the gate itself did not come to its end."""

_PLACE = re.compile(r"(<!-- table -->\n).*?(\n?<!-- end of the table -->)", re.DOTALL)
_SHOWN = 20  # violations of a gate


@dataclass
class Row:
    """What one gate found.

    Attributes:
        gate: Its name.
        fault: What was done.
        unit: What N counts.
        n: How often something could have gone wrong.
        violations: What did.
        seconds: How long it took.
        remarks: What else was measured.
        seeds: What chance came from, where it can be repeated.
    """

    gate: str
    fault: str
    unit: str
    n: int = 0
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    remarks: str = ""
    seeds: str = "–"

    @property
    def line(self) -> str:
        """Of a Markdown table. With none found in N, the rate is below 3/N with 95 % confidence."""
        found = len(self.violations)
        bound = "–" if found or not self.n else f"{3 / self.n:.1g}"
        duration = f"{self.seconds:.0f} s" if self.seconds < 120 else f"{self.seconds / 60:.0f} min"
        measured = f"{datetime.now(UTC):%Y-%m-%d}, {commit()}"
        cells = [self.gate, self.fault, f"{self.n:,} {self.unit}", str(found), bound, self.seeds, machine(), duration]
        return f"| {' | '.join([*cells, measured, self.remarks])} |"

    @property
    def findings(self) -> list[str]:
        """A bullet for each violation, of the first ones."""
        return [f"* {self.gate}: {' '.join(violation.split())[:300]}" for violation in self.violations[:_SHOWN]]


def machine() -> str:
    """The machine, in a few words, and what it had to do in the last five minutes: promised times depend on it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = f"{os.cpu_count()} × {names[0] if names else platform.machine()}, {memory:.0f} GB"
    return f"{found}, load {os.getloadavg()[1]:.0f}"


def commit() -> str:
    """The commit that is checked out, in short."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def merged(table: str, rows: Sequence[Row]) -> str:
    """``table`` with these rows, each in the place of the line that its gate had."""
    lines = {_gate(line): line for line in table.splitlines() if line.startswith("| ")}
    lines.pop(COLUMNS[0], None)
    lines |= {row.gate: row.line for row in rows}
    measured = {row.gate for row in rows}
    found = [one for one in table.splitlines() if one.startswith("* ") and one[2:].partition(":")[0] not in measured]
    found += [finding for row in rows for finding in row.findings]
    return "\n".join([HEADER, *lines.values(), *(["", "Found:", "", *found] if found else [])])


def write(page: Path, rows: Sequence[Row]) -> None:
    """Put these rows into the table of ``page``."""
    before = page.read_text("utf-8")
    place = _PLACE.search(before)
    assert place is not None, f"{page} has no place for the table"
    page.write_text(_PLACE.sub(lambda at: f"{at[1]}{merged(at[0], rows)}\n{at[2].lstrip()}", before), "utf-8")


def green(page: Path, gates: Sequence[str]) -> set[str]:
    """Those of the gates whose line in ``page`` is of this commit and has found nothing."""
    cells = [line.strip("| ").split(" | ") for line in page.read_text("utf-8").splitlines() if line.startswith("| ")]
    rows = {one[0]: dict(zip(COLUMNS, one, strict=False)) for one in cells}
    mark = f", {commit()}"
    return {
        gate for gate in gates if gate in rows and rows[gate]["found"] == "0" and rows[gate]["measured"].endswith(mark)
    }


def _gate(line: str) -> str:
    return line.strip("| ").partition(" | ")[0]


@contextmanager
def gate(name: str, fault: str, unit: str, seeds: str = "–") -> Generator[Row]:
    """A row to fill; it is timed, and printed at the end. A gate that fails itself has found that."""
    row, began = Row(name, fault, unit, seeds=seeds), time.monotonic()
    try:
        yield row
    except Exception as error:  # the other gates of the table shall have their turn
        traceback.print_exc()
        row.violations.append(f"{FAILED}: {error!r}")
    row.seconds = time.monotonic() - began
    print(row.line)
    for finding in row.findings:
        print("   ", finding, flush=True)
