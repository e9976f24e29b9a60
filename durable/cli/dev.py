"""``durable dev``: a worker and the HTTP runtime in one process, which is replaced whenever a file changes."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from durable.cli.output import err
from durable.cli.process import Order, set_up_logging
from durable.cli.serve import PortOption
from durable.cli.settings import read_settings
from durable.cli.supervisor import Child, Stop, how_it_ended
from durable.cli.worker import LogLevelOption, TargetArgument
from durable.errors import ConfigurationError

_log = logging.getLogger("durable.dev")

_DRAIN = 2.0
"""Seconds that a change waits for running steps: whoever saves a file wants to see it work."""


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(dev)


def dev(
    target: TargetArgument = None,
    port: PortOption = 8000,
    watch: Annotated[
        list[Path] | None,
        typer.Option("--watch", exists=True, help="Directory to watch; several times. Default: the working directory."),
    ] = None,
    log_level: LogLevelOption = "INFO",
) -> None:
    """Try things out: a worker and HTTP, anew when a file changes."""
    paths = list(watch or [Path.cwd()])
    if target is None and (workflows := read_settings().workflows_dir).is_dir():
        paths.append(workflows)
    order = Order(target, log_level=log_level, port=_free(port), drain_timeout=_DRAIN)
    set_up_logging(log_level)
    sys.exit(asyncio.run(_Development(order, paths).run()))


def _free(port: int) -> int:
    """The port, found to be free: the same one for all processes to come."""
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            found: int = probe.getsockname()[1]
            return found
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on 127.0.0.1:{port}: {error.strerror}; choose another --port"
        ) from None


class _Development:
    """One process after the other, until it is told to stop."""

    def __init__(self, order: Order, paths: Sequence[Path]) -> None:
        self._order = order
        self._paths = paths
        self._changed = asyncio.Event()

    async def run(self) -> int:
        """The exit code."""
        self._stop = Stop()
        watching = asyncio.get_running_loop().create_task(self._watch(), name="durable watch")
        try:
            while not self._stop.asked.is_set():
                await self._once()
        finally:
            watching.cancel()
        return self._stop.code

    async def _once(self) -> None:
        """A process, until it is told to stop, a file changes, or it has ended and one of these happens."""
        self._changed.clear()
        child = await Child.start(self._order)
        child.up.add_done_callback(self._on_up)
        ended = asyncio.get_running_loop().create_task(child.ended())
        await _first(ended, self._stop.asked.wait(), self._changed.wait())
        if ended.done():
            _log.error("the process %s: it is started again when a file changes", how_it_ended(ended.result()))
            await _first(self._stop.asked.wait(), self._changed.wait())
            return
        finished = asyncio.get_running_loop().create_task(child.finished())
        await _first(finished, self._stop.insisted.wait())
        child.signal(signal.SIGKILL)
        await asyncio.gather(finished, ended)

    def _on_up(self, up: asyncio.Future[dict[str, Any]]) -> None:
        if not up.cancelled():
            url = up.result()["url"]
            err.print(f"{url} answers, a worker runs. Try: curl {url}/v1/flows", soft_wrap=True)

    async def _watch(self) -> None:
        from watchfiles import PythonFilter, awatch  # pyright: ignore[reportUnknownVariableType]

        async for changes in awatch(*self._paths, watch_filter=PythonFilter()):
            names = sorted({Path(path).name for _, path in changes})
            err.print(f"Changed: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}")
            self._changed.set()


async def _first(*events: Awaitable[object]) -> None:
    """Return when one of them has happened; those that were made for this are cancelled."""
    loop = asyncio.get_running_loop()
    tasks = [event if isinstance(event, asyncio.Task) else loop.create_task(_awaited(event)) for event in events]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, event in zip(tasks, events, strict=True):
        if task is not event:
            task.cancel()


async def _awaited(event: Awaitable[object]) -> None:
    await event
