"""Schedules on Postgres: many who fire at once, connections that die in the middle, and what looking costs."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from durable import states
from durable.declarations import run_of
from durable.errors import RunNotFound, StoreUnavailable
from durable.model import Policy, Request, RunFilter, RunWrite, State, Verb
from durable.schedules import CatchUp, Overlap, Schedule, ScheduleWrite
from durable.scheduling import decide, fired
from durable.sql import statements
from durable.stores.postgres import PostgresStore, connections, creating, sessions
from durable.testing.conformance.harness import LONG_AGO, NEVER, Worker, read
from durable.testing.conformance.schedules import TICK, firing, get, put, schedule
from durable.testing.conformance.writes import ERROR
from tests.postgres.conftest import Postgres
from tests.postgres.test_plans import faults

MANY = 100_000
HOUR = timedelta(hours=1)
# Other test processes have databases of their own on this server, and schemas of the same names.
_WAITING = "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE %s"
_WAITS = f"SELECT EXISTS (SELECT FROM {_WAITING})"


def secondly(store: PostgresStore, name: str, ticks: int, overlap: Overlap) -> Schedule:
    """Due with so many ticks, one for each second."""
    now = store.clock.now().replace(microsecond=0)
    due, spec = now - timedelta(seconds=ticks), {"every": 1.0, "cron": None, "end_at": now}
    return schedule(name, due, overlap=overlap, catch_up=CatchUp.ALL, max_queued=1000, **spec)


async def fire_all(store: PostgresStore, order: random.Random) -> int:
    """Fire in small steps what is due, until nothing is; the ticks."""
    count = 0
    while found := list((await store.due_schedules(20, None)).found):
        order.shuffle(found)
        writes: list[ScheduleWrite] = []
        for stored, previous in found:
            plan = decide(stored, store.clock.now(), previous, limit=3)
            runs = [run_of(stored.spec, one.tick, store.clock.now()) for one in plan.fire]
            dates = plan.next_at, plan.due_at
            writes.append(fired(stored, runs, plan.skipped, store.clock.now(), dates))
        answers = await store.write_schedules(writes)
        count += sum(len(write.runs) for write, answer in zip(writes, answers, strict=True) if answer)
    return count


@pytest.mark.parametrize("pruned", [False, True])
async def test_P39_ten_who_fire_all_at_once_beside_everything_else(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch, pruned: bool
) -> None:
    """Ten that fire the same 20 schedules, workers that end their runs, retries, prunes, and no deadlock."""
    lost: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        lost.append(getattr(error, "sqlstate", None))
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    store = await postgres.fresh(pool_size=2)
    stores = [store, *[await postgres.another(pool_size=2) for _ in range(9)]]
    overlaps = [Overlap.QUEUE, Overlap.ALLOW]
    made = [secondly(store, f"s{number:02}", 12, overlaps[number % 2]) for number in range(20)]
    await put(store, *made)
    done = asyncio.Event()

    async def work(other: PostgresStore) -> None:
        worker = await Worker.start(other)
        while not done.is_set():
            runs = (await worker.claim(limit=30)).runs
            change = states.fail(State.RUNNING, ERROR)
            await worker.commit(*(RunWrite(run.ref, change=change) for run in runs))
            for run in runs[:3]:
                with suppress(RunNotFound):
                    await other.request(run.run.id, Request(Verb.RETRY))

    async def ask(other: PostgresStore) -> None:
        while not done.is_set():
            await other.find_schedules([one.spec.name for one in made])
            await other.prune(NEVER if pruned else LONG_AGO, 10)

    async def fire() -> int:
        counts = await asyncio.gather(*(fire_all(one, random.Random(seed)) for seed, one in enumerate(stores)))
        done.set()
        return sum(counts)

    async with asyncio.timeout(60):
        count, *_ = await asyncio.gather(fire(), work(stores[1]), work(stores[2]), ask(stores[3]))
    assert lost == []
    assert count == 12 * len(made)
    stored = [found.schedule for found in await store.find_schedules([one.spec.name for one in made])]
    assert {(one.fired, one.next_at) for one in stored} == {(12, None)}
    for one in () if pruned else made:
        ticks = [one.next_at + timedelta(seconds=second) for second in range(12) if one.next_at is not None]
        assert [tick.at for tick in await store.ticks(one.spec.name, LONG_AGO, NEVER, 100)] == ticks
        runs = await store.list_runs(RunFilter(schedule=one.spec.name), 100, None)
        assert sorted(run.tick for run in runs if run.tick is not None) == ticks


async def in_the_way(postgres: Postgres) -> None:
    """Have the next firing wait in the middle of its transaction, after its schedule and ticks are written."""
    postgres.rows("INSERT INTO durable.turn_keys VALUES (now(), 0, 'order', 'schedule:report')")


def never(_: Exception) -> bool:
    return False


def left(postgres: Postgres) -> list[int]:
    """How many ticks, turns and runs are visible."""
    tables = ("ticks", "turns", "runs")
    return [postgres.beside(f"SELECT count(*)::integer FROM durable.{table}")[0][0] for table in tables]


async def test_P39_a_connection_that_is_killed_in_the_middle_leaves_nothing(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_broken", never)  # else it would be sent again at once
    store = await postgres.fresh()
    stored = schedule()
    await put(store, stored)
    write = firing(stored, TICK, TICK + HOUR)
    with postgres.sql.transaction(force_rollback=True):
        await in_the_way(postgres)
        sent = asyncio.create_task(store.write_schedules([write]))
        await postgres.until(_WAITS, f'%{postgres.schema}".turn_keys%')
        postgres.beside(f"SELECT pg_terminate_backend(pid) FROM {_WAITING}", f'%{postgres.schema}".turn_keys%')
        with pytest.raises(StoreUnavailable):
            await sent
    assert left(postgres) == [0, 0, 0]
    assert (await get(store))[0] == stored
    assert list(await store.write_schedules([write])) == [True]
    assert left(postgres) == [2, 2, 2]


async def test_P39_what_is_sent_again_while_it_is_under_way_is_made_once(postgres: Postgres) -> None:
    """The second sending waits for the first, and sees then that it was applied."""
    store, other = await postgres.fresh(), await postgres.another()
    stored = schedule()
    await put(store, stored)
    write = firing(stored)
    with postgres.sql.transaction(force_rollback=True):
        await in_the_way(postgres)
        first = asyncio.create_task(store.write_schedules([write]))
        await postgres.until(_WAITS, f'%{postgres.schema}".turn_keys%')
        again = asyncio.create_task(other.write_schedules([write]))
        competing = asyncio.create_task(other.write_schedules([firing(stored)]))
        await postgres.until(_WAITS, f'%{postgres.schema}".schedules%FOR NO KEY UPDATE%')
    assert [list(await task) for task in (first, again, competing)] == [[True], [True], [False]]
    assert left(postgres) == [1, 1, 1]


async def test_a_run_that_goes_on_after_its_end_is_open_again(postgres: Postgres) -> None:
    """Also when a later tick has found that it had ended."""
    store = await postgres.fresh()
    stored = schedule(overlap=Overlap.QUEUE)
    await put(store, stored)
    first = firing(stored)
    assert list(await store.write_schedules([first])) == [True]
    worker = await Worker.start(store)
    await worker.apply(await worker.take(), change=states.fail(State.RUNNING, ERROR))
    second = firing(first.schedule, TICK + HOUR)
    assert list(await store.write_schedules([second])) == [True]
    assert postgres.rows("SELECT ended FROM durable.ticks ORDER BY at") == [(True,), (False,)]
    assert await store.request(first.runs[0].id, Request(Verb.RETRY)) is State.PENDING
    previous = (await get(store))[1]
    assert (list(previous.active), list(previous.queued)) == ([second.runs[0].id], [first.runs[0].id])


async def test_a_firing_does_not_settle_a_run_that_is_retried_at_this_moment(postgres: Postgres) -> None:
    store = await postgres.fresh()
    stored = schedule()
    await put(store, stored)
    first = firing(stored)
    assert list(await store.write_schedules([first])) == [True]
    worker = await Worker.start(store)
    await worker.apply(await worker.take(), change=states.fail(State.RUNNING, ERROR))
    with postgres.sql.transaction():
        postgres.rows("UPDATE durable.ticks SET ended = false")  # as reopen_tick
        async with asyncio.timeout(4):  # less than any lock_timeout
            assert list(await store.write_schedules([firing(first.schedule, TICK + HOUR)])) == [True]
    assert postgres.rows("SELECT ended FROM durable.ticks ORDER BY at") == [(False,), (False,)]


async def test_what_a_run_replaces_is_cancelled_though_whoever_fired_it_died(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next who looks for what is due asks in its place."""
    store, other = await postgres.fresh(), await postgres.another()
    stored = schedule(overlap=Overlap.CANCEL_PREVIOUS)
    await put(store, stored)
    first = firing(stored, policy=Policy.REPLACE)
    assert list(await store.write_schedules([first])) == [True]
    second = firing(first.schedule, TICK + HOUR, policy=Policy.REPLACE)

    async def die(*_: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        patch.setattr(creating, "make_way", die)
        with pytest.raises(asyncio.CancelledError):
            await store.write_schedules([second])
    await other.due_schedules(10, None)
    assert (await read(store, first.runs[0].id)).state is State.PENDING  # whoever fired it may be about to ask
    postgres.rows("UPDATE durable.runs SET created_at = created_at - interval '11 s'")
    await other.due_schedules(10, None)
    assert (await read(store, first.runs[0].id)).state is State.CANCELLED
    assert (await get(store))[1].active == (second.runs[0].id,)


# -- costs ----------------------------------------------------------------------------------------


def filled(postgres: Postgres) -> None:
    """Many schedules that are far off, each with a tick of a run that has ended; one of them with many."""
    postgres.rows(f"""
        INSERT INTO durable.schedules (shard, name, created_at, updated_at, next_at, due_at, fired, revision,
                                       overlapping, spec, skipped)
        SELECT 0, 'far' || n, now(), now(), now() + n * interval '1 s' + interval '1 d',
               now() + n * interval '1 s' + interval '1 d', 0, 0, false, '{{}}', '{{}}'
        FROM generate_series(1, {MANY}) AS n""")
    postgres.rows(f"""
        INSERT INTO durable.ticks (shard, schedule, at, run_id, ended)
        SELECT 0, CASE WHEN n % 2 = 0 THEN 'far' || n ELSE 'busy' END, now() - n * interval '1 s', gen_random_uuid(),
               true
        FROM generate_series(1, {MANY}) AS n""")
    postgres.rows("INSERT INTO durable.runs (shard, id) SELECT shard, run_id FROM durable.ticks LIMIT 20000")


def pages(postgres: Postgres, name: str, *values: str | None) -> int:
    """How many pages the statement touches; undone. It may only probe indexes."""
    text = statements("postgres", postgres.schema)[name]
    for number, value in reversed(list(enumerate(values, 1))):
        text = text.replace(f"${number}", "NULL" if value is None else f"'{value}'")
    with postgres.sql.transaction(force_rollback=True):
        ((explained,),) = postgres.rows(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}")
    plan: dict[str, Any] = explained[0]["Plan"]
    assert faults(plan) == []
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


@pytest.mark.parametrize("analyzed", ["before", "after"])
async def test_P45_what_is_due_is_found_among_many_by_probes(apart: Postgres, analyzed: str) -> None:
    store = await apart.fresh()
    tables = ("schedules", "ticks", "runs", "turns")
    for table in tables:
        apart.rows(f"ALTER TABLE durable.{table} SET (autovacuum_enabled = false)")
    if analyzed == "after":
        filled(apart)
    for table in tables:
        apart.rows(f"VACUUM ANALYZE durable.{table}")
    if analyzed == "before":
        filled(apart)
    marks, long_ago = ("\x1e", "\x1d"), "-infinity"
    assert pages(apart, "found_schedules", "0", *marks, "", long_ago, "", "200") < 20
    assert pages(apart, "schedules_rest", "0") < 20
    due = [schedule(f"due{number:03}", overlap=Overlap.QUEUE) for number in range(50)]
    await put(store, *due)
    writes = [firing(one) for one in due]
    assert all(
        await store.write_schedules([replace(one, schedule=replace(one.schedule, due_at=TICK)) for one in writes])
    )
    names = "\x1e".join(one.spec.name for one in due)
    a_schedule = 40  # pages: itself, its ticks, and of one open run the row and its turn
    assert pages(apart, "found_schedules", "0", *marks, "", long_ago, "", "200") < 50 * a_schedule
    assert pages(apart, "found_schedules", "0", *marks, names, long_ago, "", "0") < 50 * a_schedule
    assert pages(apart, "hold_schedules", "0", *marks, names) < 50 * a_schedule
    assert pages(apart, "settle_ticks", "0", *marks, names) < 50 * a_schedule
    assert pages(apart, "list_schedules", "0", "far5", "100") < 200
    assert pages(apart, "ticks", "0", "busy", "0", "4000000000000000", "100") < 200
    assert pages(apart, "reopen_tick", "0", "busy", "0", "00000000-0000-0000-0000-000000000000") < 20
    assert pages(apart, "delete_schedule", "0", "far7") < 50
