"""The quick forms of the gates, each with its control: without the guard that it is about, the gate is red."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from durable.testing.postgres import OwnServer
from tests.chaos import gates_workers
from tests.chaos.arena import Place
from tests.chaos.report import Row
from tests.chaos.workers import Nursery

pytestmark = pytest.mark.xdist_group("chaos")  # one nursery, one server

BUSY = 20.0
"""Seconds of patience on a machine that does other things too."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as found:
        yield found


@pytest.fixture
def place(durable_postgres: OwnServer, nursery: Nursery) -> Place:
    return Place(durable_postgres, nursery)


def red(row: Row, *invariants: str) -> None:
    """The control has found what it was to find."""
    assert row.violations, "a gate that cannot fail proves nothing"
    found = {violation.partition(":")[0] for violation in row.violations}
    assert found & set(invariants), row.violations[:20]


async def test_P01_workers_are_killed_under_load(place: Place) -> None:
    row = await gates_workers.kills(place, runs=240, kills=6, workers=3, at_once=24, patience=BUSY, within=BUSY)
    assert row.violations == []


async def test_the_kills_find_a_claim_that_forgets_a_record(place: Place) -> None:
    row = await gates_workers.kills(
        place, runs=60, kills=2, workers=2, at_once=20, patience=1.5, within=BUSY, without="forgets"
    )
    red(row, "I2", "I7")


async def test_P04_workers_are_stopped_past_their_lease_under_load(place: Place) -> None:
    row = await gates_workers.stops(place, runs=120, stops=2, workers=3, at_once=24, patience=BUSY)
    assert row.violations == []


async def test_the_stops_find_a_fence_that_is_off(place: Place) -> None:
    row = await gates_workers.stops(place, runs=80, stops=1, workers=2, at_once=24, patience=2, without="no_fence")
    red(row, "I4")


async def test_P04_stale_writes_of_every_kind_are_rejected(place: Place) -> None:
    row = await gates_workers.zombies(place, each=2, rounds=1)
    assert row.violations == []
    assert row.n >= 30


async def test_the_stale_writes_find_a_fence_that_is_off(place: Place) -> None:
    row = await gates_workers.zombies(place, each=1, rounds=1, without="no_fence")
    red(row, "I4")
