"""Postgres goes away under HTTP load, and comes back: nothing acknowledged is lost, nobody restarts anything."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import httpx
import pytest

from durable import Engine
from durable.http import Server, serve
from durable.http.outage import Outage
from durable.testing.postgres import OwnServer
from tests.http.flows import FLOWS
from tests.http.serving import SOON

CLIENTS = 8
OUTAGE = 10.0
"""Seconds for which the database is stopped."""

SLACK = 5.0
"""Seconds that a machine which others use too may add to the 5 in which a client gets its answer, whatever it is."""


class Load:
    """Clients that trigger, each one run after the other, and send again what was not acknowledged."""

    def __init__(self, server: Server) -> None:
        self._client = httpx.AsyncClient(base_url=server.url, timeout=SOON)
        self._stopping = False
        self._more = asyncio.Event()
        self.acknowledged: dict[str, str] = {}  # key → run id
        self.answers: Counter[tuple[str, int]] = Counter()
        self.problems: Counter[str] = Counter()
        self.longest = 0.0  # seconds until an answer

    async def run(self) -> None:
        async with self._client, asyncio.TaskGroup() as tasks:
            for number in range(CLIENTS):
                tasks.create_task(self._trigger(number))
            tasks.create_task(self._look())

    def stop(self) -> None:
        self._stopping = True

    async def _trigger(self, client: int) -> None:
        sent = 0
        while not self._stopping:
            key, sent = f"{client}-{sent}", sent + 1
            body = {"workflow": "echo", "input": key}
            while key not in self.acknowledged:
                answer = await self._ask("POST", "/v1/runs", json=body, headers={"Idempotency-Key": key})
                self.answers["trigger", answer.status_code] += 1
                if answer.status_code in (200, 201):
                    self.acknowledged[key] = answer.json()["id"]
                    self._more.set()
                else:
                    self._away(answer)
                await asyncio.sleep(0.02)  # the machine is not ours alone

    async def _look(self) -> None:
        while not self._stopping:
            for path in ("/health", "/ready", "/v1/runs", "/v1/workers", "/metrics"):
                answer = await self._ask("GET", path)
                self.answers[path, answer.status_code] += 1
                if answer.status_code != 200 and path != "/ready":
                    self._away(answer)
            await asyncio.sleep(0.05)

    async def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        started = time.monotonic()
        answer = await self._client.request(method, path, **options)
        self.longest = max(self.longest, time.monotonic() - started)
        return answer

    def _away(self, answer: httpx.Response) -> None:
        assert answer.status_code == 503, answer.text
        assert answer.headers["Retry-After"]
        problem: dict[str, Any] = answer.json()
        self.problems[problem["type"].removeprefix("urn:durable:problem:")] += 1

    async def until(self, more: int, running: asyncio.Task[None]) -> None:
        """Until so many more were acknowledged; what went wrong in the load is raised."""
        wanted = len(self.acknowledged) + more
        async with asyncio.timeout(SOON):
            while len(self.acknowledged) < wanted and not running.done():
                self._more.clear()
                coming = asyncio.create_task(self._more.wait())
                await asyncio.wait([running, coming], return_when=asyncio.FIRST_COMPLETED)
                coming.cancel()
        if running.done():
            running.result()


async def test_P10_a_stopped_postgres_is_503_until_it_is_back(durable_postgres: OwnServer) -> None:
    engine = Engine(durable_postgres.database("http_outage"), workflows=FLOWS)
    async with await serve(engine, port=0, worker=True) as server:
        load = Load(server)
        running = asyncio.create_task(load.run())
        try:
            await load.until(100, running)
            await asyncio.to_thread(durable_postgres.stop)
            began, before = time.monotonic(), load.answers.copy()
            await asyncio.sleep(OUTAGE)
            during = load.answers - before
            await asyncio.to_thread(durable_postgres.start)
            back = time.monotonic()
            await load.until(10 * CLIENTS, running)
            recovered = time.monotonic() - back
            load.stop()
            await running
        finally:
            running.cancel()
        assert back - began >= OUTAGE
        assert recovered < SOON
        # Meanwhile: alive, not ready, and what needs the database says so.
        assert load.longest < 5.0 + SLACK
        assert during["/health", 200] > 0
        assert during["/health", 503] == 0
        for what in ("trigger", "/ready", "/v1/runs", "/v1/workers"):
            assert during[what, 503] > 0, f"{what}: {during}"
        assert load.problems["store-unavailable"] > 0
        # Nothing that was acknowledged is lost, nothing that was sent again is there twice, and all of it is executed.
        async with asyncio.timeout(SOON):
            results = [await (await engine.handle("echo", key=key)).result() for key in load.acknowledged]
        assert results == list(load.acknowledged)
        found: dict[str, str] = {}
        cursor = None
        while True:
            page = await engine.list_runs(cursor=cursor, limit=1000)
            found |= {str(run.key): run.id for run in page.items}
            if (cursor := page.next_cursor) is None:
                break
        assert found == load.acknowledged


async def test_a_time_that_is_over_is_not_extended_before_its_request_has_noticed() -> None:
    """The last piece of a body that comes in the pass of the loop in which the time runs out: 503, not 500."""
    with pytest.raises(TimeoutError):
        async with Outage(None).within(0.0) as allowance:
            try:
                await asyncio.Event().wait()
            finally:
                allowance.extend(60.0)
