"""The calls of a random stream: what anybody may ask of a store, made up from what the oracle says by then."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from durable.errors import RunNotFound
from durable.model import (
    Debounce,
    NewRun,
    NewSignal,
    Outcome,
    Policy,
    Published,
    Queue,
    Rate,
    Request,
    RunFilter,
    RunRef,
    RunWrite,
    Sent,
    State,
    Verb,
)
from durable.store import Route
from durable.testing.conformance.harness import LONG_AGO, NEVER, new_id
from durable.testing.conformance.writing import Writing
from durable.testing.oracle import shown
from durable.testing.oracle.kept import Kept

ROUTES = [Route(name, "1", queue) for name in ("order", "refund") for queue in ("default", "few", "shared")]
_DAYS = 864_000.0
_AGES = 1_000_000_000.0  # seconds: of a rate, so that no token comes back


class Calls(Writing):
    """One stream."""

    async def start(self) -> None:
        await super().start()
        for _ in range(3):
            await self._register()
        self.oracle.now = self.clock.now()
        for _ in range(2):
            self.log.append("create")
            await self._create()

    async def call(self, rng: random.Random) -> None:
        """One call, and the comparison after it."""
        self.rng = rng
        self.oracle.now = self.clock.now()
        self.touched.clear()
        weights = self._weights
        (chosen,) = rng.choices(list(weights), list(weights.values()))
        self.log.append(chosen.__name__.strip("_"))
        await chosen()
        await self.compare(sorted(self.touched))

    async def finish(self) -> None:
        await self.compare(list(self.oracle.runs))

    @property
    def _weights(self) -> dict[Callable[[], Awaitable[None]], int]:
        return {
            self._create: 7,
            self._create_again: 1,
            self._claim: 10,
            self._claim_run: 1,
            self._commit: 22,
            self._commit_again: 4,
            self._commit_stale: 3,
            self._unread: 3,
            self._request: 9,
            self._retry_from: 2,
            self._signal: 6,
            self._signal_with_start: 1,
            self._publish: 4,
            self._effect: 3,
            self._put_queues: 2,
            self._die: 3,
            self._leave: 1,
            self._delete: 1,
            self._prune: 1,
            self._look: 3,
        }

    def said(self, text: object) -> None:
        self.log[-1] += f" {text}"

    # -- triggers ---------------------------------------------------------------------------------

    def new_run(self) -> NewRun:
        rng = self.rng
        self.made += 1
        route = rng.choice(ROUTES[:1] * 3 + ROUTES)
        new = NewRun(
            new_id(), route.workflow, route.version, f'{{"n": {self.made}}}', rng.choice(["h1", "h1", "h2"]), "5eed",
            queue=route.queue, tags={"n": str(self.made % 3)}, priority=rng.choice([5, 5, 5, 0, 9]),
            limit_key=rng.choice([None, "a", "b"]),
        )  # fmt: skip
        kind = rng.random()
        if kind < 0.15:
            bound = rng.choice([None, 0.0, 2 * _DAYS])
            return replace(new, debounce=Debounce(rng.choice(["d1", "d2"]), rng.choice([0.0, _DAYS]), bound))
        if kind < 0.5:
            new = replace(new, concurrency_key=rng.choice(["c1", "c2"]), policy=rng.choice(list(Policy)))
        when = rng.random()
        if when < 0.25:
            new = replace(new, ready_at=LONG_AGO + timedelta(seconds=self.made))
        elif when < 0.35:
            new = replace(new, ready_at=NEVER)
        elif when < 0.45:
            new = replace(new, delay=_DAYS)
        return replace(new, key=rng.choice([None, None, "k1", "k2", "k3"]))

    async def _create(self) -> None:
        # The triggers of one call are those of callers who do not know of each other: when two have a key in common, it
        # is open which of them comes first.
        batch: list[NewRun] = []
        for new in [self.new_run() for _ in range(self.rng.randint(1, 3))]:
            if all(keys_of(new).isdisjoint(keys_of(other)) for other in batch):
                batch.append(new)
        await self._created(batch)
        if self.rng.random() < 0.15:
            await self._created(self.triggered[-1])  # the answer was lost

    async def _created(self, batch: Sequence[NewRun]) -> None:
        for new in batch:
            self.said(
                (new.id[:8], *route_of(new), new.key, new.limit_key, new.concurrency_key, new.policy, new.debounce)
            )
        expected = [shown.created(self.oracle.create(new)) for new in batch]
        self.triggered.append(batch)
        await self.all(
            "create_runs",
            lambda store: store.create_runs(batch),
            lambda found: list(map(shown.created, found)),
            expected,
        )

    async def _create_again(self) -> None:
        if self.triggered:
            await self._created(self.rng.choice(self.triggered))

    async def _signal_with_start(self) -> None:
        run = replace(self.new_run(), debounce=None, key=self.rng.choice(["k1", "k4"]))
        signal = NewSignal("", str(uuid4()), "approval", "true")
        for _ in range(self.rng.choice([1, 2])):
            created = self.oracle.create(run)
            refused = created.conflict is not None or created.busy
            sent = Sent.NOT_FOUND if refused else self.oracle.send(replace(signal, run_id=created.run_id))
            await self.all(
                "create_with_signal",
                lambda store: store.create_with_signal(run, signal),
                lambda found: (shown.created(found[0]), found[1]),
                (shown.created(created), sent),
            )

    # -- workers ----------------------------------------------------------------------------------

    async def _register(self) -> None:
        worker = str(uuid4())
        for subject in self.subjects:
            await subject.store.register(worker, 86_400.0)
        self.oracle.workers[worker] = {}

    def worker(self) -> str:
        return self.rng.choice(list(self.oracle.workers))

    async def _claim(self) -> None:
        worker = self.worker()
        routes = ROUTES if self.rng.random() < 0.7 else self.rng.sample(ROUTES, self.rng.randint(1, 5))
        limit = self.rng.choice([1000, 1000, 1, 2, 3])
        ids = self.oracle.takeable(worker, routes, limit)
        if ids is None:
            limit = 1000
            ids = self.oracle.takeable(worker, routes, limit)
        if ids is None:
            return  # it depends on an order that nobody promised
        warm = {run_id: claim for run_id, claim in self.parked.get(worker, {}).items() if self.rng.random() < 0.8}
        self.said(f"{worker[:4]} limit {limit}: {[one[:8] for one in ids]}")
        batch, batches = str(uuid4()), [list[str]() for _ in self.subjects]
        refs = self.oracle.claim(worker, ids, batch)
        for subject, mine in zip(self.subjects, batches, strict=True):
            found = await self.claim(subject, worker, routes, limit, mine, warm)
            self.same(subject, "runs claimed", sorted(one.run.id for one in found), sorted(ids))
            for one in found:
                self.claimed(subject, one, warm)
        self._holds(refs)
        if self.rng.random() < 0.2 and all(len(mine) == 1 for mine in batches):  # the answer was lost
            for subject, (first,) in zip(self.subjects, batches, strict=True):
                again = (await subject.store.claim(worker, routes, limit, first, warm)).runs
                if ids:
                    self.same(
                        subject,
                        "runs claimed again",
                        sorted(shown.ref(one.ref, self.oracle) for one in again),
                        sorted(shown.ref(one, self.oracle) for one in refs),
                    )

    async def _claim_run(self) -> None:
        worker, runs = self.worker(), [run for run in self.oracle.runs.values() if not self.oracle.by_key(run)]
        if not runs:
            return
        run = self.rng.choice(runs)
        alone = [Route(*run.route)]
        others = [one for one in self.oracle.runs.values() if one.route == run.route and one is not run]
        waiting = {one.new.id: one.ready for one in others}
        for one in others:  # nobody's turn is respected
            one.ready = None
        ids = self.oracle.takeable(worker, alone, 1) or []
        for one in others:
            one.ready = waiting[one.new.id]
        refs = self.oracle.claim(worker, ids, str(uuid4()))
        for subject in self.subjects:
            answer = await subject.store.claim_run(worker, alone[0], run.new.id, str(uuid4()), {})
            self.same(subject, "run claimed", [one.run.id for one in answer.runs], ids)
            for claimed in answer.runs:
                self.claimed(subject, claimed, {})
        self._holds(refs)

    def _holds(self, refs: Sequence[RunRef]) -> None:
        for ref in refs:
            self.held_since[ref.id] = ref.claim
            self._told[ref.id] = self.oracle.runs[ref.id].stirred
            self.known[ref.id] = {letter.id for letter in self.oracle.runs[ref.id].unread}

    async def _unread(self) -> None:
        held = [run for worker in self.oracle.workers for run in self.oracle.held(worker)]
        if not held:
            return
        run = self.rng.choice(held)
        assert run.owner is not None
        run.untold = False
        for subject in self.subjects:
            found = (await subject.store.unread(run.owner, [run.new.id]))[run.new.id]
            self.same(subject, "unread", shown.letters(found.signals, run), shown.letters(run.unread, run))
            subject.told[run.new.id] = found.wakes
        self._told[run.new.id] = run.stirred
        self.known[run.new.id] = {letter.id for letter in run.unread}

    async def _die(self) -> None:
        worker, limit = self.worker(), self.rng.choice([2, 5, 5])
        self._part(worker)
        lost, given_up = self.oracle.die(worker, limit)
        for subject in self.subjects:
            await subject.harness.expire(worker)
            reaped = await subject.store.reap(limit)
            self.same(subject, "reap", (reaped.released, [one.run_id for one in reaped.dead_letters]), (lost, given_up))
        await self._register()

    async def _leave(self) -> None:
        worker = self.worker()
        self._part(worker)
        self.oracle.unregister(worker)
        for subject in self.subjects:
            await subject.store.unregister(worker)
        await self._register()

    def _part(self, worker: str) -> None:
        self.lost += [(worker, self.oracle.ref(run)) for run in self.oracle.held(worker)]
        self.touched.update(run.new.id for run in self.oracle.held(worker))
        self.parked.pop(worker, None)

    # -- writes -----------------------------------------------------------------------------------

    async def _commit(self) -> None:
        held = [worker for worker in self.oracle.workers if self.oracle.held(worker)]
        if not held:
            return await self._claim()
        worker = self.rng.choice(held)
        runs = self.oracle.held(worker)
        runs = self.rng.sample(runs, min(len(runs), self.rng.choice([1, 1, 2, 3, 4])))
        writes = [self.write(run, alone=len(runs) == 1) for run in runs]
        await self._send(worker, writes)
        self.latest[worker] = writes
        for write in writes:
            if write.change is not None and not write.change.keep:
                self.lost.append((worker, write.ref))
                self.parked.setdefault(worker, {})[write.ref.id] = write.ref.claim
        return None

    async def _send(self, worker: str, writes: Sequence[RunWrite]) -> None:
        for write in writes:
            self.said(
                (worker[:4], write.ref.id[:8], [(one.key, one.kind) for one in write.records], write.change, write.also)
            )
        self.touched.update(write.ref.id for write in writes)
        await self.commit(worker, writes, self.oracle.commit(worker, writes))

    async def _commit_again(self) -> None:
        if self.latest:
            worker = self.rng.choice(list(self.latest))
            await self._send(worker, self.latest[worker])

    async def _commit_stale(self) -> None:
        """Something new under claims that are over: of the living and of the dead, all refused."""
        # A run that was pruned and is triggered again counts its claims anew: its worker may hold the same one again.
        over = [(worker, ref) for worker, ref in self.lost if not self.oracle.holds(worker, ref)]
        for worker, ref in self.rng.sample(over, min(3, len(over))):
            await self._send(worker, [self.stale(ref)])
            self.same(
                self.subjects[0], "the oracle", self.oracle.commit(worker, [self.stale(ref)]), [Outcome.LEASE_LOST]
            )

    # -- requests ---------------------------------------------------------------------------------

    def some_run(self) -> str:
        return self.rng.choice([*self.oracle.runs, "00000000-0000-7000-8000-000000000000"])

    async def _request(self) -> None:
        run_id = self.some_run()
        request = Request(self.rng.choice(list(Verb)), self.rng.choice(["", "why"]), "alice", str(uuid4()))
        if self.rng.random() < 0.1 and self.asked:
            run_id, request = self.rng.choice(self.asked)
        self.asked.append((run_id, request))
        for _ in range(self.rng.choice([1, 1, 2])):  # twice: the answer was lost
            await self._asked(run_id, request, None)

    async def _retry_from(self) -> None:
        over = [run for run in self.oracle.runs.values() if run.state in (State.FAILED, State.DEAD_LETTER)]
        if not over:
            return
        run = self.rng.choice(over)
        keys = [one.key for one in run.records if not one.key.startswith("/")]
        request = Request(Verb.RETRY, "from there", "", str(uuid4()))
        await self._asked(run.new.id, request, self.rng.choice([*keys, "nowhere"]))

    async def _asked(self, run_id: str, request: Request, step: str | None) -> None:
        self.said(f"{run_id[:8]} {request.verb} {step or ''}")
        self.touched.add(run_id)
        try:
            expected: object = self.oracle.request(run_id, request, step)
        except RunNotFound:
            expected = RunNotFound
        if step is None:
            await self.all("request", lambda store: store.request(run_id, request), _plain, expected)
        else:
            await self.all("retry_from", lambda store: store.retry_from(run_id, step, request), _plain, expected)

    async def _delete(self) -> None:
        run_id = self.some_run()
        self.touched.add(run_id)
        try:
            expected: object = self.oracle.delete(run_id)
        except RunNotFound:
            expected = RunNotFound
        await self.all("delete", lambda store: store.delete(run_id), _plain, expected)

    async def _prune(self) -> None:
        await self.all("prune nothing", lambda store: store.prune(LONG_AGO, 1000), _plain, 0)
        self.touched.update(run_id for run_id, run in self.oracle.runs.items() if run.over)
        expected = self.oracle.prune()
        await self.all("prune", lambda store: store.prune(NEVER, 1000), _plain, expected)

    # -- signals, events, effects -----------------------------------------------------------------

    async def _signal(self) -> None:
        signals = [
            NewSignal(self.some_run(), str(uuid4()), self.rng.choice(["approval", "go"]), "[1]")
            for _ in range(self.rng.randint(1, 3))
        ]
        if self.sent and self.rng.random() < 0.3:
            signals.append(self.rng.choice(self.sent))  # sent again
        self.sent += signals
        self.said([(one.run_id[:8], one.id[:4]) for one in signals])
        expected = [self.oracle.send(one) for one in signals]
        await self.all("send_signals", lambda store: store.send_signals(signals), list, expected)

    async def _publish(self) -> None:
        rng = self.rng
        keep = rng.choice([0.0, _DAYS])
        event = Published(new_id(), "topic", rng.choice(["", "k"]), f"{len(self.log)}", keep)
        events = [event, event] if keep else [event]  # sent again
        for one in events:
            self.oracle.publish(one)
            await self.all("publish", lambda store, one=one: store.publish([one]), _plain, None)  # type: ignore[misc]
        self.said(events[:1])

    async def _effect(self) -> None:
        """Take a shared effect; when somebody else makes it, wait for the end."""
        held = [run for worker in self.oracle.workers for run in self.oracle.held(worker) if run.state is State.RUNNING]
        if not held:
            return
        run, key = self.rng.choice(held), self.rng.choice(["x", "y"])
        made = self.oracle.making(key)
        step = f"e{run.following}" if made is None or made[0] != run.new.id else made[1]
        if made is not None and made[0] == run.new.id and made[2] and run.key(made[1]) is not None:
            return  # no engine asks again for what it has recorded
        assert run.owner is not None
        worker, ref = run.owner, self.oracle.ref(run)
        expected = self.oracle.take_effect(worker, ref, key, step)
        self.said((run.new.id[:8], key, step, expected))
        await self.all("take_effect", lambda store: store.take_effect(worker, ref, key, step), _plain, expected)
        if expected is not None and not expected.mine and not expected.done:
            await self._send(worker, [self.wait_for_effect(run, key)])

    # -- limits -----------------------------------------------------------------------------------

    async def _put_queues(self) -> None:
        rng = self.rng
        few = Queue("few", rng.choice([None, 1, 3]), None, rng.choice([None, Rate(3, _AGES)]))
        shared = Queue(
            "shared",
            rng.choice([None, None, 3]),
            rng.choice([None, 1, 2]),
            None,
            rng.choice([None, None, Rate(4, _AGES)]),
        )
        queues = rng.choice([[few], [shared], [few, shared]])
        self.said(queues)
        for queue in queues:
            self.oracle.put_queue(queue)
        await self.all("put_queues", lambda store: store.put_queues(queues), _plain, None)
        stored = [self.oracle.queues[name] for name in sorted(self.oracle.queues)]
        await self.all("queues", lambda store: store.queues(), list, stored)

    # -- reads ------------------------------------------------------------------------------------

    async def _look(self) -> None:
        oracle, rng = self.oracle, self.rng
        where = rng.choice(
            [
                RunFilter(),
                RunFilter(state=rng.choice(list(State))),
                RunFilter(tags={"n": "1"}),
                RunFilter(queue="few"),
                RunFilter("order"),
            ]
        )
        limit, before = rng.choice([2, 100]), rng.choice([None, *oracle.runs])
        found = [
            run for run in oracle.runs.values() if _matches(run, where) and (before is None or run.new.id < before)
        ]
        found.sort(key=lambda run: run.new.id, reverse=True)
        await self.all(
            "list_runs",
            lambda store: store.list_runs(where, limit, before),
            lambda answer: [shown.summary(one, oracle) for one in answer],
            [shown.expected_summary(run, oracle) for run in found[:limit]],
        )
        for key in ("k1", "k2"):
            expected = oracle.find_key("order", key)
            await self.all("find_key", lambda store, key=key: store.find_key("order", key), _plain, expected)  # type: ignore[misc]
        ids = list(oracle.runs)
        over = {(run.new.id, run.state, run.result, run.error) for run in oracle.runs.values() if run.over}
        await self.all(
            "ended",
            lambda store: store.ended(ids),
            lambda answer: {(one.id, one.state, one.result, shown.error(one.error)) for one in answer},
            over,
        )
        await self._census()

    async def _census(self) -> None:
        counts: dict[Any, int] = {}
        for run in self.oracle.runs.values():
            if not run.over:
                counts[run.new.workflow, run.state] = counts.get((run.new.workflow, run.state), 0) + 1
        await self.all("census", lambda store: store.census(), lambda answer: dict(answer.runs), counts)


def keys_of(new: NewRun) -> set[tuple[str, str]]:
    """What may make it meet another run."""
    debounced = None if new.debounce is None else new.debounce.key
    named = {"key": new.key, "concurrency": new.concurrency_key, "debounce": debounced}
    return {(name, key) for name, key in named.items() if key is not None}


def route_of(new: NewRun) -> tuple[str, str, int]:
    return new.workflow, new.queue, new.priority


def _plain(answer: Any) -> object:
    return answer


def _matches(run: Kept, where: RunFilter) -> bool:
    return (
        where.state in (None, run.state)
        and where.queue in (None, run.new.queue)
        and where.workflow in (None, run.new.workflow)
        and all(run.new.tags.get(name) == value for name, value in where.tags.items())
    )
