"""``durable workers``: who executes runs."""

from __future__ import annotations

import typer

commands = typer.Typer(no_args_is_help=True, help="Look at the workers.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(commands, name="workers")
