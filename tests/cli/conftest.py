"""A database and a command for each test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from durable import Engine
from tests.cli.command import Command
from tests.cli.flows import run


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the schema, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "runs.db"
    run(Engine(f"sqlite:///{path}").migrate())
    assert [file.name for file in path.parent.iterdir()] == ["runs.db"], "all of it is in the one file"
    return path


@pytest.fixture
def url(migrated: Path, tmp_path: Path) -> str:
    """A migrated SQLite database."""
    return f"sqlite:///{shutil.copy(migrated, tmp_path)}"


@pytest.fixture
def durable(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(tmp_path, url, capsys, monkeypatch)
