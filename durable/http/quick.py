"""A quicker way into a route that is called thousands of times a second; what it does is FastAPI's.

FastAPI solves the parameters of each request anew: that took 0.3 ms of the 1.0 ms of a trigger, more than making the
run itself. Here they are looked at once, when the route is made. The endpoint stays as FastAPI
has it, and so does the document that describes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError

from durable.http.security import Guard, GuardedRoute, guard_of, parsed, runtime_of

_PARAMETERS = {"here", "_", "request", "response", "body", "idempotency_key"}


class QuickRoute(GuardedRoute):
    """A route for an endpoint with exactly the parameters ``here``, ``_`` (whoever asks), ``request``, ``response``,
    ``body`` and ``idempotency_key``, which returns a model."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        guard, endpoint = guard_of(self), self.endpoint
        types = inspect.get_annotations(endpoint, eval_str=True)
        assert isinstance(guard, Guard)
        assert types.keys() - {"return"} == _PARAMETERS
        body_type, key_type = TypeAdapter[Any](types["body"]), TypeAdapter[Any](types["idempotency_key"])
        status = self.status_code or HTTPStatus.OK

        async def quick(request: Request) -> Response:
            who = await guard(request)
            text = await request.body()
            if not text:
                raise RequestValidationError([{"type": "missing", "loc": ("body",), "msg": "Field required"}])
            response = Response(status_code=status)
            view = await endpoint(
                here=runtime_of(request),
                _=who,
                request=request,
                response=response,
                body=_checked(body_type, parsed(text), "body"),
                idempotency_key=_checked(key_type, request.headers.get("idempotency-key"), "header", "idempotency-key"),
            )
            answer = Response(view.__pydantic_serializer__.to_json(view), response.status_code, media_type=_JSON)
            answer.raw_headers += [header for header in response.raw_headers if header[0] != b"content-length"]
            return answer

        return quick


_JSON = JSONResponse.media_type


def _checked(kind: TypeAdapter[Any], value: Any, *where: str) -> Any:
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        raise RequestValidationError([{**one, "loc": (*where, *one["loc"])} for one in found]) from None
