"""What stands between a simulated process and the store: messages that take time, are lost, come late or twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from durable import StoreUnavailable
from durable.model import Also, Renewal, RunWrite
from durable.store import Hint, Store

if TYPE_CHECKING:
    from tests.simulation.process import Process


class Link:
    """The store as one process sees it."""

    url = "memory://"
    latest_version = 1
    on_connection = None

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._renewal: Renewal | Exception = StoreUnavailable("no renewal was sent")
        self.clock = _Clock(process)

    @property
    def store(self) -> Store:
        return cast("Store", self)

    async def open(self) -> None:
        return

    async def close(self) -> None:
        return

    async def schema_version(self) -> int:
        return self.latest_version

    def subscribe(self, callback: Callable[[Hint], None]) -> Callable[[], None]:
        number = next(self._process.subscriptions)
        self._process.subscribers[number] = callback

        def end() -> None:
            self._process.subscribers.pop(number, None)

        return end

    def announce(self, hint: Hint) -> None:
        self._world.announce(self._process, hint)

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("_"):
            raise AttributeError(verb)

        async def called(*args: Any, unasked: bool = False) -> Any:  # a look first is the store's own affair
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

            def arrived(value: Any, error: Exception | None) -> None:
                if answer.done():
                    return
                self.clock.observe()
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error)

            def answered(value: Any, error: Exception | None) -> None:
                self._process.loop.call_soon(arrived, value, error)

            self._world.send(self._process, verb, _copied(verb, args), answered)
            return await answer

        return called

    # -- the heartbeat ----------------------------------------------------------------------------

    def awake(self, after: float, call: Callable[[], None]) -> None:
        """``call`` after that time, as far as the process is not stopped then."""

        def due() -> None:
            process = self._process
            if not process.alive:
                return
            if (left := process.stopped_until - self._world.now) > 0:
                self._world.after(left, due)
            else:
                call()

        self._world.after(after, due)

    def send_renewal(self, worker: str, lease: float, answered: Callable[[], None]) -> None:
        """Send it; ``answered`` when ``renew`` has the answer, with the time of the sending until it is asked."""
        sent = self._world.now

        def arrived(value: Any, error: Exception | None) -> None:
            def read() -> None:
                self._renewal = value if error is None else error
                self._world.rewound = sent
                try:
                    answered()
                finally:
                    self._world.rewound = None

            self.awake(0.0, read)

        self._world.send(self._process, "renew", (worker, lease), arrived)

    def renew(self, worker: str, lease: float) -> Renewal:
        self._world.rewound = None
        if isinstance(self._renewal, Exception):
            raise self._renewal
        return self._renewal


class _Clock:
    """The store's clock as the process knows it: as it was with the latest answer, carried forward; never behind."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._world = process.world
        self._ahead = timedelta(seconds=self._world.rng.choice([0, 0, 0.001, 0.05]))
        self._offset = self._world.clock.offset

    def observe(self) -> None:
        self._offset = self._world.clock.offset

    def now(self) -> datetime:
        return self._world.clock.at(self._world.now, self._offset) + self._ahead

    def call_at(
        self,
        when: datetime,
        callback: Callable[[], None],
        *,
        recurring: bool = False,
    ) -> Callable[[], None]:
        return self._process.loop.call_later((when - self.now()).total_seconds(), callback).cancel


def _copied(verb: str, args: Sequence[Any]) -> tuple[Any, ...]:
    """What is on its way does not change any more when its sender's objects do."""
    if verb != "commit":
        return tuple(args)  # nothing else is changed by its sender
    worker, writes = args
    return worker, [RunWrite(one.ref, list(one.records), one.change, _also(one.also)) for one in writes]


def _also(also: Also | None) -> Also | None:
    if also is None:
        return None
    return Also(list(also.children), list(also.consumed), list(also.awaited), list(also.effects), also.emits)
