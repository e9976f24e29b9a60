"""The web application of the examples: its process takes orders, and another process does the work."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
SOON = 60.0


@contextmanager
def _process(*words: str, database: Path) -> Generator[subprocess.Popen[str]]:
    environment = {**os.environ, "DURABLE_DATABASE_URL": f"sqlite:///{database}", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _until(ask: Callable[[], dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    """What ``ask`` answers, once that has ``wanted`` in it."""
    end = time.monotonic() + SOON
    while not wanted.items() <= (found := ask()).items():
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def _address(web: subprocess.Popen[str]) -> str:
    assert web.stdout is not None
    for line in web.stdout:
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the web process has ended")


def test_the_web_process_takes_orders_and_a_worker_elsewhere_does_them(tmp_path: Path) -> None:
    database = tmp_path / "shop.db"
    with (
        _process("uvicorn", "examples.web_app.web:app", "--port", "0", database=database) as web,
        httpx.Client(base_url=_address(web), timeout=SOON) as client,
    ):
        small = client.post("/orders", json={"id": "small", "cents": 4200})
        assert small.status_code == 202
        assert client.get("/orders/small").json()["state"] == "pending"  # there is no worker
        assert client.post("/orders", json={"id": "small", "cents": 4200}).json() == small.json()
        assert client.get("/orders/none").status_code == 404
        with _process("examples.web_app.worker", database=database) as worker:
            done = _until(lambda: client.get("/orders/small").json(), state="completed")
            assert done["result"] == "receipt of small"
            client.post("/orders", json={"id": "large", "cents": 42_000})
            _until(lambda: client.get("/orders/large").json(), state="waiting")
            for _ in range(2):  # a double click
                assert client.post("/orders/large/approval", json={"approved": True}).status_code == 202
            assert _until(lambda: client.get("/orders/large").json(), state="completed")["result"] == "receipt of large"
            worker.send_signal(signal.SIGTERM)
            said, _ = worker.communicate(timeout=SOON)
            assert worker.returncode == 0
            assert said.splitlines() == ["charged 4200 cents for small", "charged 42000 cents for large"]
        runs = client.get("/workflows/v1/runs", params={"workflow": "shop-order"}).json()["items"]
        assert [(run["key"], run["state"]) for run in runs] == [("large", "completed"), ("small", "completed")]
        web.send_signal(signal.SIGTERM)
        web.wait(SOON)
