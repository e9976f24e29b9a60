"""``durable schedules``: what is asked and done about schedules."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from durable.cli.loading import connected
from durable.cli.options import (
    JsonOption,
    JsonValue,
    TagOption,
    YesOption,
    parse_duration,
    parse_moment,
    parse_tags,
)
from durable.cli.output import ago, confirm, lasted, moment, out, pretty, table, visible, write_json
from durable.cli.shapes import BackfilledShape, FiredShape, SchedulesShape, schedule_shape, value_of
from durable.clock import HostClock
from durable.documents import input_value
from durable.engine import Engine
from durable.schedules import CatchUp, Overlap, Schedule, ScheduleSpec

_Name = Annotated[str, typer.Argument(metavar="NAME", help="The schedule's name.")]
_Timezone = Annotated[str | None, typer.Option(metavar="ZONE", help="IANA name.  [default: UTC]")]


def add_to(app: typer.Typer) -> None:
    commands = typer.Typer(no_args_is_help=True, help="Look at schedules and change them.")
    for name, command in (("list", list_schedules), ("next", next_ticks), ("set", set_schedule)):
        commands.command(name)(command)
    for command in (show, pause, resume, trigger, backfill, delete):
        commands.command()(command)
    app.add_typer(commands, name="schedules")


@connected
async def list_schedules(engine: Engine, as_json: JsonOption = False) -> None:
    """List the schedules by name, with their next ticks."""
    schedules = await engine.schedules()
    if as_json:
        write_json(SchedulesShape(items=[schedule_shape(schedule) for schedule in schedules]))
        return
    if not schedules:
        out.print("No schedules.")
        return
    now = HostClock().now()
    rows = [
        (
            schedule.spec.name,
            f"{schedule.spec.workflow} {schedule.spec.version}",
            _rule(schedule.spec),
            _state(schedule),
            "" if schedule.next_at is None else f"{moment(schedule.next_at)} ({ago(schedule.next_at, now)})",
            f"{schedule.fired:,}",
            f"{sum(schedule.skipped.values()):,}",
        )
        for schedule in schedules
    ]
    out.print(table(("schedule", "workflow", "rule", "state", "next", "fired", "skipped"), rows))


def _rule(spec: ScheduleSpec) -> str:
    return f"every {lasted(spec.every)}" if spec.every is not None else f"{spec.cron} {spec.timezone}"


def _state(schedule: Schedule) -> Text:
    if not schedule.spec.enabled:
        return Text("off", style="bright_black")
    if schedule.paused is not None:
        return Text("paused", style="yellow")
    return Text("on", style="green") if schedule.next_at is not None else Text("ended", style="bright_black")


@connected
async def show(
    engine: Engine,
    name: _Name,
    ticks: Annotated[int, typer.Option(min=1, max=1000, help="How many of the next ticks.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Show one schedule and its next ticks."""
    schedule = await engine.get_schedule(name)
    if as_json:
        write_json(schedule_shape(schedule))
        return
    spec = schedule.spec
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    facts.add_row("schedule", spec.name)
    facts.add_row("workflow", f"{spec.workflow} {spec.version}")
    facts.add_row("rule", _rule(spec))
    facts.add_row("state", _state(schedule))
    if schedule.paused:
        facts.add_row("note", visible(schedule.paused))
    facts.add_row("overlap", spec.overlap)
    facts.add_row("catch-up", spec.catch_up)
    if spec.input is not None:
        facts.add_row("input", pretty(value_of(spec.input)))
    facts.add_row(
        "fired", f"{schedule.fired:,}{'' if schedule.last_at is None else f', last {moment(schedule.last_at)}'}"
    )
    if schedule.skipped:
        facts.add_row("skipped", ", ".join(f"{count:,} {reason}" for reason, count in schedule.skipped.items()))
    for number, tick in enumerate(await engine.next_ticks(name, ticks)):
        facts.add_row("" if number else "next", moment(tick))
    out.print(facts)


@connected
async def next_ticks(
    engine: Engine,
    cron: Annotated[str, typer.Argument(metavar="CRON", help="Such as '30 6 * * mon'.")],
    timezone: _Timezone = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=1000, help="How many.")] = 10,
) -> None:
    """Show when a rule would fire."""
    for tick in await engine.next_ticks(n=count, cron=cron, timezone=timezone or "UTC"):
        out.print(f"{tick.isoformat()}  {moment(tick)} here")


@connected
async def set_schedule(
    engine: Engine,
    name: _Name,
    workflow: Annotated[str, typer.Argument(metavar="WORKFLOW", help="What it runs.")],
    value: Annotated[str | None, JsonValue] = None,
    cron: Annotated[str | None, typer.Option(metavar="CRON", help="Such as '30 6 * * mon'; or --every.")] = None,
    every: Annotated[
        timedelta | None, typer.Option(parser=parse_duration, metavar="DURATION", help="90s, 15m, 2h; or --cron.")
    ] = None,
    timezone: _Timezone = None,
    overlap: Annotated[Overlap | None, typer.Option(help="While an earlier run has not ended.")] = None,
    catch_up: Annotated[CatchUp | None, typer.Option(help="Of ticks that were missed.")] = None,
    jitter: Annotated[
        timedelta | None, typer.Option(parser=parse_duration, metavar="DURATION", help="Each tick is spread by it.")
    ] = None,
    start_at: Annotated[
        datetime | None, typer.Option(parser=parse_moment, metavar="TIME", help="No tick before it.")
    ] = None,
    end_at: Annotated[
        datetime | None, typer.Option(parser=parse_moment, metavar="TIME", help="No tick at it or after it.")
    ] = None,
    version: Annotated[str | None, typer.Option(metavar="VERSION", help="Of the workflow.")] = None,
    queue: Annotated[str | None, typer.Option(metavar="NAME", help="Of its runs.")] = None,
    priority: Annotated[int | None, typer.Option(min=0, max=9, help="Of its runs; 0 first.")] = None,
    tag: TagOption = None,
    disabled: Annotated[bool, typer.Option("--disabled", help="Do not fire it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a schedule, or change the one of this name to what is given here."""
    options: dict[str, Any] = {
        "cron": cron,
        "every": every,
        "timezone": timezone,
        "overlap": overlap,
        "catch_up": catch_up,
        "jitter": jitter,
        "start_at": start_at,
        "end_at": end_at,
        "version": version,
        "queue": queue,
        "priority": priority,
        "tags": parse_tags(tag),
    }
    given: Any = {option: setting for option, setting in options.items() if setting is not None}
    typed = input_value(engine, workflow, version, value)
    schedule = await engine.schedule(workflow, name=name, input=typed, enabled=not disabled, **given)
    if as_json:
        write_json(schedule_shape(schedule))
    else:
        out.print(f"Schedule {name}: {_next_of(schedule)}.")


def _next_of(schedule: Schedule) -> str:
    return "does not fire" if schedule.next_at is None else f"next at {moment(schedule.next_at)}"


@connected
async def pause(
    engine: Engine, name: _Name, note: Annotated[str, typer.Option(metavar="TEXT", help="Why.")] = ""
) -> None:
    """Fire no more until `resume`; its runs go on."""
    await engine.pause_schedule(name, note)
    out.print(f"Schedule {name} is paused.")


@connected
async def resume(engine: Engine, name: _Name) -> None:
    """Fire again, from the first tick after now."""
    out.print(f"Schedule {name}: {_next_of(await engine.resume_schedule(name))}.")


@connected
async def trigger(engine: Engine, name: _Name, as_json: JsonOption = False) -> None:
    """Fire a schedule once, now, whether it is paused or not."""
    handle = await engine.trigger_schedule(name)
    if as_json:
        write_json(FiredShape(id=None if handle is None else handle.run_id))
    elif handle is None:
        out.print("Skipped: an earlier run has not ended.")
    else:
        out.print(handle.run_id)


@connected
async def backfill(
    engine: Engine,
    name: _Name,
    since: Annotated[datetime, typer.Option(parser=parse_moment, metavar="TIME", help="The first tick.")],
    until: Annotated[datetime, typer.Option(parser=parse_moment, metavar="TIME", help="Ticks before it.")],
    overlap: Annotated[Literal["queue", "allow"], typer.Option(help="One after the other, or all at once.")] = "queue",
    as_json: JsonOption = False,
) -> None:
    """Fire the ticks of a time that has passed and that have no run. Doing it twice is safe."""
    handles = await engine.backfill(name, since, until, overlap=overlap)
    if as_json:
        write_json(BackfilledShape(ids=[handle.run_id for handle in handles]))
    else:
        out.print(f"{len(handles):,} {'run' if len(handles) == 1 else 'runs'} created.")


@connected
async def delete(engine: Engine, name: _Name, yes: YesOption = False) -> None:
    """Delete a schedule. Its runs go on, and stay."""
    await engine.get_schedule(name)
    confirm(f"Delete schedule {name}?", yes=yes)
    await engine.delete_schedule(name)
    out.print(f"Schedule {name} is deleted.")
