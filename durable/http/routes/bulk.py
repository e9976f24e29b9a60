"""Many runs at once over HTTP: trigger a batch, or do one thing to all runs of a page."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from durable.documents import input_value
from durable.errors import RunFinished, RunNotFound
from durable.http.problems import Problem, also
from durable.http.routes.runs import IdempotencyKey, as_json
from durable.http.runtime import Runtime
from durable.http.schemas import BatchBody, BulkAnswer, BulkBody, Created, TriggeredMany, Unchanged
from durable.http.security import Here, Operator, Principal, Triggerer, guarded_router
from durable.model import RunSummary, State
from durable.states import TERMINAL

router = guarded_router("bulk")

_AT_ONCE = 16
"""Requests to the store that one HTTP request has under way."""

_APPLIES: dict[str, frozenset[State]] = {
    "cancel": frozenset(State) - TERMINAL,
    "pause": frozenset(State) - TERMINAL - {State.PAUSED, State.COMPENSATING},
    "resume": frozenset({State.PAUSED}),
    "retry": frozenset({State.FAILED, State.DEAD_LETTER}),
}


@router.post("/runs/batch", status_code=201, responses=also(404, 409))
async def trigger_many(
    here: Here, _: Triggerer, body: BatchBody, idempotency_key: IdempotencyKey = None
) -> TriggeredMany:
    """Create one run for each input. All are checked before the first is created."""
    if body.keys is not None and idempotency_key is not None:
        raise Problem(422, "invalid-request", "give keys or Idempotency-Key, not both")
    keys = body.keys if idempotency_key is None else [f"{idempotency_key}/{n}" for n in range(len(body.inputs))]
    texts = (as_json(value) for value in body.inputs)
    values = [input_value(here.engine, body.workflow, body.version, text) for text in texts]
    options: Any = body.model_dump(exclude_unset=True, exclude_none=True, exclude={"workflow", "inputs", "keys"})
    handles = await here.engine.trigger_many(body.workflow, values, keys=keys, **options)
    return TriggeredMany(items=[Created(id=handle.run_id, created=handle.created) for handle in handles])


@router.post("/runs/bulk", responses=also(404))
async def bulk(here: Here, who: Operator, body: BulkBody) -> BulkAnswer:
    """One operation for many runs, a page at a time: by their ids, or by conditions. Doing it twice is safe."""
    cursor = None
    if (body.where is None) == (body.ids is None):
        raise Problem(422, "invalid-request", "give where or ids")
    if body.ids is not None and body.cursor is not None:
        raise Problem(422, "invalid-request", "cursor goes with where")
    if body.ids is not None:
        runs: Sequence[RunSummary | Unchanged] = await _all([_found(here, run_id) for run_id in body.ids])
    else:
        assert body.where is not None
        where = body.where.model_dump(exclude_none=True)
        if not where:
            raise Problem(422, "invalid-request", "where: give a condition; none would mean every run")
        page = await here.engine.list_runs(**where, limit=body.limit, cursor=body.cursor)
        runs, cursor = page.items, page.next_cursor
    outcomes = await _all([_do(here, who, body, run) for run in runs])
    return BulkAnswer(
        changed=[one for one in outcomes if isinstance(one, str)],
        unchanged=[one for one in outcomes if isinstance(one, Unchanged)],
        next_cursor=cursor,
    )


async def _found(here: Runtime, run_id: str) -> RunSummary | Unchanged:
    try:
        return await here.engine.get_run(run_id)
    except RunNotFound as error:
        return Unchanged(id=run_id, why=str(error))


async def _do(here: Runtime, who: Principal, body: BulkBody, run: RunSummary | Unchanged) -> str | Unchanged:
    if isinstance(run, Unchanged):
        return run
    if run.state not in _APPLIES[body.action]:
        return Unchanged(id=run.id, why=f"it is {run.state}")
    if body.dry_run:
        return run.id
    engine = here.engine
    act = {"cancel": engine.cancel, "pause": engine.pause, "resume": engine.resume, "retry": engine.retry}[body.action]
    try:
        changed = await act(run.id, reason=body.reason, by=who.name)
    except (RunFinished, RunNotFound) as error:  # it has changed since it was listed
        return Unchanged(id=run.id, why=str(error))
    return Unchanged(id=run.id, why="it has ended") if changed is False else run.id


async def _all(work: Sequence[Any]) -> list[Any]:
    """The results, in order; a few at a time, and none is left under way when one fails."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(this: Any) -> Any:
        async with places:
            return await this

    outcomes = await asyncio.gather(*(one(this) for this in work), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome
    return outcomes
