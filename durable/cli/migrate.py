"""``durable migrate``: bring the schema up to date, show the SQL that would, or only say whether it is."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from durable.cli.loading import DatabaseOption, EngineOption, SchemaOption, choose_engine
from durable.cli.output import err, out
from durable.engine import Engine
from durable.errors import SchemaTooNew


def add_to(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(migrate)


def migrate(
    sql: Annotated[bool, typer.Option("--sql", help="Only print the SQL, for psql or sqlite3.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 when it is behind.")] = False,
    present: Annotated[
        int | None,
        typer.Option(
            "--from", min=0, metavar="VERSION", help="With --sql: from this version on, without asking the database."
        ),
    ] = None,
    engine: EngineOption = None,
    database: DatabaseOption = None,
    schema: SchemaOption = "durable",
) -> None:
    """Bring the database schema up to date. Safe from many processes at once."""
    if sql and check:
        raise typer.BadParameter("--sql and --check exclude each other")
    if present is not None and not sql:
        raise typer.BadParameter("--from goes with --sql")
    chosen = choose_engine(engine, database, schema, create=not check)
    if sql:
        _print_sql(chosen, present)
    elif check:
        _check(chosen)
    else:
        asyncio.run(_migrate(chosen))


def _print_sql(engine: Engine, present: int | None) -> None:
    script = engine.migration_script(_versions(engine)[0] if present is None else present)
    if not script:
        err.print("The schema is up to date: there is nothing to do.")
    out.file.write(script)


def _check(engine: Engine) -> None:
    found, needed = _versions(engine)
    if found < needed:
        out.print(f"The schema has version {found}, this code needs {needed}: run durable migrate.")
        raise typer.Exit(1)
    out.print(f"The schema is up to date: version {found}.")


def _versions(engine: Engine) -> tuple[int, int]:
    found, needed = asyncio.run(engine.schema_version())
    if found > needed:
        raise SchemaTooNew(f"the schema has version {found}, this code knows {needed}: deploy a newer version")
    return found, needed


async def _migrate(engine: Engine) -> None:
    found, needed = await engine.schema_version()
    await engine.migrate()  # also when it seems current: it refuses a schema that is too new
    if found == needed:
        out.print(f"The schema is up to date: version {found}.")
    else:
        out.print(
            f"The schema was migrated from version {found} to {needed}."
            if found
            else f"The schema was made: version {needed}."
        )
