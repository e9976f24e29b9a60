"""Problem details (RFC 9457): what every error of the HTTP runtime looks like, and which error is which problem.

A problem says what the client can do; it never carries a traceback, a statement or a password.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from durable import errors

_log = logging.getLogger("durable.http")

MEDIA_TYPE = "application/problem+json"

_URN = "urn:durable:problem:"

_NAMED = 20
"""Mistakes in one document that its problem names."""

_RETRY_AFTER = "1"
"""Seconds after which a client may ask again when the store was away."""


class ProblemDetails(BaseModel):
    """RFC 9457."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "examples": [
                {
                    "type": f"{_URN}run-not-found",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "no run has the id 0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90",
                }
            ]
        },
    )

    type: str = Field(description="Which problem it is; stable, for programs.")
    title: str = Field(description="The meaning of the status.")
    status: int
    detail: str = Field(description="What was wrong with this request, for people.")


class Problem(Exception):
    """Raised by a route or dependency to be answered as problem details.

    Args:
        status: The HTTP status.
        slug: Which problem it is, such as ``run-not-found``.
        detail: What was wrong with this request.
        headers: Further headers of the answer.
        extra: Further members of the problem.
    """

    def __init__(
        self, status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.headers = headers
        self.extra = extra

    def response(self) -> JSONResponse:
        """The answer."""
        return problem(self.status, self.slug, self.detail, headers=self.headers, **self.extra)


def problem(
    status: int, slug: str, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """An answer with problem details; an ASGI application as well, for middleware. See ``Problem``."""
    content = {"type": _URN + slug, "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **extra}
    return JSONResponse(content, status, dict(headers or {}), MEDIA_TYPE)


_STATUS: tuple[tuple[type[errors.DurableError], int, str], ...] = (
    (errors.RunNotFound, 404, "run-not-found"),
    (errors.ScheduleNotFound, 404, "schedule-not-found"),
    (errors.UnknownWorkflow, 404, "unknown-workflow"),
    (errors.KeyConflict, 409, "key-conflict"),
    (errors.ConcurrencyConflict, 409, "concurrency-conflict"),
    (errors.RunFinished, 409, "state-conflict"),
    (errors.PayloadTooLarge, 413, "payload-too-large"),
    (errors.PayloadError, 422, "invalid-payload"),
    (errors.InvalidArgument, 422, "invalid-argument"),
    (errors.StoreUnavailable, 503, "store-unavailable"),
    (errors.ConfigurationError, 503, "not-ready"),
)
"""The first that fits."""


def problem_of(error: errors.DurableError) -> JSONResponse:
    """The answer to an error of the engine."""
    for kind, status, slug in _STATUS:
        if isinstance(error, kind):
            extra = (
                {"run_id": error.run_id} if isinstance(error, errors.KeyConflict | errors.ConcurrencyConflict) else {}
            )
            headers = {"Retry-After": _RETRY_AFTER} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
            return problem(status, slug, errors.without_password(str(error)), headers=headers, **extra)
    _log.error("an error that has no problem of its own", exc_info=error)
    return problem(500, "internal", "an error that the server has logged")


def also(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that can be answered with these problems too, beside those that all can."""
    return {status: {"description": HTTPStatus(status).phrase} for status in statuses}


def install(app: FastAPI) -> None:
    """Have ``app`` answer every error as problem details."""

    @app.exception_handler(Problem)
    async def on_problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(errors.DurableError)
    async def on_durable_error(_: Request, error: errors.DurableError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        if malformed := next((one for one in found if one["type"] == "json_invalid"), None):
            return problem(400, "malformed-json", f"the body is not JSON: {malformed['ctx']['error']}")
        wrong = [{"where": ".".join(str(part) for part in one["loc"]), "message": one["msg"]} for one in found]
        detail = "; ".join(f"{one['where']}: {one['message']}" for one in wrong[:_NAMED])
        return problem(422, "invalid-request", detail, errors=wrong[:_NAMED])

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        slug, detail, headers = HTTPStatus(error.status_code).phrase.lower(), str(error.detail), error.headers
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"there is nothing at {request.url.path}"
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(_allowed(app, request))
            detail, headers = f"{request.url.path} knows {allowed}, not {request.method}", {"Allow": allowed}
        return problem(error.status_code, slug.replace(" ", "-"), detail, headers=headers)

    @app.exception_handler(Exception)
    async def on_error(_: Request, error: Exception) -> JSONResponse:
        _log.error("an error in the HTTP runtime", exc_info=error)
        return problem(500, "internal", "an error that the server has logged")


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """What can be done at this path: the routes that have it, each with other methods.

    Of ``/runs/batch`` that is what is said of it by this name, not what could be done with a run that was called so.
    """
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    found = [route for route in app.routes if isinstance(route, APIRoute) and route.path_regex.match(path)]
    named = [route for route in found if not route.param_convertors]
    return sorted({method for route in named or found for method in route.methods or ()})
