"""The differential model in its full size: programs of their own, whose answers become a line of the table."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys

from tests.chaos.arena import Place
from tests.chaos.report import ROOT, Row, gate

MODEL = "differential model"
PROGRAM = "tests.model"


async def differential(_: Place, *, operations: int) -> Row:
    """Streams of store operations against memory, SQLite, Postgres and an oracle: same answers, same snapshots."""
    fault = "streams of operations against memory, SQLite, Postgres and an oracle"
    seeds = [secrets.randbelow(1_000_000) for _ in range(os.cpu_count() or 1)]  # a core each, and others each time
    with gate(MODEL, fault, "operations", seeds=", ".join(map(str, seeds))) as row:
        share = -(-operations // len(seeds))
        outputs = await asyncio.gather(*(_output(row, seed, share) for seed in seeds))
        row.n = share * len(seeds)
        row.remarks = "; ".join(lines[-1].replace("|", "/") for lines in outputs if lines)
    return row


async def _output(row: Row, seed: int, operations: int) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", PROGRAM, "--operations", str(operations), "--seed", str(seed)),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = (await process.communicate())[0]
    lines = output.decode(errors="replace").strip().splitlines()
    if process.returncode:
        again = [line for line in lines if "--stream" in line]
        row.violations += [f"divergence: {line}" for line in again + lines[-20:]] or ["divergence: it says nothing"]
    return lines
