"""Schedules over HTTP: what is declared is what stands, and what makes no sense is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.http.serving import Api

DAILY = {"workflow": "echo", "cron": "0 6 * * *", "input": 1}


async def _put(api: Api, name: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    answer = await api.client.put(f"/v1/schedules/{name}", json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_what_is_declared_is_what_stands(api: Api) -> None:
    body = {
        "workflow": "order-flow",
        "version": "1.0.0",
        "every": 90.5,
        "input": {"orderId": "ORD-1"},
        "overlap": "queue",
        "max_queued": 3,
        "catch_up": "all",
        "catch_up_window": 60.0,
        "jitter": 2.0,
        "start_at": "2100-01-01T00:00:00Z",
        "end_at": "2101-01-01T00:00:00Z",
        "enabled": True,
        "tags": {"tenant": "acme"},
        "queue": "slow",
        "priority": 1,
        "limit_key": "acme",
    }
    made = await _put(api, "orders", body)
    assert {name: made[name] for name in body} == body
    assert made["next_at"] == "2100-01-01T00:00:00Z"
    assert await api.get("/v1/schedules/orders") == made


async def test_declaring_again_changes_it_and_what_is_left_out_is_the_default(api: Api) -> None:
    await _put(api, "daily", {**DAILY, "priority": 1, "tags": {"a": "b"}})
    await api.post("/v1/schedules/daily/pause", {"reason": "holidays"})
    again = await _put(api, "daily", {**DAILY, "cron": "0 7 * * *"})
    assert (again["cron"], again["priority"], again["tags"]) == ("0 7 * * *", 5, {})
    assert again["paused"] == "holidays"
    assert len((await api.get("/v1/schedules"))["items"]) == 1


async def test_P49_schedules_come_in_pages(api: Api) -> None:
    names = [f"s{n}" for n in range(5)]
    for name in names:
        await _put(api, name, DAILY)
    found: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = await api.get("/v1/schedules", params=query)
        found += [one["name"] for one in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
        query["cursor"] = cursor
    assert found == names


async def test_a_tick_that_overlaps_is_skipped_and_counted(api: Api) -> None:
    await _put(api, "naps", {"workflow": "sleeps", "cron": "0 6 * * *"})
    first = await api.post("/v1/schedules/naps/trigger", None, 201)
    assert first["id"] is not None
    assert await api.post("/v1/schedules/naps/trigger", None, 201) == {"id": None}
    assert (await api.get("/v1/schedules/naps"))["skipped"] == {"overlap": 1}


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        ({"cron": "0 6 * *"}, 422, "has 4 fields"),
        ({"cron": "0 0 30 2 *"}, 422, "never"),
        ({"cron": None}, 422, "every"),
        ({"every": 60}, 422, "every"),
        ({"cron": None, "every": 0.5}, 422, "every"),
        ({"timezone": "Mars/Olympus"}, 422, "Mars/Olympus"),
        ({"timezone": "../../etc/passwd"}, 422, "zone"),
        ({"workflow": "nope"}, 404, "'order-flow'"),
        ({"workflow": "order-flow"}, 422, "does not fit"),
        ({"overlap": "all"}, 422, "body.overlap"),
        ({"start_at": "2100-01-01"}, 422, "body.start_at"),
        ({"end_at": "2000-01-01T00:00:00Z", "start_at": "2001-01-01T00:00:00Z"}, 422, "end_at"),
        ({"jitter": 1e9}, 422, "body.jitter"),
        ({"chron": "* * * * *"}, 422, "body.chron"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
async def test_a_schedule_that_makes_no_sense_is_refused(
    shared: Api, change: dict[str, Any], status: int, said: str
) -> None:
    refused = await _put(shared, "wrong", {**DAILY, **change}, status)
    assert said in refused["detail"]
    await shared.get("/v1/schedules/wrong", 404)


async def test_a_schedule_that_does_not_exist_is_not_found(shared: Api) -> None:
    gap = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}
    for method, path, body in (
        *(("GET", "", None), ("DELETE", "", None), ("GET", "/ticks", None), ("POST", "/pause", {})),
        *(("POST", "/resume", {}), ("POST", "/trigger", {}), ("POST", "/backfill", gap)),
    ):
        content = None if body is None else json.dumps(body)
        answer = await shared.client.request(
            method, f"/v1/schedules/none{path}", content=content, headers={"Content-Type": "application/json"}
        )
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:durable:problem:schedule-not-found")


@pytest.mark.parametrize(
    "gap",
    [
        {"since": "2026-01-01T00:00:00", "until": "2026-01-02T00:00:00Z"},
        {"since": "1026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"},
        {"since": "2026-01-01T00:00:00Z"},
        {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", "overlap": "skip"},
    ],
    ids=json.dumps,
)
async def test_a_gap_that_makes_no_sense_is_refused(shared: Api, gap: dict[str, Any]) -> None:
    await _put(shared, "daily", DAILY)
    assert (await shared.post("/v1/schedules/daily/backfill", gap, 422))["detail"]
    assert (await shared.get("/v1/runs", params={"schedule": "daily"}))["items"] == []
