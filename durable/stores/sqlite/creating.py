"""New runs on SQLite: in as few statements as they allow, and in one transaction where one statement cannot decide.

Every function is called on the store's thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from durable import requests
from durable.model import ClaimedRun, Created, NewRun, Policy, Start
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection
from durable.stores.sqlite.requesting import ask

Now = Callable[[], int]


def create(db: Connection, now: Now, runs: Sequence[NewRun], document: str) -> list[Created]:
    """Create the runs of ``document``; one answer for each."""
    if not any(run.debounce or run.concurrency_key for run in runs):
        db.write("create", lambda: (now(), document))
        return documents.decode_created(runs, db.value("created", {"runs": document}))
    # What is refused is refused for a run that may have ended when one asks which it was.
    with db.transaction():
        return create_within(db, now, runs)


def create_within(db: Connection, now: Now, runs: Sequence[NewRun]) -> list[Created]:
    """The same in a transaction that has begun."""
    return [created for some in _apart(runs) for created in _create(db, now, some)]


def create_started(db: Connection, now: Now, runs: Sequence[NewRun], start: Start) -> list[Created]:
    """Create ``runs``, and claim in the same transaction those of ``start`` that this call has made."""
    wanted = [run.id for run in runs if run.id in start.run_ids and run.concurrency_key is None and not run.debounce]
    with db.transaction():
        document = documents.encode(wanted)
        before: set[str] = documents.decode_ids(db.value("existing", {"runs": document}))
        created = create_within(db, now, runs)
        made = documents.encode([run_id for run_id in wanted if run_id not in before])
        db.write("start", lambda: (now(), start.worker, start.batch, made))
        claimed = {
            run.id: ClaimedRun(run, (), wakes) for run, wakes, _ in documents.decode_runs(db.value("claimed_runs"))
        }
    return [replace(one, claimed=claimed.get(run.id)) for run, one in zip(runs, created, strict=True)]


def _create(db: Connection, now: Now, runs: Sequence[NewRun]) -> list[Created]:
    document = documents.encode_new_runs(runs)
    before = {run.id for run in runs if replaces(run) and db.value("exists", {"id": run.id})}
    db.write("debounce" if any(run.debounce for run in runs) else "create", lambda: (now(), document))
    answers = documents.decode_created(runs, db.value("created", {"runs": document}))
    return [
        _replace(db, now, run, created, again=run.id in before) if replaces(run) and created.created else created
        for run, created in zip(runs, answers, strict=True)
    ]


def _replace(db: Connection, now: Now, new: NewRun, created: Created, *, again: bool) -> Created:
    """Nobody is asked again by a trigger that was sent again."""
    return replace(created, replaced=_others(db, new) if again else ask_replaced(db, now, new))


def ask_replaced(db: Connection, now: Now, new: NewRun) -> tuple[str, ...]:
    """Ask all that stand in the line before the new run to cancel; in the transaction that has created it."""
    others = _others(db, new)
    for run_id in others:
        ask(db, now, run_id, requests.replacement(new.id), None)
    return others


def _others(db: Connection, new: NewRun) -> tuple[str, ...]:
    line: list[str] = json.loads(db.value("line", {"workflow": new.workflow, "key": new.concurrency_key}))
    return tuple(line[: line.index(new.id)]) if new.id in line else ()


def replaces(run: NewRun) -> bool:
    """Whether it asks others to make way."""
    return run.policy is Policy.REPLACE and run.concurrency_key is not None


def _apart(runs: Sequence[NewRun]) -> list[list[NewRun]]:
    """The runs in order, in lots in which no run depends on what becomes of another one of the lot."""
    lots: list[list[NewRun]] = []
    seen: set[tuple[str, str, str]] = set()
    closed = True
    for run in runs:
        keys: set[tuple[str, str, str]] = set()
        if run.concurrency_key is not None:
            keys.add(("concurrency", run.workflow, run.concurrency_key))
        if run.debounce is not None:
            keys.add(("debounce", run.workflow, run.debounce.key))
        if closed or replaces(run) or not seen.isdisjoint(keys):
            lots.append([])
            seen = set()
        lots[-1].append(run)
        seen |= keys
        closed = replaces(run)
    return lots
