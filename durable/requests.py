"""What a request makes of a run: decisions only, so that every store decides alike. It knows no store.

A store reads the run, asks ``decide``, and writes the ``Plan`` in the same transaction, or writes it only where
nothing of what was read has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from durable import failures
from durable.errors import RunNotFound
from durable.model import Kind, Record, Request, Run, State, Verb
from durable.states import EXECUTING, TRANSITIONS, Event


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a run that a request applies to. ``wakes`` rises by one in any case."""

    state: State
    requested: Request | None = None
    reason: str | None = None
    error: str | None = None
    ended: bool = False  # ended_at: now; else none
    ready: bool = False  # ready_at: now; else as it was, and none for a run that is paused or has ended
    record: bool = False  # write the REQUEST record, and raise ``claim``
    forgive: bool = False  # takeovers: none
    aside: Sequence[str] = ()  # keys of the records that are set aside


def decide(run: Run, request: Request, records: Sequence[Record], step: str | None = None) -> Plan | None:
    """What ``request`` makes of ``run``; None when it does not apply, or changes nothing.

    Args:
        run: As it is stored.
        request: What is asked.
        records: Its history; only a retry looks at it.
        step: For a retry from a step: its key.

    Raises:
        RunNotFound: The retry would apply, and no record has the key ``step``.
    """
    match request.verb:
        case Verb.CANCEL:
            return _cancel(run, request)
        case Verb.PAUSE:
            return _pause(run, request)
        case Verb.RESUME:
            return _resume(run)
        case Verb.RETRY:
            return None if _latest(records) == request else _retry(run, records, step)
        case Verb.RETRY_UNDO:
            return None if _latest(records) == request else _retry_undo(run, records)


def _cancel(run: Run, request: Request) -> Plan | None:
    if run.started_at is None and (state := TRANSITIONS.get((run.state, Event.CANCELLED))) is not None:
        return Plan(state, error=failures.cancelled(run.id, request.reason), ended=True, record=True)
    if _is_open(run, request) and run.state is not State.PAUSED:
        return None
    undoing = run.state is State.PAUSED and run.error is not None
    state = TRANSITIONS.get((run.state, Event.RESUME_UNDO if undoing else Event.CANCEL))
    return None if state is None else Plan(state, requested=request, error=run.error, ready=run.owner is None)


def _pause(run: Run, request: Request) -> Plan | None:
    if run.requested is not None and run.requested.verb is Verb.CANCEL:
        return None
    if run.owner is not None:
        return None if _is_open(run, request) else Plan(run.state, requested=request, error=run.error)
    if run.state in EXECUTING:
        return None
    state = TRANSITIONS.get((run.state, Event.PAUSE))
    return None if state is None else Plan(state, reason=request.reason, error=run.error, record=True)


def _resume(run: Run) -> Plan | None:
    if run.state is State.PAUSED:
        state = TRANSITIONS[run.state, Event.RESUME if run.error is None else Event.RESUME_UNDO]
        return Plan(state, requested=run.requested, error=run.error, ready=True, record=True)
    if run.requested is not None and run.requested.verb is Verb.PAUSE:
        return Plan(run.state, error=run.error)
    return None


def _retry(run: Run, records: Sequence[Record], step: str | None) -> Plan | None:
    state = TRANSITIONS.get((run.state, Event.RETRY))
    return None if state is None else Plan(state, ready=True, record=True, forgive=True, aside=set_aside(records, step))


def _retry_undo(run: Run, records: Sequence[Record]) -> Plan | None:
    state = TRANSITIONS.get((run.state, Event.RETRY_UNDO))
    failed = {record.key for record in records if record.kind is Kind.UNDO and record.failed and _counts(record)}
    # The result of a step that failed itself was never recorded: nothing could call its compensation again.
    failed -= {f"{record.key}/undo" for record in records if record.kind is Kind.STEP and record.failed}
    if state is None or not failed:
        return None
    aside, cancel = _with_extensions(records, failed), _standing_cancel(records)
    return Plan(state, requested=cancel, error=run.error, ready=True, record=True, forgive=True, aside=aside)


def _standing_cancel(records: Sequence[Record]) -> Request | None:
    """The request for which the run was being undone, if it was; an operator's retry has let it go forward again."""
    decisive = [request for request in _carried_out(records) if request.verb in (Verb.CANCEL, Verb.RETRY)]
    return decisive[-1] if decisive and decisive[-1].verb is Verb.CANCEL else None


def _latest(records: Sequence[Record]) -> Request | None:
    """What was carried out last. A retry that equals it was sent again: if the run has failed since, it stays so."""
    return next(reversed(_carried_out(records)), None)


def _carried_out(records: Sequence[Record]) -> list[Request]:
    found = (record.data for record in records if record.kind is Kind.REQUEST)
    return [failures.request_from_json(data) for data in found if data is not None]


def replacement(run_id: str) -> Request:
    """What is asked of those who have the concurrency key of the new run ``run_id``, when its policy is to replace."""
    return Request(Verb.CANCEL, f"replaced by run {run_id}")


def _is_open(run: Run, request: Request) -> bool:
    return run.requested is not None and run.requested.verb is request.verb


def asked_again(run: Run, request: Request, latest: Record | None) -> bool:
    """Whether a request without a plan was carried out, or stored, when it was asked before.

    One that is open is everybody's; of one that was carried out only whoever asked it is told so.

    Args:
        run: As it is stored.
        request: What is asked.
        latest: The run's latest ``REQUEST`` record.
    """
    if _is_open(run, request):
        return True
    return latest is not None and latest.data is not None and failures.request_from_json(latest.data) == request


def set_aside(records: Sequence[Record], step: str | None = None) -> list[str]:
    """The keys of the records that a retry sets aside.

    Args:
        records: The history.
        step: The key of the record from which on nothing counts any more; None: only what did not succeed.

    Raises:
        RunNotFound: No record has this key.
    """
    aside = _unsuccessful(records)
    for record in records:
        if record.kind is Kind.UNDO and _counts(record):
            aside.add(record.key if record.failed else record.key.removesuffix("/undo"))
        elif record.kind is Kind.ATTEMPT and (undo := _step_of(record)).endswith("/undo"):
            aside.add(undo)
    if step is not None:
        first = next((record.seq for record in records if record.key == step and _counts(record)), None)
        if first is None:
            raise RunNotFound(f"the run has no record {step!r}")
        aside.update(record.key for record in records if record.seq >= first)
        # A wait whose end does not count is called anew: what it had asked for, an event, was given to it.
        waits = {record.key for record in records if record.kind is Kind.WAIT}
        aside |= waits & {key.removesuffix("/woke") for key in aside}
    return _with_extensions(records, _with_fan_outs(aside))


def set_failed_aside(records: Sequence[Record]) -> list[str]:
    """The keys of the records that another run attempt sets aside: those of steps that did not succeed."""
    return _with_extensions(records, _with_fan_outs(_unsuccessful(records)))


def _unsuccessful(records: Sequence[Record]) -> set[str]:
    """The keys of steps that failed, or have only failed attempts so far, and of children that ended without a result.

    A wait that timed out stays so: its time has passed.
    """
    succeeded = {record.key for record in records if not record.failed}
    failed = {record.key for record in records if record.kind is Kind.STEP and record.failed and _counts(record)}
    tried = {_step_of(record) for record in records if record.kind is Kind.ATTEMPT and _counts(record)}
    calls = {record.key for record in records if record.kind is Kind.CALL}
    ended = {record.key.removesuffix("/woke") for record in records if record.kind is Kind.WOKE and record.failed}
    return failed | (calls & ended) | {key for key in tried - succeeded if not key.endswith("/undo")}


def _with_fan_outs(keys: set[str]) -> set[str]:
    """A fan-out of which an item does not count has not ended: it makes that item anew."""
    return keys | {key.rpartition("[")[0] for key in keys if key.endswith("]")}


def _step_of(attempt: Record) -> str:
    return attempt.key.rpartition("/attempt/")[0]


def _with_extensions(records: Iterable[Record], keys: set[str]) -> list[str]:
    """The keys of the records that still count and are, or belong to, one of ``keys``."""
    return [record.key for record in records if _counts(record) and not keys.isdisjoint(_extended(record.key))]


def _extended(key: str) -> set[str]:
    """``a/b/c`` extends ``a/b`` and ``a``."""
    parts = key.split("/")
    return {"/".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _counts(record: Record) -> bool:
    """Not set aside, and no remark about the run."""
    return not record.key.startswith("/")
