"""The table: one line a gate."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

HEADER = "| gate | fault | N | found | bound on the rate | seconds | remarks |\n|---|---|---|---|---|---|---|"


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
    """

    gate: str
    fault: str
    unit: str
    n: int = 0
    violations: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    remarks: str = ""

    @property
    def line(self) -> str:
        """Of a Markdown table. With none found in N, the rate is below 3/N with 95 % confidence."""
        found = len(self.violations)
        bound = "–" if found or not self.n else f"{3 / self.n:.1g}"
        cells = [
            self.gate,
            self.fault,
            f"{self.n:,} {self.unit}",
            str(found),
            bound,
            f"{self.seconds:.0f}",
            self.remarks,
        ]
        return f"| {' | '.join(cells)} |"


@contextmanager
def gate(name: str, fault: str, unit: str) -> Generator[Row]:
    """A row to fill; it is timed, and printed at the end."""
    row, began = Row(name, fault, unit), time.monotonic()
    yield row
    row.seconds = time.monotonic() - began
    print(row.line)
    for violation in row.violations[:20]:
        print("   ", violation)
