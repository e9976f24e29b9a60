"""A served engine in the few verbs in which the tests of the HTTP runtime are written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi.routing import APIRoute

from durable import Engine, State, Store
from durable.http import HttpOptions, Server, serve
from durable.http.runtime import Redact
from tests.http.flows import FLOWS

SOON = 30.0
"""Seconds within which everything that a test waits for happens, on a machine that others use too."""


class Api:
    """A server, its engine, and a client of it that sends what it is told and keeps what it called."""

    def __init__(self, server: Server, engine: Engine) -> None:
        self.server = server
        self.engine = engine
        self.called: set[tuple[str, str]] = set()
        self.client = self.other()

    def other(self, token: str | None = None) -> httpx.AsyncClient:
        """Another client, with a token of its own."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        hooks: Mapping[str, list[Callable[..., Any]]] = {"request": [self._note]}
        # verify: there is no TLS here, and loading certificates takes 0.1 s for each client.
        return httpx.AsyncClient(
            base_url=self.server.url, headers=headers, timeout=SOON, event_hooks=hooks, verify=False, trust_env=False
        )

    async def _note(self, request: httpx.Request) -> None:
        for route in self.routes:
            if re.fullmatch(route.path_regex.pattern, request.url.path) and request.method in (route.methods or ()):
                self.called.add((request.method, route.path))
                return

    @property
    def routes(self) -> list[APIRoute]:
        """Every route of the application."""
        return [route for route in self.server.app.routes if isinstance(route, APIRoute)]

    async def get(self, path: str, status: int = 200, **options: Any) -> Any:
        """The JSON that a GET is answered with."""
        return _checked(await self.client.get(path, **options), status)

    async def post(self, path: str, body: Any = None, status: int = 200, **options: Any) -> Any:
        """The JSON that a POST of JSON is answered with; without a body, nothing but its type is sent."""
        if body is None:
            options["headers"] = {"Content-Type": "application/json", **options.get("headers", {})}
        else:
            options["json"] = body
        return _checked(await self.client.post(path, **options), status)

    async def trigger(self, workflow: str, value: Any = None, **body: Any) -> str:
        """A new run's id."""
        given = {} if value is None else {"input": value}
        made = await self.post("/v1/runs", {"workflow": workflow, **given, **body}, 201)
        return str(made["id"])

    async def until(self, run_id: str, *states: State) -> dict[str, Any]:
        """The run, once it is in one of the states."""
        async with asyncio.timeout(SOON):
            while True:
                run: dict[str, Any] = await self.get(f"/v1/runs/{run_id}")
                if run["state"] in states:
                    return run
                await asyncio.sleep(0.01)

    async def ended(self, run_id: str) -> dict[str, Any]:
        """The run's result document, once it has ended."""
        found: dict[str, Any] = await self.get(f"/v1/runs/{run_id}/result", params={"wait": SOON})
        return found


def _checked(answer: httpx.Response, status: int) -> Any:
    assert answer.status_code == status, f"{answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


@asynccontextmanager
async def api_on(
    store: str | Store, options: HttpOptions | None = None, redact: Redact | None = None
) -> AsyncGenerator[Api]:
    """A server with a worker."""
    engine = Engine(store, workflows=FLOWS)
    async with engine, await serve(engine, port=0, options=options, redact=redact) as server:
        api = Api(server, engine)
        async with api.client:
            yield api
