"""Each rule is broken once, in the store or in the engine: a simulation must find it, or its silence says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from unittest.mock import patch

import pytest

from durable.attempts import Attempts
from durable.compensation import Compensations
from durable.stores.memory import MemoryStore
from durable.worker import Worker
from tests.simulation import sabotage
from tests.simulation.run import report, simulated
from tests.simulation.scenario import Scenario
from tests.simulation.world import Violation

WITHIN = 100
"""Seeds, from the first that has found it, in which a broken rule is found: the order of the draws may change."""


def first_red(store: type[MemoryStore] = MemoryStore, first: int = 1) -> tuple[Scenario, Violation]:
    for seed in range(first, first + WITHIN):
        scenario = Scenario.drawn(seed)
        violation, _, _ = simulated(scenario, store)
        if violation is not None:
            return scenario, violation
    pytest.fail(f"no simulation of {WITHIN} has found anything")


@pytest.mark.parametrize(
    ("store", "rules", "first"),
    [
        (sabotage.NoFence, {"I3", "I4"}, 11),
        (sabotage.NoClaimNumber, {"I4"}, 86),
        (sabotage.NoKeys, {"I1"}, 1),
        (sabotage.TriggersTwice, {"I1"}, 28),
        (sabotage.NoWakeCounter, {"I2"}, 71),
        (sabotage.KeepsTheDead, {"I2"}, 3),
        (sabotage.WarmForEver, {"I3", "I7"}, 147),
        (sabotage.ConsumedIsForgotten, {"I6"}, 1),
        (sabotage.OneSignalOnly, {"I6"}, 2),
        (sabotage.NoRevision, {"I6"}, 8),
        (sabotage.LastWriteCounts, {"I3"}, 1),
        (sabotage.NoLimit, {"I2"}, 17),
        (sabotage.EverybodyMakes, {"I7"}, 12),
    ],
)
def test_a_store_that_breaks_a_rule_is_found(store: type[MemoryStore], rules: set[str], first: int) -> None:
    _, violation = first_red(store, first)
    assert violation.rule in rules, violation


async def _in_order(
    self: Compensations, compensable: Iterable[Any], undo: Callable[[str, Any], Any]
) -> tuple[list[str], list[str]]:
    """Compensates what was done first first."""
    return [key for key, call in self._by_step.items() if await undo(key, call)], []


def _open(*_: object) -> None:
    """No gate before an attempt."""


async def _nothing(*_: object) -> None:
    """A worker that never asks what is its own."""


@pytest.mark.parametrize(
    ("where", "name", "broken", "rules", "first"),
    [
        (Compensations, "run", _in_order, {"I5"}, 5),
        (Attempts, "_gate", _open, {"I4", "I7"}, 1),
        (Worker, "_reconcile_if_due", _nothing, {"I2"}, 35),
    ],
)
def test_an_engine_that_breaks_a_rule_is_found(
    where: type, name: str, broken: object, rules: set[str], first: int
) -> None:
    with patch.object(where, name, broken):
        _, violation = first_red(first=first)
    assert violation.rule in rules, violation


def test_what_is_found_is_made_small() -> None:
    scenario, violation = first_red(sabotage.NoKeys)
    text = report(scenario, violation, sabotage.NoKeys)
    small = Scenario.from_json(text.partition(".json:\n")[2].partition("\n\n")[0])
    assert len(small.operations) == 2, text  # two triggers of one key are enough
    assert "VIOLATION I1" in text
