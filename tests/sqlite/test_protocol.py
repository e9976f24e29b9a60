"""Corners of the protocol that the conformance suite cannot reach, or does not ask every store about."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durable import states
from durable.errors import PayloadError, StoreUnavailable
from durable.model import ClaimedRun, Kind, Outcome, Record, RunRef, RunWrite, State
from durable.store import Route
from durable.stores.sqlite import SQLiteStore
from durable.stores.sqlite.connection import Connection
from tests.sqlite.peer import ROUTE, new_runs, step

APPLIED, LOST = Outcome.APPLIED, Outcome.LEASE_LOST


def execute(path: Path, sql: str, *parameters: Any) -> list[Any]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        return connection.execute(sql, parameters).fetchall()
    finally:
        connection.close()


async def take(store: SQLiteStore, count: int, worker: str = "w", batch: str = "b") -> list[ClaimedRun]:
    await store.register(worker, 60)
    await store.create_runs(new_runs(count))
    return list((await store.claim(worker, [ROUTE], count, batch, {})).runs)


async def test_a_worker_whose_row_is_gone_writes_nothing_and_its_runs_are_taken_over(
    store: SQLiteStore, path: Path
) -> None:
    (run,) = await take(store, 1)
    execute(path, "DELETE FROM durable_workers")
    assert await store.commit("w", [step(run.ref, 1, store.clock.now())]) == [LOST]
    assert (await store.reap()).released == 1
    (record,) = await store.history(run.run.id)
    assert (record.kind, record.worker) == (Kind.TAKEOVER, "w")


async def test_another_record_under_a_key_refuses_its_write_alone(store: SQLiteStore) -> None:
    one, other = await take(store, 2)
    now = store.clock.now()
    assert await store.commit("w", [step(one.ref, 1, now), step(other.ref, 1, now)]) == [APPLIED, APPLIED]
    contradiction = RunWrite(one.ref, [Record(1, "s1", Kind.STEP, now, '"another"'), Record(2, "s2", Kind.STEP, now)])
    assert await store.commit("w", [contradiction, step(other.ref, 2, now)]) == [LOST, APPLIED]
    assert [(record.key, record.data) for record in await store.history(one.run.id)] == [("s1", '"done"')]
    assert [record.key for record in await store.history(other.run.id)] == ["s1", "s2"]


async def test_a_park_of_an_earlier_claim_is_not_taken_for_one_that_was_applied(store: SQLiteStore) -> None:
    (run,) = await take(store, 1)
    park = RunWrite(run.ref, change=states.park(State.RUNNING, ready_at=store.clock.now(), wakes=0))
    assert await store.commit("w", [park]) == [APPLIED]
    (again,) = (await store.claim("w", [ROUTE], 1, "b2", {})).runs
    assert await store.commit("w", [replace_ref(park, again.ref)]) == [APPLIED]
    assert await store.commit("w", [park]) == [LOST]


def replace_ref(write: RunWrite, ref: RunRef) -> RunWrite:
    return replace(write, ref=ref)


async def test_a_batch_is_forgotten_when_nothing_in_it_is_held(store: SQLiteStore, path: Path) -> None:
    one, other = await take(store, 2)
    batches = "SELECT batch FROM durable_claims"
    await store.commit("w", [RunWrite(one.ref, change=states.complete(State.RUNNING, None))])
    await store.claim("w", [], 1, "x", {}, done=["b"])
    assert execute(path, batches) == [("b",)]  # the other one could not be found again
    await store.commit("w", [RunWrite(other.ref, change=states.complete(State.RUNNING, None))])
    await store.claim("w", [], 1, "y", {}, done=["b"])
    assert execute(path, batches) == []


async def test_a_run_that_exists_gets_no_key_and_no_input_from_a_trigger_that_is_refused(store: SQLiteStore) -> None:
    (new,) = new_runs(1)
    await store.create_runs([replace(new, input=None, input_hash="none")])
    (answer,) = await store.create_runs([replace(new, key="k", input="1", input_hash="one")])
    assert (answer.run_id, answer.created, answer.conflict is None) == (new.id, False, False)
    assert await store.find_key(new.workflow, "k") is None
    (run,) = await store.get_runs([new.id])
    assert (run.key, run.input) == (None, None)


async def test_a_claim_does_not_show_what_was_reaped_before_it_was_read(
    store: SQLiteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.create_runs(new_runs(2))
    await store.register("w", 60)
    write = Connection.write

    def write_and_lose_one(self: Connection, statement: str, parameters: Callable[[], Any]) -> int:
        changed = write(self, statement, parameters)
        execute(path, "UPDATE durable_runs SET owner = 'other', claim = 2 WHERE n = 1")
        return changed

    monkeypatch.setattr(Connection, "write", write_and_lose_one)
    claimed = await store.claim("w", [ROUTE], 2, "b", {})
    assert [run.ref.claim for run in claimed.runs] == [1]


async def test_every_route_has_its_turn_when_one_is_never_drained(store: SQLiteStore) -> None:
    small = [replace(new, workflow="small") for new in new_runs(2)]
    await store.create_runs([*new_runs(20), *small])
    await store.register("w", 60)
    routes = [ROUTE, Route("small", "1")]
    first, second = [(await store.claim("w", routes, 2, batch, {})).runs for batch in ("b1", "b2")]
    assert {run.run.workflow for run in first} | {run.run.workflow for run in second} == {"order", "small"}


async def test_a_duration_that_is_no_number_is_a_payload_error(store: SQLiteStore) -> None:
    (run,) = await take(store, 1)
    record = Record(1, "s1", Kind.STEP, store.clock.now(), duration=float("nan"))
    with pytest.raises(PayloadError):
        await store.commit("w", [RunWrite(run.ref, [record])])
    assert await store.history(run.run.id) == []


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


@pytest.mark.parametrize("renewed_before", [True, False])
async def test_a_file_that_was_removed_while_open_loses_the_lease_instead_of_the_data(
    store: SQLiteStore, path: Path, renewed_before: bool
) -> None:
    await store.register("w", 60)
    if renewed_before:
        assert store.renew("w", 60).alive
    move(path)
    with pytest.raises(StoreUnavailable, match="was removed or replaced"):
        store.renew("w", 60)
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    with pytest.raises(StoreUnavailable, match="was removed or replaced"):
        store.renew("w", 60)
