"""New runs in the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from durable.model import Created, NewRun
from durable.stores.memory.rows import Row, conflict, refuse_unstorable
from durable.stores.memory.shared import Shared


class Creating(Shared):
    """Create runs, each once."""

    async def create_runs(self, runs: Sequence[NewRun]) -> list[Created]:
        for new in runs:
            refuse_unstorable((new.id, new.workflow, new.version, new.input, new.input_hash, new.seed, new.key))
            refuse_unstorable((new.request, *new.tags, *new.tags.values()))
        with self._lock:
            now = self._clock.now()
            return [self._create(new, now) for new in runs]

    def _create(self, new: NewRun, now: datetime) -> Created:
        holder = None if new.key is None else self._keys.get((new.workflow, new.key))
        existing = self._rows.get(holder or new.id)
        if existing is not None:
            refusal = conflict(existing.new, new)
            mine = existing.new.id == new.id and existing.new.request == new.request and refusal is None
            return Created(existing.new.id, mine, refusal)
        row = self._rows[new.id] = Row(replace(new, tags=dict(new.tags)), now)
        if new.key is not None:
            self._keys[new.workflow, new.key] = new.id
        self._free(row, now + timedelta(seconds=new.delay) if new.ready_at is None else new.ready_at)
        return Created(new.id, True)
