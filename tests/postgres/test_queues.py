"""Limits of queues over all workers: never over, nobody forgotten, and the claim stays a probe of an index."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import pytest

from durable import states
from durable.model import ClaimedRun, NewRun, Outcome, Queue, Rate, Request, RunWrite, State, Verb
from durable.store import Route
from durable.stores.postgres import PostgresStore, connections, literals, sessions
from durable.testing.conformance.harness import LONG_AGO, Worker, create, new_run, record, until
from tests.postgres.conftest import Postgres
from tests.postgres.test_plans import Session

MAILS = Route("order", "1", "mails")
_COMPLETE = states.complete(State.RUNNING, "1")
_RELEASE = states.release(State.RUNNING)


_ages = count()


def mail(**other: Any) -> NewRun:
    """A run that is due a millisecond after the one before."""
    return new_run(queue="mails", ready_at=LONG_AGO + timedelta(milliseconds=next(_ages)), **other)


def park(run: ClaimedRun) -> RunWrite:
    return RunWrite(run.ref, [record(1)], states.park(State.RUNNING, ready_at=None, wakes=run.wakes, waiting=True))


async def ids(worker: Worker, limit: int = 100) -> list[str]:
    return sorted(one.run.id for one in (await worker.claim(limit, [MAILS])).runs)


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """SQLSTATEs of transactions that lost against another one; each is an error instead of a repetition."""
    found: list[str | None] = []

    def repeatable(error: BaseException) -> bool:
        if (state := getattr(error, "sqlstate", None)) in ("40001", "40P01"):
            found.append(state)
        return False

    monkeypatch.setattr(connections, "repeatable", repeatable)
    monkeypatch.setattr(sessions, "repeatable", repeatable)
    return found


class Executing:
    """What is executing at each moment, counted by the test itself: from the claim's answer to before the commit."""

    def __init__(self) -> None:
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.ended: list[str] = []

    def begin(self, run: ClaimedRun) -> None:
        for name in self._names(run):
            self.now[name] += 1
            self.most[name] = max(self.most[name], self.now[name])

    def end(self, run: ClaimedRun) -> None:
        for name in self._names(run):
            self.now[name] -= 1

    @staticmethod
    def _names(run: ClaimedRun) -> list[str]:
        return [run.run.queue, f"key {run.run.limit_key}"]


async def work(store: PostgresStore, executing: Executing, count: int, limit: int) -> None:
    """A worker: claims, executes for a few passes of the loop, parks every third run once, ends it."""
    worker = await Worker.start(store)
    while len(executing.ended) < count:
        runs = (await worker.claim(limit, [MAILS])).runs
        for run in runs:
            executing.begin(run)
        for _ in range(3):
            await asyncio.sleep(0)
        for run in runs:
            executing.end(run)
        release = [run for run in runs if run.run.claim == 1 and int(run.run.id[7], 16) % 3 == 0]
        writes = [RunWrite(one.ref, [], _RELEASE if one in release else _COMPLETE) for one in runs]
        if writes:
            assert set(await worker.commit(*writes)) == {Outcome.APPLIED}
        executing.ended += [one.run.id for one in runs if one not in release]


async def places(postgres: Postgres, done: asyncio.Event, grouped: str) -> int:
    """The largest number of places that another connection ever sees."""
    most = 0
    while not done.is_set():
        query = f"SELECT coalesce(max(count), 0) FROM (SELECT count(*) FROM durable.places GROUP BY {grouped}) AS p"
        ((count,),) = await asyncio.to_thread(postgres.beside, query)
        most = max(most, count)
    return most


async def crowd(
    postgres: Postgres, queue: Queue, runs: Sequence[NewRun], grouped: str, claimers: int = 8
) -> tuple[Executing, int]:
    """Eight workers, each a store of its own, until all runs have ended."""
    stores = [await postgres.fresh()] + [await postgres.another(pool_size=2) for _ in range(claimers - 1)]
    await stores[0].put_queues([queue])
    for start in range(0, len(runs), 500):
        await create(stores[0], *runs[start : start + 500])
    executing, done = Executing(), asyncio.Event()
    watching = asyncio.create_task(places(postgres, done, grouped))
    async with asyncio.timeout(120):
        await asyncio.gather(*(work(store, executing, len(runs), 1 + number) for number, store in enumerate(stores)))
    done.set()
    return executing, await watching


# -- never over -----------------------------------------------------------------------------------


async def test_P36_eight_claimers_are_never_over_the_limit_and_nothing_starves(
    postgres: Postgres, lost: list[str | None]
) -> None:
    runs = [mail() for _ in range(600)]
    executing, most_places = await crowd(postgres, Queue("mails", concurrency=5), runs, "queue")
    assert executing.most["mails"] == 5
    assert most_places <= 5
    assert sorted(executing.ended) == [run.id for run in runs]
    assert postgres.rows("SELECT count(*) FROM durable.places") == [(0,)]
    assert lost == []


async def test_P36_eight_claimers_are_never_over_the_limit_of_any_key(
    postgres: Postgres, lost: list[str | None]
) -> None:
    runs = [mail(limit_key=f"customer {number * number % 97}") for number in range(300)]
    executing, most_places = await crowd(postgres, Queue("mails", concurrency=40, per_key=2), runs, "queue, key")
    assert max(count for name, count in executing.most.items() if name.startswith("key")) == 2
    assert executing.most["mails"] <= 40
    assert most_places <= 2
    assert sorted(executing.ended) == [run.id for run in runs]
    for table in ("places", "blocked"):
        assert postgres.rows(f"SELECT count(*) FROM durable.{table}") == [(0,)]
    assert lost == []


# -- what frees a place ---------------------------------------------------------------------------


async def test_P36_the_reaper_frees_the_places_of_a_killed_worker(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", concurrency=2, per_key=1)])
    runs = [mail(limit_key=key) for key in ("a", "a", "b", "c")]
    await create(store, *runs)
    killed, other = await Worker.start(store), await Worker.start(store)
    assert await ids(killed) == [runs[0].id, runs[2].id]
    assert await ids(other) == []
    await postgres.expire(killed.id)
    assert (await store.reap()).released == 2
    assert await ids(other) == [runs[1].id, runs[3].id]  # what was released is ready since now
    assert postgres.rows("SELECT count(*) FROM durable.places") == [(2,)]


async def test_P36_a_worker_that_unregisters_leaves_no_place_behind(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", concurrency=1)])
    await create(store, mail())
    worker = await Worker.start(store)
    assert len(await ids(worker)) == 1
    await store.unregister(worker.id)
    assert postgres.rows("SELECT count(*) FROM durable.places") == [(0,)]


async def test_P36_a_run_that_parks_leaves_its_place(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", concurrency=1)])
    first, second = mail(), mail()
    await create(store, first, second)
    worker = await Worker.start(store)
    (run,) = (await worker.claim(10, [MAILS])).runs
    assert await ids(worker) == []
    await worker.commit(park(run))
    assert await ids(worker) == [second.id]


async def test_P36_a_run_of_a_full_key_stands_in_nobodys_way(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", per_key=1)])
    full = [mail(limit_key="a") for _ in range(300)]
    free = mail(limit_key="b")
    await create(store, *full, free)
    worker = await Worker.start(store)
    first = await worker.claim(2, [MAILS])
    assert [one.run.id for one in first.runs] == [full[0].id]
    assert first.next_ready_at is not None  # more were set aside than looked at: at once again
    assert await ids(worker) == [free.id]
    await worker.commit(RunWrite(first.runs[0].ref, [], _COMPLETE))
    assert await ids(worker) == [full[1].id]


async def test_P36_a_blocked_run_that_is_paused_or_cancelled_does_not_keep_others_back(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", per_key=1)])
    runs = [mail(limit_key="a") for _ in range(4)]
    await create(store, *runs)
    worker = await Worker.start(store)
    (held,) = (await worker.claim(10, [MAILS])).runs
    assert await store.request(runs[1].id, Request(Verb.PAUSE)) is State.PAUSED
    assert await store.request(runs[2].id, Request(Verb.CANCEL)) is State.CANCELLED
    await worker.commit(RunWrite(held.ref, [], _COMPLETE))
    assert await ids(worker) == [runs[3].id]
    assert await store.request(runs[1].id, Request(Verb.RESUME)) is State.PENDING
    assert await ids(worker) == []


# -- rates ----------------------------------------------------------------------------------------


def started_at(claimed: ClaimedRun) -> datetime:
    assert claimed.run.started_at is not None
    return claimed.run.started_at


async def drain(store: PostgresStore, worker: Worker, count: int) -> list[tuple[datetime, str]]:
    """Claim whenever the store says so, until ``count`` runs have come: when by the server's clock, and which."""
    found: list[tuple[datetime, str]] = []
    while True:
        answer = await worker.claim(100, [MAILS])
        found += [(started_at(one), one.run.id) for one in answer.runs]
        await worker.commit(*(RunWrite(one.ref, [], _COMPLETE) for one in answer.runs))
        if len(found) >= count:
            return found
        assert answer.next_ready_at is not None
        await until(store, answer.next_ready_at)


async def test_P36_a_rate_lets_as_many_start_and_then_one_each_time(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", rate=Rate(4, 0.4))])
    runs = [mail() for _ in range(10)]
    await create(store, *runs)
    worker = await Worker.start(store)
    found = await drain(store, worker, 10)
    assert sorted(run_id for _, run_id in found) == [run.id for run in runs]
    assert [when for when, _ in found].count(found[0][0]) == 4
    assert all((when - found[0][0]).total_seconds() >= 0.1 * n - 0.001 for n, (when, _) in enumerate(found[4:], 1))


async def test_P36_a_rate_of_each_key_holds_nobody_else_back(postgres: Postgres) -> None:
    store = await postgres.fresh()
    await store.put_queues([Queue("mails", rate_per_key=Rate(1, 0.1))])
    many = [mail(limit_key="a") for _ in range(5)]
    other = [mail(limit_key="b"), mail()]
    await create(store, *many, *other)
    worker = await Worker.start(store)
    found = await drain(store, worker, 7)
    assert {run_id for _, run_id in found[:3]} == {many[0].id, *(run.id for run in other)}
    assert [run_id for _, run_id in found[3:]] == [run.id for run in many[1:]]
    assert (found[-1][0] - found[0][0]).total_seconds() >= 0.4 - 0.001
    await until(store, store.clock.now() + timedelta(seconds=0.5))
    await worker.claim(10, [MAILS])
    assert postgres.rows("SELECT count(*) FROM durable.limit_keys") == [(0,)]  # full buckets are not kept


# -- new limits -----------------------------------------------------------------------------------


async def test_P36_a_new_limit_holds_at_once_in_every_process(postgres: Postgres) -> None:
    store, second = await postgres.fresh(), await postgres.another()
    runs = [mail() for _ in range(6)]
    await create(store, *runs)
    worker, other = await Worker.start(store), await Worker.start(second)
    assert await ids(other, 1) == [runs[0].id]  # it does not know of any limit
    await store.put_queues([Queue("mails", concurrency=2)])
    assert await ids(other) == [runs[1].id, runs[2].id]
    assert await ids(worker) == []
    await second.put_queues([Queue("mails", concurrency=3)])
    assert await ids(worker) == [runs[3].id]
    await second.put_queues([Queue("mails")])
    assert await ids(worker) == [runs[4].id, runs[5].id]
    assert await store.queues() == []


async def test_P36_a_worker_that_registers_while_limits_are_put_learns_them(postgres: Postgres) -> None:
    store, second = await postgres.fresh(), await postgres.another()
    await create(store, mail(), mail())
    waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s)"
    with postgres.sql.transaction():
        postgres.rows("LOCK TABLE durable.limits IN EXCLUSIVE MODE")
        put = asyncio.create_task(store.put_queues([Queue("mails", concurrency=1)]))
        await postgres.until(waits, f'%{postgres.schema}".limits%')
        worker = Worker(second, str(uuid4()))
        registration = asyncio.create_task(second.register(worker.id, 60.0))
        await postgres.until(waits, f'%{postgres.schema}".limits_version%FOR SHARE%')
    await put
    await registration
    assert len(await ids(worker)) == 1


async def test_P36_more_room_for_each_key_lets_blocked_runs_start(postgres: Postgres) -> None:
    store, second = await postgres.fresh(), await postgres.another()
    await store.put_queues([Queue("mails", per_key=1)])
    runs = [mail(limit_key="a") for _ in range(5)]
    await create(store, *runs)
    worker = await Worker.start(second)
    assert await ids(worker) == [runs[0].id]
    await store.put_queues([Queue("mails", per_key=3)])
    assert await ids(worker) == [runs[1].id, runs[2].id]
    await store.put_queues([Queue("mails")])
    assert await ids(worker) == [runs[3].id, runs[4].id]


async def test_P36_a_claim_that_waits_does_not_act_on_the_limits_of_before(postgres: Postgres) -> None:
    """It has its snapshot when it waits for the row of its worker, and looks at that row as it is afterwards."""
    store, second = await postgres.fresh(), await postgres.another()
    await create(store, *(mail() for _ in range(3)))
    worker = await Worker.start(second)
    waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE %s)"
    with postgres.sql.transaction():
        postgres.rows("SELECT FROM durable.workers WHERE id = %s FOR UPDATE", worker.id)
        claim = asyncio.create_task(worker.claim(10, [MAILS]))
        await postgres.until(waits, f'%{postgres.schema}".workers%')
        postgres.rows("INSERT INTO durable.limits (shard, queue, concurrency) VALUES (0, 'mails', 1)")
        postgres.rows("UPDATE durable.limits_version SET version = gen_random_uuid()")
        postgres.rows("UPDATE durable.workers SET limits = (SELECT version FROM durable.limits_version)")
    assert len((await claim).runs) == 1
    assert len(await ids(worker)) == 0


# -- cost -----------------------------------------------------------------------------------------


class Claim(Session):
    """A connection that has prepared all statements on empty tables, and a claim with these plans, undone."""

    def pages(self, worker: str, version: str, routes: str, queues: Sequence[str]) -> dict[str, int]:
        """How many pages each statement touches, and how many runs are taken."""
        names = literals.columns(queues)
        calls = {
            "hold_queues": (worker, "0", version, *names),
            "promote_keys": ("0", *names),
            "claim_limited": (worker, "0", routes, "10", str(uuid4()), "{}", "{}", "{}", version),
            "limits_rest": ("0", routes, *names),
        }
        found: dict[str, int] = {}
        with self._connection.transaction(force_rollback=True):
            for name, values in calls.items():
                plan = self._explain("ANALYZE, BUFFERS, ", name, [f"'{value}'" for value in values])
                found[name] = int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
                found["taken"] = int(plan["Actual Rows"]) if name == "claim_limited" else found.get("taken", 0)
        return found


async def test_P45_a_claim_stays_a_probe_beside_100_000_runs_that_may_not_start(apart: Postgres) -> None:
    """Of a full queue, of full keys, and of a rate that is used up; with the plans of empty tables."""
    store = await apart.fresh()
    for table in ("runs", "blocked", "limit_keys", "places", "freed"):
        apart.rows(f"ALTER TABLE durable.{table} SET (autovacuum_enabled = false)")
        apart.rows(f"VACUUM ANALYZE durable.{table}")
    session = Claim(apart.url, apart.schema)
    await store.put_queues([Queue("full", 1), Queue("keys", None, 1), Queue("rate", rate=Rate(1, 3600))])
    routes = [Route("order", "1", queue) for queue in ("full", "keys", "rate", "free")]
    await create(store, *(new_run(queue=route.queue, limit_key="key 0", priority=0) for route in routes))
    worker = await Worker.start(store)
    await worker.claim(10, routes)
    numbers = dict(apart.rows("SELECT queue, id FROM durable.routes"))
    many = (
        "INSERT INTO durable.runs (shard, id, route, limit_key, linked, ready_at) SELECT 0, gen_random_uuid(), %s, "
        "'key ' || n %% 1000, true, now() FROM generate_series(1, 33000) AS n"
    )
    for queue in ("full", "rate"):
        apart.rows(many, numbers[queue])
    apart.rows(many.replace("true, now()", "true, NULL"), numbers["keys"])
    apart.rows(
        "INSERT INTO durable.blocked (shard, run_id, route, priority, ready_at, queue, key) "
        "SELECT 0, id, route, 5, now(), 'keys', limit_key FROM durable.runs WHERE route = %s AND owner IS NULL",
        numbers["keys"],
    )
    apart.rows("INSERT INTO durable.places SELECT gen_random_uuid(), 0, 'keys', 'key ' || generate_series(1, 999)")
    apart.rows(
        "INSERT INTO durable.limit_keys (shard, queue, key, spent, cause, due) "
        "SELECT DISTINCT 0, queue, key, now(), 1, now() + interval '1 h' FROM durable.blocked"
    )
    apart.rows("INSERT INTO durable.freed SELECT gen_random_uuid(), 0, 'keys', 'key ' || generate_series(1, 5)")
    await create(store, new_run(queue="free", priority=9), new_run(queue="keys", limit_key="new", priority=9))
    ((version,),) = apart.rows("SELECT version::text FROM durable.limits_version")
    listed = "{" + ",".join(str(numbers[route.queue]) for route in routes) + "}"
    pages = session.pages(worker.id, version, listed, ["full", "keys", "rate"])
    session.close()
    assert pages.pop("taken") == 2
    assert {name: count for name, count in pages.items() if count > 1_000} == {}
