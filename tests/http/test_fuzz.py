"""Schemathesis against the OpenAPI document as it is served, with all of its checks: no 5xx, no way around the tokens.

``make test`` sends more than 2,000 requests; ``make fuzz-http`` more than 10,000, with a seed that is another one each
time: it sets ``FUZZ_EXAMPLES`` and ``FUZZ_SEED``.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from durable import Engine, Store
from durable.http import HttpOptions, serve
from durable.stores import store_for
from tests.http.flows import FLOWS, Order

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
"""Inputs that are made up for each operation, beside those that the document itself suggests."""

SEED = os.environ.get("FUZZ_SEED", "1")
LEAST = 2000 if EXAMPLES < 200 else 10_000
CONFIG = Path(__file__).with_name("schemathesis.toml")

OPTIONS = HttpOptions(stream_timeout=0.0, max_wait=0.02)
"""A fuzzer would wait for the end of each event stream and of each long poll."""


@pytest.mark.timeout(1800 if EXAMPLES >= 200 else 300)
async def test_nothing_that_a_fuzzer_sends_is_a_server_error(tmp_path: Path) -> None:
    store: Store = store_for("memory://", "durable")
    engine = Engine(store, workflows=FLOWS)
    async with await serve(engine, port=0, worker=True, options=OPTIONS) as server:
        token = await engine.create_token("fuzzer", ["admin"])
        await _something_to_find(engine)
        report, output = await _schemathesis(server.url, token.secret, tmp_path)
        assert (await engine.trigger("echo", "still here")).created
        assert [one.name for one in await engine.tokens()] == ["fuzzer"]
    found = Counter(failure["title"] for failure in report["failures"])
    assert not found, output
    assert report["complete"]
    assert not report["errors"], output
    assert report["test_cases"]["generated"] >= LEAST, report["test_cases"]
    assert report["operations"]["tested"] == report["operations"]["total"] > 30


async def _something_to_find(engine: Engine) -> None:
    """Runs in every state that a guess can meet."""
    for value in ("a", {"b": [1, 2]}, None):
        await engine.trigger("echo", value)
    await engine.trigger("order-flow", Order(orderId="1"), key="ORD-123")
    await engine.trigger("fails", Order(orderId="2"))
    await engine.trigger("either")
    await engine.trigger("sleeps")


async def _schemathesis(url: str, token: str, directory: Path) -> tuple[dict[str, Any], str]:
    """What it reports, and says."""
    report = directory / "report.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
        *("run", f"{url}/openapi.json", "--no-color", "--no-shrink", "--suppress-health-check", "all"),
        *("--max-examples", str(EXAMPLES), "--seed", SEED, "--generation-database", "none"),
        *("--header", f"Authorization: Bearer {token}"),
        *("--report", "json", "--report-json-path", str(report)),
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    text = output.decode()
    assert report.exists(), text
    return json.loads(report.read_text()), text
