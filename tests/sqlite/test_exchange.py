"""Signals, events and effects between processes, and what is left in the tables."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from durable import states
from durable.errors import InvalidArgument
from durable.model import Also, Awaited, ClaimedRun, Kind, NewSignal, Outcome, Published, RunWrite, State
from durable.store import Hint
from durable.stores.sqlite import SQLiteStore
from tests.sqlite.conftest import Peer
from tests.sqlite.peer import ROUTE, new_runs, step
from tests.sqlite.test_protocol import execute, take

StartPeers = Callable[[int], Awaitable[list[Peer]]]

TABLES = ("signals", "signalled", "events", "awaited", "emits", "effects")


def rows(path: Path) -> dict[str, int]:
    """How many rows there are beside the runs, where there are any."""
    counts = {name: execute(path, f"SELECT count(*) FROM durable_{name}")[0][0] for name in TABLES}
    return {name: count for name, count in counts.items() if count}


async def wait(store: SQLiteStore, run: ClaimedRun, topic: str | None = None) -> None:
    """Park until something comes."""
    also = None if topic is None else Also(awaited=[Awaited(topic, "", store.clock.now())])
    park = states.park(State.RUNNING, ready_at=None, wakes=run.wakes, waiting=True)
    (waited,) = step(run.ref, 1, store.clock.now()).records
    assert await store.commit("w", [RunWrite(run.ref, [waited], park, also)]) == [Outcome.APPLIED]


@pytest.mark.parametrize("by", ["signal", "event"])
async def test_a_signal_of_another_process_wakes_a_waiting_run(peers: StartPeers, store: SQLiteStore, by: str) -> None:
    (peer,) = await peers(1)
    await peer.ask("open")
    (run,) = await take(store, 1)
    await wait(store, run, "paid")
    await store.close()
    await store.open()  # what was written so far is old news
    hint = asyncio.Event()
    end = store.subscribe(lambda heard: hint.set() if Hint.WORK in heard else None)
    assert (await store.claim("w", [ROUTE], 1, "b1", {})).runs == []
    if by == "signal":
        assert await peer.ask("signal", [run.run.id], ["s1"]) == ["accepted"]
    else:
        await peer.ask("publish", "paid", ["s1"])
    await hint.wait()
    (woken,) = (await store.claim("w", [ROUTE], 1, "b2", {})).runs
    assert [signal.id for signal in woken.signals] == ["s1"]
    end()


async def test_a_signal_of_another_process_reaches_the_holder(peers: StartPeers, store: SQLiteStore) -> None:
    (peer,) = await peers(1)
    await peer.ask("open")
    (run,) = await take(store, 1)
    await store.close()
    await store.open()
    hint = asyncio.Event()
    end = store.subscribe(lambda _: hint.set())
    await peer.ask("signal", [run.run.id], ["s1"])
    await hint.wait()
    told = await store.claim("w", [ROUTE], 0, "b1", {})
    assert list(told.signalled) == [run.run.id]
    unread = await store.unread("w", [run.run.id])
    assert ([signal.id for signal in unread[run.run.id].signals], unread[run.run.id].wakes) == (["s1"], 1)
    end()


async def test_P33_eight_processes_send_the_same_signals_and_each_is_there_once(
    peers: StartPeers, store: SQLiteStore, path: Path
) -> None:
    runs, ids = await take(store, 5), [f"s{n}" for n in range(20)]
    everyone = await peers(8)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    run_ids = [run.run.id for run in runs]
    answers = await asyncio.gather(*(peer.ask("signal", run_ids, ids[n:] + ids[:n]) for n, peer in enumerate(everyone)))
    assert answers == [["accepted"]] * 8
    found = await store.unread("w", run_ids)
    assert all(one.wakes == len(ids) == len({signal.id for signal in one.signals}) for one in found.values())
    assert rows(path) == {"signals": 100}


async def test_P32_events_of_eight_processes_race_with_waits_and_none_is_missed(
    peers: StartPeers, store: SQLiteStore
) -> None:
    """Each run waits for one event after the other, while they are published: it gets all of them, each once."""
    everyone = await peers(8)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    (run,) = await take(store, 1)
    events = [[f"e{n}-{m}" for m in range(5)] for n in range(8)]
    since = store.clock.now()
    publishing = asyncio.gather(*(peer.ask("publish", "paid", ids) for peer, ids in zip(everyone, events, strict=True)))
    expected = {event_id for ids in events for event_id in ids}
    for seq in range(1, len(expected) + 1):
        waiting = RunWrite(run.ref, step(run.ref, seq, since).records, also=Also(awaited=[Awaited("paid", "", since)]))
        assert await store.commit("w", [waiting]) == [Outcome.APPLIED]
    await publishing
    signals = (await store.unread("w", [run.run.id]))[run.run.id].signals
    assert sorted(signal.id for signal in signals) == sorted(expected)


async def test_one_of_eight_processes_makes_an_effect(peers: StartPeers, store: SQLiteStore) -> None:
    await store.create_runs(new_runs(8))
    everyone = await peers(8)
    await asyncio.gather(*(peer.ask("open") for peer in everyone))
    await asyncio.gather(*(peer.ask("take", f"w{n}", 1) for n, peer in enumerate(everyone)))
    mine = await asyncio.gather(*(peer.ask("take_effect", f"w{n}", "charge") for n, peer in enumerate(everyone)))
    assert sorted(mine) == [False] * 7 + [True]


async def test_marks_for_a_holder_go_with_its_claim(store: SQLiteStore, path: Path) -> None:
    """A run that leaves without having asked for its signals leaves a mark, until its batch is forgotten."""
    one, other = await take(store, 2)
    for run in (one, other):
        await store.send_signals([NewSignal(run.run.id, "s", "go", "1")])
    assert rows(path)["signalled"] == 2
    writes = [RunWrite(run.ref, change=states.complete(State.RUNNING, None)) for run in (one, other)]
    await store.commit("w", writes[:1])
    assert (await store.claim("w", [], 0, "x", {})).signalled == [other.run.id]
    await store.commit("w", writes[1:])
    assert (await store.claim("w", [], 0, "x", {})).signalled == []
    await store.claim("w", [], 0, "y", {}, done=["b"])
    assert rows(path) == {"signals": 2}


async def test_marks_for_a_holder_go_with_the_worker(store: SQLiteStore, path: Path) -> None:
    (run,) = await take(store, 1)
    await store.send_signals([NewSignal(run.run.id, "s", "go", "1")])
    await store.unregister("w")
    assert rows(path) == {"signals": 1}


async def test_publishing_clears_away_what_has_expired(store: SQLiteStore, path: Path) -> None:
    await store.publish([Published(f"old{n}", "t", "", "1", 0) for n in range(50)])
    assert rows(path) == {}
    await store.publish([Published("new", "t", "", "1", 60)])
    assert rows(path) == {"events": 1}


async def test_everything_goes_with_its_run(store: SQLiteStore, path: Path) -> None:
    (run,) = await take(store, 1)
    assert await store.take_effect("w", run.ref, "e1", "s1") is not None
    also = Also(awaited=[Awaited("t", "", store.clock.now())], emits=True)
    (record,) = step(run.ref, 1, store.clock.now()).records
    emitted = record._replace(seq=2, key="told", kind=Kind.EMIT)
    write = RunWrite(run.ref, [record, emitted], states.complete(State.RUNNING, None), also)
    await store.send_signals([NewSignal(run.run.id, "s", "go", "1")])
    assert await store.commit("w", [write]) == [Outcome.APPLIED]
    assert rows(path) == {"signals": 1, "signalled": 1, "awaited": 1, "emits": 1}
    assert await store.delete(run.run.id)
    await store.unregister("w")
    assert rows(path) == {}


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1", "00000000000000000x1", "²" * 19])
async def test_a_cursor_that_is_none_is_refused(store: SQLiteStore, cursor: str) -> None:
    with pytest.raises(InvalidArgument, match="no cursor"):
        await store.emitted(cursor, 10)


async def test_a_childs_result_of_any_depth_reaches_its_parent(store: SQLiteStore) -> None:
    """SQLite's own JSON functions refuse what is nested more than 1,000 or 2,000 times, by their version."""
    (parent,) = await take(store, 1)
    (new,) = new_runs(1)
    deep = "[" * 5000 + "]" * 5000
    await store.create_runs([replace(new, parent=parent.run.id, parent_key="c")])
    (run,) = (await store.claim("w", [ROUTE], 1, "b1", {})).runs
    await store.commit("w", [RunWrite(run.ref, change=states.complete(State.RUNNING, deep))])
    (signal,) = (await store.unread("w", [parent.run.id]))[parent.run.id].signals
    assert signal.data == f'{{"state":"completed","result":{deep},"error":null}}'


@pytest.mark.parametrize("parent_first", [True, False])
async def test_P34_a_parent_that_parks_in_the_flush_in_which_its_child_ends_is_ready(
    store: SQLiteStore, parent_first: bool
) -> None:
    """One UPDATE changes both rows, in the order of their numbers; the end of the one wakes the other in between."""
    new, other = new_runs(2)
    parent, child = (new, other) if parent_first else (other, new)
    await store.create_runs([new, other])
    await store.register("w", 60)
    link = "UPDATE durable_runs SET parent = ?, parent_key = 'c', linked = 1 WHERE id = ?"
    execute(store._path, link, parent.id, child.id)
    held = {run.run.id: run for run in (await store.claim("w", [ROUTE], 2, "b1", {})).runs}
    park = states.park(State.RUNNING, ready_at=None, wakes=held[parent.id].wakes, waiting=True)
    end = states.complete(State.RUNNING, '{"paid": true}')
    writes = [RunWrite(held[parent.id].ref, change=park), RunWrite(held[child.id].ref, change=end)]
    assert await store.commit("w", writes) == [Outcome.APPLIED] * 2
    (woken,) = (await store.claim("w", [ROUTE], 2, "b2", {})).runs
    (signal,) = woken.signals
    assert (woken.run.id, signal.id, signal.name) == (parent.id, child.id, "child/c")
    assert signal.data == '{"state":"completed","result":{"paid": true},"error":null}'
