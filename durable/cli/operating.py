"""``durable runs trigger | signal | cancel | pause | resume | retry``: what is done to runs."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, Any, cast

import typer

from durable.cli import following
from durable.cli.bulk import Operation, operate
from durable.cli.loading import connected
from durable.cli.options import (
    JsonOption,
    JsonValue,
    RunArgument,
    TagOption,
    Where,
    YesOption,
    filtered,
    parse_duration,
    parse_moment,
    parse_tags,
)
from durable.cli.output import out, write_json
from durable.cli.shapes import TriggeredShape
from durable.documents import input_value, signal_value
from durable.engine import Engine
from durable.model import Policy, State
from durable.newruns import TriggerOptions
from durable.states import TERMINAL

_Runs = Annotated[list[str] | None, typer.Argument(metavar="RUN", help="The runs' ids.")]
_All = Annotated[bool, typer.Option("--all", help="Every run to which it applies.")]
_Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; stands in the timeline.")]
_By = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who asks.  [default: your user name]")]

_ACTIVE = tuple(state for state in State if state not in TERMINAL)


def add_to(commands: typer.Typer) -> None:
    for command in (trigger, signal, cancel, pause, resume, retry):
        commands.command()(command)


@connected
async def trigger(
    engine: Engine,
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="Its name.")],
    value: Annotated[str | None, JsonValue] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="One run for each key of a workflow.")] = None,
    version: Annotated[str | None, typer.Option(metavar="VERSION", help="Of the workflow.")] = None,
    tag: TagOption = None,
    delay: Annotated[
        timedelta | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Not before: 90s, 5m, 2h.")
    ] = None,
    at: Annotated[
        datetime | None, typer.Option(parser=parse_moment, metavar="TIME", help="Not before this time.")
    ] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Default: the workflow's own.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="0 first.")] = None,
    run_id: Annotated[str | None, typer.Option(metavar="UUID", help="A UUIDv7 of yours.")] = None,
    limit_key: Annotated[str | None, typer.Option(metavar="KEY", help="Whose share of the queue's limits.")] = None,
    concurrency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="One active run of the workflow for each.")
    ] = None,
    concurrency_policy: Annotated[Policy | None, typer.Option(help="While another one is active.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it until it ends.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a run, with an input as JSON: durable runs trigger greet '"Ann"'."""
    options: dict[str, Any] = {
        "key": key,
        "version": version,
        "delay": delay,
        "at": at,
        "queue": queue,
        "priority": priority,
        "run_id": run_id,
        "limit_key": limit_key,
        "concurrency_key": concurrency_key,
        "tags": parse_tags(tag),
        "concurrency_policy": concurrency_policy,
    }
    given = {name: option for name, option in options.items() if option is not None}
    typed = input_value(engine, workflow, version, value)
    handle = await engine.trigger(workflow, typed, **cast("TriggerOptions", given))
    if as_json:
        write_json(TriggeredShape(id=handle.run_id, created=handle.created))
    elif handle.created or wait:
        out.print(handle.run_id)
    else:
        out.print(f"{handle.run_id} existed already")
    if wait:
        await following.follow(engine, handle.run_id, as_json=as_json)


@connected
async def signal(
    engine: Engine,
    run_id: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the run waits for.")],
    payload: Annotated[str, JsonValue] = "null",
    signal_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Sent twice with one id, it is one.")
    ] = None,
) -> None:
    """Send a signal to a run, with a payload as JSON."""
    await engine.signal(run_id, name, await signal_value(engine, run_id, name, payload), signal_id=signal_id)
    out.print("Sent.")


@connected
@filtered
async def cancel(
    engine: Engine,
    where: Where,
    runs: _Runs = None,
    everything: _All = False,
    reason: _Reason = "",
    by: _By = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Cancel runs: what they have done is compensated. Many are chosen like those of `runs list`."""
    who = _who(by)

    async def apply(run_id: str) -> bool:
        return await engine.cancel(run_id, reason=reason, by=who)

    operation = Operation("cancel", "cancelled, or asked to", _ACTIVE, apply)
    await operate(engine, operation, runs or (), where, everything=everything, yes=yes, as_json=as_json)


@connected
@filtered
async def pause(
    engine: Engine,
    where: Where,
    runs: _Runs = None,
    everything: _All = False,
    reason: _Reason = "",
    by: _By = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Pause runs: a running step may end, then nothing executes until `resume`."""
    apply = _applied(engine.pause, reason=reason, by=_who(by))
    states = tuple(state for state in _ACTIVE if state is not State.PAUSED)
    operation = Operation("pause", "paused, or asked to", states, apply)
    await operate(engine, operation, runs or (), where, everything=everything, yes=yes, as_json=as_json)


@connected
@filtered
async def resume(
    engine: Engine,
    where: Where,
    runs: _Runs = None,
    everything: _All = False,
    reason: _Reason = "",
    by: _By = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Let paused runs go on."""
    apply = _applied(engine.resume, reason=reason, by=_who(by))
    operation = Operation("resume", "resumed", (State.PAUSED,), apply)
    await operate(engine, operation, runs or (), where, everything=everything, yes=yes, as_json=as_json)


@connected
@filtered
async def retry(
    engine: Engine,
    where: Where,
    runs: _Runs = None,
    everything: _All = False,
    from_step: Annotated[
        str | None, typer.Option(metavar="KEY", help="Repeat this step and all after it, not only what failed.")
    ] = None,
    compensation: Annotated[
        bool, typer.Option("--compensation", help="Repeat the failed compensations, not the run.")
    ] = False,
    reason: _Reason = "",
    by: _By = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run failed and dead-lettered runs again: completed steps are kept."""
    who = _who(by)
    if compensation and from_step is not None:
        raise typer.BadParameter("give --from-step or --compensation, not both")
    if compensation:
        apply = _applied(engine.retry_compensation, reason=reason, by=who)
    else:
        apply = _applied(engine.retry, from_step=from_step, reason=reason, by=who)
    states = (State.FAILED,) if compensation else (State.FAILED, State.DEAD_LETTER)
    operation = Operation("retry", "retried", states, apply)
    await operate(engine, operation, runs or (), where, everything=everything, yes=yes, as_json=as_json)


def _applied(act: Callable[..., Awaitable[None]], **options: Any) -> Callable[[str], Awaitable[bool]]:
    async def apply(run_id: str) -> bool:
        await act(run_id, **options)
        return True

    return apply


def _who(by: str | None) -> str:
    """Who asks: the timeline shall say it, also where nobody thought of it. A user without a name is none."""
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
