"""The architecture, as a test: imports go downward, decisions are pure, time enters in one place."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "durable"

# A module may import from its own layer and from those above it in this list. A directory stands for what is in it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "model", "reports", "schedules"),
    (
        *("annotations", "codec", "cron", "durations", "exactness", "failures", "inbox", "names"),
        *("replay", "requests", "retry", "scheduling", "states", "timeline", "waits"),
    ),
    ("cancelling", "clock", "collector", "ids", "meter", "oversight", "sql", "store", "threads", "timetable"),
    ("stores",),
    (
        *(
            "alarms",
            "asking",
            "attempts",
            "batches",
            "bodies",
            "children",
            "committer",
            "compensation",
            "context",
            "declarations",
            "effects",
            "exchange",
            "execution",
        ),
        *("fanout", "heartbeat", "hooks", "host", "newruns", "operations", "options", "pruning", "pulse"),
        *("results", "scheduler", "starting", "stepping", "steps", "tasks", "transactions", "warm", "worker"),
        "workflow",
    ),
    (
        *("calendar", "cli", "client", "documents", "engine", "handle", "http", "inspector", "messenger"),
        *("operator", "sync", "testing"),
    ),
)
PURE = LAYERS[1]
IMPURE = {
    *("anyio", "asyncio", "concurrent", "contextvars", "logging", "multiprocessing", "os", "psycopg"),
    *("psycopg_pool", "random", "secrets", "socket", "sqlite3", "subprocess", "tempfile", "threading", "time"),
}
MAX_LINES = 520  # "about 500": nobody has to fold a line to pass

SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def layer(module: str) -> int | None:
    top = module.split(".")[1]
    return next((number for number, names in enumerate(LAYERS) if top in names), None)


def imports(module: str, source: str) -> Iterator[str]:
    """What ``module`` imports when it runs, in functions too; imports for the type checker alone do not count."""
    todo: list[ast.AST] = [ast.parse(source)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            todo.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            assert node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in SOURCES else node.module
        todo.extend(ast.iter_child_nodes(node))


def edges() -> dict[str, set[str]]:
    return {
        module: {name for name in imports(module, path.read_text()) if name.split(".")[0] == "durable"}
        for module, path in SOURCES.items()
    }


def test_every_module_has_a_layer() -> None:
    assert [module for module in SOURCES if module != "durable" and layer(module) is None] == []


def test_imports_go_downward() -> None:
    wrong: list[str] = []
    for module, imported in edges().items():
        own = len(LAYERS) if module == "durable" else layer(module)
        for name in imported:
            other = len(LAYERS) if name == "durable" else layer(name)
            if own is not None and other is not None and other > own:
                wrong.append(f"{module} (layer {own}) imports {name} (layer {other})")
    assert wrong == []


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter(edges()).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("name", [name for name in PURE if f"durable.{name}" in SOURCES])
def test_decisions_are_pure(name: str) -> None:
    module = f"durable.{name}"
    imported = {name.split(".")[0] for name in imports(module, SOURCES[module].read_text())}
    assert imported & IMPURE == set()


def test_the_time_of_day_is_asked_in_one_module() -> None:
    clocks = {"datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time", "time.time_ns"}
    found = {
        f"{module}: {ast.unparse(node)}"
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ".".join(ast.unparse(node).split(".")[-2:]) in clocks
    }
    assert {name.split(":")[0] for name in found} == {"durable.clock"}, found


def test_modules_say_what_they_are_for_and_can_be_read_at_one_sitting() -> None:
    sources = {module: path.read_text() for module, path in SOURCES.items()}
    assert [module for module, source in sources.items() if not ast.get_docstring(ast.parse(source))] == []
    assert {module for module, source in sources.items() if len(source.splitlines()) > MAX_LINES} == set()


# -- the checks themselves ------------------------------------------------------------------------


def test_the_search_for_imports_finds_them_where_they_hide() -> None:
    source = """
import asyncio
from durable import errors
from durable.model import Run
if TYPE_CHECKING:
    import random
else:
    import time
def late():
    from durable.store import Store
    import sqlite3 as db
"""
    found = set(imports("durable.states", source))
    assert found == {"asyncio", "durable.errors", "durable.model", "time", "durable.store", "sqlite3"}
