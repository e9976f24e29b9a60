"""The long forms: ``python -m tests.chaos [--missing] [gate …]``, ``make chaos``. Each gate writes its line.

Without names it runs every gate, and ends with an error when one has found something. What was measured before stays in
the table; ``--missing`` leaves out the gates that have found nothing at this commit, to go on where it was stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from durable.testing.postgres import own_postgres
from tests.chaos import gates_database, gates_link, gates_load, gates_model, gates_soak, gates_values, gates_workers
from tests.chaos.arena import Place
from tests.chaos.disk import may_mount
from tests.chaos.report import FAILED, HEADER, PAGE, Row, green, write
from tests.chaos.workers import PROGRAM
from tests.processes.nursery import Nursery

PATIENCE = 60.0
"""Seconds without the end of any run after which a gate takes what is left for lost."""


class Gate(NamedTuple):
    """One gate in its full size.

    Attributes:
        title: Its name in the table.
        long: Runs it.
        control: Runs the control of what not every machine can do, so that the suite cannot have it; it must be red.
    """

    title: str
    long: Callable[[Place], Awaitable[Row]]
    control: Callable[[Place], Awaitable[Row]] | None = None


GATES: dict[str, Gate] = {
    "kills": Gate(
        gates_workers.KILLS,
        partial(gates_workers.kills, runs=10_000, kills=400, workers=4, at_once=40, patience=PATIENCE, within=2.0),
    ),
    "stops": Gate(
        gates_workers.STOPS,
        partial(gates_workers.stops, runs=3_000, stops=60, workers=4, at_once=40, patience=PATIENCE),
    ),
    "zombies": Gate(gates_workers.ZOMBIES, partial(gates_workers.zombies, each=10, rounds=8)),
    "postgres": Gate(
        gates_database.RESTARTS,
        partial(
            gates_database.postgres_kills,
            runs=10_000,
            kills=30,
            workers=4,
            at_once=40,
            patience=PATIENCE,
            within=5.0,
        ),
    ),
    "terminations": Gate(
        gates_database.TERMINATIONS,
        partial(gates_database.terminations, runs=10_000, waves=200, workers=4, at_once=40, patience=PATIENCE),
    ),
    "commits": Gate(
        gates_link.COMMITS,
        partial(
            gates_link.lost_commits,
            runs=10_000,
            share=0.05,
            workers=2,
            at_once=20,
            patience=PATIENCE,
            least=20_000,
        ),
    ),
    "link": Gate(
        gates_link.LINK,
        partial(gates_link.bad_link, seconds=300, latency=0.2, lease=5.0, at_once=20, patience=2 * PATIENCE),
    ),
    "disk": Gate(
        gates_database.DISK,
        partial(
            gates_database.full_disk, runs=4_000, megabytes=320, at_once=40, within=30.0, workers=3, patience=PATIENCE
        ),
        partial(
            gates_database.full_disk,
            runs=1_000,
            megabytes=320,
            at_once=40,
            within=30.0,
            workers=2,
            patience=5,
            without="believes",
        ),
    ),
    "values": Gate(gates_values.VALUES, partial(gates_values.poison_values, workers=2, patience=PATIENCE)),
    "names": Gate(gates_values.NAMES, gates_values.hostile_names),
    "loops": Gate(gates_load.LOOPS, partial(gates_load.blocked_loops, runs=60, workers=4, lease=2.0)),
    "timers": Gate(gates_load.TIMERS, partial(gates_load.timers, number=50_000, ahead=240, workers=2)),
    "keys": Gate(gates_load.KEYS, partial(gates_load.equal_keys, keys=100, callers=200, engines=8)),
    "clocks": Gate(
        gates_load.CLOCKS,
        partial(gates_load.wrong_clocks, runs=200, skew=600),
        partial(gates_load.wrong_clocks, runs=12, skew=600, without="hosts_clock"),
    ),
    "model": Gate(gates_model.MODEL, partial(gates_model.differential, operations=200_000)),
    "soak": Gate(
        gates_soak.SOAK,
        partial(gates_soak.soak, seconds=1200, workers=3, at_once=60, every=10.0, patience=PATIENCE),
    ),
}
"""The gates at their full sizes, in the order of the table."""


def impossible(name: str) -> str:
    """Why a gate cannot be run on this machine; empty when it can."""
    if name == "disk" and not may_mount():
        return "this machine lets us mount no small disk"
    if name == "clocks" and gates_load.faketime() is None:
        return "libfaketime is not installed (`LIBFAKETIME` may name it)"
    if name == "model" and importlib.util.find_spec(gates_model.PROGRAM) is None:
        return f"there is no {gates_model.PROGRAM}"
    return ""


async def run(names: list[str], page: Path) -> bool:
    """Run these gates, one after the other, and write each one's line; False when one has found something."""
    clean, began = True, time.monotonic()
    with own_postgres() as server, Nursery(PROGRAM) as nursery:
        print(server.line, HEADER, sep="\n", flush=True)
        place = Place(server, nursery)
        for number, name in enumerate(names, 1):
            if reason := impossible(name):
                print(f"    {GATES[name].title}: not run, {reason}")
                continue
            row = await measured(name, place)
            await asyncio.to_thread(write, page, [row])
            clean = clean and not row.violations
            minutes = (time.monotonic() - began) / 60
            print(f"    {number} of {len(names)} gates after {minutes:.1f} min", flush=True)
    return clean


async def measured(name: str, place: Place) -> Row:
    """What a gate has found; and that its control found something, where only this program can run it."""
    gate = GATES[name]
    row = await gate.long(place)
    assert row.gate == gate.title
    if gate.control is not None:
        print("    its control, without the guard that the gate is about; it has to find something:")
        found = (await gate.control(place)).violations
        if all(violation.startswith(f"{FAILED}:") for violation in found):
            row.violations.append("control: it has found nothing, so the gate proves nothing")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("gates", nargs="*", metavar="gate", help=f"of: {', '.join(GATES)}")
    parser.add_argument("--missing", action="store_true", help="only those that have no green line of this commit")
    asked = parser.parse_args()
    if unknown := set(asked.gates) - GATES.keys():
        parser.error(f"no such gate: {', '.join(sorted(unknown))}; there are {', '.join(GATES)}")
    names = asked.gates or list(GATES)
    if asked.missing:
        done = green(PAGE, [GATES[name].title for name in names])
        names = [name for name in names if GATES[name].title not in done]
    for noisy in ("psycopg", "durable"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what the gates break themselves is no news
    if not asyncio.run(run(names, PAGE)):
        sys.exit(1)


if __name__ == "__main__":
    main()
