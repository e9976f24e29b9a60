"""What happens in one simulation: operations at times, all drawn from a seed before it begins.

A scenario is data. So a failing one can be made smaller, by leaving operations out, and kept as a file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

Operation = dict[str, Any]

WORKERS = ("w0", "w1", "w2")
CLIENTS = ("c0", "c1")
NAMES = ("a", "b")  # of signals
TOPICS = ("x", "y")

_VERBS = ("claim", "commit", "commit", "commit", "register", "renew", "reap", "owned", "unread", "take_effect")
_CLIENT_VERBS = ("create_runs", "send_signals", "request", "publish", "write_schedules")


_PRUNED = 6.0
"""Seconds after their end at which runs are deleted, at least: what was sent about them before has come by then, or is
about a run that is not there any more."""


@dataclass(frozen=True)
class Scenario:
    """One simulation's operations.

    Args:
        seed: Of what is not an operation: delays, lost hints, who goes next.
        operations: Each with the time ``at`` which it happens.
        ends: Seconds until the faults are over.
    """

    seed: int
    operations: Sequence[Operation]
    ends: float = 20.0

    def to_json(self) -> str:
        lines = ",\n  ".join(json.dumps(operation) for operation in self.operations)
        return f'{{"seed": {self.seed}, "ends": {self.ends}, "operations": [\n  {lines}\n]}}\n'

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        return cls(**json.loads(text))

    @classmethod
    def drawn(cls, seed: int) -> Scenario:
        """What this seed stands for."""
        draw = _Draw(Random(f"scenario {seed}"))
        more = _More(Random(f"more of scenario {seed}"))
        return cls(seed, more.of(draw.operations()))


class _Draw:
    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._names = 0

    def operations(self) -> list[Operation]:
        rng, made = self._rng, list[Operation]()
        triggers = rng.randint(2, 7)
        keyed: dict[str, tuple[list[Operation], str]] = {}  # one key, one input: else it is a conflict
        for number in range(triggers):
            key = rng.choice([None, None, "k1", "k2"])
            plan, queue = self._plan(2), rng.choice(["default", "narrow"])
            if key is not None:
                plan, queue = keyed.setdefault(key, (plan, queue))
            trigger: Operation = {
                "op": "trigger",
                "at": self._at(8),
                "slot": rng.choice(CLIENTS),
                "number": number,
                "key": key,
                "plan": plan,
                "queue": queue,
                "delay": rng.choice([0, 0, 0, 2]),
            }
            made.append(trigger)
            if key is not None and rng.random() < 0.5:  # the other client, at about the same time
                slot = CLIENTS[1 - CLIENTS.index(trigger["slot"])]
                again = {"number": triggers + number, "slot": slot, "at": trigger["at"] + rng.random() * 0.01}
                made.append(trigger | again)
        for number in range(rng.randint(2, 8)):
            made.append(self._asks("signal", triggers) | {"name": rng.choice(NAMES), "id": f"s{number}"})
            if rng.random() < 0.5:  # while its run begins
                trigger = rng.choice([one for one in made if one["op"] == "trigger"])
                made[-1] |= {"at": trigger["at"] + rng.random() * 0.4, "target": trigger["number"]}
            if rng.random() < 0.2:
                made.append(made[-1] | {"at": self._at(17)})
        for number in range(rng.randint(0, 3)):
            made.append(
                {"op": "publish", "at": self._at(17), "slot": rng.choice(CLIENTS), "topic": rng.choice(TOPICS)}
                | {"id": f"e{number}"}
            )
        for number in range(rng.randint(0, 3)):
            verb = rng.choice(["cancel", "pause", "resume", "retry"])
            made.append(self._asks(verb, triggers) | {"by": f"o{number}"})
        if rng.random() < 0.3:
            made.append(
                {"op": "schedule", "at": self._at(8), "slot": rng.choice(CLIENTS), "name": "tick"}
                | {"every": rng.choice([5, 8]), "overlap": rng.choice(["allow", "skip", "queue"])}
                | {"plan": [self._step()]}
            )
        made += [self._fault() for _ in range(rng.randint(4, 16))]
        return sorted(made, key=lambda operation: operation["at"])

    def _at(self, most: float) -> float:
        return round(self._rng.uniform(0.1, most), 3)

    def _asks(self, op: str, triggers: int) -> Operation:
        rng = self._rng
        return {"op": op, "at": self._at(17), "slot": rng.choice(CLIENTS), "target": rng.randrange(triggers)}

    # -- faults -----------------------------------------------------------------------------------

    def _fault(self) -> Operation:
        rng = self._rng
        kind = rng.choice(["crash", "crash", "stop", "freeze", "block", "cut", "step_clock"] + ["fate"] * 7)
        made: Operation = {"op": kind, "at": self._at(17)}
        if kind == "step_clock":
            return made | {"seconds": rng.choice([-5.0, -0.5, 0.5, 2.0, 6.0])}
        client = rng.random() < 0.2 and kind not in ("stop", "freeze", "block")
        made["slot"] = rng.choice(CLIENTS if client else WORKERS)
        if kind == "crash":
            made["callbacks"] = rng.randint(0, 12)
        elif kind in ("freeze", "block", "cut"):
            made["seconds"] = round(rng.choice([0.5, 2, 3.5, 6]) * rng.uniform(0.8, 1.2), 3)
        elif kind == "fate":
            made["verb"] = rng.choice(_CLIENT_VERBS if client else _VERBS)
            fates = ["refused", "lost", "lost", "late", "slow", "twice"] + ["busy"] * (made["verb"] == "commit")
            made["fate"] = rng.choice(fates)
            made["seconds"] = round(rng.choice([0.02, 0.3, 1, 3.5]) * rng.uniform(0.8, 1.2), 3)
        return made

    # -- plans ------------------------------------------------------------------------------------

    def _plan(self, depth: int) -> list[Operation]:
        rng = self._rng
        plan = [self._operation(depth) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.2:
            plan.append({"op": "raise", "name": "raise"})
        return plan

    def _operation(self, depth: int) -> Operation:
        rng = self._rng
        makers: list[Callable[[], Operation]] = [self._step, self._step, self._step, self._sleep, self._wait]
        makers += [self._wait, self._any, self._event, self._emit, self._map]
        if depth:
            makers += [lambda: self._call(depth), lambda: self._gather(depth)]
        return rng.choice(makers)()

    def _named(self, op: str, **rest: Any) -> Operation:
        self._names += 1
        return {"op": op, "name": f"{op} {self._names}", **rest}

    def _step(self) -> Operation:
        rng = self._rng
        shared = rng.random() < 0.1
        made = self._named(
            "step",
            takes=rng.choice([0, 0, 0.02, 1, 3]),
            fails=rng.choice([0, 0, 0, 1, 2, 3]),
            attempts=3,
            backoff=rng.choice([0.1, 3]),
            undo=not shared and rng.random() < 0.5,
            fatal=rng.random() < 0.5,
        )
        return made | ({"shared": rng.choice("pq"), "fails": 0} if shared else {})

    def _sleep(self) -> Operation:
        return self._named("sleep", seconds=self._rng.choice([0, 0.1, 2, 5]))

    def _wait(self) -> Operation:
        return self._named("wait", signal=self._rng.choice(NAMES), timeout=self._rng.choice([None, None, 3, 8]))

    def _any(self) -> Operation:
        return self._named("any", signals=list(NAMES), timeout=self._rng.choice([None, 5]))

    def _event(self) -> Operation:
        return self._named("event", topic=self._rng.choice(TOPICS), timeout=self._rng.choice([2, 6]))

    def _emit(self) -> Operation:
        return self._named("emit")

    def _map(self) -> Operation:
        rng = self._rng
        return self._named("map", takes=[rng.choice([0, 0.3]) for _ in range(rng.randint(0, 3))])

    def _call(self, depth: int) -> Operation:
        return self._named("call", plan=[] if self._rng.random() < 0.3 else self._plan(depth - 1))

    def _gather(self, depth: int) -> Operation:
        return self._named("gather", plans=[self._plan(depth - 1) for _ in range(2)])


class _More:
    """What was added later, from a source of its own: the other draws of a seed stay what they were."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def of(self, operations: Sequence[Operation]) -> list[Operation]:
        rng, made = self._rng, list(operations)
        plans = {one["number"]: one["plan"] for one in made if one["op"] == "trigger"}
        for plan in {id(plan): plan for plan in plans.values()}.values():
            self._steps(plan)
        if rng.random() < 0.3:
            made += self._retries(rng.choice([one for one in operations if one["op"] == "trigger"]))
        if rng.random() < 0.3:
            age, at = rng.choice([_PRUNED, 2 * _PRUNED]), round(rng.uniform(_PRUNED, 19), 3)
            made.append({"op": "prune", "at": at, "slot": rng.choice(CLIENTS), "age": age})
        return sorted(made, key=lambda operation: operation["at"])

    def _retries(self, trigger: Operation) -> list[Operation]:
        """The run fails, with nothing to compensate, as often as it is retried: from the beginning or from a step."""
        rng, plan = self._rng, trigger["plan"]
        quick = {"takes": 0, "fails": 0, "attempts": 3, "backoff": 0.1, "undo": False, "fatal": False}
        names = [f"again {number}" for number in range(3)]
        plan[:] = [{"op": "step", "name": name, **quick} for name in names]
        plan.append({"op": "raise", "name": "raise"})
        ask = {"op": "retry", "target": trigger["number"]}
        return [
            ask
            | {
                "at": round(rng.uniform(trigger["at"] + 0.5, 19), 3),
                "slot": rng.choice(CLIENTS),
                "by": f"again {number}",
            }
            | ({"step": step} if (step := rng.choice([None, *names])) else {})
            for number in range(rng.randint(1, 4))
        ]

    def _steps(self, plan: Sequence[Operation]) -> None:
        """Some of the steps, here and below, get a timeout, or a thread, or both."""
        rng = self._rng
        for one in plan:
            if one["op"] == "step" and "shared" not in one:
                one["timeout"] = rng.choice([None, None, None, 0.5, 2])
                one["thread"] = rng.random() < 0.3
            elif one["op"] == "call":
                self._steps(one["plan"])
            elif one["op"] == "gather":
                for side in one["plans"]:
                    self._steps(side)


def shrunk(scenario: Scenario, fails: Callable[[Scenario], bool]) -> Scenario:
    """A smaller scenario that still fails: operations are left out, in ever smaller pieces, as long as it does."""
    size = max(1, len(scenario.operations) // 2)
    while True:
        start, smaller = 0, False
        while start < len(scenario.operations):
            left = [*scenario.operations[:start], *scenario.operations[start + size :]]
            if fails(without := replace(scenario, operations=left)):
                scenario, smaller = without, True
            else:
                start += size
        if size > 1:
            size //= 2
        elif not smaller:
            return scenario
