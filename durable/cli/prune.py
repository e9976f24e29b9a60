"""``durable prune``: delete what ended long ago."""

from __future__ import annotations

from typing import Annotated

import typer

from durable.cli.loading import connected
from durable.cli.options import JsonOption, parse_duration
from durable.cli.output import confirm, err, lasted, out, write_json
from durable.engine import Engine


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(connected(prune))


async def prune(
    engine: Engine,
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="DURATION", help="Since their end, such as 30d; required.")
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete the runs that ended long ago, with all that is theirs."""
    age = parse_duration(older_than)
    confirm(f"Delete every run that ended more than {lasted(age.total_seconds())} ago?", yes=yes)
    with err.status("Deleting …"):
        deleted = await engine.prune(age)
    if as_json:
        write_json({"deleted": deleted})
    else:
        out.print(f"Deleted {deleted:,} {'run' if deleted == 1 else 'runs'}.")
