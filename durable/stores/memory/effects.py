"""Effects that runs share, in the memory store: who makes one, and what has come of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from durable.ids import new_id
from durable.model import Effect, EffectEnd, Published, RunRef
from durable.store import EFFECT_RETENTION, EFFECT_TOPIC, Clock
from durable.stores.memory.events import Events
from durable.stores.memory.rows import Row, refuse_unstorable


@dataclass(slots=True)
class _Made:
    """An effect that a step of a run makes, or has made."""

    run_id: str
    step: str
    done: bool = False
    data: str | None = None


class Effects(Events):
    """Take an effect, and say what became of it."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._effects: dict[str, _Made] = {}

    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        refuse_unstorable((key, step))
        with self._lock:
            row = self._rows.get(ref.id)
            if worker not in self._workers or row is None or row.owner != worker or row.claim != ref.claim:
                return None
            made = self._effects.setdefault(key, _Made(ref.id, step))
            if (made.run_id, made.step) != (ref.id, step):
                return Effect(False, made.run_id, made.done, made.data)
            made.done, made.data = False, None
            row.makes = True
            return Effect(True, ref.id)

    def _end_effect(self, row: Row, end: EffectEnd, now: datetime) -> None:
        made = self._effects.get(end.key)
        if made is None or (made.run_id, made.step) != (row.new.id, end.step):
            return
        was_done = made.done
        if end.kept:
            made.done, made.data = True, row.records[end.step].data
        else:
            del self._effects[end.key]
        if not was_done:
            self._tell(end.key, now)

    def _tell(self, key: str, now: datetime) -> None:
        self._publish(Published(new_id(now), EFFECT_TOPIC, key, "null", EFFECT_RETENTION), now)

    def _ended(self, row: Row, now: datetime) -> None:
        """What the run was making is free to be made by others; what it has made stays made."""
        super()._ended(row, now)
        if row.makes:
            for key in [key for key, made in self._effects.items() if made.run_id == row.new.id and not made.done]:
                del self._effects[key]
                self._tell(key, now)

    def _forget(self, row: Row) -> None:
        super()._forget(row)
        if row.makes:
            self._effects = {key: made for key, made in self._effects.items() if made.run_id != row.new.id}
