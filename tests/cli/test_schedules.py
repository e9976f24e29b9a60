"""``durable schedules``: set, looked at, paused, fired by hand, filled, deleted."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from durable.cli.shapes import BackfilledShape, FiredShape, RunPageShape, ScheduleShape, SchedulesShape
from tests.cli.command import Command, exit_code


def scheduled(durable: Command, *arguments: str) -> Any:
    return durable("schedules", "set", *arguments, "--json").json(ScheduleShape)


def shown(durable: Command, name: str) -> Any:
    return durable("schedules", "show", name, "--json").json(ScheduleShape)


def test_a_schedule_is_what_the_options_say(durable: Command) -> None:
    made = scheduled(
        durable,
        *("nightly", "greet", '"Bob"', "--cron", "30 2 * * *", "--timezone", "Europe/Paris", "--overlap", "queue"),
        *("--catch-up", "all", "--jitter", "5m", "--start-at", "2026-01-01T00:00Z", "--end-at", "2998-01-01T00:00Z"),
        *("--version", "2", "--queue", "mail", "--priority", "1", "--tag", "tenant=acme"),
    )
    assert made == shown(durable, "nightly")
    expected = {
        "name": "nightly",
        "workflow": "greet",
        "version": "2",
        "input": "Bob",
        "cron": "30 2 * * *",
        "timezone": "Europe/Paris",
        "overlap": "queue",
        "catch_up": "all",
        "jitter": 300.0,
        "queue": "mail",
        "priority": 1,
        "tags": {"tenant": "acme"},
        "enabled": True,
        "paused": None,
        "fired": 0,
        "skipped": {},
    }
    assert {name: made[name] for name in expected} == expected
    changed = scheduled(durable, "nightly", "greet", "--every", "15m", "--disabled")
    assert (changed["every"], changed["cron"], changed["enabled"], changed["next_at"]) == (900.0, None, False, None)


def test_schedules_are_listed_and_shown_with_their_next_ticks(durable: Command) -> None:
    assert durable("schedules", "list").out == "No schedules.\n"
    scheduled(durable, "nightly", "greet", "--cron", "30 2 * * *", "--timezone", "Europe/Paris")
    scheduled(durable, "often", "greet", "--every", "90m")
    assert [item["name"] for item in durable("schedules", "list", "--json").json(SchedulesShape)["items"]] == [
        *("nightly", "often")
    ]
    listed = durable("schedules", "list").out
    assert "30 2 * * * Europe/Paris" in listed
    assert "every 1h 30m" in listed
    assert durable("schedules", "show", "nightly", "--ticks", "3").out.count(":30:00") == 3


def test_the_ticks_of_a_rule_are_shown_before_it_is_set(durable: Command) -> None:
    lines = durable("schedules", "next", "0 12 * * *", "-n", "2", "--timezone", "Asia/Tokyo").out.splitlines()
    first, second = (datetime.fromisoformat(line.split()[0]) for line in lines)
    assert (first.hour, second - first) == (3, timedelta(days=1))


def test_a_schedule_is_paused_resumed_fired_filled_and_deleted(durable: Command) -> None:
    scheduled(durable, "hourly", "greet", "--cron", "0 * * * *")
    assert durable("schedules", "pause", "hourly", "--note", "holiday").out == "Schedule hourly is paused.\n"
    assert (shown(durable, "hourly")["paused"], shown(durable, "hourly")["next_at"]) == ("holiday", None)
    assert "holiday" in durable("schedules", "show", "hourly").out
    assert durable("schedules", "resume", "hourly").out.startswith("Schedule hourly: next at ")
    fired = durable("schedules", "trigger", "hourly", "--json").json(FiredShape)["id"]
    assert durable("schedules", "trigger", "hourly", "--json").json(FiredShape) == {"id": None}
    assert "earlier run has not ended" in durable("schedules", "trigger", "hourly").out
    since = ("--since", "2026-01-01T00:30Z")
    filled = durable("schedules", "backfill", "hourly", *since, "--until", "2026-01-01T03:30Z", "--json").json(
        BackfilledShape
    )
    assert len(filled["ids"]) == 3
    assert durable("schedules", "backfill", "hourly", *since, "--until", "2026-01-01T02:30Z").out == "0 runs created.\n"
    runs = durable("runs", "list", "--schedule", "hourly", "--json").json(RunPageShape)["items"]
    assert {run["id"] for run in runs} == {fired, *filled["ids"]}
    assert durable("schedules", "delete", "hourly", "--yes").out == "Schedule hourly is deleted.\n"
    assert durable("schedules", "show", "hourly", code=1).err == "Error: there is no schedule 'hourly'\n"


def test_a_schedule_is_deleted_after_a_question(durable: Command) -> None:
    scheduled(durable, "hourly", "greet", "--cron", "0 * * * *")
    assert "Nobody is there to answer: say --yes" in durable("schedules", "delete", "hourly", code=2).err
    terminal = durable.terminal("schedules", "delete", "hourly")
    terminal.expect(r"Delete schedule hourly\? \[y/N\]")
    terminal.sendline("n")
    assert exit_code(terminal) == 1
    assert shown(durable, "hourly")["name"] == "hourly"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        pytest.param(("x", "greet", "--cron", "61 * * * *"), "values are 0 to 59", id="cron"),
        pytest.param(("x", "greet"), "either cron= or every=", id="no-rule"),
        pytest.param(("x", "greet", "--every", "0.1s"), "at least 1 s", id="too-often"),
        pytest.param(("x", "greet", "--cron", "* * * * *", "--timezone", "Mars/X"), "no time zone", id="zone"),
        pytest.param(("a/b", "greet", "--cron", "* * * * *"), "a/b", id="name"),
    ],
)
def test_a_rule_that_is_none_is_refused(durable: Command, arguments: tuple[str, ...], complaint: str) -> None:
    said = durable("schedules", "set", *arguments, code=1).err
    assert said.startswith("Error: ")
    assert complaint in said


@pytest.mark.parametrize("verb", ["show", "pause", "resume", "trigger"])
def test_a_schedule_that_is_not_there_is_said_to_be_missing(durable: Command, verb: str) -> None:
    assert durable("schedules", verb, "nightly", code=1).err == "Error: there is no schedule 'nightly'\n"
