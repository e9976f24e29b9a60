"""``durable serve``: the HTTP runtime, with a worker beside it unless there are others."""

from __future__ import annotations

from typing import Annotated

import typer

from durable.cli.output import err
from durable.cli.process import serve_until_told, set_up_logging
from durable.cli.standalone import running_engine
from durable.cli.worker import ConcurrencyOption, LogLevelOption, QueuesOption, TargetArgument, queue_names

PortOption = Annotated[int, typer.Option("--port", envvar="PORT", min=0, max=65535, help="0: any that is free.")]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    target: TargetArgument = None,
    host: Annotated[
        str,
        typer.Option("--host", help="The address; any but this machine's own needs a token (durable token create)."),
    ] = "127.0.0.1",
    port: PortOption = 8000,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", help="A name of the server, as behind a proxy; others are refused. [repeat]"),
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="Requests from this machine need a token too: behind a proxy on it.")
    ] = False,
    worker: Annotated[bool, typer.Option("--worker/--no-worker", help="Execute runs in this process too.")] = True,
    queues: QueuesOption = None,
    concurrency: ConcurrencyOption = None,
    log_level: LogLevelOption = "INFO",
) -> None:
    """Serve HTTP: trigger, look, signal, operate; and execute runs.

    SIGTERM or Ctrl-C: requests and running steps end first; once more ends at once. Exit codes as of durable worker.
    """
    engine = running_engine(target, queues=queue_names(queues), concurrency=concurrency)
    set_up_logging(log_level)
    beside = "with a worker" if worker else "without a worker"
    serve_until_told(
        engine,
        host=host,
        port=port,
        worker=worker,
        options={"hosts": tuple(names or ()), "open_on_loopback": not token},
        started=lambda url, _: err.print(f"Serving {url}, {beside}.", soft_wrap=True),
    )
