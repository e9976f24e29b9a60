"""A simulated process: an event loop, a link to the store, an engine; and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from itertools import count
from typing import TYPE_CHECKING, Any

from durable import DurableError, Engine, Queue, StoreUnavailable, WorkerOptions
from durable.store import Hint
from tests.simulation.link import Link
from tests.simulation.loop import ProcessLoop

if TYPE_CHECKING:
    from tests.simulation.world import World

NARROW = Queue("narrow", concurrency=1)
"""A queue with a limit over all workers."""

LEASE = 3.0


class Process:
    """One incarnation of a worker process, or of a client's.

    Args:
        world: Where it lives.
        name: ``w`` is a worker, ``c`` a client; after the dot which incarnation it is.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.stopped_until = 0.0
        """Nothing of it runs until then, the heartbeat included: SIGSTOP."""
        self.blocked_until = 0.0
        """Its event loop does not run until then; its heartbeat does."""
        self.cut_off_until = 0.0
        """No answer reaches it until then."""
        self.threads: dict[str, float] = {}
        """Step that has been called in a thread → when that ends, at the earliest."""
        self.subscribers: dict[int, Callable[[Hint], None]] = {}
        self.subscriptions = count()
        self.distance = world.rng.choice([0.001, 0.001, 0.01, 0.06])
        """Seconds that a message needs, about."""
        self.fates: dict[str, list[tuple[str, float]]] = {}
        """Call → what becomes of the next ones."""
        self.link = Link(self)
        self.loop = ProcessLoop(lambda: world.now, self._failed, self.link.awake)  # type: ignore[abstract]  # files and sockets
        rng = world.rng
        options = WorkerOptions(
            concurrency=rng.choice([1, 3, 10]),
            lease=LEASE,
            linger=rng.choice([0, 0.2, 1]),
            poll_interval=2,
            drain_timeout=rng.choice([0, 2]),
            queues=["default", NARROW.name],
        )
        self.engine = Engine(
            self.link.store,
            workflows=[world.flows.workflow],
            services={"process": self},
            worker=options,
            queues=[NARROW],
            redact=lambda text: text[:80],  # tracebacks are long, and nobody reads them here
        )
        self.spawn(self._work() if name.startswith("w") else self._serve(), "main")

    @property
    def works(self) -> bool:
        return self.name.startswith("w")

    def wants(self) -> float | None:
        """When its loop goes on by itself."""
        wanted = self.loop.wants()
        return None if wanted is None else max(wanted, self.stopped_until, self.blocked_until)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]:
        """A task of this process. An error of the library's own is an answer; any other is a fault of the engine."""

        def ended(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                return
            error = task.exception()
            if isinstance(error, DurableError | TimeoutError):
                self.world.say(self.name, f"{what}: {type(error).__name__}")
            elif error is not None:
                self.world.fail("engine", f"{self.name}: {what} raised {error!r}")

        task = self.loop.create_task(coroutine, name=what)
        task.add_done_callback(ended)
        return task

    async def _work(self) -> None:
        while True:
            try:
                await self.engine.start()
            except StoreUnavailable:
                await asyncio.sleep(0.2)
            else:
                return

    async def _serve(self) -> None:
        while True:
            try:
                async with self.engine.client():
                    await self.loop.create_future()  # until it is killed
            except StoreUnavailable:
                await asyncio.sleep(0.2)

    async def stop(self) -> None:
        """As SIGTERM does; then the process is gone."""
        await self.engine.stop()
        self.world.gone(self, "stopped")

    def _failed(self, context: dict[str, Any]) -> None:
        if "exception" in context and self.alive and "never retrieved" not in context["message"]:
            self.world.fail("engine", f"{self.name}: {context['message']}: {context['exception']!r}")
