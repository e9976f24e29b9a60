"""A flush as parameters of ``commit_writes``, and the answers to writes that were not simply applied.

Pure: it knows neither connections nor SQL.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from durable.model import Change, Outcome, Record, RunRef, RunWrite, State
from durable.states import TERMINAL
from durable.stores.postgres import literals
from durable.stores.postgres.literals import Parameter

Contents = tuple[Any, ...]
"""seq, kind, data, failed, attempt: what, with its key, makes two records the same."""
Stored = Mapping[tuple[str, str], Contents]
"""Stored records by run id and key."""
Standing = tuple[int, str | None, str]
"""Claim number, owner and state of a run."""


_NO_REF: tuple[tuple[Any, ...], ...] = ((),) * 4
_NO_RECORD: tuple[tuple[Any, ...], ...] = ((),) * 12


def parameters(worker: str, lane: str, writes: Sequence[RunWrite]) -> list[Parameter]:
    """$1 to $27 of ``commit_writes``. 2 to 3 µs a record."""
    changed = [(write.ref, write.change) for write in writes if write.change is not None]
    changes = [change for _, change in changed]
    records = [record for write in writes for record in write.records]
    refs = [write.ref for write in writes for _ in write.records]
    shards, ids, claims, _ = zip(*refs, strict=True) if refs else _NO_REF
    seqs, keys, kinds, ats, data, failed, attempts, durations, begun, compensable, dues, _ = (
        zip(*records, strict=True) if records else _NO_RECORD
    )
    changes_too = [4 if write.change is not None else 0 for write in writes for _ in write.records]
    flags = [a + 2 * b + c for a, b, c in zip(failed, compensable, changes_too, strict=True)]
    return [
        worker,
        literals.scalars([ref.shard for ref, _ in changed]),
        literals.ids([ref.id for ref, _ in changed]),
        literals.scalars([ref.claim for ref, _ in changed]),
        literals.words([change.state for change in changes]),
        literals.scalars([_flags(change) for change in changes]),
        literals.times([change.ready_at for change in changes]),
        literals.scalars([change.wakes for change in changes]),
        literals.scalars(shards),
        literals.ids(ids),
        literals.scalars(claims),
        literals.scalars(seqs),
        literals.words(kinds),
        literals.times(ats),
        literals.scalars(flags),
        literals.scalars(attempts),
        literals.floats(durations),
        literals.scalars(begun),
        literals.times(dues),
        *literals.columns(
            [change.result for change in changes],
            [change.error for change in changes],
            [change.reason for change in changes],
            keys,
            data,
        ),
        lane,
    ]


def _flags(change: Change) -> int:
    paused = change.state is State.PAUSED
    return change.keep + 2 * change.ready_now + 4 * (change.state in TERMINAL) + 8 * paused + 16 * change.asked


def aside(refs: Sequence[RunRef], keys: Sequence[Sequence[str]]) -> list[Parameter]:
    """$1 to $6 of ``set_aside``: for each run the keys of its records."""
    named = [(ref, key) for ref, some in zip(refs, keys, strict=True) for key in some]
    return [
        literals.scalars([ref.shard for ref, _ in named]),
        literals.ids([ref.id for ref, _ in named]),
        literals.scalars([ref.claim for ref, _ in named]),
        *literals.columns([key for _, key in named]),
    ]


def record_keys(writes: Sequence[RunWrite]) -> list[Parameter]:
    """$1 to $5 of ``stored_records``: every record of ``writes``, and where its own change may have set it aside."""
    named = [(write.ref, record.key) for write in writes for record in write.records]
    named += [
        (write.ref, f"/{write.ref.claim}/{record.key}")
        for write in writes
        if write.change is not None and write.change.drop_failed
        for record in write.records
    ]
    return [
        literals.scalars([ref.shard for ref, _ in named]),
        literals.ids([ref.id for ref, _ in named]),
        *literals.columns([key for _, key in named]),
    ]


def contents(record: Record) -> Contents:
    """What a record that is sent again must agree in with the stored one."""
    return (record.seq, record.kind, record.data, record.failed, record.attempt)


def again(write: RunWrite, worker: str, run: Standing | None, stored: Stored) -> RunWrite | Outcome:
    """What to do about a write of a flush in which some record was stored already.

    Returns:
        The write without the records that are stored; or, when a record is stored with other contents or nothing is
        left to write, the outcome.
    """
    known = [record for record in write.records if (write.ref.id, record.key) in stored]
    if any(stored[write.ref.id, record.key] != contents(record) for record in known):
        return Outcome.LEASE_LOST  # somebody else's records, and they stay
    if write.change is None and known and len(known) == len(write.records):
        held = run is not None and run[0] == write.ref.claim and run[1] in {worker, None}
        return Outcome.APPLIED if held else Outcome.LEASE_LOST
    rest = [record for record in write.records if record not in known]
    also = write.also if rest or not write.records else None  # it comes with records, and was done with them
    return RunWrite(write.ref, rest, write.change, also)


def was_applied(write: RunWrite, run: Standing | None, stored: Stored) -> bool:
    """Whether a write that found its run not held any more is one whose answer was lost."""
    if run is None:
        return False
    claim, owner, state = run
    if claim != write.ref.claim or owner is not None:
        return False
    change = write.change
    if any(_found(write, record, stored) != contents(record) for record in write.records):
        return False
    if change is None or change.keep:
        return True
    return change.state == state or not (change.state in TERMINAL or State(state) in TERMINAL)


def _found(write: RunWrite, record: Record, stored: Stored) -> Contents | None:
    found = stored.get((write.ref.id, record.key))
    if found is None and write.change is not None and write.change.drop_failed:
        return stored.get((write.ref.id, f"/{write.ref.claim}/{record.key}"))
    return found


def refs(writes: Sequence[RunWrite]) -> list[Parameter]:
    """$1 and $2 of ``stored_runs``."""
    named: list[RunRef] = [write.ref for write in writes]
    return [literals.scalars([ref.shard for ref in named]), literals.ids([ref.id for ref in named])]
