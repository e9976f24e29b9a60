"""``durable schedules``: what is asked and done about schedules."""

from __future__ import annotations

import typer

commands = typer.Typer(no_args_is_help=True, help="Look at schedules and change them.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(commands, name="schedules")
