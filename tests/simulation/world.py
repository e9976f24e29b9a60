"""The world: its time, its agenda, the store, the processes, and who goes next. All of it follows from a scenario."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

from durable import DurableError, StoreUnavailable
from durable.model import Outcome
from durable.store import Hint
from durable.stores.memory import MemoryStore
from tests.simulation.clients import Clients
from tests.simulation.determined import determined
from tests.simulation.flows import Flows
from tests.simulation.invariants import Monitor
from tests.simulation.process import LEASE, Process
from tests.simulation.scenario import CLIENTS, WORKERS, Operation, Scenario

_QUIET = 400.0
"""Seconds of the world's time, without faults, in which every run has to end."""

_MOST_TICKS = 60_000


class Violation(Exception):
    """Something that must not be."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


class StoreClock:
    """The database's clock: the world's time, and the steps that it has made."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.offset = 0.0

    def at(self, now: float, offset: float) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=now + offset)

    def now(self) -> datetime:
        return self.at(self._world.now, self.offset)

    def call_at(self, when: datetime, callback: Callable[[], None], *, recurring: bool = False) -> Callable[[], None]:
        raise NotImplementedError("only processes have alarms")


class World:
    """One simulation.

    Args:
        scenario: What happens in it.
        store: The kind of store; those of the sabotage controls break a rule.
    """

    def __init__(self, scenario: Scenario, store: type[MemoryStore] = MemoryStore) -> None:
        self.scenario = scenario
        self.rng = Random(f"world {scenario.seed}")
        self.now = 0.0
        self.rewound: float | None = None
        """What ``time.monotonic`` shows instead: the moment at which the heartbeat asked."""
        self.ticks = 0
        self.faults = 0
        self.log: list[str] = []
        self.clock = StoreClock(self)
        self.store = store(clock=self.clock)
        self.flows = Flows(self)
        self.monitor = Monitor(self)
        self.clients = Clients(self)
        self.processes: dict[str, Process] = {}
        self._graveyard: list[Process] = []
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._incarnations = count(1)
        self._names: dict[str, str] = {}
        self._violation: Violation | None = None
        self._over = False
        self.quiet = False
        self._latest = self.clock.now()

    # -- for everybody ----------------------------------------------------------------------------

    def monotonic(self) -> float:
        return self.now if self.rewound is None else self.rewound

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heappush(self._agenda, (self.now + seconds, next(self._order), call))

    @property
    def latest(self) -> datetime:
        """The latest time that the store's clock has shown: what was due by then may be taken, also later."""
        self._latest = max(self._latest, self.clock.now())
        return self._latest

    def say(self, who: str, what: str) -> None:
        self.log.append(f"{self.now:11.6f} {who:<5} {what}")

    def name(self, uuid: str, kind: str) -> str:
        """A short name for a run or a worker, in the order in which they appear."""
        if uuid not in self._names:
            self._names[uuid] = f"{kind}{sum(name[0] == kind for name in self._names.values()) + 1}"
            self.log.append(f"{self.now:11.6f}       {self._names[uuid]} is {uuid}")
        return self._names[uuid]

    def fail(self, rule: str, what: str) -> None:
        """Note the first violation; the world ends with this tick."""
        if self._violation is None:
            self.say("", f"VIOLATION {rule}: {what}")
            self._violation = Violation(rule, what)

    # -- messages ---------------------------------------------------------------------------------

    def send(
        self, process: Process, verb: str, args: Sequence[Any], answered: Callable[[Any, Exception | None], None]
    ) -> None:
        """Send a call to the store; what becomes of it on the way is the scenario's and the seed's."""
        fate, extra = self._fate(process, verb)
        going, coming = self._delay(process), self._delay(process)
        lost = StoreUnavailable(f"{verb}: {fate}")

        def answer(value: Any, error: Exception | None) -> None:
            if process.alive:
                answered(value, error)

        def late() -> None:
            self._apply(process, verb, args, "late")

        def arrive() -> None:
            if fate == "refused":
                self.say(process.name, f"{verb} is refused")
                answer(None, lost)
                return
            if fate == "late":  # the caller has given it up, and the server executes it all the same
                self.after(extra, late)
                answer(None, lost)
                return
            value, error = self._apply(process, verb, args, fate)
            if fate == "twice":
                value, error = self._apply(process, verb, args, fate)
            if fate == "lost":
                value, error = None, lost
            self.after(coming, lambda: answer(value, error))

        self.after(going + (extra if fate == "slow" else 0.0), arrive)

    def _fate(self, process: Process, verb: str) -> tuple[str, float]:
        if self.now < process.cut_off_until:
            return self.rng.choice(["refused", "lost"]), 0.0
        fates = process.fates.get(verb)
        if not fates:
            return "", 0.0
        self.faults += 1
        return fates.pop(0)

    def _delay(self, process: Process) -> float:
        draw = self.rng.random()
        return process.distance * (draw if draw < 0.9 else draw * 10)

    def _apply(self, process: Process, verb: str, args: Sequence[Any], fate: str) -> tuple[Any, Exception | None]:
        """Execute the call in the store, all at once, and see what it has changed."""
        busy: list[int] = []
        if fate == "busy":
            worker, writes = args
            busy = [number for number in range(len(writes)) if self.rng.random() < 0.5]
            args = worker, [write for number, write in enumerate(writes) if number not in busy]
        check = self.monitor.before(verb, args)
        value: Any = None
        error: DurableError | None = None
        try:
            value = getattr(self.store, verb)(*args)
            if verb != "renew":  # the only one that is no coroutine
                value = _at_once(value)
        except DurableError as raised:
            error = raised
        for number in busy:
            value.insert(number, Outcome.BUSY)
        self.monitor.after(process, verb, args, value, error, fate, check)
        return value, error

    def announce(self, sender: Process, hint: Hint) -> None:
        """Tell the other processes: late, in any order, twice, or not at all."""
        for process in list(self.processes.values()):
            if process is sender:
                continue
            for _ in range(self.rng.choice([0, 1, 1, 1, 1, 1, 1, 2])):
                self.after(self._delay(process) * self.rng.choice([1, 1, 20]), partial(self._hint, process, hint))

    def _hint(self, process: Process, hint: Hint) -> None:
        if process.alive:
            for callback in process.subscribers.values():
                process.loop.call_soon(callback, hint)

    # -- processes --------------------------------------------------------------------------------

    def boot(self, slot: str) -> None:
        process = self.processes[slot] = Process(self, f"{slot}.{next(self._incarnations)}")
        self.say(process.name, "begins")

    def gone(self, process: Process, how: str, again: float = 0.5) -> None:
        """The process has ended; another one takes its place after a while."""
        if not process.alive:
            return
        self.say(process.name, how)
        process.alive = False
        process.subscribers.clear()
        self._graveyard.append(process)
        slot = process.name.partition(".")[0]
        del self.processes[slot]
        self.after(again, lambda: self.boot(slot))

    def process_of(self, slot: str) -> Process | None:
        return self.processes.get(slot)

    # -- life -------------------------------------------------------------------------------------

    def run(self) -> Violation | None:
        """Let it happen; what went wrong first, if anything did."""
        with determined(Random(f"chance {self.scenario.seed}"), self.monotonic, self._heard):
            for slot in (*WORKERS, *CLIENTS):
                self.boot(slot)
            for operation in self.scenario.operations:
                self.after(operation["at"], partial(self._do, operation))
            try:
                self._until(lambda: self.now >= self.scenario.ends)
                self._be_quiet()
                self._finish()
            except Violation as violation:
                self._violation = self._violation or violation
            finally:
                self._over = True
                for process in [*self._graveyard, *self.processes.values()]:
                    process.alive = False
                    process.loop.dispose()
        return self._violation

    def _do(self, operation: Operation) -> None:
        if not self.quiet:
            self.say("", f"-- {operation}")
            self.clients.do(operation)

    def _is(self, time: float) -> bool:
        return self.now >= time

    def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            self.tick()
            if self._violation is not None:
                raise self._violation
            if self.ticks > _MOST_TICKS:
                raise Violation("I2", f"no end after {_MOST_TICKS} ticks")

    def tick(self) -> None:
        """One pass of one process's loop, or one message, or one operation."""
        self.ticks += 1
        able: list[Process] = []
        soonest = self._agenda[0][0] if self._agenda else None
        for process in self.processes.values():
            wanted = process.wants()
            if wanted is None:
                continue
            if wanted <= self.now:
                able.append(process)
            elif soonest is None or wanted < soonest:
                soonest = wanted
        due = bool(self._agenda) and self._agenda[0][0] <= self.now
        if not able and not due:
            if soonest is None:
                raise Violation("I2", "nothing can happen any more")
            self.now = soonest
            return
        choice = self.rng.randrange(len(able) + due)
        if choice == len(able):
            heappop(self._agenda)[2]()
            return
        process = able[choice]
        process.loop.turn()
        self.now += self.rng.random() * 0.0004

    def _heard(self, record: logging.LogRecord) -> None:
        """What the engine logs; what it calls impossible is a violation."""
        if self._over:  # every task is being cancelled, which no process could live to see
            return
        text = record.getMessage()
        if record.exc_info or "a bug in the engine" in text:
            self.fail("engine", f"{text} {record.exc_info[1]!r}" if record.exc_info else text)

    # -- the end ----------------------------------------------------------------------------------

    def _be_quiet(self) -> None:
        """No faults any more: what was stopped goes on, what was cut off is connected."""
        self.quiet = True
        self.say("", "-- the faults are over")
        for process in self.processes.values():
            process.stopped_until = process.blocked_until = process.cut_off_until = 0.0
            process.fates.clear()

    def _finish(self) -> None:
        """Everything that can come to an end does, and then nothing was lost."""
        ends = self.now + _QUIET
        self._until(lambda: self.now >= ends or self.monitor.schedules_are_fired())
        self.monitor.check_ticks()
        for name in list(self.store._schedules):
            _at_once(self.store.delete_schedule(name))
        for _ in range(40):
            self._rest(ends)
            self.monitor.check_rest()
            if not self.clients.feed():
                break
            arrived = self.now + 1.0
            self._until(partial(self._is, arrived))
        self.monitor.check_end()

    def _rest(self, ends: float) -> None:
        self._until(lambda: self.now >= ends or self.monitor.at_rest())
        if not self.monitor.at_rest():
            raise Violation("I2", f"no rest within {_QUIET:g} s without faults: {self.monitor.restless()}")

    def kill(self, process: Process, callbacks: int) -> None:
        """End it in the midst of a pass."""
        if callbacks and process.stopped_until <= self.now and process.blocked_until <= self.now:
            process.loop.turn(callbacks)
        self.gone(process, "is killed", self.rng.choice([0.1, 1.0, 2 * LEASE]))


def _at_once(call: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    with suppress(StopIteration):
        try:
            call.send(None)
        except StopIteration as done:
            return done.value
    raise AssertionError("the memory store has waited for something")
