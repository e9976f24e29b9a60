"""The command as its users start it: in this process through its entry point, as a process, and on a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import pexpect
import pytest
from pydantic import BaseModel

from durable.cli import output
from durable.cli.main import main

ROOT = Path(__file__).parents[2]
PATIENCE = 60


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    def json(self, shape: type[BaseModel]) -> Any:
        """The document, which has exactly the members of ``shape`` as its JSON Schema says."""
        found = json.loads(self.out)
        jsonschema_rs.validate(shape.model_json_schema(mode="serialization"), found)
        return found


class Command:
    """``durable``, in a directory of its own, on a database."""

    def __init__(
        self, directory: Path, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.directory = directory
        self.url = url
        self._capsys = capsys
        self._monkeypatch = monkeypatch
        for name in ("DURABLE_ENGINE", "DATABASE_URL", "DURABLE_SCHEMA", "SCHEMA", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for console in (output.out, output.err):  # made at the import, when the tests' own runner may have set COLUMNS
            monkeypatch.setattr(console, "width", 10_000)
        monkeypatch.setenv("DURABLE_DATABASE_URL", url)
        monkeypatch.chdir(directory)

    def __call__(self, *arguments: str, code: int = 0, stdin: bytes = b"") -> Answer:
        """Through the entry point, in this process."""
        self._monkeypatch.setattr(sys, "argv", ["durable", *arguments])
        self._monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        self._capsys.readouterr()
        with ThreadPoolExecutor(1) as pool:  # the tests' event loop is this thread's
            ended = pool.submit(_main).result()
        captured = self._capsys.readouterr()
        answer = Answer(
            ended if isinstance(ended, int) else 1,
            captured.out,
            captured.err + (ended if isinstance(ended, str) else ""),
        )
        assert answer.code == code, answer
        return answer

    def process(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """As a process, without a terminal."""
        return subprocess.run(
            [sys.executable, "-m", "durable.cli", *arguments],
            env=self._environment() | variables,
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def terminal(self, *arguments: str, rows: int = 24, columns: int = 80) -> pexpect.spawn[str]:
        """As a process on a pseudo-terminal."""
        environment = self._environment() | {"TERM": "xterm-256color"}
        for name in ("NO_COLOR", "LINES"):
            environment.pop(name, None)
        return pexpect.spawn(
            sys.executable,
            ["-m", "durable.cli", *arguments],
            env=environment,
            cwd=str(self.directory),
            dimensions=(rows, columns),
            encoding="utf-8",
            timeout=PATIENCE,
        )

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}


def _main() -> int | str:
    try:
        main()
    except SystemExit as ended:
        return 0 if ended.code is None else ended.code
    return 0


def exit_code(terminal: pexpect.spawn[str]) -> int | None:
    """Of the process, once it has ended."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    status: int | None = terminal.exitstatus
    return status
