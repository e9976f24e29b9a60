"""Concurrency keys and debouncing in the memory store: who stands in line, and which run a trigger becomes.

The rules are those of ``Store.create_runs``.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from durable import requests
from durable.model import Created, Debounce, NewRun, Policy, State
from durable.states import TERMINAL
from durable.store import Clock
from durable.stores.memory.queues import Queues
from durable.stores.memory.requesting import Requesting
from durable.stores.memory.rows import Row

Key = tuple[str, str]
"""A workflow and a key."""


class Lines(Requesting, Queues):
    """Refuse, queue, replace; absorb."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._lines: dict[Key, dict[str, None]] = {}  # ids of the runs that have not ended, the active one first
        self._debounced: dict[Key, str] = {}  # the latest run of each debounce key
        self._absorbed: dict[str, str] = {}  # id of a trigger → the run that got its input

    # -- concurrency keys -------------------------------------------------------------------------

    def _refused(self, new: NewRun) -> Created | None:
        """The answer to a run that must not be created because another one is active."""
        line = self._lines.get((new.workflow, new.concurrency_key or ""))
        if new.concurrency_key is None or not line or new.policy not in (Policy.REJECT, Policy.EXISTING):
            return None
        return Created(next(iter(line)), False, busy=new.policy is Policy.REJECT)

    def _replaced(self, new: NewRun) -> tuple[str, ...]:
        """The runs that stand in the line before this one, which replaces them."""
        if new.concurrency_key is None or new.policy is not Policy.REPLACE:
            return ()
        line = list(self._lines.get((new.workflow, new.concurrency_key), ()))
        return tuple(line[: line.index(new.id)]) if new.id in line else ()

    def _ask_to_cancel(self, run_id: str, new: NewRun) -> None:
        row, request = self._rows[run_id], requests.replacement(new.id)
        plan = requests.decide(row.run(), request, row.history())
        if plan is not None:
            self._carry_out(row, request, plan)

    def _free(self, row: Row, ready_at: datetime) -> None:
        """Whoever becomes ready without standing in the line joins it; whoever is not the first has to wait."""
        if row.new.concurrency_key is not None:
            line = self._lines.setdefault((row.new.workflow, row.new.concurrency_key), {})
            if row.new.id not in line:
                row.queued = bool(line)
                line[row.new.id] = None
            if row.queued:
                row.turn = ready_at
                row.ready_at = None
                return
        super()._free(row, ready_at)

    def _ended(self, row: Row, now: datetime) -> None:
        super()._ended(row, now)
        key = (row.new.workflow, row.new.concurrency_key or "")
        line = self._lines.get(key, {})
        if row.new.concurrency_key is None or row.new.id not in line:
            return
        del line[row.new.id]
        row.queued, row.turn = False, None
        if not line:
            del self._lines[key]
            return
        first = self._rows[next(iter(line))]
        if first.queued:
            first.queued = False
            if first.turn is not None:
                self._free(first, first.turn)

    def _withdrawn(self, row: Row, now: datetime) -> None:
        super()._withdrawn(row, now)
        row.turn = None

    # -- debouncing -------------------------------------------------------------------------------

    def _debounce(self, new: NewRun, debounce: Debounce, now: datetime) -> Created | None:
        """The answer to a trigger that an earlier run absorbs, or has absorbed."""
        if new.id in self._rows:
            return Created(new.id, True)
        if new.id in self._absorbed:
            return Created(self._absorbed[new.id], False)
        row = self._rows.get(self._debounced.get((new.workflow, debounce.key), ""))
        if row is None or row.started_at is not None or row.state in TERMINAL:
            return None
        self._absorbed[new.id] = row.new.id
        self._withdrawn(row, now)
        row.new = replace(row.new, version=new.version, input=new.input, input_hash=new.input_hash, tags=dict(new.tags))
        if row.state is not State.PAUSED:
            self._free(row, _start(debounce, now, row.created_at))
        return Created(row.new.id, False)

    def _forget(self, row: Row) -> None:
        super()._forget(row)
        if row.new.debounce is not None:
            key = (row.new.workflow, row.new.debounce.key)
            if self._debounced.get(key) == row.new.id:
                del self._debounced[key]
            self._absorbed = {trigger: run for trigger, run in self._absorbed.items() if run != row.new.id}


def starts_at(new: NewRun, now: datetime) -> datetime:
    """When a new run may be claimed."""
    if new.debounce is not None:
        return _start(new.debounce, now, now)
    return now + timedelta(seconds=new.delay) if new.ready_at is None else new.ready_at


def _start(debounce: Debounce, now: datetime, created_at: datetime) -> datetime:
    when = now + timedelta(seconds=debounce.delay)
    return when if debounce.max_delay is None else min(when, created_at + timedelta(seconds=debounce.max_delay))
