"""Who may do what: bearer tokens, scopes, and the checks that keep web pages of others out.

Every route names the scope that it needs with ``requires`` (or ``open_to_all``); ``unguarded`` finds those that do not,
and the application refuses to be built with them. It knows no route.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

from fastapi import Depends, Request
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from durable.http.runtime import Runtime


class Scope(StrEnum):
    """What a token allows."""

    READ = "read"
    READ_PAYLOAD = "read:payload"  # what went in and came out, too; implies read
    TRIGGER = "trigger"
    OPERATE = "operate"
    ADMIN = "admin"  # everything


_IMPLIED: dict[str, frozenset[Scope]] = {
    Scope.READ_PAYLOAD: frozenset({Scope.READ, Scope.READ_PAYLOAD}),
    Scope.ADMIN: frozenset(Scope),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever asks."""

    name: str
    scopes: frozenset[Scope]

    @classmethod
    def of(cls, name: str, scopes: Iterable[str]) -> Principal:
        """With what the scopes imply."""
        return cls(name, frozenset(one for scope in scopes for one in _IMPLIED.get(scope, frozenset({Scope(scope)}))))

    @property
    def sees_payloads(self) -> bool:
        """Whether it may see inputs, results, signals and errors of runs."""
        return Scope.READ_PAYLOAD in self.scopes


NOBODY = Principal("", frozenset())
LOCAL = Principal.of("local", [Scope.ADMIN])


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


def runtime_of(request: Request) -> Runtime:
    """What the application was made with."""
    return cast("Runtime", request.app.state.durable)


async def admitted(request: Request, scope: Scope | None) -> Principal:
    """Whoever asks, if it may."""
    return LOCAL if scope is not None and runtime_of(request).options.open_on_loopback else NOBODY
