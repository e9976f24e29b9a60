"""The findings that every store words alike: of runs and workers."""

from __future__ import annotations

from collections.abc import Sequence

from durable.reports import Finding

_SHOWN = 5


def counted(count: int, what: str) -> str:
    """``1 run``, ``2 runs``."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def stranded(run_ids: Sequence[str]) -> Finding:
    """Runs that nobody holds, that are not due, and that nothing will wake."""
    if not run_ids:
        return Finding("waiting", "ok", "every run that rests has a reason to wait")
    shown = ", ".join(run_ids[:_SHOWN]) + (", …" if len(run_ids) > _SHOWN else "")
    return Finding(
        "waiting",
        "error",
        f"{counted(len(run_ids), 'run')} that no worker holds, that is not due by time, and that nothing will "
        f"wake: {shown}",
        "repair makes them ready, and they go on where they stood. Somebody has changed the tables by hand, or this is "
        "a bug of durable: please report it with their timelines",
        repairable=True,
        count=len(run_ids),
    )


def abandoned(workers: int, runs: int) -> Finding:
    """Workers whose leases have expired, and the runs that they held."""
    if not workers:
        return Finding("leases", "ok", "every registered worker has renewed its lease")
    return Finding(
        "leases",
        "warning",
        f"{counted(workers, 'worker')} whose lease has expired, with {counted(runs, 'run')} in it",
        "start a worker: it takes the runs over within seconds; or repair, which makes them ready",
        repairable=True,
        count=workers,
    )


def missing(names: Sequence[str], what: str) -> Finding:
    """Indexes, or other parts of the schema, that are not there or not usable."""
    if not names:
        return Finding("indexes", "ok", f"all {what} are there")
    return Finding(
        "indexes",
        "error",
        f"missing or unusable: {', '.join(names)}",
        f"repair makes the {what} anew, with a role that may change the schema",
        repairable=True,
        count=len(names),
    )
