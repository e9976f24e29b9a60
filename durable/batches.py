"""Which claim gave a worker each of its runs. It knows no store."""

from __future__ import annotations

from collections.abc import Iterable


class Batches:
    """The claims of which runs are still held; the store is told of the others, and forgets them."""

    def __init__(self) -> None:
        self._runs: dict[str, set[str]] = {}  # batch → its runs that are still held under it
        self._of: dict[str, str] = {}
        self._done: list[str] = []

    def add(self, batch: str, run_ids: Iterable[str]) -> None:
        """A claim has given these runs."""
        held = self._runs[batch] = set(run_ids)
        for run_id in held:
            self._of[run_id] = batch

    def left(self, run_id: str) -> None:
        """The run is not held any more."""
        batch = self._of.pop(run_id, None)
        if batch is not None and (runs := self._runs.get(batch)) is not None:
            runs.discard(run_id)
            if not runs:
                del self._runs[batch]
                self._done.append(batch)

    def take_done(self) -> list[str]:
        """The batches of which nothing is held since this was asked last."""
        done, self._done = self._done, []
        return done

    def put_back(self, done: Iterable[str]) -> None:
        """The store was not told."""
        self._done += done

    def clear(self) -> None:
        """Everything is lost."""
        self._runs.clear()
        self._of.clear()
        self._done.clear()
