"""What workflows in a child process use to talk with the test: events out, gates opened from outside, effects.

Events go to stdout, one JSON object a line; commands come from stdin, one a line. Both are raw reads and writes of
the descriptors: a buffered stdin that a daemon thread reads makes the interpreter abort at its exit.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durable import current_step


def tell(event: str, **details: Any) -> None:
    """Tell the test. One write, so that lines of several threads do not mix."""
    os.write(1, (json.dumps({"event": event, **details}) + "\n").encode())


class Gate:
    """Something that waits, on the loop or in a thread, until the test opens it."""

    def __init__(self) -> None:
        self._opened = threading.Event()
        self._lock = threading.Lock()
        self._waiting: list[Callable[[], object]] = []

    def open(self) -> None:
        with self._lock:
            self._opened.set()
            waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    async def passed(self) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def resolve() -> None:
            if not future.done():
                future.set_result(None)

        with self._lock:
            if self._opened.is_set():
                return
            self._waiting.append(lambda: loop.call_soon_threadsafe(resolve))
        await future

    def passed_by_thread(self) -> None:
        self._opened.wait()


class Stage:
    """The state of one child process.

    Attributes:
        open: Nothing is held here, and nothing fails that fails only where it was held.
    """

    def __init__(self) -> None:
        self.open = False
        self._ledger = -1
        self._gates: dict[str, Gate] = {}
        self._commands: dict[str, Callable[[], None]] = {}

    def begin(self, ledger: str, *, opened: bool) -> None:
        self._ledger = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self.open = opened

    def listen(self) -> None:
        """Obey the commands on stdin from now on."""
        threading.Thread(target=self._listen, name="commands", daemon=True).start()

    def on(self, command: str, do: Callable[[], None]) -> None:
        """Call ``do``, in a thread, when the test says ``command``."""
        self._commands[command] = do

    def gate(self, name: str) -> Gate:
        """The gate that the command ``name`` opens."""
        return self._gates.setdefault(name, Gate())

    async def hold(self, gate: str, **details: Any) -> None:
        """Say that we stand here, and stay until the test opens the gate."""
        tell("holding", gate=gate, pid=os.getpid(), **details)
        if not self.open:
            await self.gate(gate).passed()

    def effect(self, what: str, run_id: str | None = None) -> int:
        """One line in the ledger: what a step did to the outside world. Returns our process id."""
        run_id = current_step().run_id if run_id is None else run_id
        line = f"{os.getpid()} {run_id} {what}\n".encode()
        assert os.write(self._ledger, line) == len(line)
        return os.getpid()

    def _listen(self) -> None:
        rest = b""
        while chunk := os.read(0, 4096):
            *lines, rest = (rest + chunk).split(b"\n")
            for command in lines:
                do = self._commands.get(command.decode())
                (do or self.gate(command.decode()).open)()


class Effect:
    """One line of the ledger."""

    def __init__(self, line: str) -> None:
        pid, self.run_id, self.what = line.split(" ", 2)
        self.pid = int(pid)

    def __repr__(self) -> str:
        return f"<{self.what} by {self.pid} for {self.run_id}>"


def effects(ledger: Path) -> list[Effect]:
    """All effects so far, in the order in which they happened."""
    return [Effect(line) for line in ledger.read_text().splitlines()] if ledger.exists() else []


stage = Stage()
