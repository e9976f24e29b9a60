"""Queues with limits in the memory store: who has a place, whose rate is used up, and who is blocked until then.

The rules are those of ``Store.put_queues``. Which run comes first is the claim's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from heapq import heappop, heappush

from durable.model import Queue, Rate
from durable.store import Clock, Route
from durable.stores.memory.rows import Row, refuse_unstorable
from durable.stores.memory.shared import Shared

Share = tuple[str, str]
"""A queue and a limit key."""

_MANY = 1_000_000_000
"""No limit."""

_Bucket = tuple[str, str | None]
"""A queue and a limit key; None: the bucket of the queue as a whole."""


@dataclass(slots=True)
class _Group:
    """The runs of one route and share that were blocked, and have not been claimed since."""

    order: list[tuple[int, datetime, str]] = field(
        default_factory=list[tuple[int, datetime, str]]
    )  # a heap; may be stale
    waiting: set[str] = field(default_factory=set[str])  # those that are not ready
    let_go: set[str] = field(default_factory=set[str])  # those that are ready again, or will be by a token

    def first(self) -> str | None:
        """Take out the first that is not ready."""
        while self.order:
            run_id = heappop(self.order)[2]
            if run_id in self.waiting:
                return run_id
        return None


class Queues(Shared):
    """Put limits; admit, block and let go on."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._limits: dict[str, Queue] = {}
        self._places: dict[str, set[str]] = {}  # queue → held runs
        self._shares: dict[Share, set[str]] = {}  # the same of one limit key
        self._spent: dict[_Bucket, datetime] = {}  # when a bucket will be full again
        self._groups: dict[Share, dict[Route, _Group]] = {}

    async def put_queues(self, queues: Sequence[Queue]) -> None:
        for queue in queues:
            refuse_unstorable((queue.name,))
        with self._lock:
            for queue in queues:
                self._put(queue)

    def _put(self, queue: Queue) -> None:
        if self._limits.get(queue.name, Queue(queue.name)) == queue:
            return
        self._limits[queue.name] = queue
        if queue.unlimited:
            del self._limits[queue.name]
        self._spent = {bucket: spent for bucket, spent in self._spent.items() if bucket[0] != queue.name}
        for share in [share for share in self._groups if share[0] == queue.name]:
            for group in self._groups.pop(share).values():
                for row in [self._rows[run_id] for run_id in group.waiting | group.let_go]:
                    due, row.blocked = row.blocked, None
                    assert due is not None
                    self._free(row, due)

    async def queues(self) -> list[Queue]:
        with self._lock:
            return [self._limits[name] for name in sorted(self._limits)]

    # -- for the claim ----------------------------------------------------------------------------

    def _is_open(self, queue: str, now: datetime) -> bool:
        """Whether anything of the queue can be taken at all."""
        limits = self._limits.get(queue)
        if limits is None:
            return True
        full = limits.concurrency is not None and len(self._places.get(queue, ())) >= limits.concurrency
        return not full and self._token_due((queue, None), limits.rate, now) <= now

    def _opens_at(self, queue: str, now: datetime) -> datetime | None:
        """When the next token of a queue is due whose rate is used up."""
        limits = self._limits.get(queue)
        due = now if limits is None else self._token_due((queue, None), limits.rate, now)
        return due if due > now else None

    def _admit(self, row: Row, now: datetime) -> bool:
        """Give the run a place and its tokens, or block it. Its queue is open."""
        queue, key = row.new.queue, row.new.limit_key
        limits = self._limits.get(queue)
        if limits is None:
            return True
        if key is not None and not self._has_share((queue, key), limits, now):
            self._block(row, (queue, key), now)
            return False
        self._unblock(row)
        row.placed = True
        self._places.setdefault(queue, set()).add(row.new.id)
        self._take_token((queue, None), limits.rate, now)
        if key is not None:
            self._shares.setdefault((queue, key), set()).add(row.new.id)
            self._take_token((queue, key), limits.rate_per_key, now)
            self._go_on((queue, key), now, row.route)
        return True

    def _has_share(self, share: Share, limits: Queue, now: datetime) -> bool:
        return self._places_left(share, limits) > 0 and self._token_due(share, limits.rate_per_key, now) <= now

    def _places_left(self, share: Share, limits: Queue) -> int:
        return _MANY if limits.per_key is None else limits.per_key - len(self._shares.get(share, ()))

    # -- rates ------------------------------------------------------------------------------------

    def _token_due(self, bucket: _Bucket, rate: Rate | None, now: datetime) -> datetime:
        """When the bucket holds a token; not after now when it does."""
        spent = self._spent.get(bucket)
        if rate is None or spent is None:
            return now
        return spent - (rate.limit - 1) * timedelta(microseconds=rate.interval)

    def _tokens(self, bucket: _Bucket, rate: Rate | None, now: datetime) -> int:
        if rate is None:
            return _MANY
        owed = max(self._spent.get(bucket, now), now) - now
        return rate.limit - -(-owed // timedelta(microseconds=rate.interval))

    def _take_token(self, bucket: _Bucket, rate: Rate | None, now: datetime) -> None:
        if rate is not None:
            self._spent[bucket] = max(self._spent.get(bucket, now), now) + timedelta(microseconds=rate.interval)

    # -- who is blocked ---------------------------------------------------------------------------

    def _block(self, row: Row, share: Share, now: datetime) -> None:
        """Have it wait; one that waited before keeps its age."""
        if row.blocked is None:
            row.blocked = row.ready_at
        assert row.blocked is not None
        row.ready_at = None
        group = self._groups.setdefault(share, {}).setdefault(row.route, _Group())
        group.let_go.discard(row.new.id)
        group.waiting.add(row.new.id)
        heappush(group.order, (row.new.priority, row.blocked, row.new.id))
        self._go_on(share, now, row.route)  # with a place free it is for a token that the first one waits

    def _unblock(self, row: Row) -> None:
        """Forget that it was blocked."""
        share = (row.new.queue, row.new.limit_key or "")
        if row.blocked is None or share not in self._groups:
            return
        row.blocked = None
        group = self._groups[share][row.route]
        group.waiting.discard(row.new.id)
        group.let_go.discard(row.new.id)
        if not group.waiting and not group.let_go:
            del self._groups[share][row.route]
        if not self._groups[share]:
            del self._groups[share]

    def _go_on(self, share: Share, now: datetime, *routes: Route) -> None:
        """Of each route (of all by default) let as many go on as have a place, when the next token is due."""
        groups, limits = self._groups.get(share, {}), self._limits.get(share[0])
        if not groups or limits is None:
            return
        due = self._token_due(share, limits.rate_per_key, now)
        room = min(self._places_left(share, limits), max(1, self._tokens(share, limits.rate_per_key, now)))
        for route in routes or list(groups):
            group = groups.get(route)
            while group is not None and len(group.let_go) < room and (run_id := group.first()) is not None:
                row = self._rows[run_id]
                assert row.blocked is not None
                self._free(row, max(row.blocked, due) if due > now else row.blocked)

    # -- hooks ------------------------------------------------------------------------------------

    def _free(self, row: Row, ready_at: datetime) -> None:
        if row.blocked is not None:
            group = self._groups[row.new.queue, row.new.limit_key or ""][row.route]
            group.waiting.discard(row.new.id)
            group.let_go.add(row.new.id)
        super()._free(row, ready_at)

    def _left(self, row: Row, now: datetime) -> None:
        super()._left(row, now)
        queue, key = row.new.queue, row.new.limit_key
        if row.new.id not in self._places.get(queue, ()):
            return
        self._places[queue].discard(row.new.id)
        if key is not None:
            self._shares[queue, key].discard(row.new.id)
            if not self._shares[queue, key]:
                del self._shares[queue, key]
            self._go_on((queue, key), now)

    def _withdrawn(self, row: Row, now: datetime) -> None:
        """What it might have used is for the next one."""
        super()._withdrawn(row, now)
        self._unblock(row)
        if row.new.limit_key is not None:
            self._go_on((row.new.queue, row.new.limit_key), now, row.route)
