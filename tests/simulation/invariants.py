"""What must hold in every moment of a simulation, and what must have been at its end.

The monitor looks into the store after everything that may have changed it, and keeps its own books: it believes neither
the store's guards nor the engine's.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from durable.model import Claimed, Kind, NewRun, Outcome, Record, State
from durable.states import TERMINAL
from durable.stores.memory.rows import Row
from durable.worker import Worker
from tests.simulation.scenario import NAMES

if TYPE_CHECKING:
    from tests.simulation.flows import Effect
    from tests.simulation.process import Process
    from tests.simulation.world import World

_FINAL = (State.COMPLETED, State.COMPENSATED, State.CANCELLED)
_MARK = re.compile(r"\b(sig|evt):(\w+):")


def open_waits(row: Row) -> list[str]:
    """The names of the signals for which the run waits, by its history."""
    names = list[str]()
    for key, record in row.records.items():
        name = key.rpartition("/")[2]
        if record.kind not in (Kind.WAIT, Kind.CALL) or f"{key}/woke" in row.records:
            continue
        if record.kind is Kind.CALL:
            names.append(f"child/{key}")
        elif name.startswith("any "):
            names += NAMES
        else:
            names.append(name if name in NAMES else f"event/{name}/")
    return names


class _Before(NamedTuple):
    """What a call may change, as it was before."""

    held: list[tuple[bool, Any]]  # of a commit's writes: may this worker write, and what the run looked like
    due: dict[str, tuple[str | None, datetime | None]]  # of a claim: run id → owner, ready_at
    now: datetime
    rows: dict[str, Row]  # of a pruning: all
    shared: dict[str, str]  # of a pruning: key of a shared effect → the run that has made it


class Triggers:
    """I1: every acknowledged trigger is exactly one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._keys: dict[int, str | None] = {}
        self._run_of: dict[str, str] = {}  # a key, or a trigger without one → its run
        self._created: Counter[str] = Counter()
        self._pruned: set[str] = set()

    def prune(self, row: Row) -> None:
        """The run is deleted, and its key is free."""
        self._pruned.add(row.new.id)
        for what in [what for what, run_id in self._run_of.items() if run_id == row.new.id]:
            del self._run_of[what]
            del self._created[what]

    def sent(self, number: int, key: str | None) -> None:
        self._keys[number] = key

    def acknowledged(self, number: int, key: str | None, run_id: str, created: bool) -> None:
        self._world.say("", f"trigger {number} is acknowledged as {self._world.name(run_id, 'r')}")
        what = key or str(number)
        self._created[what] += created
        known = self._run_of.setdefault(what, run_id)
        if run_id in self._pruned:  # the acknowledgement was late
            return
        if run_id not in self._world.store._rows:
            self._world.fail("I1", f"trigger {number} is acknowledged, and its run is not there")
        if known != run_id:
            self._world.fail("I1", f"trigger {number} of key {key} is run {run_id}, and another one was run {known}")
        if key is not None and self._created[what] > 1:
            self._world.fail("I1", f"two triggers of key {key} are told that they have created the run")

    def check(self, rows: Sequence[Row]) -> None:
        """No two runs are one trigger's, one call's or one tick's, and each is somebody's."""
        origins: Counter[Any] = Counter()
        for row in rows:
            new = row.new
            number = new.tags.get("trigger")
            if new.parent is not None:
                origin: Any = self._call_of(new)
            elif new.schedule is not None:
                origin = new.schedule, new.tick
            elif number is not None:
                origin = self._keys[int(number)] or number
            else:
                origin = "nobody"
            origins[origin] += 1
        for origin, count in origins.items():
            if count > 1 or origin == "nobody":
                rule = "I6" if isinstance(origin, tuple) and origin[0] == "tick" else "I1"
                self._world.fail(rule, f"{count} runs are {origin}'s")

    def _call_of(self, new: NewRun) -> Any:
        """The record that has made a child; an operator's retry sets it aside, and then another one makes another."""
        parent = self._world.store._rows.get(new.parent or "")
        if parent is None:
            return (new.id, "of a run that was pruned") if new.parent in self._pruned else "nobody"
        calls = parent.records.values()
        return next(((new.parent, one.seq) for one in calls if one.kind is Kind.CALL and one.data == new.id), "nobody")


class Inboxes:
    """I6: every signal is consumed at most once, and never lost."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._acknowledged: dict[str, set[str]] = {}

    def acknowledged(self, run_id: str, signal_id: str) -> None:
        row = self._world.store._rows.get(run_id)
        if row is not None:  # else it has ended since, and was pruned
            self._acknowledged.setdefault(run_id, set()).add(signal_id)
            self.check(row)

    def prune(self, row: Row) -> None:
        """The run is deleted, and its inbox with it."""
        self._acknowledged.pop(row.new.id, None)

    def check(self, row: Row) -> None:
        lost = self._acknowledged.get(row.new.id, set()) - row.inbox.keys()
        if lost:
            self._world.fail("I6", f"{sorted(lost)} of run {row.new.id} were acknowledged, and are not in its inbox")
        got: Counter[tuple[str, str]] = Counter()
        for record in row.records.values():
            if record.kind in (Kind.WOKE, Kind.REFUSED) and record.data is not None:
                got.update((kind, mark) for kind, mark in _MARK.findall(record.data))
        twice = [mark for mark, count in got.items() if count > 1]
        if twice:
            self._world.fail("I6", f"run {row.new.id} got {twice} more than once")
        consumed = {mark for one in row.inbox.values() if one.id in row.consumed for mark in _MARK.findall(one.data)}
        if consumed != got.keys():
            self._world.fail("I6", f"run {row.new.id} has consumed {sorted(consumed)}, and recorded {sorted(got)}")


class Monitor:
    """All invariants of one world."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._rows = world.store._rows
        self.triggers = Triggers(world)
        self.inboxes = Inboxes(world)
        self._looks: dict[str, Any] = {}
        self._records: dict[str, dict[str, Record]] = {}
        self._last: dict[str, State] = {}
        self._begun: set[Effect] = set()
        self._values: dict[str, Effect] = {}
        self._pruned_ticks: set[tuple[str, datetime]] = set()
        self._pruned_effects: set[str] = set()
        self.checked = 0

    # -- around every call of the store -----------------------------------------------------------

    def before(self, verb: str, args: Sequence[Any]) -> _Before:
        store, held, due = self._world.store, list[tuple[bool, Any]](), dict[str, tuple[str | None, datetime | None]]()
        if verb == "commit":
            worker, writes = args
            for write in writes:
                row = self._rows.get(write.ref.id)
                may = (
                    row is not None and worker in store._workers and (row.owner, row.claim) == (worker, write.ref.claim)
                )
                held.append((may, None if row is None else _written(row)))
        elif verb == "claim":
            due = {run_id: (row.owner, row.ready_at) for run_id, row in self._rows.items()}
        rows, shared = dict[str, Row](), dict[str, str]()
        if verb == "prune":
            rows, shared = dict(self._rows), {key: made.run_id for key, made in store._effects.items()}
        return _Before(held, due, self._world.latest, rows, shared)

    def after(
        self,
        process: Process,
        verb: str,
        args: Sequence[Any],
        value: Any,
        error: Exception | None,
        fate: str,
        before: _Before,
    ) -> None:
        self._say(process, verb, args, value, error, fate)
        if verb == "commit" and error is None:
            for write, (may, look) in zip(args[1], before.held, strict=False):
                row = self._rows.get(write.ref.id)
                if not may and row is not None and _written(row) != look:
                    self._world.fail("I4", f"{process.name} has written about run {row.new.id}, which it does not hold")
        if verb == "claim" and error is None:
            self._check_claim(args[0], value, before)
        if verb == "prune" and error is None:
            self._check_pruned(args[0], value, before)
        self.checked += 1
        changed = [row for run_id, row in self._rows.items() if self._looks.get(run_id) != _look(row)]
        if not changed:
            return
        if any(row.new.id not in self._looks for row in changed):
            self.triggers.check(list(self._rows.values()))
        for row in changed:
            self._check_row(row)
            self._looks[row.new.id] = _look(row)
        self._check_holders()

    def _say(
        self, process: Process, verb: str, args: Sequence[Any], value: Any, error: Exception | None, fate: str
    ) -> None:
        world = self._world
        shown = ""
        if verb == "commit" and error is None:
            shown = "; ".join(
                f"{world.name(write.ref.id, 'r')}:{write.ref.claim} {[one.key for one in write.records]}"
                f"{'' if write.change is None else ' ' + write.change.state} {outcome}"
                for write, outcome in zip(args[1], [one for one in value if one is not Outcome.BUSY], strict=False)
            )
        elif verb == "claim" and error is None:
            shown = ", ".join(f"{world.name(one.run.id, 'r')}:{one.run.claim}" for one in value.runs)
        elif verb == "reap" and error is None:
            shown = f"{value.released} released"
        elif verb in ("register", "renew", "unregister"):
            shown = world.name(args[0], "w")
        elif verb in ("request", "take_effect"):
            shown = f"{args[0 if verb == 'request' else 1]} {value}" if error is None else ""
        world.say(
            process.name, " ".join(part for part in (verb, fate and f"({fate})", shown, error and repr(error)) if part)
        )

    # -- in every moment --------------------------------------------------------------------------

    def _check_claim(self, worker: str, claimed: Claimed, before: _Before) -> None:
        for one in claimed.runs:
            owner, ready_at = before.due.get(one.run.id, (None, None))
            if owner is not None and owner != worker:
                self._world.fail("I4", f"run {one.run.id} was claimed while {owner} held it")
            if owner is None and (ready_at is None or ready_at > before.now):
                self._world.fail("I2", f"run {one.run.id} was claimed before it was ready")
            if one.records is not None and list(one.records) != self._rows[one.run.id].history():
                self._world.fail("I3", f"run {one.run.id} was claimed with another history than it has")

    def _check_pruned(self, older: datetime, said: int, before: _Before) -> None:
        """What was deleted had ended before that time, and nobody is asked about it any more."""
        gone = [row for run_id, row in before.rows.items() if run_id not in self._rows]
        if len(gone) != said:
            self._world.fail("I2", f"{said} runs were pruned, and {len(gone)} are gone")
        for row in gone:
            run_id = row.new.id
            if row.state not in TERMINAL or row.ended_at is None or row.ended_at >= older:
                self._world.fail("I2", f"run {run_id} was pruned, {row.state}, ended at {row.ended_at}")
            self.triggers.prune(row)
            self.inboxes.prune(row)
            for book in (self._looks, self._records, self._last):
                book.pop(run_id, None)
            if row.new.schedule is not None and row.new.tick is not None:
                self._pruned_ticks.add((row.new.schedule, row.new.tick))
            self._pruned_effects.update(key for key, made in before.shared.items() if made == run_id)

    def _check_holders(self) -> None:
        store = self._world.store
        narrow = 0
        for row in self._rows.values():
            if row.owner is not None:
                narrow += row.new.queue == "narrow"
                if row.owner not in store._workers:
                    self._world.fail("I4", f"run {row.new.id} is held by {row.owner}, whose lease is over")
                if row.state not in (State.RUNNING, State.COMPENSATING):
                    self._world.fail("I2", f"run {row.new.id} is {row.state}, and held")
        if narrow > 1:
            self._world.fail("I2", f"{narrow} runs of a queue for one are held")

    def _check_row(self, row: Row) -> None:
        last = self._last.get(row.new.id)
        if last in _FINAL and row.state is not last:
            self._world.fail("I2", f"run {row.new.id} was {last}, and is {row.state}")
        self._last[row.new.id] = row.state
        if (row.state in TERMINAL) != (row.ended_at is not None):
            self._world.fail("I2", f"run {row.new.id} is {row.state}, and ended at {row.ended_at}")
        if row.state in TERMINAL and (row.owner is not None or row.ready_at is not None):
            self._world.fail("I2", f"run {row.new.id} is {row.state}, and can be claimed or is held")
        self._check_records(row)
        self._check_undone(row)
        self.inboxes.check(row)

    def _check_records(self, row: Row) -> None:
        """I3: written once, never changed; what is set aside keeps its contents under another key."""
        known = self._records.setdefault(row.new.id, {})
        aside = {_bare(key): one for key, one in row.records.items() if key.startswith("/") and key[1:2].isdigit()}
        highest = max((one.seq for one in known.values()), default=0)
        for key, record in list(known.items()):
            now = row.records.get(key)
            if now is not None and now.seq == record.seq:
                if now != record:
                    self._world.fail("I3", f"record {key} of run {row.new.id} was {record}, and is {now}")
            elif key in aside or any(one.seq == record.seq for one in row.records.values()):
                del known[key]
            else:
                self._world.fail("I3", f"record {key} of run {row.new.id} is gone")
        new = [one for key, one in row.records.items() if key not in known]
        for record in new:
            known[record.key] = record
            if record.seq <= highest and not record.key.startswith("/"):
                self._world.fail("I3", f"record {record.key} of run {row.new.id} was put before others")
        if len({one.seq for one in row.records.values()}) != len(row.records):
            self._world.fail("I3", f"two records of run {row.new.id} have one number")

    def _check_undone(self, row: Row) -> None:
        """I5: in reverse order, each once, none without its step; and all of them at the end."""
        undone = sorted(
            (one for key, one in row.records.items() if one.kind is Kind.UNDO and key[0] != "/"),
            key=lambda one: one.seq,
        )
        steps = [row.records.get(one.key.removesuffix("/undo")) for one in undone]
        for step, undo in zip(steps, undone, strict=True):
            if step is None or step.failed or not step.compensable or step.seq > undo.seq:
                self._world.fail("I5", f"{undo.key} of run {row.new.id} compensates what was not done")
        if any(b.seq > a.seq for a, b in pairwise(step for step in steps if step is not None)):
            self._world.fail("I5", f"the compensations of run {row.new.id} are in no reverse order")
        if row.state is State.COMPENSATED or (row.state is State.CANCELLED and row.started_at is not None):
            left = {one.key for one in row.records.values() if one.kind is Kind.STEP and one.compensable}
            left -= {one.key.removesuffix("/undo") for one in undone}
            left = {key for key in left if key[0] != "/" and not row.records[key].failed}
            if left:
                self._world.fail("I5", f"run {row.new.id} is {row.state}, and {sorted(left)} were not undone")

    # -- the ledger -------------------------------------------------------------------------------

    def begins(self, process: Process, worker: Worker, effect: Effect, before: tuple[str, ...]) -> None:
        """I7: an effect begins; and the gate that is before it."""
        row, world = self._rows.get(effect.run_id), self._world
        if world.now > worker.deadline:
            world.fail("I4", f"{process.name} begins {effect.key} after its worker's own deadline")
        if not effect.claim:
            world.fail("I4", f"{process.name} begins {effect.key} of run {effect.run_id}, which it has dropped")
        once = effect._replace(number=0)
        if once in self._begun:
            world.fail("I7", f"{effect.key} of run {effect.run_id} was called twice in one claim, without a failure")
        self._begun.add(once)
        self._values[f"eff:{effect.number}:"] = effect
        if (
            row is None
            or effect.worker not in world.store._workers
            or (row.owner, row.claim) != (effect.worker, effect.claim)
        ):
            return  # it has lost its lease, and does not know it yet: that is what the deadline bounds
        if effect.key in row.records:
            world.fail("I7", f"{effect.key} of run {effect.run_id} is recorded, and called again")
        missing = [key for key in before if key not in row.records]
        if missing:
            world.fail("I7", f"{effect.key} of run {effect.run_id} begins before {missing} are committed")
        failed = sum(key.startswith(f"{effect.key}/attempt/") for key in row.records)
        if effect.attempt != failed + 1:
            world.fail("I7", f"{effect.key} of run {effect.run_id}: attempt {effect.attempt} after {failed} failed")

    def stands(self, process: Process, identity: str, seconds: float) -> None:
        """A thread begins that cannot be stopped: no other attempt of its step begins in its process before its end."""
        threads, now = process.threads, self._world.now
        if threads.get(identity, 0.0) > now:
            self._world.fail("I7", f"{process.name} calls {identity} while a thread of an earlier attempt goes on")
        threads[identity] = now + seconds

    def saw(self, worker: Worker, run_id: str, key: str, value: str) -> None:
        """I3: what the holder's workflow is given is what is recorded, if anything is."""
        row, execution = self._rows.get(run_id), worker._active.get(run_id)
        if row is None or execution is None or (row.owner, row.claim) != (worker.id, execution.ref.claim):
            return
        record = row.records.get(key)
        if record is not None and record.data is not None and not record.failed and json.loads(record.data) != value:
            self._world.fail("I3", f"{key} of run {run_id} gave {value}, and {record.data} is recorded")

    def undoes(self, run_id: str, key: str, value: str) -> None:
        """I5: a compensation gets what its step has come to."""
        row = self._rows.get(run_id)
        record = None if row is None else row.records.get(key)
        if record is None or record.data is None or json.loads(record.data) != value:
            self._world.fail("I5", f"{key} of run {run_id} is undone with {value}, and has come to {record}")

    # -- at the end -------------------------------------------------------------------------------

    def at_rest(self) -> bool:
        """Every run has ended, or only something from outside can move it."""
        return not self.restless()

    def restless(self) -> list[str]:
        return [
            f"{row.new.id} {row.state} ready at {row.ready_at} held by {row.owner}"
            for row in self._rows.values()
            if row.state not in TERMINAL
            and row.state is not State.PAUSED
            and (row.state is not State.WAITING or row.owner is not None or row.ready_at is not None)
        ]

    def check_rest(self) -> None:
        """I2: whoever waits has a reason to: nothing that it waits for has come."""
        for row in self._rows.values():
            if row.state is State.PAUSED and not row.reason:
                self._world.fail("I2", f"run {row.new.id} is paused without a reason")
            if row.state is not State.WAITING:
                continue
            awaited = open_waits(row)
            for signal in row.unread():
                if signal.name in awaited:
                    self._world.fail("I2", f"run {row.new.id} waits, and {signal.name} is in its inbox")

    def schedules_are_fired(self) -> bool:
        """No tick is due, and runs of the schedules stand in no other's way."""
        now = self._world.clock.now()
        return all(one.due_at is None or one.due_at > now for one in self._world.store._schedules.values())

    def check_ticks(self) -> None:
        """I6: no tick of a schedule that allows overlap is missing."""
        store = self._world.store
        for name, schedule in store._schedules.items():
            if schedule.spec.overlap != "allow" or schedule.spec.every is None:
                continue
            fired = {row.new.tick for row in self._rows.values() if row.new.schedule == name and row.new.tick}
            ticks = sorted(fired | {tick for pruned, tick in self._pruned_ticks if pruned == name})
            every = timedelta(seconds=schedule.spec.every)
            due = [*ticks, *([] if schedule.next_at is None else [schedule.next_at])]
            if any(b - a != every for a, b in pairwise(due)):
                self._world.fail("I6", f"ticks of {name} are missing: {[f'{tick:%T}' for tick in ticks]}")

    def check_end(self) -> None:
        """I2, I3, I7: all have ended; what is recorded was done, and what was emitted is in the log once."""
        shared: dict[str, set[str]] = {}
        emitted = Counter((one.run_id, one.key) for _, one in self._world.store._emitted)
        for row in self._rows.values():
            if row.state not in TERMINAL:
                self._world.fail("I2", f"run {row.new.id} is {row.state} at the end, for no reason")
            takeovers = sum(one.kind is Kind.TAKEOVER for one in row.records.values())
            if row.state is State.DEAD_LETTER and takeovers < 5:
                self._world.fail("I2", f"run {row.new.id} is a dead letter after {takeovers} takeovers")
            for record in row.records.values():
                if record.kind is Kind.STEP and not record.failed and record.data is not None:
                    value = json.loads(record.data)
                    if (key := self._world.flows.shared.get(value)) is not None:
                        shared.setdefault(key, set()).add(value)
                    if value not in self._values:
                        self._world.fail("I7", f"{record.key} of run {row.new.id} is recorded, and was never done")
                if record.kind is Kind.EMIT and emitted.pop((row.new.id, record.key), 0) != 1:
                    self._world.fail("I3", f"{record.key} of run {row.new.id} is not in the log exactly once")
        if emitted:
            self._world.fail("I3", f"the log has entries without a record: {emitted}")
        if any(len(values) > 1 for key, values in shared.items() if key not in self._pruned_effects):
            self._world.fail("I7", f"a shared effect has several results: {shared}")


def _bare(key: str) -> str:
    """The key that a record had before it was set aside."""
    return key.split("/", 2)[2]


def _written(row: Row) -> Any:
    """What only its holder may change of a run."""
    return row.state, row.owner, row.claim, len(row.records), row.result, row.error, len(row.consumed), row.reason


def _look(row: Row) -> Any:
    return (*_written(row), row.ready_at, len(row.inbox), row.takeovers, row.requested)
