"""Following a run until it ends: as bars that grow on a terminal, as lines elsewhere."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from durable import failures
from durable.cli.output import one_line, out, state_text, took, write_json_line
from durable.cli.shapes import entry_shape
from durable.cli.timeline import drawn, line, spans
from durable.clock import HostClock
from durable.engine import Engine
from durable.model import Run, State, TimelineEntry
from durable.states import TERMINAL

ENDED_OTHERWISE = 3
"""Exit code when the run ended without a result."""


async def follow(engine: Engine, run_id: str, interval: float = 0.5, *, as_json: bool = False) -> None:
    """Show what the run does until it ends: as bars that grow on a terminal, else as lines."""
    looks = _looks(engine, run_id, interval)
    state = await (_draw(looks) if sys.stdout.isatty() and not as_json else _log(looks, as_json))
    if state is not State.COMPLETED:
        raise typer.Exit(ENDED_OTHERWISE)


async def _looks(engine: Engine, run_id: str, interval: float) -> AsyncIterator[tuple[Run, list[TimelineEntry]]]:
    """The run as it stands, again and again; for the last time once it has ended."""
    while True:
        run = await engine.get_run(run_id)
        yield run, await engine.timeline(run_id)
        if run.state in TERMINAL:
            return
        await asyncio.sleep(interval)


async def _log(looks: AsyncIterator[tuple[Run, list[TimelineEntry]]], as_json: bool) -> State:
    told: set[TimelineEntry] = set()
    state = State.PENDING
    async for run, entries in looks:
        state = run.state
        for entry in entries:
            if entry not in told:
                told.add(entry)
                write_json_line(entry_shape(entry)) if as_json else out.print(line(entry))
    return state


async def _draw(looks: AsyncIterator[tuple[Run, list[TimelineEntry]]]) -> State:
    state, last = State.PENDING, None
    with Live(console=out, auto_refresh=False, transient=True) as live:
        async for run, entries in looks:
            state, last = run.state, (run, entries)
            live.update(_picture(run, entries, out.height - 3), refresh=True)
    if last is not None:
        out.print(_picture(*last))
    return state


def _picture(run: Run, entries: list[TimelineEntry], rows: int | None = None) -> RenderableType:
    """The run's timeline; ``rows``: only its end, as much as fits the screen."""
    now = run.ended_at or HostClock().now()
    head = Text.assemble(f"{run.workflow} {run.id} ", state_text(run.state), f" {took(run, now)}")
    shown = spans(entries)
    parts: list[RenderableType] = [head]
    if rows is not None and len(shown) > rows:
        parts.append(Text(f"… {len(shown) - rows} earlier", style="bright_black"))
        shown = shown[-rows:]
    parts.append(drawn(shown, now))
    if run.reason:
        parts.append(Text(one_line(run.reason), style="yellow"))
    if run.error is not None:
        parts.append(Text(one_line(failures.readable(run.error).summary), style="red"))
    return Group(*parts)
