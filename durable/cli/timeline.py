"""A run's timeline as bars in a terminal: what took how long, beside what, and what came of it.

``spans`` pairs the entries of a timeline; the rest draws. Nothing is asked of an engine here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from durable import failures
from durable.cli.output import cell, lasted, one_line, out
from durable.cli.shapes import value_of
from durable.model import TimelineEntry, Verb
from durable.states import TERMINAL

_BAR = 60
"""Columns of a bar at most: on a wide screen the eye loses its line."""

_NAME, _TOOK, _NOTE = 30, 8, 20
"""Columns beside it: of a name at most, of a duration, and of a note at least."""

_STYLES = {
    "started": "cyan",
    "completed": "green",
    "retrying": "yellow",
    "failed": "red",
    "sleeping": "blue",
    "waiting": "magenta",
    "child": "bright_cyan",
    "undone": "dark_orange",
    "pending": "bright_black",
}

_OPENS = {
    "started": "step",
    "undo started": "undo",
    "sleeping": "sleep",
    "waiting": "wait",
    "child started": "child",
}
_CLOSES = {
    "completed": "step",
    "retrying": "step",
    "failed": "step",
    "woke": "sleep",
    "received": "wait",
    "undo completed": "undo",
    "undo retrying": "undo",
    "undo failed": "undo",
    "wait timed out": "wait",
    "child ended": "child",
}
_LOOKS = {
    "sleeping": "sleeping",
    "woke": "sleeping",
    "waiting": "waiting",
    "received": "waiting",
    "wait timed out": "failed",
    "child started": "child",
    "child ended": "child",
    "undo started": "undone",
    "undo completed": "undone",
    "undo retrying": "retrying",
    "undo failed": "failed",
}

_FAILURES = frozenset(
    {"retrying", "failed", "undo retrying", "undo failed", "run attempt failed", "signal refused"}
    | {"compensated", "cancelled", "dead_letter"}
)
"""Kinds of entries whose data is a failure."""

_REQUESTS = frozenset(Verb)


@dataclass(frozen=True, slots=True)
class Span:
    """A row: something that took time, or a moment."""

    name: str
    began: datetime
    ended: datetime | None  # None: it goes on
    look: str = ""  # a key of the styles; empty: a moment in the run's life
    note: str = ""

    @property
    def moment(self) -> bool:
        """It has no duration."""
        return not self.look


def spans(entries: Iterable[TimelineEntry]) -> list[Span]:
    """What the entries tell, in the order in which it began."""
    rows: list[Span] = []
    open_rows: dict[tuple[str, str], int] = {}
    workflow = ""
    for entry in entries:
        if entry.kind == "triggered":
            workflow = entry.name
            rows.append(Span("pending", entry.at, None, "pending"))
        elif entry.kind == "running":  # the time before it is told elsewhere: a day of it would hide all that follows
            rows.clear()
        elif (group := _OPENS.get(entry.kind)) is not None:
            open_rows[group, entry.name] = len(rows)
            rows.append(_opened(entry, group))
        elif (position := open_rows.pop((_CLOSES.get(entry.kind, ""), entry.name), None)) is not None:
            look = _LOOKS.get(entry.kind, entry.kind)
            rows[position] = replace(rows[position], ended=entry.at, look=look, note=_note(entry))
        else:
            rows.append(_moment(entry, workflow))
    return sorted(rows, key=lambda row: row.began)


def _moment(entry: TimelineEntry, workflow: str) -> Span:
    own = entry.name in ("", workflow)  # what befell the run, not one of its operations
    ended = own and entry.kind in TERMINAL  # its error is told elsewhere
    name = entry.kind if own else f"{entry.name} {entry.kind}"
    return Span(name, entry.at, entry.at, note="" if ended else _note(entry))


def _opened(entry: TimelineEntry, group: str) -> Span:
    name = f"undo {entry.name}" if group == "undo" else entry.name
    look = _LOOKS.get(entry.kind, entry.kind)
    until = datetime.fromisoformat(entry.data) if entry.data and group in ("sleep", "wait") else None
    note = "" if until is None else f"until {until.astimezone():%Y-%m-%d %H:%M:%S}"
    return Span(name, entry.at, None, look, note or {"wait": "for a signal or an event"}.get(group, ""))


def _note(entry: TimelineEntry) -> str:
    """What is told of an entry beside its bar. No payload: they can be large, and are shown by ``--json``."""
    return " ".join(note for note in _notes(entry) if note)


def _notes(entry: TimelineEntry) -> Iterator[str]:
    if entry.attempt is not None and entry.attempt > 1:
        yield f"attempt {entry.attempt}"
    if entry.kind in _FAILURES and entry.data:
        yield failures.readable(entry.data).summary
    elif entry.kind in _REQUESTS and entry.data:
        request = failures.request_from_json(entry.data)
        yield f"by {request.by}" if request.by else ""
        yield request.reason
    elif entry.kind == "child ended":
        end: Any = value_of(entry.data)
        yield str(end["state"])
    elif entry.kind == "paused":
        yield entry.data or ""
    elif entry.kind == "takeover":
        yield f"worker {entry.worker} died"
    elif entry.kind == "wait timed out":
        yield "timed out"


def drawn(rows: Sequence[Span], now: datetime, *, columns: int | None = None) -> Table:
    """The rows with a bar each, on one scale from the first to the last, or to ``now`` while something goes on.

    Args:
        columns: Of the screen; None: of this terminal.
    """
    name = max((len(one_line(row.name, _NAME)) for row in rows), default=0)
    screen = out.width if columns is None else columns
    width = max(10, min(_BAR, screen - name - _TOOK - _NOTE - 3))
    begin = min((row.began for row in rows), default=now)
    end = max((now if row.ended is None else row.ended for row in rows), default=now)
    total = max((end - begin).total_seconds(), 0.001)
    made = Table.grid(padding=(0, 1, 0, 0))
    # What does not fit is taken from the note alone: a name that is cut tells nothing.
    for wide in (name, width, _TOOK):
        made.add_column(no_wrap=True, min_width=wide)
    made.columns[-1].justify = "right"
    made.add_column()
    for row in rows:
        offset = (row.began - begin).total_seconds()
        until = (min(now, end) if row.ended is None else row.ended) - begin
        least = total / width / 2  # half a column: what was quick is seen too
        start = min(offset, total - least)
        bar = Bar(total, start, max(until.total_seconds(), start + least), width=width, color=_color(row))
        took = "" if row.moment else lasted(max((until.total_seconds() - offset), 0.0))
        note = cell(row.note)
        note.stylize("red" if row.look in ("failed", "retrying") else "bright_black")
        made.add_row(Text(one_line(row.name, _NAME)), bar if not row.moment else _mark(start, total, width), took, note)
    return made


def _color(row: Span) -> str:
    return _STYLES.get(row.look, "default")


def _mark(start: float, total: float, width: int) -> Text:
    return Text(" " * min(int(start / total * width), width - 1) + "◆", style="yellow")


def line(entry: TimelineEntry) -> str:
    """An entry on a line of its own, for a log."""
    took = "" if entry.duration is None else f"({lasted(entry.duration)})"
    parts = (f"{entry.at.astimezone():%H:%M:%S.%f}"[:12], entry.kind, entry.name, took, _note(entry))
    return one_line(" ".join(part for part in parts if part))
