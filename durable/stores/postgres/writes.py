"""A flush as parameters of ``commit_writes``, and the answers to writes that were not simply applied.

Pure: it knows neither connections nor SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from durable.model import Outcome, Record, RunRef, RunWrite, State
from durable.states import TERMINAL
from durable.stores.postgres import literals

Contents = tuple[Any, ...]
"""seq, key, kind, data, failed, attempt: what makes two records the same."""


_NO_REF: tuple[tuple[Any, ...], ...] = ((),) * 3
_NO_RECORD: tuple[tuple[Any, ...], ...] = ((),) * 12


def parameters(worker: str, writes: Sequence[RunWrite]) -> list[str]:
    """$1 to $29 of ``commit_writes``. 2 to 3 µs a record."""
    changed = [(write.ref, write.change) for write in writes if write.change is not None]
    changes = [change for _, change in changed]
    records = [record for write in writes for record in write.records]
    refs = [write.ref for write in writes for _ in write.records]
    shards, ids, claims = zip(*refs, strict=True) if refs else _NO_REF
    seqs, keys, kinds, ats, data, failed, attempts, durations, begun, compensable, dues, _ = (
        zip(*records, strict=True) if records else _NO_RECORD
    )
    return [
        worker,
        literals.scalars([ref.shard for ref, _ in changed]),
        literals.words([ref.id for ref, _ in changed]),
        literals.scalars([ref.claim for ref, _ in changed]),
        literals.words([change.state for change in changes]),
        literals.scalars([change.keep for change in changes]),
        literals.times_or_null([change.ready_at for change in changes]),
        literals.scalars([change.ready_now for change in changes]),
        literals.scalars([change.wakes for change in changes]),
        literals.scalars(shards),
        literals.words(ids),
        literals.scalars(claims),
        literals.scalars([write.change is not None for write in writes for _ in write.records]),
        literals.scalars(seqs),
        literals.words(kinds),
        literals.times(ats),
        literals.scalars(failed),
        literals.scalars(attempts),
        literals.scalars(durations),
        literals.scalars(begun),
        literals.scalars(compensable),
        literals.times_or_null(dues),
        *literals.columns(
            [change.result for change in changes],
            [change.error for change in changes],
            [change.reason for change in changes],
            keys,
            data,
        ),
    ]


def record_keys(writes: Sequence[RunWrite]) -> list[str]:
    """$1 to $5 of ``stored_records``: every record of ``writes``."""
    named = [(write.ref, record.key) for write in writes for record in write.records]
    return [
        literals.scalars([ref.shard for ref, _ in named]),
        literals.words([ref.id for ref, _ in named]),
        *literals.columns([key for _, key in named]),
    ]


def contents(record: Record) -> Contents:
    """What a record that is sent again must agree in with the stored one."""
    return (record.seq, record.key, record.kind, record.data, record.failed, record.attempt)


def differs(write: RunWrite, stored: Mapping[tuple[str, str], Contents]) -> bool:
    """Whether a record of ``write`` is stored with other contents: then it is somebody else's, and stays."""
    return any(stored.get((write.ref.id, record.key), contents(record)) != contents(record) for record in write.records)


def was_applied(
    write: RunWrite, run: tuple[int, str | None, str] | None, stored: Mapping[tuple[str, str], Contents]
) -> bool:
    """Whether a write that found its run not held any more is one whose answer was lost.

    Args:
        write: What was sent.
        run: Claim number, owner and state of its run as they are now; None when there is no such run.
        stored: The records of ``write`` that are stored.
    """
    if run is None:
        return False
    claim, owner, state = run
    if claim != write.ref.claim or owner is not None:
        return False
    if any(stored.get((write.ref.id, record.key)) != contents(record) for record in write.records):
        return False
    change = write.change
    if change is None or change.keep:
        return True
    return change.state == state or not (change.state in TERMINAL or State(state) in TERMINAL)


def refs(writes: Sequence[RunWrite]) -> list[str]:
    """$1 and $2 of ``stored_runs``."""
    named: list[RunRef] = [write.ref for write in writes]
    return [literals.scalars([ref.shard for ref in named]), literals.words([ref.id for ref in named])]


def outcomes(writes: Sequence[RunWrite], by_id: Mapping[str, Outcome]) -> list[Outcome]:
    """One for each write: applied, unless ``by_id`` says otherwise."""
    if not by_id:
        return [Outcome.APPLIED] * len(writes)
    return [by_id.get(write.ref.id, Outcome.APPLIED) for write in writes]
