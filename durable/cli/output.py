"""What the command writes: tables for people, JSON for scripts, and nothing that a payload could make of a terminal.

It knows neither the engine nor a command.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, TextIO

import typer
from pydantic import BaseModel
from pydantic_core import to_json
from rich.console import Console
from rich.table import Table
from rich.text import Text

from durable.model import RunSummary

_UNBOUND = 10_000
"""Columns of a pipe or a file: nobody folds lines there, and a cut id is of no use to ``grep``."""

# Not markup, not emoji codes, not guessed colours: what is shown is data.
_PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() or "COLUMNS" in os.environ else _UNBOUND


out = Console(width=_width(sys.stdout), **_PLAIN)
"""Results."""

err = Console(stderr=True, width=_width(sys.stderr), **_PLAIN)
"""What is said beside them: questions, progress, errors."""


def write_json(value: object) -> None:
    """One JSON document, for scripts: indented, ASCII, so that no locale and no terminal stumbles over it."""
    out.file.write(to_json(_dumped(value), indent=2, ensure_ascii=True).decode() + "\n")


def write_json_line(value: object) -> None:
    """One JSON document on a line of its own, at once: of a stream."""
    out.file.write(to_json(_dumped(value), ensure_ascii=True).decode() + "\n")
    out.file.flush()


def _dumped(value: object) -> object:
    return value.model_dump(mode="python") if isinstance(value, BaseModel) else value


# Everything that a terminal may take for a command, or that turns the reading direction.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def visible(text: str) -> str:
    """``text`` with control characters as the escapes that Python shows; line ends and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def one_line(text: str, most: int = 200) -> str:
    """``text`` on one line, cut to ``most`` characters."""
    line = " ".join(visible(text[: most * 4]).split())
    return line if len(line) <= most else line[: most - 1] + "…"


def pretty(value: Any) -> str:
    """A JSON value for people."""
    return visible(to_json(value, indent=2).decode())


def cell(text: str) -> Text:
    """A cell that is cut where the screen ends.

    It says so itself, not its column: rich takes width from all columns alike when one of them must not wrap.
    """
    return Text(one_line(text), no_wrap=True, overflow="ellipsis")


def table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table. Its first column is never cut: it is what people copy; the others share what the screen has left."""
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    first, *others = columns
    cells = [[one if isinstance(one, Text) else cell(one) for one in row] for row in rows]
    made.add_column(first, no_wrap=True, min_width=max((row[0].cell_len for row in cells), default=0))
    for column in others:
        made.add_column(cell(column))
    for row in cells:
        made.add_row(*row)
    return made


_STYLES = {
    "completed": "green",
    "running": "cyan",
    "compensating": "yellow",
    "paused": "yellow",
    "waiting": "magenta",
    "sleeping": "blue",
    "failed": "red",
    "dead_letter": "bold red",
    "compensated": "dark_orange",
    "cancelled": "bright_black",
}


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=_STYLES.get(state, ""), no_wrap=True, overflow="ellipsis")


def moment(when: datetime | None) -> str:
    """A time in the zone of this terminal, to the second."""
    return "" if when is None else when.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def lasted(seconds: float) -> str:
    """A duration for people: ``0.3 ms``, ``12.0 s``, ``3m 20s``, ``2d 4h``."""
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for unit, name, below, small in ((86_400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            rest = whole % unit // below
            return f"{whole // unit}{name} {rest}{small}" if rest else f"{whole // unit}{name}"
    raise AssertionError("a minute or more")


def age(when: datetime, now: datetime) -> str:
    """How long something is there."""
    return lasted(max((now - when).total_seconds(), 0.0))


def ago(when: datetime | None, now: datetime) -> str:
    """How long ago; of a time to come: in how long."""
    if when is None:
        return ""
    delta = now - when
    return f"{lasted(delta.total_seconds())} ago" if delta >= timedelta(0) else f"in {lasted(-delta.total_seconds())}"


def took(run: RunSummary, now: datetime) -> str:
    """How long the run has taken since its start."""
    return "" if run.started_at is None else lasted(max(((run.ended_at or now) - run.started_at).total_seconds(), 0.0))


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that concerns many; without a terminal to ask at, ``--yes`` has to say it.

    Raises:
        typer.Exit: The answer is no.
        typer.BadParameter: There is nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter(f"{question} Nobody is there to answer: say --yes.")
    if not typer.confirm(question, err=True):
        err.print("Nothing was done.")
        raise typer.Exit(1)
