"""What becomes of a request: read the run, decide, and write the plan only if the run is still what was read.

Read and write are two transactions, so that no decision is made with the write lock held: with a busy event loop
Python gets its turn between two statements only after 5 ms. Whoever changes the run in between has made progress,
and then it is decided anew.
"""

from __future__ import annotations

from collections.abc import Callable

from durable import requests
from durable.errors import RunNotFound
from durable.model import Kind, Record, Request, State, Verb
from durable.stores.sqlite import documents
from durable.stores.sqlite.connection import Connection

_BY_HISTORY = frozenset({Verb.RETRY, Verb.RETRY_UNDO})


def ask(db: Connection, now: Callable[[], int], run_id: str, request: Request, step: str | None) -> State | None:
    """The state of the run afterwards, or None when the request does not apply.

    Raises:
        RunNotFound: There is no such run; or a retry applies, and it has no record ``step``.
        PayloadError: SQLite cannot hold the reason, or who asks.
    """
    documents.encode((request.reason, request.by))
    while True:
        found = documents.decode_runs(db.value("request_seen", {"id": run_id}) or "[]")
        if not found:
            raise RunNotFound(f"there is no run {run_id!r}")
        run = found[0].run
        plan = requests.decide(run, request, _history(db, run_id) if request.verb in _BY_HISTORY else (), step)
        if plan is None:
            carried_out = [record for record in _history(db, run_id) if record.kind is Kind.REQUEST]
            return run.state if requests.asked_again(run, request, max(carried_out, default=None)) else None
        if _write(db, now, documents.encode_plan(found[0], request, plan)):
            return plan.state


def _write(db: Connection, now: Callable[[], int], plan: documents.PlanRow) -> bool:
    """Whether the run was still what the plan was made for."""
    db.write("request", lambda: (now(), *plan))
    return bool(db.value("request_applied"))


def _history(db: Connection, run_id: str) -> list[Record]:
    return documents.decode_history(db.value("history", {"id": run_id}))
