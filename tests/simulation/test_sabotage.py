"""Each rule is broken once, in the store or in the engine: a simulation must find it, or its silence says nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any
from unittest.mock import patch

import pytest

from durable.attempts import Attempts
from durable.compensation import Compensations
from durable.steps import StillRunning
from durable.stores.memory import MemoryStore
from durable.worker import Worker
from tests.simulation import sabotage
from tests.simulation.run import report, simulated
from tests.simulation.scenario import WORKERS, Scenario
from tests.simulation.world import Violation

ASKED = {"trigger", "signal", "publish", "cancel", "pause", "resume", "retry", "schedule"}

WITHIN = 100
"""Seeds, from the first that has found it, in which a broken rule is found: the order of the draws may change."""


def first_red(
    store: type[MemoryStore] = MemoryStore, first: int = 1, drawn: Callable[[int], Scenario] = Scenario.drawn
) -> tuple[Scenario, Violation]:
    for seed in range(first, first + WITHIN):
        scenario = drawn(seed)
        violation, _, _ = simulated(scenario, store)
        if violation is not None:
            return scenario, violation
    pytest.fail(f"no simulation of {WITHIN} has found anything")


@pytest.mark.parametrize(
    ("store", "rules", "first"),
    [
        (sabotage.NoFence, {"I3", "I4"}, 11),
        (sabotage.NoKeys, {"I1"}, 1),
        (sabotage.TriggersTwice, {"I1"}, 28),
        (sabotage.NoWakeCounter, {"I2"}, 71),
        (sabotage.KeepsTheDead, {"I2"}, 3),
        (sabotage.WarmForEver, {"I2", "I3", "I7"}, 43),
        (sabotage.ConsumedIsForgotten, {"I6"}, 1),
        (sabotage.OneSignalOnly, {"I6"}, 2),
        (sabotage.NoRevision, {"I6"}, 8),
        (sabotage.LastWriteCounts, {"I3"}, 1),
        (sabotage.NoLimit, {"I2"}, 17),
        (sabotage.EverybodyMakes, {"I7"}, 12),
        (sabotage.PrunesTheYoung, {"I2"}, 1),
    ],
)
def test_a_store_that_breaks_a_rule_is_found(store: type[MemoryStore], rules: set[str], first: int) -> None:
    _, violation = first_red(store, first)
    assert violation.rule in rules, violation


def _unanswered(seed: int) -> Scenario:
    """No fault but answers of commits that are lost: one in three seeds sends a park again that its worker has left."""
    scenario, rng = Scenario.drawn(seed), Random(seed)
    lost = [
        {"op": "fate", "at": rng.uniform(0.1, 17), "slot": rng.choice(WORKERS), "verb": "commit"}
        | {"fate": "lost", "seconds": 0.3}
        for _ in range(40)
    ]
    kept = [one for one in scenario.operations if one["op"] in ASKED]
    return replace(scenario, operations=sorted(kept + lost, key=lambda one: one["at"]))


def test_a_lease_that_stands_for_all_claims_of_its_worker_is_found() -> None:
    _, violation = first_red(sabotage.NoClaimNumber, drawn=_unanswered)
    assert violation.rule == "I4", violation


async def _in_order(
    self: Compensations, compensable: Iterable[Any], undo: Callable[[str, Any], Any]
) -> tuple[list[str], list[str]]:
    """Compensates what was done first first."""
    return [key for key, call in self._by_step.items() if await undo(key, call)], []


def _open(*_: object) -> None:
    """No gate before an attempt."""


def _no(*_: object) -> bool:
    """Nothing is waited for: no thread of an earlier attempt runs."""
    return False


async def _nothing(*_: object) -> None:
    """A worker that never asks what is its own."""


@pytest.mark.parametrize(
    ("where", "name", "broken", "rules", "first"),
    [
        (Compensations, "run", _in_order, {"I5"}, 5),
        (Attempts, "_gate", _open, {"I4", "I7"}, 1),
        (Worker, "_reconcile_if_due", _nothing, {"I2"}, 9),
        (StillRunning, "runs", _no, {"I7"}, 1),
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
