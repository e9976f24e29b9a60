"""Samples, their medians, ratios and targets. It measures nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OURS = "durable"


class Figure(NamedTuple):
    """One number of a scenario.

    Attributes:
        key: The scenario's letter, and what of it: ``B.500``.
        title: In the table.
        unit: ``runs/s``, ``ms``…
        more: Whether a larger one is better.
    """

    key: str
    title: str
    unit: str
    more: bool = True


class Cell(NamedTuple):
    """What is known of one figure of one contestant: samples, or why there are none."""

    samples: tuple[float, ...] = ()
    because: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


@dataclass
class Results:
    """All samples, by figure and contestant."""

    figures: dict[str, Figure] = field(default_factory=dict[str, Figure])
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict[tuple[str, str], Cell])

    def add(self, figure: Figure, contestant: str, sample: float) -> None:
        self.figures[figure.key] = figure
        present = self.cells.get((figure.key, contestant), Cell())
        self.cells[figure.key, contestant] = Cell((*present.samples, sample), present.because)

    def lacks(self, figure: Figure, contestant: str, because: str) -> None:
        """What was measured before stays."""
        self.figures[figure.key] = figure
        present = self.cells.get((figure.key, contestant), Cell())
        self.cells[figure.key, contestant] = Cell(present.samples, because)

    def median(self, key: str, contestant: str = OURS) -> float | None:
        cell = self.cells.get((key, contestant))
        return cell.median if cell and cell.samples else None

    def ratio(self, key: str, contestant: str, ours: str = OURS) -> float | None:
        """How many times better ours is; below 1 the other is."""
        mine, theirs = self.median(key, ours), self.median(key, contestant)
        return times_better(mine, theirs, more=self.figures[key].more) if mine and theirs else None


def times_better(mine: float, theirs: float, *, more: bool) -> float:
    return mine / theirs if more else theirs / mine


def percentile(samples: Sequence[float], part: float) -> float:
    """The sample below which ``part`` of them lie; none is made up between two of them."""
    return sorted(samples)[min(len(samples) - 1, int(part * len(samples)))]


def shown(value: float) -> str:
    """Three digits that say something."""
    if value >= 1000:
        return f"{value:,.0f}"
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shown_cell(cell: Cell) -> str:
    """Median, and the range when there is one."""
    if not cell.samples:
        return f"cannot: {cell.because}" if cell.because else "—"
    low, high = min(cell.samples), max(cell.samples)
    spread = f" ({shown(low)} to {shown(high)})" if len(cell.samples) > 1 else ""
    return f"{shown(cell.median)}{spread}"


class Target(NamedTuple):
    """What a figure is to reach.

    Attributes:
        key: The figure.
        says: The target as it stands in the table.
        reached: Whether the results reach it; None when something it needs was not measured.
        measured: Which number is shown beside it; by default ours.
    """

    key: str
    says: str
    reached: Callable[[Results], bool | None]
    measured: Callable[[Results], str]


def at_least(key: str, bound: float, contestant: str = OURS) -> Callable[[Results], bool | None]:
    return lambda results: _judged(results.median(key, contestant), lambda value: value >= bound)


def at_most(key: str, bound: float, contestant: str = OURS) -> Callable[[Results], bool | None]:
    return lambda results: _judged(results.median(key, contestant), lambda value: value <= bound)


def ahead(key: str, contestants: Sequence[str], factor: float) -> Callable[[Results], bool | None]:
    """``factor`` times better than each of the contestants that were measured."""

    def reached(results: Results) -> bool | None:
        ratios = [ratio for name in contestants if (ratio := results.ratio(key, name)) is not None]
        return min(ratios) >= factor if ratios else None

    return reached


def every(*conditions: Callable[[Results], bool | None]) -> Callable[[Results], bool | None]:
    """Not reached as soon as one is not; unknown when one is."""

    def reached(results: Results) -> bool | None:
        answers = [condition(results) for condition in conditions]
        return False if False in answers else None if None in answers else True

    return reached


def ours(key: str, contestant: str = OURS) -> Callable[[Results], str]:
    """Our figure, with its unit."""

    def measured(results: Results) -> str:
        value = results.median(key, contestant)
        return "—" if value is None else f"{shown(value)} {results.figures[key].unit}"

    return measured


def beside(key: str, contestants: Sequence[str]) -> Callable[[Results], str]:
    """Our figure, and how many times as good it is as each of theirs."""

    def measured(results: Results) -> str:
        ratios = ((name, results.ratio(key, name)) for name in contestants)
        texts = [f"{shown(ratio)} × {name}" for name, ratio in ratios if ratio is not None]
        return ", ".join([ours(key)(results), *texts])

    return measured


def _judged(value: float | None, judge: Callable[[float], bool]) -> bool | None:
    return None if value is None else judge(value)


def grouped(figures: Mapping[str, Figure]) -> dict[str, list[Figure]]:
    """By the scenario's letter, in order."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures.values():
        groups.setdefault(figure.key[0], []).append(figure)
    return dict(sorted(groups.items()))
