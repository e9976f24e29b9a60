"""The results as tables: in the terminal, and as benchmarks/results.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contestants import CONTESTANTS
from benchmarks.figures import OURS, Figure, Results, Target, grouped, shown, shown_cell
from benchmarks.machine import described

SCENARIOS = {
    "A": "One-step runs. Drained: all exist before the worker starts, 500 in flight.",
    "B": "Ten-step runs, drained.",
    "C": "Ten-step runs, drained by two worker processes.",
    "D": "One run at a time on an idle system, from the trigger's call to the result.",
    "E": "Resume and takeover.",
    "F": "A backlog of runs, against none. Of durable alone: the runs are put into its tables.",
    "G": "Parked runs, of durable alone.",
    "H": "Runs whose step returns a megabyte.",
    "I": "Fan-out.",
    "J": "Triggers alone; every call returns when its run is committed.",
    "K": "Full load over minutes: one-step runs, triggered and executed by one process. Of durable alone.",
    "L": "What a one-step run leaves, triggered and executed.",
    "M": "SQLite, synced at every commit.",
}


def rows(results: Results, figure: Figure) -> list[tuple[str, str, str]]:
    """Contestant, figure, and how many times better ours is; nothing when nobody was measured."""
    found: list[tuple[str, str, str]] = []
    if not any(cell.samples for (key, _), cell in results.cells.items() if key == figure.key):
        return found
    for name in CONTESTANTS:
        cell = results.cells.get((figure.key, name))
        if cell is None:
            continue
        ratio = results.ratio(figure.key, name) if name != OURS else None
        found.append((name, shown_cell(cell), "" if ratio is None else f"{shown(ratio)} ×"))
    return found


def print_tables(out: Console, results: Results) -> None:
    for letter, figures in grouped(results.figures).items():
        table = Table(title=f"{letter}. {SCENARIOS[letter]}", title_justify="left", show_edge=False)
        for column in ("", "contestant", "median (range)", f"{OURS} is better by"):
            table.add_column(column)
        for figure in figures:
            title = f"{figure.title}, {figure.unit}"
            for name, text, ratio in rows(results, figure):
                table.add_row(title, name, text, ratio)
                title = ""
        out.print(table)
        out.print()


def rendered(
    results: Results,
    conditions: Sequence[str],
    contestants: Sequence[str],
    failures: Sequence[str],
    targets: Sequence[Target],
) -> str:
    """The whole of results.md."""
    lines = [
        "# Results",
        "",
        "Written by the benchmark: see [docs/performance.md](../docs/performance.md) for what is measured and how.",
        "Medians, with the range of the repetitions. The last column says how many times better durable is; below 1",
        "the other one is.",
        "",
        *(f"* {line}" for line in conditions),
        "",
        "## Targets",
        "",
        "| figure | target | measured | |",
        "|---|---|---|---|",
    ]
    for target in targets:
        figure = results.figures.get(target.key)
        title = f"{target.key[0]}: {figure.title}" if figure else target.key
        verdict = {True: "reached", False: "**not reached**", None: "not measured"}[target.reached(results)]
        lines.append(f"| {title} | {target.says} | {target.measured(results) if figure else '—'} | {verdict} |")
    for letter, figures in grouped(results.figures).items():
        lines += ["", f"## {letter}. {SCENARIOS[letter]}", ""]
        lines += ["| figure | | median (range) | durable is better by |", "|---|---|---|---|"]
        for figure in figures:
            title = f"{figure.title}, {figure.unit}"
            for name, text, ratio in rows(results, figure):
                lines.append(f"| {title} | {name} | {text} | {ratio} |")
                title = ""
    if failures:
        lines += ["", "## What failed", "", *(f"* {failure}" for failure in failures)]
    lines += ["", "## Contestants and their settings", "", *(f"* {line}" for line in contestants)]
    return "\n".join(lines) + "\n"


def contestants() -> list[str]:
    """Each with its versions and settings."""
    lines: list[str] = []
    for name, contestant in CONTESTANTS.items():
        versions = ", ".join(f"{package} {metadata.version(package)}" for package in contestant.packages)
        lines.append(f"**{name}** ({versions}): {contestant.settings}")
    return lines


def conditions(server: str, settings: dict[str, str], form: str) -> list[str]:
    """What the figures depend on. Nothing that names one machine."""
    load = os.getloadavg()[0]
    return [
        f"{datetime.now(UTC):%d %B %Y}, commit {commit()}, {form}",
        f"{described()}; load when it began: {load:.1f}",
        f"Python {platform.python_version()}, PostgreSQL {server}, on the same machine",
        "Server settings: " + ", ".join(f"`{name}={value}`" for name, value in settings.items()),
    ]


def commit() -> str:
    """Of the working tree, with a mark when it has changes."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    result = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return result.stdout.strip() or "unknown"
