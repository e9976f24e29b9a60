"""The OpenAPI document: what FastAPI derives from the routes, with scopes and problems. It knows no single route."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from durable.http.problems import MEDIA_TYPE, ProblemDetails
from durable.http.security import guard_of

_ALWAYS = (400, 403, 408, 414, 422, 429, 431, 503)
_SCHEMA = {"$ref": "#/components/schemas/ProblemDetails"}

_DESCRIPTION = """\
Trigger, read and operate durable workflow runs. Every error is a problem document (RFC 9457).

Send a token as `Authorization: Bearer durable_…`; each operation names the scope that it needs. `read:payload` brings
`read`, `admin` brings all. Requests that change something need `Content-Type: application/json`.
"""


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of ``app``."""
    made = get_openapi(title=app.title, version=app.version, description=_DESCRIPTION, routes=app.routes)
    components = made.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["ProblemDetails"] = ProblemDetails.model_json_schema()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for route in app.routes:
        if isinstance(route, APIRoute) and route.include_in_schema:
            for method in route.methods or ():
                _complete(made["paths"][route.path_format][method.lower()], method, route)
    return made


def _complete(operation: dict[str, Any], method: str, route: APIRoute) -> None:
    """Add what the guard and the middleware of the application do to every route."""
    guard, responses = guard_of(route), operation["responses"]
    declared = [int(status) for status in route.responses if int(status) >= HTTPStatus.BAD_REQUEST]
    statuses = {*_ALWAYS, *(one for one in declared if "model" not in route.responses[one])}
    if "requestBody" in operation:
        statuses.add(413)
    if method in {"POST", "PUT", "PATCH"}:  # a body may be left out, its type may not
        statuses.add(415)
    if guard is not None and guard.scope is not None:
        statuses.add(401)
        operation["security"] = [{"token": [guard.scope]}]
        operation["x-scope"] = guard.scope
    else:
        operation["security"] = []
    for status in sorted(statuses):
        if "model" in route.responses.get(status, {}):
            continue
        responses[str(status)] = {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": _SCHEMA}},
        }
