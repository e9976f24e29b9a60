"""Schedules over HTTP: look, declare, pause, resume, trigger by hand, fill gaps, delete."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import Path, Query, Response

from durable.documents import input_value
from durable.http.fields import Name
from durable.http.problems import also
from durable.http.routes.runs import as_json
from durable.http.runtime import Runtime
from durable.http.schedule_schemas import (
    BackfillBody,
    Backfilled,
    Fired,
    ScheduleBody,
    SchedulePage,
    ScheduleView,
    Ticks,
)
from durable.http.schemas import ReasonBody
from durable.http.security import Here, Operator, Principal, Reader, guarded_router
from durable.schedules import Schedule

router = guarded_router("schedules")

ScheduleName = Annotated[Name, Path(description="The schedule's name.", examples=["nightly-report"])]


@router.get("/schedules")
async def schedules(
    here: Here,
    who: Reader,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
    cursor: Annotated[Name | None, Query(description="`next_cursor` of the page before.")] = None,
) -> SchedulePage:
    """All schedules, by name."""
    found = [one for one in await here.engine.schedules() if cursor is None or one.spec.name > cursor]
    page = found[:limit]
    following = page[-1].spec.name if len(found) > limit else None
    return SchedulePage(items=[_view(here, who, one) for one in page], next_cursor=following)


@router.get("/schedules/{name}", responses=also(404))
async def get_schedule(here: Here, who: Reader, name: ScheduleName) -> ScheduleView:
    """The schedule, with what it has fired and skipped."""
    return _view(here, who, await here.engine.get_schedule(name))


@router.put("/schedules/{name}", responses=also(404))
async def put_schedule(here: Here, who: Operator, name: ScheduleName, body: ScheduleBody) -> ScheduleView:
    """Create the schedule, or change it to this. An operator's pause stays."""
    options: Any = body.model_dump(exclude_unset=True, exclude={"workflow", "input"})
    if "input" in body.model_fields_set:
        options["input"] = input_value(here.engine, body.workflow, body.version, as_json(body.input))
    return _view(here, who, await here.engine.schedule(body.workflow, name=name, **options))


@router.delete("/schedules/{name}", status_code=204, response_class=Response, responses=also(404))
async def delete_schedule(here: Here, _: Operator, name: ScheduleName) -> None:
    """Delete the schedule. Its runs go on, and stay."""
    await here.engine.delete_schedule(name)


@router.post("/schedules/{name}/pause", responses=also(404))
async def pause_schedule(here: Here, who: Operator, name: ScheduleName, body: ReasonBody | None = None) -> ScheduleView:
    """Fire no more until it is resumed."""
    return _view(here, who, await here.engine.pause_schedule(name, "" if body is None else body.reason))


@router.post("/schedules/{name}/resume", responses=also(404))
async def resume_schedule(here: Here, who: Operator, name: ScheduleName) -> ScheduleView:
    """Fire again, from the first tick after now."""
    return _view(here, who, await here.engine.resume_schedule(name))


@router.post("/schedules/{name}/trigger", status_code=201, responses=also(404))
async def trigger_schedule(here: Here, _: Operator, name: ScheduleName) -> Fired:
    """Fire it once, now, whether it is paused or not. Sent again, it fires again."""
    handle = await here.engine.trigger_schedule(name)
    return Fired(id=None if handle is None else handle.run_id)


@router.post("/schedules/{name}/backfill", status_code=201, responses=also(404))
async def backfill(here: Here, _: Operator, name: ScheduleName, body: BackfillBody) -> Backfilled:
    """Fire the ticks of a time that has passed. Doing it twice is safe."""
    handles = await here.engine.backfill(name, body.since, body.until, overlap=body.overlap)
    return Backfilled(ids=[handle.run_id for handle in handles])


@router.get("/schedules/{name}/ticks", responses=also(404))
async def ticks(here: Here, _: Reader, name: ScheduleName, n: Annotated[int, Query(ge=1, le=1000)] = 10) -> Ticks:
    """The next nominal times; of one that is paused, those that it would have."""
    return Ticks(items=await here.engine.next_ticks(name, n))


def _view(here: Runtime, who: Principal, schedule: Schedule) -> ScheduleView:
    spec = asdict(schedule.spec)
    text: str | None = spec.pop("input")
    return ScheduleView(
        **spec,
        payloads="shown" if who.sees_payloads else "hidden",
        input=here.payload("input", text) if who.sees_payloads else None,
        paused=schedule.paused,
        next_at=schedule.next_at,
        last_at=schedule.last_at,
        fired=schedule.fired,
        skipped=dict(schedule.skipped),
    )
