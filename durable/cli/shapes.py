"""What ``--json`` writes: the shapes that scripts rely on. A field is added, never renamed.

They have the members of the HTTP runtime's documents, which cannot be used here: it is an extra of its own. Times are
ISO 8601 with a zone, durations seconds, and payloads are the JSON that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic_core import from_json

from durable import failures
from durable.model import Run, RunSummary, State, TimelineEntry
from durable.reports import OpenWait, WorkerInfo
from durable.schedules import CatchUp, Overlap, Schedule, Skip

_TEXT = frozenset({"paused", "sleeping", "takeover", "waiting"})
"""Kinds of entries whose data is a text: a reason, a time, a worker. The data of others is JSON."""


class _Shape(BaseModel):
    model_config = ConfigDict(from_attributes=True, extra="forbid", frozen=True)


class RequestShape(_Shape):
    """What is asked of a run and not carried out yet."""

    verb: str
    reason: str
    by: str


class RunShape(_Shape):
    """A run without its payloads: an item of ``runs list``."""

    id: str
    workflow: str
    version: str
    state: State
    key: str | None
    tags: Mapping[str, str]
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    ready_at: datetime | None
    reason: str | None
    requested: RequestShape | None
    owner: str | None
    takeovers: int
    queue: str
    priority: int
    limit_key: str | None
    concurrency_key: str | None
    parent: str | None
    schedule: str | None
    tick: datetime | None


class RunPageShape(_Shape):
    """``runs list``; ``next_cursor`` is what ``--cursor`` takes, null on the last page."""

    items: Sequence[RunShape]
    next_cursor: str | None


class FailureShape(_Shape):
    """The error of a run."""

    error_type: str
    message: str
    traceback: str
    step: str | None
    undone: Sequence[str]
    not_undone: Sequence[str]


class EntryShape(_Shape):
    """A line of a timeline, and of ``runs watch``."""

    seq: int
    at: datetime
    kind: str
    name: str
    attempt: int | None
    worker: str | None
    duration: float | None
    data: Any


class WaitShape(_Shape):
    """What a run waits for."""

    name: str
    kind: Literal["signal", "event", "child", "sleep"]
    since: datetime
    deadline: datetime | None


class FullRunShape(RunShape):
    """A run with its payloads."""

    input: Any
    result: Any
    error: FailureShape | None


class ReportShape(_Shape):
    """``runs show``."""

    run: FullRunShape
    waits: Sequence[WaitShape]
    timeline: Sequence[EntryShape]


class TriggeredShape(_Shape):
    """``runs trigger``; ``created`` is false when the key or the id had a run already."""

    id: str
    created: bool


class UnchangedShape(_Shape):
    """A run to which an operation did not apply."""

    id: str
    why: str


class OperatedShape(_Shape):
    """``runs cancel``, ``pause``, ``resume`` and ``retry``: what was done to which runs, and to which not."""

    changed: Sequence[str]
    unchanged: Sequence[UnchangedShape]


class FiredShape(_Shape):
    """``schedules trigger``; null: the overlap policy skipped it."""

    id: str | None


class BackfilledShape(_Shape):
    """``schedules backfill``: the runs, oldest tick first."""

    ids: Sequence[str]


class ScheduleShape(_Shape):
    """``schedules show`` and ``schedules set``."""

    name: str
    workflow: str
    version: str
    input: Any
    cron: str | None
    every: float | None
    timezone: str
    overlap: Overlap
    max_queued: int
    catch_up: CatchUp
    catch_up_window: float | None
    jitter: float
    start_at: datetime | None
    end_at: datetime | None
    enabled: bool
    tags: Mapping[str, str]
    queue: str
    priority: int
    limit_key: str | None
    declared_by: str | None
    paused: str | None
    next_at: datetime | None
    last_at: datetime | None
    fired: int
    skipped: Mapping[Skip, int]


class SchedulesShape(_Shape):
    """``schedules list``: all of them, by name."""

    items: Sequence[ScheduleShape]


class WorkerShape(_Shape):
    """A worker."""

    id: str
    host: str
    pid: int
    started_at: datetime
    lease_until: datetime
    alive: bool
    running: int


class WorkersShape(_Shape):
    """``workers list``: all of them, the oldest first."""

    items: Sequence[WorkerShape]


def value_of(text: str | None) -> Any:
    """A payload; the text itself when it is no JSON that can be read: rows can be written by others."""
    if text is None:
        return None
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def run_shape(run: RunSummary) -> RunShape:
    return RunShape.model_validate(run)


def entry_shape(entry: TimelineEntry) -> EntryShape:
    data = entry.data if entry.kind in _TEXT else value_of(entry.data)
    return EntryShape(
        seq=entry.seq,
        at=entry.at,
        kind=entry.kind,
        name=entry.name,
        attempt=entry.attempt,
        worker=entry.worker,
        duration=entry.duration,
        data=data,
    )


def report_shape(run: Run, waits: Sequence[OpenWait], entries: Sequence[TimelineEntry]) -> ReportShape:
    error = None if run.error is None else FailureShape.model_validate(failures.readable(run.error))
    full: dict[str, Any] = {**run_shape(run).model_dump(), "input": value_of(run.input), "result": value_of(run.result)}
    return ReportShape(
        run=FullRunShape(**full, error=error),
        waits=[WaitShape.model_validate(wait) for wait in waits],
        timeline=[entry_shape(entry) for entry in entries],
    )


def schedule_shape(schedule: Schedule) -> ScheduleShape:
    spec = {name: getattr(schedule.spec, name) for name in schedule.spec.__slots__}
    rest = {name: getattr(schedule, name) for name in ("paused", "next_at", "last_at", "fired", "skipped")}
    return ScheduleShape.model_validate({**spec, **rest, "input": value_of(schedule.spec.input)})


def worker_shape(worker: WorkerInfo) -> WorkerShape:
    return WorkerShape.model_validate(worker)
