"""What workers write in a random stream: records and changes such as an engine makes, from what the oracle says."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from uuid import uuid4

from durable import states
from durable.model import (
    Also,
    Awaited,
    Change,
    EffectEnd,
    Kind,
    NewRun,
    NewSignal,
    Record,
    Request,
    RunRef,
    RunWrite,
    State,
    Verb,
)
from durable.testing.conformance.harness import LONG_AGO, NEVER, record
from durable.testing.conformance.subjects import Compared, Subject
from durable.testing.oracle.creating import TOLD
from durable.testing.oracle.kept import Kept


class Writing(Compared):
    """What the workers of the stream remember, and what they write."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        super().__init__(subjects)
        self.rng = random.Random(0)
        self.made = 0  # runs
        self.triggered: list[Sequence[NewRun]] = []
        self.asked: list[tuple[str, Request]] = []
        self.sent: list[NewSignal] = []
        self.latest: dict[str, Sequence[RunWrite]] = {}  # worker → its latest commit
        self.lost: list[tuple[str, RunRef]] = []  # claims that are over
        self.parked: dict[str, dict[str, int]] = {}  # worker → run → the claim under which it has let it go
        self.held_since: dict[str, int] = {}
        self.known: dict[str, set[str]] = {}  # run → ids of the signals that its holder knows
        self.touched: set[str] = set()
        self._told: dict[str, int] = {}

    @property
    def told(self) -> dict[str, int]:
        return self._told

    def new_run(self) -> NewRun:
        raise NotImplementedError

    def stale(self, ref: RunRef) -> RunWrite:
        change = self.rng.choice([None, states.complete(State.RUNNING, '"stale"'), states.release(State.RUNNING)])
        return RunWrite(ref, [record(900, f"stale/{uuid4()}")], change)

    def wait_for_effect(self, run: Kept, key: str) -> RunWrite:
        """Since the end of time: only what comes from now on ends the wait, for a store may tell of what was before."""
        awaited = Awaited(TOLD, key, NEVER)
        return RunWrite(self.oracle.ref(run), [record(run.following, kind=Kind.WAIT)], None, Also(awaited=[awaited]))

    def write(self, run: Kept, *, alone: bool) -> RunWrite:
        """What a worker writes about a run. ``alone``: it is the only write of its commit."""
        records: list[Record] = []
        also = Also()
        for _ in range(self.rng.randint(0, 2)):
            self._record(run, records, also)
        change = self._change(run, records, alone)
        return RunWrite(self.oracle.ref(run), records, change, None if also == Also() else also)

    def _record(self, run: Kept, records: list[Record], also: Also) -> None:
        """One thing that a run does, or an engine for it."""
        keys = {one.key: one for one in [*run.records, *records] if not one.key.startswith("/")}
        seq = run.following + len(records)
        if run.state is State.COMPENSATING:
            steps = [key for key, one in keys.items() if one.kind is Kind.STEP and not one.failed]
            if undone := [key for key in steps if f"{key}/undo" not in keys]:
                self._undo(run, self.rng.choice(undone), seq, records, also)
        elif not (self._end_effect(run, keys, seq, records, also) or self._woke(run, keys, seq, records, also)):
            self._called(run, seq, records, also)

    def _called(self, run: Kept, seq: int, records: list[Record], also: Also) -> None:
        """Something that was not begun before."""
        rng, data = self.rng, f'"{seq}"'
        kinds = ["step", "step", "failed", "attempt", "wait", "event", "sleep", "child", "child", "emit", "map"]
        match kind := rng.choice(kinds):
            case "child":
                child = self._child(run, f"c{seq}")
                also.children.append(child)
                records.append(record(seq, f"c{seq}", Kind.CALL, f'"{child.id}"'))
            case "wait" | "sleep":
                records.append(record(seq, kind=Kind(kind), data=None, due_at=NEVER))
            case "event":
                also.awaited.append(Awaited("topic", rng.choice(["", "k"]), rng.choice([LONG_AGO, LONG_AGO, NEVER])))
                records.append(record(seq, kind=Kind.WAIT, data=None))
            case "emit":
                also.emits = True
                records.append(record(seq, kind=Kind.EMIT, data=data))
            case "map":
                records.append(record(seq, f"m{seq}[0]", data=data, failed=rng.random() < 0.3))
                records.append(record(seq + 1, f"m{seq}", Kind.MAP, None))
            case "attempt":
                records.append(record(seq, f"s{seq + 1}/attempt/1", Kind.ATTEMPT, data, failed=True))
            case _:
                failed = kind == "failed"
                records.append(record(seq, data=data, failed=failed, compensable=True, attempt=2, duration=0.5))

    def _woke(self, run: Kept, keys: Mapping[str, Record], seq: int, records: list[Record], also: Also) -> bool:
        """The end of a wait, a sleep or a child, when there is one to have."""
        if self.rng.random() < 0.6:
            return False
        open_ = {key: one.kind for key, one in keys.items() if f"{key}/woke" not in keys}
        known = self.known.get(run.new.id, ())
        letters = [one for one in run.unread if one.id in known and one.id not in also.consumed]
        for letter in letters:
            child = letter.name.removeprefix("child/")
            if open_.get(child) is Kind.CALL:
                also.consumed.append(letter.id)
                failed = json.loads(letter.data)["state"] != State.COMPLETED
                records.append(record(seq, f"{child}/woke", Kind.WOKE, "null", failed=failed))
                return True
        before = {one.key for one in run.records}  # what is called by this write has no end in it
        waits = [key for key, kind in open_.items() if kind in (Kind.WAIT, Kind.SLEEP) and key in before]
        if not waits:
            return False
        # What tells of a shared effect has an id that each store makes itself.
        others = [one for one in letters if "/" not in one.name or one.name.startswith("event/topic")]
        if others:
            also.consumed.append(self.rng.choice(others).id)
        records.append(record(seq, f"{self.rng.choice(waits)}/woke", Kind.WOKE, "null", failed=not others))
        return True

    def _end_effect(self, run: Kept, keys: Mapping[str, Record], seq: int, records: list[Record], also: Also) -> bool:
        """The end of a step that makes a shared effect, when there is one to have."""
        for key in ("x", "y"):
            made = self.oracle.making(key)
            mine = made is not None and made[0] == run.new.id and not made[2]
            if made is None or not mine or made[1] in keys or self.rng.random() < 0.5:
                continue
            kept = self.rng.random() < 0.7
            also.effects.append(EffectEnd(key, made[1], kept))
            records.append(record(seq, made[1], Kind.STEP, f'"{seq}"', failed=not kept))
            return True
        return False

    def _undo(self, run: Kept, step: str, seq: int, records: list[Record], also: Also) -> None:
        failed, key = self.rng.random() < 0.3, f"{step}/undo"
        if self.rng.random() < 0.2 and all(one.key != f"{key}/attempt/1" for one in [*run.records, *records]):
            records.append(record(seq, f"{key}/attempt/1", Kind.ATTEMPT, f'"{seq}"', failed=True))
            return
        records.append(record(seq, key, Kind.UNDO, f'"{seq}"', failed=failed))
        for name in ("x", "y"):
            if self.oracle.making(name) == (run.new.id, step, True) and not failed:
                also.effects.append(EffectEnd(name, step, kept=False))

    def _child(self, run: Kept, key: str) -> NewRun:
        child = replace(self.new_run(), key=None, concurrency_key=None, debounce=None)
        return replace(child, parent=run.new.id, parent_key=key, shard=run.new.shard)

    def _change(self, run: Kept, records: list[Record], alone: bool) -> Change | None:
        rng, state = self.rng, run.state
        if rng.random() < 0.35:
            return None
        seq = max([one.seq for one in records], default=run.following - 1) + 1
        if run.requested is not None and rng.random() < 0.7:  # an engine does what is asked
            wanted = run.requested
            fields = {name: getattr(wanted, name) for name in ("verb", "reason", "by", "id")}
            data = json.dumps({name: str(value) for name, value in fields.items() if value})
            records.append(record(seq, f"/request/{seq}", Kind.REQUEST, data))
            if wanted.verb is Verb.PAUSE:
                return states.pause(state, wanted.reason or "paused by an operator", asked=True)
            return states.cancelled(state, '"cancelled by its worker"')
        choices: list[Change] = [
            *self._parks(run, records, alone),
            states.release(state),
            states.pause(state, "why"),
            states.pause(state, "as asked", asked=True),
            states.fail(state, '"failed"'),
            states.fail(state, '"failed"'),
            states.cancelled(state, '"cancelled"'),
        ]
        if state is State.RUNNING:
            choices += [
                states.complete(state, '"done"'),
                states.complete(state, '"done"'),
                states.try_again(state, rng.choice([LONG_AGO, NEVER])),
                states.compensate(state, '"original"'),
                states.compensate(state, '"original"'),
            ]
        else:
            choices += [states.compensated(state, '"undone"')] * 2
        return rng.choice(choices)

    def _parks(self, run: Kept, records: Sequence[Record], alone: bool) -> list[Change]:
        """Parks with the counter that the run was told, or with one that it had before.

        A run with an open wait is parked as waiting. One that is not is woken by nothing that comes after its park, so
        it matters what comes first: a child's end in the same commit would, and is open.
        """
        rng, seen = self.rng, self.told[run.new.id] - self.rng.choice([0, 0, 0, 1])
        keys = {one.key for one in (*run.records, *records)}
        called = [one for one in (*run.records, *records) if one.kind in (Kind.WAIT, Kind.CALL)]
        if run.state is State.RUNNING and any(one.key[0] != "/" and f"{one.key}/woke" not in keys for one in called):
            times = [None, None, None, NEVER]
            return [states.park(run.state, ready_at=when, wakes=seen, waiting=True) for when in times]
        if not alone:
            return []
        return [states.park(run.state, ready_at=rng.choice([LONG_AGO, NEVER]), wakes=seen)] * 2
