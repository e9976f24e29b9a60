"""The differential model in its full size: a program of its own, whose answer becomes a line of the table."""

from __future__ import annotations

import asyncio
import sys

from tests.chaos.arena import Place
from tests.chaos.report import ROOT, Row, gate

MODEL = "differential model"
PROGRAM = "tests.model"


async def differential(_: Place, *, operations: int) -> Row:
    """One stream of store operations against memory, SQLite, Postgres and an oracle: same answers, same snapshots."""
    fault = "one stream of operations against memory, SQLite, Postgres and an oracle"
    with gate(MODEL, fault, "operations", seeds="its own") as row:
        command = [sys.executable, "-m", PROGRAM, "--operations", str(operations)]
        process = await asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output = (await process.communicate())[0]
        lines = output.decode(errors="replace").strip().splitlines()
        row.n = operations
        row.remarks = lines[-1].replace("|", "/") if lines else ""
        if process.returncode:
            row.violations += [f"divergence: {line}" for line in lines[-20:]] or ["divergence: it says nothing"]
    return row
