"""Worker processes as the gates see them: forked by a nursery, signalled, and heard through a pipe of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.chaos.program import Config

T = TypeVar("T")
Event = dict[str, Any]

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds that anything may take on a busy machine; what has a promised time is measured against that."""


class Nursery:
    """A process that forks workers.

    Args:
        environment: Of all its workers, beside this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._door, inside = socket.socketpair()
        with inside:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.program", str(inside.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                pass_fds=[inside.fileno()],
                start_new_session=True,
            )
        self._door.recv(64)  # it has imported all that it needs: no event loop of ours is to wait for that

    def fork(self, config: Config, log: Path) -> tuple[int, int, int]:
        """A new worker: its process id, the writing end of its stdin, and the reading end of its stdout."""
        commands, say = os.pipe()
        hear, events = os.pipe()
        with log.open("wb") as errors:
            message = json.dumps(asdict(config)).encode()
            socket.send_fds(self._door, [message], [commands, events, errors.fileno()])
        os.close(commands)
        os.close(events)
        answer = self._door.recv(64)
        assert answer, "the nursery has ended"
        return int(answer), say, hear

    def close(self) -> None:
        """End it and all of its workers."""
        self._door.close()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Worker:
    """One worker process.

    Attributes:
        pid: Its process id.
        gone: Set when it has ended.
        events: What it has told and nobody has taken yet.
    """

    def __init__(self, nursery: Nursery, config: Config, log: Path, news: Callable[[], None]) -> None:
        self.pid, self._say, hear = nursery.fork(config, log)
        self.gone = asyncio.Event()
        self.events: list[Event] = []
        self._log = log
        self._news = news
        self._task = asyncio.get_running_loop().create_task(self._listen(hear))

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def complaints(self) -> list[str]:
        """Lines of its log that say that something went wrong which must not."""
        return [line for line in self.log.splitlines() if line.startswith(("ERROR", "CRITICAL", "Traceback"))]

    def signal(self, number: signal.Signals) -> None:
        assert not self.gone.is_set(), "the process id may be another's by now"
        os.kill(self.pid, number)

    def say(self, command: str) -> None:
        os.write(self._say, f"{command}\n".encode())

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()

    async def ended(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.gone.wait()

    async def close(self) -> None:
        """Kill it if it is there."""
        if not self.gone.is_set():
            await self.kill()
        await self._task

    def take(self, event: str, **details: Any) -> Event | None:
        """The next event of this name with these details; each event is taken once."""
        for number, candidate in enumerate(self.events):
            if candidate["event"] == event and details.items() <= candidate.items():
                return self.events.pop(number)
        return None

    async def _listen(self, hear: int) -> None:
        reader = asyncio.StreamReader()
        with open(hear, "rb") as pipe:  # noqa: ASYNC230 - a pipe
            await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            async for line in reader:
                self.events.append(json.loads(line))
                self._news()
        with suppress(OSError):
            os.close(self._say)
        self.gone.set()
        self._news()
