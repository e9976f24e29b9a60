"""One operation on many runs: found first, then asked about, then done beside each other under a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from durable.cli.options import Where
from durable.cli.output import confirm, err, out, visible, write_json
from durable.cli.shapes import OperatedShape, UnchangedShape
from durable.engine import Engine
from durable.errors import RunFinished, RunNotFound
from durable.ids import check_run_id
from durable.model import State

_PAGE = 1000

_BESIDE = 16
"""Runs that are operated at the same time: each takes a round trip, and a pool has few connections."""

_TOLD = 10
"""Refusals that are told one by one."""


@dataclass(frozen=True)
class Operation:
    """What is done to runs.

    Attributes:
        verb: As it stands in a question: ``cancel``.
        done: As it stands in a report: ``asked to cancel``.
        states: The states to which it applies.
        apply: Does it to one run; False when there was nothing to do.
    """

    verb: str
    done: str
    states: Sequence[State]
    apply: Callable[[str], Awaitable[bool]]


@dataclass
class _Tally:
    changed: list[str] = field(default_factory=list[str])
    unchanged: list[UnchangedShape] = field(default_factory=list[UnchangedShape])


async def operate(
    engine: Engine,
    operation: Operation,
    runs: Sequence[str],
    where: Where,
    *,
    everything: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Operate the runs that are named, or after a question those that meet the conditions.

    Raises:
        typer.BadParameter: It is not said which runs, or said twice.
        InvalidArgument: An id is none; then nothing was done.
        StoreUnavailable: The database went away; what was done until then is told.
        typer.Exit: A run that was named refused, or the answer was no.
    """
    if runs and (everything or not where.anything):
        raise typer.BadParameter("name runs, or choose them by --workflow, --state and the like, not both")
    if not runs and where.anything and not everything:
        raise typer.BadParameter("which runs? Name them, or choose them by --workflow, --state and the like, or --all")
    if where.state is not None and where.state not in operation.states:
        fits = ", ".join(operation.states)
        raise typer.BadParameter(f"{operation.verb} does not apply to {where.state} runs, but to {fits}")
    chosen = [check_run_id(run_id) for run_id in runs]  # all of them, before anything is done
    if not runs:
        with err.status(f"Looking for runs to {operation.verb} …"):
            chosen = [run_id async for run_id in _matching(engine, operation, where)]
        if chosen:
            count = "1 run" if len(chosen) == 1 else f"{len(chosen):,} runs"
            confirm(f"{operation.verb.capitalize()} {count}?", yes=yes)
    tally = await _all_of(operation, chosen, shown=not runs)
    if as_json:
        write_json(OperatedShape(changed=tally.changed, unchanged=tally.unchanged))
    else:
        _report(operation, tally, len(chosen))
    if runs and tally.unchanged:
        raise typer.Exit(1)


async def _matching(engine: Engine, operation: Operation, where: Where) -> AsyncIterator[str]:
    conditions = where.conditions()
    del conditions["state"]  # a listing knows one: here it is each that the operation applies to
    for state in operation.states if where.state is None else (where.state,):
        cursor = None
        while True:
            page = await engine.list_runs(**conditions, state=state, limit=_PAGE, cursor=cursor)
            for run in page.items:
                yield run.id
            if (cursor := page.next_cursor) is None:
                break


async def _all_of(operation: Operation, runs: Sequence[str], *, shown: bool) -> _Tally:
    tally, left = (
        _Tally(),
        iter(dict.fromkeys(runs)),
    )  # each once: it may have changed its state while it was looked for
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not shown or not runs) as progress:
        bar = progress.add_task(operation.verb.capitalize(), total=len(runs))

        async def work() -> None:
            for run_id in left:
                try:
                    if await operation.apply(run_id):
                        tally.changed.append(run_id)
                    else:
                        tally.unchanged.append(UnchangedShape(id=run_id, why=f"run {run_id} had ended"))
                except (RunFinished, RunNotFound) as error:
                    tally.unchanged.append(UnchangedShape(id=run_id, why=str(error)))
                progress.advance(bar)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(_BESIDE, len(runs))):
                    group.create_task(work())
        except ExceptionGroup as failures:
            err.print(f"{len(tally.changed):,} of {len(runs):,} runs {operation.done} before it failed.")
            raise failures.exceptions[0] from None
    return tally


def _report(operation: Operation, tally: _Tally, matched: int) -> None:
    if not matched:
        out.print(f"No run to {operation.verb}.")
        return
    out.print(f"{len(tally.changed):,} {'run' if len(tally.changed) == 1 else 'runs'} {operation.done}.")
    for one in tally.unchanged[:_TOLD]:
        err.print(visible(one.why))
    if len(tally.unchanged) > _TOLD:
        err.print(f"… and {len(tally.unchanged) - _TOLD:,} more to which it did not apply.")
