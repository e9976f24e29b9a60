"""The ids of runs and workers are UUIDs of version 7, in the order in which one process makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122, UUID

import pytest

from durable import ids
from durable.ids import check_run_id, new_id

_NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def first_of_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No id was made before; and what is made here is forgotten afterwards."""
    monkeypatch.setattr(ids, "_last", (0, 0))


def test_an_id_begins_with_its_time_and_has_the_form_of_its_version() -> None:
    for number in range(1, 200):
        now = _NOW + timedelta(seconds=number)
        text = new_id(now)
        parsed = UUID(text)
        assert check_run_id(text) == text == str(parsed)
        assert (parsed.version, parsed.variant) == (7, RFC_4122)
        assert parsed.int >> 80 == int(now.timestamp() * 1000)


def test_ids_of_one_millisecond_or_of_a_clock_that_goes_back_rise() -> None:
    """More of them than there are numbers for within a millisecond."""
    made = [new_id(_NOW + timedelta(minutes=10 - number // 4_000)) for number in range(12_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_what_follows_the_time_is_random() -> None:
    """62 bits, each of them set in about half of the ids."""
    rests = [UUID(new_id(_NOW)).int & ((1 << 62) - 1) for _ in range(1_000)]
    counts = [sum(rest >> bit & 1 for rest in rests) for bit in range(62)]
    assert all(350 < count < 650 for count in counts)  # else by chance once in 10**19 times
