"""What the engine tells whoever measures it. It knows no measuring system; without a meter nothing is measured."""

from __future__ import annotations

from typing import Protocol


class Meter(Protocol):
    """Called by a worker as it works, so every method returns at once and raises nothing.

    All are called on the engine's event loop, except ``renewed``: that comes from the heartbeat's thread.
    """

    def claimed(self, seconds: float, runs: int) -> None:
        """A claim was answered after so long, with so many runs; claims that find nothing count too, and triggers of
        this process that have claimed their runs."""
        ...

    def committed(self, seconds: float, writes: int) -> None:
        """A commit was answered after so long; so many writes were in the batch."""
        ...

    def renewed(self, ok: bool) -> None:
        """The lease was renewed, or the store did not answer, or the lease was lost."""
        ...

    def step(self, workflow: str, name: str, seconds: float, failed: bool) -> None:
        """An attempt of a step ended. ``name`` is without branch, item and occurrence; a compensation's ends with
        ``/undo``."""
        ...
