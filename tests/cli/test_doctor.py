"""``durable doctor``: what it finds, what it puts right, and what its exit code says."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import pytest

from durable import Engine, Finding
from durable.cli.doctor import Diagnosis
from tests.cli.command import Command
from tests.cli.flows import ALL, run


async def triggered(url: str) -> str:
    async with Engine(url, workflows=ALL).client() as client:
        return (await client.trigger("greet")).run_id


def strand(durable: Command) -> None:
    """A run that waits for nothing, as no code of ours leaves one."""
    run_id = run(triggered(durable.url))
    with sqlite3.connect(durable.url.removeprefix("sqlite:///")) as connection:
        changed = connection.execute(
            "UPDATE durable_runs SET ready_at = NULL, state = 'waiting' WHERE id = ?", (run_id,)
        )
        assert changed.rowcount == 1


def test_a_sound_database_is_said_to_be_sound(durable: Command) -> None:
    answer = durable("doctor")
    assert "✓ connectivity" in answer.out
    assert "✗" not in answer.out
    found = durable("doctor", "--json").json(Diagnosis)
    assert found["healthy"] is True
    assert {"connectivity", "schema", "waiting", "leases"} <= {finding["check"] for finding in found["findings"]}


def test_a_run_without_a_reason_to_wait_is_found_and_repaired(durable: Command) -> None:
    strand(durable)
    answer = durable("doctor", code=1)
    assert "✗ waiting" in answer.out
    assert "→" in answer.out
    assert "--repair" in answer.out
    found = durable("doctor", "--json", code=1).json(Diagnosis)
    assert [f["count"] for f in found["findings"] if f["check"] == "waiting"] == [1]

    repaired = durable("doctor", "--repair")
    assert repaired.out.startswith("repaired ")
    assert "✗" not in repaired.out
    assert durable("doctor", "--json").json(Diagnosis)["repaired"] == []


def test_a_schema_that_is_behind_is_a_finding_and_stays_as_it_is(durable: Command) -> None:
    with sqlite3.connect(durable.url.removeprefix("sqlite:///")) as connection:
        connection.execute("DELETE FROM durable_schema WHERE version > 1")
    answer = durable("doctor", code=1)
    assert "✗ schema" in answer.out
    assert "durable migrate" in answer.out
    assert "has version 1" in durable("migrate", "--check", code=1).out


def test_a_database_that_does_not_answer_is_a_finding_without_its_password(durable: Command) -> None:
    answer = durable("doctor", "-d", "postgresql://me:geheim@127.0.0.1:1/app", code=1)
    assert "✗ connectivity" in answer.out
    assert "geheim" not in answer.out + answer.err


def test_what_a_finding_says_cannot_move_the_cursor(durable: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    async def diagnose(_: Engine) -> Sequence[Finding]:
        return [Finding("waiting", "warning", "a \x1b[2J\nline", "postgresql://me:geheim@host/db")]

    monkeypatch.setattr(Engine, "diagnose", diagnose)
    assert durable("doctor").out == "! waiting  a \\x1b[2J line\n           → postgresql://me:***@host/db\n"
