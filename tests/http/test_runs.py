"""Runs over HTTP: the lines of the documentation, idempotency, waits, and every way of getting it wrong."""

from __future__ import annotations

import asyncio
import json
import shlex
from pathlib import Path
from typing import Any

import httpx
import pytest

from durable import Engine, State
from durable.http import serve
from tests.http.flows import FLOWS
from tests.http.serving import SOON, Api

ORDER = {"orderId": "ORD-123"}
NO_RUN = "0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90"
DOCUMENT = Path(__file__).parents[2] / "docs" / "http.md"


async def _waiting(api: Api, workflow: str = "order-flow", value: Any = ORDER) -> str:
    run_id = await api.trigger(workflow, value)
    await api.until(run_id, State.WAITING)
    return run_id


def _problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem, which has all that RFC 9457 asks for."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    found: dict[str, Any] = answer.json()
    assert found["type"] == f"urn:durable:problem:{slug}"
    assert found["status"] == status
    assert found["title"]
    assert found["detail"]
    return found


# -- the lines of the documentation ---------------------------------------------------------------


async def _curl(line: str, api: Api) -> httpx.Response:
    """What ``curl`` does with the line: a body given with -d makes a form of it, unless -H says otherwise."""
    words = shlex.split(line)
    assert words.pop(0) == "curl"
    method, headers, content, url = "GET", {"Accept": "*/*", "User-Agent": "curl/8.0"}, None, ""
    while words:
        word = words.pop(0)
        if word == "-X":
            method = words.pop(0)
        elif word == "-H":
            name, _, value = words.pop(0).partition(": ")
            headers[name] = value
        elif word == "-d":
            content = words.pop(0)
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        elif not word.startswith("-"):
            url = word
    assert url.startswith("http://127.0.0.1:8000/"), line
    return await api.client.request(method, url.removeprefix("http://127.0.0.1:8000"), headers=headers, content=content)


async def test_the_lines_of_the_documentation_work_as_they_stand(api: Api) -> None:
    text = DOCUMENT.read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("curl ")]
    assert [word for line in lines for word in ("/start", "/resume", "/timeline") if word in line]
    run_id = ""
    for line in lines:
        if "/resume" in line:
            await api.until(run_id, State.WAITING)
        answer = await _curl(line.replace("$RUN", run_id), api)
        assert answer.is_success, f"{line}\n{answer.text}"
        if "/runs/start" in line:
            run_id = answer.json()["runId"]
    assert (await api.ended(run_id))["state"] == "completed"


# -- triggering -----------------------------------------------------------------------------------


async def test_a_trigger_says_where_its_run_is(api: Api) -> None:
    answer = await api.client.post("/v1/runs", json={"workflow": "echo", "input": {"a": [1, None]}})
    assert answer.status_code == 201
    run = await api.get(answer.headers["Location"])
    assert run["id"] == answer.json()["id"]
    assert (await api.ended(run["id"]))["result"] == {"a": [1, None]}


async def test_what_a_trigger_says_of_its_run_holds(api: Api) -> None:
    body = {
        "workflow": "sleeps",
        "version": "1",
        "key": "k",
        "tags": {"tenant": "acme"},
        "priority": 1,
        "queue": "slow",
        "limit_key": "acme",
        "concurrency_key": "two",
        "concurrency_policy": "queue",
        "at": "2100-01-01T00:00:00+02:00",
    }
    run = await api.get((await api.client.post("/v1/runs", json=body)).headers["Location"])
    told = {name: value for name, value in body.items() if name not in {"at", "concurrency_policy"}}
    assert {name: run[name] for name in told} == told
    assert run["ready_at"] == "2099-12-31T22:00:00Z"


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/runs/start"])
async def test_P36_an_idempotency_key_makes_one_run_of_many_requests(api: Api, path: str) -> None:
    named = {"workflow": "echo"} if path == "/v1/runs" else {"flowId": "echo"}
    headers = {"Idempotency-Key": "ORD-1"}
    answers = await asyncio.gather(
        *(api.client.post(path, json={**named, "input": 1}, headers=headers) for _ in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    [run_id] = {answer.json().get("id") or answer.json()["runId"] for answer in answers}
    other = await api.client.post(path, json={**named, "input": 2}, headers=headers)
    assert _problem(other, 409, "key-conflict")["run_id"] == run_id


async def test_the_tenant_of_an_earlier_engine_is_a_tag(api: Api) -> None:
    made = await api.post("/v1/runs/start", {"flowId": "echo", "tenantId": "acme", "input": 1}, 201)
    found = await api.get("/v1/runs", params={"tag": "tenant=acme"})
    assert [run["id"] for run in found["items"]] == [made["runId"]]


async def test_several_triggers_become_one_run(api: Api) -> None:
    body = {"workflow": "echo", "debounce": {"key": "k", "delay": 3600}}
    first = await api.post("/v1/runs", {**body, "input": 1}, 201)
    second = await api.post("/v1/runs", {**body, "input": 2})
    assert second == {"id": first["id"], "state": "pending", "created": False}
    assert (await api.get(f"/v1/runs/{first['id']}"))["input"] == 2


async def test_an_active_run_is_named_to_the_one_that_it_keeps_out(api: Api) -> None:
    body = {"workflow": "sleeps", "concurrency_key": "one"}
    first = await api.post("/v1/runs", body, 201)
    refused = _problem(await api.client.post("/v1/runs", json=body), 409, "concurrency-conflict")
    assert refused["run_id"] == first["id"]


@pytest.mark.parametrize(
    ("body", "status", "slug", "said"),
    [
        ({"workflow": "order-flow", "input": {"orderId": 1}}, 422, "invalid-payload", "orderId"),
        ({"workflow": "order-flow", "input": {}}, 422, "invalid-payload", "orderId"),
        ({"workflow": "order-flow"}, 422, "invalid-argument", "needs an input"),
        ({"workflow": "sleeps", "input": 1}, 422, "invalid-argument", "takes no input"),
        ({"workflow": "nope"}, 404, "unknown-workflow", "'order-flow'"),
        ({"workflow": "order-flow", "version": "9", "input": ORDER}, 404, "unknown-workflow", "version '1.0.0'"),
        ({"workflow": "a/b"}, 422, "invalid-request", "reserved"),
        ({"workflow": "echo", "imput": 1}, 422, "invalid-request", "body.imput"),
        ({"workflow": "echo", "at": "2100-01-01T00:00:00"}, 422, "invalid-request", "timezone"),
        ({"workflow": "echo", "at": "9999-12-31T23:59:59-12:00"}, 422, "invalid-request", "calendar"),
        ({"workflow": "echo", "run_id": "mine", "input": 1}, 422, "invalid-argument", "UUIDv7"),
        (
            {"workflow": "echo", "key": "a", "debounce": {"key": "k", "delay": 1}, "input": 1},
            422,
            "invalid-argument",
            "key",
        ),
        ({"workflow": "echo", "concurrency_policy": "queue", "input": 1}, 422, "invalid-argument", "concurrency_key"),
        ({"workflow": "echo", "tags": {"a": "\u0000"}}, 422, "invalid-request", "U+0000"),
        ([], 422, "invalid-request", "body"),
        (None, 422, "invalid-request", "body"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict | list) else str(value),
)
async def test_a_trigger_that_does_not_fit_says_why(shared: Api, body: Any, status: int, slug: str, said: str) -> None:
    before = (await shared.get("/v1/runs", params={"limit": 1}))["items"]
    answer = await shared.client.post(
        "/v1/runs", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert said in _problem(answer, status, slug)["detail"]
    assert (await shared.get("/v1/runs", params={"limit": 1}))["items"] == before


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"{'a': 1}", b"NaN", b'{"workflow": "echo", "input": Infinity}', b"[" * 99_999),
        *(b'{"workflow": "echo", "input": "\\ud800"}', b'{"workflow": "\xff"}', b"\xef\xbb\xbf{}", b"1 2"),
    ],
    ids=lambda content: ascii(content[:40]),
)
async def test_P50_what_is_not_json_is_malformed(shared: Api, content: bytes) -> None:
    answer = await shared.client.post("/v1/runs", content=content, headers={"Content-Type": "application/json"})
    if content:
        _problem(answer, 400, "malformed-json")
    else:
        _problem(answer, 422, "invalid-request")


@pytest.mark.parametrize("value", [False, None, 0, "", [], {}, 2**70, 1e-300, "\u0000", "\U0001f600", {"payload": 1}])
async def test_P50_every_json_value_comes_back_as_it_was(shared: Api, value: Any) -> None:
    run_id = (await shared.post("/v1/runs", {"workflow": "echo", "input": value}, 201))["id"]
    result = await shared.ended(run_id)
    assert (result["state"], result["result"]) == ("completed", value)


async def test_an_input_beyond_the_limit_of_payloads_is_too_large(api: Api) -> None:
    answer = await api.client.post("/v1/runs", json={"workflow": "echo", "input": "x" * (4 * 1024 * 1024)})
    _problem(answer, 413, "payload-too-large")


# -- reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", [NO_RUN, "nope", "%00", "..", "0198c5d2-7d2c-4b1e-8a53-5d4f6c1b2a90"])
async def test_a_run_that_does_not_exist_is_not_found(shared: Api, run_id: str) -> None:
    paths = [(method, route.path) for route in shared.routes for method in route.methods or ()]
    for method, path in paths:
        if "{run_id}" in path:
            found = path.format(run_id="%2e%2e" if run_id == ".." else run_id)
            content = b'{"name": "approval"}' if path.endswith("/signal") else b"" if method == "GET" else b"{}"
            headers = {"Content-Type": "application/json"}
            answer = await shared.client.request(method, found, content=content, headers=headers)
            _problem(answer, 404, "run-not-found")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"limit": 0}, "query.limit"),
        ({"limit": 501}, "query.limit"),
        ({"state": "done"}, "query.state"),
        ({"sate": "failed"}, "query.sate"),
        ({"tag": "acme"}, "name=value"),
        ({"tag": "a=\x00"}, "U+0000"),
        ({"cursor": "x"}, "UUIDv7"),
        ({"parent": "x"}, "UUIDv7"),
        ({"created_after": "yesterday"}, "query.created_after"),
        ({"workflow": "\x00"}, "U+0000"),
    ],
    ids=str,
)
async def test_a_listing_that_makes_no_sense_is_refused(shared: Api, query: dict[str, Any], said: str) -> None:
    assert said in (await shared.get("/v1/runs", 422, params=query))["detail"]


async def test_P49_a_timeline_comes_in_pages(api: Api) -> None:
    run_id = await api.trigger("fails", ORDER)
    await api.ended(run_id)
    whole = (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]
    paged: list[Any] = []
    cursor: int | None = 0
    while cursor is not None:
        page = await api.get(f"/v1/runs/{run_id}/timeline", params={"limit": 2, "cursor": cursor})
        assert len(page["items"]) <= 2
        paged += page["items"]
        cursor = page["next_cursor"]
    assert paged == whole
    assert [entry["kind"] for entry in whole].count("retrying") == 1


async def test_a_long_poll_is_answered_when_the_run_ends(api: Api) -> None:
    run_id = await _waiting(api)
    poll = asyncio.create_task(api.ended(run_id))
    body = {"name": "approval", "payload": {"approved": True}}
    await api.post(f"/v1/runs/{run_id}/signal", body, 202)
    assert (await poll)["state"] == "completed"


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "1e9", "soon"])
async def test_a_long_poll_has_a_limit(shared: Api, wait: str) -> None:
    _problem(await shared.client.get(f"/v1/runs/{NO_RUN}/result", params={"wait": wait}), 422, "invalid-request")


# -- waits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ({"approved": True}, {"approved": True}),
        ({"payload": {"approved": True}}, {"approved": True}),
        ({"payload": 1, "note": 2}, {"payload": 1, "note": 2}),
        (*({"payload": None}, None),),
        (False, False),
        ("", ""),
        (0, 0),
    ],
    ids=json.dumps,
)
async def test_P31_resume_answers_the_one_open_wait(shared: Api, body: Any, answer: Any) -> None:
    run_id = await _waiting(shared, "two-waits", None)
    assert (await shared.post(f"/v1/runs/{run_id}/resume", body, 202)) == {"id": run_id, "signal": "answer"}
    await shared.post(f"/v1/runs/{run_id}/signal", {"name": "answer", "payload": "second"}, 202)
    assert (await shared.ended(run_id))["result"] == [answer, "second"]


async def test_the_first_answer_to_a_wait_counts(api: Api) -> None:
    run_id = await _waiting(api, "two-waits", None)
    await api.post(f"/v1/runs/{run_id}/pause", None, 202)  # nobody takes the answers meanwhile
    for answer in ("first", "second", "third"):
        await api.post(f"/v1/runs/{run_id}/resume", answer, 202)
    await api.post(f"/v1/runs/{run_id}/unpause", None, 202)
    await _second_wait(api, run_id)
    await api.post(f"/v1/runs/{run_id}/resume", "last", 202)
    assert (await api.ended(run_id))["result"] == ["first", "last"]


async def test_an_answer_that_is_sent_again_does_not_answer_the_next_wait(api: Api) -> None:
    run_id = await _waiting(api, "two-waits", None)
    for _ in range(5):  # some of them find the second wait
        headers = {"Idempotency-Key": "click"}
        await api.post(f"/v1/runs/{run_id}/resume", "first", 202, headers=headers)
    await _second_wait(api, run_id)
    await api.post(f"/v1/runs/{run_id}/resume", "first", 202, headers={"Idempotency-Key": "click"})
    await api.post(f"/v1/runs/{run_id}/resume", "last", 202)
    assert (await api.ended(run_id))["result"] == ["first", "last"]


async def _second_wait(api: Api, run_id: str) -> None:
    async with asyncio.timeout(SOON):
        while True:
            entries = (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]
            if [entry["kind"] for entry in entries].count("waiting") == 2:
                return
            await asyncio.sleep(0.01)


async def test_resume_without_an_open_wait_says_what_the_run_is_doing(api: Api) -> None:
    asleep = await api.trigger("sleeps")
    await api.until(asleep, State.SLEEPING)
    found = _problem(await api.client.post(f"/v1/runs/{asleep}/resume", json={}), 409, "no-open-wait")
    assert found["state"] == "sleeping"
    assert [(wait["kind"], wait["name"]) for wait in found["waits"]] == [("sleep", "long")]
    done = await api.trigger("echo", 1)
    await api.ended(done)
    found = _problem(await api.client.post(f"/v1/runs/{done}/resume", json={}), 409, "no-open-wait")
    assert (found["state"], found["waits"]) == ("completed", [])
    assert found["detail"].endswith("is completed and waits for nothing")


async def test_resume_with_several_open_waits_names_them(api: Api) -> None:
    run_id = await _waiting(api, "either", None)
    found = _problem(await api.client.post(f"/v1/runs/{run_id}/resume", json={}), 409, "several-open-waits")
    assert {wait["name"] for wait in found["waits"]} == {"yes", "no"}
    assert "'yes'" in found["detail"]
    await api.post(f"/v1/runs/{run_id}/signal", {"name": "no"}, 202)
    assert (await api.ended(run_id))["result"] == "no"


async def test_P33_a_signal_that_is_sent_again_is_one(api: Api) -> None:
    run_id = await _waiting(api, "two-waits", None)
    headers = {"Idempotency-Key": "s1"}
    for _ in range(3):
        await api.post(f"/v1/runs/{run_id}/signal", {"name": "answer", "payload": 1}, 202, headers=headers)
    body = {"name": "answer", "payload": 2, "signal_id": "s2"}
    await api.post(f"/v1/runs/{run_id}/signal", body, 202)
    assert (await api.ended(run_id))["result"] == [1, 2]
    await api.post(f"/v1/runs/{run_id}/signal", body, 202)
    refused = await api.client.post(f"/v1/runs/{run_id}/signal", json={"name": "answer"})
    _problem(refused, 409, "state-conflict")


@pytest.mark.parametrize("path", ["signal", "resume"])
async def test_a_payload_that_does_not_fit_its_declared_type_is_refused(shared: Api, path: str) -> None:
    run_id = await _waiting(shared)
    payload = {"approved": "perhaps"}
    body = {"name": "approval", "payload": payload} if path == "signal" else payload
    answer = await shared.client.post(f"/v1/runs/{run_id}/{path}", json=body)
    assert "approved" in _problem(answer, 422, "invalid-payload")["detail"]
    assert (await shared.get(f"/v1/runs/{run_id}"))["state"] == "waiting"


async def test_two_names_for_one_key_must_not_differ(api: Api) -> None:
    run_id = await _waiting(api)
    headers = {"Idempotency-Key": "a"}
    for path, body in (
        ("/v1/runs", {"workflow": "echo", "input": 1, "key": "b"}),
        (f"/v1/runs/{run_id}/signal", {"name": "approval", "signal_id": "b"}),
        ("/v1/runs/batch", {"workflow": "echo", "inputs": [1], "keys": ["b"]}),
    ):
        _problem(await api.client.post(path, json=body, headers=headers), 422, "invalid-request")


# -- operating ------------------------------------------------------------------------------------


async def test_what_does_not_apply_is_a_conflict(api: Api) -> None:
    done = await api.trigger("echo", 1)
    await api.ended(done)
    for verb in ("pause", "unpause", "retry"):
        found = _problem(await api.client.post(f"/v1/runs/{done}/{verb}", json={}), 409, "state-conflict")
        assert "completed" in found["detail"]
    waiting = await _waiting(api)
    _problem(await api.client.delete(f"/v1/runs/{waiting}"), 409, "state-conflict")
    both = await api.client.post(f"/v1/runs/{done}/retry", json={"from_step": "a", "compensation": True})
    _problem(both, 422, "invalid-request")


async def test_a_retry_repeats_from_a_step(api: Api) -> None:
    failed = await api.trigger("fails", ORDER)
    await api.ended(failed)
    _problem(await api.client.post(f"/v1/runs/{failed}/retry", json={"from_step": "nope"}), 404, "run-not-found")
    _problem(await api.client.post(f"/v1/runs/{failed}/retry", json={"compensation": True}), 409, "state-conflict")
    await api.post(f"/v1/runs/{failed}/retry", None, 202)
    await api.ended(failed)
    entries = (await api.get(f"/v1/runs/{failed}/timeline"))["items"]
    assert [entry["kind"] for entry in entries if entry["name"] == "reserve"] == ["started", "completed"]


async def test_a_tick_advances_a_run_where_there_is_no_worker() -> None:
    engine = Engine("memory://", workflows=FLOWS)
    async with await serve(engine, port=0) as server:
        api = Api(server, engine)
        async with api.client:
            run_id = await api.trigger("order-flow", ORDER)
            assert (await api.get(f"/v1/runs/{run_id}"))["state"] == "pending"
            ticked = await api.post(f"/v1/runs/{run_id}/tick")
            assert ticked == {"id": run_id, "state": "waiting", "changed": True}
            assert (await api.post(f"/v1/runs/{run_id}/tick"))["changed"] is False
            await api.post(f"/v1/runs/{run_id}/resume", {"approved": True}, 202)
            assert (await api.post(f"/v1/runs/{run_id}/tick"))["state"] == "completed"


# -- many -----------------------------------------------------------------------------------------


async def test_a_batch_that_is_sent_again_makes_no_more_runs(api: Api) -> None:
    body, headers = {"workflow": "echo", "inputs": [1, 2, 3]}, {"Idempotency-Key": "batch"}
    first = await api.post("/v1/runs/batch", body, 201, headers=headers)
    second = await api.post("/v1/runs/batch", body, 201, headers=headers)
    assert [one["id"] for one in first["items"]] == [one["id"] for one in second["items"]]
    assert [one["created"] for one in second["items"]] == [False] * 3


async def test_a_batch_with_one_wrong_input_makes_no_run(api: Api) -> None:
    body = {"workflow": "order-flow", "inputs": [ORDER, {}]}
    _problem(await api.client.post("/v1/runs/batch", json=body), 422, "invalid-payload")
    assert (await api.get("/v1/runs", params={"workflow": "order-flow"}))["items"] == []


async def test_a_bulk_operation_says_what_it_did_not_do(api: Api) -> None:
    done, asleep = await api.trigger("echo", 1), await api.trigger("sleeps")
    await api.ended(done)
    await api.until(asleep, State.SLEEPING)
    body = {"action": "cancel", "ids": [done, asleep, NO_RUN]}
    said = await api.post("/v1/runs/bulk", body)
    assert said["changed"] == [asleep]
    assert {one["id"]: one["why"] for one in said["unchanged"]} == {
        done: "it is completed",
        NO_RUN: f"no run has the id {NO_RUN}",
    }


async def test_a_dry_run_changes_nothing(api: Api) -> None:
    asleep = await api.trigger("sleeps")
    await api.until(asleep, State.SLEEPING)
    body = {"action": "cancel", "where": {"workflow": "sleeps"}, "dry_run": True}
    assert (await api.post("/v1/runs/bulk", body))["changed"] == [asleep]
    assert (await api.get(f"/v1/runs/{asleep}"))["state"] == "sleeping"


@pytest.mark.parametrize(
    "body",
    [
        {"action": "cancel"},
        {"action": "cancel", "where": {}},
        {"action": "cancel", "where": {"state": None}},
        {"action": "cancel", "where": {"workflow": "echo"}, "ids": [NO_RUN]},
        {"action": "cancel", "ids": ["nope"]},
        {"action": "cancel", "ids": [NO_RUN], "cursor": NO_RUN},
        {"action": "erase", "ids": [NO_RUN]},
        {"action": "cancel", "ids": []},
    ],
    ids=json.dumps,
)
async def test_a_bulk_operation_on_everything_or_nothing_is_refused(api: Api, body: dict[str, Any]) -> None:
    asleep = await api.trigger("sleeps")
    answer = await api.client.post("/v1/runs/bulk", json=body)
    assert answer.status_code == 422
    assert (await api.until(asleep, State.SLEEPING))["requested"] is None
