"""What people ask of runs, when other processes hold them, ask too, or change them in the middle."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from durable import requests, states
from durable.model import Kind, Outcome, Record, Request, Run, RunWrite, State, Verb
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.conftest import Peer
from tests.sqlite.peer import ROUTE, new_runs, step

StartPeers = Callable[[int], Awaitable[list[Peer]]]
ERROR = '{"error_type":"ValueError","message":"no such card"}'
CANCEL = Request(Verb.CANCEL, "out of stock", "alice")


async def held_by(peer: Peer, store: SQLiteStore) -> str:
    """A run that the process has claimed."""
    (new,) = new_runs(1)
    await store.create_runs([new])
    await peer.ask("open")
    assert await peer.ask("take", "holder", 1) == [new.id]
    return new.id


async def one(store: SQLiteStore, run_id: str) -> Run:
    (run,) = await store.get_runs([run_id])
    return run


async def test_P30_the_process_that_holds_a_run_hears_of_every_request_within_a_second(
    peers: StartPeers, store: SQLiteStore
) -> None:
    """Through the hint alone: it claims only when it has heard of a commit."""
    (peer,) = await peers(1)
    run_id = await held_by(peer, store)
    peer.tell("listen", "holder", 4)
    assert await peer.answer() == []
    for verb, expected in (
        (Verb.PAUSE, [[run_id, "pause", "why", "bob"]]),
        (Verb.RESUME, []),
        (Verb.PAUSE, [[run_id, "pause", "why", "bob"]]),
        (Verb.CANCEL, [[run_id, "cancel", "why", "bob"]]),
    ):
        asked = time.monotonic()
        assert await store.request(run_id, Request(verb, "why", "bob")) is State.RUNNING
        assert await peer.answer() == expected
        assert time.monotonic() - asked < 1.0


async def test_a_request_outlives_the_process_that_was_told(peers: StartPeers, store: SQLiteStore) -> None:
    (peer,) = await peers(1)
    run_id = await held_by(peer, store)
    peer.tell("listen", "holder", 1)
    assert await peer.answer() == []
    assert await store.request(run_id, CANCEL) is State.RUNNING
    assert await peer.answer() == [[run_id, "cancel", "out of stock", "alice"]]
    await peer.kill()
    await store.register("holder", -1)
    assert (await store.reap()).released == 1
    await store.register("next", 60)
    answer = await store.claim("next", [ROUTE], 1, "b", {})
    assert [claimed.run.requested for claimed in answer.runs] == [CANCEL]
    assert list(answer.requests) == [(run_id, CANCEL)]


async def test_a_claim_without_a_slot_waits_for_no_writer(peers: StartPeers, store: SQLiteStore) -> None:
    (peer,) = await peers(1)
    await peer.ask("hold")
    assert (await store.claim("w", [ROUTE], 0, "b", {})).runs == []
    await peer.ask("let_go")


async def test_P29_eight_processes_cancel_a_run_and_one_of_them_does_it(peers: StartPeers, store: SQLiteStore) -> None:
    """It never started. Each one names itself, so that only the one that did it may say so."""
    (new,) = new_runs(1)
    await store.create_runs([new])
    everyone = await peers(8)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    answers = await asyncio.gather(*(peer.ask("ask", new.id, "cancel", f"p{n}") for n, peer in enumerate(everyone)))
    assert Counter(answers) == {"cancelled": 1, None: 7}
    (record,) = await store.history(new.id)
    assert f'"by":"p{answers.index("cancelled")}"' in (record.data or "")
    assert (await one(store, new.id)).claim == 1


async def test_P52_four_processes_prune_and_each_run_is_counted_once(peers: StartPeers, store: SQLiteStore) -> None:
    runs = new_runs(200)
    await store.create_runs(runs)
    for run in runs[:150]:
        assert await store.request(run.id, CANCEL) is State.CANCELLED
    everyone = await peers(4)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    pruned = await asyncio.gather(*(peer.ask("prune", 7) for peer in everyone))
    assert sum(pruned) == 150
    assert {run.id for run in await store.get_runs([run.id for run in runs])} == {run.id for run in runs[150:]}


async def test_P52_a_large_batch_is_done_in_parts_and_never_more_than_asked(store: SQLiteStore) -> None:
    runs = new_runs(180)
    await store.create_runs(runs)
    for run in runs:
        await store.request(run.id, CANCEL)
    now = store.clock.now()
    assert await store.prune(now, 120) == 120
    assert await store.prune(now, 120) == 60
    assert await store.prune(now, 120) == 0


@pytest.fixture
async def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Awaitable[Any]], None]:
    """What happens between the first decision and its being written, on the event loop."""
    loop, decide = asyncio.get_running_loop(), requests.decide
    waiting: list[Awaitable[Any]] = []

    def decide_and_dally(*arguments: Any) -> requests.Plan | None:
        plan = decide(*arguments)
        while waiting:
            asyncio.run_coroutine_threadsafe(_awaited(waiting.pop()), loop).result()
        return plan

    monkeypatch.setattr(requests, "decide", decide_and_dally)
    return waiting.append


async def _awaited(what: Awaitable[Any]) -> Any:
    return await what


@pytest.fixture
async def other(path: Path, store: SQLiteStore) -> Any:
    """Another process, as it were."""
    another = SQLiteStore(path)
    await another.open()
    await another.register("w", 60)
    yield another
    await another.close()


async def test_a_run_that_starts_in_the_middle_of_its_cancellation_is_told(
    store: SQLiteStore, other: SQLiteStore, meanwhile: Callable[[Awaitable[Any]], None]
) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    meanwhile(other.claim("w", [ROUTE], 1, "b", {}))
    assert await store.request(new.id, CANCEL) is State.RUNNING
    run = await one(store, new.id)
    assert (run.state, run.owner, run.requested, run.claim) == (State.RUNNING, "w", CANCEL, 1)
    assert await store.history(new.id) == []


async def test_a_run_that_ends_in_the_middle_of_its_cancellation_has_ended(
    store: SQLiteStore, other: SQLiteStore, meanwhile: Callable[[Awaitable[Any]], None]
) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    (claimed,) = (await other.claim("w", [ROUTE], 1, "b", {})).runs
    meanwhile(other.commit("w", [RunWrite(claimed.ref, change=states.complete(State.RUNNING, "1"))]))
    assert await store.request(new.id, CANCEL) is None
    run = await one(store, new.id)
    assert (run.state, run.requested) == (State.COMPLETED, None)


@pytest.mark.parametrize("state", [State.RUNNING, State.COMPENSATING])
async def test_a_run_that_parks_in_the_middle_of_its_cancellation_is_ready_at_once(
    store: SQLiteStore, other: SQLiteStore, meanwhile: Callable[[Awaitable[Any]], None], state: State
) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    (claimed,) = (await other.claim("w", [ROUTE], 1, "b", {})).runs
    if state is State.COMPENSATING:
        await other.commit("w", [RunWrite(claimed.ref, change=states.compensate(State.RUNNING, ERROR))])
    meanwhile(other.commit("w", [RunWrite(claimed.ref, change=states.park(state, ready_at=None, wakes=claimed.wakes))]))
    await store.request(new.id, CANCEL)
    (again,) = (await other.claim("w", [ROUTE], 1, "b2", {})).runs
    assert again.run.requested == CANCEL


async def test_two_retries_at_once_are_one(
    store: SQLiteStore, other: SQLiteStore, meanwhile: Callable[[Awaitable[Any]], None]
) -> None:
    (new,) = new_runs(1)
    await store.create_runs([new])
    (claimed,) = (await other.claim("w", [ROUTE], 1, "b", {})).runs
    failed = Record(1, "charge", Kind.STEP, store.clock.now(), ERROR, failed=True)
    await other.commit("w", [RunWrite(claimed.ref, [failed], states.fail(State.RUNNING, ERROR))])
    retry = Request(Verb.RETRY, "card is valid now")
    meanwhile(other.request(new.id, retry))
    assert await store.request(new.id, retry) is State.PENDING
    assert [record.key for record in await store.history(new.id)] == ["/1/charge", "/request/2"]
    assert (await one(store, new.id)).claim == 2


async def test_a_batch_that_names_a_deleted_run_names_no_later_one(store: SQLiteStore) -> None:
    """The number of the newest run would be given again, and the batch of the old one would list the new one too."""
    await store.register("w", 60)
    for batch in ("b1", "b2"):
        (new,) = new_runs(1)
        await store.create_runs([new])
        (claimed,) = (await store.claim("w", [ROUTE], 1, batch, {})).runs
        assert await store.owned("w") == [claimed.ref]
        await store.commit("w", [RunWrite(claimed.ref, change=states.complete(State.RUNNING, "1"))])
        assert await store.delete(new.id)
    assert (await store.claim("w", [ROUTE], 1, "b1", {})).runs == []


async def test_nothing_in_the_file_speaks_of_a_deleted_run(store: SQLiteStore, path: Path) -> None:
    erased, kept = new_runs(2)
    await store.create_runs([erased, kept])
    await store.register("w", 60)
    runs = (await store.claim("w", [ROUTE], 2, "b", {})).runs
    now = store.clock.now()
    assert await store.commit("w", [step(run.ref, 1, now) for run in runs]) == [Outcome.APPLIED] * 2
    for run in runs:
        await store.commit("w", [RunWrite(run.ref, change=states.complete(State.RUNNING, "1"))])
    assert await store.delete(erased.id)
    connection = sqlite3.connect(path)
    tables = ("durable_runs", "durable_inputs", "durable_records")
    counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    dump = "\n".join(connection.iterdump())
    connection.close()
    assert counts == dict.fromkeys(tables, 1)
    assert erased.id not in dump
    assert kept.id in dump
