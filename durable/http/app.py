"""``create_app``: the routes, the middleware and the errors of the HTTP runtime, put together over one engine.

What a route does stands in ``durable.http.routes``.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI

from durable.engine import Engine
from durable.http import problems, security
from durable.http.runtime import HttpOptions, Redact, Runtime

_ROUTERS: tuple[APIRouter, ...] = ()


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

    app = FastAPI(
        title="durable",
        version=version("durable"),
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.durable = Runtime(engine, options or HttpOptions(), redact)
    problems.install(app)
    for router in _ROUTERS:
        app.include_router(router)
    if unguarded := [route for route in app.routes if security.guard_of(route) is None]:
        raise RuntimeError(f"routes without a scope: {unguarded}")
    return app
