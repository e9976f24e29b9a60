"""New runs and signals in the memory store."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from durable import failures
from durable.model import Created, NewRun, NewSignal, Sent, Signal, Start
from durable.states import TERMINAL
from durable.stores.memory.claims import Claims
from durable.stores.memory.lines import Lines, starts_at
from durable.stores.memory.rows import Row, conflict, refuse_unstorable


class Creating(Lines, Claims):
    """Create runs and send signals, each once."""

    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        refuse_unstorable_runs(runs)
        with self._lock:
            now = self._clock.now()
            if start is None:
                return [self._create(new, now) for new in runs]
            return [self._start(new, start, now) for new in runs]

    def _create(self, new: NewRun, now: datetime) -> Created:
        holder = None if new.key is None else self._keys.get((new.workflow, new.key))
        if holder is None and new.debounce is not None:
            absorbed = self._debounce(new, new.debounce, now)
            if absorbed is not None:
                return absorbed
        existing = self._rows.get(holder or new.id)
        if existing is not None:
            refusal = conflict(existing.new, new)
            mine = existing.new.id == new.id and existing.new.request == new.request and refusal is None
            return Created(existing.new.id, mine, refusal, replaced=self._replaced(new) if mine else ())
        refused = self._refused(new)
        if refused is not None:
            return refused
        row = self._rows[new.id] = Row(replace(new, tags=dict(new.tags)), now)
        if new.key is not None:
            self._keys[new.workflow, new.key] = new.id
        if new.debounce is not None:
            self._debounced[new.workflow, new.debounce.key] = new.id
        self._free(row, starts_at(new, now))
        replaced = self._replaced(new)
        for run_id in replaced:
            self._ask_to_cancel(run_id, new)
        return Created(new.id, True, replaced=replaced)

    def _start(self, new: NewRun, start: Start, now: datetime) -> Created:
        """Create the run, claimed if it may be and was not there before."""
        wanted = new.id in start.run_ids and new.id not in self._rows
        created = self._create(new, now)
        row = self._rows.get(new.id)
        if row is None or not wanted or start.worker not in self._workers or not self._may_start(row, now):
            return created
        ref = self._lease(row, start.worker, now)  # its entry in the claim index is stale from now on
        self._batches[start.worker].setdefault(start.batch, []).append(ref)
        return replace(created, claimed=self._claimed(ref, {}))

    def _may_start(self, row: Row, now: datetime) -> bool:
        """Whether a new run can be claimed at once: nothing limits it, delays it, or stands before it."""
        plain = row.new.concurrency_key is None and row.new.debounce is None and row.new.queue not in self._limits
        return plain and row.ready_at is not None and row.ready_at <= now

    async def create_with_signal(self, run: NewRun, signal: NewSignal) -> tuple[Created, Sent]:
        refuse_unstorable_runs([run])
        _refuse_unstorable_signals([signal])
        with self._lock:
            now = self._clock.now()
            created = self._create(run, now)
            if created.conflict is not None or created.busy:
                return created, Sent.NOT_FOUND
            return created, self._send(replace(signal, run_id=created.run_id), now)

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[Sent]:
        _refuse_unstorable_signals(signals)
        with self._lock:
            now = self._clock.now()
            return [self._send(signal, now) for signal in signals]

    def _send(self, new: NewSignal, now: datetime) -> Sent:
        row = self._rows.get(new.run_id)
        if row is None:
            return Sent.NOT_FOUND
        if row.state in TERMINAL and new.id not in row.inbox:
            return Sent.FINISHED
        self._deliver(row, Signal(new.id, new.name, new.data, now), now)
        return Sent.ACCEPTED

    def _ended(self, row: Row, now: datetime) -> None:
        """Tell the parent; also one that has ended: an operator may have it go on."""
        super()._ended(row, now)
        parent = None if row.new.parent is None else self._rows.get(row.new.parent)
        if parent is not None:
            data = failures.end_to_json(row.state, row.result, row.error)
            self._deliver(parent, Signal(row.new.id, f"child/{row.new.parent_key}", data, now), now)


def refuse_unstorable_runs(runs: Iterable[NewRun]) -> None:
    """As ``refuse_unstorable``, for all text of new runs."""
    for new in runs:
        refuse_unstorable((new.id, new.workflow, new.version, new.input, new.input_hash, new.seed, new.key))
        refuse_unstorable((new.queue, new.limit_key, new.concurrency_key, new.parent, new.parent_key))
        refuse_unstorable((new.request, *new.tags, *new.tags.values()))


def _refuse_unstorable_signals(signals: Iterable[NewSignal]) -> None:
    for signal in signals:
        refuse_unstorable((signal.run_id, signal.id, signal.name, signal.data))
