"""``create_app``: the routes, the middleware and the errors of the HTTP runtime, put together over one engine.

What a route does stands in ``durable.http.routes``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse

from durable.engine import Engine
from durable.http import openapi, problems, security
from durable.http.limits import LimitsMiddleware
from durable.http.metrics import Metrics
from durable.http.routes import bulk, events, flows, runs, schedules, system, triggers, workers
from durable.http.runtime import HttpOptions, Redact, Runtime

_described = APIRouter()


@_described.get("/openapi.json", dependencies=[security.open_to_all()], include_in_schema=False)
async def _document(request: Request) -> JSONResponse:
    made: dict[str, Any] = request.app.openapi()
    mounted_at = request.scope.get("root_path", "")
    return JSONResponse({**made, "servers": [{"url": mounted_at}]} if mounted_at else made)


_ROUTERS = (
    *(triggers.router, runs.router, bulk.router, flows.router, schedules.router, workers.router),
    *(events.router, system.router, _described),
)


def create_app(engine: Engine, *, options: HttpOptions | None = None, redact: Redact | None = None) -> FastAPI:
    """An ASGI application that serves ``engine``.

    Served on its own it connects the engine as a client (``engine.client()``) unless it runs already. Mounted in
    another application, whose lifespan is the one that counts, that one has to start the engine.

    Args:
        engine: What it triggers, reads and operates with.
        options: Limits and openness.
        redact: Called with what a payload is (``input``, ``result``, ``error``, ``data``) and its JSON value before it
            is shown; returns what is shown instead. One that raises hides the payload.

    Raises:
        RuntimeError: A route names no scope.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        if engine.connected:
            yield
            return
        async with engine.client():
            yield

    options = options or HttpOptions()
    app = FastAPI(
        title="durable",
        version=version("durable"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.durable = Runtime(engine, options, redact)
    app.state.gate = security.Gate(engine, options)
    app.state.metrics = Metrics(engine)
    for router in _ROUTERS:
        app.router.routes.extend(router.routes)
    if unguarded := [route for route in app.routes if security.guard_of(route) is None]:
        raise RuntimeError(f"routes without a scope: {unguarded}")
    # Made when it is asked for: it takes 0.3 s.
    app.openapi = cache(lambda: openapi.document(app))  # type: ignore[method-assign]
    problems.install(app)
    app.add_middleware(LimitsMiddleware, options=options, ask=engine.schema_version)
    app.add_middleware(security.PlainAnswers)
    return app
