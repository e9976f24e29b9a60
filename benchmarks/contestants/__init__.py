"""Who is measured: each in a file of its own, behind the interface in `base`."""

from __future__ import annotations

from benchmarks.contestants.absurd import Absurd
from benchmarks.contestants.base import Contestant
from benchmarks.contestants.dbos import Dbos
from benchmarks.contestants.floor import Floor
from benchmarks.contestants.ours import Durable, DurableOnSQLite
from benchmarks.contestants.pgqueuer import Pgqueuer
from benchmarks.contestants.procrastinate import Procrastinate

CONTESTANTS: dict[str, type[Contestant]] = {
    contestant.name: contestant
    for contestant in (Durable, Dbos, Absurd, Procrastinate, Pgqueuer, Floor, DurableOnSQLite)
}
"""By name; durable first, which the others are compared with."""
