"""What orchestrators and monitors are told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from durable import Engine, State
from durable.http import create_app, serve
from durable.http.metrics import Metrics
from durable.reports import Census
from tests.http.flows import FLOWS
from tests.http.serving import SOON, Api

ORDER = {"orderId": "ORD-123"}
_LABELS = ("workflow", "step", "state", "outcome", "queue", "le")


def _samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and label values, in the order of ``_LABELS``."""
    return {
        (sample.name, *(sample.labels[label] for label in _LABELS if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@asynccontextmanager
async def not_started(engine: Engine) -> AsyncGenerator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(engine))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_what_has_not_started_is_alive_and_not_ready() -> None:
    async with not_started(Engine("memory://", workflows=FLOWS)) as client:
        assert (await client.get("/health")).status_code == 200
        startup = await client.get("/startup")
        assert (startup.status_code, startup.json()["checks"]) == (503, {"engine": "not connected"})
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failing")


async def test_a_probe_needs_no_token_and_tells_no_secret(api: Api) -> None:
    await api.engine.create_token("someone", ["admin"])
    for path in ("/health", "/startup", "/ready"):
        assert (await api.get(path))["status"] == "ok"
    assert (await api.client.get("/metrics")).status_code == 401


async def test_a_worker_without_its_lease_is_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "working", False)
    assert (await api.get("/ready", 503))["checks"]["worker"] == "has lost its lease"


async def test_a_schema_that_does_not_fit_is_not_ready(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, said in (((6, 7), "outdated: migrate"), ((8, 7), "newer than this code: deploy")):

        async def versions(_: Engine, found: tuple[int, int] = found) -> tuple[int, int]:
            return found

        monkeypatch.setattr(Engine, "schema_version", versions)
        assert (await api.get("/ready", 503))["checks"]["schema"] == said


# -- metrics --------------------------------------------------------------------------------------


async def test_metrics_tell_what_a_worker_does_and_what_stands() -> None:
    engine = Engine("memory://", workflows=FLOWS)
    async with await serve(engine, port=0, worker=True) as server:
        api = Api(server, engine)
        async with api.client:
            waiting = await api.trigger("order-flow", ORDER)
            await api.until(waiting, State.WAITING)
            await api.ended(await api.trigger("fails", ORDER))
            await api.ended(await api.trigger("echo", 1))
            async with asyncio.timeout(SOON):  # the hooks are told a moment after the run is
                while True:
                    found = _samples((await api.client.get("/metrics")).text)
                    if found.get(("durable_runs_ended_total", "echo", "completed")):
                        break
    assert found["durable_runs", "order-flow", "waiting"] == 1
    assert found["durable_runs_triggered_total", "fails"] == 1
    assert found["durable_runs_ended_total", "fails", "failed"] == 1
    assert found["durable_step_duration_seconds_count", "fails", "charge", "failed"] == 2
    assert found["durable_step_duration_seconds_count", "fails", "reserve", "completed"] == 1
    assert found["durable_claimed_runs_total",] == 3
    assert found["durable_claim_duration_seconds_count",] >= 1
    assert found["durable_commit_duration_seconds_count",] >= 3
    assert found["durable_commit_batch_size_sum",] >= found["durable_commit_batch_size_count",]
    assert found["durable_queue_depth", "default"] == 0


async def test_queues_tell_how_deep_and_how_old_they_are() -> None:
    engine = Engine("memory://", workflows=FLOWS)
    async with await serve(engine, port=0) as server:
        api = Api(server, engine)
        async with api.client:
            for _ in range(2):
                await api.trigger("echo", 1)
            found = _samples((await api.client.get("/metrics")).text)
    assert found["durable_queue_depth", "default"] == 2
    assert found["durable_queue_age_seconds", "default"] > 0
    assert found["durable_runs", "echo", "pending"] == 2


async def test_metrics_come_in_the_format_that_is_asked_for(api: Api) -> None:
    plain = await api.client.get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=")
    asked = await api.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert asked.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert asked.text.endswith("# EOF\n")


def test_names_that_never_end_do_not_make_series_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.http.metrics._SERIES", 10)
    metrics = Metrics(Engine("memory://"))
    for number in range(50):
        metrics.step("flow", f"charge {number}", 0.1, False)
    metrics.renewed(True)
    metrics.renewed(False)
    text, _ = metrics.shown(Census(datetime.now(UTC)))
    found = _samples(text.decode())
    counts = {key[2]: value for key, value in found.items() if key[0] == "durable_step_duration_seconds_count"}
    assert len(counts) == 11
    assert counts["(other)"] == 40
    assert (found["durable_lease_renewals_total", "renewed"], found["durable_lease_renewals_total", "failed"]) == (1, 1)


async def test_a_meter_of_the_users_own_is_left_alone() -> None:
    engine = Engine("memory://")
    mine = engine.meter = Metrics(Engine("memory://"))
    create_app(engine)
    assert engine.meter is mine
    async with engine:
        create_app(engine)  # too late to measure; the census is shown all the same


def test_a_measured_step_costs_little() -> None:
    """It is called on the event loop, once a step: 3 µs, and never 50."""
    metrics = Metrics(Engine("memory://"))
    best = 1.0
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(1000):
            metrics.step("flow", "charge", 0.1, False)
        best = min(best, (time.perf_counter() - started) / 1000)
    assert best < 50e-6
