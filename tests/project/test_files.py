"""What is in the repository works elsewhere: no addresses of registries, no paths of one machine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REGISTRIES = re.compile(
    r"(pypi|pythonhosted|npmjs|yarnpkg|proxy\.golang|crates|debian)\.(org|com|io)\b|--(extra-)?index-url|--find-links|"
    r"--trusted-host",
    re.IGNORECASE,
)
# A path of this machine, and of whoever else has a home directory.
PATHS = re.compile(
    r"(?<![\w.*$}])("
    + "|".join(re.escape(f"{path}/") for path in {ROOT, Path.home()})
    + r"|/(home|Users)/\w+/|file:/{2})"
)


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def hits(pattern: re.Pattern[str], text: str) -> list[str]:
    return [line for line in text.splitlines() if pattern.search(line)]


def test_files_name_no_registry_and_no_path_of_one_machine() -> None:
    found: dict[Path, list[str]] = {}
    for path in tracked():
        text = path.read_text("utf-8")
        found[path] = hits(PATHS, text) + ([] if path == Path(__file__) else hits(REGISTRIES, text))
    assert Path(__file__) in found
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize("name", ["constraints.txt", "benchmarks/constraints.txt"])
def test_every_pinned_version_has_hashes(name: str) -> None:
    pins = [entry for entry in re.split(r"\n(?=\S)", (ROOT / name).read_text()) if not entry.startswith("#")]
    assert len(pins) > 20
    for pin in pins:
        assert re.match(r"[a-z0-9-]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin


def test_every_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        named = set(re.findall(r"(?:`|^\s*|\$ )make ([a-z-]+)", (ROOT / name).read_text(), re.MULTILINE))
        assert named, f"{name} names no target"
        assert named <= targets


def test_the_checks_find_what_they_look_for() -> None:
    assert hits(REGISTRIES, "see https://pypi.org/simple\n--find-links=x") != []
    assert hits(PATHS, f"cd {ROOT}/durable") != []
    assert hits(PATHS, "sqlite:////srv/app.db, postgresql://localhost/app, /home/") == []
