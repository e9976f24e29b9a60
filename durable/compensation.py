"""What one run undoes when it fails: the compensations of its completed steps, last completed first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from durable.model import Record
from durable.steps import Call, known


class Compensations:
    """Registered when a step's result is delivered, on the first pass and on replay."""

    def __init__(self) -> None:
        self._by_step: dict[str, Call] = {}  # step key → what undoes it, in the order in which results are delivered
        self._lost: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._by_step or self._lost)

    def register(self, record: Record, call: Call, value: object) -> None:
        """The step has succeeded with ``value``; when its call has a compensation, remember it."""
        if call.compensate is not None:
            self.add(record.key, undo_of(call, value))

    def add(self, key: str, call: Call) -> None:
        """Undo with ``call``, recorded as ``<key>/undo``."""
        self._by_step[key] = call

    def lost(self, key: str) -> None:
        """The step's effect happened, its result is not known, and its compensation failed: nobody can undo it."""
        self._lost.append(key)

    async def run(
        self, compensable: Iterable[Record], undo: Callable[[str, Call], Awaitable[bool]]
    ) -> tuple[list[str], list[str]]:
        """Undo everything; one that fails does not stop the others.

        Args:
            compensable: The recorded steps that had a compensation; those which the replay did not reach are
                listed as not undone.
            undo: Carries out one compensation; whether it succeeded.

        Returns:
            The keys of the steps that were undone, and of those that were not.
        """
        undone: list[str] = []
        not_undone = self._lost + [record.key for record in compensable if record.key not in self._by_step]
        for key, call in reversed(self._by_step.items()):
            (undone if await undo(key, call) else not_undone).append(key)
        return undone, not_undone


def undo_of(call: Call, value: object) -> Call:
    """The call of a step's compensation: with its result, and its own retries and timeout."""
    assert call.compensate is not None
    on_loop = known(call.compensate).on_loop
    undo = Call(call.compensate, (value,), call.codec, on_loop, call.undo_retry, call.undo_timeout)
    undo.shared = call.shared
    return undo
