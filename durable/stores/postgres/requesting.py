"""What is asked of a run: it is read, ``durable.requests`` decides, and the plan is written if it is still as read.

Read and write are two transactions: one that waits for a decision of this process holds its locks without bound when
the process is stopped. The statements say why nothing is lost in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

from durable import requests
from durable.errors import PayloadError, RunNotFound, StoreUnavailable
from durable.failures import request_to_json
from durable.model import Record, Request, Run, RunRef, RunWrite, State, Verb
from durable.requests import Plan
from durable.states import TERMINAL
from durable.stores.postgres import literals, rows, turns, writes
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call

TRIES, PAUSE = 100, 0.02
"""How often a run that somebody holds for a moment is tried; seconds between two tries."""

_BY_HISTORY = frozenset({Verb.RETRY, Verb.RETRY_UNDO})


async def ask(sessions: Sessions, shard: str, run_id: str, request: Request, step: str | None = None) -> State | None:
    """The state of the run afterwards, or None when the request does not apply.

    Raises:
        RunNotFound: There is no such run; or a retry applies, and it has no record ``step``.
        PayloadError: The reason, or who asks, cannot be stored.
        StoreUnavailable: Another transaction holds the run.
    """
    _refuse_unstorable(request)
    for _ in range(TRIES):
        found = await sessions.read("asked_run", shard, run_id)
        if not found:
            raise RunNotFound(f"there is no run {run_id!r}")
        run, wakes = rows.run(found[0][:-1]), int(found[0][-1])
        plan = await _plan(sessions, run, request, step)
        if plan is None:
            latest = [rows.record(row) for row in await sessions.read("latest_request", shard, run_id)]
            return run.state if requests.asked_again(run, request, latest[0] if latest else None) else None
        before = turns.before_it_is_ready(sessions, run) if plan.ready else []
        answers = await sessions.write("request", *before, *_calls(sessions, run, wakes, request, plan))
        [(locked, changed)] = answers[len(before)]
        if changed:
            return plan.state
        if not locked:
            await asyncio.sleep(PAUSE)
    raise StoreUnavailable(f"request: others keep changing run {run_id}, or hold it")


async def outlines(sessions: Sessions, refs: Sequence[RunRef]) -> dict[str, list[Record]]:
    """The runs' histories by run id, without data, except of requests."""
    found: dict[str, list[Record]] = {ref.id: [] for ref in refs}
    shards, ids = literals.scalars([ref.shard for ref in refs]), literals.ids([ref.id for ref in refs])
    for row in await sessions.read("outlines", shards, ids):
        found[row[0]].append(rows.record(row))
    return found


def to_set_aside(stored: Iterable[Record], write: RunWrite) -> list[str]:
    """The keys that a write with ``drop_failed`` sets aside: the same when it is sent again after it was applied."""
    prefix = f"/{write.ref.claim}/"
    before = [record._replace(key=record.key.removeprefix(prefix)) for record in stored]
    known = {record.key for record in before}
    return requests.set_failed_aside([*before, *(record for record in write.records if record.key not in known)])


async def _plan(sessions: Sessions, run: Run, request: Request, step: str | None) -> Plan | None:
    history: list[Record] = []
    if request.verb in _BY_HISTORY and run.state in TERMINAL:
        history = (await outlines(sessions, [RunRef(run.shard, run.id, run.claim)]))[run.id]
    return requests.decide(run, request, history, step)


def _calls(sessions: Sessions, run: Run, wakes: int, request: Request, plan: Plan) -> list[Call]:
    shard = str(run.shard)
    calls = [sessions.call("change_run", shard, run.id, *_seen(run, wakes), *_becomes(plan))]
    if plan.aside:
        ref = RunRef(run.shard, run.id, run.claim)
        calls.append(sessions.call("set_aside", *writes.aside([ref], [plan.aside])))
    if plan.record:
        calls.append(sessions.call("add_request", shard, run.id, request_to_json(request)))
    if plan.requested is not None:
        calls.append(sessions.call("tell_worker", shard, run.id))
    if plan.ready and run.concurrency_key is not None:
        calls.append(sessions.call("keep_turn", shard, run.id))
    if run.state in TERMINAL and run.schedule is not None and run.tick is not None:
        calls.append(sessions.call("reopen_tick", shard, run.schedule, literals.instant(run.tick), run.id))
    if plan.ended and run.linked:
        calls += turns.ended(sessions, shard, run.id)
        calls.append(sessions.call("tell_parents", literals.scalars([run.shard]), literals.ids([run.id]), "false"))
    return calls


def _seen(run: Run, wakes: int) -> list[Parameter]:
    """$3 to $7 of ``change_run``."""
    requested = None if run.requested is None else request_to_json(run.requested)
    return [run.state, run.owner, str(run.claim), str(wakes), requested]


def _becomes(plan: Plan) -> list[Parameter]:
    """$8 to $12 of ``change_run``."""
    rests = plan.state is State.PAUSED or plan.state in TERMINAL
    flags = plan.ended + 2 * plan.ready + 4 * rests + 8 * plan.record + 16 * plan.forgive
    requested = None if plan.requested is None else request_to_json(plan.requested)
    return [plan.state, requested, plan.reason, plan.error, str(flags)]


def _refuse_unstorable(request: Request) -> None:
    """Before anything is looked at: as JSON the text would pass, with escapes that no reader gets out again."""
    for text in (request.reason, request.by):
        if "\0" in text or not _is_unicode(text):
            raise PayloadError("a reason, or who asks, contains NUL or a lone surrogate and cannot be stored")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
