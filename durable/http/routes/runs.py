"""Runs over HTTP: read, tell, operate. One run at a time; many at once: ``bulk``. How runs are made: ``triggers``."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any, cast

from fastapi import Body, Header, Path, Query, Request, Response
from pydantic import AfterValidator
from pydantic_core import to_json

from durable.documents import signal_value
from durable.errors import InvalidArgument, PayloadError, RunCancelled, RunFailed
from durable.http.fields import EXAMPLE_ID, Key
from durable.http.limits import allow
from durable.http.problems import Problem, also
from durable.http.runtime import Runtime
from durable.http.schemas import (
    Answered,
    Changed,
    ReasonBody,
    ResultView,
    RetryBody,
    RunItem,
    RunPage,
    RunQuery,
    RunView,
    SignalBody,
    TimelineItem,
    TimelinePage,
    WaitView,
)
from durable.http.security import Admin, Here, Operator, Principal, Reader, Triggerer, guarded_router
from durable.ids import check_run_id
from durable.model import Run, State, TimelineEntry
from durable.names import check_tags
from durable.reports import OpenWait
from durable.states import TERMINAL

router = guarded_router("runs")


def _known(run_id: str) -> str:
    try:
        return check_run_id(run_id)
    except InvalidArgument:
        raise Problem(404, "run-not-found", f"no run has the id {run_id!r}: ids are UUIDv7") from None


RunId = Annotated[
    str, AfterValidator(_known), Path(description="The run's id.", examples=[EXAMPLE_ID], min_length=1, max_length=100)
]
IdempotencyKey = Annotated[
    Key | None,
    Header(description="Sent again with it, the request has no second effect.", examples=["ORD-123"]),
]
Payload = Annotated[Any, Body(description="Any JSON value.", examples=[{"approved": True}])]


def as_json(value: Any) -> str:
    """A value of a request, as JSON text again."""
    return to_json(value).decode()


# -- reading --------------------------------------------------------------------------------------


@router.get("/runs")
async def list_runs(here: Here, _: Reader, query: Annotated[RunQuery, Query()]) -> RunPage:
    """Runs that meet all conditions, newest first."""
    where = query.model_dump(exclude_none=True, exclude={"tag"})
    page = await here.engine.list_runs(**where, tags=_tags(query.tag))
    return RunPage(items=[RunItem.model_validate(run) for run in page.items], next_cursor=page.next_cursor)


def _tags(given: list[str]) -> dict[str, str]:
    if any("=" not in one for one in given):
        raise Problem(422, "invalid-request", "query.tag: write it as name=value")
    return check_tags({name: value for name, _, value in (one.partition("=") for one in given)})


@router.get("/runs/{run_id}", responses=also(404))
async def get_run(here: Here, who: Reader, run_id: RunId) -> RunView:
    """The run; its payloads with the scope `read:payload`."""
    return _view(here, who, await here.engine.get_run(run_id))


def _view(here: Runtime, who: Principal, run: Run) -> RunView:
    shown = who.sees_payloads
    return RunView(
        **dict(RunItem.model_validate(run)),
        payloads="shown" if shown else "hidden",
        input=here.payload("input", run.input) if shown else None,
        result=here.payload("result", run.result) if shown else None,
        error=here.error(run.error, shown=shown),
    )


@router.get("/runs/{run_id}/timeline", responses=also(404))
async def timeline(
    here: Here,
    who: Reader,
    run_id: RunId,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    cursor: Annotated[int, Query(ge=0, le=2**31, description="`next_cursor` of the page before.")] = 0,
) -> TimelinePage:
    """What happened to the run, in order."""
    entries = await here.engine.timeline(run_id)
    items = [timeline_item(here, who.sees_payloads, entry) for entry in entries[cursor : cursor + limit]]
    following = cursor + limit
    return TimelinePage(items=items, next_cursor=following if following < len(entries) else None)


_TEXT = frozenset({"waiting", "sleeping", "takeover", "paused"})
_OPEN = frozenset({"cancel", "pause", "resume", "retry", "retry_compensation", "child started"})
_ERROR = frozenset(
    {
        *("retrying", "failed", "undo retrying", "undo failed", "run attempt failed", "signal refused"),
        *(State.COMPENSATED, State.CANCELLED, State.DEAD_LETTER),
    }
)


def timeline_item(here: Runtime, shown: bool, entry: TimelineEntry) -> TimelineItem:
    """An entry as it is shown, with payloads or without."""
    return TimelineItem(
        seq=entry.seq,
        at=entry.at,
        kind=entry.kind,
        name=entry.name,
        attempt=entry.attempt,
        worker=entry.worker,
        duration=entry.duration,
        data=_data(here, shown, entry),
    )


def _data(here: Runtime, shown: bool, entry: TimelineEntry) -> Any:
    """By its kind: a plain text, what an operator asked for, an error, or a payload."""
    if entry.kind in _TEXT:
        return entry.data
    if entry.kind in _ERROR:
        return here.error(entry.data, shown=shown)
    return here.payload("data", entry.data) if shown or entry.kind in _OPEN else None


@router.get(
    "/runs/{run_id}/result", responses=also(404) | {202: {"description": "It has not ended.", "model": ResultView}}
)
async def result(
    here: Here,
    who: Reader,
    request: Request,
    response: Response,
    run_id: RunId,
    wait: Annotated[float, Query(ge=0, le=3600, description="Seconds; the server has a limit of its own.")] = 0.0,
) -> ResultView:
    """How the run ended; 202: it has not, within `wait` seconds."""
    run = await here.engine.get_run(run_id)
    if run.state not in TERMINAL and wait > 0:
        patience = min(wait, here.options.max_wait)
        allow(request, patience + here.options.request_timeout)
        handle = await here.engine.handle(run.workflow, run_id=run_id)
        with suppress(TimeoutError, RunFailed, RunCancelled, PayloadError):  # the run itself says how it ended
            await handle.result(timeout=patience)
        run = await here.engine.get_run(run_id)
    if run.state not in TERMINAL:
        response.status_code = 202
    shown = who.sees_payloads
    return ResultView(
        id=run.id,
        state=run.state,
        payloads="shown" if shown else "hidden",
        result=here.payload("result", run.result) if shown else None,
        error=here.error(run.error, shown=shown),
    )


# -- telling --------------------------------------------------------------------------------------


@router.post("/runs/{run_id}/signal", status_code=202, responses=also(404, 409))
async def signal(
    here: Here, _: Triggerer, run_id: RunId, body: SignalBody, idempotency_key: IdempotencyKey = None
) -> Answered:
    """Send a signal. When this is answered, it is committed; the run gets it when it waits for it."""
    if idempotency_key is not None and body.signal_id not in (None, idempotency_key):
        raise Problem(422, "invalid-request", "Idempotency-Key and signal_id are the same thing, and differ here")
    await _send(here, run_id, body.name, body.payload, idempotency_key or body.signal_id)
    return Answered(id=run_id, signal=body.name)


@router.post("/runs/{run_id}/resume", status_code=202, responses=also(404, 409))
async def resume(
    here: Here, _: Triggerer, run_id: RunId, body: Payload = None, idempotency_key: IdempotencyKey = None
) -> Answered:
    """Answer the one open wait of the run. A body whose only member is `payload` is unwrapped.

    The first answer to a wait counts. 409: it waits for nothing or for several things, which the problem names.
    """
    waits = await here.engine.open_waits(run_id)
    open_signals = [wait for wait in waits if wait.kind == "signal"]
    if len(open_signals) != 1:
        raise await _not_one(here, run_id, waits, len(open_signals))
    wait = open_signals[0]
    payload: Any = body
    if isinstance(body, dict) and list(members := cast("dict[str, Any]", body)) == ["payload"]:
        payload = members["payload"]
    # One id for all answers to one wait: a second click must not answer the wait that comes next.
    await _send(here, run_id, wait.name, payload, idempotency_key or f"resume/{wait.key}")
    return Answered(id=run_id, signal=wait.name)


async def _not_one(here: Runtime, run_id: str, waits: list[OpenWait], answerable: int) -> Problem:
    state = (await here.engine.get_run(run_id)).state
    views = [WaitView.model_validate(wait).model_dump(mode="json") for wait in waits]
    named = ", ".join(f"{wait.kind} {wait.name!r}" for wait in waits)
    if answerable:
        detail = f"run {run_id} waits for {named}: say which, with POST /v1/runs/{run_id}/signal"
        return Problem(409, "several-open-waits", detail, state=state, waits=views)
    detail = f"run {run_id} is {state} and waits for {f'no signal, but for {named}' if named else 'nothing'}"
    return Problem(409, "no-open-wait", detail, state=state, waits=views)


async def _send(here: Runtime, run_id: str, name: str, payload: Any, signal_id: str | None) -> None:
    value = await signal_value(here.engine, run_id, name, as_json(payload))
    await here.engine.signal(run_id, name, value, signal_id=signal_id)


# -- operating ------------------------------------------------------------------------------------


@router.post("/runs/{run_id}/cancel", status_code=202, responses=also(404))
async def cancel(here: Here, who: Operator, run_id: RunId, body: ReasonBody | None = None) -> Changed:
    """Ask for the run's cancellation; what was done is compensated. Of a run that has ended: nothing happens."""
    changed = await here.engine.cancel(run_id, reason=_reason(body), by=who.name)
    return await _changed(here, run_id, changed)


@router.post("/runs/{run_id}/pause", status_code=202, responses=also(404, 409))
async def pause(here: Here, who: Operator, run_id: RunId, body: ReasonBody | None = None) -> Changed:
    """Stop the run: the running step may end, then nothing executes until `unpause`."""
    await here.engine.pause(run_id, reason=_reason(body), by=who.name)
    return await _changed(here, run_id)


@router.post("/runs/{run_id}/unpause", status_code=202, responses=also(404, 409))
async def unpause(here: Here, who: Operator, run_id: RunId, body: ReasonBody | None = None) -> Changed:
    """Let a paused run go on. (`resume` answers a wait.)"""
    await here.engine.resume(run_id, reason=_reason(body), by=who.name)
    return await _changed(here, run_id)


@router.post("/runs/{run_id}/retry", status_code=202, responses=also(404, 409))
async def retry(here: Here, who: Operator, run_id: RunId, body: RetryBody | None = None) -> Changed:
    """Run a failed or dead-lettered run again; completed steps are kept."""
    asked = body or RetryBody()
    if asked.compensation and asked.from_step is not None:
        raise Problem(422, "invalid-request", "give from_step or compensation, not both")
    if asked.compensation:
        await here.engine.retry_compensation(run_id, reason=asked.reason, by=who.name)
    else:
        await here.engine.retry(run_id, from_step=asked.from_step, reason=asked.reason, by=who.name)
    return await _changed(here, run_id)


@router.post("/runs/{run_id}/tick", responses=also(404))
async def tick(here: Here, _: Operator, request: Request, run_id: RunId) -> Changed:
    """Advance the run in this process: what of it is ready executes, until it rests or ends.

    It has the time of a long poll. After that the step that is under way may end, and the run waits for the next tick.
    """
    allow(request, here.options.max_wait)
    before = await here.engine.get_run(run_id)
    state = await here.engine.tick(run_id)
    return Changed(id=run_id, state=state, changed=state is not before.state)


@router.delete("/runs/{run_id}", status_code=204, response_class=Response, responses=also(404, 409))
async def delete(here: Here, _: Admin, run_id: RunId) -> None:
    """Erase a run that has ended, with everything that belongs to it; its key is free again."""
    await here.engine.delete(run_id)


def _reason(body: ReasonBody | None) -> str:
    return "" if body is None else body.reason


async def _changed(here: Runtime, run_id: str, changed: bool = True) -> Changed:
    return Changed(id=run_id, state=(await here.engine.get_run(run_id)).state, changed=changed)
