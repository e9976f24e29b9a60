"""Two hundred deployments, each with its own misfortunes; and those that were red once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.run import report, simulated
from tests.simulation.scenario import Scenario

SEEDS = int(os.environ.get("SIMULATE_SEEDS", "200"))
BLOCK = 10

ROOT = Path(__file__).parents[2]
KEPT = sorted((Path(__file__).parent / "kept").glob("*.json"))


@pytest.mark.parametrize("first", range(1, SEEDS + 1, BLOCK))
def test_every_invariant_holds_after_every_tick(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SEEDS + 1)):
        scenario = Scenario.drawn(seed)
        violation, _, _ = simulated(scenario)
        assert violation is None, report(scenario, violation)


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_was_red_once_stays_green(path: Path) -> None:
    scenario = Scenario.from_json(path.read_text())
    violation, _, log = simulated(scenario)
    assert violation is None, "\n".join([str(violation), *log[-100:]])


_LOG = "from tests.simulation.run import simulated; from tests.simulation.scenario import Scenario; "


@pytest.mark.parametrize("seed", [3, 11, 20])
def test_a_seed_gives_one_log(seed: int) -> None:
    """Byte for byte: here, here again, and in processes whose strings have other hashes."""
    _, _, first = simulated(Scenario.drawn(seed))
    _, _, again = simulated(Scenario.drawn(seed))
    assert first == again
    assert len(first) > 100
    program = f"{_LOG}print('\\n'.join(simulated(Scenario.drawn({seed}))[2]))"
    for hashes in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.splitlines() == first


def test_another_seed_gives_another_log() -> None:
    assert simulated(Scenario.drawn(1))[2] != simulated(Scenario.drawn(2))[2]


def test_a_scenario_survives_its_file() -> None:
    scenario = Scenario.drawn(7)
    kept = Scenario.from_json(scenario.to_json())
    assert simulated(kept)[2] == simulated(scenario)[2]
