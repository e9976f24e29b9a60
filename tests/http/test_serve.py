"""``serve``: a handle that can be stopped, and addresses that it refuses."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from durable import ConfigurationError, Engine
from durable.http import HttpOptions, serve
from durable.http import server as serving
from tests.http.flows import FLOWS
from tests.http.raw import connection
from tests.http.serving import SOON, Api


def _engine() -> Engine:
    return Engine("memory://", workflows=FLOWS)


async def test_a_server_runs_until_it_is_stopped() -> None:
    engine = _engine()
    server = await serve(engine, port=0)
    assert engine.connected
    assert engine.working is None  # a client: nothing executes here
    async with httpx.AsyncClient(base_url=server.url, timeout=SOON) as client:
        assert server.url == f"http://127.0.0.1:{server.port}"
        assert (await client.get("/ready")).json()["status"] == "ok"
        waiting = asyncio.create_task(server.wait())
        await server.stop()
        await server.stop()  # twice is once
        await waiting
        with pytest.raises(httpx.ConnectError):
            await client.get("/health")
    assert not engine.connected


async def test_a_server_with_a_worker_executes() -> None:
    engine = _engine()
    async with await serve(engine, port=0, worker=True) as server:
        assert engine.working
        api = Api(server, engine)
        async with api.client:
            run_id = await api.trigger("echo", "hello")
            assert (await api.ended(run_id))["result"] == "hello"
    assert not engine.connected


async def test_an_engine_that_runs_already_goes_on_afterwards() -> None:
    engine = _engine()
    async with engine:
        async with await serve(engine, port=0) as server:
            assert server.port
        assert engine.connected
        assert engine.working


async def test_requests_that_are_under_way_end_before_the_server_stops() -> None:
    async with await serve(_engine(), port=0) as server, connection(server) as raw:
        await raw.post(31, "/v1/runs")
        await raw.send(b'{"workflow":"echo",')  # it is handled, and waits for the rest
        async with httpx.AsyncClient(base_url=server.url, timeout=SOON) as client:
            await client.get("/health")
        stopping = asyncio.create_task(server.stop())
        await asyncio.sleep(0)
        await raw.send(b'"input": 12}')
        assert (await raw.answer()).status == 201
        await stopping


async def test_a_request_that_outlasts_the_stop_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_DRAIN", 0)
    server = await serve(_engine(), port=0)
    api = Api(server, _engine())
    async with api.client:
        run_id = await api.trigger("sleeps")
        poll = asyncio.create_task(api.client.get(f"/v1/runs/{run_id}/result", params={"wait": 30}))
        await api.get("/health")  # on another connection, opened after that of the poll
        async with asyncio.timeout(SOON / 2):
            await server.stop()
            answer = await poll
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:durable:problem:stopping")


async def test_serving_leaves_the_signals_to_the_process() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    async with await serve(_engine(), port=0):
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# -- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::"], ids=["ipv4", "ipv6"])
async def test_other_addresses_than_loopback_are_refused_without_a_token(host: str) -> None:
    engine = _engine()
    with pytest.raises(ConfigurationError, match="durable token create"):
        await serve(engine, host=host, port=0)
    assert not engine.connected


async def test_other_addresses_are_served_with_a_token() -> None:
    async with _engine() as engine:
        token = await engine.create_token("ops", ["read"])
        options = HttpOptions(hosts=("127.0.0.1",))
        async with (
            await serve(engine, host="0.0.0.0", port=0, options=options) as server,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.port}", timeout=SOON) as client,
        ):
            assert (await client.get("/v1/runs")).status_code == 401
            headers = {"Authorization": f"Bearer {token.secret}"}
            assert (await client.get("/v1/runs", headers=headers)).status_code == 200


async def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        engine = _engine()
        with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}: .*in use"):
            await serve(engine, port=port)
        assert not engine.connected


@pytest.mark.parametrize(("host", "port"), [("no-such-host.invalid", 0), ("127.0.0.1", 65536), ("127.0.0.1", -1)])
async def test_an_address_that_does_not_exist_is_refused(host: str, port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"cannot listen on {host}:{port}"):
        await serve(_engine(), host=host, port=port)


async def test_a_database_that_is_not_there_is_said_before_anything_listens(tmp_path: Path) -> None:
    engine = Engine(f"sqlite:///{tmp_path}/no/such/directory/durable.db")
    with pytest.raises(ConfigurationError):
        await serve(engine, port=0)


# -- a process of its own -------------------------------------------------------------------------

_WITHOUT_THE_EXTRA = """
import sys
sys.modules["fastapi"] = None
try:
    import durable.http
except ImportError as error:
    print(error)
"""


def test_without_the_extra_the_import_says_how_to_install_it() -> None:
    made = subprocess.run([sys.executable, "-c", _WITHOUT_THE_EXTRA], capture_output=True, text=True, check=True)
    assert "pip install 'durable[http]'" in made.stdout


def test_the_library_itself_does_not_import_the_runtime() -> None:
    code = "import sys, durable; print(*{'fastapi', 'uvicorn', 'starlette', 'prometheus_client'} & set(sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "\n"
