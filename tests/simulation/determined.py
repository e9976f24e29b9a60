"""Takes chance and real time out of the engine while a simulation runs: what it asks of them, the world answers.

Patched are names in the engine's own modules, never the modules ``time``, ``os`` and ``random`` themselves, which the
test runner uses beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest.mock import patch

from durable import (
    attempts,
    calendar,
    cancelling,
    client,
    declarations,
    execution,
    heartbeat,
    ids,
    newruns,
    transactions,
    worker,
)
from tests.simulation.heartbeat import HeartbeatOnLoop
from tests.simulation.threads import ThreadsOnLoop


class _Chance:
    """Stands for ``secrets`` and ``os`` where ids and seeds are made."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def randbits(self, bits: int) -> int:
        return self._rng.getrandbits(bits)

    def urandom(self, size: int) -> bytes:
        return self._rng.randbytes(size)

    def token_hex(self, size: int) -> str:
        return self._rng.randbytes(size).hex()


class _Time:
    """Stands for ``time``."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self.monotonic = monotonic


class _Listener(logging.Handler):
    def __init__(self, heard: Callable[[logging.LogRecord], None]) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard(record)


@contextmanager
def determined(
    rng: Random, monotonic: Callable[[], float], heard: Callable[[logging.LogRecord], None]
) -> Generator[None]:
    """While it lasts, all that the engine does follows from ``rng`` and ``monotonic``; ``heard`` gets what it logs."""
    chance, clock = _Chance(rng), _Time(monotonic)
    log, listener = logging.getLogger("durable"), _Listener(heard)
    timed = (attempts, calendar, cancelling, client, heartbeat, transactions, worker)
    patches: list[Any] = [patch.object(module, "time", clock) for module in timed]
    patches += [
        patch.object(ids, "secrets", chance),
        patch.object(ids, "os", chance),
        patch.object(ids, "_last", (0, 0)),
        patch.object(newruns, "secrets", chance),
        patch.object(declarations, "secrets", chance),
        patch.object(attempts, "random", rng.random),
        patch.object(execution, "random", rng.random),
        patch.object(worker, "Heartbeat", HeartbeatOnLoop),
        patch.object(worker, "ThreadPool", ThreadsOnLoop),
    ]
    propagate = log.propagate
    log.addHandler(listener)
    log.propagate = False
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
        log.removeHandler(listener)
        log.propagate = propagate
