"""Random streams of calls, answered by the store under test and by the memory store: they must not differ.

The memory store is the model because it is the smallest implementation of the same protocol. What the seam
leaves open is not asked: order among runs that are due at the same instant, and calls that no engine makes.
"""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from durable import states
from durable.model import (
    Change,
    ClaimedRun,
    Created,
    Kind,
    NewRun,
    Outcome,
    Record,
    Request,
    Run,
    RunRef,
    RunWrite,
    State,
    Verb,
)
from durable.store import Store
from durable.stores.memory import MemoryStore
from durable.testing.conformance.harness import (
    LONG_AGO,
    NEVER,
    StoreHarness,
    Worker,
    new_run,
    record,
)

_CALLS = 60


class StreamConformance:
    @pytest.mark.parametrize("seed", range(12))
    async def test_P11_a_stream_of_calls_gives_what_the_model_gives(self, harness: StoreHarness, seed: int) -> None:
        stream = _Stream(harness, await harness.fresh(), random.Random(seed))
        await stream.start()
        for _ in range(_CALLS):
            await stream.call()
        await stream.compare_histories()


class _Stream:
    """One stream: the two stores, and what the workers of the stream remember."""

    def __init__(self, harness: StoreHarness, store: Store, rng: random.Random) -> None:
        self._harness = harness
        self._store, self._model = store, MemoryStore()
        self._rng = rng
        self._workers: list[str] = []
        self._runs: list[NewRun] = []
        self._held: dict[str, dict[str, ClaimedRun]] = {}  # worker → run id → its claim, by what it was answered
        self._last: dict[str, list[RunWrite]] = {}  # worker → its latest commit
        self._lost: list[tuple[str, RunRef]] = []  # claims that are over, of workers alive and dead
        self._log: list[str] = []

    async def start(self) -> None:
        for _ in range(3):
            await self._register()
        await self._create()

    async def call(self) -> None:
        calls: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (3, self._create),
            (1, self._create_again),
            (4, self._claim),
            (10, self._commit),
            (2, self._commit_stale),
            (3, self._commit_again),
            (6, self._request),
            (1, self._retry_from),
            (1, self._delete),
            (2, self._die),
            (1, self._leave),
        ]
        (chosen,) = self._rng.choices([call for _, call in calls], [weight for weight, _ in calls])
        await chosen()
        await self._compare_runs()

    # -- calls ------------------------------------------------------------------------------------

    async def _register(self) -> None:
        worker = str(uuid4())
        await self._store.register(worker, 600.0)
        await self._model.register(worker, 600.0)
        self._workers.append(worker)
        self._held[worker] = {}

    async def _create(self) -> None:
        batch = [self._new_run() for _ in range(self._rng.randint(1, 4))]
        mine, model = await self._store.create_runs(batch), await self._model.create_runs(batch)
        self._same("create", _answers(mine), _answers(model))
        self._runs.extend(new for new, answer in zip(batch, mine, strict=True) if answer.created)

    async def _create_again(self) -> None:
        batch = self._rng.sample(self._runs, min(3, len(self._runs)))
        self._same(
            "create again", _answers(await self._store.create_runs(batch)), [(new.id, True, False) for new in batch]
        )

    def _new_run(self) -> NewRun:
        key = self._rng.choice([None, None, "k1", "k2", "k3"])
        return new_run(key=key, input_hash=self._rng.choice(["h1", "h1", "h2"]), tags={"n": str(len(self._runs))})

    async def _claim(self) -> None:
        worker, batch = self._rng.choice(self._workers), str(uuid4())
        for _ in range(self._rng.choice([1, 1, 2])):  # twice: the answer was lost
            mine, model = [await Worker(store, worker).claim(batch=batch) for store in (self._store, self._model)]
            self._same(
                "claim",
                (sorted((one.ref, one.wakes, _shown(one.records or ())) for one in mine.runs), dict(mine.requests)),
                (sorted((one.ref, one.wakes, _shown(one.records or ())) for one in model.runs), dict(model.requests)),
            )
            self._held[worker].update((one.run.id, one) for one in model.runs)

    async def _commit(self) -> None:
        worker = self._rng.choice(self._workers)
        held = list(self._held[worker].values())
        writes = [await self._write(one) for one in self._rng.sample(held, min(len(held), self._rng.randint(1, 4)))]
        await self._send(worker, writes)
        self._last[worker] = writes
        for write in writes:
            if write.change is not None and not write.change.keep:
                del self._held[worker][write.ref.id]
                self._lost.append((worker, write.ref))

    async def _commit_stale(self) -> None:
        """Something new under a claim that is over, each of which has to be refused by both."""
        for worker, ref in self._rng.sample(self._lost, min(3, len(self._lost))):
            change = self._rng.choice([None, states.complete(State.RUNNING, '"stale"'), states.release(State.RUNNING)])
            write = RunWrite(ref, [record(900, f"stale/{uuid4()}")], change)
            self._same("stale", await self._send(worker, [write]), [Outcome.LEASE_LOST])

    async def _commit_again(self) -> None:
        if self._last:
            worker = self._rng.choice(list(self._last))
            await self._send(worker, self._last[worker])

    async def _request(self) -> None:
        for new in self._rng.sample(self._runs, min(5, len(self._runs))):
            request = Request(self._rng.choice(list(Verb)), self._rng.choice(["", "why"]), "alice")
            for _ in range(self._rng.choice([1, 1, 2])):  # twice: the answer was lost
                mine, model = await self._store.request(new.id, request), await self._model.request(new.id, request)
                self._same(f"{request} about {new.id}", mine, model)

    async def _retry_from(self) -> None:
        for new in self._runs:
            (run,) = await self._model.get_runs([new.id])
            keys = [one.key for one in await self._model.history(new.id) if not one.key.startswith("/")]
            if run.state in (State.FAILED, State.DEAD_LETTER) and keys:
                step, request = self._rng.choice(keys), Request(Verb.RETRY, "from there")
                mine = await self._store.retry_from(new.id, step, request)
                self._same(f"{new.id} from {step}", mine, await self._model.retry_from(new.id, step, request))

    async def _delete(self) -> None:
        new = self._rng.choice(self._runs)
        mine, model = await self._store.delete(new.id), await self._model.delete(new.id)
        self._same(f"delete {new.id}", mine, model)
        if mine:
            self._runs.remove(new)
            if not self._runs:
                await self._create()

    async def _die(self) -> None:
        worker = self._part(self._rng.choice(self._workers))
        await self._harness.expire(worker)
        self._model.expire(worker)
        self._same("reap", await self._store.reap(2), await self._model.reap(2))
        await self._register()

    async def _leave(self) -> None:
        worker = self._part(self._rng.choice(self._workers))
        await self._store.unregister(worker)
        await self._model.unregister(worker)
        await self._register()

    def _part(self, worker: str) -> str:
        self._workers.remove(worker)
        self._lost.extend((worker, one.ref) for one in self._held.pop(worker).values())
        return worker

    # -- writes -----------------------------------------------------------------------------------

    async def _send(self, worker: str, writes: list[RunWrite]) -> list[Outcome]:
        mine, model = [await Worker(store, worker).commit(*writes) for store in (self._store, self._model)]
        self._same(f"commit {[(write.ref.id, write.change) for write in writes]}", mine, model)
        return mine

    async def _write(self, one: ClaimedRun) -> RunWrite:
        (run,) = await self._model.get_runs([one.run.id])
        history = await self._model.history(run.id)
        records: list[Record] = []
        for _ in range(self._rng.randint(0, 2)):
            records.append(self._record([*history, *records], run.state))
        return RunWrite(one.ref, records, self._change(run.state, one.wakes))

    def _record(self, history: Sequence[Record], state: State) -> Record:
        """A step, what belongs to one, or a compensation of one that is still there."""
        seq, keys = len(history) + 1, {one.key for one in history}
        data, failed = f'"{seq}"', self._rng.random() < 0.3
        undone = [one for one in history if one.kind is Kind.STEP and not one.failed and not one.key.startswith("/")]
        undone = [one for one in undone if f"{one.key}/undo" not in keys]
        if state is State.COMPENSATING and undone:
            return record(seq, f"{self._rng.choice(undone).key}/undo", Kind.UNDO, data, failed=failed)
        kind = self._rng.choice([Kind.STEP, Kind.STEP, Kind.WOKE, Kind.ATTEMPT])
        if kind is Kind.ATTEMPT:
            return record(seq, f"s{seq + 1}/attempt/1", kind, data, failed=True)
        return record(seq, kind=kind, data=data, failed=kind is Kind.STEP and failed)

    def _change(self, state: State, wakes: int) -> Change | None:
        if self._rng.random() < 0.4:
            return None
        seen = wakes + self._rng.choice([0, 0, 1])
        possible = [
            states.park(state, ready_at=self._rng.choice([LONG_AGO, NEVER]), wakes=seen),
            states.release(state),
            states.pause(state, "why"),
            states.pause(state, "as asked", asked=True),
            states.fail(state, '"failed"'),
            states.cancelled(state, '"cancelled"'),
        ]
        if state is State.RUNNING:
            possible += [
                states.park(state, ready_at=None, wakes=seen, waiting=True),
                states.complete(state, '"done"'),
                states.try_again(state, self._rng.choice([LONG_AGO, NEVER])),
                states.compensate(state, '"original"'),
                states.compensate(state, '"original"'),
            ]
        else:
            possible.append(states.compensated(state, '"undone"'))
        return self._rng.choice(possible)

    # -- comparing --------------------------------------------------------------------------------

    def _same(self, what: str, mine: object, model: object) -> None:
        self._log.append(what)
        assert mine == model, self._log

    async def _compare_runs(self) -> None:
        ids = [new.id for new in self._runs]
        mine, model = await self._store.get_runs(ids), await self._model.get_runs(ids)
        now, model_now = self._store.clock.now(), self._model.clock.now()
        assert {run.id: _timeless(run, now) for run in mine} == {run.id: _timeless(run, model_now) for run in model}, (
            self._log
        )
        for worker in self._workers:
            owned = await self._store.owned(worker)
            assert sorted(owned) == sorted(await self._model.owned(worker)), self._log

    async def compare_histories(self) -> None:
        for new in self._runs:
            assert _shown(await self._store.history(new.id)) == _shown(await self._model.history(new.id)), self._log


def _answers(answers: Sequence[Created]) -> list[tuple[str, bool, bool]]:
    return [(answer.run_id, answer.created, answer.conflict is not None) for answer in answers]


def _shown(records: Sequence[Record]) -> list[tuple[object, ...]]:
    """What two stores agree on in a history: all but the times that they set themselves."""
    return [(one.seq, one.key, one.kind, one.data, one.failed, one.worker) for one in records]


def _timeless(run: Run, now: datetime) -> tuple[object, ...]:
    times = (run.started_at is None, run.ended_at is None, _ready(run, now))
    given_up = run.state is State.DEAD_LETTER and run.error is not None and run.error != '"original"'
    error = "given up" if given_up else run.error
    payloads = (run.input, run.result, error, run.reason, run.requested, run.seed, run.key, run.tags)
    return (run.workflow, run.version, run.state, run.owner, run.claim, run.takeovers, payloads, times)


def _ready(run: Run, now: datetime) -> str:
    if run.ready_at is None:
        return "no"
    return "due" if run.ready_at < now + timedelta(days=1) else "later"
