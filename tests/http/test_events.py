"""Event streams: what a client that loses its connection anywhere has seen in the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest

from durable import State
from durable.errors import StoreUnavailable
from durable.http import HttpOptions, sse
from durable.http.sse import Event, EventStream, Look, Streams
from tests.http.serving import SOON, Api, api_on

ORDER = {"orderId": "ORD-123"}


class Seen(NamedTuple):
    id: str
    name: str
    data: Any


class Stream:
    """A stream that is open."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()

    async def all(self) -> list[Seen]:
        """What comes until the server ends it."""
        async with asyncio.timeout(SOON):
            return [event async for event in self]

    async def until(self, kind: str) -> list[Seen]:
        """What comes until an entry of this kind."""
        seen: list[Seen] = []
        async with asyncio.timeout(SOON):
            async for event in self:
                seen.append(event)
                if event.data.get("kind") == kind:
                    return seen
        raise AssertionError(f"the stream ended before {kind!r}")

    async def __aiter__(self) -> AsyncIterator[Seen]:
        fields: dict[str, str] = {}
        async for line in self._lines:
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            if "data" in fields:
                yield Seen(fields["id"], fields.get("event", "message"), json.loads(fields["data"]))
            fields = {}


@asynccontextmanager
async def follow(client: httpx.AsyncClient, path: str, last: str | None = None) -> AsyncGenerator[Stream]:
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Stream(answer)


async def test_a_stream_goes_on_after_whatever_event_was_seen_last(api: Api) -> None:
    run_id = await api.trigger("fails", ORDER)
    await api.ended(run_id)
    path = f"/v1/runs/{run_id}/events"
    async with follow(api.client, path) as stream:
        everything = await stream.all()
    assert [event.data for event in everything[:-1]] == (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]
    assert everything[-1][1:] == ("end", {"state": "failed"})
    assert len({event.id for event in everything}) == len(everything)
    for place, event in enumerate(everything[:-1]):
        async with follow(api.client, path, event.id) as stream:
            assert await stream.all() == everything[place + 1 :]
    again = await api.client.get(path, headers={"Last-Event-ID": everything[-1].id})
    assert (again.status_code, again.content) == (204, b"")  # with which browsers stop to come again


async def test_a_stream_follows_a_run_to_its_end(api: Api) -> None:
    run_id = await api.trigger("order-flow", ORDER)
    async with follow(api.client, f"/v1/runs/{run_id}/events") as stream:
        before = await stream.until("waiting")
        await api.post(f"/v1/runs/{run_id}/resume", {"approved": True}, 202)
        after = await stream.all()
    assert [event.data["kind"] for event in before] == ["triggered", "running", "waiting"]
    assert [event.data.get("kind") for event in after] == [
        *("received", "started", "completed", "emitted", "completed"),
        None,
    ]
    assert after[-1].data == {"state": "completed"}


async def test_a_run_that_is_retried_goes_on_after_its_end(api: Api) -> None:
    run_id = await api.trigger("fails", ORDER)
    path = f"/v1/runs/{run_id}/events"
    async with follow(api.client, path) as stream:
        [*_, end] = await stream.all()
    await api.post(f"/v1/runs/{run_id}/retry", {"reason": "again"}, 202)
    await api.ended(run_id)
    async with follow(api.client, path, end.id) as stream:
        [first, *_, last] = await stream.all()
    assert (first.data["kind"], last.data) == ("retry", {"state": "failed"})


async def test_a_stream_that_ends_after_its_time_is_taken_up_without_loss() -> None:
    async with api_on("memory://", HttpOptions(stream_timeout=0.0)) as api:
        run_id = await api.trigger("order-flow", ORDER)
        await api.until(run_id, State.WAITING)
        await api.post(f"/v1/runs/{run_id}/resume", {"approved": True}, 202)
        seen: list[Seen] = []
        async with asyncio.timeout(SOON):
            while not seen or seen[-1].name != "end":
                async with follow(api.client, f"/v1/runs/{run_id}/events", seen[-1].id if seen else None) as stream:
                    seen += await stream.all()
        assert [event.data for event in seen[:-1]] == (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]


async def test_the_log_goes_on_after_whatever_event_was_seen_last(api: Api) -> None:
    for number in range(3):
        run_id = await api.trigger("order-flow", {"orderId": str(number)})
        await api.post(f"/v1/runs/{run_id}/signal", {"name": "approval", "payload": {"approved": True}}, 202)
        await api.ended(run_id)
    async with follow(api.client, "/v1/events") as stream:
        seen = [await anext(events) for events in [aiter(stream)] for _ in range(3)]
    assert [event.data["data"] for event in seen] == [{"receipt": f"charged {number}"} for number in range(3)]
    assert all(event.data["key"] == "charged" for event in seen)
    for place, event in enumerate(seen[:-1]):
        async with follow(api.client, "/v1/events", event.id) as stream:
            assert await anext(aiter(stream)) == seen[place + 1]
        async with follow(api.client, f"/v1/events?after={event.id}") as stream:
            assert await anext(aiter(stream)) == seen[place + 1]


async def test_payloads_are_shown_to_those_who_may_see_them(api: Api) -> None:
    run_id = await api.trigger("fails", ORDER)
    await api.ended(run_id)
    emitting = await api.trigger("order-flow", ORDER)
    await api.post(f"/v1/runs/{emitting}/signal", {"name": "approval", "payload": {"approved": True}}, 202)
    await api.ended(emitting)
    secrets = {scope: (await api.engine.create_token(scope, [scope])).secret for scope in ("read", "read:payload")}
    texts: dict[str, str] = {}
    for scope, secret in secrets.items():
        async with api.other(secret) as client:
            async with follow(client, f"/v1/runs/{run_id}/events") as stream:
                texts[scope] = repr(await stream.all())
            async with follow(client, "/v1/events") as stream:
                texts[scope] += repr(await anext(aiter(stream)))
    assert "ORD-123" not in texts["read"]
    assert "charged ORD-123" in texts["read:payload"]
    assert "no money for ORD-123" in texts["read:payload"]


@pytest.mark.parametrize(
    ("path", "last", "status", "slug"),
    [
        ("/v1/runs/0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90/events", None, 404, "run-not-found"),
        ("/v1/runs/x/events", None, 404, "run-not-found"),
        ("/v1/runs/{run}/events", "x", 422, "invalid-request"),
        ("/v1/runs/{run}/events", "-1.0", 422, "invalid-request"),
        ("/v1/runs/{run}/events", "1" * 99 + ".1", 422, "invalid-request"),
        ("/v1/runs/{run}/events", "1" * 300, 422, "invalid-request"),
        ("/v1/events", "x", 422, "invalid-argument"),
    ],
)
async def test_what_cannot_be_followed_is_a_problem(
    api: Api, path: str, last: str | None, status: int, slug: str
) -> None:
    run_id = await api.trigger("sleeps")
    headers = {} if last is None else {"Last-Event-ID": last}
    answer = await api.client.get(path.format(run=run_id), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (status, f"urn:durable:problem:{slug}"), answer.text


async def test_streams_that_are_too_many_are_refused_until_one_is_closed() -> None:
    async with api_on("memory://", HttpOptions(max_streams=1)) as api:
        run_id = await api.trigger("sleeps")
        path = f"/v1/runs/{run_id}/events"
        async with follow(api.client, path) as stream:
            await stream.until("sleeping")
            refused = await api.client.get("/v1/events")
            assert (refused.status_code, refused.json()["type"]) == (429, "urn:durable:problem:too-many-streams")
            assert refused.headers["Retry-After"]
        async with asyncio.timeout(SOON):  # the server hears of it a moment later
            while True:
                async with api.client.stream("GET", path) as answer:
                    if answer.status_code == 200:
                        return


async def test_streams_end_when_the_server_stops() -> None:
    async with api_on("memory://") as api:
        run_id = await api.trigger("sleeps")
        async with follow(api.client, f"/v1/runs/{run_id}/events") as stream:
            await stream.until("sleeping")
            async with asyncio.timeout(4):  # a second less than requests are waited for
                stopping = asyncio.create_task(api.server.stop())
                assert await stream.all() == []
                await stopping


async def test_a_run_that_is_deleted_ends_its_stream(api: Api) -> None:
    run_id = await api.trigger("order-flow", ORDER)
    async with follow(api.client, f"/v1/runs/{run_id}/events") as stream:
        await stream.until("waiting")
        await api.engine.cancel(run_id)
        await api.ended(run_id)
        await api.engine.delete(run_id)
        await stream.all()  # ends: with what the last look found, or with nothing


# -- what no real server does on demand -----------------------------------------------------------


async def test_a_stream_that_has_nothing_to_say_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_KEEP_ALIVE", 0.0)
    looks = [Look(()), Look((), over=True)]

    async def source() -> Look:
        return looks.pop(0)

    text = await _text(EventStream(Streams(HttpOptions()), Look(()), source))
    assert text == ": durable\nretry: 1000\n\n" + ": still here\n\n" * 2


async def test_a_stream_outlives_an_outage() -> None:
    looks: list[Look | Exception] = [StoreUnavailable("away"), Look([Event("2", "there again")], over=True)]

    async def source() -> Look:
        look = looks.pop(0)
        if isinstance(look, Exception):
            raise look
        return look

    text = await _text(EventStream(Streams(HttpOptions()), Look([Event("1", "one\r\ntwo")]), source))
    assert text == ': durable\nretry: 1000\n\ndata: "one\\r\\ntwo"\nid: 1\n\ndata: "there again"\nid: 2\n\n'


async def _text(stream: EventStream) -> str:
    return b"".join([bytes(part) async for part in stream.body_iterator if not isinstance(part, str)]).decode()
