"""``durable serve`` and ``durable dev``: the commands that speak HTTP."""

from __future__ import annotations

import json
import re
import socket

import httpx

from tests.cli.command import PATIENCE, Command, exit_code
from tests.cli.programs import found, write, write_app

SERVING = re.compile(r"Serving (http://[0-9.]+:\d+), (with|without) a worker")
ANSWERS = re.compile(r"(http://127\.0\.0\.1:\d+) answers, a worker runs")


def flows(url: str) -> str:
    return httpx.get(f"{url}/v1/flows", timeout=PATIENCE).raise_for_status().text


def triggered(url: str, name: str) -> httpx.Response:
    body = {"workflow": "greet", "input": name}
    return httpx.post(f"{url}/v1/runs", json=body, timeout=PATIENCE)


def test_serving_without_a_worker_triggers_and_executes_nothing(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    terminal = durable.terminal("serve", "app:engine", "--port", "0", "--no-worker")
    match = found(terminal, SERVING)
    assert match[2] == "without"
    made = triggered(match[1], "Ann").raise_for_status().json()
    assert made["state"] == "pending", made
    assert httpx.get(f"{match[1]}/v1/workers", timeout=PATIENCE).json()["items"] == []
    terminal.sendintr()
    assert exit_code(terminal) == 0


def test_any_other_address_than_loopback_needs_a_token(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    answer = durable.process("serve", "app:engine", "--host", "0.0.0.0", "--port", "0")
    assert answer.returncode == 1
    assert "durable token create" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_behind_a_proxy_its_name_is_answered_and_a_token_is_needed(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    options = ("--port", "0", "--no-worker", "--name", "flows.example.com", "--token")
    terminal = durable.terminal("serve", "app:engine", *options)
    url = found(terminal, SERVING)[1]

    def status(**headers: str) -> int:
        return httpx.get(f"{url}/v1/flows", headers=headers, timeout=PATIENCE).status_code

    assert status(host="flows.example.com") == 401
    assert status() == status(host="other.example.com") == 403
    secret = json.loads(durable("token", "create", "proxy", "--scope", "read", "--json").out)["secret"]
    assert status(host="flows.example.com", authorization=f"Bearer {secret}") == 200
    terminal.sendintr()
    assert exit_code(terminal) == 0


def test_a_port_that_is_taken_is_told_before_anything_is_started(durable: Command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        answer = durable("dev", "app:engine", "--port", port, code=1)
    assert f"cannot listen on 127.0.0.1:{port}" in answer.err
    assert "--port" in answer.err


def test_dev_runs_again_what_was_changed_outlives_what_is_broken_and_ends_on_ctrl_c(durable: Command) -> None:
    write_app(durable.directory, durable.url)
    source = (durable.directory / "app.py").read_text()
    terminal = durable.terminal("dev", "app:engine", "--port", "0")
    url = found(terminal, ANSWERS)[1]
    assert "bonjour" not in flows(url)

    write(
        durable.directory / "app.py",
        source.replace("@workflow\nasync def greet", "@workflow(name='bonjour')\nasync def greet"),
    )
    terminal.expect("Changed: app.py")
    assert found(terminal, ANSWERS)[1] == url, "the address stays"
    assert "bonjour" in flows(url)

    write(durable.directory / "app.py", "import nowhere_to_be_found")
    terminal.expect("No module named 'nowhere_to_be_found'")
    terminal.expect("the process ended with exit code 1: it is started again when a file changes")

    write(durable.directory / "app.py", source)
    assert found(terminal, ANSWERS)[1] == url
    assert triggered(url, "Ann").is_success
    terminal.sendintr()
    assert exit_code(terminal) == 0
