"""What is shown while the demo runs. It only shows: others find the figures out."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.orders.accounting import COMPENSATED, COMPLETED

_WIDTH = 100  # columns, at most
_PLAIN_EVERY = 2.0  # seconds between two lines when the output is no terminal


@dataclass(slots=True)
class WorkerLine:
    """One worker as the board shows it."""

    name: str
    pid: int
    state: str  # starts, works, SIGKILL, …
    alive: bool = True
    holds: int = 0  # runs it executes at this moment
    requests: int = 0  # to the service, so far


@dataclass(slots=True)
class Figures:
    """Everything the board shows. The demo keeps it up to date."""

    orders: int
    where: str  # the database
    service_pid: int
    started: float = field(default_factory=time.monotonic)
    delivered: int = 0
    states: Counter[str] = field(default_factory=Counter[str])  # of the runs, ended or not
    workers: list[WorkerLine] = field(default_factory=list[WorkerLine])
    service: dict[str, int] = field(default_factory=dict[str, int])
    events: list[tuple[float, str]] = field(default_factory=list[tuple[float, str]])

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.started

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.states.items() if state in ENDS)


ENDS = ("completed", "compensated", "failed", "cancelled", "dead_letter")
_MOVING = ("pending", "running", "sleeping", "compensating", "paused")


class Board:
    """A table that changes in place on a terminal; elsewhere a line every two seconds, and one for each event."""

    def __init__(self, console: Console, figures: Figures) -> None:
        self._console = console
        self._figures = figures
        self._next_line = 0.0
        self._width = min(_WIDTH, console.width)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def event(self, text: str) -> None:
        """Something happened that deserves a line of its own."""
        self._figures.events.append((self._figures.elapsed, text))
        self._line(f"* {text}")

    def refresh(self) -> None:
        """The figures have changed."""
        if self._figures.elapsed >= self._next_line:
            self._next_line = self._figures.elapsed + _PLAIN_EVERY
            self._line(summary(self._figures))

    def _line(self, text: str) -> None:
        if not self._console.is_terminal:  # there the live table looks by itself
            self._console.print(
                f"{self._figures.elapsed:5.1f} s  {text}", highlight=False, markup=False, soft_wrap=True
            )
            self._console.file.flush()

    def _render(self) -> RenderableType:
        figures = self._figures
        title = f"[bold]durable: {figures.orders} orders[/] on {escape(figures.where)}"
        body = Group(_orders(figures), _workers(figures), _service(figures), "", _events(figures))
        return Panel(
            body, title=title, subtitle=f"{figures.elapsed:.1f} s", box=box.ROUNDED, padding=(1, 2), width=self._width
        )


def summary(figures: Figures) -> str:
    """The figures in one line."""
    states = ", ".join(f"{figures.states[state]} {state}" for state in _MOVING + ENDS if figures.states[state])
    return f"{figures.delivered} of {figures.orders} delivered: {states or 'nothing begun'}"


def _orders(figures: Figures) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column()
    ends = "  ".join(
        _count(figures, state) for state in ENDS if figures.states[state] or state in {COMPLETED, COMPENSATED}
    )
    moving = "  ".join(_count(figures, state) for state in _MOVING if figures.states[state])
    table.add_row("delivered", _bar(figures.delivered, figures.orders, "cyan"), f"{figures.delivered}")
    table.add_row("ended", _bar(figures.ended, figures.orders, "green"), f"{figures.ended}  =  {ends}")
    table.add_row("on the way", "", moving or "none")
    return table


_STYLES = {COMPLETED: "green", COMPENSATED: "yellow", "failed": "bold red", "dead_letter": "bold red", "paused": "red"}


def _count(figures: Figures, state: str) -> str:
    text = f"{figures.states[state]} {state}"
    return f"[{_STYLES[state]}]{text}[/]" if state in _STYLES else text


def _bar(done: int, total: int, style: str) -> ProgressBar:
    return ProgressBar(total=max(total, 1), completed=done, width=22, complete_style=style, finished_style=style)


def _workers(figures: Figures) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("process", width=11)
    table.add_column("pid", justify="right")
    table.add_column("state", width=9)
    table.add_column("holds now", justify="right")
    table.add_column("requests to the service", justify="right")
    for worker in figures.workers:
        holds, style = f"{worker.holds} runs", "" if worker.alive else "bold red"
        table.add_row(worker.name, str(worker.pid), worker.state, holds, str(worker.requests), style=style)
    return table


def _service(figures: Figures) -> RenderableType:
    """How badly the service behaves."""
    counts = Counter(figures.service)
    dropped = f"dropped before/after the effect {counts['dropped before']}/{counts['dropped after']}"
    return Text(f"service     {figures.service_pid}  {counts['slow']} slow, {counts['error']} errors, {dropped}")


def _events(figures: Figures) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    for at, text in figures.events[-8:]:
        table.add_row(Text(f"{at:5.1f} s", style="dim"), Text(text))
    return table
