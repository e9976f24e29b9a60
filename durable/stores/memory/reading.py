"""Reads of the memory store: frozen copies, never a row."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from durable.model import Record, Run, RunFilter, RunSummary
from durable.states import TERMINAL
from durable.stores.memory.shared import Shared


class Reading(Shared):
    """What anybody may look at."""

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            return [self._rows[run_id].run() for run_id in dict.fromkeys(run_ids) if run_id in self._rows]

    async def find_key(self, workflow: str, key: str) -> str | None:
        with self._lock:
            return self._keys.get((workflow, key))

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        with self._lock:
            rows = [self._rows[run_id] for run_id in dict.fromkeys(run_ids) if run_id in self._rows]
            return [row.run(with_input=False) for row in rows if row.state in TERMINAL]

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        found: list[RunSummary] = []
        with self._lock:
            for run_id in sorted(self._rows, reverse=True):
                if len(found) == limit:
                    break
                row = self._rows[run_id]
                if (before is None or run_id < before) and row.matches(where):
                    found.append(row.summary())
        return found

    async def history(self, run_id: str) -> list[Record]:
        with self._lock:
            row = self._rows.get(run_id)
            return [] if row is None else row.history()

    def next_ready_at(self) -> datetime | None:
        """The earliest future time at which any run becomes claimable; where skipping time jumps to."""
        with self._lock:
            now = self._clock.now()
            times = [when for index in self._ready.values() if (when := index.next_after(now)) is not None]
            return min(times, default=None)
