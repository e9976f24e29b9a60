"""``durable runs``: what is asked about runs."""

from __future__ import annotations

import typer

from durable.cli.loading import connected
from durable.cli.output import out
from durable.engine import Engine

commands = typer.Typer(no_args_is_help=True, help="Look at runs and operate them.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(commands, name="runs")


@commands.command("list")
@connected
async def list_runs(engine: Engine) -> None:
    """List runs, newest first."""
    for run in (await engine.list_runs()).items:
        out.print(run.id)


@commands.command("show")
@connected
async def show(engine: Engine, run_id: str) -> None:
    """Show one run."""
    out.print(await engine.get_run(run_id))
