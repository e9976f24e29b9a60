"""A run's timeline, derived from its row and its history: nothing is written for it alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from durable import failures
from durable.model import Kind, Record, Run, TimelineEntry
from durable.states import TERMINAL

_SET_ASIDE = re.compile(r"/\d+/(?=[^/])")


def timeline(run: Run, records: Sequence[Record]) -> list[TimelineEntry]:
    """What happened to the run, in order.

    ``kind`` is one of:

    * ``triggered``, ``running`` (its first start), and the state in which the run ended or is paused;
    * ``started``, ``completed``, ``retrying``, ``failed``: attempts of a step; ``sleeping``, ``woke``;
    * ``waiting``, with the deadline as ``data`` if it has one, and ``received`` or ``wait timed out``;
      ``signal refused``: one whose payload did not fit its wait;
    * ``child started``, ``child ended``; ``emitted``; a fan-out is ``completed`` after its items, ``<name>[<n>]``;
    * ``takeover``: ``worker`` lost the run, ``data`` is who had it next; ``run attempt failed``;
    * a request that was carried out: ``cancel``, ``pause``, ``resume``, ``retry``, ``retry_compensation``;
    * ``compensating``, ``undo started``, ``undo completed``, ``undo retrying``, ``undo failed``.

    The entries of one record share its ``seq``; the run's own have 0 at the beginning and the last seq at its end.
    ``attempt`` counts the attempts of that step, or run attempts.
    """
    entries = [TimelineEntry(0, run.created_at, "triggered", run.workflow)]
    if run.started_at is not None:
        entries.append(TimelineEntry(0, run.started_at, "running", run.workflow))
    kinds = {record.key: record.kind for record in records}
    undoing = False
    for position, record in enumerate(records):
        if record.kind is Kind.TAKEOVER:
            following = (later.worker for later in records[position + 1 :] if later.kind is not Kind.TAKEOVER)
            taker = next((worker for worker in following if worker is not None), None)
            entries.append(TimelineEntry(record.seq, record.at, "takeover", "", worker=record.worker, data=taker))
            continue
        if _is_undo(record) and not undoing:
            undoing = True
            entries.append(TimelineEntry(record.seq, _began(record), "compensating", run.workflow))
        entries.extend(_entries(run, record, kinds))
        undoing = undoing and record.kind is not Kind.REQUEST
    last_seq = records[-1].seq if records else 0
    if run.state in TERMINAL and run.ended_at is not None:
        # A worker's idea of the server's time, which its records have, is ahead of it by up to a round trip.
        ended_at = max([run.ended_at, *(record.at for record in records[-1:])])
        entries.append(TimelineEntry(last_seq, ended_at, run.state, run.workflow, data=run.error))
    elif run.reason is not None:
        at = records[-1].at if records else run.created_at
        entries.append(TimelineEntry(last_seq, at, run.state, run.workflow, data=run.reason))
    return entries


def _entries(run: Run, record: Record, kinds: Mapping[str, Kind]) -> Iterator[TimelineEntry]:
    seq, at, worker, name = record.seq, record.at, record.worker, _name(record)
    if record.kind is Kind.REQUEST:
        request = failures.request_from_json(record.data or "")
        data = failures.request_to_json(replace(request, id=""))  # which call it was is nothing to a reader
        yield TimelineEntry(seq, at, request.verb, run.workflow, worker=worker, data=data)
    elif record.kind is Kind.RUN_ATTEMPT:
        yield TimelineEntry(seq, at, "run attempt failed", run.workflow, record.attempt, worker, data=record.data)
    elif record.kind in (Kind.SLEEP, Kind.WAIT):
        due = record.due_at.isoformat() if record.due_at is not None else None
        kind = "sleeping" if record.kind is Kind.SLEEP else "waiting"
        yield TimelineEntry(seq, at, kind, name, worker=worker, data=due)
    elif record.kind is Kind.WOKE:
        called = kinds.get(record.key.removesuffix("/woke"), Kind.SLEEP)
        kind = "wait timed out" if record.failed and called is Kind.WAIT else _WOKE[called]
        yield TimelineEntry(seq, at, kind, name, worker=worker, data=record.data)
    elif record.kind in _PLAIN:
        yield TimelineEntry(seq, at, _PLAIN[record.kind], name, worker=worker, data=record.data)
    else:
        undo = _is_undo(record)
        yield TimelineEntry(seq, _began(record), "undo started" if undo else "started", name, record.attempt, worker)
        yield TimelineEntry(seq, at, _end(record, undo), name, record.attempt, worker, record.duration, record.data)


_WOKE = {Kind.SLEEP: "woke", Kind.WAIT: "received", Kind.CALL: "child ended"}
_PLAIN = {
    Kind.CALL: "child started",
    Kind.MAP: "completed",
    Kind.EMIT: "emitted",
    Kind.REFUSED: "signal refused",
}


def _name(record: Record) -> str:
    """The operation's name, with its branch and occurrence, and without what its record is about."""
    key = _SET_ASIDE.sub("", record.key, count=1)
    if record.kind is Kind.REFUSED:
        return ""
    if record.kind is Kind.ATTEMPT:
        key = key.rpartition("/attempt/")[0]
    return key.removesuffix("/woke").removesuffix("/undo")


def _is_undo(record: Record) -> bool:
    return record.kind is Kind.UNDO or (record.kind is Kind.ATTEMPT and "/undo/attempt/" in record.key)


def _began(record: Record) -> datetime:
    return record.at - timedelta(seconds=record.duration)


def _end(record: Record, undo: bool) -> str:
    end = "retrying" if record.kind is Kind.ATTEMPT else "failed" if record.failed else "completed"
    return f"undo {end}" if undo else end
