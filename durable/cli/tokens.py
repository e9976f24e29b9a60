"""``durable token``: who may use the HTTP runtime."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import typer
from pydantic import BaseModel

from durable.cli.loading import connected
from durable.cli.options import JsonOption, parse_duration
from durable.cli.output import err, moment, out, table, write_json
from durable.clock import HostClock
from durable.engine import Engine
from durable.errors import InvalidArgument
from durable.reports import Scope


class ShownToken(BaseModel):
    """A token, as ``list --json`` writes it."""

    name: str
    scopes: Sequence[Scope]
    created_at: datetime
    expires_at: datetime | None


class MadeToken(BaseModel):
    """A token with its secret, as ``create --json`` writes it."""

    name: str
    secret: str
    scopes: Sequence[Scope]
    expires_at: datetime | None


def add_to(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Tokens for the HTTP runtime.")
    group.command("create")(connected(create))
    group.command("list")(connected(list_tokens))
    group.command("revoke")(connected(revoke))
    app.add_typer(group, name="token")


async def create(
    engine: Engine,
    name: Annotated[str, typer.Argument(help="Whose it is, such as billing-service.")],
    scope: Annotated[list[Scope], typer.Option("--scope", "-s", help="What its holder may do; several times.")],
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DURATION", help="After so long, such as 90d. Default: never.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a token, and print its secret: it is stored as a hash, and cannot be shown again.

    read: runs, timelines and schedules without payloads. read:payload: with them. trigger: trigger and signal.
    operate: cancel, pause, resume, retry, schedules. admin: everything.
    """
    made = await engine.create_token(name, scope, None if expires is None else parse_duration(expires))
    if as_json:
        write_json(
            MadeToken(name=made.name, secret=made.secret, scopes=sorted(made.scopes), expires_at=made.expires_at)
        )
        return
    until = "until it is revoked" if made.expires_at is None else f"until {moment(made.expires_at)}"
    err.print(f"Token {made.name!r} may {', '.join(sorted(made.scopes))} {until}. Keep it now: it is not shown again.")
    out.print(made.secret)


async def list_tokens(engine: Engine, as_json: JsonOption = False) -> None:
    """List the tokens; never a secret."""
    tokens = await engine.tokens()
    if as_json:
        write_json(
            [
                ShownToken(name=t.name, scopes=sorted(t.scopes), created_at=t.created_at, expires_at=t.expires_at)
                for t in tokens
            ]
        )
    elif not tokens:
        err.print("There is no token.")
    else:
        out.print(
            table(
                ("name", "scopes", "created", "expires"),
                [(t.name, ", ".join(sorted(t.scopes)), moment(t.created_at), _end(t.expires_at)) for t in tokens],
            )
        )


def _end(expires_at: datetime | None) -> str:
    expired = expires_at is not None and expires_at <= HostClock().now()
    return f"{moment(expires_at)} (expired)" if expired else moment(expires_at)


async def revoke(engine: Engine, name: Annotated[str, typer.Argument(help="Of the token.")]) -> None:
    """Refuse a token from now on."""
    if not await engine.revoke_token(name):
        raise InvalidArgument(f"there is no token {name!r}")
    out.print(f"Token {name!r} is revoked.")
