"""Triggers: a batch of new runs as parameters, and the answers to those that were not inserted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime

from durable.errors import RunNotFound, StoreUnavailable
from durable.model import ClaimedRun, Created, NewRun, Policy, Run, Start, State
from durable.requests import replacement
from durable.store import Route
from durable.stores.postgres import literals, requesting, rows, turns
from durable.stores.postgres.connections import REPEATS
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.requesting import PAUSE, TRIES
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call, Row

_AT_ONCE = 3
"""Runs whose predecessors are asked at the same time: the pool has a connection left for others."""


async def create(
    sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int], *beside: Call
) -> list[Created]:
    """What became of ``runs``, whose ids differ. ``beside`` follows in the same transaction.

    Raises:
        StoreUnavailable: Time and again a run was in the way, and was deleted before it could be looked at.
    """
    found: dict[str, Created] = {}
    for run in runs:
        if run.debounce is not None:  # each on its own: one may be merged into the one before it
            found[run.id] = await _debounced(sessions, run, routes, *beside)
    for _ in range(REPEATS):
        left = [run for run in runs if run.id not in found]
        if not left:
            return [await _replacing(sessions, run, found[run.id]) for run in runs]
        found.update(await _create(sessions, left, routes, *beside))
    raise StoreUnavailable("create_runs: a run that was in the way is gone")


async def _debounced(sessions: Sessions, run: NewRun, routes: Mapping[Route, int], *beside: Call) -> Created:
    for _ in range(TRIES):
        if (created := (await _create(sessions, [run], routes, *beside)).get(run.id)) is not None:
            return created
        await asyncio.sleep(PAUSE)
    raise StoreUnavailable("create_runs: others hold the run that this trigger would change")


async def _replacing(sessions: Sessions, run: NewRun, created: Created) -> Created:
    """Ask the runs that ``run`` replaces to cancel, in transactions of their own; sent again it goes on where it was.

    From the latest on: else one that is queued would start when the active one has ended at once.
    """
    if not created.created or run.concurrency_key is None or run.policy is not Policy.REPLACE:
        return created
    others = await make_way(sessions, str(run.shard), [run.id])
    return replace(created, replaced=tuple(others.get(run.id, ())))


async def make_way(sessions: Sessions, shard: str, run_ids: Sequence[str]) -> dict[str, list[str]]:
    """For each of these runs those that it replaces, which are asked to cancel, unless they were."""
    found = await turns.before(sessions, shard, run_ids) if run_ids else {}
    asking = [run_id for run_id, (_, to_be_asked) in found.items() if to_be_asked]
    for start in range(0, len(asking), _AT_ONCE):
        some = asking[start : start + _AT_ONCE]
        await asyncio.gather(*(_ask(sessions, shard, run_id, found[run_id][0]) for run_id in some))
    if asking:
        await turns.have_replaced(sessions, shard, asking)
    return {run_id: others for run_id, (others, _) in found.items()}


async def _ask(sessions: Sessions, shard: str, run_id: str, others: Sequence[str]) -> None:
    for other in reversed(others):
        with suppress(RunNotFound):  # it ended, and was deleted, since it was read
            await requesting.ask(sessions, shard, other, replacement(run_id))


async def start(
    sessions: Sessions,
    runs: Sequence[NewRun],
    routes: Mapping[Route, int],
    start: Start,
    limits: str | None,
    limited: Callable[[str], bool],
) -> list[Created]:
    """As ``create``; those that ``start`` names are inserted claimed, in a transaction of their own: it has a fence.

    Args:
        limits: Which limits of queues are known.
        limited: Whether a queue has any.
    """
    plain = [run for run in runs if run.id in start.run_ids and _startable(run) and not limited(run.queue)]
    found = await _start(sessions, plain, routes, start, limits) if plain else {}
    left = [run for run in runs if run.id not in found]
    if left:
        found.update(zip((run.id for run in left), await create(sessions, left, routes), strict=True))
    return [found[run.id] for run in runs]


def _startable(run: NewRun) -> bool:
    """Whether nothing but limits can keep it from being executed at once."""
    lone = run.concurrency_key is None and run.debounce is None and run.parent is None and run.schedule is None
    return lone and run.ready_at is None and not run.delay


async def _start(
    sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int], start: Start, limits: str | None
) -> dict[str, Created]:
    """The answers to those that were inserted; what is in the way of the others, ``create`` finds out."""
    keyed = [run for run in runs if run.key is not None]
    marks_and_texts = literals.columns(*_texts(runs))
    *_, inserted = await sessions.create.transaction(
        *([sessions.call("add_keys", *_keys(keyed))] if keyed else []),
        sessions.call(
            "start_runs",
            *(start.worker, limits, start.batch),
            literals.scalars([run.shard for run in runs]),
            literals.ids([run.id for run in runs]),
            literals.scalars([routes[Route(run.workflow, run.version, run.queue)] for run in runs]),
            *marks_and_texts[:9],
            literals.scalars([run.priority for run in runs]),
            *marks_and_texts[9:],
        ),
    )
    new = {run.id: run for run in runs}
    return {
        run_id: Created(run_id, True, claimed=_claimed(new[run_id], start.worker, now) if claimed else None)
        for run_id, claimed, now in inserted
    }


def _claimed(run: NewRun, worker: str, now: datetime) -> ClaimedRun:
    """What a claim would have answered."""
    return ClaimedRun(
        Run(
            run.id,
            run.workflow,
            run.version,
            State.RUNNING,
            created_at=now,
            key=run.key,
            tags=dict(run.tags),
            started_at=now,
            owner=worker,
            claim=1,
            shard=run.shard,
            queue=run.queue,
            priority=run.priority,
            limit_key=run.limit_key,
            input=run.input,
            seed=run.seed,
        ),
        (),
        0,
    )


def inserting(sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int]) -> list[Call]:
    """What inserts runs with neither key nor debouncing, in a transaction of somebody else."""
    return [*turns.entering(sessions, runs), sessions.call("add_runs", *_runs(runs, routes))]


async def _create(
    sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int], *beside: Call
) -> dict[str, Created]:
    """One transaction for all of ``runs``, and a look at what was in the way; no answer where it is gone by then."""
    keyed = [run for run in runs if run.key is not None]
    merging = [call for run in runs if run.debounce is not None for call in turns.merging(sessions, run, run.debounce)]
    entering = turns.entering(sessions, runs)
    calls = [
        *([sessions.call("add_keys", *_keys(keyed))] if keyed else []),
        *merging,
        *entering,
        sessions.call("add_runs", *_runs(runs, routes)),
        *([sessions.call("forget_keys", *_named(keyed))] if keyed and (merging or entering) else []),
        *beside,
    ]
    answers = dict(zip((call.sql for call in calls), await sessions.create.transaction(*calls), strict=True))

    def answer(name: str) -> list[Row]:
        return answers.get(sessions.call(name).sql, [])

    inserted = {row[0] for row in answer("add_runs")}
    found = {run_id: Created(run_id, True) for run_id in inserted}
    for [standing] in answer("merge_trigger"):
        if standing is None:
            return {}
        if standing != runs[0].id:
            return {runs[0].id: Created(standing, False)}
    policies = {run.id: run.policy for run in runs}
    for run_id, active in answer("take_turns"):
        found[run_id] = Created(active, False, busy=policies[run_id] is Policy.REJECT)
    others = {run.id: run for run in runs if run.id not in found}
    standing = await sessions.read("standing", *_named(list(others.values()))) if others else []
    return found | {row[0]: rows.created(others[row[0]], row) for row in standing}


def _keys(runs: Sequence[NewRun]) -> list[Parameter]:
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        *literals.columns(
            [run.workflow for run in runs],
            [run.key for run in runs],
            [run.request for run in runs],
        ),
    ]


def _texts(runs: Sequence[NewRun]) -> list[list[str | None]]:
    """The columns of text that every new run has, in the order of the statements."""
    return [
        [run.workflow for run in runs],
        [run.key for run in runs],
        [run.seed for run in runs],
        [run.input_hash for run in runs],
        [run.request for run in runs],
        [rows.tags_text(run.tags) for run in runs],
        [run.input for run in runs],
        [run.limit_key for run in runs],
    ]


def _runs(runs: Sequence[NewRun], routes: Mapping[Route, int]) -> list[Parameter]:
    marks_and_texts = literals.columns(
        *_texts(runs),
        [run.concurrency_key for run in runs],
        [run.parent for run in runs],
        [run.parent_key for run in runs],
        [turns.debounce_key(run) for run in runs],
        [run.schedule for run in runs],
    )
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        literals.scalars([routes[Route(run.workflow, run.version, run.queue)] for run in runs]),
        literals.times([turns.ready_at(run) for run in runs]),
        literals.scalars([turns.delay(run) for run in runs]),
        *marks_and_texts[:9],
        literals.scalars([run.priority for run in runs]),
        *marks_and_texts[9:],
        literals.times([run.tick for run in runs]),
    ]


def _named(runs: Sequence[NewRun]) -> list[Parameter]:
    """Of ``standing`` and ``forget_keys``."""
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        *literals.columns([run.workflow for run in runs], [run.key for run in runs]),
    ]
