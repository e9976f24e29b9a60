"""Between the model and the JSON documents that travel to and from SQLite, one per statement."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from durable.errors import PayloadError
from durable.failures import request_from_json, request_to_json
from durable.model import (
    Created,
    DeadLetter,
    Debounce,
    Kind,
    NewRun,
    Policy,
    Reaped,
    Record,
    Request,
    Run,
    RunRef,
    RunSummary,
    RunWrite,
    State,
)
from durable.requests import Plan
from durable.states import EXECUTING, TERMINAL, Event, after

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_KINDS = {str(kind): kind for kind in Kind}
_STATES = {str(state): state for state in State}
_ALONE = frozenset({Policy.REJECT, Policy.EXISTING})
_GIVEN_BACK = {state: after(state, Event.RELEASE) for state in EXECUTING}

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, allow_nan=False, separators=(",", ":")).encode


def encode(value: Any) -> str:
    """``value`` as JSON text that SQLite can hold.

    Raises:
        PayloadError: It has a NUL character or a lone surrogate (SQLite would cut the text at the one and give
            the other back as bytes that are no UTF-8), or a float that is no number.
    """
    try:
        document = _encode(value)
    except ValueError as error:
        raise PayloadError(f"not a number that can be stored: {error}") from None
    if "\\u0000" in document and _NUL.search(document):
        raise PayloadError("text with a NUL character cannot be stored")
    if not document.isascii():
        try:
            document.encode()
        except UnicodeEncodeError as error:
            raise PayloadError(f"text with a lone surrogate cannot be stored: {error.reason}") from None
    return document


def micros(when: datetime) -> int:
    """Microseconds since the epoch, exactly."""
    return (when - _EPOCH) // _MICROSECOND


def moment(at: int) -> datetime:
    return _EPOCH + timedelta(microseconds=at)


def maybe_micros(when: datetime | None) -> int | None:
    return None if when is None else micros(when)


def maybe_moment(at: int | None) -> datetime | None:
    return None if at is None else moment(at)


class Flush(NamedTuple):
    """A batch of writes as the flush statement takes it, apart from the time and the worker."""

    claims: str
    records: str
    changes: str
    also: str  # empty for nothing


def encode_writes(
    writes: Sequence[RunWrite], worker: str, now: datetime, aside: Mapping[str, Sequence[str]], also: str
) -> Flush:
    """Everything that ``worker`` writes in one flush; ``aside``: run id → keys of the records to set aside."""
    changes = {w.ref.id: _change_row(w, now, aside.get(w.ref.id)) for w in writes if w.change is not None}
    return Flush(
        encode({write.ref.id: write.ref.claim for write in writes}),
        encode({w.ref.id: {r.key: _body(r, worker) for r in w.records} for w in writes if w.records}),
        encode(changes) if changes else "{}",
        also,
    )


def _change_row(write: RunWrite, now: datetime, aside: Sequence[str] | None) -> tuple[Any, ...]:
    change = write.change
    assert change is not None
    ready_at = micros(now) if change.ready_now else maybe_micros(change.ready_at)
    terminal = change.state in TERMINAL
    return (
        change.state,
        change.keep,
        terminal,
        ready_at,
        change.wakes,
        change.result,
        change.error,
        change.reason,
        aside,
        _GIVEN_BACK if change.asked else None,
    )


def _body(record: Record, worker: str) -> tuple[Any, ...]:
    # 2.6 µs a record, with the encoding; the arithmetic of `micros` stands here because a call costs 0.1.
    seq, _, kind, at, data, failed, attempt, duration, begun, compensable, due_at, _ = record
    return (
        seq,
        kind,
        (at - _EPOCH) // _MICROSECOND,
        data,
        failed,
        attempt,
        duration,
        begun,
        compensable,
        None if due_at is None else (due_at - _EPOCH) // _MICROSECOND,
        worker,
    )


def _delay(run: NewRun) -> float:
    if run.debounce is None:
        return run.delay
    most = run.debounce.max_delay
    return run.debounce.delay if most is None else min(run.debounce.delay, most)


def _debounce(debounce: Debounce) -> tuple[str, int, int | None]:
    most = None if debounce.max_delay is None else round(debounce.max_delay * 1_000_000)
    return debounce.key, round(debounce.delay * 1_000_000), most


def encode_new_runs(runs: Sequence[NewRun]) -> str:
    return encode(
        [
            (
                run.id,
                run.shard,
                run.workflow,
                run.version,
                maybe_micros(run.ready_at) if run.debounce is None else None,
                round(_delay(run) * 1_000_000),
                run.key,
                run.request,
                run.input_hash,
                run.seed,
                encode(dict(run.tags)),
                run.input,
                run.queue,
                run.limit_key,
                run.concurrency_key,
                run.parent,
                run.parent_key,
                run.priority,
                run.concurrency_key if run.policy in _ALONE else None,
                None if run.debounce is None else _debounce(run.debounce),
                run.schedule,
                maybe_micros(run.tick),
            )
            for run in runs
        ]
    )


def decode_created(runs: Sequence[NewRun], document: str) -> list[Created]:
    """The answers to ``runs``, from what stands for them; it was read in the transaction that wrote it."""
    return [_created(run, *row) for run, row in zip(runs, json.loads(document), strict=True)]


def _created(
    run: NewRun,
    run_id: str | None,
    request: str | None,
    workflow: str | None,
    key: str | None,
    input_hash: str | None,
    absorbed_by: str | None,
    active: str | None,
) -> Created:
    if absorbed_by is not None:
        return Created(absorbed_by, absorbed_by == run.id)
    if run_id is None:
        assert active is not None
        return Created(active, False, busy=run.policy is Policy.REJECT)
    what = f"run {run_id}" if run_id == run.id else f"key {run.key!r}, held by run {run_id},"
    conflict: str | None = None
    if workflow != run.workflow:
        conflict = f"{what} belongs to workflow {workflow!r}"
    elif key != run.key:
        conflict = f"{what} was triggered with another key"
    elif input_hash != run.input_hash:
        conflict = f"{what} was triggered with another input"
    return Created(run_id, conflict is None and run_id == run.id and request == run.request, conflict)


class PlanRow(NamedTuple):
    """A plan as the request statement takes it, apart from the time."""

    id: str
    seen: str
    plan: str
    aside: str


def encode_plan(stored: StoredRun, request: Request, plan: Plan) -> PlanRow:
    """``plan`` for exactly the run that was read."""
    run = stored.run
    fields = (
        plan.state,
        None if plan.requested is None else request_to_json(plan.requested),
        plan.reason,
        plan.error,
        plan.ended,
        plan.ready,
        plan.state is State.PAUSED or plan.state in TERMINAL,
        request_to_json(request) if plan.record else None,
        plan.forgive,
    )
    seen = (run.state, run.owner, run.claim, stored.wakes)
    return PlanRow(run.id, encode(seen), encode(fields), encode(list(plan.aside)))


class StoredRun(NamedTuple):
    """A run as it was read, with what only the store needs."""

    run: Run
    wakes: int
    n: int


def decode_runs(document: str) -> list[StoredRun]:
    return [_stored_run(row) for row in json.loads(document)]


def _stored_run(row: list[Any]) -> StoredRun:
    *summary, run_input, result, error, seed, wakes, n = row
    run = Run(**_summary(summary), input=run_input, result=result, error=error, seed=seed)
    return StoredRun(run, wakes, n)


def decode_summaries(document: str) -> list[RunSummary]:
    return [RunSummary(**_summary(row)) for row in json.loads(document)]


def _summary(row: list[Any]) -> dict[str, Any]:
    run_id, workflow, version, state, created, key, tags, started, ended, ready, *rest = row
    reason, requested, owner, claim, takeovers, shard, queue, priority, limit_key, concurrency_key, *last = rest
    parent, linked, schedule, tick = last
    return {
        "id": run_id,
        "workflow": workflow,
        "version": version,
        "state": _STATES[state],
        "created_at": moment(created),
        "key": key,
        "tags": tags,
        "started_at": maybe_moment(started),
        "ended_at": maybe_moment(ended),
        "ready_at": maybe_moment(ready),
        "reason": reason,
        "requested": None if requested is None else request_from_json(requested),
        "owner": owner,
        "claim": claim,
        "takeovers": takeovers,
        "shard": shard,
        "queue": queue,
        "priority": priority,
        "limit_key": limit_key,
        "concurrency_key": concurrency_key,
        "parent": parent,
        "linked": bool(linked),
        "schedule": schedule,
        "tick": maybe_moment(tick),
    }


def decode_records(document: str) -> dict[int, list[Record]]:
    """Histories in seq order, by the run's number."""
    found: dict[int, list[Record]] = {}
    for n, key, body in json.loads(document):
        found.setdefault(n, []).append(_record(key, body))
    for records in found.values():
        records.sort()  # seq comes first, and is unique in a run
    return found


def decode_history(document: str) -> list[Record]:
    """One run's history in seq order."""
    return [record for records in decode_records(document).values() for record in records]


def _record(key: str, body: list[Any]) -> Record:
    seq, kind, at, data, failed, attempt, duration, begun, compensable, due_at, worker = body
    return Record(
        seq,
        key,
        _KINDS[kind],
        _EPOCH + timedelta(microseconds=at),
        data,
        failed,
        attempt,
        duration,
        begun,
        compensable,
        maybe_moment(due_at),
        worker,
    )


def decode_reaped(document: str) -> Reaped:
    released, dead_letters = json.loads(document)
    return Reaped(released, tuple(sorted(DeadLetter(*one) for one in dead_letters)))


def decode_requests(document: str) -> list[tuple[str, Request]]:
    return [(run_id, request_from_json(requested)) for run_id, requested in json.loads(document)]


def decode_ids(document: str) -> set[str]:
    return set(json.loads(document))


def decode_refs(document: str) -> list[RunRef]:
    return [RunRef(shard, run_id, claim, bool(linked)) for shard, run_id, claim, linked in json.loads(document)]
