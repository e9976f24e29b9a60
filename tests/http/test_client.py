"""A client that has nothing but an HTTP library drives every route, on every store."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from durable import State
from tests.http.serving import Api, api_on

ORDER = {"orderId": "ORD-123"}


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Api]:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/durable.db"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    async with api_on(url) as made:
        yield made


async def test_a_client_drives_every_route(anywhere: Api) -> None:
    api = anywhere
    await _look_around(api)
    await _one_order(api)
    await _operations(api)
    await _many(api)
    await _schedules(api)
    await _streams(api)
    assert {(method, route.path) for route in api.routes for method in route.methods or ()} == api.called


async def _look_around(api: Api) -> None:
    assert (await api.get("/health"))["status"] == "ok"
    assert (await api.get("/startup"))["status"] == "ok"
    assert (await api.get("/ready"))["status"] == "ok"
    assert (await api.client.get("/metrics")).status_code == 200
    assert (await api.get("/openapi.json"))["openapi"].startswith("3.")
    flows = {flow["name"]: flow for flow in (await api.get("/v1/flows"))["items"]}
    assert flows["order-flow"]["input"]["required"] == ["orderId"]
    assert flows["order-flow"]["output"] == {"type": "object", "additionalProperties": {"type": "string"}}
    assert set(flows["order-flow"]["signals"]) == {"approval"}
    assert flows["echo"]["input"] == {}
    [worker] = [one for one in (await api.get("/v1/workers"))["items"] if one["alive"]]
    assert worker["id"]


async def _one_order(api: Api) -> None:
    started = await api.post("/v1/runs/start", {"flowId": "order-flow", "version": "1.0.0", "input": ORDER}, 201)
    assert set(started) == {"runId", "status"}
    run_id = started["runId"]
    run = await api.until(run_id, State.WAITING)
    assert run["input"] == ORDER
    census = await api.get("/v1/census")
    assert {"workflow": "order-flow", "state": "waiting", "count": 1} in census["runs"]
    assert (await api.get(f"/v1/runs/{run_id}/result", 202, params={"wait": 0.05}))["state"] == "waiting"
    await api.post(f"/v1/runs/{run_id}/resume", {"approved": True, "note": "fine"}, 202)
    result = await api.ended(run_id)
    assert (result["state"], result["result"]) == ("completed", {"receipt": "charged ORD-123", "note": "fine"})
    kinds = [entry["kind"] for entry in (await api.get(f"/v1/runs/{run_id}/timeline"))["items"]]
    assert kinds == [
        *("triggered", "running", "waiting", "received", "started", "completed", "emitted", "completed"),
    ]


async def _operations(api: Api) -> None:
    run_id = await api.trigger("order-flow", ORDER)
    await api.until(run_id, State.WAITING)
    assert (await api.post(f"/v1/runs/{run_id}/pause", {"reason": "audit"}, 202))["state"] == "paused"
    assert (await api.get(f"/v1/runs/{run_id}"))["reason"] == "audit"
    await api.post(f"/v1/runs/{run_id}/unpause", None, 202)
    await api.post(f"/v1/runs/{run_id}/signal", {"name": "approval", "payload": {"approved": False}}, 202)
    assert (await api.ended(run_id))["state"] == "completed"
    assert (await api.post(f"/v1/runs/{run_id}/cancel", {}, 202))["changed"] is False
    assert (await api.post(f"/v1/runs/{run_id}/tick"))["state"] == "completed"
    assert (await api.client.delete(f"/v1/runs/{run_id}")).status_code == 204
    await api.get(f"/v1/runs/{run_id}", 404)

    failed = await api.trigger("fails", ORDER)
    assert (await api.ended(failed))["error"]["message"].endswith("no money for ORD-123")
    await api.post(f"/v1/runs/{failed}/retry", {"from_step": "reserve", "reason": "again"}, 202)
    assert (await api.ended(failed))["state"] == "failed"


async def _many(api: Api) -> None:
    batch = {"workflow": "sleeps", "inputs": [None, None, None], "tags": {"batch": "b 1"}}
    made = [one["id"] for one in (await api.post("/v1/runs/batch", batch, 201))["items"]]
    listed: list[str] = []
    query: dict[str, Any] = {"tag": "batch=b 1", "limit": 2}
    while True:
        page = await api.get("/v1/runs", params=query)
        listed += [run["id"] for run in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
        query["cursor"] = cursor
    assert listed == made[::-1]
    bulk: dict[str, Any] = {"action": "cancel", "where": {"tags": {"batch": "b 1"}}, "limit": 2}
    assert len((await api.post("/v1/runs/bulk", {**bulk, "dry_run": True}))["changed"]) == 2
    first = await api.post("/v1/runs/bulk", bulk)
    second = await api.post("/v1/runs/bulk", {**bulk, "cursor": first["next_cursor"]})
    assert [*first["changed"], *second["changed"]] == listed
    assert second["next_cursor"] is None
    for run_id in made:
        assert (await api.ended(run_id))["state"] == "cancelled"


async def _schedules(api: Api) -> None:
    body = {"workflow": "echo", "cron": "0 6 * * mon", "timezone": "Europe/Paris", "input": {"kind": "weekly"}}
    made = (await api.client.put("/v1/schedules/weekly report", json=body)).json()
    assert (made["cron"], made["input"], made["fired"]) == ("0 6 * * mon", {"kind": "weekly"}, 0)
    assert (await api.get("/v1/schedules/weekly report")) == made
    assert [one["name"] for one in (await api.get("/v1/schedules"))["items"]] == ["weekly report"]
    assert (await api.post("/v1/schedules/weekly report/pause", {"reason": "holidays"}))["paused"] == "holidays"
    assert (await api.post("/v1/schedules/weekly report/resume"))["paused"] is None
    assert len((await api.get("/v1/schedules/weekly report/ticks", params={"n": 3}))["items"]) == 3
    fired = await api.post("/v1/schedules/weekly report/trigger", None, 201)
    assert (await api.ended(fired["id"]))["result"] == {"kind": "weekly"}
    gap = {"since": "2026-02-01T00:00:00Z", "until": "2026-02-15T00:00:00+01:00"}
    filled = await api.post("/v1/schedules/weekly report/backfill", gap, 201)
    assert len(filled["ids"]) == 2
    for run_id in filled["ids"]:
        assert (await api.ended(run_id))["state"] == "completed"
    listed = await api.get("/v1/runs", params={"schedule": "weekly report"})
    assert len(listed["items"]) == 3
    assert (await api.client.delete("/v1/schedules/weekly report")).status_code == 204
    await api.get("/v1/schedules/weekly report", 404)


async def _streams(api: Api) -> None:
    run_id = await api.trigger("echo", "hello")
    async with api.client.stream("GET", f"/v1/runs/{run_id}/events") as answer:
        data = [json.loads(line.partition(":")[2]) async for line in answer.aiter_lines() if line.startswith("data:")]
    assert data[-1] == {"state": "completed"}
    async with api.client.stream("GET", "/v1/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data:"):
                assert json.loads(line.partition(":")[2])["data"] == {"receipt": "charged ORD-123"}
                break
