"""The part of the seam that is about schedules; ``Store`` is this and the rest.

Decisions are in ``scheduling``; a store keeps what it is told, compares, and writes. There is one write: a schedule in
place of what was read of it, with the runs of the ticks that are fired by it. So declaring, pausing, firing, triggering
by hand and filling a gap are one transition with one guard, and two who do any of it at the same time cannot both.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol

from durable.schedules import Due, Found, Schedule, ScheduleWrite, Ticked


class Timetable(Protocol):
    """Schedules and their ticks, as every store keeps them. The rules of ``store`` hold here too."""

    async def write_schedules(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        """Apply each write whole or not at all, in one transaction; whether it was applied, in order.

        A write applies when the stored schedule is the one that it names as ``before``: with the same ``created_at``
        (it was not deleted and made anew), ``revision`` and ``next_at``; and with ``before=None`` when there is none
        of that name. Of two writes with the same ``before`` one applies, and the other changes nothing. A store may
        also refuse while somebody else is writing the schedule. Names differ within one call.

        It stores ``schedule`` as it is (``spec`` as ``scheduling.to_json`` writes it), and for each of ``runs`` first
        the tick, unique by its schedule and nominal time, then the run as ``create_runs`` does, with its concurrency
        key and policy. A tick that has its row is passed over: its run is not created, and the rest of the write
        applies. ``revision`` guards against that already; the row is what two programs with different ideas of a
        schedule cannot both insert.

        Sent again after it was applied: a write with runs, of which a tick has its row with that run, is answered True
        and changes nothing. One without runs may be answered False: who reads again finds what was wanted.

        A tick's row lives as long as its run: ``prune`` and ``delete`` remove both. No tick that has been fired can be
        fired by the scheduler again, whatever became of its row, for ``next_at`` never goes back to it (``scheduling``
        sees to that); a backfill of ticks whose runs were pruned or deleted fires them again. Deleting a schedule
        leaves its runs and their ticks alone.

        Raises:
            PayloadError: The database refuses the data of one write; nothing was written.
        """
        ...

    async def delete_schedule(self, name: str) -> bool:
        """Delete the schedule; False when there is none. Its runs go on."""
        ...

    async def find_schedules(self, names: Sequence[str]) -> list[Found]:
        """Those of the schedules that exist, in any order.

        ``Previous``: the runs with ``schedule`` equal to the name that are not terminal, in order of their ids.
        ``queued`` are those that are in the line of their concurrency key and not its first; the others are ``active``.
        """
        ...

    async def list_schedules(self, limit: int, after: str | None) -> list[Schedule]:
        """By name (in the order of code points), at most ``limit``, from the first name after ``after`` on."""
        ...

    async def due_schedules(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        """The schedules with ``due_at`` not after the store's now, by (``due_at``, name), behind ``after``.

        With the runs of each that have not ended, and with the time at which the next one will be due. Its cost
        depends on what is due, not on how many schedules there are.
        """
        ...

    async def ticks(self, name: str, since: datetime, until: datetime, limit: int) -> list[Ticked]:
        """The ticks of the schedule that have a row, from ``since`` on and before ``until``, in order."""
        ...
