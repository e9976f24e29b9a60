"""Crowds: many runs with every kind of limit and key, in an order that chance decides, and nobody is left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from random import Random

import pytest

from durable import states
from durable.model import ClaimedRun, Debounce, NewRun, Policy, Queue, Rate, Request, State, Verb
from durable.states import TERMINAL
from durable.store import Route, Store
from durable.testing.conformance.harness import StoreHarness, Worker, new_run, until
from durable.testing.conformance.writes import ERROR

_ROUTES = [Route("order", version, queue) for version in ("1", "2") for queue in ("default", "mail", "post")]
_QUEUES = [
    Queue("mail", concurrency=4, per_key=2),
    Queue("post", per_key=1, rate=Rate(400, 1.0), rate_per_key=Rate(100, 1.0)),
]
_RUNS = 60
_STEPS = 120


class _Crowd:
    """One random life: what it does is decided by the seed, but for what the store decides."""

    def __init__(self, seed: int, stores: list[Store]) -> None:
        self.random = Random(seed)
        self.stores = stores
        self.workers: list[Worker] = []
        self.ids: set[str] = set()
        self.held: dict[str, tuple[Worker, ClaimedRun]] = {}
        self.limits = {queue.name: queue for queue in _QUEUES}

    async def live(self) -> None:
        await self.stores[0].put_queues(_QUEUES)
        self.workers = [await Worker.start(self.stores[n % 2]) for n in range(4)]
        moves = [self.create, self.claim, self.claim, self.leave, self.leave, self.ask, self.change_limits]
        for _ in range(_STEPS):
            await self.random.choice(moves)()

    def store(self) -> Store:
        return self.random.choice(self.stores)

    def _new(self) -> NewRun:
        route, chance = self.random.choice(_ROUTES), self.random.random
        line, limit = self.random.choice("xyz"), self.random.choice("ab")
        return new_run(
            version=route.version,
            queue=route.queue,
            priority=self.random.randrange(10),
            delay=chance() / 50,
            limit_key=limit if chance() < 0.8 else None,
            concurrency_key=line if chance() < 0.3 else None,
            policy=self.random.choice(list(Policy)),
            debounce=Debounce(line, chance() / 50, 0.05) if chance() < 0.2 else None,
        )

    async def create(self) -> None:
        if len(self.ids) < _RUNS:
            await self.create_some()

    async def create_some(self) -> None:
        created = await self.store().create_runs([self._new() for _ in range(self.random.randrange(1, 9))])
        self.ids |= {one.run_id for one in created}

    async def claim(self) -> None:
        worker = self.random.choice(self.workers)
        routes = self.random.sample(_ROUTES, self.random.randrange(1, len(_ROUTES) + 1))
        for one in (await worker.claim(self.random.randrange(1, 12), routes)).runs:
            assert one.run.id not in self.held
            self.held[one.run.id] = (worker, one)
        self.check()

    def check(self) -> None:
        """What is held here is held there."""
        runs = [one.run for _, one in self.held.values()]
        queues, shares = Counter(run.queue for run in runs), Counter((run.queue, run.limit_key) for run in runs)
        lines = Counter(run.concurrency_key for run in runs if run.concurrency_key is not None)
        assert queues["mail"] <= 4
        assert all(count <= 2 for (queue, key), count in shares.items() if queue == "mail" and key is not None)
        assert all(count <= 1 for (queue, key), count in shares.items() if queue == "post" and key is not None)
        assert all(count == 1 for count in lines.values())

    async def leave(self) -> None:
        if not self.held:
            return
        run_id = self.random.choice(sorted(self.held))
        worker, one = self.held.pop(run_id)
        state = one.run.state
        soon = worker.store.clock.now() + timedelta(milliseconds=self.random.randrange(20))
        change = self.random.choice(
            [
                states.complete(state, "1"),
                states.complete(state, "1"),
                states.fail(state, ERROR),
                states.release(state),
                states.park(state, ready_at=soon, wakes=one.wakes),
                states.pause(state, "by chance"),
            ]
        )
        await worker.apply(one, change=change)

    async def ask(self) -> None:
        if self.ids:
            run_id = self.random.choice(sorted(self.ids))
            verb = self.random.choice([Verb.CANCEL, Verb.PAUSE, Verb.RESUME, Verb.RETRY])
            await self.store().request(run_id, Request(verb, str(self.random.random())))

    async def change_limits(self) -> None:
        """Only to less, and back: what is checked is the most that there may be."""
        queue = self.random.choice(_QUEUES)
        await self.store().put_queues([Queue(queue.name, concurrency=1, per_key=1)])
        await self.claim()
        await self.store().put_queues([queue])

    async def end(self) -> None:
        """Resume what is paused, and complete all that can be claimed, until everything has ended."""
        worker = self.workers[0]
        for _ in range(5):
            await self.create_some()
        while True:
            for other, one in list(self.held.values()):
                await other.apply(one, change=states.complete(one.run.state, "1"))
            self.held.clear()
            open_ = [run for run in await worker.store.get_runs(sorted(self.ids)) if run.state not in TERMINAL]
            if not open_:
                return
            for run in open_:
                if run.state is State.PAUSED:
                    await worker.store.request(run.id, Request(Verb.RESUME, "the end"))
            answer = await worker.claim(50, _ROUTES)
            self.held = {one.run.id: (worker, one) for one in answer.runs}
            self.check()
            if not answer.runs:
                assert answer.next_ready_at is not None, [(run.state, run.queue, run.limit_key) for run in open_]
                await until(worker.store, answer.next_ready_at)


class CrowdConformance:
    @pytest.mark.parametrize("seed", range(4))
    async def test_nobody_is_left_behind_and_no_limit_is_exceeded(self, harness: StoreHarness, seed: int) -> None:
        crowd = _Crowd(seed, [await harness.fresh(), await harness.another()])
        async with asyncio.timeout(60):
            await crowd.live()
            await crowd.end()
