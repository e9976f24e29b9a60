"""What the memory store knows about itself: workers, counts, tokens, and runs that nothing would wake."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import datetime

from durable.model import State
from durable.reports import Census, Depth, Finding, StoredToken, WorkerInfo
from durable.states import TERMINAL
from durable.store import Clock
from durable.stores.findings import abandoned, counted, stranded
from durable.stores.memory.events import Topic
from durable.stores.memory.rows import Row, refuse_unstorable
from durable.stores.memory.workers import Workers
from durable.waits import open_waits


class Oversight(Workers):
    """See ``durable.oversight``."""

    _awaiting: dict[Topic, list[str]]  # of ``Events``

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__(clock)
        self._kept_tokens: dict[str, StoredToken] = {}

    async def workers(self) -> list[WorkerInfo]:
        with self._lock:
            now = self._clock.now()
            return [
                WorkerInfo(worker, *self._homes[worker], expiry, expiry > now, len(self._held[worker]))
                for worker, expiry in sorted(self._workers.items())
            ]

    async def census(self) -> Census:
        with self._lock:
            now = self._clock.now()
            rows = [row for row in self._rows.values() if row.state not in TERMINAL]
            runs = Counter((row.new.workflow, row.state) for row in rows)
            ready: dict[str, list[datetime]] = {}
            for row in rows:
                due = ready.setdefault(row.new.queue, [])
                if row.ready_at is not None and row.ready_at <= now:
                    due.append(row.ready_at)
            depths = {
                queue: Depth(len(due), (now - min(due)).total_seconds() if due else 0.0) for queue, due in ready.items()
            }
            return Census(now, dict(runs), depths)

    # -- tokens -----------------------------------------------------------------------------------

    async def put_token(self, token: StoredToken) -> bool:
        refuse_unstorable((token.token.name,))
        with self._lock:
            return self._kept_tokens.setdefault(token.token.name, token).digest == token.digest

    async def tokens(self) -> list[StoredToken]:
        with self._lock:
            return [self._kept_tokens[name] for name in sorted(self._kept_tokens)]

    async def find_tokens(self, prefix: str) -> list[StoredToken]:
        with self._lock:
            return [token for token in self._kept_tokens.values() if token.prefix == prefix]

    async def delete_token(self, name: str) -> bool:
        with self._lock:
            return self._kept_tokens.pop(name, None) is not None

    # -- defects ----------------------------------------------------------------------------------

    async def examine(self) -> Sequence[Finding]:
        with self._lock:
            now = self._clock.now()
            dead = [worker for worker, expiry in self._workers.items() if expiry <= now]
            held = sum(len(self._held[worker]) for worker in dead)
            return [stranded([row.new.id for row in self._stranded()]), abandoned(len(dead), held)]

    async def repair(self) -> Sequence[str]:
        done: list[str] = []
        if (reaped := await self.reap()).released:
            done.append(f"took over {counted(reaped.released, 'run')} of workers whose leases had expired")
        with self._lock:
            now = self._clock.now()
            found = list(self._stranded())
            for row in found:
                row.state = State.PENDING if row.state is State.RUNNING else row.state
                self._free(row, now)
        if found:
            done.append(f"made {counted(len(found), 'run')} ready that nothing would have woken")
        return done

    def _stranded(self) -> Iterator[Row]:
        for row in self._rows.values():
            if row.state in TERMINAL or row.owner is not None or row.ready_at is not None:
                continue
            blocked = row.blocked is not None and row.new.limit_key is not None
            if row.state is State.PAUSED or row.queued or blocked or self._awaits(row):
                continue
            yield row

    def _awaits(self, row: Row) -> bool:
        """Whether something may come that wakes it."""
        if row.state not in (State.WAITING, State.COMPENSATING):
            return False
        awaited = any(row.new.id in waiting for waiting in self._awaiting.values())
        return awaited or bool(open_waits(row.history()))
