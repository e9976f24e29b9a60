"""What the memory store keeps of a run, its claim index, and what it shows of both. It holds no lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from typing import Any

from durable.errors import PayloadError
from durable.model import SUSPECT_AFTER, Kind, NewRun, Record, Request, Run, RunFilter, RunSummary, Signal, State
from durable.store import Route


@dataclass(slots=True)
class Row:
    """A run as it is stored. Never handed out: readers get frozen copies."""

    new: NewRun
    created_at: datetime
    ready_at: datetime | None = None
    state: State = State.PENDING
    started_at: datetime | None = None
    ended_at: datetime | None = None
    result: str | None = None
    error: str | None = None
    reason: str | None = None
    requested: Request | None = None
    owner: str | None = None
    claim: int = 0
    takeovers: int = 0
    wakes: int = 0
    records: dict[str, Record] = field(default_factory=dict[str, Record])
    inbox: dict[str, Signal] = field(default_factory=dict[str, Signal])  # by id, in the order of arrival
    consumed: set[str] = field(default_factory=set[str])  # ids of signals
    signalled: bool = False  # it got signals that its holder has not asked for
    makes: bool = False  # it has made, or makes, an effect that runs share
    placed: bool = False  # it was claimed in a limited queue
    blocked: datetime | None = None  # when it was due, since its limit key had no place or no token
    queued: bool = False  # others of its concurrency key come first
    turn: datetime | None = None  # when it would be ready, while it is queued; None: not by time alone

    @property
    def suspect(self) -> bool:
        return self.takeovers >= SUSPECT_AFTER

    @property
    def route(self) -> Route:
        return Route(self.new.workflow, self.new.version, self.new.queue)

    @property
    def linked(self) -> bool:
        return self.makes or self.placed or self.new.parent is not None or self.new.concurrency_key is not None

    def unread(self) -> list[Signal]:
        return [signal for signal in self.inbox.values() if signal.id not in self.consumed]

    def history(self) -> list[Record]:
        return sorted(self.records.values(), key=lambda record: record.seq)

    def next_seq(self) -> int:
        return max((record.seq for record in self.records.values()), default=0) + 1

    def latest(self, kind: Kind) -> Record | None:
        """The last record of this kind."""
        return max((record for record in self.records.values() if record.kind is kind), default=None)

    def set_aside(self, keys: Iterable[str]) -> None:
        """Keep the contents of these records under keys that no operation has."""
        for key in keys:
            aside = f"/{self.claim}/{key}"
            self.records[aside] = self.records.pop(key)._replace(key=aside)

    def has(self, key: str) -> bool:
        """Whether the latest claim found or wrote this record, also when it set it aside in the end."""
        return key in self.records or f"/{self.claim}/{key}" in self.records

    def summary(self) -> RunSummary:
        return RunSummary(**_summary(self))

    def run(self, *, with_input: bool = True) -> Run:
        run_input = self.new.input if with_input else None
        return Run(**_summary(self), input=run_input, result=self.result, error=self.error, seed=self.new.seed)

    def matches(self, where: RunFilter) -> bool:
        return (
            (where.workflow is None or self.new.workflow == where.workflow)
            and (where.version is None or self.new.version == where.version)
            and (where.state is None or self.state is where.state)
            and all(self.new.tags.get(name) == value for name, value in where.tags.items())
            and (where.created_after is None or self.created_at >= where.created_after)
            and (where.created_before is None or self.created_at < where.created_before)
            and (where.queue is None or self.new.queue == where.queue)
            and (where.parent is None or self.new.parent == where.parent)
            and (where.schedule is None or self.new.schedule == where.schedule)
        )


class Ready:
    """The claim index of one route: what is due, and what will be. Entries that went stale are dropped when met."""

    def __init__(self, rows: Mapping[str, Row], route: Route) -> None:
        self.route = route
        self._rows = rows
        self._due: list[tuple[int, datetime, str]] = []  # with the priority
        self._future: list[tuple[datetime, str]] = []

    def add(self, when: datetime, run_id: str) -> None:
        heappush(self._future, (when, run_id))

    def first_due(self, now: datetime) -> tuple[int, datetime, str] | None:
        """Priority, due time and id."""
        while self._future and self._future[0][0] <= now:
            when, run_id = heappop(self._future)
            if self._stands(when, run_id):
                heappush(self._due, (self._rows[run_id].new.priority, when, run_id))
        while self._due and not self._stands(*self._due[0][1:]):
            heappop(self._due)
        return self._due[0] if self._due else None

    def take_first_due(self) -> str:
        return heappop(self._due)[2]

    def next_after(self, now: datetime) -> datetime | None:
        self.first_due(now)
        while self._future and not self._stands(*self._future[0]):
            heappop(self._future)
        return self._future[0][0] if self._future else None

    def _stands(self, when: datetime, run_id: str) -> bool:
        row = self._rows.get(run_id)
        return row is not None and row.ready_at == when and row.new.version == self.route.version


def _summary(row: Row) -> dict[str, Any]:
    new = row.new
    return {
        "id": new.id,
        "workflow": new.workflow,
        "version": new.version,
        "state": row.state,
        "created_at": row.created_at,
        "key": new.key,
        "tags": dict(new.tags),
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "ready_at": row.ready_at,
        "reason": row.reason,
        "requested": row.requested,
        "owner": row.owner,
        "claim": row.claim,
        "takeovers": row.takeovers,
        "shard": new.shard,
        "queue": new.queue,
        "priority": new.priority,
        "limit_key": new.limit_key,
        "concurrency_key": new.concurrency_key,
        "parent": new.parent,
        "linked": row.linked,
        "schedule": new.schedule,
        "tick": new.tick,
    }


def conflict(existing: NewRun, new: NewRun) -> str | None:
    """Why ``new`` cannot stand for the run that exists; None when it can."""
    what = f"run {existing.id}" if existing.id == new.id else f"key {new.key!r}, held by run {existing.id},"
    if existing.workflow != new.workflow:
        return f"{what} belongs to workflow {existing.workflow!r}"
    if existing.key != new.key:
        return f"{what} was triggered with another key"
    if existing.input_hash != new.input_hash:
        return f"{what} was triggered with another input"
    return None


def refuse_unstorable(texts: Iterable[str | None]) -> None:
    """Refuse what Postgres refuses as text, so that a test on memory finds it.

    Raises:
        PayloadError: NUL characters, or surrogates, which have no UTF-8 form.
    """
    for text in texts:
        if text is None:
            continue
        if "\0" in text:
            raise PayloadError("text with a NUL character cannot be stored")
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise PayloadError(f"text with a lone surrogate cannot be stored: {error}") from None
