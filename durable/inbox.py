"""What has come to a run from outside and is not consumed, and who waits for what.

Decisions only: which signal is whose. It knows neither records nor the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from durable.model import Signal

Accept = Callable[[Signal], bool]
"""Takes a signal; False when it does not fit, and the next one is to be offered."""


class Inbox:
    """The unread signals of one execution. Each name is a queue of its own, first in, first out.

    Args:
        signals: What was unread when the run was claimed, in the order of arrival.
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        # Ids, with the order of arrival; one whose consumption is not committed yet is still read as unread.
        self._seen: dict[str, int] = {}
        self._unread: dict[str, deque[tuple[int, Signal]]] = {}
        self._waiting: dict[str, tuple[Collection[str], Accept]] = {}
        if signals:
            self.add(signals)

    @property
    def awaited(self) -> bool:
        """Somebody waits."""
        return bool(self._waiting)

    def add(self, signals: Sequence[Signal]) -> None:
        """Take over those that were not seen before, and give them to who waits."""
        for signal in signals:
            if signal.id not in self._seen:
                self._seen[signal.id] = number = len(self._seen)
                self._unread.setdefault(signal.name, deque()).append((number, signal))
        self._serve()

    def take(self, names: Collection[str], accept: Accept) -> bool:
        """Offer the unread signals of these names, oldest first, until one is accepted."""
        while (name := self._oldest(names)) is not None:
            _, signal = self._unread[name].popleft()
            if accept(signal):
                return True
        return False

    def share(self, signal: Signal) -> None:
        """It was accepted by one of those who wait for its name, and says the same to all the others."""
        for key, (names, accept) in list(self._waiting.items()):
            if signal.name in names and accept(signal):
                self._waiting.pop(key, None)

    def put_back(self, signal: Signal) -> None:
        """It was accepted by an operation that the run's own code has cancelled since: it has its place again."""
        queue = self._unread.get(signal.name, ())
        self._unread[signal.name] = deque(sorted((*queue, (self._seen[signal.id], signal))))
        self._serve()

    def wait(self, key: str, names: Collection[str], accept: Accept) -> None:
        """Have the next signal of one of these names offered to ``accept``; those who wait longer come first."""
        self._waiting[key] = (names, accept)

    def forget(self, key: str) -> None:
        """Nobody waits under this key any more."""
        self._waiting.pop(key, None)

    def forget_all(self) -> None:
        """Nobody waits any more: what the unwinding of one wait puts back is not for another that is unwound too."""
        self._waiting.clear()

    def _oldest(self, names: Collection[str]) -> str | None:
        there = [(queue[0][0], name) for name in names if (queue := self._unread.get(name))]
        return min(there)[1] if there else None

    def _serve(self) -> None:
        for key, (names, accept) in list(self._waiting.items()):
            if self._oldest(names) is not None and self.take(names, accept):
                self._waiting.pop(key, None)
