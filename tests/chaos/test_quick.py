"""What the suite has of chaos: small forms of the gates that prove most. All gates, with controls: ``test_chaos``.

What has no promised time here has two minutes: this runs beside whatever else the machine does.
"""

from __future__ import annotations

import pytest

from tests.chaos import gates_database, gates_link, gates_values, gates_workers
from tests.chaos.arena import Place

pytestmark = [pytest.mark.xdist_group("chaos"), pytest.mark.timeout(300)]

PATIENCE = 60.0
WITHIN = 120.0


async def test_P01_a_killed_workers_runs_are_taken_over(place: Place) -> None:
    row = await gates_workers.kills(place, runs=40, kills=2, workers=2, at_once=20, patience=PATIENCE, within=WITHIN)
    assert row.violations == []


async def test_P04_a_stale_write_of_each_kind_is_rejected(place: Place) -> None:
    row = await gates_workers.zombies(place, each=1, rounds=1)
    assert row.violations == []
    assert row.n >= 15


async def test_P10_a_killed_postgres_loses_nothing(place: Place) -> None:
    row = await gates_database.postgres_kills(
        place, runs=30, kills=1, workers=1, at_once=15, patience=PATIENCE, within=WITHIN
    )
    assert row.violations == []


async def test_P11_a_lost_answer_to_a_commit_doubles_nothing(place: Place) -> None:
    row = await gates_link.lost_commits(place, runs=30, share=0.1, workers=1, at_once=15, patience=PATIENCE)
    assert row.violations == []


async def test_P50_poison_goes_through_processes_or_is_refused(place: Place) -> None:
    row = await gates_values.poison_values(place, workers=1, patience=WITHIN, every=8, least=0)
    assert row.violations == []


async def test_P51_a_name_that_is_a_statement_is_a_name(place: Place) -> None:
    row = await gates_values.hostile_names(place, every=23, least=0)
    assert row.violations == []
