"""Child processes that are forked: one that has imported everything makes them in milliseconds.

A new interpreter takes most of a second of processor time for that, and the tests start hundreds. The nursery is a
program that is started with ``python -m <program> <descriptor>`` and calls `forked`; it gets a child's settings and
four descriptors over a socket, and answers the process id. A child ends as every program does, by leaving its main
module. When the socket closes, the nursery ends with all of its children.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Self

Event = dict[str, Any]

ROOT = Path(__file__).parents[2]
PATIENCE = 20.0
"""Seconds that anything may take on a busy machine; what has a promised time is measured against that."""


class Nursery:
    """A process that forks others.

    Args:
        program: The module that calls `forked`.
        environment: Of all its children, beside this process's own.
    """

    def __init__(self, program: str, environment: Mapping[str, str] | None = None) -> None:
        self._door, inside = socket.socketpair()
        with inside:
            self._process = subprocess.Popen(
                [sys.executable, "-m", program, str(inside.fileno())],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                pass_fds=[inside.fileno()],
                start_new_session=True,
            )
        self._door.recv(64)  # it has imported all that it needs: no event loop of ours is to wait for that

    def fork(self, config: Mapping[str, Any], log: Path) -> tuple[int, int, int, int]:
        """A child: its process id, its stdin to write, its stdout to read, and where its exit code will be said."""
        commands, say = os.pipe()
        hear, events = os.pipe()
        end, ended = os.pipe()
        with log.open("wb") as errors:
            message = json.dumps(config).encode()
            socket.send_fds(self._door, [message], [commands, events, errors.fileno(), ended])
        for descriptor in (commands, events, ended):
            os.close(descriptor)
        answer = self._door.recv(64)
        assert answer, "the nursery has ended"
        return int(answer), say, hear, end

    def close(self) -> None:
        """End it and all of its children."""
        self._door.close()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Forked:
    """A child of a nursery: signalled, spoken to, and heard.

    Attributes:
        pid: Its process id.
        events: What it has told and nobody has taken yet.
        gone: Set when it has ended.
        code: Its exit code then; negative: the signal that ended it.
    """

    def __init__(self, nursery: Nursery, config: Mapping[str, Any], log: Path, news: Callable[[], None]) -> None:
        self.pid, self._say, hear, end = nursery.fork(config, log)
        self.events: list[Event] = []
        self.gone = asyncio.Event()
        self.code: int | None = None
        self._log = log
        self._news = news
        self._task = asyncio.get_running_loop().create_task(self._listen(hear, end))

    @property
    def log(self) -> str:
        """What it has written to stderr."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        assert not self.gone.is_set(), "the process id may be another's by now"
        os.kill(self.pid, number)

    def say(self, command: str) -> None:
        """A command: the name of a gate, or what the program listens to. A stopped process reads it later."""
        os.write(self._say, f"{command}\n".encode())

    def take(self, event: str, **details: Any) -> Event | None:
        """The next event of this name with these details; each event is taken once."""
        for number, candidate in enumerate(self.events):
            if candidate["event"] == event and details.items() <= candidate.items():
                return self.events.pop(number)
        return None

    async def exit_code(self, within: float = PATIENCE) -> int:
        """What ``code`` is when it has ended."""
        async with asyncio.timeout(within):
            await self.gone.wait()
        assert self.code is not None, "the nursery has ended"
        return self.code

    async def close(self) -> None:
        """Kill it if it is there, and collect it."""
        if not self.gone.is_set():
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
        await self.exit_code()
        await self._task

    async def _listen(self, hear: int, end: int) -> None:
        async with aclosing(_lines(hear)) as lines:
            async for line in lines:
                self.events.append(json.loads(line))
                self._news()
        async with aclosing(_lines(end)) as lines:
            async for line in lines:
                self.code = int(line)
        os.close(self._say)
        self.gone.set()
        self._news()


async def _lines(descriptor: int) -> AsyncGenerator[bytes]:
    reader = asyncio.StreamReader()
    with open(descriptor, "rb") as pipe:  # noqa: ASYNC230 - a pipe
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        async for line in reader:
            yield line


# -- inside ---------------------------------------------------------------------------------------


def forked() -> dict[str, Any]:
    """Fork for whoever asks at the descriptor in the arguments.

    Returns:
        In each child, with its own stdin, stdout and stderr: what it is told. In the nursery never.
    """
    door = socket.socket(fileno=int(sys.argv[1]))
    ends: dict[int, int] = {}  # process id → where its exit code is awaited

    def collect(*_: object) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                end = ends.pop(found[0])
                with suppress(BrokenPipeError):
                    os.write(end, b"%d\n" % os.waitstatus_to_exitcode(found[1]))
                os.close(end)

    signal.signal(signal.SIGCHLD, collect)
    gc.freeze()
    door.sendall(b"ready\n")
    while True:
        message, descriptors, _, _ = socket.recv_fds(door, 1 << 16, 4)
        if not message:
            os.killpg(0, signal.SIGKILL)  # all children, those that are stopped too, and this process
        *streams, end = descriptors
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})  # until it is known whose end that is
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            door.close()
            for descriptor in (end, *ends.values()):
                os.close(descriptor)
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
                os.close(descriptor)
            told: dict[str, Any] = json.loads(message)
            return told
        ends[pid] = end
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        for descriptor in streams:
            os.close(descriptor)
        door.sendall(f"{pid}\n".encode())
