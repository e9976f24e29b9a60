"""Runs scenarios, and makes of a failing one the smallest that fails in the same way."""

from __future__ import annotations

from dataclasses import dataclass

from durable.stores.memory import MemoryStore
from tests.simulation.scenario import Scenario, shrunk
from tests.simulation.world import Violation, World

_SHOWN = 120
"""Lines of the log that a report shows."""


@dataclass
class Tally:
    """What a number of simulations came to."""

    seeds: int = 0
    ticks: int = 0
    checks: int = 0
    operations: int = 0
    faults: int = 0
    runs: int = 0
    effects: int = 0

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def simulated(scenario: Scenario, store: type[MemoryStore] = MemoryStore) -> tuple[Violation | None, Tally, list[str]]:
    """What went wrong, how much happened, and the log."""
    world = World(scenario, store)
    violation = world.run()
    tally = Tally(
        seeds=1,
        ticks=world.ticks,
        checks=world.monitor.checked,
        operations=len(scenario.operations),
        faults=world.faults,
        runs=len(world.store._rows),
        effects=len(world.flows.effects),
    )
    return violation, tally, world.log


def report(scenario: Scenario, violation: Violation, store: type[MemoryStore] = MemoryStore) -> str:
    """The shortest trace that is found for this violation."""

    def fails(smaller: Scenario) -> bool:
        found, _, _ = simulated(smaller, store)
        return found is not None and found.rule == violation.rule

    small = shrunk(scenario, fails)
    found, _, log = simulated(small, store)
    return "\n".join(
        (
            f"seed {scenario.seed}: {violation}",
            f"{len(small.operations)} of {len(scenario.operations)} operations are enough: {found}",
            "keep it as tests/simulation/kept/<name>.json:",
            small.to_json(),
            f"the end of its log, of {len(log)} lines:",
            *log[-_SHOWN:],
        )
    )


def batch(seeds: range) -> tuple[Tally, list[str]]:
    """Run these seeds; what is red, made small. Here, and not beside its caller: a new process has to find it."""
    total, red = Tally(), list[str]()
    for seed in seeds:
        scenario = Scenario.drawn(seed)
        violation, tally, _ = simulated(scenario)
        total.add(tally)
        if violation is not None:
            red.append(report(scenario, violation))
    return total, red
