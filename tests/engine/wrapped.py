"""A store with somebody in between: counts calls, loses answers, is down for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

from durable import StoreUnavailable
from durable.store import Store

VERBS = frozenset(
    {"claim", "commit", "create_runs", "delete", "ended", "find_key", "get_runs", "history", "list_runs", "owned",
     "prune", "reap", "register", "request", "retry_from", "unregister",
     "due_schedules", "find_schedules", "list_schedules", "write_schedules"}
)  # fmt: skip

Call = Callable[[], Awaitable[Any]]


class Between:
    """Passes everything on; a subclass comes in between at ``around``.

    Args:
        inner: The real store.
    """

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.calls: list[tuple[str, Sequence[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name not in VERBS:
            return found

        async def called(*args: Any, **named: Any) -> Any:
            self.calls.append((name, args))
            return await self.around(name, lambda: found(*args, **named))

        return called

    async def around(self, name: str, call: Call) -> Any:
        return await call()

    @property
    def store(self) -> Store:
        return cast("Store", self)

    def made(self, name: str) -> list[Sequence[Any]]:
        """The arguments of each call of ``name``."""
        return [args for verb, args in self.calls if verb == name]


class LosesAnswers(Between):
    """Applies each call, and then every other one ends as if the connection had died."""

    def __init__(self, inner: Store, *verbs: str) -> None:
        super().__init__(inner)
        self._verbs = verbs
        self.lost = 0
        self._lose = dict.fromkeys(verbs, True)

    async def around(self, name: str, call: Call) -> Any:
        answer = await call()
        if name in self._verbs:
            lose, self._lose[name] = self._lose[name], not self._lose[name]
            if lose and not (name == "claim" and not answer.runs):  # an empty claim loses nothing
                self.lost += 1
                raise StoreUnavailable(f"the answer to {name} was lost")
            if lose:
                self._lose[name] = True
        return answer


class GoesDown(Between):
    """Answers nothing while ``down``."""

    down = False

    async def around(self, name: str, call: Call) -> Any:
        if self.down:
            raise StoreUnavailable("the database is down")
        return await call()


class BadRenewals(Between):
    """The first ``misses`` renewals fail, and each takes ``seconds``, in the heartbeat's thread.

    Attributes:
        begun: Released as each of them begins.
    """

    def __init__(self, inner: Store, misses: int = 0, seconds: float = 0.0) -> None:
        super().__init__(inner)
        self.left = misses
        self._seconds = seconds
        self.begun = asyncio.Semaphore(0)
        self._loop = asyncio.get_running_loop()

    def renew(self, worker: str, lease: float) -> Any:
        self._loop.call_soon_threadsafe(self.begun.release)
        time.sleep(self._seconds)
        if self.left:
            self.left -= 1
            raise StoreUnavailable("no answer to the renewal")
        return self._inner.renew(worker, lease)
