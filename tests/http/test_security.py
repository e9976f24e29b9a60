"""Who may do what: the matrix of routes and scopes, taken from the router, and what keeps others' web pages out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from datetime import timedelta

import httpx
import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from durable import Engine, Scope
from durable.http import HttpOptions, create_app
from durable.http import app as application
from durable.http.security import guard_of, guarded_router, open_to_all
from tests.http.flows import FLOWS
from tests.http.serving import SOON, Api, api_on

NO_RUN = "0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90"
MARK = "4111-1111"

ALLOWED = {
    Scope.READ: {Scope.READ},
    Scope.READ_PAYLOAD: {Scope.READ, Scope.READ_PAYLOAD},
    Scope.TRIGGER: {Scope.TRIGGER},
    Scope.OPERATE: {Scope.OPERATE},
    Scope.ADMIN: set(Scope),
}
OPEN = {"/health", "/ready", "/startup", "/openapi.json"}

ROUTES = [route for route in create_app(Engine("memory://")).routes if isinstance(route, APIRoute)]
MATRIX = [(method, route.path) for route in ROUTES for method in sorted(route.methods or ())]


def _path(pattern: str) -> str:
    return re.sub(r"{[^}]*}", NO_RUN, pattern)


@pytest.fixture(scope="module")
async def guarded() -> AsyncGenerator[tuple[Api, dict[str, str]]]:
    """A server with a token of each scope."""
    async with api_on("memory://") as api:
        made = [await api.engine.create_token(scope.replace(":", "-"), [scope]) for scope in Scope]
        yield api, {next(iter(one.scopes)): one.secret for one in made}


@pytest.mark.parametrize(("method", "path"), MATRIX, ids=lambda value: value)
async def test_a_route_lets_in_exactly_those_with_its_scope(
    guarded: tuple[Api, dict[str, str]], method: str, path: str
) -> None:
    api, secrets = guarded
    route = next(one for one in api.routes if one.path == path and method in (one.methods or ()))
    guard = guard_of(route)
    assert guard is not None
    needed = guard.scope
    assert (needed is None) == (path in OPEN)
    content = b"{}" if method in {"POST", "PUT"} else b""

    async def status(headers: dict[str, str]) -> int:
        async with api.client.stream(
            method, _path(path), content=content, headers={"Content-Type": "application/json", **headers}
        ) as answer:
            return answer.status_code

    outsiders = ["", "Bearer", "Bearer durable_guess", f"Basic {secrets[Scope.ADMIN]}", secrets[Scope.ADMIN]]
    for value in outsiders:
        assert await status({"Authorization": value}) == (401 if needed else 200), value
    assert await status({}) == (401 if needed else 200)
    for scope, secret in secrets.items():
        got = await status({"Authorization": f"Bearer {secret}"})
        assert (got == 403) == (needed is not None and needed not in ALLOWED[Scope(scope)]), scope
        assert got != 401
        assert got < 500


async def test_whoever_may_not_learns_nothing_of_what_the_body_lacks(guarded: tuple[Api, dict[str, str]]) -> None:
    api, secrets = guarded
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secrets[Scope.READ]}"}
    answer = await api.client.post("/v1/runs", content=b"{", headers=headers)
    assert answer.status_code == 403
    assert answer.json()["scope"] == "trigger"
    assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize(
    "router", [APIRouter(), guarded_router("new"), guarded_router("mounted")], ids=["plain", "guarded", "a mount"]
)
def test_a_route_that_names_no_scope_is_refused(
    monkeypatch: pytest.MonkeyPatch, router: APIRouter, request: pytest.FixtureRequest
) -> None:
    if "mount" in request.node.callspec.id:
        router.mount("/files", APIRouter())
    else:
        router.add_api_route("/forgotten", lambda: None)
    monkeypatch.setattr(application, "_ROUTERS", (router,))
    with pytest.raises(RuntimeError, match="without a scope"):
        create_app(Engine("memory://"))


# -- payloads -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
async def with_secrets() -> AsyncGenerator[tuple[Api, dict[str, str], str, str]]:
    """A server with runs, and a schedule, whose payloads all contain a card number; a token that sees them, and one
    that does not."""
    async with api_on("memory://") as api:
        order = {"orderId": MARK}
        done = await api.trigger("order-flow", order)
        await api.post(f"/v1/runs/{done}/signal", {"name": "approval", "payload": {"approved": 1, "note": MARK}}, 202)
        failed = await api.trigger("fails", order)
        for run_id in (done, failed):
            await api.ended(run_id)
        body = {"workflow": "echo", "every": 1e6, "input": MARK}
        assert (await api.client.put(f"/v1/schedules/{NO_RUN}", json=body)).status_code == 200
        reader = await api.engine.create_token("reader", [Scope.READ])
        seer = await api.engine.create_token("seer", [Scope.READ_PAYLOAD])
        yield api, {"read": reader.secret, "read:payload": seer.secret}, done, failed


GETS = [path for method, path in MATRIX if method == "GET" and path.startswith("/v1")]
WITH_PAYLOADS = {
    *("/v1/runs/{run_id}", "/v1/runs/{run_id}/timeline", "/v1/runs/{run_id}/result", "/v1/runs/{run_id}/events"),
    *("/v1/schedules", "/v1/schedules/{name}", "/v1/events"),
}


@pytest.mark.parametrize("path", GETS)
async def test_only_read_payload_shows_payloads(with_secrets: tuple[Api, dict[str, str], str, str], path: str) -> None:
    api, secrets, done, failed = with_secrets
    for run_id in (done, failed):
        seen = {}
        for scope, secret in secrets.items():
            async with api.other(secret) as client:
                found = path.format(run_id=run_id, name=NO_RUN)
                text = ""
                async with client.stream("GET", found, params={}) as answer:
                    assert answer.status_code == 200
                    async for line in answer.aiter_lines():
                        text += line
                        if path == "/v1/events" and line.startswith("data:"):
                            break
                seen[scope] = MARK in text
        assert seen == {"read": False, "read:payload": path in WITH_PAYLOADS}


async def test_the_type_of_an_error_is_no_payload(with_secrets: tuple[Api, dict[str, str], str, str]) -> None:
    api, secrets, _, failed = with_secrets
    async with api.other(secrets["read"]) as client:
        run = (await client.get(f"/v1/runs/{failed}")).json()
    assert run["payloads"] == "hidden"
    assert run["error"] == {"error_type": "durable.errors.StepFailed"}


async def test_the_redaction_hook_decides_what_is_shown() -> None:
    asked: list[str] = []

    def redact(what: str, value: object) -> object:
        asked.append(what)
        if what == "data":
            raise ValueError(value)
        return {"hidden": what}

    async with api_on("memory://", redact=redact) as api:
        run_id = await api.trigger("order-flow", {"orderId": MARK})
        await api.post(f"/v1/runs/{run_id}/signal", {"name": "approval", "payload": {"approved": True}}, 202)
        assert (await api.ended(run_id))["result"] == {"hidden": "result"}
        assert (await api.get(f"/v1/runs/{run_id}"))["input"] == {"hidden": "input"}
        entries = (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]
        assert [entry["data"] for entry in entries if entry["kind"] in {"received", "emitted"}] == [None, None]
        failed = await api.trigger("fails", {"orderId": MARK})
        assert (await api.ended(failed))["error"] == {"hidden": "error"}
    assert {"input", "result", "data", "error"} == set(asked)


# -- tokens ---------------------------------------------------------------------------------------


async def test_a_token_ends_when_it_is_revoked_or_expires(api: Api) -> None:
    await api.engine.create_token("root", [Scope.ADMIN])
    made = await api.engine.create_token("guest", [Scope.READ], timedelta(days=1))
    async with api.other(made.secret) as guest:
        assert (await guest.get("/v1/flows")).status_code == 200
        await api.engine.revoke_token("guest")
        while (answer := await guest.get("/v1/flows")).status_code == 200:
            pass
    assert answer.status_code == 401
    assert answer.json()["type"] == "urn:durable:problem:unauthorized"
    assert answer.headers["WWW-Authenticate"].startswith("Bearer ")


async def _refused(client: httpx.AsyncClient) -> httpx.Response:
    async with asyncio.timeout(SOON):
        while True:
            answer = await client.get("/v1/flows")
            if answer.status_code != 200:
                return answer
            await asyncio.sleep(0.05)


async def test_the_first_token_closes_the_server_to_those_without(api: Api) -> None:
    assert (await api.client.get("/v1/flows")).status_code == 200
    await api.engine.create_token("root", [Scope.ADMIN])
    assert (await _refused(api.client)).status_code == 401


async def test_a_wrong_token_is_refused_where_none_is_needed(api: Api) -> None:
    answer = await api.client.get("/v1/flows", headers={"Authorization": "Bearer durable_old"})
    assert answer.status_code == 401


async def test_who_did_it_is_the_name_of_the_token(api: Api) -> None:
    made = await api.engine.create_token("night shift", [Scope.OPERATE, Scope.READ, Scope.TRIGGER])
    async with api.other(made.secret) as client:
        body = {"workflow": "sleeps"}
        run_id = (await client.post("/v1/runs", json=body)).json()["id"]
        await client.post(f"/v1/runs/{run_id}/cancel", json={"reason": "fraud"})
        await client.get(f"/v1/runs/{run_id}/result", params={"wait": SOON})
        entries = (await client.get(f"/v1/runs/{run_id}/timeline")).json()["items"]
    [asked] = [entry["data"] for entry in entries if entry["kind"] == "cancel"]
    assert asked == {"verb": "cancel", "reason": "fraud", "by": "night shift"}


# -- from where -----------------------------------------------------------------------------------

LOCAL = ("127.0.0.1", 5000)


async def _status(
    url: str,
    headers: dict[str, str] | None = None,
    *,
    client: tuple[str, int] = LOCAL,
    options: HttpOptions | None = None,
) -> int:
    """How a GET of a route that needs a scope is answered, by an application without tokens."""
    async with Engine("memory://", workflows=FLOWS).client() as engine:
        transport = httpx.ASGITransport(create_app(engine, options=options), client=client)
        async with httpx.AsyncClient(transport=transport, base_url=url) as caller:
            return (await caller.get("/v1/flows", headers=headers)).status_code


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]", "LOCALHOST"])
async def test_this_machine_needs_no_token_while_there_is_none(name: str) -> None:
    assert await _status(f"http://{name}:8000") == 200


async def test_this_machine_needs_a_token_when_it_is_said() -> None:
    assert await _status("http://localhost:8000", options=HttpOptions(open_on_loopback=False)) == 401


async def test_others_need_a_token() -> None:
    assert await _status("http://localhost:8000", client=("192.0.2.7", 5000)) == 401
    assert await _status("http://192.0.2.1:8000") == 401
    assert await _status("http://192.0.2.1:8000", {"Host": "localhost"}, client=("192.0.2.7", 5000)) == 401


@pytest.mark.parametrize("header", ["Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP"])
async def test_what_comes_through_a_proxy_does_not_come_from_this_machine(header: str) -> None:
    assert await _status("http://localhost:8000", {header: "127.0.0.1"}) == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:80", ""]
)
async def test_a_foreign_name_of_this_machine_is_refused(host: str) -> None:
    assert await _status("http://localhost:8000", {"Host": host}) == 403


async def test_only_the_names_that_are_given_are_answered_to() -> None:
    options = HttpOptions(hosts=("ops.example.com",))
    assert await _status("http://localhost:8000", {"Host": "ops.example.com:443"}, options=options) == 200
    assert await _status("http://localhost:8000", options=options) == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://localhost:1", 403),
        ("https://ops.example.com", 201),
        ("same", 201),
    ],
)
async def test_only_known_pages_change_something(origin: str, status: int) -> None:
    async with api_on("memory://", HttpOptions(origins=("https://ops.example.com",))) as api:
        given = {"Origin": api.server.url if origin == "same" else origin}
        body = {"workflow": "echo", "input": 1}
        assert (await api.client.post("/v1/runs", json=body, headers=given)).status_code == status
        assert (await api.client.get("/v1/runs", headers=given)).status_code == 200
        assert "access-control-allow-origin" not in (await api.client.get("/v1/runs", headers=given)).headers


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_a_form_cannot_change_anything(shared: Api, kind: str) -> None:
    for path in ("/v1/runs", "/v1/runs/start", f"/v1/runs/{NO_RUN}/cancel", "/v1/runs/bulk"):
        answer = await shared.client.post(path, content=b'{"workflow": "echo"}', headers={"Content-Type": kind})
        assert answer.status_code == 415
        assert "application/json" in answer.json()["detail"]


async def test_no_answer_is_taken_for_a_page(api: Api) -> None:
    page = "<script>alert(1)</script>"
    run_id = await api.trigger("echo", page)
    await api.ended(run_id)
    for path in (f"/v1/runs/{run_id}", f"/v1/runs/{run_id}/timeline", f"/v1/runs/{page}", f"/{page}", "/health"):
        answer = await api.client.get(path)
        assert answer.headers["Content-Type"] in {"application/json", "application/problem+json"}
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert answer.headers["Cache-Control"] == "no-store"


def test_the_open_routes_are_these() -> None:
    unguarded = {route.path for route in ROUTES if (guard := guard_of(route)) is not None and guard.scope is None}
    assert unguarded == OPEN
    assert open_to_all().dependency.scope is None
