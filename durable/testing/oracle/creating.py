"""New runs, lines of concurrency keys, debouncing, signals, events and shared effects, as the oracle has them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from durable.model import (
    Awaited,
    Created,
    Effect,
    EffectEnd,
    NewRun,
    NewSignal,
    Policy,
    Published,
    Request,
    RunRef,
    Sent,
    State,
    Verb,
)
from durable.testing.oracle.kept import Kept, Letter

TOLD = "/effect"


@dataclass
class _Event:
    id: str
    data: str
    at: datetime
    until: datetime


@dataclass
class _Made:
    run_id: str
    step: str
    done: bool = False
    data: str | None = None


class Creating:
    """Everything that anybody may send. ``now`` is moved by whoever asks."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.runs: dict[str, Kept] = {}
        self.lines: dict[tuple[str, str], list[str]] = {}
        self._debounced: dict[tuple[str, str], str] = {}
        self._absorbed: dict[str, str] = {}
        self._events: dict[tuple[str, str], list[_Event]] = {}
        self._awaiting: dict[tuple[str, str], list[str]] = {}
        self._effects: dict[str, _Made] = {}
        self._told = 0
        self.emitted: list[tuple[str, str, str]] = []  # run, key, data

    # -- runs -------------------------------------------------------------------------------------

    def create(self, new: NewRun) -> Created:
        holder = self.find_key(new.workflow, new.key)
        if holder is None and new.debounce is not None and new.id not in self.runs:
            if new.id in self._absorbed:
                return Created(self._absorbed[new.id], False)
            if (absorbing := self._absorb(new)) is not None:
                return absorbing
        there = self.runs.get(holder or new.id)
        if there is not None:
            refused = (there.new.workflow, there.new.key) != (new.workflow, new.key)
            if there.new.debounce is None:
                refused = refused or there.new.input_hash != new.input_hash
            mine = there.new.id == new.id and there.new.request == new.request and not refused
            return Created(
                there.new.id, mine, "refused" if refused else None, replaced=self._before(new) if mine else ()
            )
        line = self.line(new)
        if line and new.policy in (Policy.REJECT, Policy.EXISTING):
            return Created(line[0], False, busy=new.policy is Policy.REJECT)
        run = self.runs[new.id] = Kept(new, self.now)
        run.linked = new.parent is not None or new.concurrency_key is not None
        if new.debounce is not None:
            self._debounced[new.workflow, new.debounce.key] = new.id
        self.join(run)
        run.ready = self._start(run, new)
        replaced = self._before(new)
        for run_id in replaced:
            self.ask(self.runs[run_id], Request(Verb.CANCEL, f"replaced by run {new.id}"))
        return Created(new.id, True, replaced=replaced)

    def find_key(self, workflow: str, key: str | None) -> str | None:
        found = (run.new.id for run in self.runs.values() if (run.new.workflow, run.new.key) == (workflow, key))
        return None if key is None else next(found, None)

    def _start(self, run: Kept, new: NewRun) -> datetime:
        if new.debounce is not None:
            latest = None if new.debounce.max_delay is None else timedelta(seconds=new.debounce.max_delay)
            when = self.now + timedelta(seconds=new.debounce.delay)
            return when if latest is None else min(when, run.created_at + latest)
        return self.now + timedelta(seconds=new.delay) if new.ready_at is None else new.ready_at

    def _absorb(self, new: NewRun) -> Created | None:
        assert new.debounce is not None
        run = self.runs.get(self._debounced.get((new.workflow, new.debounce.key), ""))
        if run is None or run.started or run.over:
            return None
        self._absorbed[new.id] = run.new.id
        run.new = replace(run.new, version=new.version, input=new.input, input_hash=new.input_hash, tags=new.tags)
        if run.state is not State.PAUSED:
            run.ready = self._start(run, new)
        return Created(run.new.id, False)

    def ask(self, run: Kept, request: Request) -> State | None:
        raise NotImplementedError

    # -- lines ------------------------------------------------------------------------------------

    def line(self, new: NewRun) -> list[str]:
        """The runs with this concurrency key that have not ended, the active one first."""
        return self.lines.get((new.workflow, new.concurrency_key or ""), []) if new.concurrency_key else []

    def join(self, run: Kept) -> None:
        if run.new.concurrency_key is not None:
            line = self.lines.setdefault((run.new.workflow, run.new.concurrency_key), [])
            if run.new.id not in line:
                line.append(run.new.id)

    def queued(self, run: Kept) -> bool:
        line = self.line(run.new)
        return run.new.id in line and line[0] != run.new.id

    def _before(self, new: NewRun) -> tuple[str, ...]:
        line = self.line(new)
        if new.policy is not Policy.REPLACE or new.id not in line:
            return ()
        return tuple(line[: line.index(new.id)])

    # -- ends -------------------------------------------------------------------------------------

    def end(self, run: Kept) -> None:
        """The run has ended, by whomever."""
        run.ended, run.ready, run.requested = True, None, None
        line = self.line(run.new)
        if run.new.id in line:
            line.remove(run.new.id)
        for key, made in list(self._effects.items()):
            if made.run_id == run.new.id and not made.done:
                del self._effects[key]
                self._tell(key)
        if run.new.parent in self.runs:
            data = f'{{"state": "{run.state}", "result": {run.result or "null"}, "error": {run.error or "null"}}}'
            self.deliver(self.runs[run.new.parent], Letter(run.new.id, f"child/{run.new.parent_key}", data, self.now))

    def forget(self, run: Kept) -> None:
        run_id = run.new.id
        del self.runs[run_id]
        self._debounced = {key: there for key, there in self._debounced.items() if there != run_id}
        self._absorbed = {trigger: there for trigger, there in self._absorbed.items() if there != run_id}
        self._effects = {key: made for key, made in self._effects.items() if made.run_id != run_id}
        self.emitted = [entry for entry in self.emitted if entry[0] != run_id]
        for topic, waiting in self._awaiting.items():
            self._awaiting[topic] = [there for there in waiting if there != run_id]

    # -- signals ----------------------------------------------------------------------------------

    def send(self, signal: NewSignal) -> Sent:
        run = self.runs.get(signal.run_id)
        if run is None:
            return Sent.NOT_FOUND
        if run.over and all(letter.id != signal.id for letter in run.inbox):
            return Sent.FINISHED
        self.deliver(run, Letter(signal.id, signal.name, signal.data, self.now))
        return Sent.ACCEPTED

    def deliver(self, run: Kept, letter: Letter) -> None:
        if any(there.id == letter.id for there in run.inbox):
            return
        run.inbox.append(letter)
        run.stirred += 1
        run.untold = run.owner is not None
        if run.state is State.WAITING and run.owner is None and (run.ready is None or run.ready > self.now):
            run.ready = self.now

    # -- events -----------------------------------------------------------------------------------

    def publish(self, new: Published) -> None:
        topic = (new.topic, new.key)
        retained = [event for event in self._events.get(topic, []) if event.until > self.now]
        if any(event.id == new.id for event in retained):
            return
        event = _Event(new.id, new.data, self.now, self.now + timedelta(seconds=new.retention))
        self._events[topic] = [*retained, event]
        waiting, given = self._awaiting.pop(topic, []), set[str]()
        for run_id in waiting:
            if run_id in given or not self._give(topic, event, self.runs[run_id]):
                self._awaiting.setdefault(topic, []).append(run_id)
            else:
                given.add(run_id)

    def wait(self, run: Kept, awaited: Awaited) -> None:
        topic = (awaited.topic, awaited.key)
        for event in self._events.get(topic, []):
            if event.until > self.now and event.at >= awaited.since and self._give(topic, event, run):
                return
        self._awaiting.setdefault(topic, []).append(run.new.id)

    def _give(self, topic: tuple[str, str], event: _Event, run: Kept) -> bool:
        if any(letter.id == event.id for letter in run.inbox):
            return False
        self.deliver(run, Letter(event.id, f"event/{topic[0]}/{topic[1]}", event.data, self.now))
        return True

    # -- shared effects ---------------------------------------------------------------------------

    def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        run = self.runs.get(ref.id)
        if run is None or run.owner != worker or run.claim != ref.claim:
            return None
        run.linked_perhaps = True
        made = self._effects.setdefault(key, _Made(ref.id, step))
        if (made.run_id, made.step) != (ref.id, step):
            return Effect(False, made.run_id, made.done, made.data)
        made.done, made.data, run.linked = False, None, True
        return Effect(True, ref.id)

    def making(self, key: str) -> tuple[str, str, bool] | None:
        """Who makes this effect, or has made it: run, step, done."""
        made = self._effects.get(key)
        return None if made is None else (made.run_id, made.step, made.done)

    def end_effect(self, run: Kept, end: EffectEnd) -> None:
        made = self._effects.get(end.key)
        if made is None or (made.run_id, made.step) != (run.new.id, end.step):
            return
        told = not made.done
        if end.kept:
            record = run.key(end.step)
            assert record is not None
            made.done, made.data = True, record.data
        else:
            del self._effects[end.key]
        if told:
            self._tell(end.key)

    def _tell(self, key: str) -> None:
        self._told += 1
        self.publish(Published(f"told/{self._told}", TOLD, key, "null", 3600.0))
