"""A run's timeline, derived from its row and its history: nothing is written for it alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from durable.model import Kind, Record, Run, TimelineEntry
from durable.states import TERMINAL


def timeline(run: Run, records: Sequence[Record]) -> list[TimelineEntry]:
    """One entry for each start and end of an attempt, each sleep and its end, each takeover, and the run's own.

    Entries that belong to one record share its ``seq``; the run's own have 0 at the beginning and the last seq at
    its end.
    """
    entries = [TimelineEntry(0, run.created_at, "triggered", run.workflow)]
    if run.started_at is not None:
        entries.append(TimelineEntry(0, run.started_at, "running", run.workflow))
    for record in records:
        entries.extend(_entries(record))
    last_seq = records[-1].seq if records else 0
    if run.state in TERMINAL and run.ended_at is not None:
        entries.append(TimelineEntry(last_seq, run.ended_at, run.state, run.workflow, data=run.error))
    elif run.reason is not None:
        at = records[-1].at if records else run.created_at
        entries.append(TimelineEntry(last_seq, at, run.state, run.workflow, data=run.reason))
    return entries


def _entries(record: Record) -> Iterator[TimelineEntry]:
    name = record.key.partition("/")[0]
    seq, at, worker = record.seq, record.at, record.worker
    if record.kind is Kind.TAKEOVER:
        yield TimelineEntry(seq, at, "takeover", "", worker=worker)
    elif record.kind is Kind.SLEEP:
        due = record.due_at.isoformat() if record.due_at is not None else None
        yield TimelineEntry(seq, at, "sleeping", name, worker=worker, data=due)
    elif record.kind is Kind.WOKE:
        yield TimelineEntry(seq, at, "woke", name, worker=worker)
    else:
        undo = "/undo" in record.key
        started = at - timedelta(seconds=record.duration)
        yield TimelineEntry(seq, started, "undo started" if undo else "started", name, record.attempt, worker)
        yield TimelineEntry(seq, at, _end(record, undo), name, record.attempt, worker, record.duration, record.data)


def _end(record: Record, undo: bool) -> str:
    end = "retrying" if record.kind is Kind.ATTEMPT else "failed" if record.failed else "completed"
    return f"undo {end}" if undo else end
