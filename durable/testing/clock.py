"""A clock that stands still until a test moves it.

It knows nothing of stores and engines: who has to act before time passes registers a listener.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import count

from durable.errors import InvalidArgument

_START = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualClock:
    """The time of a test. Use it from the event loop's thread only.

    Args:
        start: The first ``now()``, aware; the default is a fixed instant, so that tests repeat exactly.

    Raises:
        InvalidArgument: ``start`` is naive.
    """

    def __init__(self, start: datetime | None = None) -> None:
        self._now = _START if start is None else _utc(start)
        self._order = count()  # callbacks of one instant run in the order in which they were asked for
        self._due: list[tuple[datetime, int]] = []
        self._callbacks: dict[int, Callable[[], None]] = {}  # without those that ran or were cancelled
        self._recurring: set[int] = set()  # those among them that are asked for without end
        self._listeners: list[Callable[[timedelta], None]] = []

    def now(self) -> datetime:
        return self._now

    def call_at(self, when: datetime, callback: Callable[[], None], *, recurring: bool = False) -> Callable[[], None]:
        """Call ``callback`` when time reaches ``when``: inside ``advance``, or soon when that is past already."""
        if when <= self._now:
            return asyncio.get_running_loop().call_soon(callback).cancel
        number = next(self._order)
        heappush(self._due, (when, number))
        self._callbacks[number] = callback
        if recurring:
            self._recurring.add(number)

        def cancel() -> None:
            self._take(number)

        return cancel

    def advance(self, by: timedelta | float) -> None:
        """Let ``by`` pass (a timedelta, or seconds).

        Raises:
            InvalidArgument: ``by`` is negative.
        """
        self.set(self._now + (by if isinstance(by, timedelta) else timedelta(seconds=by)))

    def set(self, when: datetime) -> None:
        """Let time pass until ``when``: listeners first, then the callbacks that fall due, in order of time.

        While a callback runs the clock shows the instant for which it was asked; it may ask for another one.

        Raises:
            InvalidArgument: ``when`` is naive, or in the past.
        """
        when = _utc(when)
        if when < self._now:
            raise InvalidArgument(f"the clock shows {self._now.isoformat()}, it does not go back to {when.isoformat()}")
        for listener in tuple(self._listeners):
            listener(when - self._now)
        while (due := self.next_due()) is not None and due <= when:
            self._now = max(self._now, due)  # a callback may itself have moved the time
            callback = self._take(heappop(self._due)[1])
            assert callback is not None
            callback()
        self._now = max(self._now, when)

    def next_due(self) -> datetime | None:
        """The instant of the earliest callback that is asked for; None when there is none."""
        while self._due and self._due[0][1] not in self._callbacks:
            heappop(self._due)
        return self._due[0][0] if self._due else None

    @property
    def waited_for(self) -> bool:
        """Whether a callback is asked for that is not one of those which are asked for without end: schedules'."""
        return len(self._callbacks) > len(self._recurring)

    def _take(self, number: int) -> Callable[[], None] | None:
        self._recurring.discard(number)
        return self._callbacks.pop(number, None)

    def listen(self, listener: Callable[[timedelta], None]) -> None:
        """Call ``listener`` with the time that is about to pass, before it does."""
        self._listeners.append(listener)


def _utc(when: datetime) -> datetime:
    if when.tzinfo is None:
        raise InvalidArgument(f"{when.isoformat()} has no time zone: use an aware datetime")
    return when.astimezone(UTC)
