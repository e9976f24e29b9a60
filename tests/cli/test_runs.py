"""``durable runs``: lists, one run, what is done to runs; the shapes of ``--json``; and what is refused."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from durable import State, StoreUnavailable
from durable.cli.bulk import Operation, operate
from durable.cli.options import Where
from durable.cli.shapes import OperatedShape, ReportShape, RunPageShape, TriggeredShape
from durable.testing.postgres import PostgresServer
from tests.cli import flows
from tests.cli.command import Command
from tests.cli.flows import HOSTILE, client, execute, run

NOBODY = "0198c5d2-7d2c-7b1e-8a53-5d4f6c1b2a90"


def triggered(durable: Command, *arguments: str) -> str:
    found: str = durable("runs", "trigger", *arguments, "--json").json(TriggeredShape)["id"]
    return found


def listed(durable: Command, *filters: str) -> list[str]:
    return [item["id"] for item in durable("runs", "list", *filters, "--json").json(RunPageShape)["items"]]


def report(durable: Command, run_id: str) -> Any:
    return durable("runs", "show", run_id, "--json").json(ReportShape)


def state(durable: Command, run_id: str) -> str:
    found: str = report(durable, run_id)["run"]["state"]
    return found


# -- list -----------------------------------------------------------------------------------------


def test_a_list_shows_whole_ids_and_what_tells_runs_apart(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [triggered(durable, "greet", '"Ann"', "--key", "a-key", "--tag", "tenant=acme"), triggered(durable, "greet")]
    wide = durable("runs", "list").out
    monkeypatch.setenv("COLUMNS", "60")
    narrow = durable.process("runs", "list").stdout
    for shown in (wide, narrow):
        assert [line.split()[0] for line in shown.splitlines()[1:]] == ids[::-1]
    assert "a-key tenant=acme" in wide
    assert max(map(len, narrow.splitlines())) <= 60


def test_lists_are_filtered(durable: Command) -> None:
    first = triggered(durable, "greet", "--tag", "tenant=acme", "--tag", "plan=free", "--queue", "mail")
    second = triggered(durable, "order", "5", "--version", "2")
    assert listed(durable) == [second, first]
    for filters, expected in (
        (["--workflow", "greet"], [first]),
        (["--version", "2"], [second]),
        (["--state", "pending"], [second, first]),
        (["--state", "failed"], []),
        (["--tag", "tenant=acme", "--tag", "plan=free"], [first]),
        (["--tag", "tenant=acme", "--tag", "plan=paid"], []),
        (["--queue", "mail"], [first]),
        (["--since", "1h"], [second, first]),
        (["--until", "1h"], []),
        (["--until", "2999-01-01"], [second, first]),
        (["--parent", first], []),
        (["--schedule", "nightly"], []),
    ):
        assert listed(durable, *filters) == expected, filters


def test_a_list_goes_on_where_the_page_before_ended(durable: Command) -> None:
    ids = [triggered(durable, "greet") for _ in range(3)]
    page = durable("runs", "list", "-n", "2", "--json").json(RunPageShape)
    assert [item["id"] for item in page["items"]] == ids[:0:-1]
    assert listed(durable, "--cursor", page["next_cursor"]) == ids[:1]
    assert f"More: --cursor {page['next_cursor']}" in durable("runs", "list", "-n", "2").out


def test_an_empty_list_says_why(durable: Command) -> None:
    assert durable("runs", "list").out == "No runs.\n"
    assert durable("runs", "list", "--state", "failed").out == "No run meets these conditions.\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(("list", "--state", "done"), "'done' is not one of 'pending'", id="state"),
        pytest.param(("list", "--since", "yesterday"), "'yesterday' is no time", id="time"),
        pytest.param(("list", "--tag", "acme"), "'acme' is no tag: write name=value", id="tag"),
        pytest.param(("list", "--limit", "0"), "--limit", id="limit"),
        pytest.param(("trigger", "greet", "Ann"), "A text is written with its quotes: '\"Ann\"'", id="json"),
        pytest.param(("trigger", "greet", "NaN"), "this is no JSON", id="not-a-number"),
        pytest.param(("trigger", "greet", "@missing.json"), "'missing.json' cannot be read", id="file"),
        pytest.param(("trigger", "greet", "--delay", "soon"), "'soon' is no duration: write 90s", id="duration"),
        pytest.param(("trigger", "greet", "--priority", "10"), "--priority", id="priority"),
        pytest.param(("show",), "Missing argument 'RUN'", id="no-run"),
        pytest.param(("cancel",), "which runs? Name them", id="nothing-chosen"),
        pytest.param(("cancel", NOBODY, "--state", "failed"), "not both", id="chosen-twice"),
        pytest.param(("cancel", "--state", "completed"), "cancel does not apply to completed runs", id="ended"),
        pytest.param(("retry", "--all", "--compensation", "--from-step", "x"), "not both", id="retry-twice"),
        pytest.param(("explode",), "No such command 'explode'", id="command"),
    ],
)
def test_a_call_that_is_wrong_is_told_what_is_wrong(
    durable: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    said = durable("runs", *arguments, code=2)
    assert complaint in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(("show", "42"), "Error: run_id '42' is not a UUIDv7", id="no-id"),
        pytest.param(("show", NOBODY), f"Error: no run has the id {NOBODY}", id="no-run"),
        pytest.param(("watch", NOBODY), f"Error: no run has the id {NOBODY}", id="watch"),
        pytest.param(("signal", NOBODY, "approval"), f"Error: no run has the id {NOBODY}", id="signal"),
        pytest.param(("list", "--cursor", "next"), "Error: run_id 'next' is not a UUIDv7", id="cursor"),
        pytest.param(("cancel", NOBODY, "42"), "Error: run_id '42' is not a UUIDv7", id="one-of-two"),
        pytest.param(("trigger", "a/b"), "Error: workflow", id="name"),
    ],
)
def test_what_the_engine_refuses_is_told_without_a_traceback(
    durable: Command, arguments: tuple[str, ...], complaint: str
) -> None:
    said = durable("runs", *arguments, code=1)
    assert said.err.startswith(complaint)
    assert "Traceback" not in said.err
    assert said.out == ""


# -- show -----------------------------------------------------------------------------------------


def test_one_run_is_shown_with_its_payloads_waits_bars_and_children(durable: Command) -> None:
    run_id = triggered(durable, "order", "120", "--key", "ord_1", "--tag", "tenant=acme")
    execute(durable.url)
    shown = durable("runs", "show", run_id).out
    for expected in (run_id, "order 1", "waiting", "ord_1", "tenant=acme", "120", "signal approval since"):
        assert expected in shown
    rows = {line.split()[0]: line for line in shown.splitlines() if line.strip()}
    assert set("█▌▐▕▏▎▍▋▊▉") & set(rows["reserve"])
    assert "completed" in rows["check"]
    child = listed(durable, "--parent", run_id)
    assert shown.splitlines()[-1].split()[-1:] == child
    document = report(durable, run_id)
    assert document["run"]["input"] == 120
    (wait,) = document["waits"]
    assert (wait["name"], wait["kind"]) == ("approval", "signal")
    assert datetime.fromisoformat(wait["deadline"]).tzinfo is not None
    kinds = [(entry["kind"], entry["name"]) for entry in document["timeline"]]
    assert ("completed", "reserve") in kinds
    assert ("waiting", "approval") in kinds


def test_a_locale_without_bars_shows_other_signs(durable: Command) -> None:
    run_id = triggered(durable, "broken")
    execute(durable.url)
    shown = durable.process("runs", "show", run_id, PYTHONIOENCODING="ascii")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert re.search(r"undo reserve +\?", shown.stdout)


def test_a_failed_run_shows_its_error_and_what_was_undone(durable: Command) -> None:
    run_id = triggered(durable, "broken")
    execute(durable.url)
    shown = durable("runs", "show", run_id).out
    assert "compensated" in shown
    assert "undone" in shown
    assert "undo reserve" in shown
    assert "attempt 2" in shown
    document = report(durable, run_id)
    assert document["run"]["error"]["step"] == "charge"
    assert document["run"]["error"]["undone"] == ["reserve"]


def test_nothing_that_a_run_says_is_a_command_to_the_terminal(durable: Command) -> None:
    run_id = triggered(durable, "lost", "--tag", "note=[bold]x[/]")
    named = triggered(durable, "greet", json.dumps(HOSTILE))
    execute(durable.url)
    for arguments in (("show", run_id), ("show", named), ("list",), ("watch", named)):
        shown = durable("runs", *arguments).out
        assert not {"\x1b", "\x07", "\u202e"} & set(shown), arguments
    shown = durable("runs", "show", run_id).out
    assert "[bold red]no[/] :warning:" in shown
    assert "\\x1b]0;owned\\x07" in shown
    assert report(durable, named)["run"]["input"] == HOSTILE
    assert "\x1b" not in durable("runs", "show", named, "--json").out


# -- trigger, signal ------------------------------------------------------------------------------


def test_an_input_comes_from_the_line_a_file_or_standard_input(durable: Command, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_text('{"from": "file"}')
    for arguments, stdin, expected in (
        (['{"from": "line"}'], b"", {"from": "line"}),
        (["@input.json"], b"", {"from": "file"}),
        (["-"], b'{"from": "stdin"}', {"from": "stdin"}),
        (["null"], b"", None),
        ([], b"", None),
    ):
        answer = durable("runs", "trigger", "anything", *arguments, stdin=stdin)
        assert report(durable, answer.out.strip())["run"]["input"] == expected


def test_a_key_is_one_run_and_it_is_said_which(durable: Command) -> None:
    first = durable("runs", "trigger", "greet", "--key", "k").out.strip()
    assert durable("runs", "trigger", "greet", "--key", "k").out == f"{first} existed already\n"
    again = durable("runs", "trigger", "greet", "--key", "k", "--json").json(TriggeredShape)
    assert again == {"id": first, "created": False}
    said = durable("runs", "trigger", "greet", '"Bob"', "--key", "k", code=1)
    assert said.err.startswith("Error: ")


def test_every_option_of_a_trigger_reaches_the_run(durable: Command) -> None:
    run_id = triggered(
        durable,
        *("greet", '"Ann"', "--key", "k", "--version", "7", "--delay", "2h", "--queue", "mail", "--priority", "2"),
        *("--limit-key", "acme", "--concurrency-key", "c", "--concurrency-policy", "queue", "--run-id", NOBODY),
    )
    found = report(durable, run_id)["run"]
    assert {name: found[name] for name in ("id", "version", "queue", "priority", "limit_key", "concurrency_key")} == {
        "id": NOBODY,
        "version": "7",
        "queue": "mail",
        "priority": 2,
        "limit_key": "acme",
        "concurrency_key": "c",
    }
    wait = datetime.fromisoformat(found["ready_at"]) - datetime.fromisoformat(found["created_at"])
    assert 7190 < wait.total_seconds() <= 7200


def test_a_signal_is_sent(durable: Command) -> None:
    run_id = triggered(durable, "order", "3")
    execute(durable.url)
    assert durable("runs", "signal", run_id, "approval", '{"by": "Ann"}', "--id", "click-1").out == "Sent.\n"
    durable("runs", "signal", run_id, "approval", '{"by": "Ann"}', "--id", "click-1")
    execute(durable.url)
    assert report(durable, run_id)["run"]["result"] == {"approved": {"by": "Ann"}}
    assert "has ended" in durable("runs", "signal", run_id, "approval", code=1).err


def test_json_becomes_the_types_that_the_engine_declares(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    (durable.directory / "typed_shop.py").write_text(
        f"import durable\nfrom tests.cli.flows import ALL\nengine = durable.Engine({durable.url!r}, workflows=ALL)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DURABLE_ENGINE", "typed_shop:engine")
    run_id = triggered(durable, "expense", '{"by": "Ann", "approved": false}')
    assert "Error: the input" in durable("runs", "trigger", "expense", '{"by": "Ann"}', code=1).err
    execute(durable.url)
    assert "Error: the payload" in durable("runs", "signal", run_id, "decision", "true", code=1).err
    durable("runs", "signal", run_id, "decision", '{"by": "Bob", "approved": true}')
    durable("schedules", "set", "yearly", "expense", '{"by": "Eve", "approved": true}', "--cron", "0 0 1 1 *")
    execute(durable.url)
    assert report(durable, run_id)["run"]["result"] == "asked by Ann, answered by Bob"


# -- operating ------------------------------------------------------------------------------------


def test_runs_are_paused_resumed_cancelled_and_retried(durable: Command) -> None:
    run_id = triggered(durable, "greet")
    assert (
        durable("runs", "pause", run_id, "--reason", "bank is down", "--by", "Ann").out
        == "1 run paused, or asked to.\n"
    )
    assert report(durable, run_id)["run"]["reason"] == "bank is down"
    assert durable("runs", "resume", run_id).out == "1 run resumed.\n"
    assert state(durable, run_id) == "pending"
    assert (
        durable("runs", "cancel", run_id, "--reason", "called", "--by", "Ann").out == "1 run cancelled, or asked to.\n"
    )
    assert state(durable, run_id) == "cancelled"
    said = durable("runs", "cancel", run_id, code=1)
    assert f"run {run_id} had ended" in said.err
    failing = triggered(durable, "lost")
    execute(durable.url)
    assert state(durable, failing) == "failed"
    assert durable("runs", "retry", failing, "--by", "Ann").out == "1 run retried.\n"
    assert state(durable, failing) == "pending"


def test_who_asked_and_why_stands_in_the_timeline(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "carla")
    run_id = triggered(durable, "order", "3")
    execute(durable.url)
    durable("runs", "pause", run_id, "--reason", "audit")
    requests = [entry["data"] for entry in report(durable, run_id)["timeline"] if entry["kind"] == "pause"]
    assert requests == [{"verb": "pause", "reason": "audit", "by": "carla"}]
    assert "by carla audit" in durable("runs", "show", run_id).out


def test_a_run_that_refuses_is_named_and_the_others_are_operated(durable: Command) -> None:
    run_id = triggered(durable, "greet")
    document = durable("runs", "pause", NOBODY, run_id, "--json", code=1).json(OperatedShape)
    assert document["changed"] == [run_id]
    assert document["unchanged"] == [{"id": NOBODY, "why": f"there is no run {NOBODY!r}"}]
    assert "does not apply" in durable("runs", "pause", run_id, code=1).err
    assert "does not apply" in durable("runs", "retry", run_id, code=1).err


def test_many_runs_are_operated_after_a_question_that_a_script_has_to_answer(durable: Command) -> None:
    ids = {triggered(durable, "greet") for _ in range(3)}
    other = triggered(durable, "order", "1")
    said = durable("runs", "cancel", "--workflow", "greet", code=2)
    assert "Cancel 3 runs? Nobody is there to answer: say --yes." in said.err
    assert set(listed(durable, "--state", "pending")) == {*ids, other}
    document = durable("runs", "cancel", "--workflow", "greet", "--yes", "--json").json(OperatedShape)
    assert set(document["changed"]) == ids
    assert listed(durable, "--state", "pending") == [other]
    assert durable("runs", "cancel", "--workflow", "greet", "--yes").out == "No run to cancel.\n"
    assert durable("runs", "pause", "--all", "--yes").out == "1 run paused, or asked to.\n"
    assert durable("runs", "resume", "--all", "--yes").out == "1 run resumed.\n"


def test_only_what_a_retry_applies_to_is_retried(durable: Command) -> None:
    failed, waiting = triggered(durable, "lost"), triggered(durable, "order", "1")
    execute(durable.url)
    document = durable("runs", "retry", "--all", "--yes", "--json").json(OperatedShape)
    assert document == {"changed": [failed], "unchanged": []}
    assert state(durable, waiting) == "waiting"


def test_failed_compensations_are_retried(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id, other = triggered(durable, "undoable"), triggered(durable, "lost")
    execute(durable.url)
    assert report(durable, run_id)["run"]["error"]["not_undone"] == ["reserve"]
    assert "not undone" in durable("runs", "show", run_id).out
    monkeypatch.setattr(flows, "stuck", False)
    document = durable("runs", "retry", run_id, other, "--compensation", "--json", code=1).json(OperatedShape)
    assert document["changed"] == [run_id]
    assert "retry_compensation does not apply" in document["unchanged"][0]["why"]
    execute(durable.url)
    assert state(durable, run_id) == "compensated"


def test_more_runs_than_a_page_are_operated(durable: Command) -> None:
    async def many() -> None:
        async with client(durable.url) as engine:
            await engine.trigger_many("greet", ["Ann"] * 1100)

    run(many())
    document = durable("runs", "cancel", "--workflow", "greet", "--yes", "--json").json(OperatedShape)
    assert (len(set(document["changed"])), document["unchanged"]) == (1100, [])


def test_an_operation_on_many_that_fails_halfway_says_how_far_it_came(
    durable: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    async def apply(run_id: str) -> bool:
        if len(asked) == 25:
            raise StoreUnavailable("it went away")
        asked.append(run_id)
        return True

    async def work() -> None:
        operation = Operation("cancel", "cancelled", (State.PENDING,), apply)
        async with client(durable.url) as engine:
            await engine.trigger_many("greet", ["Ann"] * 40)
            await operate(engine, operation, (), Where(workflow="greet"), everything=False, yes=True, as_json=False)

    with pytest.raises(StoreUnavailable, match="it went away"):
        run(work())
    assert "25 of 40 runs cancelled before it failed." in capsys.readouterr().err


def test_the_command_works_on_postgres(
    durable: Command, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"command_{NOBODY[-12:]}_{id(durable)}"
    url = postgres_server.database(database)
    try:
        monkeypatch.setenv("DURABLE_DATABASE_URL", url)
        said = durable("runs", "list", code=1)
        assert "durable migrate" in said.err

        async def migrate() -> None:
            async with client(url):
                pass

        run(migrate())
        run_id = triggered(durable, "order", "3")
        execute(url)
        assert "signal approval since" in durable("runs", "show", run_id).out
        assert durable("runs", "cancel", run_id).out == "1 run cancelled, or asked to.\n"
        execute(url)
        assert listed(durable, "--state", "cancelled") == [run_id]
    finally:
        postgres_server.drop_database(database)
