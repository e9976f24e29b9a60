"""Triggers: a batch of new runs as parameters, and the answers to those that were not inserted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from durable.errors import StoreUnavailable
from durable.model import Created, NewRun
from durable.store import Route
from durable.stores.postgres import literals, rows
from durable.stores.postgres.connections import REPEATS
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call


async def create(
    sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int], *beside: Call
) -> list[Created]:
    """What became of ``runs``, whose ids differ. ``beside`` follows in the same transaction.

    Raises:
        StoreUnavailable: Time and again a run was in the way, and was deleted before it could be looked at.
    """
    found: dict[str, Created] = {}
    for _ in range(REPEATS):
        left = [run for run in runs if run.id not in found]
        if not left:
            return [found[run.id] for run in runs]
        found.update(await _create(sessions, left, routes, *beside))
    raise StoreUnavailable("create_runs: a run that was in the way is gone")


async def _create(
    sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int], *beside: Call
) -> dict[str, Created]:
    """One transaction for all of ``runs``, and a look at what was in the way; no answer where it is gone by then."""
    calls = [sessions.call("add_runs", *_runs(runs, routes))]
    if keyed := [run for run in runs if run.key is not None]:
        calls.insert(0, sessions.call("add_keys", *_keys(keyed)))
    answers = await sessions.create.transaction(*calls, *beside)
    inserted = {row[0] for row in answers[len(calls) - 1]}
    others = {run.id: run for run in runs if run.id not in inserted}
    standing = await sessions.read("standing", *_standing(list(others.values()))) if others else []
    return {run_id: Created(run_id, True) for run_id in inserted} | {
        row[0]: rows.created(others[row[0]], row) for row in standing
    }


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


def _runs(runs: Sequence[NewRun], routes: Mapping[Route, int]) -> list[Parameter]:
    marks_and_texts = literals.columns(
        [run.workflow for run in runs],
        [run.key for run in runs],
        [run.seed for run in runs],
        [run.input_hash for run in runs],
        [run.request for run in runs],
        [rows.tags_text(run.tags) for run in runs],
        [run.input for run in runs],
        [run.limit_key for run in runs],
        [run.concurrency_key for run in runs],
        [run.parent for run in runs],
        [run.parent_key for run in runs],
    )
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        literals.scalars([routes[Route(run.workflow, run.version, run.queue)] for run in runs]),
        literals.times([run.ready_at for run in runs]),
        literals.scalars([run.delay for run in runs]),
        *marks_and_texts[:9],
        literals.scalars([run.priority for run in runs]),
        *marks_and_texts[9:],
    ]


def _standing(runs: Sequence[NewRun]) -> list[Parameter]:
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        *literals.columns([run.workflow for run in runs], [run.key for run in runs]),
    ]
