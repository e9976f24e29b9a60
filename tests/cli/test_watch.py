"""``durable runs watch``, and what else needs a terminal: a picture that grows, questions, a progress bar, Ctrl-C."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema_rs
import pytest

from durable.cli.shapes import EntryShape, OperatedShape, RunPageShape, TriggeredShape
from tests.cli.command import Command, exit_code
from tests.cli.flows import client, execute, run


def triggered(durable: Command, *arguments: str) -> str:
    found: str = durable("runs", "trigger", *arguments, "--json").json(TriggeredShape)["id"]
    return found


def states(durable: Command) -> Iterator[str]:
    for item in durable("runs", "list", "--json").json(RunPageShape)["items"]:
        yield item["state"]


def test_a_run_is_watched_on_a_terminal_until_it_ends(durable: Command) -> None:
    run_id = triggered(durable, "order", "3")
    terminal = durable.terminal("runs", "watch", run_id, "--interval", "0.05")
    terminal.expect("pending")
    execute(durable.url)
    terminal.expect("approval")
    assert set("█▌▐▕▏▎▍▋▊▉") & set(terminal.before or ""), "no bar was drawn"

    async def answer() -> None:
        async with client(durable.url) as engine:
            await engine.signal(run_id, "approval", "yes")
            await engine.run_until_idle()

    run(answer())
    terminal.expect("completed")
    assert exit_code(terminal) == 0


def test_a_timeline_that_is_longer_than_the_screen_shows_its_end(durable: Command) -> None:
    run_id = triggered(durable, "order", "3")
    execute(durable.url)
    terminal = durable.terminal("runs", "watch", run_id, rows=5)
    terminal.expect("1 earlier")
    terminal.expect("approval")
    terminal.sendintr()
    assert exit_code(terminal) == 130


def test_without_a_terminal_each_entry_is_a_line_and_the_exit_code_says_how_it_ended(durable: Command) -> None:
    good, bad = triggered(durable, "greet"), triggered(durable, "broken")
    execute(durable.url)
    lines = durable("runs", "watch", good).out.splitlines()
    assert [line.split()[1] for line in lines] == ["triggered", "running", "completed"]
    lines = durable("runs", "watch", bad, code=3).out.splitlines()
    assert [line.split()[1] for line in lines][-1] == "compensated"
    for line in durable("runs", "watch", bad, "--json", code=3).out.splitlines():
        jsonschema_rs.validate(EntryShape.model_json_schema(mode="serialization"), json.loads(line))


def test_a_trigger_can_wait_for_the_end(durable: Command) -> None:
    run_id = triggered(durable, "greet", "--key", "k")
    execute(durable.url)
    said = durable("runs", "trigger", "greet", "--key", "k", "--wait").out.splitlines()
    assert said[0] == run_id
    assert said[-1].split()[1] == "completed"


def test_ctrl_c_ends_a_watch_with_the_code_that_shells_know(durable: Command) -> None:
    terminal = durable.terminal("runs", "watch", triggered(durable, "greet"))
    terminal.expect("pending")
    terminal.sendintr()
    assert exit_code(terminal) == 130
    assert "Traceback" not in (terminal.before or "")


@pytest.mark.parametrize(("answer", "code", "after"), [("", 1, "pending"), ("y", 0, "cancelled")])
def test_many_runs_are_operated_after_a_question_with_a_bar_of_progress(
    durable: Command, answer: str, code: int, after: str
) -> None:
    for _ in range(3):
        triggered(durable, "greet")
    terminal = durable.terminal("runs", "cancel", "--workflow", "greet")
    terminal.expect(r"Cancel 3 runs\? \[y/N\]")
    terminal.sendline(answer)
    if answer == "y":
        terminal.expect("━+.*3/3")
        terminal.expect("3 runs cancelled")
    else:
        terminal.expect("Nothing was done")
    assert exit_code(terminal) == code
    assert set(states(durable)) == {after}


def test_json_of_a_terminal_is_json_and_nothing_else(durable: Command) -> None:
    triggered(durable, "greet")
    terminal = durable.terminal("runs", "pause", "--all", "--yes", "--json", columns=200)
    terminal.expect(r"\{\r\n")
    assert exit_code(terminal) == 0
    document = json.loads("{" + (terminal.before or ""))
    jsonschema_rs.validate(OperatedShape.model_json_schema(mode="serialization"), document)
