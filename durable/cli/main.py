"""The ``durable`` command as a whole: its parts, its ``--version``, and how an error is told.

Each part is a module with ``add_to(app)``. It imports servers and what else is slow in its commands, not at its top:
``durable --help`` loads all parts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

from durable.errors import DurableError, SchemaOutdated, StoreUnavailable, without_password

if TYPE_CHECKING:
    import typer

FAILED = 1
"""Exit code of a command that could not do what it was asked. 2 says that it was asked wrongly."""

UNAVAILABLE = 75
"""Exit code when the database does not answer: later the same command may succeed (``EX_TEMPFAIL``)."""

_EXTRA = {"pydantic_settings", "rich", "typer", "watchfiles"}


def main() -> None:
    """The entry point."""
    try:
        command = _command()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        sys.exit("The durable command needs packages that are not installed: pip install 'durable[cli]'")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a locale that has no bars gets another sign, not an error
            stream.reconfigure(errors="replace")
    try:
        command(prog_name="durable")
    except DurableError as error:
        sys.stderr.write(f"Error: {told(error)}\n")
        sys.exit(UNAVAILABLE if isinstance(error, StoreUnavailable) else FAILED)


@cache
def _command() -> Callable[..., Any]:
    """The command, made once: a process that calls ``main`` again and again does not wait for it again."""
    from typer.main import get_command

    return get_command(build())


def build() -> typer.Typer:
    """The command with all of its parts."""
    import typer

    from durable.cli.output import out

    parts = _parts()
    # Plain help: it fits a screen, which boxes around its two lists do not. No traceback with local variables: they
    # hold what must not be shown.
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)

    def show_version(wanted: bool) -> None:
        if wanted:
            out.print(f"durable {version('durable')}")
            raise typer.Exit

    @app.callback()
    def durable(
        _: bool = typer.Option(False, "--version", callback=show_version, is_eager=True, help="Show the version."),
    ) -> None:
        """Durable workflows: run workers, look at runs, operate them."""

    for add_to in parts:
        add_to(app)
    return app


def _parts() -> tuple[Callable[[typer.Typer], None], ...]:
    """What adds commands, in the order of the help."""
    from durable.cli import bench, dev, doctor, migrate, prune, runs, schedules, serve, tokens, worker, workers

    parts = (dev, worker, serve, migrate, doctor, prune, bench, tokens, runs, schedules, workers)
    return tuple(part.add_to for part in parts)


def told(error: DurableError) -> str:
    """The message of an error, with what to do about it where a command does that."""
    remedy = ""
    if isinstance(error, SchemaOutdated):
        remedy = "\nRun `durable migrate` first, with a role that may change the schema."
    return without_password(str(error)) + remedy
