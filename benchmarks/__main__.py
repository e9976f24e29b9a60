"""`make bench`, `make bench-full`: measure, print, and write the results."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from benchmarks import report
from benchmarks.chart import chart
from benchmarks.contestants import CONTESTANTS
from benchmarks.contestants.base import Contestant
from benchmarks.figures import Figure, Results
from benchmarks.lab import Lab, TooLong, Wrong, laboratory
from benchmarks.scenarios import PARTS
from benchmarks.scenarios.base import FULL, QUICK, Form, Part
from benchmarks.targets import TARGETS

HERE = Path(__file__).parent
RESULTS = HERE / "results.md"
CHART = HERE.parent / "docs" / "performance.svg"


def because(contestant: type[Contestant], figure: Figure) -> str | None:
    """Why it has no such figure."""
    return (
        contestant.cannot.get(figure.key)
        or contestant.cannot.get(figure.key.removesuffix(".p99"))
        or contestant.cannot.get(figure.key[0])
    )


class Runner:
    """Measures every part for every contestant, one after the other, and then all of it again."""

    def __init__(self, lab: Lab, form: Form, out: Console, *, everybody: bool) -> None:
        self.results = Results()
        self.failures: list[str] = []
        self._lab, self._form, self._out, self._everybody = lab, form, out, everybody

    def measure(self, parts: Sequence[Part], names: Sequence[str]) -> None:
        for part in parts:
            able = [name for name in names if name in (part.contestants if self._everybody else part.quick)]
            able = [name for name in able if self._can(part, CONTESTANTS[name])]
            # In two minutes there is no time to repeat what only one does.
            repeats = min(part.repeats, self._form.repeats) if self._form.full or len(part.quick) > 1 else 1
            for _ in range(repeats):
                for name in able:
                    self._one(part, name)

    def _can(self, part: Part, contestant: type[Contestant]) -> bool:
        reasons = [(figure, because(contestant, figure)) for figure in part.figures]
        for figure, reason in reasons:
            if reason is not None:
                self.results.lacks(figure, contestant.name, reason)
        return reasons[0][1] is None

    def _one(self, part: Part, name: str) -> None:
        started = time.monotonic()
        try:
            values = part.measure(self._lab, CONTESTANTS[name], self._form)
        except (TooLong, Wrong) as error:
            self.failures.append(f"{part.key}, {error}")
            self._out.print(f"{part.key:12} {name:18} [red]{error}[/red]")
            return
        for figure in part.figures:
            if figure.key in values:
                self.results.add(figure, name, values[figure.key])
        figure = part.figures[0]
        took = time.monotonic() - started
        self._out.print(
            f"{part.key:12} {name:18} {values[figure.key]:>12,.1f} {figure.unit:10} [dim]{took:.1f} s[/dim]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="everything, at full size; else about two minutes")
    parser.add_argument("--only", default="", help="parts or scenarios, such as A,B.500, of all who can")
    parser.add_argument("--contestants", default=",".join(CONTESTANTS), help=f"some of: {', '.join(CONTESTANTS)}")
    parser.add_argument("--repeats", type=int, help="measurements of each figure, instead of the form's")
    parser.add_argument("--no-write", action="store_true", help="leave results.md and the chart as they are")
    args = parser.parse_args()
    only, names = [word for word in args.only.split(",") if word], args.contestants.split(",")
    parts = [part for part in PARTS if not only or part.key in only or part.key[0] in only]
    if not parts or not set(names) <= set(CONTESTANTS):
        parser.error(f"parts are {', '.join(part.key for part in PARTS)}; contestants are {', '.join(CONTESTANTS)}")
    out, started = Console(), time.monotonic()
    form = FULL if args.full else QUICK
    form = form._replace(repeats=args.repeats or form.repeats)
    with laboratory() as lab:
        runner = Runner(lab, form, out, everybody=form.full or bool(only))  # what is named is measured for all
        name = f"the {'full' if form.full else 'two-minute'} form, repetitions: {form.repeats}"
        conditions = report.conditions(lab.version(), lab.settings(), name)
        runner.measure(parts, names)
    report.print_tables(out, runner.results)
    out.print(f"{time.monotonic() - started:.0f} s")
    if not args.no_write and not only and len(names) == len(CONTESTANTS):
        RESULTS.write_text(report.rendered(runner.results, conditions, report.contestants(), runner.failures, TARGETS))
        CHART.write_text(chart(runner.results))
        out.print(f"written: {RESULTS.name}, {CHART.name}")
    for failure in runner.failures:
        out.print(f"[red]failed: {failure}[/red]")
    if runner.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
