"""Making runs over HTTP, one at a time. Many at once: ``bulk``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from durable.documents import input_value
from durable.handle import RunHandle
from durable.http.problems import Problem, also
from durable.http.quick import QuickRoute
from durable.http.routes.runs import IdempotencyKey, as_json
from durable.http.runtime import Runtime
from durable.http.schemas import StartBody, Started, TriggerBody, Triggered
from durable.http.security import Here, Triggerer
from durable.model import Debounce, State
from durable.newruns import TriggerOptions

router = APIRouter(prefix="/v1", tags=["runs"], route_class=QuickRoute)


def _stood(view: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": view, "description": "It stood already."}}


@router.post("/runs", status_code=201, responses=also(404, 409) | _stood(Triggered))
async def trigger(
    here: Here,
    _: Triggerer,
    request: Request,
    response: Response,
    body: TriggerBody,
    idempotency_key: IdempotencyKey = None,
) -> Triggered:
    """Create a run. When this is answered, it is committed; 200: it stood already."""
    given = body.model_dump(exclude_unset=True, exclude_none=True, exclude={"workflow", "input", "debounce"})
    options: TriggerOptions = {**given}  # type: ignore[typeddict-item]
    if body.debounce is not None:
        options["debounce"] = Debounce(body.debounce.key, body.debounce.delay, body.debounce.max_delay)
    value = as_json(body.input) if "input" in body.model_fields_set else None
    handle = await _create(here, body.workflow, value, options, idempotency_key)
    state = await _answer(handle, request, response)
    return Triggered(id=handle.run_id, state=state, created=handle.created)


@router.post("/runs/start", status_code=201, responses=also(404, 409) | _stood(Started))
async def start(
    here: Here,
    _: Triggerer,
    request: Request,
    response: Response,
    body: StartBody,
    idempotency_key: IdempotencyKey = None,
) -> Started:
    """Create a run, in the words of an earlier engine. `POST /v1/runs` can do more."""
    options: TriggerOptions = {}
    if body.version is not None:
        options["version"] = body.version
    if body.tenantId is not None:
        options["tags"] = {"tenant": body.tenantId}
    value = as_json(body.input) if "input" in body.model_fields_set else None
    handle = await _create(here, body.flowId, value, options, idempotency_key)
    return Started(runId=handle.run_id, status=await _answer(handle, request, response))


async def _create(
    here: Runtime, workflow: str, value: str | None, options: TriggerOptions, key: str | None
) -> RunHandle[Any]:
    if key is not None:
        if options.get("key", key) != key:
            raise Problem(422, "invalid-request", "Idempotency-Key and key are the same thing, and differ here")
        options["key"] = key
    decoded = input_value(here.engine, workflow, options.get("version"), value)
    return await here.engine.trigger(workflow, decoded, **options)


async def _answer(handle: RunHandle[Any], request: Request, response: Response) -> State:
    response.headers["Location"] = f"{request.scope.get('root_path', '')}/v1/runs/{handle.run_id}"
    if handle.created:
        return State.PENDING
    response.status_code = 200
    return await handle.status()
