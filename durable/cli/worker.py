"""``durable worker``: supervised processes that execute runs."""

from __future__ import annotations

import asyncio
import sys
from typing import Annotated

import typer

from durable.cli.process import Order, set_up_logging
from durable.cli.settings import LogLevel
from durable.cli.supervisor import Supervisor

TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODULE:ENGINE]",
        help="Your engine, such as app.main:engine. Without it: every workflow in WORKFLOWS_DIR, on DATABASE_URL.",
        show_default=False,
    ),
]

QueuesOption = Annotated[
    list[str] | None,
    typer.Option("--queues", "-q", metavar="NAME,…", help="Queues to work for. Default: those of the engine."),
]
ConcurrencyOption = Annotated[
    int | None,
    typer.Option("--concurrency", "-c", min=1, help="Runs at a time in each process. Default: the engine's."),
]
LogLevelOption = Annotated[
    LogLevel,
    typer.Option("--log-level", envvar="LOG_LEVEL", case_sensitive=False, help="What is logged, from here on."),
]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(worker)


def worker(
    target: TargetArgument = None,
    processes: Annotated[int, typer.Option("--processes", "-p", min=1, help="Worker processes.")] = 1,
    queues: QueuesOption = None,
    concurrency: ConcurrencyOption = None,
    status_every: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Between two status lines; 0: none.")
    ] = 60.0,
    log_level: LogLevelOption = "INFO",
) -> None:
    """Execute runs, in processes that are restarted when they die.

    SIGTERM or Ctrl-C: running steps end first (drain_timeout); once more ends at once.

    Exit codes: 0 drained; 1 it cannot work as it is set up (a file fails to import, …); 2 a wrong command line;
    70 processes kept dying; 75 the database did not answer at the start.
    """
    order = Order(target, queues=queue_names(queues), concurrency=concurrency, log_level=log_level)
    set_up_logging(log_level)
    sys.exit(asyncio.run(Supervisor(order, processes, status_every).run()))


def queue_names(given: list[str] | None) -> tuple[str, ...] | None:
    """``--queues a,b --queues c`` as names; None: it was not given."""
    names = tuple(name for part in given or () for name in map(str.strip, part.split(",")) if name)
    if given and not names:
        raise typer.BadParameter("it names no queue", param_hint="--queues")
    return names or None
