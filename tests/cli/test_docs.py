"""The lines of the documents: each names a command with options that it has; what is about runs is executed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from durable.cli.loading import load_engine
from durable.cli.main import build
from durable.cli.shapes import RunPageShape
from tests.cli.command import ROOT, Command
from tests.cli.flows import run
from tests.project.test_readme import program

PAGE = ROOT / "docs" / "command.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXECUTED = ("runs", "schedules", "workers")


def lines(page: Path) -> list[list[str]]:
    """The words after ``durable`` of every line in a block of shell commands."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.startswith("durable ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_names_a_command_and_options_that_it_has(page: Path) -> None:
    assert page != PAGE or lines(page)
    for words in lines(page):
        command: Any = get_command(build())
        rest = list(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command = command.commands[rest.pop(0)]
        assert not hasattr(command, "commands"), f"durable {' '.join(words)}: there is no such command"
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in rest if re.fullmatch(r"--?[a-z-]+", word)} <= known | {"-"}, words


def test_the_lines_about_runs_do_what_they_say(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    program(PAGE.read_text("utf-8"), durable.directory)  # shop.py
    (durable.directory / "input.json").write_text("7")
    monkeypatch.setattr(sys, "path", [str(durable.directory), *sys.path])
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    monkeypatch.setenv("DURABLE_ENGINE", "shop:engine")
    shop = load_engine("shop:engine")

    async def execute() -> None:
        async with shop.client() as engine:
            await engine.run_until_idle()

    run_id = ""
    for words in (words for words in lines(PAGE) if words[0] in EXECUTED):
        if words[:2] == ["runs", "watch"]:
            continue  # it would wait for the next line
        durable(*(run_id if word == "$RUN" else word for word in words))
        if words[:2] == ["runs", "trigger"]:
            run(execute())
            run_id = durable("runs", "list", "--json").json(RunPageShape)["items"][0]["id"]
    monkeypatch.delitem(sys.modules, "shop")
