"""Workers, claims, limits and writes, as the oracle has them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from datetime import datetime

from durable.model import (
    SUSPECT_AFTER,
    Also,
    Change,
    Kind,
    Outcome,
    Queue,
    Rate,
    Record,
    RunRef,
    RunWrite,
    State,
    Verb,
)
from durable.store import Route
from durable.testing.oracle.asking import Asking
from durable.testing.oracle.kept import GIVEN_UP, TERMINAL, Kept, unsuccessful

_FIXED, _RANDOM = 4, 8
"""Orders that a claim is tried in: by time or by route, each in both directions among equals; and random ones."""


class Oracle(Asking):
    """All of it."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self.workers: dict[str, dict[str, list[RunRef]]] = {}  # those alive → what each batch was given
        self.queues: dict[str, Queue] = {}
        self._spent: Counter[tuple[str, str | None]] = Counter()  # tokens that were taken; none comes back
        self._rng = random.Random(0)

    # -- limits -----------------------------------------------------------------------------------

    def put_queue(self, queue: Queue) -> None:
        if self.queues.get(queue.name, Queue(queue.name)) == queue:
            return
        for run in self.runs.values():
            run.kept_back_perhaps |= run.new.queue == queue.name and self.by_key(run)
        self.queues[queue.name] = queue
        if queue.unlimited:
            del self.queues[queue.name]
        for bucket in [bucket for bucket in self._spent if bucket[0] == queue.name]:
            del self._spent[bucket]

    def by_key(self, run: Kept) -> bool:
        """Whether a limit key may keep the run from being taken. When it loses its time for it is open."""
        limits = self.queues.get(run.new.queue)
        return run.kept_back_perhaps or (
            run.new.limit_key is not None
            and limits is not None
            and (limits.per_key is not None or limits.rate_per_key is not None)
        )

    def _fits(self, run: Kept, taken: Counter[tuple[str, str | None]]) -> bool:
        limits = self.queues.get(run.new.queue)
        if limits is None:
            return True
        placed = [other.new for other in self.runs.values() if other.placed and other.new.queue == limits.name]
        shares: list[tuple[str | None, int | None, Rate | None]] = [(None, limits.concurrency, limits.rate)]
        if run.new.limit_key is not None:
            shares.append((run.new.limit_key, limits.per_key, limits.rate_per_key))
        for share, places, rate in shares:
            bucket = (limits.name, share)
            held = sum(share is None or new.limit_key == share for new in placed) + taken[bucket]
            if places is not None and held >= places:
                return False
            if rate is not None and self._spent[bucket] + taken[bucket] >= rate.limit:
                return False
        return True

    # -- claims -----------------------------------------------------------------------------------

    def held(self, worker: str) -> list[Kept]:
        return [run for run in self.runs.values() if run.owner == worker]

    def due(self, run: Kept) -> bool:
        return run.owner is None and run.ready is not None and run.ready <= self.now and not self.queued(run)

    def takeable(self, worker: str, routes: Sequence[Route], limit: int) -> list[str] | None:
        """The runs that a claim of the worker takes, by id; None when that depends on an order which nobody promised.

        Promised is the priority over all routes, and within a route the time; so the claim is tried in several orders
        that keep this promise.
        """
        due = [run for run in self.runs.values() if run.route in routes and self.due(run)]
        orders = [self._order(due, routes, number) for number in range(_FIXED + _RANDOM)]
        found = {tuple(sorted(self._select(worker, order, limit))) for order in orders}
        suspects = sum(run.takeovers >= SUSPECT_AFTER for run in due)
        if len(found) > 1 or (suspects > 1 and limit < len(due)):
            return None
        return list(found.pop())

    def _order(self, due: Sequence[Kept], routes: Sequence[Route], number: int) -> list[Kept]:
        """One of the orders in which a claim may look at them: by time, or one route after the other."""
        ids, lines = sorted(run.new.id for run in due), sorted(routes)
        if number >= _FIXED:
            self._rng.shuffle(ids)
            self._rng.shuffle(lines)
        elif number & 1:  # both ways: so the last of two that are equal is the first once
            ids.reverse()
            lines.reverse()

        def place(run: Kept) -> tuple[object, ...]:
            behind = run.ready if number & 2 else lines.index(Route(*run.route))
            return run.new.priority, behind, run.ready, ids.index(run.new.id)

        return sorted(due, key=place)

    def _select(self, worker: str, due: Sequence[Kept], limit: int) -> list[str]:
        suspected = any(run.takeovers >= SUSPECT_AFTER for run in self.held(worker))
        chosen: list[str] = []
        taken: Counter[tuple[str, str | None]] = Counter()
        for run in due:
            suspect = run.takeovers >= SUSPECT_AFTER
            if len(chosen) < limit and not (suspect and suspected) and self._fits(run, taken):
                suspected = suspected or suspect
                chosen.append(run.new.id)
                taken[run.new.queue, None] += 1
                if run.new.limit_key is not None:
                    taken[run.new.queue, run.new.limit_key] += 1
        return chosen

    def claim(self, worker: str, ids: Sequence[str], batch: str) -> list[RunRef]:
        """Give the worker these runs."""
        refs: list[RunRef] = []
        for run_id in ids:
            run = self.runs[run_id]
            limits = self.queues.get(run.new.queue)
            if limits is not None:
                run.placed = run.linked = True
                self._spent[run.new.queue, None] += limits.rate is not None
                if run.new.limit_key is not None:
                    self._spent[run.new.queue, run.new.limit_key] += limits.rate_per_key is not None
            run.state = run.state if run.state is State.COMPENSATING else State.RUNNING
            run.owner, run.ready, run.started, run.untold = worker, None, True, False
            run.kept_back_perhaps = False
            run.claim += 1
            refs.append(self.ref(run))
        if refs:
            self.workers[worker].setdefault(batch, []).extend(refs)
        return refs

    def again(self, worker: str, batch: str) -> list[RunRef]:
        """What a claim that is sent again still gives."""
        given = self.workers[worker].get(batch, ())
        return [ref for ref in given if self.holds(worker, ref)]

    def holds(self, worker: str, ref: RunRef) -> bool:
        """Whether the worker has the run by this claim."""
        run = self.runs.get(ref.id)
        return run is not None and run.owner == worker and run.claim == ref.claim

    def ref(self, run: Kept) -> RunRef:
        return RunRef(run.new.shard, run.new.id, run.claim, run.linked)

    # -- workers ----------------------------------------------------------------------------------

    def unregister(self, worker: str) -> None:
        self.workers.pop(worker, None)
        for run in self.held(worker):
            self._let_go(run, State.PENDING)
            run.ready = self.now

    def die(self, worker: str, limit: int) -> tuple[int, list[str]]:
        """The worker's lease has ended, and somebody reaps it: how many runs, and which are given up."""
        self.workers.pop(worker, None)
        lost, given_up = self.held(worker), list[str]()
        for run in lost:
            run.records.append(Record(run.following, f"/takeover/{run.claim}", Kind.TAKEOVER, self.now, worker=worker))
            run.takeovers += 1
            if run.takeovers >= limit:
                run.state, run.owner, run.placed = State.DEAD_LETTER, None, False
                run.error = run.error or GIVEN_UP
                given_up.append(run.new.id)
                self.end(run)
            else:
                self._let_go(run, State.PENDING)
                run.ready = self.now
        return len(lost), sorted(given_up)

    def _let_go(self, run: Kept, state: State) -> None:
        run.state = run.state if run.state is State.COMPENSATING and state is State.PENDING else state
        run.owner, run.placed = None, False

    # -- writes -----------------------------------------------------------------------------------

    def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        return [self._write(worker, write) for write in writes]

    def _write(self, worker: str, write: RunWrite) -> Outcome:
        run = self.runs.get(write.ref.id)
        if run is None or worker not in self.workers or run.claim != write.ref.claim:
            return Outcome.LEASE_LOST
        there = {record.key for record in run.records}
        there |= {key.removeprefix(f"/{run.claim}/") for key in there}
        fresh = [record._replace(worker=worker) for record in write.records if record.key not in there]
        if run.owner is None:
            left = None if write.change is None or write.change.keep else write.change.state
            same = left is None or (not run.over and left not in TERMINAL) or left is run.state
            return Outcome.APPLIED if not fresh and same else Outcome.LEASE_LOST
        if run.owner != worker:
            return Outcome.LEASE_LOST
        run.records += fresh
        if fresh:
            run.takeovers = 0
        if write.also is not None and (fresh or not write.records):
            self._also(run, write.also, fresh)
        if write.change is not None:
            self._change(run, write.change)
        return Outcome.APPLIED

    def _also(self, run: Kept, also: Also, fresh: Sequence[Record]) -> None:
        for child in also.children:
            self.create(child)
        run.consumed.update(also.consumed)
        for awaited in also.awaited:
            self.wait(run, awaited)
        for end in also.effects:
            self.end_effect(run, end)
        if also.emits:
            emits = [record for record in fresh if record.kind is Kind.EMIT]
            self.emitted += [(run.new.id, record.key, record.data or "null") for record in emits]

    def _change(self, run: Kept, change: Change) -> None:
        if change.asked and (run.requested is None or run.requested.verb is not Verb.PAUSE):
            state = State.COMPENSATING if run.state is State.COMPENSATING else State.PENDING
            change = Change(state, ready_now=True)  # nobody asks for a pause any more
        if change.drop_failed:
            run.set_aside(unsuccessful(run.records))
        run.state, run.reason = change.state, change.reason
        run.result = change.result if change.result is not None else run.result
        run.error = change.error if change.error is not None else run.error
        if change.keep:
            return
        run.owner, run.placed = None, False
        if run.over:
            self.end(run)
        elif run.state is State.PAUSED:
            if run.requested is not None and run.requested.verb is Verb.PAUSE:
                run.requested = None
        elif run.requested is not None or change.ready_now or change.wakes not in (None, run.stirred):
            run.ready = self.now
        else:
            run.ready = change.ready_at
