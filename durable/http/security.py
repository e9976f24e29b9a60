"""Who may do what: bearer tokens, scopes, and the checks that keep web pages of others out.

Every route names the scope that it needs with ``requires`` (or ``open_to_all``); the application refuses to be built
with one that does not. Whoever asks is looked at before the body is read. It knows no route.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic_core import from_json
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from durable.engine import Engine
from durable.http.problems import Problem
from durable.http.runtime import HttpOptions, Runtime
from durable.reports import Scope, Token

_KEEP = 1.0
"""Seconds for which the answer of the store about a token is believed: how late a revocation is noticed. Without it
every request costs a second statement."""

_KEPT = 10_000
"""Answers that are remembered at most."""

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")

_IMPLIED: dict[Scope, frozenset[Scope]] = {
    Scope.READ_PAYLOAD: frozenset({Scope.READ, Scope.READ_PAYLOAD}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks."""

    name: str
    scopes: frozenset[Scope]

    @classmethod
    def of(cls, name: str, scopes: Iterable[Scope]) -> Principal:
        """With what the scopes imply."""
        return cls(name, frozenset(one for scope in scopes for one in _IMPLIED.get(scope, frozenset({scope}))))

    @property
    def sees_payloads(self) -> bool:
        """Whether it may see inputs, results, signals and errors of runs."""
        return Scope.READ_PAYLOAD in self.scopes


NOBODY = Principal("", frozenset())
LOCAL = Principal.of("local", [Scope.ADMIN])


class Gate:
    """Who a request comes from: by its token, or by its place while there are no tokens.

    Args:
        engine: Whose store has the tokens.
        options: Whether this machine needs one.
    """

    def __init__(self, engine: Engine, options: HttpOptions) -> None:
        self._engine = engine
        self._options = options
        self._known: dict[str, tuple[float, Token]] = {}
        self._any: tuple[float, bool] = (0.0, False)

    async def principal(self, request: Request) -> Principal:
        """Whoever asks.

        Raises:
            Problem: 401: it brings no token that is valid.
            StoreUnavailable: The store does not answer, so nobody can be told from anybody.
        """
        given = request.headers.getlist("authorization")
        if given:
            scheme, _, secret = given[0].partition(" ")
            token = await self._token(secret.strip()) if scheme.lower() == "bearer" and len(given) == 1 else None
            if token is None:
                raise _unauthorized("the token is unknown, was revoked or has expired", error="invalid_token")
            return Principal.of(token.name, token.scopes)
        if await self._tokens_exist():
            raise _unauthorized("send a token: Authorization: Bearer durable_…")
        if not (self._options.open_on_loopback and _is_local(request)):
            raise _unauthorized(
                "no token exists, and only this machine needs none: make one with `durable token create`"
            )
        return LOCAL

    async def _token(self, secret: str) -> Token | None:
        now = time.monotonic()
        until, token = self._known.get(secret, (0.0, None))
        if now < until:
            return token
        self._known.pop(secret, None)
        token = await self._engine.find_token(secret)
        if token is not None:  # unknown ones are not remembered: whoever guesses must not fill the memory
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[secret] = (now + _KEEP, token)
        return token

    async def _tokens_exist(self) -> bool:
        now = time.monotonic()
        until, exist = self._any
        if now >= until:
            exist = bool(await self._engine.tokens())
            self._any = (now + _KEEP, exist)
        return exist


def _unauthorized(detail: str, error: str = "") -> Problem:
    challenge = 'Bearer realm="durable"' + (f', error="{error}"' if error else "")
    return Problem(401, "unauthorized", detail, headers={"WWW-Authenticate": challenge})


# -- routes ---------------------------------------------------------------------------------------


class Guard:
    """What stands in front of a route: the scope that it needs; None: it is open to all."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Principal:
        found: Principal | None = getattr(request.state, "principal", None)
        if found is None:
            found = request.state.principal = await admitted(request, self.scope)
        return found


def requires(scope: Scope) -> Any:
    """The dependency of a route that needs this scope; its value is the ``Principal``."""
    return Depends(Guard(scope))


def open_to_all() -> Any:
    """The dependency of a route that needs no token, such as a probe; its value is ``NOBODY``."""
    return Depends(Guard(None))


def guard_of(route: BaseRoute) -> Guard | None:
    """The guard of a route, if it has one."""
    if not isinstance(route, APIRoute):
        return None
    return next((d.call for d in route.dependant.dependencies if isinstance(d.call, Guard)), None)


def parsed(body: bytes) -> Any:
    """JSON by the rules of the engine's codec: neither NaN nor lone surrogates, at most 200 levels.

    Raises:
        RequestValidationError: It is none.
    """
    try:
        return from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise RequestValidationError(
            [{"type": "json_invalid", "loc": ("body",), "ctx": {"error": str(error)}}]
        ) from None


class _JsonRequest(Request):
    """Reads JSON by our rules."""

    async def json(self) -> Any:
        return parsed(await self.body())


class GuardedRoute(APIRoute):
    """A route whose guard is asked before the body is read and parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, guard = super().get_route_handler(), guard_of(self)

        async def guarded(request: Request) -> Response:
            request = _JsonRequest(request.scope, request.receive)
            if guard is not None:
                await guard(request)
            return await handle(request)

        return guarded


def guarded_router(tag: str, prefix: str = "/v1") -> APIRouter:
    """A router whose routes are guarded before their bodies are read."""
    return APIRouter(prefix=prefix, tags=[tag], route_class=GuardedRoute)


def runtime_of(request: Request) -> Runtime:
    """What the application was made with."""
    return cast("Runtime", request.app.state.durable)


async def _here(request: Request) -> Runtime:  # async: FastAPI calls plain functions in a thread
    return runtime_of(request)


Here = Annotated[Runtime, Depends(_here)]
Reader = Annotated[Principal, requires(Scope.READ)]
Triggerer = Annotated[Principal, requires(Scope.TRIGGER)]
Operator = Annotated[Principal, requires(Scope.OPERATE)]
Admin = Annotated[Principal, requires(Scope.ADMIN)]


async def admitted(request: Request, scope: Scope | None) -> Principal:
    """Whoever asks, if it may.

    Raises:
        Problem: 400 without a host, 401, 403, 415.
        StoreUnavailable: The store does not answer.
    """
    options = runtime_of(request).options
    _check_host(request, options)
    if request.method not in _SAFE:
        _check_origin(request, options)
    principal = NOBODY
    if scope is not None:
        gate: Gate = request.app.state.gate
        principal = await gate.principal(request)
        if scope not in principal.scopes:
            challenge = f'Bearer realm="durable", error="insufficient_scope", scope="{scope}"'
            detail = f"token {principal.name!r} lacks the scope {scope}"
            raise Problem(403, "insufficient-scope", detail, headers={"WWW-Authenticate": challenge}, scope=scope)
    if request.method in _WITH_BODY:
        _check_content_type(request)
    return principal


# -- web pages of others --------------------------------------------------------------------------


def _check_host(request: Request, options: HttpOptions) -> None:
    """A page whose name was made to resolve to this machine (DNS rebinding) says its own name here."""
    given = request.headers.getlist("host")
    if len(given) != 1:
        raise Problem(400, "bad-host", "a request names one host")
    name = _host_name(given[0])
    if name in options.hosts:
        return
    if options.hosts or (_is_loopback(_server(request)) and not _is_loopback(name)):
        raise Problem(403, "foreign-host", f"this server does not answer to the name {name!r}: see HttpOptions.hosts")


def _check_origin(request: Request, options: HttpOptions) -> None:
    for origin in request.headers.getlist("origin"):
        if origin not in options.origins and urlsplit(origin).netloc != request.headers.get("host"):
            raise Problem(
                403, "foreign-origin", f"pages of {origin!r} may not change anything: see HttpOptions.origins"
            )


def _check_content_type(request: Request) -> None:
    """A form on a foreign page can send a body, but not of this type."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported-media-type", "send Content-Type: application/json, also without a body")


def _is_local(request: Request) -> bool:
    """It comes from this machine, to a loopback address, and not through a proxy."""
    client = "" if request.client is None else request.client.host
    return (
        _is_loopback(client)
        and _is_loopback(_server(request))
        and not any(name in request.headers for name in _FORWARDED)
    )


def _server(request: Request) -> str:
    """The address at which the connection arrived; empty for a socket that is a file."""
    address, port = request.scope.get("server") or ("", None)
    return str(address) if port is not None or _is_loopback(str(address)) else ""


def _host_name(host: str) -> str:
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower()


@lru_cache(maxsize=1000)  # asked four times for each request, nearly always for the same few
def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


_PLAIN = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]
_NOT_KEPT = (b"cache-control", b"no-store")


class PlainAnswers:
    """Middleware: no answer is sniffed, framed, cached, or taken for a page that may load anything."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                kept = any(name == b"cache-control" for name, _ in headers)
                message["headers"] = [*headers, *_PLAIN] if kept else [*headers, *_PLAIN, _NOT_KEPT]
            await send(message)

        await self._app(scope, receive, with_headers)
