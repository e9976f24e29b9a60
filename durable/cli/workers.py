"""``durable workers``: who executes runs."""

from __future__ import annotations

import typer
from rich.text import Text

from durable.cli.loading import connected
from durable.cli.options import JsonOption
from durable.cli.output import ago, out, table, write_json
from durable.cli.shapes import WorkersShape, worker_shape
from durable.clock import HostClock
from durable.engine import Engine


def add_to(app: typer.Typer) -> None:
    commands = typer.Typer(no_args_is_help=True, help="Look at the workers.")
    commands.command("list")(list_workers)
    app.add_typer(commands, name="workers")


@connected
async def list_workers(engine: Engine, as_json: JsonOption = False) -> None:
    """List the workers, the oldest first: who they are, whether they live, how many runs they hold."""
    workers = await engine.workers()
    if as_json:
        write_json(WorkersShape(items=[worker_shape(worker) for worker in workers]))
        return
    if not workers:
        out.print("No workers.")
        return
    now = HostClock().now()
    rows = [
        (
            worker.id,
            f"{worker.host or '?'} {worker.pid or ''}".strip(),
            Text("alive", style="green") if worker.alive else Text("dead", style="red"),
            str(worker.running),
            ago(worker.started_at, now),
            ago(worker.lease_until, now),
        )
        for worker in workers
    ]
    out.print(table(("worker", "process", "state", "runs", "started", "lease ends"), rows))
