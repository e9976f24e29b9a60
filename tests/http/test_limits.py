"""What is too large, too deep, too slow, too long or too much is answered as such, and harms nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from durable.http import HttpOptions
from durable.http.limits import LimitsMiddleware, too_deep
from tests.http.raw import Answer, connection
from tests.http.serving import SOON, Api, api_on

MB = 1024 * 1024
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def impatient() -> AsyncGenerator[Api]:
    """A server that waits for a request no longer than a quarter of a second."""
    async with api_on("memory://", HttpOptions(body_timeout=0.25)) as api:
        yield api


def _problem(answer: httpx.Response | Answer, status: int, slug: str) -> dict[str, Any]:
    """The problem that an answer of httpx or of a raw connection has."""
    seen = answer.status_code if isinstance(answer, httpx.Response) else answer.status
    body: dict[str, Any] = json.loads(answer.content if isinstance(answer, httpx.Response) else answer.body)
    assert (seen, body["type"]) == (status, f"urn:durable:problem:{slug}"), body
    assert answer.headers["content-type"] == "application/problem+json"
    return body


# -- size -----------------------------------------------------------------------------------------


async def test_a_body_of_100_MB_is_refused_before_it_is_sent(api: Api) -> None:
    async with connection(api.server) as raw:
        await raw.post(100 * MB)
        _problem(await raw.answer(), 413, "body-too-large")


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
async def test_a_client_that_sends_100_MB_all_the_same_reads_the_answer(api: Api, announced: bool) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * MB

    headers = JSON | ({"Content-Length": str(100 * MB)} if announced else {})
    _problem(await api.client.post("/v1/runs", content=body(), headers=headers), 413, "body-too-large")
    assert (await api.get("/health"))["status"] == "ok"


async def test_a_body_of_the_largest_size_is_read(api: Api) -> None:
    most = HttpOptions().max_body
    body = b'{"flowId":"echo","input":1}'
    answer = await api.client.post("/v1/runs/start", content=body + b" " * (most - len(body)), headers=JSON)
    assert answer.status_code == 201
    answer = await api.client.post("/v1/runs/start", content=body + b" " * (most - len(body) + 1), headers=JSON)
    _problem(answer, 413, "body-too-large")


async def test_bodies_that_are_too_large_together_are_refused() -> None:
    """Not one of them is too large; all of them are held in memory at the same time."""
    options, reached, going_on = HttpOptions(max_body=1000), asyncio.Semaphore(0), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        reached.release()
        await going_on.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    async with _client_of(app, options) as client:
        tasks = [asyncio.create_task(client.post("/", content=b" " * 1000)) for _ in range(8)]
        for _ in tasks:
            await reached.acquire()
        refused = await client.post("/", content=b" ")
        _problem(refused, 429, "too-many-requests")
        assert refused.headers["Retry-After"] == "1"
        going_on.set()
        assert {answer.status_code for answer in await asyncio.gather(*tasks)} == {200}
        assert (await client.post("/", content=b" " * 1000)).status_code == 200


async def test_headers_that_are_too_large_are_refused(api: Api) -> None:
    many = {f"x-{number}": "a" * 100 for number in range(200)}
    _problem(await api.client.get("/health", headers=many), 431, "headers-too-large")
    _problem(await api.client.get("/health", headers={"x": "a" * 20_000}), 431, "headers-too-large")
    _problem(await api.client.get("/health", headers={"x": "a" * 200_000}), 400, "malformed-request")


async def test_endless_headers_are_cut_off(api: Api) -> None:
    async with connection(api.server) as raw:
        await raw.send(b"GET /health HTTP/1.1\r\n" + b"x: y\r\n" * 20_000)
        _problem(await raw.answer(), 400, "malformed-request")
        assert await raw.rest() == b""


async def test_a_target_that_is_too_long_is_refused(api: Api) -> None:
    _problem(await api.client.get("/health", params={"x": "a" * 9000}), 414, "target-too-long")
    _problem(await api.client.get("/" + "a" * 9000), 414, "target-too-long")


async def test_what_is_not_http_is_answered_in_http(api: Api) -> None:
    async with connection(api.server) as raw:
        await raw.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")  # as a client of TLS begins
        _problem(await raw.answer(), 400, "malformed-request")


# -- content --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"flowId":"echo","input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["open", "lists", "objects", "input"],
)
async def test_json_that_is_nested_100_000_deep_is_refused(api: Api, body: bytes) -> None:
    problem = _problem(await api.client.post("/v1/runs/start", content=body, headers=JSON), 400, "malformed-json")
    assert "levels deep" in problem["detail"]


@pytest.mark.parametrize(
    "body",
    [b"\xff\xfe", b'{"flowId":"\xc3\x28"}', b'{"flowId":"\xed\xa0\x80"}', '{"flowId":"echo"}'.encode("utf-16")],
    ids=["bytes", "sequence", "surrogate", "utf-16"],
)
async def test_a_body_that_is_not_utf_8_is_refused(api: Api, body: bytes) -> None:
    problem = _problem(await api.client.post("/v1/runs/start", content=body, headers=JSON), 400, "malformed-json")
    assert "UTF-8" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        (b"[[[]]]", False),
        (b"[[[[]]]]", True),
        (b"[[[]],[[]],[[]],{}]", False),
        (b'"[[[[[["', False),
        (rb'"\"[[[[[["', False),
        (rb'["\\",[[[]]]]', True),
        (b'["', False),
        (b'"[[[[', False),
        (b"]]]]]][[[[", False),
        (b'[{"a":[{"b":1}]}]', True),
    ],
)
def test_only_brackets_outside_of_texts_nest(body: bytes, deep: bool) -> None:
    assert too_deep(body, 3) is deep


# -- time -----------------------------------------------------------------------------------------


async def test_a_head_that_does_not_come_is_not_waited_for(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        await raw.send(b"GET /health HTT")
        _problem(await raw.answer(), 408, "too-slow")
        assert await raw.rest() == b""


async def test_a_head_that_drips_in_is_not_waited_for(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        await raw.send(b"GET /")
        ending = asyncio.create_task(raw.rest())
        try:
            while not ending.done():
                await raw.send(b"x")
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        assert (await ending)[:12] in {b"HTTP/1.1 408", b""}  # an answer may be lost to who goes on sending


async def test_a_connection_that_says_nothing_is_closed(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        assert await raw.rest() == b""


async def test_a_second_head_on_a_connection_has_its_own_time(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        for _ in range(2):
            await raw.send(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert (await raw.answer()).status == 200
        await raw.send(b"GET /health HTTP/1.1\r\n")
        _problem(await raw.answer(), 408, "too-slow")


async def test_a_body_that_does_not_come_is_not_waited_for(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        await raw.post(100)
        await raw.send(b'{"flowId"')
        answer = await raw.answer()
        _problem(answer, 408, "body-too-slow")
        assert answer.headers["connection"] == "close"
        assert await raw.rest() == b""


async def test_a_body_that_nobody_reads_does_not_keep_the_connection(impatient: Api) -> None:
    async with connection(impatient.server) as raw:
        await raw.post(100 * MB)
        _problem(await raw.answer(), 413, "body-too-large")
        ending = asyncio.create_task(raw.rest())
        try:
            while not ending.done():
                await raw.send(b" ")
                await asyncio.sleep(0.01)
        except ConnectionError:
            pass
        assert await ending == b""


async def test_who_may_not_ask_is_told_before_the_body_is_read(api: Api) -> None:
    await api.engine.create_token("someone", ["read"])
    async with connection(api.server) as raw:
        await raw.post(100)
        _problem(await raw.answer(), 401, "unauthorized")


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    ended = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with _client_of(app, HttpOptions(request_timeout=0.05)) as client:
        answer = await client.get("/")
        problem = _problem(answer, 503, "timeout")
        assert "unknown" in problem["detail"]
        assert answer.headers["Retry-After"] == "1"
        assert ended.is_set()


async def test_a_long_poll_outlasts_the_time_of_other_requests() -> None:
    async with api_on("memory://", HttpOptions(request_timeout=0.2)) as api:
        run_id = await api.trigger("sleeps")
        assert (await api.get(f"/v1/runs/{run_id}/result", 202, params={"wait": 0.6}))["state"] == "sleeping"


# -- number ---------------------------------------------------------------------------------------


async def test_requests_that_are_too_many_are_refused() -> None:
    reached, going_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.set()
        await going_on.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    async with _client_of(app, HttpOptions(max_requests=1)) as client:
        first = asyncio.create_task(client.get("/"))
        await reached.wait()
        refused = await client.get("/")
        _problem(refused, 429, "too-many-requests")
        assert refused.headers["Retry-After"] == "1"
        going_on.set()
        assert (await first).status_code == 200
        assert (await client.get("/")).status_code == 200


def _client_of(app: Callable[..., Any], options: HttpOptions) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(LimitsMiddleware(app, options))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=SOON)


async def test_a_page_is_limited(api: Api) -> None:
    answer = await api.client.get("/v1/runs", params={"limit": 100_000})
    assert answer.status_code == 422, answer.text
    assert "limit" in json.dumps(answer.json())
