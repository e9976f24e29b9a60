"""The help, the version, and what is said where something is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from durable.cli.main import build
from tests.cli.command import ROOT, Command, exit_code


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command and group of commands, by its words."""
    yield path, group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*path, name))


def command_tree() -> Any:
    from typer.main import get_command

    return get_command(build())


def test_the_help_fits_a_screen_with_the_prompt_below(durable: Command) -> None:
    terminal = durable.terminal("--help", rows=24, columns=80)
    assert exit_code(terminal) == 0
    lines = re.sub(r"\x1b\[[0-9;]*m", "", terminal.before or "").rstrip().splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for name in (
        "worker",
        "dev",
        "serve",
        "migrate",
        "doctor",
        "prune",
        "runs",
        "schedules",
        "workers",
        "bench",
        "token",
    ):
        assert re.search(rf"^  {name} +[A-Z].*\.$", text, re.MULTILINE), f"{name}: missing, or its help is cut"


def test_every_command_and_option_says_what_it_is_for() -> None:
    silent = [" ".join(path) for path, command in commands(command_tree()) if not command.help]
    assert silent == []
    for path, command in commands(command_tree()):
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.help:
                silent.append(f"{' '.join(path)} {parameter.opts[0]}")
    assert silent == []


def test_no_two_options_of_a_command_have_one_name() -> None:
    for path, command in commands(command_tree()):
        names = [name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)]
        assert len(names) == len(set(names)), path


def test_the_version_is_shown(durable: Command) -> None:
    assert durable("--version").out == f"durable {version('durable')}\n"


def test_without_a_command_the_help_is_shown(durable: Command) -> None:
    assert "Commands:" in durable(code=2).err or "Commands:" in durable(code=2).out


def test_the_script_is_the_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"durable": "durable.cli.main:main"}


def test_the_package_does_not_load_the_command_nor_the_command_a_server() -> None:
    program = (
        "import sys, durable; before = {*sys.modules}; "
        "from durable.cli.main import build; build(); print(*before, '|', *sys.modules)"
    )
    before, after = (
        {*half.split()}
        for half in subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split("|")
    )
    assert {"typer", "rich", "fastapi"} & before == set()
    assert {"fastapi", "uvicorn", "watchfiles", "prometheus_client", "psycopg", "sqlite3"} & after == set()


def test_an_extra_that_is_not_installed_is_named() -> None:
    program = "import sys; sys.modules['typer'] = None; from durable.cli.main import main; main()"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert said.returncode == 1
    assert said.stderr.splitlines()[-1].endswith("pip install 'durable[cli]'")
    assert "Traceback" not in said.stderr
