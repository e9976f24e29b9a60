"""``durable runs list | show | watch``: what is asked about runs. What changes them is in ``operating``."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from durable import failures
from durable.cli import following, operating
from durable.cli.loading import connected
from durable.cli.options import JsonOption, RunArgument, Where, filtered
from durable.cli.output import (
    age,
    ago,
    lasted,
    moment,
    out,
    pretty,
    state_text,
    table,
    took,
    visible,
    write_json,
)
from durable.cli.shapes import RunPageShape, report_shape, run_shape, value_of
from durable.cli.timeline import drawn, spans
from durable.clock import HostClock
from durable.engine import Engine
from durable.model import Run, RunSummary
from durable.reports import OpenWait
from durable.states import TERMINAL

_TREE = 100
"""Called runs that a tree shows at most."""


def add_to(app: typer.Typer) -> None:
    commands = typer.Typer(no_args_is_help=True, help="Look at runs, trigger and operate them.")
    commands.command("list")(list_runs)
    for command in (show, watch):
        commands.command()(command)
    operating.add_to(commands)
    app.add_typer(commands, name="runs")


@connected
@filtered
async def list_runs(
    engine: Engine,
    where: Where,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=1000, help="At most so many.")] = 20,
    cursor: Annotated[str | None, typer.Option(metavar="CURSOR", help="Where the page before ended.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List runs, newest first."""
    page = await engine.list_runs(**where.conditions(), limit=limit, cursor=cursor)
    if as_json:
        write_json(RunPageShape(items=[run_shape(run) for run in page.items], next_cursor=page.next_cursor))
        return
    if not page.items:
        out.print("No runs." if where.anything and cursor is None else "No run meets these conditions.")
        return
    now = HostClock().now()
    out.print(table(("run", "workflow", "state", "age", "took", "about"), (_row(run, now) for run in page.items)))
    if page.next_cursor is not None:
        out.print(f"More: --cursor {page.next_cursor}")


def _row(run: RunSummary, now: datetime) -> tuple[str | Text, ...]:
    tags = [f"{name}={value}" for name, value in run.tags.items()]
    about = " ".join([part for part in (run.key, *tags, run.reason) if part])
    return (
        run.id,
        f"{run.workflow} {run.version}",
        state_text(run.state),
        age(run.created_at, now),
        took(run, now),
        about,
    )


# -- one run --------------------------------------------------------------------------------------


@connected
async def show(engine: Engine, run_id: RunArgument, as_json: JsonOption = False) -> None:
    """Show one run: its payloads, what it waits for, its timeline as bars, the runs it called."""
    run = await engine.get_run(run_id)
    entries, waits = await engine.timeline(run_id), await engine.open_waits(run_id)
    if as_json:
        write_json(report_shape(run, waits, entries))
        return
    now = HostClock().now()
    out.print(_facts(run, waits, now))
    out.print()
    out.print(drawn(spans(entries), run.ended_at or now))
    if (called := await _called(engine, run)) is not None:
        out.print()
        out.print(called)


def _facts(run: Run, waits: Iterable[OpenWait], now: datetime) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")

    def fact(name: str, text: str | Text | None) -> None:
        if text:
            facts.add_row(name, text)

    fact("run", run.id)
    fact("workflow", f"{run.workflow} {run.version}")
    fact("state", state_text(run.state))
    fact("reason", visible(run.reason or ""))
    if run.requested is not None:
        fact("asked", " ".join(part for part in (run.requested.verb, visible(run.requested.reason)) if part))
    fact("key", run.key)
    fact("tags", " ".join(f"{name}={value}" for name, value in run.tags.items()))
    fact("queue", f"{run.queue}, priority {run.priority}")
    fact("called by", run.parent)
    fact("schedule", None if run.schedule is None else f"{run.schedule}, tick {moment(run.tick)}")
    fact("created", f"{moment(run.created_at)} ({ago(run.created_at, now)})")
    if run.state not in TERMINAL and run.ready_at is not None:
        fact("ready", f"{moment(run.ready_at)} ({ago(run.ready_at, now)})")
    fact("worker", run.owner)
    fact("took", " ".join(part for part in (took(run, now), _lingered(run)) if part))
    for wait in waits:
        until = "" if wait.deadline is None else f", until {moment(wait.deadline)}"
        fact("waits for", f"{wait.kind} {wait.name} since {moment(wait.since)}{until}")
    for name, text in (("input", run.input), ("result", run.result)):
        if text is not None:
            fact(name, pretty(value_of(text)))
    if run.error is not None:
        failure = failures.readable(run.error)
        fact("error", Text(visible(failure.summary), style="red"))
        fact("", Text(visible(failure.traceback).rstrip(), style="bright_black"))
        fact("undone", ", ".join(failure.undone))
        fact("not undone", Text(", ".join(failure.not_undone), style="bold red"))
    return facts


def _lingered(run: Run) -> str:
    """How long it stood before its start: bars begin there."""
    if run.started_at is None:
        return ""
    return f"(started after {lasted(max((run.started_at - run.created_at).total_seconds(), 0.0))})"


async def _called(engine: Engine, run: Run) -> Tree | None:
    """The tree of the runs that it called, and those called."""
    root = Tree(_node(run))
    left = [(root, run.id)]
    shown = 0
    while left and shown < _TREE:
        branch, parent = left.pop(0)
        page = await engine.list_runs(parent=parent, limit=_TREE - shown + 1)
        for child in reversed(page.items[: _TREE - shown]):
            left.append((branch.add(_node(child)), child.id))
            shown += 1
        if page.next_cursor is not None or len(page.items) > _TREE - shown >= 0:
            branch.add(Text(f"… more: durable runs list --parent {parent}", style="bright_black"))
    return root if shown else None


def _node(run: RunSummary) -> Text:
    return Text.assemble(f"{run.workflow} ", state_text(run.state), f" {run.id}")


@connected
async def watch(
    engine: Engine,
    run_id: RunArgument,
    interval: Annotated[float, typer.Option(min=0.05, max=60, metavar="SECONDS", help="How often to look.")] = 0.5,
    as_json: JsonOption = False,
) -> None:
    """Follow a run until it ends; a paused one too. Exit code 0: it completed, 3: it ended otherwise."""
    await following.follow(engine, run_id, interval, as_json=as_json)
