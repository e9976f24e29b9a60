"""What a scenario is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.contestants.base import Contestant
from benchmarks.figures import Figure
from benchmarks.lab import Lab
from benchmarks.work import STEPS

EVERYBODY = ("durable", "dbos", "absurd", "procrastinate", "pgqueuer", "floor")
OURS_ALONE = ("durable",)

RUN = 2
"""What a run costs beside its steps, in steps, roughly."""


class Form(NamedTuple):
    """How much is measured.

    Attributes:
        full: Everything, at full size; else what two minutes allow.
        repeats: Measurements of each figure, between which the other contestants are measured.
        seconds: What a measurement of throughput is sized for.
        limit: After so many seconds it is what has ended until then that counts.
    """

    full: bool
    repeats: int
    seconds: float
    limit: float


QUICK = Form(full=False, repeats=2, seconds=0.5, limit=4)
FULL = Form(full=True, repeats=5, seconds=3, limit=15)


@dataclass(frozen=True)
class Part:
    """One measurement: some figures of a scenario that come from the same work.

    Attributes:
        key: The scenario's letter, and which part of it.
        figures: What it yields.
        measure: Does it for one contestant, in a target of its own; answers the figures by their keys.
        contestants: Who is measured, in the full form.
        quick: Who is, in the two-minute form.
        repeats: At most so many, where one takes long.
        timeout: Seconds after which a process that says nothing has failed.
    """

    key: str
    figures: tuple[Figure, ...]
    measure: Callable[[Lab, type[Contestant], Form], Mapping[str, float]]
    contestants: tuple[str, ...] = EVERYBODY
    quick: tuple[str, ...] = OURS_ALONE
    repeats: int = 5


def amount(contestant: type[Contestant], work: str, in_flight: int, form: Form) -> int:
    """Runs that it can be expected to do in the form's seconds; enough of them to be in flight."""
    if work == "blob":
        return 300 if form.full else 60
    usual = contestant.pace[in_flight] * form.seconds / (STEPS[work] + RUN)
    return max(round(usual), 2 * in_flight if form.full else in_flight // 4, 10)
