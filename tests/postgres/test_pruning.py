"""Pruning on Postgres: along the primary key, past what lives, beside load."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durable import states
from durable.model import RunFilter, RunWrite, State
from durable.stores.postgres import PostgresStore
from durable.stores.postgres.sessions import Sessions
from durable.testing.conformance.harness import NEVER, Worker, create, new_run, record
from tests.postgres.conftest import Postgres

_COMPLETE = states.complete(State.RUNNING, "1")
_ORPHANS = """
    SELECT (SELECT count(*) FROM durable.history AS h
            WHERE shard = 0 AND NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.id = h.run_id)),
           (SELECT count(*) FROM durable.keys AS k
            WHERE shard = 0 AND NOT EXISTS (SELECT FROM durable.runs AS r WHERE r.id = k.run_id))
"""
_SLEEPING = """
    INSERT INTO durable.runs (shard, id, route, state, created_at, started_at, ready_at, claim)
    SELECT 0, (lpad(to_hex(n), 8, '0') || '-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, 1, 'sleeping',
           now() - interval '9 days', now() - interval '9 days', now() + interval '9 days', 1
    FROM generate_series(1, 12000) AS n
"""


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ranges that were looked at, since it was last cleared."""
    seen: list[Any] = []
    original = Sessions.read

    async def noted(self: Sessions, name: str, *parameters: Any) -> Any:
        if name == "ended_before":
            seen.append(parameters[1:3])
        return await original(self, name, *parameters)

    monkeypatch.setattr(Sessions, "read", noted)
    return seen


async def test_P52_what_lives_is_not_looked_at_again_and_again(postgres: Postgres, looks: list[Any]) -> None:
    store = await postgres.fresh()
    postgres.rows(_SLEEPING)
    now = store.clock.now()
    assert await store.prune(now - timedelta(hours=1), 10) == 0
    assert len(looks) == 3
    looks.clear()
    for minutes in (60, 30, 5):
        assert await store.prune(now - timedelta(minutes=minutes), 10) == 0
    # Only what lies behind the time of the first look, where there is nothing: runs of these ids are younger.
    assert all(after > "01" for after, _ in looks)
    # What has ended since is found: no run that had not ended an hour ago can be old enough before that.
    for number in (1, 6000, 12000):
        postgres.rows(
            "UPDATE durable.runs SET state = 'completed', ended_at = now(), ready_at = NULL WHERE id = %s", _id(number)
        )
    assert await store.prune(store.clock.now() + timedelta(seconds=1), 10) == 3
    assert await store.prune(NEVER, 10) == 0


def _id(number: int) -> str:
    return f"{number:08x}-0000-7000-8000-{number:012x}"


async def test_P52_the_young_end_is_not_looked_at(postgres: Postgres, looks: list[Any]) -> None:
    store = await postgres.fresh()
    before = store.clock.now() - timedelta(days=7)
    await store.prune(before, 10)
    ((_, until),) = looks
    milliseconds = int(until.replace("-", "")[:12], 16)
    assert milliseconds == int((before + timedelta(hours=1)).timestamp() * 1000)


async def test_P52_a_stretch_where_one_could_not_be_deleted_is_looked_at_again(postgres: Postgres) -> None:
    store = await postgres.fresh()
    ids = await _completed(store, 5)
    before = store.clock.now() - timedelta(days=30)
    postgres.rows("UPDATE durable.runs SET ended_at = now() - interval '40 days' WHERE shard = 0")
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.runs WHERE id = %s FOR NO KEY UPDATE", ids[2])
        assert await store.prune(before, 10) == 4
        assert await store.prune(before, 10) == 0
    assert await store.prune(before, 10) == 1


async def test_P52_pruning_beside_load_takes_whole_runs_and_no_live_one(postgres: Postgres) -> None:
    stores = [await postgres.fresh(), await postgres.another()]
    kept = await create(stores[0], *(new_run(ready_at=NEVER) for _ in range(20)))
    working, pruned = True, list[int]()

    async def prune(store: PostgresStore) -> None:
        while working:
            pruned.append(await store.prune(NEVER, 7))

    pruning = [asyncio.create_task(prune(store)) for store in stores]
    made = 0
    for turn in range(25):
        made += len(await _completed(stores[turn % 2], 10, f"turn {turn} "))
    working = False
    await asyncio.gather(*pruning)
    while more := await stores[0].prune(NEVER, 100):
        pruned.append(more)
    assert sum(pruned) == made == 250
    assert sorted(run.id for run in await stores[0].list_runs(RunFilter(), 100, None)) == sorted(kept)
    assert postgres.rows(_ORPHANS) == [(0, 0)]


async def _completed(store: PostgresStore, count: int, keys: str = "") -> list[str]:
    ids = await create(store, *(new_run(key=f"{keys}{n}") for n in range(count)))
    worker = await Worker.start(store)
    ends = [RunWrite(one.ref, [record(1), record(2)], _COMPLETE) for one in (await worker.claim()).runs]
    await worker.commit(*ends)
    return ids
