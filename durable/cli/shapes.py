"""What ``--json`` writes: the shapes that scripts rely on. A field is added, never renamed.

They are made of the engine's values; nothing is asked here. Times are ISO 8601 with a zone, durations seconds, and
payloads are the JSON that they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
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
    worker: str | None = Field(validation_alias="owner")
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


class RunReportShape(_Shape):
    """``runs show``."""

    run: RunShape
    input: Any
    result: Any
    error: FailureShape | None
    waits: Sequence[WaitShape]
    timeline: Sequence[EntryShape]


class TriggeredShape(_Shape):
    """``runs trigger`` and ``schedules trigger``; ``created`` is false when the key had a run already."""

    run_id: str
    created: bool


class RefusedShape(_Shape):
    """A run to which an operation did not apply."""

    run_id: str
    message: str


class AppliedShape(_Shape):
    """``runs cancel``, ``pause``, ``resume`` and ``retry``."""

    matched: int
    applied: int
    refused: Sequence[RefusedShape]


class ScheduleShape(_Shape):
    """A schedule: an item of ``schedules list``, and ``schedules show``."""

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


class WorkerShape(_Shape):
    """An item of ``workers list``."""

    id: str
    host: str
    pid: int
    started_at: datetime
    lease_until: datetime
    alive: bool
    running: int


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


def report_shape(run: Run, waits: Sequence[OpenWait], entries: Sequence[TimelineEntry]) -> RunReportShape:
    return RunReportShape(
        run=run_shape(run),
        input=value_of(run.input),
        result=value_of(run.result),
        error=None if run.error is None else FailureShape.model_validate(failures.readable(run.error)),
        waits=[WaitShape.model_validate(wait) for wait in waits],
        timeline=[entry_shape(entry) for entry in entries],
    )


def schedule_shape(schedule: Schedule) -> ScheduleShape:
    spec = {name: getattr(schedule.spec, name) for name in schedule.spec.__slots__}
    rest = {name: getattr(schedule, name) for name in ("paused", "next_at", "last_at", "fired", "skipped")}
    return ScheduleShape.model_validate({**spec, **rest, "input": value_of(schedule.spec.input)})


def worker_shape(worker: WorkerInfo) -> WorkerShape:
    return WorkerShape.model_validate(worker)
