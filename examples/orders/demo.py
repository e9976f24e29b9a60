"""``make demo``: real orders, two worker processes, one of them killed half-way, and the books at the end.

    python -m examples.orders.demo [--orders N] [--seed N] [--keep]

``DATABASE_URL`` names the database, such as ``postgresql://user@host/db``; without it a SQLite file is made. Exit
codes: 0 the books balance, 1 they do not (or the demo did not come to its end), 2 it could not start.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from psycopg.sql import SQL, Identifier
from rich.console import Console

from durable import ConfigurationError, DurableError, Engine, InvalidArgument
from durable.errors import without_password
from examples.orders.accounting import audit
from examples.orders.board import Board, Figures
from examples.orders.crew import ChildEnded, Crew
from examples.orders.models import read_orders
from examples.orders.report import show
from examples.orders.scenario import Scenario, Unusable
from examples.orders.workflow import process_order

_PATIENCE = 120.0
"""Seconds after which the demo gives up. It takes about 25."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where one demo takes place."""

    orders: int | None
    seed: int
    keep: bool
    folder: Path
    database: str  # URL
    schema: str  # of this demo alone, on Postgres

    @property
    def on_postgres(self) -> bool:
        return self.database.startswith(("postgresql://", "postgres://"))


async def demo(setting: Setting, console: Console) -> bool:
    """One demo; returns whether the books balance."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    for number in (signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    orders = read_orders(limit=setting.orders)
    engine = Engine(setting.database, workflows=[process_order], schema=setting.schema)
    async with engine.client():
        with (
            _schema_removed(setting),
            Crew(setting.folder, setting.database, setting.schema, setting.seed) as crew,
        ):
            service = crew.start_service()
            figures = Figures(len(orders), "Postgres" if setting.on_postgres else "SQLite", service.pid)
            with Board(console, figures) as board:
                board.event(f"{service.name} started, pid {service.pid}; it fails on purpose")
                ending = await Scenario(engine, orders, crew, board, figures).play(_PATIENCE)
            books = audit(crew.ledger, orders, ending.ends)
    show(console, books, ending.twice, ending.kill, ending.seconds)
    return books.balanced


@contextmanager
def _schema_removed(setting: Setting) -> Generator[None]:
    """In the end, remove what the demo has made in the user's database."""
    try:
        yield
    finally:
        if setting.on_postgres and not setting.keep:
            statement = SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(setting.schema))
            with psycopg.connect(setting.database, autocommit=True, connect_timeout=5) as connection:
                connection.execute("SET lock_timeout = '5s'")
                connection.execute(statement)


def main() -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(prog="demo", description="Orders, two workers, a kill, and the books at the end.")
    parser.add_argument("--orders", type=int, help="only the first so many (default: all 500)")
    parser.add_argument("--seed", type=int, default=7, help="of the service's failures (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the database, the ledger and the logs")
    args = parser.parse_args()
    if args.orders is not None and args.orders < 1:
        parser.error("--orders must be at least 1")
    folder = Path(tempfile.mkdtemp(prefix="durable-demo-"))
    database = os.environ.get("DATABASE_URL") or f"sqlite:///{folder / 'durable.db'}"
    logging.basicConfig(filename=folder / "demo.log", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    setting = Setting(args.orders, args.seed, args.keep, folder, database, f"durable_demo_{secrets.token_hex(4)}")
    code = 1
    try:
        code = _code(setting)
    finally:
        # What does not balance is kept: the ledger and the logs are the evidence.
        if args.keep or code == 1:
            print(f"Kept: {folder}" + (f", schema {setting.schema}" if args.keep and setting.on_postgres else ""))
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


def _code(setting: Setting) -> int:
    if setting.database.startswith("memory:"):
        return _say("two worker processes cannot share memory: use postgresql://… or sqlite:///…", 2)
    try:
        return 0 if asyncio.run(demo(setting, Console())) else 1
    except (ConfigurationError, InvalidArgument, Unusable) as error:
        return _say(f"cannot use the database: {error}", 2)
    except (DurableError, ChildEnded, psycopg.Error) as error:
        return _say(str(error), 1)
    except KeyboardInterrupt:
        return _say("stopped; every process it had started has ended", 130)
    except asyncio.CancelledError:
        return _say("stopped by a signal; every process it had started has ended", 143)


def _say(text: str, code: int) -> int:
    """One line, whatever a driver has put into the message, and no password."""
    print(f"demo: {without_password(' '.join(text.split()))}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
