"""A, B, C, L, M: runs and steps per second, and what they write."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from benchmarks.contestants.base import Contestant
from benchmarks.figures import Figure
from benchmarks.lab import Lab, Process, Wrong
from benchmarks.machine import processes_cpu, server_pids
from benchmarks.scenarios.base import EVERYBODY, Form, Part, amount
from benchmarks.work import STEPS

DURABLE_PEERS = ("durable", "dbos", "absurd", "floor")
SQLITE = ("durable on SQLite",)


class Done(NamedTuple):
    """Runs that have ended and steps that are recorded, in so many seconds."""

    runs: float
    steps: float
    seconds: float

    def rate(self, work: str) -> float:
        """Steps a second of runs that have many, else runs."""
        return (self.steps if work == "ten" else self.runs) / self.seconds


def verified(answer: Mapping[str, float | None], work: str, runs: int) -> Done:
    """What was done, if the database holds what is said to have been done."""
    ended, steps, executed, seconds = (answer[key] for key in ("runs", "steps", "executed", "seconds"))
    assert ended is not None
    assert executed is not None
    assert seconds is not None
    if steps is None:  # it records none: only runs that have ended count
        steps = ended * STEPS[work]
    if steps == 0 or steps < ended * STEPS[work] or executed < steps:
        raise Wrong(f"{ended} of {runs} runs have ended, {steps} steps are recorded, {executed} were executed")
    if ended > runs or (ended == runs and steps != runs * STEPS[work]):
        raise Wrong(f"{runs} runs were triggered: {ended} have ended, with {steps} records")
    return Done(ended, steps, seconds)


def drained(
    lab: Lab, contestant: type[Contestant], form: Form, key: str, work: str, in_flight: int
) -> dict[str, float]:
    """All runs exist before the worker starts."""
    runs = amount(contestant, work, in_flight, form)
    if work == "blob":
        form = form._replace(limit=60)  # the first of them may end with the last
    with lab.target(contestant) as target:
        lab.call(target, "trigger", work=work, runs=runs)
        with lab.process(target, "drain", in_flight, work=work, runs=runs, limit=form.limit) as process:
            return worked(lab, process, form, key, work, runs)


def together(lab: Lab, contestant: type[Contestant], form: Form, key: str) -> dict[str, float]:
    """The worker's process triggers while it works."""
    runs = amount(contestant, "one", 500, form)
    with lab.target(contestant) as target:
        wal, size = lab.wal(), lab.size(target)
        with lab.process(target, "together", 500, work="one", runs=runs, limit=form.limit) as process:
            figures = worked(lab, process, form, key, "one", runs)
            if contestant.store == "postgres":
                figures |= {"L.wal": (lab.wal() - wal) / runs, "L.disk": (lab.size(target) - size) / runs}
            return figures


def worked(lab: Lab, process: Process, form: Form, key: str, work: str, runs: int) -> dict[str, float]:
    """What a process of one worker did, and the processor time that it and the server took for it."""
    process.answer(60)
    server, client = processes_cpu(server_pids(lab.server.pid)), processes_cpu([process.pid])
    process.nudge()
    answer = process.answer(form.limit + 60)
    cpu = processes_cpu(server_pids(lab.server.pid)) - server + processes_cpu([process.pid]) - client
    done = verified(answer, work, runs)
    return {key: done.rate(work), f"{key}.cpu": cpu * 1e6 / done.steps}


def two_workers(lab: Lab, contestant: type[Contestant], form: Form) -> dict[str, float]:
    """Ten-step runs, and two processes that both claim them."""
    runs = amount(contestant, "ten", 500, form) * 2
    with lab.target(contestant) as target:
        lab.call(target, "trigger", work="ten", runs=runs)
        with lab.process(target, "serve", 500) as one, lab.process(target, "serve", 500) as other:
            for process in (one, other):
                process.answer(60)
            for process in (one, other):
                process.nudge()
            counts = contestant(target.url).counts()
            deadline = time.monotonic() + form.limit
            while counts.runs < runs and time.monotonic() < deadline:
                time.sleep(0.01)
                counts = contestant(target.url).counts()
            over = time.monotonic()
            executed, first = 0, over
            for process in (one, other):
                process.answer(60)
                process.nudge()
                said = process.answer(60)
                executed, first = executed + said["executed"], min(first, said["first"] or over)
    answer = {"runs": counts.runs, "steps": counts.steps, "executed": executed, "seconds": over - first}
    return {"C.two": verified(answer, "ten", runs).rate("ten")}


def rate(key: str, title: str, unit: str) -> tuple[Figure, ...]:
    each = "run" if unit == "runs/s" else "step"
    return Figure(key, title, unit), Figure(
        f"{key}.cpu", f"{title}: processor time a {each}, client and server", "µs", more=False
    )


def in_flight(number: int, quick: tuple[str, ...]) -> Part:
    key = f"B.{number}"
    return Part(
        key,
        rate(key, f"ten-step runs, {number} in flight", "steps/s"),
        lambda lab, contestant, form: drained(lab, contestant, form, key, "ten", number),
        DURABLE_PEERS,
        quick,
    )


PARTS = (
    Part(
        "A.drain",
        rate("A.drain", "one-step runs, drained", "runs/s"),
        lambda lab, contestant, form: drained(lab, contestant, form, "A.drain", "one", 500),
        EVERYBODY,
        EVERYBODY,
    ),
    Part(
        "A.together",
        (
            *rate("A.together", "one-step runs, triggered and drained", "runs/s"),
            Figure("L.wal", "WAL of a one-step run", "bytes", more=False),
            Figure("L.disk", "growth of the database for a one-step run", "bytes", more=False),
        ),
        lambda lab, contestant, form: together(lab, contestant, form, "A.together"),
        EVERYBODY,
        EVERYBODY,
    ),
    in_flight(1, ()),
    in_flight(8, DURABLE_PEERS),
    in_flight(50, ()),
    in_flight(500, DURABLE_PEERS),
    Part(
        "C.two",
        (Figure("C.two", "ten-step runs, two processes, 500 in flight each", "steps/s"),),
        two_workers,
        DURABLE_PEERS,
    ),
    Part(
        "M.drain",
        rate("M.drain", "SQLite: one-step runs, drained", "runs/s"),
        lambda lab, contestant, form: drained(lab, contestant, form, "M.drain", "one", 500),
        SQLITE,
        SQLITE,
    ),
    Part(
        "M.500",
        rate("M.500", "SQLite: ten-step runs, 500 in flight", "steps/s"),
        lambda lab, contestant, form: drained(lab, contestant, form, "M.500", "ten", 500),
        SQLITE,
        SQLITE,
    ),
)
