"""The standalone mode: a directory of files, the environment, and the example that shows both."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import typer
from typer.core import TyperGroup

from durable import ConfigurationError, Engine, InvalidArgument, RunCompensated, WorkerOptions
from durable.cli import supervisor
from durable.cli.main import build
from durable.cli.settings import Settings, read_settings
from durable.cli.standalone import load_directory, running_engine
from durable.testing import MemoryStore, VirtualClock
from tests.cli.command import PATIENCE, ROOT, Command, exit_code
from tests.cli.programs import found, write

EXAMPLE = ROOT / "examples" / "standalone"
FLOW = """
    from durable import Context, workflow

    @workflow{options}
    async def {name}(ctx: Context) -> None: ...
"""


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The workflow files that a test imports are gone after it, and no variable of this machine is read.

    Only those: a library that were imported a second time would have two of each of its exceptions.
    """
    for name in ("DURABLE_DATABASE_URL", *VARIABLES):
        monkeypatch.delenv(name, raising=False)
    path = list(sys.path)
    yield
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/")
        if file.is_relative_to(tmp_path) or file.is_relative_to(EXAMPLE):
            del sys.modules[name]
    sys.path[:] = path


# -- the environment ------------------------------------------------------------------------------

VARIABLES = {
    "DATABASE_URL": "postgresql://me:geheim@db/orders",
    "SCHEMA": "orders",
    "WORKFLOWS_DIR": "flows",
    "POLL_INTERVAL_MS": "250",
    "MAX_CONCURRENT": "7",
    "LEASE_MS": "1500",
    "LOG_LEVEL": "debug",
    "PORT": "9000",
}


def test_every_variable_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_settings() == Settings.model_construct()
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    settings = read_settings()
    assert settings.url == VARIABLES["DATABASE_URL"]
    assert settings.schema_name == "orders"
    assert settings.workflows_dir == Path("flows")
    assert (settings.worker.poll_interval, settings.worker.concurrency, settings.worker.lease) == (0.25, 7, 1.5)
    assert (settings.log_level, settings.port) == ("DEBUG", 9000)
    assert "geheim" not in repr(settings) + str(settings)


def test_the_defaults_are_the_librarys_own() -> None:
    assert vars(read_settings().worker) == vars(WorkerOptions())
    assert read_settings().url is None


def test_the_name_of_its_own_goes_first_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://theirs/app")
    monkeypatch.setenv("DURABLE_DATABASE_URL", "postgresql://ours/app")
    assert read_settings().url == "postgresql://ours/app"
    monkeypatch.setenv("DURABLE_DATABASE_URL", "")
    assert read_settings().url == "postgresql://theirs/app"
    monkeypatch.setenv("database_url", "sqlite:///other.db")
    assert read_settings().url == "postgresql://theirs/app"


def test_values_that_do_not_fit_are_named_all_at_once_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_INTERVAL_MS", "MAX_CONCURRENT", "LEASE_MS", "LOG_LEVEL", "PORT"):
        monkeypatch.setenv(name, "geheim")
    with pytest.raises(ConfigurationError) as caught:
        read_settings()
    for name in ("POLL_INTERVAL_MS", "MAX_CONCURRENT", "LEASE_MS", "LOG_LEVEL", "PORT"):
        assert f"{name}: " in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("POLL_INTERVAL_MS", "0"), ("MAX_CONCURRENT", "0"), ("LEASE_MS", "499"), ("PORT", "65536"), ("LOG_LEVEL", "ALL")],
)
def test_values_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        read_settings()


# -- the directory --------------------------------------------------------------------------------


def test_files_and_packages_are_loaded_once_each_and_what_begins_with_an_underscore_is_not(tmp_path: Path) -> None:
    write(
        tmp_path / "aa_first.py",
        "from zz_second import second\n" + FLOW.format(name="first", options="").replace("\n    ", "\n"),
    )
    write(tmp_path / "zz_second.py", FLOW.format(name="second", options=""))
    write(tmp_path / "with-dash.py", FLOW.format(name="third", options="(version='2')"))
    write(tmp_path / "_helper.py", "raise AssertionError('nobody has asked for it')")
    write(tmp_path / "notes.txt", "not Python")
    (tmp_path / "packaged_flows").mkdir()
    write(tmp_path / "packaged_flows" / "__init__.py", "from packaged_flows.inner import fourth")
    write(tmp_path / "packaged_flows" / "inner.py", FLOW.format(name="fourth", options=""))
    (tmp_path / "data").mkdir()
    assert [(w.name, w.version) for w in load_directory(tmp_path)] == [
        *(("second", "1"), ("first", "1"), ("fourth", "1"), ("third", "2"))
    ]


def test_a_file_that_fails_to_import_stops_everything_with_the_users_own_traceback(tmp_path: Path) -> None:
    write(tmp_path / "fine_flow.py", FLOW.format(name="fine", options=""))
    write(tmp_path / "broken_flow.py", "def load():\n    raise RuntimeError('no such bucket')\nload()\n")
    with pytest.raises(ConfigurationError) as caught:
        load_directory(tmp_path)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{tmp_path / 'broken_flow.py'} cannot be imported"
    assert lines[3] == f'  File "{tmp_path / "broken_flow.py"}", line 3, in <module>', lines
    assert lines[-1] == "RuntimeError: no such bucket"


@pytest.mark.parametrize("text", ["def broken(:", "import sys; sys.exit(3)", "import nowhere_to_be_found"])
def test_every_way_to_fail_is_told(tmp_path: Path, text: str) -> None:
    write(tmp_path / "broken_flow.py", text)
    with pytest.raises(ConfigurationError, match=r"broken_flow\.py cannot be imported"):
        load_directory(tmp_path)


def test_a_name_that_another_module_has_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "json.py", FLOW.format(name="mine", options=""))
    with pytest.raises(ConfigurationError, match="rename it"):
        load_directory(tmp_path)


def test_a_directory_that_is_missing_or_defines_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="set WORKFLOWS_DIR"):
        load_directory(tmp_path / "missing")
    with pytest.raises(ConfigurationError, match="@workflow"):
        load_directory(tmp_path)


def test_two_workflows_of_one_name_and_version_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "one_flow.py", FLOW.format(name="same", options=""))
    write(tmp_path / "two_flow.py", FLOW.format(name="same", options=""))
    monkeypatch.setenv("WORKFLOWS_DIR", str(tmp_path))
    monkeypatch.setenv("DATABASE_URL", "memory://")
    with pytest.raises(InvalidArgument, match="'same' version '1' is registered twice"):
        running_engine(None)


# -- the example ----------------------------------------------------------------------------------


async def test_the_examples_workflow_ships_what_is_approved_and_undoes_what_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engine = Engine(MemoryStore(clock=VirtualClock()), workflows=load_directory(EXAMPLE / "workflows"))
    flow = sys.modules["order_flow"]
    async with engine.client():
        approved, refused, forgotten = await engine.trigger_many(
            "order-flow", [flow.Order(orderId=f"ORD-{n}") for n in range(3)]
        )
        await engine.run_until_idle()
        await engine.signal(approved.run_id, "approval", flow.Decision(approved=True))
        await engine.signal(refused.run_id, "approval", flow.Decision(approved=False))
        await engine.run_until_idle(skip_time=True)
        assert (await approved.result()).parcel == "parcel of ORD-0"
        for handle in (refused, forgotten):
            with pytest.raises(RunCompensated, match="was not approved"):
                await handle.result()
    assert sorted(capsys.readouterr().out.splitlines()) == [f"refunded: charge of ORD-{n}" for n in (1, 2)]


def test_the_example_serves_and_works_in_one_process(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKFLOWS_DIR", str(EXAMPLE / "workflows"))
    terminal = durable.terminal("serve", "--port", "0")
    url = found(terminal, re.compile(r"Serving (http://127\.0\.0\.1:\d+), with a worker"))[1]
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        body = '{"flowId":"order-flow","version":"1.0.0","input":{"orderId":"ORD-123"}}'
        started = http.post("/v1/runs/start", content=body, headers={"Content-Type": "application/json"})
        assert started.status_code in (200, 201, 202), started.text
        run_id = started.json()["runId"]
        while http.post(f"/v1/runs/{run_id}/resume", json={"approved": True}).status_code == 409:
            pass  # the charge is on its way: nothing waits yet
        result = http.get(f"/v1/runs/{run_id}/result", params={"wait": PATIENCE})
        assert "parcel of ORD-123" in result.text, result.text
    terminal.kill(signal.SIGTERM)
    assert exit_code(terminal) == 0


def test_the_environment_file_names_every_setting_with_its_default() -> None:
    lines = [line for line in (EXAMPLE / "durable.env").read_text().splitlines() if not line.startswith("#")]
    given = dict(line.split("=", 1) for line in lines)
    assert set(given) == set(VARIABLES)
    assert Settings.model_validate(given | {"DATABASE_URL": ""}).model_dump(exclude={"database_url"}) == (
        Settings.model_construct().model_dump(exclude={"database_url"})
    )


def parsed(arguments: list[str]) -> dict[str, object]:
    """What the command makes of them; it refuses what it does not know."""
    program, name, *rest = arguments
    assert Path(program).name == "durable"
    group = typer.main.get_command(build())
    assert isinstance(group, TyperGroup)
    command = group.commands[name]
    return command.make_context(name, rest, resilient_parsing=False).params


def test_the_unit_drains_and_restarts_what_starting_again_can_help() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(EXAMPLE / "durable.service")
    service = unit["Service"]
    assert parsed(shlex.split(service["ExecStart"]))["processes"] == 2
    assert parsed(shlex.split(service["ExecStartPre"]))["check"] is False
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > WorkerOptions().drain_timeout + supervisor._GRACE
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"].split() == ["1", "2"]
    assert service["EnvironmentFile"] == "/etc/orders.env"


def test_systemd_itself_has_nothing_to_say_where_it_is_installed(tmp_path: Path) -> None:
    text = (EXAMPLE / "durable.service").read_text()
    assert text.count("/srv/orders/.venv/bin/durable") == 2
    unit = tmp_path / "orders.service"
    unit.write_text(text.replace("/srv/orders/.venv/bin/durable", "/bin/true"))
    if (analyze := shutil.which("systemd-analyze")) is not None:
        said = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False, timeout=60)
        assert "orders.service" not in said.stderr


def test_the_image_is_made_of_what_there_is_and_starts_what_there_is() -> None:
    text = (EXAMPLE / "Dockerfile").read_text()
    sources = [path for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for path in line.split()[:-1]]
    assert len(sources) >= 6
    assert [path for path in sources if not (ROOT / path).exists()] == []
    [command] = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)  # not a shell's: it would keep SIGTERM to itself
    assert parsed(json.loads(command))["host"] == "0.0.0.0"
    assert set(re.findall(r"^ENV (\w+)", text, re.MULTILINE)) - {"PATH"} <= set(VARIABLES)
    for line in re.findall(r"orders (durable [^#\n]+?)\s*(?:#.*)?$", text, re.MULTILINE):
        [name, *rest] = shlex.split(line)[1:]
        assert name in {"migrate", "worker", "token"}
        if name != "token":
            parsed(["durable", name, *rest])
