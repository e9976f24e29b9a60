"""Which engine a command works with, and what is said when it finds none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from durable import ConfigurationError, InvalidArgument
from durable.cli.loading import choose_engine, load_engine
from durable.cli.shapes import RunPageShape
from tests.cli.command import Command

SHOP = """
from durable import Context, Engine, workflow

@workflow
async def greet(ctx: Context, name: str = "you") -> str:
    return f"hello {name}"

engine = Engine("sqlite:///shop.db", workflows=[greet])
other = Engine("sqlite:///other.db")
number = 3

def make():
    return engine

class holder:
    inside = engine
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory that has engines."""
    name = f"shop_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SHOP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for variable in ("DURABLE_ENGINE", "DURABLE_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    return name


@pytest.mark.parametrize("name", [":engine", "", ":make", ":holder.inside"])
def test_an_engine_is_found_by_its_name_or_made_by_a_function(shop: str, name: str) -> None:
    assert load_engine(f"{shop}{name}") is load_engine(f"{shop}:engine")


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        pytest.param("{shop}:missing", r"has no 'missing'; it has \S+:engine, \S+:other", id="name"),
        pytest.param("{shop}:number", "is no durable.Engine, but a int", id="no-engine"),
        pytest.param("{shop}:holder", "is no durable.Engine, but a type", id="class"),
        pytest.param("no_such_module:engine", "there is no module 'no_such_module'", id="module"),
        pytest.param("{shop}.deeper:engine", "there is no module", id="submodule"),
        pytest.param("app/main.py:engine", "is a file: name the module, such as app.main:engine", id="file"),
        pytest.param("main.py", "is a file: name the module, such as main:engine", id="file-alone"),
        pytest.param(":engine", "has the form module:name", id="empty"),
        pytest.param("a b", "has the form module:name", id="blank"),
        pytest.param("postgresql://localhost/app", "is a database, not an engine: give it with --database", id="url"),
    ],
)
def test_what_is_no_engine_is_refused_with_what_would_be(shop: str, target: str, complaint: str) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        load_engine(target.format(shop=shop))


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        pytest.param("import no_such_dependency", "No module named 'no_such_dependency'", id="dependency"),
        pytest.param("1 / 0", "ZeroDivisionError", id="error"),
        pytest.param("def broken(:", "SyntaxError", id="syntax"),
        pytest.param("raise SystemExit(3)", "SystemExit: 3", id="exit"),
        pytest.param(
            "raise ValueError('postgresql://me:hunter2@db/app')", "postgresql://me:\\*\\*\\*@db", id="password"
        ),
    ],
)
def test_a_module_that_fails_to_import_is_shown_with_its_own_traceback(shop: str, text: str, cause: str) -> None:
    name = f"{shop}_broken"
    Path(f"{name}.py").write_text(f"def helper():\n    return 1\n\n{text}\n")
    with pytest.raises(ConfigurationError, match=cause) as caught:
        load_engine(f"{name}:engine")
    message = str(caught.value)
    assert f'{name}.py", line 4' in message
    assert "importlib" not in message
    assert "loading.py" not in message


def test_a_command_needs_to_know_which_database(shop: str) -> None:
    with pytest.raises(ConfigurationError, match="which database"):
        choose_engine(None, None)
    with pytest.raises(ConfigurationError, match=r"there is no file .*gone\.db"):
        choose_engine(None, "sqlite:///gone.db")
    assert not Path("gone.db").exists()
    with pytest.raises(InvalidArgument, match="memory:// is private"):
        choose_engine(None, "memory://")
    with pytest.raises(InvalidArgument, match="not both"):
        choose_engine(f"{shop}:engine", "sqlite:///shop.db")


def test_the_command_line_goes_before_the_environment(
    durable: Command, shop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DURABLE_ENGINE", f"{shop}:engine")
    durable("runs", "trigger", "greet", "--database", durable.url)
    assert not (tmp_path / "shop.db").exists()
    monkeypatch.setenv("DURABLE_DATABASE_URL", durable.url)
    durable("runs", "trigger", "greet")
    assert (tmp_path / "shop.db").exists(), "the engine of the environment goes before its database"
    assert "it knows 'greet'" in durable("runs", "trigger", "nobody", code=1).err
    monkeypatch.delenv("DURABLE_ENGINE")
    assert len(durable("runs", "list", "--json").json(RunPageShape)["items"]) == 1
    assert len(durable("runs", "list", "-d", "sqlite:///shop.db", "--json").json(RunPageShape)["items"]) == 1


def test_P55_no_password_is_shown(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for url, code in (
        ("postgresql://me:hunter2@127.0.0.1:1/app", 75),
        ("mysql://me:hunter2@db/app", 1),
    ):
        monkeypatch.setenv("DURABLE_DATABASE_URL", url)
        said = durable("runs", "list", code=code)
        assert "hunter2" not in said.out + said.err
        assert said.err.startswith("Error: ")
        assert "hunter2" not in durable("runs", "list", "--help").out
