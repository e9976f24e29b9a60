"""The work that every contestant does: the same step functions, which count what was really executed."""

from __future__ import annotations

import time

STEPS = {"one": 1, "three": 3, "ten": 10, "blob": 1, "busy": 5_000}
"""Steps of each kind of run. A step of ``blob`` returns a megabyte, the others add two numbers; ``busy`` is still under
way when its worker is killed."""

MEGABYTE = 1_000_000


class Executed:
    """Steps that were executed in this process, and when the first of them was."""

    def __init__(self) -> None:
        self.steps = 0
        self.first: float | None = None

    def count(self) -> None:
        if self.first is None:
            self.first = time.monotonic()  # one clock for all processes of the machine
        self.steps += 1


executed = Executed()


async def add(total: int, n: int) -> int:
    executed.count()
    return total + n


async def blob(size: int) -> str:
    executed.count()
    return "x" * size


def outcome(work: str, start: int) -> int:
    """What a run of ``work`` returns."""
    return MEGABYTE if work == "blob" else start + sum(range(STEPS[work]))
