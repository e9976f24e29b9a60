"""The main of a process that ``durable worker`` or ``durable dev`` supervises: ``python -m durable.cli.process ORDER``.

It finds the user's engine, runs it until SIGTERM, and tells its supervisor that it is up and what it has done. When
the supervisor is gone, it drains and ends: nobody would restart it, or stop it. It knows no command line.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from durable.cli.standalone import running_engine
from durable.collector import sparing_collector
from durable.engine import Engine, close_loop
from durable.errors import ConfigurationError, DurableError, StoreUnavailable, without_password
from durable.meter import Meter

MISCONFIGURED, UNAVAILABLE = 1, 75
"""Exit codes, those of the whole command: starting again is of no use before somebody has corrected something; it is,
once the database answers."""


STATUS, DRAIN = b"status\n", b"drain\n"
"""What a supervisor says."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the supervisor wants of a process. It stands in the list of processes for all to read: no secrets.

    Args:
        target: Where the engine is; None: the standalone mode.
        lifeline: The descriptor of the socket to the supervisor.
        queues: Instead of the engine's own.
        concurrency: Instead of the engine's own.
        log_level: From where on ``durable`` logs.
        port: Serve HTTP on this port of the loopback address too; 0: any. None: only work.
        drain_timeout: At most so many seconds, when the engine's own are more; None: the engine's own.
    """

    target: str | None
    lifeline: int = -1
    queues: tuple[str, ...] | None = None
    concurrency: int | None = None
    log_level: str = "INFO"
    port: int | None = None
    drain_timeout: float | None = None


def set_up_logging(level: str) -> None:
    """Log to stderr, unless the program has its own way."""
    logging.basicConfig(format=f"%(asctime)s %(levelname)-7s [{os.getpid()}] %(name)s: %(message)s")
    logging.getLogger("durable").setLevel(level)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's, a third faster on concurrent work, when it is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


@dataclass(slots=True)
class Done:
    """What a process has done since its start."""

    claimed: int = 0  # runs
    steps: int = 0  # attempts that ended
    failed: int = 0  # of these
    commits: int = 0
    committing: float = 0.0  # seconds that they took together
    unrenewed: int = 0  # renewals of the lease that failed


class Tally:
    """A meter that counts, and hands on to the engine's own."""

    def __init__(self, also: Meter | None) -> None:
        self.done = Done()
        self._also = also

    def claimed(self, seconds: float, runs: int) -> None:
        self.done.claimed += runs
        if self._also is not None:
            self._also.claimed(seconds, runs)

    def committed(self, seconds: float, writes: int) -> None:
        self.done.commits += 1
        self.done.committing += seconds
        if self._also is not None:
            self._also.committed(seconds, writes)

    def renewed(self, ok: bool) -> None:
        self.done.unrenewed += not ok
        if self._also is not None:
            self._also.renewed(ok)

    def step(self, workflow: str, name: str, seconds: float, failed: bool) -> None:
        self.done.steps += 1
        self.done.failed += failed
        if self._also is not None:
            self._also.step(workflow, name, seconds, failed)


class Lifeline:
    """The socket to the supervisor. Its end is the supervisor's.

    The wish to drain comes here and not as a signal, for the same signal may come from elsewhere too: systemd sends it
    to every process of a unit. The second signal ends a process at once, the second wish is as good as the first.

    Args:
        descriptor: Of the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self.tally = Tally(None)
        self.stop: Callable[[], object] = partial(os.kill, os.getpid(), signal.SIGTERM)
        """Begins the drain. As long as nothing has started, there is nothing to drain."""

    def listen(self) -> None:
        """Answer from now on, in a thread of its own: a blocked event loop is not a dead process."""
        threading.Thread(target=self._answer, name="durable lifeline", daemon=True).start()

    def up(self, stop: Callable[[], object], **what: Any) -> None:
        """The process works; ``stop`` begins its drain."""
        self.stop = stop
        self.say(up=what)

    def say(self, **what: Any) -> None:
        """One message to the supervisor; when it is gone, to nobody."""
        with suppress(OSError):
            self._socket.sendall(json.dumps(what).encode() + b"\n")

    def _answer(self) -> None:
        with suppress(OSError), self._socket.makefile("rb") as questions:
            for question in questions:
                if question == DRAIN:
                    break
                self.say(done=asdict(self.tally.done))
        with suppress(RuntimeError):  # the event loop is closed: this process ends anyway
            self.stop()


def main() -> None:
    """Do what the order says; the exit code tells the supervisor how it ended."""
    order = Order(**json.loads(sys.argv[1]))
    lifeline = Lifeline(order.lifeline)
    lifeline.listen()
    try:
        engine = running_engine(order.target, queues=order.queues, concurrency=order.concurrency)
        _work(engine, order, lifeline)
    except StoreUnavailable as error:
        _end(error, UNAVAILABLE)
    except DurableError as error:
        _end(error, MISCONFIGURED)


def _work(engine: Engine, order: Order, lifeline: Lifeline) -> None:
    set_up_logging(order.log_level)
    options = engine.worker_options
    if order.drain_timeout is not None and order.drain_timeout < options.drain_timeout:
        options = engine.worker_options = options.replaced(drain_timeout=order.drain_timeout)
    if order.port is None:
        if not engine.workflows:
            raise ConfigurationError("the engine has no workflow to execute: Engine(…, workflows=[…])")
        lifeline.tally = engine.meter = Tally(engine.meter)
        engine.run(loop_factory=loop_factory(), started=lambda stop: lifeline.up(stop, drain=options.drain_timeout))
    else:
        serve_until_told(
            engine,
            port=order.port,
            started=lambda url, stop: lifeline.up(stop, drain=options.drain_timeout, url=url),
        )


def serve_until_told(
    engine: Engine,
    *,
    port: int,
    started: Callable[[str, Callable[[], object]], None],
    host: str = "127.0.0.1",
    worker: bool = True,
    options: Mapping[str, Any] | None = None,
) -> None:
    """The main of a process that serves HTTP: until SIGTERM or SIGINT, then as ``engine.run``.

    Args:
        options: Of ``HttpOptions``, by name.
        started: Called once it answers, with its address, and with a function that does what the first signal does.

    Raises:
        ConfigurationError: The extra is missing, it cannot or must not listen there, or the engine does not start.
        StoreUnavailable: The database cannot be reached.
    """
    try:
        from durable.http.runtime import HttpOptions
        from durable.http.server import serve
    except ImportError as error:
        raise ConfigurationError(str(error)) from None

    async def work() -> None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def tell(number: signal.Signals) -> None:
            signal.signal(number, signal.SIG_DFL)  # once more ends at once
            told.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, tell, number)
        with sparing_collector():
            http = HttpOptions(**(options or {}))
            async with await serve(engine, host=host, port=port, worker=worker, options=http) as server:
                started(server.url, partial(loop.call_soon_threadsafe, told.set))
                await told.wait()

    loop = loop_factory()()
    try:
        loop.run_until_complete(work())
    finally:
        close_loop(loop)


def _end(error: DurableError, code: int) -> None:
    sys.stderr.write(f"Error: {without_password(str(error))}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
