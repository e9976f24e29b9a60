"""What several commands take: times, durations, JSON and tags as people write them, and the choice of runs.

It reads words; it knows no store, and asks nobody.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer
from pydantic_core import from_json

from durable.clock import HostClock
from durable.engine import Engine
from durable.model import State

P = ParamSpec("P")

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_AMOUNT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d|w)")


def parse_duration(text: str) -> timedelta:
    """``90s``, ``5m``, ``1h30m``, ``2d``; a number alone is seconds."""
    if re.fullmatch(r"[0-9]{1,15}(\.[0-9]{1,9})?", text):
        text += "s"
    if not text or _AMOUNT.sub("", text):
        raise typer.BadParameter(f"{text!r} is no duration: write 90s, 5m, 1h30m or 2d")
    try:
        return timedelta(seconds=sum(float(amount) * _UNITS[unit] for amount, unit in _AMOUNT.findall(text)))
    except OverflowError:
        raise typer.BadParameter(f"{text!r} is too long") from None


def parse_moment(text: str) -> datetime:
    """A time: ISO 8601, of this terminal's zone unless it has one; or how long ago, such as ``2h``."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError, OSError):
        pass
    try:
        return HostClock().now() - parse_duration(text)
    except (typer.BadParameter, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is no time: write 2026-11-30, 2026-11-30T08:00+01:00, or 2h ago as 2h"
        ) from None


def parse_json(text: str) -> str:
    """The text of a JSON value; ``@file`` is read from the file, ``-`` from standard input."""
    try:
        given = _given(text)
    except OSError as error:
        raise typer.BadParameter(f"{text[1:]!r} cannot be read: {error.strerror}") from None
    try:
        from_json(given, allow_inf_nan=False)
        return given.decode()
    except ValueError as error:
        hint = "" if not text[:1].isalpha() else f". A text is written with its quotes: '\"{text[:40]}\"'"
        raise typer.BadParameter(f"this is no JSON: {error}{hint}") from None


def _given(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    return Path(text[1:]).read_bytes() if text.startswith("@") else text.encode(errors="surrogatepass")


def parse_tags(pairs: list[str] | None) -> dict[str, str]:
    """``name=value``, given any number of times."""
    tags: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{pair!r} is no tag: write name=value", param_hint="--tag")
        tags[name] = value
    return tags


JsonOption = Annotated[bool, typer.Option("--json", help="Write JSON, for scripts.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")]
TagOption = Annotated[list[str] | None, typer.Option("--tag", metavar="NAME=VALUE", help="May be repeated.")]
JsonValue = typer.Argument(parser=parse_json, metavar="JSON", help="A JSON value, @file, or - for standard input.")


@dataclass(frozen=True)
class Where:
    """Which runs are meant. All given conditions hold."""

    workflow: str | None = None
    version: str | None = None
    state: State | None = None
    tags: dict[str, str] = field(default_factory=dict[str, str])
    created_after: datetime | None = None
    created_before: datetime | None = None
    queue: str | None = None
    parent: str | None = None
    schedule: str | None = None

    @property
    def anything(self) -> bool:
        """There is no condition."""
        return self == Where()

    def conditions(self) -> dict[str, Any]:
        """As ``engine.list_runs`` takes them."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


_FILTERS: dict[str, Any] = {
    "workflow": Annotated[str | None, typer.Option("--workflow", "-w", metavar="NAME", help="Of this workflow.")],
    "version": Annotated[str | None, typer.Option("--version", metavar="VERSION", help="Of this version.")],
    "state": Annotated[State | None, typer.Option("--state", "-s", help="In this state.")],
    "tag": Annotated[
        list[str] | None, typer.Option("--tag", "-t", metavar="NAME=VALUE", help="With all of these tags.")
    ],
    "since": Annotated[
        datetime | None,
        typer.Option(parser=parse_moment, metavar="TIME", help="Created after: a time, or 2h ago as 2h."),
    ],
    "until": Annotated[datetime | None, typer.Option(parser=parse_moment, metavar="TIME", help="Created before.")],
    "queue": Annotated[str | None, typer.Option("--queue", metavar="NAME", help="In this queue.")],
    "parent": Annotated[str | None, typer.Option("--parent", metavar="RUN", help="Called by this run.")],
    "schedule": Annotated[str | None, typer.Option("--schedule", metavar="NAME", help="Fired by this schedule.")],
}


def filtered(command: Callable[..., Awaitable[None]]) -> Callable[Concatenate[Engine, ...], Awaitable[None]]:
    """A command whose parameter ``where`` is made of options that choose runs."""
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.name != "where"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _FILTERS.items()
    ]

    async def run(*args: Any, **options: Any) -> None:
        given = {name: options.pop(name) for name in _FILTERS}
        where = Where(
            tags=parse_tags(given.pop("tag")),
            created_after=given.pop("since"),
            created_before=given.pop("until"),
            **given,
        )
        await command(*args, where=where, **options)

    run.__doc__, run.__name__ = command.__doc__, command.__name__
    run.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return run
