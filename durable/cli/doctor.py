"""``durable doctor``: what is wrong with the database and the runs in it, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.text import Text

from durable.cli.loading import DatabaseOption, EngineOption, SchemaOption, choose_engine
from durable.cli.options import JsonOption
from durable.cli.output import out, visible, write_json
from durable.engine import Engine
from durable.errors import without_password
from durable.reports import Finding

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "error": ("✗", "bold red")}


class Diagnosis(BaseModel):
    """What ``--json`` writes."""

    healthy: bool
    repaired: Sequence[str]
    findings: Sequence[Finding]


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be; safe while workers work.")] = False,
    as_json: JsonOption = False,
    engine: EngineOption = None,
    database: DatabaseOption = None,
    schema: SchemaOption = "durable",
) -> None:
    """Look for what is wrong with the database and the runs. Exit code 1 when there is an error."""
    chosen = choose_engine(engine, database, schema)
    findings, repaired = asyncio.run(_examined(chosen, repair))
    healthy = all(finding.severity != "error" for finding in findings)
    if as_json:
        write_json(Diagnosis(healthy=healthy, repaired=repaired, findings=findings))
    else:
        _show(findings, repaired)
    if not healthy:
        raise typer.Exit(1)


async def _examined(engine: Engine, repair: bool) -> tuple[list[Finding], list[str]]:
    findings = await engine.diagnose()
    if not repair or not any(finding.repairable for finding in findings):
        return findings, []
    repaired = await engine.repair()
    return await engine.diagnose(), repaired


def _show(findings: Sequence[Finding], repaired: Sequence[str]) -> None:
    for line in repaired:
        out.print(Text("repaired ", style="green") + visible(line))
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        mark, style = _MARKS[finding.severity]
        out.print(Text(f"{mark} ", style=style) + f"{finding.check:{width}}  {_plain(finding.message)}")
        if finding.remedy:
            out.print(f"  {'':{width}}  → {_plain(finding.remedy)}")
    if any(finding.repairable for finding in findings):
        out.print("durable doctor --repair puts right what it can.")


def _plain(text: str) -> str:
    """On one line: what a driver says may have several."""
    return visible(" ".join(without_password(text).split()))
