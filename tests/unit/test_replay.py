"""The replay core by itself, without asyncio: random workflows, crashed at every effect boundary.

``Machine`` is a small scheduler that behaves as the event loop does (what is woken runs one pass later), and drives
the core as the execution does. A workflow is a random tree of steps, sequences, gathers, races and handlers of
failure. The asyncio shell has tests of its own; here the decisions are tested.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from durable.errors import AmbiguousName, NondeterminismError
from durable.model import Kind, Record
from durable.replay import SETTLE_LONG, Operation, Replay

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WORKFLOWS = 1000


class Failed(Exception):
    """A step of the random workflow failed."""


# -- random workflows ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    kind: str  # step, seq, gather, race, guard
    name: str = ""
    children: tuple[Node, ...] = ()
    duration: int = 0
    fails: bool = False


def random_node(rng: Random, names: list[int], depth: int) -> Node:
    kind = "step" if depth == 0 else rng.choice(["step", "step", "seq", "seq", "gather", "race", "guard"])
    if kind == "step":
        names[0] += 1
        # few distinct durations, so that many results arrive in one pass; 0 ends within the pass that began it
        return Node("step", f"s{names[0]}", duration=rng.choice([0, 1, 1, 2, 5]), fails=rng.random() < 0.15)
    children = tuple(random_node(rng, names, depth - 1) for _ in range(rng.randint(1, 4)))
    return Node(kind, children=children)


class Task:
    """One task of the simulated loop."""

    def __init__(self, machine: Machine, node: Node) -> None:
        self.machine = machine
        self.code = machine.interpret(node, self)
        self.outcome: tuple[str, Any] | None = None
        self.waiters: list[Task] = []
        self.waiting = False
        self.waits_for: Operation | None = None
        self.children: list[Task] = []
        machine.ready.append((self, None))

    def done(self) -> bool:
        return self.outcome is not None

    def cancel(self) -> None:
        if self.outcome is None:
            for child in self.children:
                child.cancel()
            self.outcome = ("cancelled", None)
            self.code.close()
            if self.waits_for is not None:
                self.machine.drop(self.waits_for)

    def advance(self, error: Exception | None, value: Any = None) -> None:
        if self.outcome is not None:
            return
        try:
            self.machine.handle(self, self.code.throw(error) if error is not None else self.code.send(value))
        except StopIteration as end:
            self.outcome = ("value", end.value)
        except Failed as failure:
            self.outcome = ("failed", str(failure))
        if self.outcome is not None:
            for waiter in self.waiters:
                if waiter.waiting:
                    waiter.waiting = False
                    self.machine.ready.append((waiter, None))


class Crashed(Exception):
    """The process died here."""


@dataclass
class Machine:
    """One process that executes one run from ``history``, and dies at its ``crash_at``-th effect."""

    program: Node
    history: Sequence[Record]
    crash_at: int | None = None
    ready: list[tuple[Task, Exception | None]] = field(default_factory=list[tuple["Task", Exception | None]])
    started: list[str] = field(default_factory=list[str])
    executing: list[tuple[int, int, Operation, Node]] = field(default_factory=list[tuple[int, int, Operation, Node]])
    now: int = 0
    idle: int = 0
    effects: int = 0

    def __post_init__(self) -> None:
        self.core = Replay(self.history, NOW)
        self.records = list(self.history)
        self.owners: dict[str, tuple[Task, Node]] = {}
        self.results: dict[str, bool] = {}

    # the interpreter: each yield is an await

    def interpret(self, node: Node, task: Task) -> Generator[Any, Any, Any]:
        if node.kind == "step":
            return (yield ("step", node))
        if node.kind == "seq":
            values: list[Any] = []
            for child in node.children:
                values.append((yield from self.interpret(child, task)))
            return values
        if node.kind == "guard":
            try:
                return (yield from self.interpret(node.children[0], task))
            except Failed as failure:
                return f"caught {failure}"
        tasks = [Task(self, child) for child in node.children]
        task.children.extend(tasks)
        if node.kind == "gather":
            while any(not t.done() for t in tasks):
                failed = [t for t in tasks if t.outcome is not None and t.outcome[0] == "failed"]
                if failed:  # as a TaskGroup: the siblings are cancelled
                    for t in tasks:
                        t.cancel()
                    raise Failed(failed[0].outcome[1])  # type: ignore[index]
                yield ("wait", tasks)
            failed = [t for t in tasks if t.outcome is not None and t.outcome[0] == "failed"]
            if failed:
                raise Failed(failed[0].outcome[1])  # type: ignore[index]
            return [t.outcome[1] for t in tasks if t.outcome is not None]
        while not any(t.done() for t in tasks):
            yield ("wait", tasks)
        done = [(i, t.outcome) for i, t in enumerate(tasks) if t.done()]
        for t in tasks:
            t.cancel()
        return ("first", done)

    def handle(self, task: Task, request: tuple[str, Any]) -> None:
        self.idle = 0
        kind, what = request
        if kind == "wait":
            task.waiting = True
            for other in what:
                if not other.done():
                    other.waiters.append(task)
            return
        op = self.core.call(what.name, Kind.STEP, task)
        self.owners[op.key] = (task, what)
        task.waits_for = op
        if self.core.begin(op, task):
            self.go(op)

    # what the execution does

    def go(self, op: Operation) -> None:
        """The operation may go on: to its recorded result, to the one that has waited for its turn, or to its start."""
        task, node = self.owners[op.key]
        if op.recorded is not None:
            self.finish(task, node, op, self.core.deliver(op).failed)
        elif op.key in self.results:
            self.deliver_live(op)
        else:
            self.effect()
            self.started.append(op.key)
            if node.duration:
                self.executing.append((self.now + node.duration, len(self.started), op, node))
            else:
                self.executed(op, node)

    def executed(self, op: Operation, node: Node) -> None:
        self.results[op.key] = node.fails
        if self.core.direct(op):
            self.deliver_live(op)
        else:
            self.core.offer(op)

    def deliver_live(self, op: Operation) -> None:
        task, node = self.owners[op.key]
        self.effect()
        self.records.append(self.core.conclude(op, NOW, failed=node.fails))
        self.finish(task, node, op, node.fails)

    def finish(self, task: Task, node: Node, op: Operation, failed: bool) -> None:
        task.waits_for = None
        self.idle = 0
        if failed:
            self.ready.append((task, Failed(node.name)))
        else:
            self.values[task] = f"{node.name}!"
            self.ready.append((task, None))

    def drop(self, op: Operation) -> None:
        self.idle = 0
        self.core.drop(op)
        self.executing = [entry for entry in self.executing if entry[2] is not op]

    def effect(self) -> None:
        """A step starts, or a record is written: the process may die just before."""
        if self.effects == self.crash_at:
            raise Crashed
        self.effects += 1

    def run(self) -> tuple[str, Any]:
        self.values: dict[Task, Any] = {}
        main = Task(self, self.program)
        while main.outcome is None:
            passing, self.ready = self.ready, []
            for task, error in passing:
                task.advance(error, self.values.pop(task, None) if error is None else None)
            self.idle += 1
            if (op := self.core.next_delivery(self.idle)) is not None:
                self.idle = 0
                self.go(op)
                continue
            for op in self.core.startable(self.idle):
                self.idle = 0
                self.go(op)
            if not self.ready and not self.core.unsettled and main.outcome is None:
                due = min(self.executing)
                self.now = due[0]
                for entry in sorted(e for e in self.executing if e[0] == self.now):
                    if entry in self.executing:  # an earlier one of this instant may have had it cancelled
                        self.executing.remove(entry)
                        self.executed(entry[2], entry[3])
        return main.outcome


def program(seed: int) -> Node:
    rng = Random(seed)
    return Node("seq", children=tuple(random_node(rng, names, 3) for names in [[0]] for _ in range(rng.randint(1, 3))))


def has_race(node: Node) -> bool:
    return node.kind == "race" or any(has_race(child) for child in node.children)


def test_random_workflows_crashed_at_every_effect_boundary_reach_the_crash_free_result() -> None:
    crashes = replays = 0
    for seed in range(WORKFLOWS):
        tree = program(seed)
        free = Machine(tree, ())
        expected = free.run()
        replay = Machine(tree, free.records)
        assert replay.run() == expected, f"seed {seed}: the replay of the whole history"
        assert replay.started == [], f"seed {seed}: a replay of the whole history starts nothing"
        for boundary in range(free.effects):
            died = Machine(tree, (), crash_at=boundary)
            with pytest.raises(Crashed):
                died.run()
            again = Machine(tree, died.records)
            outcome = again.run()
            recorded = {record.key for record in died.records}
            assert not recorded & set(again.started), f"seed {seed}, boundary {boundary}: a recorded step ran again"
            assert again.records[: len(died.records)] == died.records
            assert [r.seq for r in again.records] == list(range(1, len(again.records) + 1))
            if not has_race(tree):  # a race that was not decided before the crash may be decided otherwise
                assert outcome == expected, f"seed {seed}, boundary {boundary}"
            final = Machine(tree, again.records)
            assert final.run() == outcome, f"seed {seed}, boundary {boundary}: the replay takes another path"
            assert final.started == [], f"seed {seed}, boundary {boundary}: the replay starts {final.started}"
            crashes, replays = crashes + 1, replays + 2
    assert crashes > 5 * WORKFLOWS


# -- keys -----------------------------------------------------------------------------------------------


class Alive:
    def __init__(self, ended: bool = False) -> None:
        self.ended = ended

    def done(self) -> bool:
        return self.ended


def test_P12_a_repeated_name_gets_a_key_for_each_occurrence() -> None:
    core, task = Replay((), NOW), Alive()
    assert [core.call("charge", Kind.STEP, task).key for _ in range(3)] == ["charge", "charge#2", "charge#3"]
    assert core.next_key("charge") == "charge#4"


def test_P15_two_live_tasks_with_one_name_are_refused_and_no_occurrence_is_taken() -> None:
    core, one, two = Replay((), NOW), Alive(), Alive()
    core.call("fetch", Kind.STEP, one)
    with pytest.raises(AmbiguousName, match="'fetch'"):
        core.call("fetch", Kind.STEP, two)
    one.ended = True
    assert core.call("fetch", Kind.STEP, two).key == "fetch#2"


def test_P18_a_record_asked_for_as_another_kind_names_both() -> None:
    core = Replay([Record(1, "nap", Kind.SLEEP, NOW)], NOW)
    with pytest.raises(NondeterminismError, match=r"'nap' is recorded as a sleep .* asks for a step"):
        core.call("nap", Kind.STEP, Alive())


def test_P20_a_sequential_replay_asks_for_no_turn() -> None:
    records = [Record(n, f"s{n}", Kind.STEP, NOW, begun=n) for n in range(1, 1001)]
    core = Replay(records, NOW)
    for n in range(1, 1001):
        op = core.call(f"s{n}", Kind.STEP, None)
        assert core.begin(op, None)
        core.deliver(op)
    assert not core.replaying


def test_an_operation_that_the_history_does_not_expect_yet_is_still_answered() -> None:
    """The first pass had begun two operations; a deploy has removed one. The other is not held for ever."""
    core = Replay([Record(1, "a", Kind.STEP, NOW, begun=2)], NOW)
    op = core.call("a", Kind.STEP, None)
    assert not core.begin(op, None)
    assert core.next_delivery(SETTLE_LONG - 1) is None
    assert core.next_delivery(SETTLE_LONG) is op
