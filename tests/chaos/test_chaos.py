"""The quick forms of the gates, each with its control: without the guard that it is about, the gate is red."""

from __future__ import annotations

import pytest

from tests.chaos import gates_database, gates_link, gates_load, gates_soak, gates_values, gates_workers
from tests.chaos.arena import Place
from tests.chaos.report import Row

pytestmark = pytest.mark.xdist_group("chaos")  # one nursery, one server

BUSY = 20.0
"""Seconds of patience on a machine that does other things too."""


def red(row: Row, *invariants: str) -> None:
    """The control has found what it was to find."""
    assert row.violations, "a gate that cannot fail proves nothing"
    found = {violation.partition(":")[0] for violation in row.violations}
    assert found & set(invariants), row.violations[:20]


async def test_P01_workers_are_killed_under_load(place: Place) -> None:
    row = await gates_workers.kills(place, runs=100, kills=4, workers=2, at_once=20, patience=BUSY, within=BUSY)
    assert row.violations == []


async def test_the_kills_find_a_claim_that_forgets_a_record(place: Place) -> None:
    row = await gates_workers.kills(
        place, runs=40, kills=2, workers=2, at_once=20, patience=1.5, within=BUSY, without="forgets"
    )
    red(row, "I2", "I7")


async def test_P04_workers_are_stopped_past_their_lease_under_load(place: Place) -> None:
    row = await gates_workers.stops(place, runs=60, stops=1, workers=2, at_once=20, patience=BUSY)
    assert row.violations == []


async def test_the_stops_find_a_fence_that_is_off(place: Place) -> None:
    row = await gates_workers.stops(place, runs=90, stops=3, workers=2, at_once=20, patience=2, without="no_fence")
    red(row, "I4")


async def test_P04_stale_writes_of_every_kind_are_rejected(place: Place) -> None:
    row = await gates_workers.zombies(place, each=2, rounds=1)
    assert row.violations == []
    assert row.n >= 30


async def test_the_stale_writes_find_a_fence_that_is_off(place: Place) -> None:
    row = await gates_workers.zombies(place, each=1, rounds=1, without="no_fence")
    red(row, "I4")


async def test_P10_postgres_is_killed_under_load(place: Place) -> None:
    row = await gates_database.postgres_kills(
        place, runs=80, kills=2, workers=2, at_once=20, patience=BUSY, within=BUSY
    )
    assert row.violations == []


async def test_the_restarts_find_a_server_that_acknowledges_too_early(place: Place) -> None:
    row = await gates_database.postgres_kills(
        place, runs=60, kills=1, workers=1, at_once=20, patience=3, within=BUSY, lossy=True
    )
    red(row, "I1", "I2", "I3", "I7")


async def test_P10_every_session_is_ended_under_load(place: Place) -> None:
    row = await gates_database.terminations(place, runs=60, waves=4, workers=2, at_once=20, patience=BUSY)
    assert row.violations == []


async def test_the_storms_find_a_commit_that_is_believed(place: Place) -> None:
    row = await gates_database.terminations(
        place, runs=50, waves=4, workers=2, at_once=20, patience=2, without="believes"
    )
    red(row, "I2", "I3", "I7")


async def test_P11_answers_to_commits_are_lost(place: Place) -> None:
    row = await gates_link.lost_commits(place, runs=70, share=0.1, workers=1, at_once=20, patience=BUSY)
    assert row.violations == []


async def test_the_lost_answers_find_a_trigger_that_is_sent_as_another(place: Place) -> None:
    row = await gates_link.lost_commits(place, runs=40, share=0.3, workers=1, at_once=12, patience=4, without="doubles")
    red(row, "I1")


async def test_P05_a_bad_link_loses_no_lease_too_early_and_begins_no_step_too_late(place: Place) -> None:
    row = await gates_link.bad_link(place, seconds=1, latency=0.05, lease=2.0, at_once=5, patience=BUSY)
    assert row.violations == []


async def test_the_bad_link_finds_a_worker_without_a_deadline(place: Place) -> None:
    row = await gates_link.bad_link(
        place, seconds=1, latency=0.05, lease=2.5, at_once=6, patience=4, hanging_up=0, without="no_deadline"
    )
    red(row, "deadline")


async def test_P05_blocked_loops_keep_their_leases(place: Place) -> None:
    row = await gates_load.blocked_loops(place, runs=2, workers=2, lease=1.5)
    assert row.violations == []


async def test_the_blocked_loops_find_a_heartbeat_that_needs_the_loop(place: Place) -> None:
    row = await gates_load.blocked_loops(place, runs=1, workers=2, lease=0.7, without="renews_on_the_loop")
    red(row, "takeover")


async def test_P26_timers_that_are_due_at_once_drain(place: Place) -> None:
    row = await gates_load.timers(place, number=300, ahead=3, workers=2)
    assert row.violations == []


async def test_the_timers_find_a_claim_that_is_early(place: Place) -> None:
    row = await gates_load.timers(place, number=50, ahead=5, workers=1, without="early")
    red(row, "early")


async def test_P36_callers_with_one_key_get_one_run(place: Place) -> None:
    row = await gates_load.equal_keys(place, keys=5, callers=40, engines=2)
    assert row.violations == []


async def test_the_trigger_storm_finds_keys_that_do_not_count(place: Place) -> None:
    row = await gates_load.equal_keys(place, keys=2, callers=3, engines=2, without="no_keys")
    red(row, "I1")


async def test_P50_poison_goes_through_processes_or_is_refused(place: Place) -> None:
    row = await gates_values.poison_values(place, workers=2, patience=4 * BUSY)
    assert row.violations == []


async def test_the_poison_finds_a_store_that_simplifies(place: Place) -> None:
    row = await gates_values.poison_values(place, workers=1, patience=4 * BUSY, every=5, least=0, without="simplifies")
    red(row, "P50")


async def test_P51_names_that_are_statements_are_names(place: Place) -> None:
    row = await gates_values.hostile_names(place)
    assert row.violations == []


async def test_the_names_find_a_statement_with_a_text_in_it(place: Place) -> None:
    row = await gates_values.hostile_names(place, every=7, least=0, without="pastes")
    red(row, "P51")


async def test_a_worker_does_not_grow(place: Place) -> None:
    row = await gates_soak.soak(place, seconds=8, workers=2, at_once=10, every=3, patience=BUSY, slope=150, ratio=0.2)
    assert row.violations == []


async def test_the_soak_finds_a_worker_that_keeps_something(place: Place) -> None:
    row = await gates_soak.soak(
        place, seconds=8, workers=2, at_once=10, every=3, patience=BUSY, slope=150, ratio=0.2, without="leaks"
    )
    red(row, "soak")
