"""The ledger: a file outside the engine, one line for each thing that really happened, in the order in which it did.

Each line is one write to a file that was opened for appending, so lines of several processes do not mix, and a killed
process leaves whole lines only.
"""

from __future__ import annotations

import os
import time
from itertools import count
from pathlib import Path
from typing import NamedTuple


class Effect(NamedTuple):
    """What one attempt of one step, or of a compensation, did to the outside world."""

    at: float  # time.monotonic(), one clock for all processes of the machine
    pid: int
    run_id: str
    key: str  # of the record that it belongs to
    nonce: str  # what the step returns, so that the record says which attempt it is about
    late: float  # seconds between the worker's own deadline and the beginning of the attempt; negative: in time


class Ledger:
    """The writing end; one a process."""

    def __init__(self) -> None:
        self._file = -1
        self._numbers = count(1)
        self.deadline = float("inf")
        """``time.monotonic()`` after which this process's worker must not begin a step: see `program.Watched`."""

    def open(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def effect(self, identity: str, late: float) -> str:
        """One effect of the step ``<run id>/<record key>``; returns its nonce."""
        nonce = self.nonce()
        run_id, _, key = identity.partition("/")
        self._write(f"effect {run_id} {key} {nonce} {late:.4f}")
        return nonce

    def nonce(self) -> str:
        """Something that no other attempt returns."""
        return f"{os.getpid()}-{next(self._numbers)}"

    def worker(self, worker: str) -> None:
        """This process is the worker of that id from now on."""
        self._write(f"worker {worker}")

    def _write(self, text: str) -> None:
        line = f"{time.monotonic():.6f} {os.getpid()} {text}\n".encode()
        assert os.write(self._file, line) == len(line)


class Book(NamedTuple):
    """What a ledger says."""

    effects: list[Effect]
    pids: dict[str, int]  # worker id → process


def read(path: Path) -> Book:
    effects: list[Effect] = []
    pids: dict[str, int] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        at, pid, what, *rest = line.split(" ")
        if what == "worker":
            pids[rest[0]] = int(pid)
        else:
            run_id, key, nonce, late = rest
            effects.append(Effect(float(at), int(pid), run_id, key, nonce, float(late)))
    return Book(effects, pids)


ledger = Ledger()
