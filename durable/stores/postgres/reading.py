"""Reads of the store, by anybody: runs, lists and histories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime

from durable.model import Record, Run, RunFilter, RunSummary
from durable.stores.postgres import literals, rows
from durable.stores.postgres.sessions import SHARD, Sessions

_LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


class Reading(ABC):
    """A part of ``PostgresStore``, which has the connections."""

    @property
    @abstractmethod
    def _use(self) -> Sessions: ...

    async def get_runs(self, run_ids: Sequence[str]) -> list[Run]:
        return [rows.run(row) for row in await self._use.read("get_runs", SHARD, literals.ids(literals.known(run_ids)))]

    async def find_key(self, workflow: str, key: str) -> str | None:
        found = await self._use.read("find_key", SHARD, workflow, key)
        return found[0][0] if found else None

    async def ended(self, run_ids: Sequence[str]) -> list[Run]:
        return [
            rows.run(row) for row in await self._use.read("ended_runs", SHARD, literals.ids(literals.known(run_ids)))
        ]

    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        if where.parent is not None and not literals.known([where.parent]):
            return []
        found = await self._use.read(
            "list_runs",
            *(SHARD, before or _LAST_ID, where.workflow, where.version, where.state),
            rows.tags_text(where.tags) if where.tags else None,
            *(_instant(where.created_after), _instant(where.created_before), str(limit), where.queue, where.parent),
            where.schedule,
        )
        return [rows.summary(row) for row in found]

    async def history(self, run_id: str) -> list[Record]:
        known = literals.known([run_id])
        return [rows.record(row) for row in await self._use.read("history", SHARD, *known)] if known else []


def _instant(when: datetime | None) -> str | None:
    return None if when is None else when.isoformat()
