"""The replay core: a run's history against the operations that its code calls. Decisions only, no waiting.

It answers four questions for the shell (``execution``), which does the waiting:

* ``call``: which record key does this operation have? (name plus occurrence, taken when it is called)
* ``begin``: may it start, is its recorded result due now, or must it wait for its turn?
* ``next_delivery`` and ``startable``: the run's code has had ``idle`` passes of the event loop without calling,
  cancelling or receiving anything; what may happen now?
* ``conclude``: what is the record of a result that is delivered for the first time?

**Order.** Results reach the code one at a time, each followed by the code it wakes, on the first pass and on
replay alike, so ``asyncio.wait``, ``as_completed`` and a failing TaskGroup take the same path both times. On
replay the order is that of the records' sequence numbers. Each record also holds how many operations the run
had begun when it was delivered: a logical clock. An operation that is alone, and whose record says that
nothing else had begun, is answered at once: a sequential workflow replays without a single detour.

**Nothing starts early.** On replay an operation without a record starts only when no begun operation has a
recorded result left, and what the last delivery woke has come to rest: it may be cancelled by that code.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Mapping, Sequence
from datetime import datetime
from heapq import heappop, heappush
from typing import Any, Protocol

from durable.errors import AmbiguousName, NondeterminismError
from durable.model import Kind, Record, Signal

SETTLE = 10
"""Passes of the event loop after which woken code counts as having come to rest. A result passes one level of
gather, wait or TaskGroup in two passes; the same number on both passes makes deeper nesting deterministic
too, as far as it is reached."""

SETTLE_LONG = 200
"""The same while the history says that the code has not yet begun all that it had begun at that point."""


class Scope(Protocol):
    """The task in which an operation is called."""

    def done(self) -> bool: ...


class Turn(Protocol):
    """What the shell has an operation wait on: an asyncio future."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...

    def __await__(self) -> Generator[Any, None, None]: ...


_SCHEDULED = frozenset({Kind.SLEEP, Kind.WAIT})
"""Operations that are recorded twice: when they are called, and as ``<key>/woke`` when they end."""


class _Nobody:
    def done(self) -> bool:
        return True


_NOBODY, _SEVERAL = _Nobody(), _Nobody()
_UNUSED: tuple[int, Scope | None] = (0, None)


class Operation:
    """One ``ctx`` operation of one run: its key, and the record of its result when there is one."""

    __slots__ = ("brought", "future", "held", "key", "kind", "recorded", "scheduled", "scope", "stood_alone")

    def __init__(self, key: str, kind: Kind, recorded: Record | None, scheduled: Record | None) -> None:
        self.key = key
        self.kind = kind
        self.recorded = recorded
        self.scheduled = scheduled  # a sleep's own record: it was called on an earlier pass
        self.scope: Any = None  # the task in which it is awaited
        self.held = False  # it has to wait for its turn
        self.future: Turn | None = None  # what its coroutine waits on until it is its turn
        self.stood_alone = False  # when it was begun
        self.brought: Signal | None = None  # a wait: what ends it, once that is known

    def __str__(self) -> str:
        return f"the result of {self.kind} {self.key!r}"


class Replay:
    """The core's state for one execution of one run.

    Args:
        records: The history, in sequence order.
        now: The time before anything is delivered: when the run first started.
    """

    def __init__(self, records: Sequence[Record], now: datetime) -> None:
        self._records: dict[str, Record] = {}
        self._others: list[Record] = []  # of no operation: requests, run attempts, takeovers, what was set aside
        self._left = 0  # results not delivered
        self._reached: set[str] = set()  # begun before without a result, and not begun again
        if records:
            self._read(records)
        self.resumed = bool(self._records)
        """There is a history of operations: something of what the code calls may be in it."""
        self._names: dict[str, tuple[int, Scope | None]] = {}
        self.open: dict[str, Operation] = {}
        """Begun, neither delivered nor dropped."""
        self._due: list[tuple[int, str]] = []  # of those, the ones with a recorded result, by seq
        self._offered: deque[Operation] = deque()  # of those, the ones whose live result waits for its turn
        self._held: list[Operation] = []  # of those, the ones that wait for permission to start
        self._woken: Scope | None = _NOBODY  # the only task that the last delivery woke, as far as is known
        self._drafted = False  # a result is being committed: no other is delivered before it
        self._live = not self._left  # no more settling before a start
        self.seq = records[-1].seq if records else 0
        self.begun = 0
        self.now = now

    def _read(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.key[0] == "/":
                self._others.append(record)
            else:
                self._records[record.key] = record
                self._left += record.kind in _RESULTS and not _is_item(record.key)
        self._reached = _unfinished(self._records)

    # -- calling ----------------------------------------------------------------------------------

    def call(self, name: str, kind: Kind, scope: Scope | None) -> Operation:
        """Take the next occurrence of ``name``.

        Raises:
            AmbiguousName: Another task of this run, still alive, uses the name.
            NondeterminismError: It is recorded as another kind.
        """
        key = self.take(name, scope)
        return self.operation(key, kind) if self._records else Operation(key, kind, None, None)

    def take(self, name: str, scope: Scope | None) -> str:
        """The key of the next occurrence of ``name``, which is taken.

        Raises:
            AmbiguousName: Another task of this run, still alive, uses the name.
        """
        count, user = self._names.get(name, _UNUSED)
        if count and user is not scope and user is not None and not user.done():
            raise AmbiguousName(
                f"two live tasks of this run use the name {name!r}: a replay could swap their results. "
                "Put the item into the name, or use ctx.map or ctx.branch"
            )
        key = f"{name}#{count + 1}" if count else name
        self._names[name] = (count + 1, scope)
        return key

    def next_key(self, name: str) -> str:
        """The key that the next operation called ``name`` will have."""
        count, _ = self._names.get(name, _UNUSED)
        return name if not count else f"{name}#{count + 1}"

    def operation(self, key: str, kind: Kind) -> Operation:
        """The operation with exactly this key."""
        own = self._records.get(key)
        if own is not None and own.kind is not kind:
            raise NondeterminismError(
                f"operation {key!r} is recorded as a {own.kind} (seq {own.seq}), and the code asks for a {kind}"
            )
        if kind in _SCHEDULED:
            return Operation(key, kind, self._records.get(f"{key}/woke"), own)
        return Operation(key, kind, own, None)

    def attempts(self, key: str) -> list[Record]:
        """The failed attempts recorded for ``key``, in order."""
        found: list[Record] = []
        while (record := self._records.get(f"{key}/attempt/{len(found) + 1}")) is not None:
            found.append(record)
        return found

    def recorded(self, kind: Kind) -> list[Record]:
        """The records of one kind that the execution started with, in sequence order; none that was set aside."""
        everything = (*self._records.values(), *self._others)
        return [record for record in everything if record.kind is kind]

    def children(self, heard: Collection[str]) -> dict[str, str]:
        """The recorded calls → run ids of the children whose end is neither recorded nor among ``heard``."""
        return {
            key: record.data or ""
            for key, record in self._records.items()
            if record.kind is Kind.CALL and f"{key}/woke" not in self._records and key not in heard
        }

    def end_was_told(self, key: str) -> bool:
        """Whether an operator's retry has set the end of the child called as ``key`` aside, and left the call."""
        call = self._records.get(key)
        ends = (record for record in self._others if _aside(record.key) == f"{key}/woke")
        return call is not None and any(end.seq > call.seq for end in ends)  # else it was the end of another child

    def data_of(self, key: str) -> str | None:
        """The data of the record with this key that the execution started with, if there is one."""
        record = self._records.get(key)
        return None if record is None else record.data

    def items(self, key: str) -> list[Record]:
        """The records of the items of a fan-out that the execution started with, in sequence order."""
        start = f"{key}["
        return [record for record in self._records.values() if record.key.startswith(start)]

    # -- beginning --------------------------------------------------------------------------------

    def begin(self, op: Operation, scope: Scope | None) -> bool:
        """The operation is awaited now, in the task ``scope``.

        Returns:
            True when it goes on at once: to its recorded result if it has one, else to its start.
            False when it has to wait for ``next_delivery`` or ``startable`` to name it.
        """
        if op.kind is not Kind.UNDO:  # not begun by the workflow's code: a replay need not begin it
            self.begun += 1
        self.open[op.key] = op
        op.scope = scope
        if op.key in self._reached:
            self._reached.remove(op.key)
        elif op.recorded is None:
            self._reached.clear()
        op.stood_alone = len(self.open) == 1 and (self._woken is scope or self._woken is _NOBODY)
        if op.recorded is not None:
            if op.stood_alone and self.begun == op.recorded.begun:
                return True
            heappush(self._due, (op.recorded.seq, op.key))
            return False
        if self._live and not self._due:
            return True
        self._held.append(op)
        return False

    def drop(self, op: Operation) -> bool:
        """The operation was cancelled by the run's own code: it has no result, and is no failure.

        Returns:
            False when it was delivered before.
        """
        if self.open.pop(op.key, None) is None:
            return False
        self._woken = _SEVERAL
        if op.recorded is not None:
            self._due = sorted(entry for entry in self._due if entry[1] != op.key)
            self._left -= op.kind is not Kind.UNDO
        elif op in self._held:
            self._held.remove(op)
        elif op in self._offered:
            self._offered.remove(op)
        return True

    # -- turns ------------------------------------------------------------------------------------

    @property
    def replaying(self) -> bool:
        """The code has been here before: recorded results are left, or operations that it had begun."""
        return (self._left > 0 and not self._live) or bool(self._reached)

    @property
    def live(self) -> bool:
        """What is not recorded starts at once: the code has gone past its history."""
        return self._live

    def direct(self, op: Operation) -> bool:
        """The result of ``op`` needs no turn: it stands alone, in the task that the last delivery woke, so that
        nothing else can be under way between the two."""
        return op.stood_alone and len(self.open) == 1

    def offer(self, op: Operation) -> None:
        """The operation's live result is there and waits for its turn."""
        self._offered.append(op)

    @property
    def unsettled(self) -> bool:
        """Something waits for a turn or for permission to start: keep counting passes."""
        return bool(self._due or self._offered or self._held)

    def next_delivery(self, idle: int) -> Operation | None:
        """The operation whose result is delivered now, if it is time for one."""
        if self._drafted:
            return None
        if self._due:
            op = self.open[self._due[0][1]]
            assert op.recorded is not None
            if idle < (SETTLE if self.begun >= op.recorded.begun else SETTLE_LONG):
                return None
            heappop(self._due)
            return op
        if self._offered and idle >= SETTLE:
            return self._offered.popleft()
        return None

    def startable(self, idle: int) -> list[Operation]:
        """The operations without a record that may start now."""
        if not self._held or self._due or idle < (SETTLE_LONG if self._left else SETTLE):
            return []
        self._live = True
        started, self._held = self._held, []
        return started

    # -- results ----------------------------------------------------------------------------------

    def deliver(self, op: Operation) -> Record:
        """Hand over the recorded result of ``op``."""
        assert op.recorded is not None
        self._close(op)
        self._left -= op.kind is not Kind.UNDO
        self.now = max(self.now, op.recorded.at)
        return op.recorded

    def _close(self, op: Operation) -> None:
        del self.open[op.key]
        self._woken = _SEVERAL if self.open else op.scope

    def conclude(
        self,
        op: Operation,
        at: datetime,
        data: str | None = None,
        failed: bool = False,
        attempt: int = 1,
        duration: float = 0.0,
        compensable: bool = False,
    ) -> Record:
        """The record of a result that is delivered now, for the first time."""
        key, kind = op.key, op.kind
        del self.open[key]
        self._woken = _SEVERAL if self.open else op.scope
        self.seq += 1
        if at > self.now:
            self.now = at
        else:
            at = self.now
        if kind in _SCHEDULED:
            key, kind = f"{key}/woke", Kind.WOKE
        return Record(self.seq, key, kind, at, data, failed, attempt, duration, self.begun, compensable)

    def draft(
        self, op: Operation, at: datetime, data: str | None, attempt: int, duration: float, compensable: bool
    ) -> Record:
        """The record of a result that is committed by itself: ``settle`` says what came of it."""
        self._drafted = True
        self.seq += 1
        at = at if at > self.now else self.now
        return Record(self.seq, op.key, op.kind, at, data, False, attempt, duration, self.begun, compensable)

    def settle(self, op: Operation, record: Record | None) -> None:
        """What was drafted for ``op`` is committed, and delivered now; None: it is not."""
        self._drafted = False
        if record is not None and op.key in self.open:  # not cancelled meanwhile
            self._close(op)
            self.now = record.at

    def item(
        self,
        key: str,
        kind: Kind,
        at: datetime,
        data: str | None,
        *,
        failed: bool = False,
        attempt: int = 1,
        duration: float = 0.0,
        compensable: bool = False,
    ) -> Record:
        """The record of an item of a fan-out. The whole is delivered at once: an item's own order does not matter."""
        self.seq += 1
        return Record(self.seq, key, kind, at, data, failed, attempt, duration, self.begun, compensable)

    def note(self, op: Operation, at: datetime, due_at: datetime | None, data: str | None = None) -> Record:
        """The record that a sleep or a wait was called; it delivers nothing."""
        self.seq += 1
        op.scheduled = Record(self.seq, op.key, op.kind, at, data, due_at=due_at)
        return op.scheduled

    def remark(
        self, kind: Kind, key: str, at: datetime, data: str, attempt: int = 1, due_at: datetime | None = None
    ) -> Record:
        """A record that belongs to no operation; ``{seq}`` in its key is its sequence number."""
        self.seq += 1
        failed = kind in (Kind.RUN_ATTEMPT, Kind.REFUSED)
        return Record(self.seq, key.format(seq=self.seq), kind, at, data, failed, attempt, due_at=due_at)

    def failed_attempt(
        self, op: Operation, at: datetime, data: str, attempt: int, duration: float, due_at: datetime
    ) -> Record:
        """The record of a failed attempt that will be followed by another one at ``due_at``."""
        self.seq += 1
        key = f"{op.key}/attempt/{attempt}"
        return Record(self.seq, key, Kind.ATTEMPT, at, data, True, attempt, duration, due_at=due_at)


# What the function waits for; a compensation is begun by the engine.
_RESULTS = frozenset({Kind.STEP, Kind.WOKE, Kind.CALL, Kind.MAP, Kind.EMIT})


def _aside(key: str) -> str | None:
    """The key that a record had before it was set aside as ``/<claim>/<key>``."""
    claim, _, before = key[1:].partition("/")
    return before if claim.isdecimal() else None


def _is_item(key: str) -> bool:
    """It belongs to an item of a fan-out. Names contain no brackets."""
    return "[" in key


def _unfinished(records: Mapping[str, Record]) -> set[str]:
    """The keys of what had been called and not ended: sleeps, waits, retried steps, fan-outs."""
    called = {key for key, record in records.items() if record.kind in _SCHEDULED and f"{key}/woke" not in records}
    retried = {key.rpartition("/attempt/")[0] for key, record in records.items() if record.kind is Kind.ATTEMPT}
    items = {key for key in records.keys() | retried if _is_item(key)}
    return called | ((retried - items | {key.partition("[")[0] for key in items}) - records.keys())
