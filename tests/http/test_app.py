"""The application itself: its place in another one, its lifetime, its document, and the problems of all routes."""

from __future__ import annotations

import inspect
import re
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import durable.http
from durable import Engine, StoreUnavailable, errors
from durable.http import create_app, problems, schedule_schemas, schemas
from durable.http.problems import problem_of
from durable.http.security import guard_of
from tests.http.flows import FLOWS
from tests.http.serving import Api, api_on

ROOT = Path(__file__).parents[2]

# -- in another application -----------------------------------------------------------------------


def _client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


async def test_it_can_be_mounted_in_the_users_own_application() -> None:
    engine = Engine("memory://", workflows=FLOWS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        async with engine:
            yield

    host = FastAPI(lifespan=lifespan)
    host.mount("/workflows", create_app(engine))
    async with host.router.lifespan_context(host), _client(host) as client:
        made = await client.post("/workflows/v1/runs", json={"workflow": "echo", "input": 7})
        assert made.headers["Location"] == f"/workflows/v1/runs/{made.json()['id']}"
        result = await client.get(f"{made.headers['Location']}/result", params={"wait": 20})
        assert result.json()["result"] == 7
        document = (await client.get("/workflows/openapi.json")).json()
        assert document["servers"] == [{"url": "/workflows"}]
        wrong = await client.put("/workflows/v1/runs", json={})
        assert wrong.headers["Allow"] == "GET, POST"
        assert (await client.get("/v1/runs")).status_code == 404


async def test_served_on_its_own_it_connects_the_engine() -> None:
    engine = Engine("memory://", workflows=FLOWS)
    app = create_app(engine)
    async with _client(app) as client:
        before = await client.get("/v1/flows")
        assert (before.status_code, before.json()["type"]) == (503, "urn:durable:problem:not-ready")
        async with app.router.lifespan_context(app):
            assert engine.connected
            assert (await client.post("/v1/runs", json={"workflow": "echo", "input": 7})).status_code == 201
        assert not engine.connected


async def test_an_engine_that_runs_stays_as_it_is() -> None:
    engine = Engine("memory://", workflows=FLOWS)
    app = create_app(engine)
    async with engine:
        async with app.router.lifespan_context(app):
            pass
        assert engine.connected


async def test_two_applications_do_not_share_anything() -> None:
    async with Engine("memory://").client() as one, Engine("memory://", workflows=FLOWS).client() as other:
        for engine, flows in ((one, 0), (other, len(FLOWS))):
            async with _client(create_app(engine)) as client:
                assert len((await client.get("/v1/flows")).json()["items"]) == flows


async def test_an_answer_is_not_kept_back_for_the_clients_acknowledgement(api: Api) -> None:
    [listening] = [listener for server in api.server._uvicorn.servers for listener in server.sockets]
    assert listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)  # connections inherit it


def _python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_its_extra_it_says_what_to_install(package: str) -> None:
    done = _python(f"import sys; sys.modules[{package!r}] = None; import durable; import durable.http")
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: durable.http needs its extra: pip install 'durable[http]'"
    )


def test_the_library_itself_does_not_import_it() -> None:
    done = _python("import sys, durable.engine; print(*sys.modules)")
    assert {"fastapi", "starlette", "uvicorn", "prometheus_client", "durable.http"} & {*done.stdout.split()} == set()


def test_what_is_public_is_this() -> None:
    assert set(durable.http.__all__) == {"HttpOptions", "Redact", "Server", "create_app", "serve"}
    for name in set(durable.http.__all__) - {"Redact"}:
        assert inspect.getdoc(getattr(durable.http, name)), name


# -- problems -------------------------------------------------------------------------------------


async def test_what_does_not_exist_is_a_problem_too(api: Api) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/runs/", 404), ("PATCH", "/v1/runs", 405)):
        answer = await api.client.request(method, path)
        assert (answer.status_code, answer.headers["Content-Type"]) == (status, "application/problem+json")
        assert path in answer.json()["detail"]


CALLERS: set[Any] = {  # those that a call of the engine raises; others stand in histories, or are raised by users
    *(errors.StoreUnavailable, errors.SchemaOutdated, errors.SchemaTooNew, errors.ConfigurationError),
    *(errors.InvalidArgument, errors.UnknownWorkflow, errors.RunNotFound, errors.ScheduleNotFound),
    *(errors.KeyConflict, errors.ConcurrencyConflict, errors.RunFinished),
    *(errors.PayloadError, errors.NotSerializable, errors.ResultTypeUnknown, errors.PayloadTooLarge),
}


def _name(error: Any) -> str:
    return str(error.__name__)


@pytest.mark.parametrize("error", sorted(CALLERS, key=_name), ids=_name)
def test_every_error_of_a_call_is_a_problem_of_its_own(error: Any) -> None:
    made = error("no", run_id="r") if error in {errors.KeyConflict, errors.ConcurrencyConflict} else error("no")
    answer = problem_of(made)
    assert 400 <= answer.status_code < 600
    assert answer.status_code != 500
    assert b'"detail":"no"' in bytes(answer.body)


def test_P55_a_problem_shows_no_password() -> None:
    answer = problem_of(StoreUnavailable("cannot reach postgresql://app:hunter2@db/app"))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert b"hunter2" not in bytes(answer.body)


async def test_an_error_of_ours_is_logged_and_not_told(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(api.engine, "workers", broken)
    answer = await api.client.get("/v1/workers")
    assert (answer.status_code, answer.json()["type"]) == (500, "urn:durable:problem:internal")
    assert "hunter2" not in answer.text
    assert [record for record in caplog.records if record.name == "durable.http" and record.exc_info]


# -- the document ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Engine("memory://")).openapi()
    return found


def _operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, operations in document["paths"].items()
        for method, operation in operations.items()
    }


def test_every_operation_says_what_it_does_and_what_it_needs(document: dict[str, Any]) -> None:
    app = create_app(Engine("memory://"))
    scopes = {
        f"{method} {route.path}": guard.scope  # type: ignore[attr-defined]
        for route in app.routes
        for method in route.methods  # type: ignore[attr-defined]
        if (guard := guard_of(route)) is not None and route.path != "/openapi.json"  # type: ignore[attr-defined]
    }
    operations = _operations(document)
    assert {name: operation.get("x-scope") for name, operation in operations.items()} == scopes
    for name, operation in operations.items():
        assert operation["summary"], name
        assert operation["description"], name
        assert operation["operationId"], name
        assert bool(operation["security"]) == (scopes[name] is not None), name


def test_every_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for name, operation in _operations(document).items():
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and not (status == "503" and "/v1" not in name):
                assert list(answer["content"]) == ["application/problem+json"], f"{name} {status}"
    for name in ("POST /v1/runs", "POST /v1/runs/{run_id}/resume"):
        statuses = set(_operations(document)[name]["responses"])
        assert {"400", "401", "403", "404", "409", "413", "415", "422", "429", "503"} <= statuses


def test_every_body_has_an_example_that_its_schema_accepts(document: dict[str, Any]) -> None:
    names = {
        content["schema"]["$ref"].rpartition("/")[2]
        for operation in _operations(document).values()
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in content["schema"]
    }
    assert "TriggerBody" in names
    for name in names:
        model = getattr(schemas, name, None) or getattr(schedule_schemas, name)
        examples = document["components"]["schemas"][name]["examples"]
        for example in examples:
            model.model_validate(example)


async def test_the_document_is_served(document: dict[str, Any]) -> None:
    async with api_on("memory://") as api:
        served = await api.get("/openapi.json")
    assert served["paths"] == document["paths"]
    assert served["info"]["title"] == "durable"


def test_the_documentation_names_every_request_and_its_scope() -> None:
    page = (ROOT / "docs" / "http.md").read_text()
    table = page.partition("<!-- routes -->")[2].partition("<!-- end -->")[0]
    documented = re.findall(r"^\| `(\w+ [^`]+)` \| (?:`([\w:]+)`|–) \|", table, re.MULTILINE)
    app = create_app(Engine("memory://"))
    known: list[tuple[str, str]] = []
    for route in app.routes:
        guard = guard_of(route)
        assert guard is not None
        known += [(f"{method} {route.path}", guard.scope or "") for method in route.methods]  # type: ignore[attr-defined]
    assert documented == known


def test_the_documentation_names_every_problem() -> None:
    page = (ROOT / "docs" / "http.md").read_text().partition("## Problems")[2].partition("## Who")[0]
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)+|unauthorized|timeout|stopping)`", page)) - {"too-slow"}
    package = Path(problems.__file__).parent
    text = "".join(path.read_text() for path in package.rglob("*.py"))
    raised = set(re.findall(r"""(?:Problem|problem|_last_words)\(\s*\d{3}, "([a-z-]+)\"""", text))
    raised |= {slug for _, _, slug in problems._STATUS}
    assert raised - {"internal", "too-slow"} <= documented
