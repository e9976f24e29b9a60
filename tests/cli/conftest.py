"""A database and a command for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from durable import Engine
from tests.cli.command import Command
from tests.cli.flows import run


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A migrated SQLite database."""
    found = f"sqlite:///{tmp_path / 'runs.db'}"
    run(Engine(found).migrate())
    return found


@pytest.fixture
def durable(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, url, capsys, monkeypatch)
