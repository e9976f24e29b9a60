"""A run's timeline, derived from its row and its history: nothing is written for it alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
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
    * ``takeover``: ``worker`` lost the run, ``data`` is who had it next; ``run attempt failed``;
    * a request that was carried out: ``cancel``, ``pause``, ``resume``, ``retry``, ``retry_compensation``;
    * ``compensating``, ``undo started``, ``undo completed``, ``undo retrying``, ``undo failed``.

    The entries of one record share its ``seq``; the run's own have 0 at the beginning and the last seq at its end.
    ``attempt`` counts the attempts of that step, or run attempts.
    """
    entries = [TimelineEntry(0, run.created_at, "triggered", run.workflow)]
    if run.started_at is not None:
        entries.append(TimelineEntry(0, run.started_at, "running", run.workflow))
    undoing = False
    for position, record in enumerate(records):
        if record.kind is Kind.TAKEOVER:
            following = (later.worker for later in records[position + 1 :] if later.kind is not Kind.TAKEOVER)
            taker = next((worker for worker in following if worker is not None), None)
            entries.append(TimelineEntry(record.seq, record.at, "takeover", "", worker=record.worker, data=taker))
            continue
        if "/undo" in record.key and not undoing:
            undoing = True
            entries.append(TimelineEntry(record.seq, _began(record), "compensating", run.workflow))
        entries.extend(_entries(run, record))
        undoing = undoing and record.kind is not Kind.REQUEST
    last_seq = records[-1].seq if records else 0
    if run.state in TERMINAL and run.ended_at is not None:
        entries.append(TimelineEntry(last_seq, run.ended_at, run.state, run.workflow, data=run.error))
    elif run.reason is not None:
        at = records[-1].at if records else run.created_at
        entries.append(TimelineEntry(last_seq, at, run.state, run.workflow, data=run.reason))
    return entries


def _entries(run: Run, record: Record) -> Iterator[TimelineEntry]:
    name = _SET_ASIDE.sub("", record.key, count=1).partition("/")[0]
    seq, at, worker = record.seq, record.at, record.worker
    if record.kind is Kind.REQUEST:
        request = failures.request_from_json(record.data or "")
        data = failures.request_to_json(replace(request, id=""))  # which call it was is nothing to a reader
        yield TimelineEntry(seq, at, request.verb, run.workflow, worker=worker, data=data)
    elif record.kind is Kind.RUN_ATTEMPT:
        yield TimelineEntry(seq, at, "run attempt failed", run.workflow, record.attempt, worker, data=record.data)
    elif record.kind is Kind.SLEEP:
        due = record.due_at.isoformat() if record.due_at is not None else None
        yield TimelineEntry(seq, at, "sleeping", name, worker=worker, data=due)
    elif record.kind is Kind.WOKE:
        yield TimelineEntry(seq, at, "woke", name, worker=worker)
    else:
        undo = "/undo" in record.key
        yield TimelineEntry(seq, _began(record), "undo started" if undo else "started", name, record.attempt, worker)
        yield TimelineEntry(seq, at, _end(record, undo), name, record.attempt, worker, record.duration, record.data)


def _began(record: Record) -> datetime:
    return record.at - timedelta(seconds=record.duration)


def _end(record: Record, undo: bool) -> str:
    end = "retrying" if record.kind is Kind.ATTEMPT else "failed" if record.failed else "completed"
    return f"undo {end}" if undo else end
