"""Shared effects beside open transactions, lost answers and many workers: one makes it, all hear of it."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import psycopg
import pytest

from durable import states
from durable.errors import StoreUnavailable
from durable.model import Also, Awaited, ClaimedRun, Effect, EffectEnd, Outcome, State
from durable.store import EFFECT_TOPIC, Store
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call
from durable.testing.conformance.harness import LONG_AGO, Worker, claimed, create, new_run, record
from tests.postgres.conftest import Postgres
from tests.postgres.proxy import Proxy

_KEY = "order:ORD-123:charge"


async def _take(worker: Worker, run: ClaimedRun, key: str = _KEY, step: str = "charge") -> Effect:
    effect = await worker.store.take_effect(worker.id, run.ref, key, step)
    assert effect is not None
    return effect


def _end(kept: bool = True, key: str = _KEY) -> Also:
    return Also(effects=[EffectEnd(key, "charge", kept)])


@pytest.mark.parametrize("ends", ["commit", "rollback"])
async def test_P11_who_asks_while_another_takes_it_waits_for_that_one(postgres: Postgres, ends: str) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    other, taking = await claimed(store)
    with psycopg.connect(postgres.url) as own:
        own.execute(
            f"INSERT INTO {postgres.schema}.effects (shard, key, run_id, step) VALUES (0, %s, %s, 'charge')".encode(),
            [_KEY, taking.run.id],
        )
        asking = asyncio.ensure_future(_take(worker, run))
        pid = own.info.backend_pid
        await postgres.until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid)))", pid)
        getattr(own, ends)()
    assert await asking == (Effect(False, taking.run.id) if ends == "commit" else Effect(True, run.run.id))
    await store.unregister(other.id)


async def test_a_run_that_somebody_holds_for_a_moment_is_tried_again(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    tries: asyncio.Queue[str] = asyncio.Queue()
    write = Sessions.write

    async def counted(sessions: Sessions, name: str, *calls: Call) -> Any:
        answer = await write(sessions, name, *calls)
        tries.put_nowait(name)
        return answer

    monkeypatch.setattr(Sessions, "write", counted)
    with psycopg.connect(postgres.url) as own:
        own.execute(f"SELECT FROM {postgres.schema}.runs WHERE shard = 0 FOR NO KEY UPDATE".encode())
        asking = asyncio.ensure_future(_take(worker, run))
        assert [await tries.get() for _ in range(2)] == ["take_effect"] * 2
        own.rollback()
    assert (await asking).mine


async def test_P11_an_end_whose_acknowledgement_was_lost_is_told_once(postgres: Postgres) -> None:
    async with Proxy(postgres.url) as proxy:
        await postgres.fresh()
        worker, run = await claimed(await postgres.another(proxy.url))
        await _take(worker, run)
        ref = run.ref._replace(linked=True)
        proxy.swallow_next_commit()
        with pytest.raises(StoreUnavailable):
            await worker.write(ref, record(1, "charge"), also=_end())
        assert await worker.write(ref, record(1, "charge"), record(2), also=_end()) is Outcome.APPLIED
        assert postgres.rows("SELECT topic, key, data FROM durable.events") == [(EFFECT_TOPIC, _KEY, "null")]
        assert await _take(worker, run, step="other") == Effect(False, run.run.id, True, '"done"')
        await worker.store.close()


async def test_P11_of_two_ends_of_one_effect_in_one_write_the_later_counts(postgres: Postgres) -> None:
    store = await postgres.fresh()
    worker, run = await claimed(store)
    await _take(worker, run)
    both = Also(effects=[EffectEnd(_KEY, "charge", True), EffectEnd(_KEY, "charge", False)])
    await worker.apply(run.ref._replace(linked=True), record(1, "charge"), record(2, "charge/undo"), also=both)
    assert postgres.rows("SELECT count(*) FROM durable.effects") == [(0,)]


async def test_P11_many_workers_make_each_effect_one_at_a_time_and_nobody_waits_for_ever(postgres: Postgres) -> None:
    """Runs of three workers want the same effects, fail at some, end while making others; no deadlock."""
    stores = [await postgres.fresh(), await postgres.another(), await postgres.another()]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = postgres.rows(deadlocks)
    await create(stores[0], *(new_run() for _ in range(15)))
    workers = [await Worker.start(store) for store in stores]
    making: dict[str, str] = {}
    made: dict[str, str] = {}
    tries = count()

    async def work(worker: Worker, run: ClaimedRun) -> None:
        seq = count(1)
        ref = run.ref._replace(linked=True)
        first = next(tries)
        for n in (first, first + 1):
            key = f"k{n % 3}"
            while not (effect := await _take(worker, run, key, key)).done:
                if not effect.mine:
                    await asyncio.sleep(0)
                    continue
                assert making.setdefault(key, run.run.id) == run.run.id
                assert key not in made
                turn = next(tries) % 4
                del making[key]
                if turn == 0:
                    made[key] = run.run.id
                end = Also(effects=[EffectEnd(key, key, turn == 0)])
                if turn == 1:
                    await worker.apply(ref, change=states.fail(State.RUNNING, "{}"))
                    return
                at = next(seq)
                written = record(at, key if turn == 0 else f"failed{at}", failed=turn != 0)
                await worker.apply(ref, written, also=end)
                if turn == 0:
                    break
        await worker.apply(ref, change=states.complete(State.RUNNING, "1"))

    claims = [(worker, run) for worker in workers for run in (await worker.claim(limit=5)).runs]
    assert len(claims) == 15
    async with asyncio.timeout(60):
        await asyncio.gather(*(work(worker, run) for worker, run in claims))
    assert making == {}
    assert dict(postgres.rows("SELECT key, run_id::text FROM durable.effects WHERE done")) == made
    assert postgres.rows("SELECT count(*) FROM durable.effects WHERE NOT done") == [(0,)]
    assert postgres.rows(deadlocks) == before


async def test_P31_the_end_of_an_effect_wakes_who_waits_in_other_processes(postgres: Postgres) -> None:
    store, other = await postgres.fresh(), await postgres.another()
    worker, run = await claimed(store)
    helper, waiting = await claimed(other)
    await _take(worker, run)
    assert not (await _take(helper, waiting)).mine
    await helper.wait(waiting, also=Also(awaited=[Awaited(EFFECT_TOPIC, _KEY, LONG_AGO)]))
    await postgres.expire(worker.id)
    for _ in range(5):  # given up at the fifth death: it lets go of what it was making
        await store.reap()
        worker = await Worker.start(store)
        found = [one for one in (await worker.claim(limit=1)).runs if one.run.id == run.run.id]
        if not found:
            break
        assert (await _take(worker, found[0])).mine
        await postgres.expire(worker.id)
    await _drained(other)
    again = await helper.take()
    assert (again.run.id, (await _take(helper, again)).mine) == (waiting.run.id, True)


async def _drained(store: Store) -> None:
    worker = await Worker.start(store)
    await worker.claim(0, ())
    await store.unregister(worker.id)
