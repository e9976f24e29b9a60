"""Signals: how they are sent, how their receivers hear of them, and what a write does beside its records and change.

Every function is called on the store's thread. What an inserted signal means to its run, and what the end of a run
means to others, are rules of the tables (``0002_signals.sql``).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from durable.model import Also, Created, Kind, NewRun, NewSignal, RunWrite, Sent, Signal, Unread
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection
from durable.stores.sqlite.creating import create_within
from durable.stores.sqlite.documents import StoredRun

Now = Callable[[], int]

_SENT = {True: Sent.ACCEPTED, False: Sent.FINISHED, None: Sent.NOT_FOUND}


def encode_signals(signals: Sequence[NewSignal]) -> str:
    return documents.encode([(signal.run_id, signal.id, signal.name, signal.data) for signal in signals])


def decode_sent(document: str) -> list[Sent]:
    return [_SENT[stored] for stored in json.loads(document)]


def send(db: Connection, now: Now, signals: str) -> list[Sent]:
    """Store each of ``encode_signals`` and raise the counter of its run."""
    db.write("signal", lambda: {"now": now(), "signals": signals})
    return decode_sent(db.value("signals_sent", {"signals": signals}))


def create_with(db: Connection, now: Now, run: NewRun, signal: NewSignal) -> tuple[Created, Sent]:
    """Create the run and signal the one that stands, together; a trigger that is refused signals nobody."""
    documents.encode_new_runs([run])
    encode_signals([signal])  # what cannot be stored is refused before the lock is taken
    with db.transaction():
        (created,) = create_within(db, now, [run])
        if created.conflict is not None or created.busy:
            return created, Sent.NOT_FOUND
        (sent,) = send(db, now, encode_signals([replace(signal, run_id=created.run_id)]))
        return created, sent


def of_claimed(db: Connection, runs: Sequence[StoredRun]) -> dict[int, list[Signal]]:
    """The unread signals of these runs, by their numbers. Their counters were read before."""
    woken = [n for _, wakes, n in runs if wakes]  # each signal has raised one
    if not woken:
        return {}
    found: dict[int, list[Signal]] = {}
    for n, signal in json.loads(db.value("claimed_signals", {"runs": documents.encode(woken)})):
        found.setdefault(n, []).append(_signal(signal))
    return found


def signalled(db: Connection, worker: str) -> list[str]:
    """The runs that the worker holds, and that got signals which it has not asked for."""
    return sorted(documents.decode_ids(db.value("signalled", {"worker": worker})))


def unread(db: Connection, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
    """What these runs have not consumed, as far as the worker holds them.

    The marks go before the signals are read: one that comes in between is told again instead of never.
    """
    parameters = {"worker": worker, "ids": documents.encode(list(dict.fromkeys(run_ids)))}
    if signalled(db, worker):
        db.write("heard", lambda: parameters)
    rows = json.loads(db.value("unread", parameters))
    return {run_id: Unread(wakes, [_signal(row) for row in signals]) for run_id, wakes, signals in rows}


def _signal(row: list[Any]) -> Signal:
    signal_id, name, data, at = row
    return Signal(signal_id, name, data, documents.moment(at))


def encode_also(writes: Sequence[RunWrite]) -> str:
    """What these writes do beside their records and changes; empty when it is nothing, as for most flushes."""
    rows = {write.ref.id: _also_row(write, write.also) for write in writes if write.also is not None}
    return documents.encode(rows) if rows else ""


def _also_row(write: RunWrite, also: Also) -> tuple[Any, ...]:
    logged = [record for record in write.records if record.kind is Kind.EMIT] if also.emits else []
    return (
        write.ref.claim,
        [record.key for record in write.records],
        documents.encode_new_runs(also.children) if also.children else None,
        also.consumed,
        [(awaited.topic, awaited.key, documents.micros(awaited.since)) for awaited in also.awaited],
        also.effects,
        [(record.key, documents.micros(record.at), record.data or "null") for record in logged],
    )
