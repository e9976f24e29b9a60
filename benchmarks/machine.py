"""The machine that is measured on: what it is, and what its processes have used."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

from durable.testing.postgres import own_postgres


def processes_cpu(pids: Iterable[int]) -> float:
    """User and system seconds of the processes that still live, their ended children included."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def server_pids(postmaster: int | None) -> list[int]:
    if postmaster is None:
        return []
    children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
    return [postmaster, *map(int, children)]


def resident(pid: int) -> float:
    """Megabytes of memory that the process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def described() -> str:
    """Processor, memory, system: nothing that names one machine."""
    model, memory = platform.machine(), 0.0
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text()):
            model = found[1]
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    return f"{os.cpu_count()} processors ({model}), {memory:.0f} GiB of memory, {platform.system()}"


@contextlib.contextmanager
def store_url(kind: str) -> Generator[tuple[str, int | None]]:
    """A new store of that kind, and the process id of its server."""
    if kind == "postgres":
        with own_postgres() as server:
            yield server.database("bench"), server.pid
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/bench.db", None
    else:
        yield "memory://", None
