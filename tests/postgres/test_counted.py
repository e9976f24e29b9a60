"""What a step, a run, a park, a signal, a child and a trigger cost Postgres, counted: a slower engine shows here.

The table is ``counted.json``. After a change that is meant: ``python -m benchmarks.counted --write``, and the review
shows what it costs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.counted import SCENARIOS, TABLE, Server, counting_server

pytestmark = pytest.mark.xdist_group("counted")  # one server, on which nobody else writes

MORE = 2
"""With several runs the machine decides how many of their writes go into a flush: so many times the table's count."""

NOW_AND_THEN = {"stir_turns", "pass_turns"}  # by the clock, and not by what is done


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with counting_server() as found:
        yield found


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(TABLE.read_text("utf-8"))
    assert list(found) == list(SCENARIOS)
    return found


@pytest.mark.parametrize("name", [name for name, one in SCENARIOS.items() if not one.shares])
async def test_the_work_is_exactly_that_of_the_table(server: Server, table: dict[str, Any], name: str) -> None:
    found, expected = await server.count(SCENARIOS[name]), table[name]
    assert found.look == expected["look"]
    assert found.looks <= expected["looks"] + 2  # the least of all repetitions; hints may come one by one in each
    assert found.statements == expected["statements"]
    assert (found.round_trips, found.transactions) == (expected["round_trips"], expected["transactions"])
    assert found.rows == expected["rows"]
    # Of WAL: page splits and the cleaning of pages fall into one repetition or the other.
    assert found.wal_records == pytest.approx(expected["wal_records"], rel=0.1, abs=0.5)
    assert found.wal_bytes == pytest.approx(expected["wal_bytes"], rel=0.1)


@pytest.mark.parametrize("name", [name for name, one in SCENARIOS.items() if one.shares])
async def test_runs_that_share_flushes_take_no_more_than_in_the_table(
    server: Server, table: dict[str, Any], name: str
) -> None:
    found, expected = await server.count(SCENARIOS[name]), table[name]
    assert set(found.statements) - NOW_AND_THEN == set(expected["statements"]) - NOW_AND_THEN
    assert found.round_trips <= MORE * expected["round_trips"]
    assert found.transactions <= MORE * expected["transactions"]
    assert found.rows["history"] == expected["rows"]["history"]
    assert found.rows["runs"] == expected["rows"]["runs"]
    assert found.wal_records <= 1.25 * expected["wal_records"]
    assert found.wal_bytes <= 1.25 * expected["wal_bytes"]


async def test_an_idle_worker_sends_one_statement_a_poll(server: Server) -> None:
    looks, others = await server.idle(20)
    assert (set(looks), others) == ({("look",)}, {})
