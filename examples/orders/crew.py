"""The processes of the demo: started, watched, killed, and ended in every case, each by its own pid.

It knows neither orders nor the engine. Children stand in process groups of their own, so that Ctrl-C in a terminal
reaches the demo alone, and hang on a pipe, so that they end even when the demo is killed (see ``lifeline``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Self

_ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A Python module in a process of its own. Its log goes to ``<folder>/<name>.log``.

    Args:
        name: How people call it, such as ``worker 1``.
        module: Run as ``python -m``.
        environment: Added to this process's.
    """

    def __init__(self, name: str, module: str, *args: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name.replace(' ', '-')}.log"
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **environment, "PYTHONPATH": path},
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def end(self) -> str:
        """How it ended: ``SIGKILL``, ``exit 1``."""
        code = self._process.poll()
        if code is None:
            return "runs"
        return signal.Signals(-code).name if code < 0 else f"exit {code}"

    @property
    def failed(self) -> bool:
        """It has ended by a mistake of its own, not by a signal and not because it was told to."""
        return (self._process.poll() or 0) > 0

    def first_line(self) -> str:
        """What it says on standard output first; waits for it. Empty when it ended without a word."""
        output: IO[bytes] | None = self._process.stdout
        assert output is not None
        return output.readline().decode().strip()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.wait()

    def terminate(self) -> None:
        """SIGTERM, unless it has ended."""
        if self.alive:
            self._process.terminate()

    def wait(self, within: float = 6.0) -> None:
        """Wait for its end; SIGKILL when that has not come ``within`` seconds."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class ChildEnded(Exception):
    """A process that should be there is not."""

    def __init__(self, child: Child) -> None:
        super().__init__(f"{child.name} has ended ({child.end}): {child.last_words() or 'without a word'}")


class Crew:
    """All child processes of one demo. Leaving it ends them.

    Args:
        folder: For the ledger and the logs.
        database: URL for the workers.
        schema: Where the engine's tables are, on Postgres.
        seed: Of the service's failures.
    """

    def __init__(self, folder: Path, database: str, schema: str, seed: int) -> None:
        self.ledger = folder / "ledger.db"
        self.service: Child | None = None
        self.service_url = ""
        self.workers: list[Child] = []
        self._folder = folder
        self._environment = {"DURABLE_DATABASE_URL": database, "ORDERS_SCHEMA": schema}
        self._seed = seed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        children = [child for child in (*self.workers, self.service) if child is not None]
        for child in children:
            child.terminate()
        for child in children:
            child.wait()

    def start_service(self) -> Child:
        """Start the service, and wait until it listens.

        Raises:
            ChildEnded: It did not start.
        """
        arguments = ("--ledger", str(self.ledger), "--seed", str(self._seed))
        self.service = Child("service", "examples.orders.service", *arguments, folder=self._folder, environment={})
        self.service_url = self.service.first_line()
        if not self.service_url:
            raise ChildEnded(self.service)
        return self.service

    def start_worker(self) -> Child:
        """Start one more worker."""
        environment = {**self._environment, "SHOP_URL": self.service_url}
        name = f"worker {len(self.workers) + 1}"
        worker = Child(name, "examples.orders.worker", folder=self._folder, environment=environment)
        self.workers.append(worker)
        return worker

    def check(self) -> None:
        """The service is there; workers may have been ended from outside.

        Raises:
            ChildEnded: The service is not there, or a worker has failed.
        """
        if self.service is not None and not self.service.alive:
            raise ChildEnded(self.service)
        for worker in self.workers:
            if worker.failed:
                raise ChildEnded(worker)
