"""Every ``python`` block of the README and of the pages in ``docs`` is run.

The blocks of a page are one program, in order and in one namespace, in a new process and an empty directory; ``await``
may stand at the top level. A block that begins with ``# file: name.py`` is written to that file instead, where other
blocks can import it: for programs that would not end. A block inside an HTML comment is run and not shown: what a page
needs and a reader does not. The address ``postgresql://localhost/app`` stands for a new database of the test server,
and ``DURABLE_DATABASE_URL`` is not set.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from durable.testing.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
ADDRESS = "postgresql://localhost/app"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# file: (\w+\.py)\n")

REPORTS = {"reliability.md", "performance.md", "scaling.md"}  # what was measured: figures and commands, no programs
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name not in REPORTS)]

RUNNER = """
import ast, asyncio, inspect, sys, types
text = sys.stdin.read()
main = sys.modules["__main__"] = types.ModuleType("__main__")
code = compile(text, sys.argv[1], "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
if code.co_flags & inspect.CO_COROUTINE:
    asyncio.run(eval(code, main.__dict__))
else:
    exec(code, main.__dict__)
"""


def program(markdown: str, directory: Path) -> str:
    """The blocks, each on the line that it has in the document; files are written to ``directory``."""
    lines = [""] * len(markdown.splitlines())
    for block in BLOCK.finditer(markdown):
        first = markdown[: block.start(1)].count("\n")
        text = block.group(1)
        if named := FILE.match(text):
            (directory / named.group(1)).write_text(text)
        else:
            lines[first : first + text.count("\n")] = text.splitlines()
    return "\n".join(lines)


def execute(text: str, directory: Path, page: str = "README.md") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "DURABLE_DATABASE_URL"}
    return subprocess.run(
        [sys.executable, "-c", RUNNER, page],
        input=text,
        cwd=directory,
        env=environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{directory}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page_runs(page: Path, tmp_path: Path, postgres_server: PostgresServer) -> None:
    markdown = page.read_text("utf-8")
    assert BLOCK.search(markdown), "the page shows no code"
    name = f"durable_{re.sub(r'[^a-z]', '_', page.stem.lower())}_{os.getpid()}"
    text = program(markdown.replace(ADDRESS, postgres_server.database(name)), tmp_path)
    result = execute(text, tmp_path, page.name)
    postgres_server.drop_database(name)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def test_the_runner_shares_names_awaits_imports_and_reports_lines(tmp_path: Path) -> None:
    markdown = (
        "# Title\n\n```python\nimport asyncio\nx = 1\n```\ntext\n```python\n# file: other.py\ny = 2\n```\n"
        "```python\nfrom other import y\nawait asyncio.sleep(0)\nprint(x + y)\n```\n"
        "```python\nraise ValueError(x)\n```\n"
    )
    result = execute(program(markdown, tmp_path), tmp_path)
    assert result.stdout == "3\n"
    assert 'File "README.md", line 18' in result.stderr
    assert "ValueError: 1" in result.stderr
