"""Triggers: a batch of new runs as parameters, and the answers to those that were not inserted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from durable.errors import StoreUnavailable
from durable.model import Created, NewRun
from durable.store import Route
from durable.stores.postgres import literals, rows
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions


async def create(sessions: Sessions, runs: Sequence[NewRun], routes: Mapping[Route, int]) -> list[Created]:
    """One transaction for all of ``runs``, whose ids differ; a second look at those that existed."""
    calls = [sessions.call("add_runs", *_runs(runs, routes))]
    if keyed := [run for run in runs if run.key is not None]:
        calls.insert(0, sessions.call("add_keys", *_keys(keyed)))
    answers = await sessions.create.transaction(*calls)
    inserted = {row[0] for row in answers[-1]}
    others = [run for run in runs if run.id not in inserted]
    standing = {row[0]: row for row in await sessions.read("standing", *_standing(others))} if others else {}
    if len(standing) < len(others):
        raise StoreUnavailable("create_runs: a run that was in the way is gone")
    return [rows.created(run, standing[run.id]) if run.id in standing else Created(run.id, True) for run in runs]


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
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        literals.scalars([routes[Route(run.workflow, run.version)] for run in runs]),
        literals.times([run.ready_at for run in runs]),
        literals.scalars([run.delay for run in runs]),
        *literals.columns(
            [run.workflow for run in runs],
            [run.key for run in runs],
            [run.seed for run in runs],
            [run.input_hash for run in runs],
            [run.request for run in runs],
            [rows.tags_text(run.tags) for run in runs],
            [run.input for run in runs],
        ),
    ]


def _standing(runs: Sequence[NewRun]) -> list[Parameter]:
    return [
        literals.scalars([run.shard for run in runs]),
        literals.ids([run.id for run in runs]),
        *literals.columns([run.workflow for run in runs], [run.key for run in runs]),
    ]
