"""Rows of the server as values of ``model``. Pure; the order of columns is that of the named statements."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from durable.codec import canonical_hash
from durable.failures import request_from_json
from durable.model import (
    ClaimedRun,
    Created,
    DeadLetter,
    Failure,
    Kind,
    NewRun,
    Reaped,
    Record,
    Request,
    Run,
    RunSummary,
    Signal,
    State,
)
from durable.store import Route

Row = tuple[Any, ...]

_KINDS = {kind.value: kind for kind in Kind}  # an enum's call costs 0.3 µs, once per record of a replay
_STATES = {state.value: state for state in State}


def record(row: Row) -> Record:
    """From ``history`` and ``claim_histories``, whose first column is the run id."""
    _, seq, key, kind, at, data, failed, attempt, duration, begun, compensable, due_at, worker = row
    return Record(seq, key, _KINDS[kind], at, data, failed, attempt, duration, begun, compensable, due_at, worker)


def summary(row: Row) -> RunSummary:
    """From ``list_runs``."""
    return RunSummary(**_summary(row))


def run(row: Row) -> Run:
    """From ``get_runs`` and ``ended_runs``: the columns of a list, then the payloads."""
    run_input, result, error, seed = row[24:]
    return Run(**_summary(row), input=run_input, result=result, error=error, seed=seed)


def _summary(row: Row) -> dict[str, Any]:
    return {
        "id": row[0],
        "state": _STATES[row[1]],
        "created_at": row[2],
        "started_at": row[3],
        "ended_at": row[4],
        "ready_at": row[5],
        "key": row[6],
        "tags": _tags(row[7]),
        "reason": row[8],
        "requested": None if row[9] is None else request_from_json(row[9]),
        "owner": row[10],
        "claim": row[11],
        "takeovers": row[12],
        "shard": row[13],
        "workflow": row[14],
        "version": row[15],
        "queue": row[16],
        "priority": row[17],
        "limit_key": row[18],
        "concurrency_key": row[19],
        "parent": row[20],
        "linked": row[21],
        "schedule": row[22],
        "tick": row[23],
    }


def claimed(
    runs: Sequence[Row],
    histories: Iterable[Row],
    inboxes: Mapping[str, Sequence[Signal]],
    routes: Mapping[int, Route],
    worker: str,
    warm: Mapping[str, int],
) -> list[ClaimedRun]:
    """From ``claim_runs``, ``claim_histories`` and ``claim_signals``."""
    records: dict[str, list[Record]] = {row[0]: [] for row in runs}
    for row in histories:
        records[row[0]].append(record(row))
    found: list[ClaimedRun] = []
    for row in runs:
        id_, shard, route, state, created, started, key, tags, claim, takeovers, wakes, input_, error, seed = row[:14]
        asked, priority, limit_key, concurrency_key, parent, linked, schedule, tick = row[14:]
        workflow, version, queue = routes[route]
        requested = None if asked is None else request_from_json(asked)
        run = Run(
            id_, workflow, version, _STATES[state], created, key, _tags(tags), started, None, None, None, requested,
            worker, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, parent, linked, schedule,
            tick, input=input_, error=error, seed=seed,
        )  # fmt: skip
        current = warm.get(id_) == claim - 1
        found.append(ClaimedRun(run, None if current else records[id_], wakes, inboxes.get(id_, ())))
    return found


def requests(text: str | None) -> list[tuple[str, Request]]:
    """From ``claim_rest``: {run id: request}, or nothing."""
    if text is None:
        return []
    asked: dict[str, str] = json.loads(text)
    return [(run_id, request_from_json(request)) for run_id, request in asked.items()]


def reaped(answers: Iterable[Row]) -> Reaped:
    """From ``release_orphans``, once or more often."""
    released, dead_letters = 0, list[DeadLetter]()
    for count, given_up in answers:
        released += count
        dead_letters.extend(DeadLetter(*one) for one in json.loads(given_up))
    return Reaped(released, tuple(sorted(dead_letters)))


def created(new: NewRun, standing: Row) -> Created:
    """The answer to a run that was not inserted, from ``standing``: what is there in its place.

    A run that was triggered in SQL has no hash of its input: it is made of the input then.
    """
    _, run_id, request, workflow, input_hash, key, run_input = standing
    if new.debounce is not None and run_id == new.id and request == new.request:
        return Created(run_id, True)  # later triggers may have given it another input
    conflict = _conflict(new, run_id, workflow, input_hash or canonical_hash(run_input), key)
    return Created(run_id, run_id == new.id and request == new.request and conflict is None, conflict)


def _conflict(new: NewRun, run_id: str, workflow: str, input_hash: str, key: str | None) -> str | None:
    what = f"run {run_id}" if run_id == new.id else f"key {new.key!r}, held by run {run_id},"
    if workflow != new.workflow:
        return f"{what} belongs to workflow {workflow!r}"
    if key != new.key:
        return f"{what} was triggered with another key"
    if input_hash != new.input_hash:
        return f"{what} was triggered with another input"
    return None


def gave_up(limit: int) -> str:
    """The error of a run whose lease expired ``limit`` times in a row, as JSON of a ``Failure``."""
    failure = Failure(
        "durable.errors.RunDeadLettered", f"{limit} leases expired one after another without a new record"
    )
    return json.dumps(asdict(failure))


def tags_text(tags: Mapping[str, str]) -> str:
    return json.dumps(dict(tags)) if tags else "{}"


def _tags(text: str) -> dict[str, str]:
    return {} if text == "{}" else json.loads(text)
