"""What orchestrators and monitors ask: is it alive, may it get requests, has it started, how does it fare."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from durable.engine import Engine
from durable.errors import DurableError
from durable.http.limits import allow
from durable.http.metrics import Metrics
from durable.http.security import open_to_all, requires, runtime_of
from durable.reports import Scope

_PATIENCE = 2.0
"""Seconds for which a probe waits for the database: orchestrators give up after few more."""

router = APIRouter(tags=["system"])


class Probe(BaseModel):
    """The answer to a probe."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok", "checks": {}}]})

    status: Literal["ok", "failing"]
    checks: dict[str, str] = Field(default={}, description="Each with `ok`, or what is wrong.")


def _failing(what: str) -> dict[int | str, dict[str, Any]]:
    return {503: {"model": Probe, "description": what}}


@router.get("/health", dependencies=[open_to_all()])
async def health() -> Probe:
    """Whether the process answers; restart it when it does not. It says nothing about the database."""
    return Probe(status="ok")


@router.get("/startup", dependencies=[open_to_all()], responses=_failing("It is still starting"))
async def startup(request: Request, response: Response) -> Probe:
    """Whether the engine has connected and migrated."""
    engine = runtime_of(request).engine
    return _answer(response, {"engine": "ok" if engine.connected else "not connected"})


@router.get("/ready", dependencies=[open_to_all()], responses=_failing("It should get no requests now"))
async def ready(request: Request, response: Response) -> Probe:
    """Whether it should get requests: the database answers, its schema fits, and the worker, if any, has its lease."""
    engine = runtime_of(request).engine
    allow(request, 2 * _PATIENCE)
    database, schema = await _database(engine)
    worker = {None: "ok", True: "ok", False: "has lost its lease"}[engine.working]
    return _answer(response, {"database": database, "schema": schema, "worker": worker})


async def _database(engine: Engine) -> tuple[str, str]:
    if not engine.connected:
        return "not connected", "unknown"
    try:
        async with asyncio.timeout(_PATIENCE):
            found, needed = await engine.schema_version()
    except (DurableError, TimeoutError):  # which server, and why, is for the log: everybody may ask
        return "does not answer", "unknown"
    if found < needed:
        return "ok", "outdated: migrate"
    return "ok", "ok" if found == needed else "newer than this code: deploy"


def _answer(response: Response, checks: dict[str, str]) -> Probe:
    well = all(state == "ok" for state in checks.values())
    response.status_code = 200 if well else 503
    return Probe(status="ok" if well else "failing", checks=checks)


class _MetricsText(Response):
    media_type = "text/plain"


@router.get(
    "/metrics",
    dependencies=[requires(Scope.READ)],
    response_class=_MetricsText,
    responses={200: {"content": {"application/openmetrics-text": {}}, "description": "In the format of Prometheus"}},
)
async def metrics(request: Request) -> Response:
    """Metrics for Prometheus: of this process, and the runs and queues of the whole store."""
    shown: Metrics = request.app.state.metrics
    census = await runtime_of(request).engine.census()
    text, media_type = shown.shown(census, request.headers.get("accept", ""))
    return Response(text, media_type=media_type)
