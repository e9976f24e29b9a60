"""The documents of schedules over HTTP; the others are in ``schemas``. No behaviour."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from durable.http.fields import EXAMPLE_ID, Accepted, Key, Name, Priority, Seconds, Tags, When, example
from durable.schedules import CatchUp, Overlap, Skip


class ScheduleBody(Accepted):
    """What a schedule is to be. What is left out is the default, also where the schedule exists."""

    model_config = example(workflow="report", cron="0 6 * * mon", timezone="Europe/Paris", input={"kind": "weekly"})

    workflow: Name
    version: Name | None = None
    cron: str | None = Field(default=None, max_length=200, description="Either this or `every`.")
    every: Seconds | None = Field(default=None, description="Seconds, at least 1.")
    timezone: str = Field(default="UTC", max_length=100, description="IANA name.")
    input: Any = Field(default=None, description="Left out: none.")
    overlap: Overlap = Overlap.SKIP
    max_queued: int = Field(default=10, ge=1, le=10_000)
    catch_up: CatchUp = CatchUp.ONE
    catch_up_window: Seconds | None = None
    jitter: float = Field(default=0.0, ge=0, le=86_400, description="Seconds.")
    start_at: When | None = None
    end_at: When | None = None
    enabled: bool = True
    tags: Tags | None = None
    queue: Name | None = None
    priority: Priority | None = None
    limit_key: Key | None = None


class ScheduleView(BaseModel):
    """A schedule, with what it has fired and skipped."""

    name: str
    workflow: str
    version: str
    cron: str | None
    every: float | None
    timezone: str
    payloads: Literal["shown", "hidden"]
    input: Any = None
    overlap: Overlap
    max_queued: int
    catch_up: CatchUp
    catch_up_window: float | None
    jitter: float
    start_at: datetime | None
    end_at: datetime | None
    enabled: bool
    tags: dict[str, str]
    queue: str
    priority: int
    limit_key: str | None
    declared_by: str | None
    paused: str | None = Field(description="Why it is paused; null: it is not.")
    next_at: datetime | None
    last_at: datetime | None
    fired: int
    skipped: dict[Skip, int]


class SchedulePage(BaseModel):
    """One page of the schedules, by name."""

    items: list[ScheduleView]
    next_cursor: str | None = Field(description="Null on the last page.")


class Ticks(BaseModel):
    """Nominal times, in UTC."""

    model_config = example(items=["2026-03-02T05:00:00Z"])

    items: list[datetime]


class Fired(BaseModel):
    """The run of a tick; null: the overlap policy skipped it."""

    model_config = example(id=EXAMPLE_ID)

    id: str | None


class BackfillBody(Accepted):
    """A time that has passed."""

    model_config = example(since="2026-02-01T00:00:00Z", until="2026-03-01T00:00:00Z")

    since: When
    until: When
    overlap: Literal["queue", "allow"] = "queue"


class Backfilled(BaseModel):
    """The runs, oldest tick first."""

    ids: list[str]
