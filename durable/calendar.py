"""What any process does with schedules: declare, look, pause, trigger by hand, fill gaps. Workers fire them.

Every change reads the schedule, asks ``scheduling`` what becomes of it, and writes that where nothing has changed
meanwhile; else it begins again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal, Unpack

from durable import scheduling
from durable.committer import resending
from durable.declarations import DateOptions, ScheduleOptions, declaration, run_of
from durable.errors import InvalidArgument, ScheduleNotFound, StoreUnavailable
from durable.handle import RunHandle
from durable.messenger import Messenger
from durable.model import NewRun
from durable.names import check_name, check_note
from durable.schedules import Found, Overlap, Schedule, ScheduleSpec, ScheduleWrite
from durable.scheduling import UNDECLARED
from durable.store import Hint, Store
from durable.workflow import Workflow

_log = logging.getLogger("durable.schedules")

Undeclared = Literal["report", "pause", "delete"]

_PAGE = 500

_MICROSECOND = timedelta(microseconds=1)

_BACKFILL = 10_000
"""Ticks that one backfill fires at most."""

_AT_ONCE = 100
"""Runs that one transaction of it creates."""

_PATIENCE = 10.0
"""Seconds for which a change is sent again while the store does not answer, or others change the same schedule."""

_BETWEEN = 0.01
"""Seconds after which a change that others came before is tried again."""


class Calendar(Messenger):
    """A client that also keeps schedules.

    Args:
        store: Where the schedules are.
        workflows: What can be scheduled; none means: anything, by its name.
        program: The name under which schedules are declared in code.
    """

    def __init__(self, store: Store, workflows: Iterable[Workflow[Any, Any]], program: str) -> None:
        self._program = check_name(program, "program")
        self._declared: dict[str, ScheduleSpec] = {}
        super().__init__(store, workflows)

    # -- declaring --------------------------------------------------------------------------------

    def register(self, *workflows: Workflow[Any, Any]) -> None:
        super().register(*workflows)
        for workflow in workflows:
            for spec in workflow.schedules:
                self._declare(spec)

    def declare_schedule(self, workflow: Workflow[Any, Any] | str, **options: Unpack[ScheduleOptions]) -> None:
        """Declare a schedule in code, before the start: the worker's start creates it, or changes it to this.

        The same as ``@workflow(schedule=…)``, for options that are known later. One that is not declared any more is
        reported at the next start: see ``Engine(undeclared_schedules=…)``.

        Args:
            workflow: What is run: a workflow of this engine, or its name.
            options: See ``ScheduleOptions``.

        Raises:
            InvalidArgument: An argument is out of its range, the name is declared twice, or the engine is running.
            UnknownWorkflow: The engine has workflows, and this is none of them.
            PayloadError: The input does not fit the workflow's declared type.
        """
        if self._connected:
            raise InvalidArgument("schedules are declared before the engine starts; afterwards: engine.schedule()")
        self._declare(declaration(self._find(workflow, options.get("version")) or workflow, options))

    def _declare(self, spec: ScheduleSpec) -> None:
        if spec.name in self._declared:
            raise InvalidArgument(f"schedule {spec.name!r} is declared twice: give each its name=")
        self._declared[spec.name] = replace(spec, declared_by=self._program)

    async def schedule(self, workflow: Workflow[Any, Any] | str, **options: Unpack[ScheduleOptions]) -> Schedule:
        """Create a schedule, or change the one of this name to what is given here; what is not given is the default.

        While its dates stay the same so does its next tick, and an operator's pause stays in any case. It is not tied
        to the code: it fires until it is paused or deleted.

        Args:
            workflow: The workflow; or its name, when the engine knows it or is a client without any.
            options: ``cron`` or ``every``, and the others of ``ScheduleOptions``.

        Raises:
            InvalidArgument: An argument is out of its range, or the rule can never fire.
            UnknownWorkflow: The engine has workflows, and this is none of them.
            PayloadError: The input does not fit the workflow's declared type.
            StoreUnavailable: The store did not answer; asking again is safe.
        """
        self._check_connected()
        spec = declaration(self._find(workflow, options.get("version")) or workflow, options)
        (made,) = await self._put([spec])
        return made

    async def _put(self, specs: Sequence[ScheduleSpec]) -> list[Schedule]:
        """Have these schedules stand as they are given, in order."""
        names, deadline = [spec.name for spec in specs], time.monotonic() + _PATIENCE
        while True:
            stored = {one.schedule.spec.name: one.schedule for one in await self._store.find_schedules(names)}
            now = await self._now()
            new = [scheduling.declared(stored.get(spec.name), spec, now) for spec in specs]
            writes = [ScheduleWrite(one, stored.get(one.spec.name)) for one in new if one is not None]
            if not writes or all(await self._store.write_schedules(writes)):
                if writes:
                    self._changed_schedules()
                return [one or stored[spec.name] for one, spec in zip(new, specs, strict=True)]
            await self._again(deadline)

    async def _declare_all(self, undeclared: Undeclared) -> None:
        """At the start of a worker: put what the code declares, and see to what it does not declare any more."""
        specs = list(self._declared.values())
        for start in range(0, len(specs), _PAGE):
            await self._put(specs[start : start + _PAGE])
        for schedule in await self.schedules():
            name = schedule.spec.name
            if schedule.spec.declared_by == self._program and name not in self._declared:
                await self._undeclared(schedule, undeclared)

    async def _undeclared(self, schedule: Schedule, undeclared: Undeclared) -> None:
        name = schedule.spec.name
        if undeclared == "delete":
            await self.delete_schedule(name)
            _log.warning("schedule %r is deleted: program %r does not declare it any more", name, self._program)
        elif undeclared == "pause" and schedule.paused is None:
            await self.pause_schedule(name, UNDECLARED)
            _log.warning("schedule %r is paused: program %r does not declare it any more", name, self._program)
        elif undeclared == "report" and schedule.fires:
            _log.warning(
                "schedule %r still fires workflow %r, and program %r does not declare it any more: declare it, call "
                "delete_schedule() or pause_schedule(), or choose Engine(undeclared_schedules=...). When another "
                "program declares it, give the engines different program= names",
                *(name, schedule.spec.workflow, self._program),
            )

    # -- looking ----------------------------------------------------------------------------------

    async def schedules(self) -> list[Schedule]:
        """All schedules, by name."""
        self._check_connected()
        found: list[Schedule] = []
        while True:
            page = await self._store.list_schedules(_PAGE, found[-1].spec.name if found else None)
            found += page
            if len(page) < _PAGE:
                return found

    async def get_schedule(self, name: str) -> Schedule:
        """The schedule of this name, with what it has fired and skipped.

        Raises:
            ScheduleNotFound: There is none.
        """
        return (await self._find_schedule(name)).schedule

    async def next_ticks(self, name: str | None = None, n: int = 10, **dates: Unpack[DateOptions]) -> list[datetime]:
        """The next ``n`` nominal times, in UTC: a preview; of a schedule, or of dates that none has yet.

        Of one that is paused or switched off: those that it would have.

        Args:
            name: The schedule.
            n: How many, 1 to 1,000; there are fewer when the rule or ``end_at`` leaves no more.
            dates: Without a name: ``cron`` or ``every``, ``timezone``, ``start_at``, ``end_at``.

        Raises:
            ScheduleNotFound: There is none of this name.
            InvalidArgument: An argument is out of its range, or the rule can never fire.
        """
        self._check_connected()
        if (name is None) == (not dates):
            raise InvalidArgument("give the name of a schedule, or cron= or every=")
        if type(n) is not int or not 1 <= n <= 1000:
            raise InvalidArgument(f"n must be a whole number from 1 to 1,000, not {n!r}")
        if name is None:
            preview = scheduling.schedule_spec(name="preview", workflow="preview", version="1", **dates)
            return scheduling.upcoming(preview, await self._now(), n)
        schedule = await self.get_schedule(name)
        if schedule.next_at is None:
            return scheduling.upcoming(schedule.spec, await self._now(), n)
        return [schedule.next_at, *scheduling.upcoming(schedule.spec, schedule.next_at, n)][:n]

    # -- changing ---------------------------------------------------------------------------------

    async def pause_schedule(self, name: str, note: str = "") -> Schedule:
        """Fire no more until ``resume_schedule``; declaring it again does not resume it. Its runs go on.

        Args:
            name: The schedule.
            note: Why, for whoever finds it paused; at most 512 bytes.

        Raises:
            ScheduleNotFound: There is none of this name.
            StoreUnavailable: The store did not answer; asking again is safe.
        """
        note = check_note(note, "note")
        return await self._change(name, lambda found, now: scheduling.paused(found.schedule, note, now))

    async def resume_schedule(self, name: str) -> Schedule:
        """Fire again, from the first tick after now: what a pause covers is neither fired nor counted.

        Raises:
            ScheduleNotFound: There is none of this name.
            StoreUnavailable: The store did not answer; asking again is safe.
        """
        return await self._change(name, lambda found, now: scheduling.resumed(found.schedule, now))

    async def delete_schedule(self, name: str) -> None:
        """Delete the schedule. Its runs go on, and stay.

        Raises:
            ScheduleNotFound: There is none of this name.
        """
        self._check_connected()
        if not await self._store.delete_schedule(check_name(name, "schedule name")):
            raise _not_found(name)
        self._changed_schedules()

    async def trigger_schedule(self, name: str) -> RunHandle[Any] | None:
        """Fire the schedule once, now, whether it is paused or not; its next tick stays.

        Returns:
            The run; None when the overlap policy skips it, because an earlier run has not ended.

        Raises:
            ScheduleNotFound: There is none of this name.
            StoreUnavailable: The store did not answer; whether it fired is unknown.
        """

        def fire(found: Found, now: datetime) -> ScheduleWrite:
            spec = found.schedule.spec
            firings, _, skipped = scheduling.place(spec, [scheduling.by_hand(found.schedule, now)], found.previous)
            return scheduling.fired(found.schedule, [run_of(spec, one.tick, now) for one in firings], skipped, now)

        write = await self._write(name, fire)
        handles = () if write is None else self._fired(write.runs)
        return handles[0] if handles else None

    async def backfill(
        self, name: str, since: datetime, until: datetime, *, overlap: Literal["queue", "allow"] = "queue"
    ) -> list[RunHandle[Any]]:
        """Fire the ticks of a time that has passed, such as one in which the schedule was paused or did not exist.

        A tick that was fired is not fired again, as long as its run is there; nor are ticks that are still to be fired
        anyway. So doing it twice is safe.

        Args:
            name: The schedule.
            since: The first tick that is fired; aware.
            until: Ticks before it are fired; aware. Ticks of the future are not.
            overlap: ``queue`` (default): one run after the other, and after those that the schedule has. ``allow``:
                all at once.

        Returns:
            The runs, oldest tick first.

        Raises:
            ScheduleNotFound: There is none of this name.
            InvalidArgument: A time has no time zone, or there are more than 10,000 ticks.
            StoreUnavailable: The store did not answer; asking again is safe.
        """
        try:
            policy = {"queue": Overlap.QUEUE, "allow": Overlap.ALLOW}[overlap]
        except KeyError:
            raise InvalidArgument(f"overlap must be 'queue' or 'allow', not {overlap!r}") from None
        handles: list[RunHandle[Any]] = []
        missing = await self._missing(name, since, until)
        for start in range(0, len(missing), _AT_ONCE):
            handles += await self._fill(name, missing[start : start + _AT_ONCE], policy)
        return handles

    async def _missing(self, name: str, since: datetime, until: datetime) -> list[datetime]:
        """The ticks of the range that were not fired, and will not be."""
        found, now = await self._find_schedule(name), await self._now()
        spec = found.schedule.spec
        ticks = scheduling.between(spec, since, until, _BACKFILL + 1)
        if len(ticks) > _BACKFILL:
            raise InvalidArgument(f"schedule {name!r} has more than {_BACKFILL:,} ticks in this range: do it in parts")
        return await self._unfired(found.schedule, ticks, now)

    async def _unfired(self, schedule: Schedule, ticks: Sequence[datetime], now: datetime) -> list[datetime]:
        end = now if schedule.next_at is None else min(now, schedule.next_at)
        ticks = [tick for tick in ticks if tick < end]
        if not ticks:
            return []
        known: set[datetime] = set()
        since = ticks[0]
        while page := await self._store.ticks(schedule.spec.name, since, end, _PAGE):
            known.update(tick.at for tick in page)
            since = page[-1].at + _MICROSECOND
        return [tick for tick in ticks if tick not in known]

    async def _fill(self, name: str, ticks: Sequence[datetime], policy: Overlap) -> list[RunHandle[Any]]:
        deadline = time.monotonic() + _PATIENCE
        while True:
            found, now = await self._find_schedule(name), await self._now()
            # After the schedule was read: whoever fires one of them from now on changes its revision.
            left = await self._unfired(found.schedule, ticks, now)
            spec = replace(found.schedule.spec, overlap=policy)
            write = scheduling.fired(found.schedule, [run_of(spec, tick, now) for tick in left], {}, now)
            if not left or await self._written(write, deadline):
                return self._fired(write.runs)
            await self._again(deadline)

    # -- one guarded change -----------------------------------------------------------------------

    async def _change(self, name: str, change: Callable[[Found, datetime], Schedule | None]) -> Schedule:
        """What becomes of the schedule by ``change``; None: nothing."""

        def write(found: Found, now: datetime) -> ScheduleWrite | None:
            new = change(found, now)
            return None if new is None else ScheduleWrite(new, found.schedule)

        if await self._write(name, write) is not None:
            self._changed_schedules()
        return await self.get_schedule(name)

    async def _write(
        self, name: str, change: Callable[[Found, datetime], ScheduleWrite | None]
    ) -> ScheduleWrite | None:
        """Apply what ``change`` makes of the schedule as it stands; None: nothing."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            write = change(await self._find_schedule(name), await self._now())
            if write is None or await self._written(write, deadline):
                return write
            await self._again(deadline)

    async def _written(self, write: ScheduleWrite, deadline: float) -> bool:
        (applied,) = await resending(lambda: self._store.write_schedules([write]), lambda: time.monotonic() >= deadline)
        return applied

    async def _again(self, deadline: float) -> None:
        if time.monotonic() >= deadline:
            raise StoreUnavailable("others have kept changing the schedule for 10 s")
        await asyncio.sleep(_BETWEEN)

    async def _find_schedule(self, name: str) -> Found:
        self._check_connected()
        found = await self._store.find_schedules([check_name(name, "schedule name")])
        if not found:
            raise _not_found(name)
        return found[0]

    async def _now(self) -> datetime:
        """The store's time by the store itself: a process that only just started knows its own clock, not more."""
        return (await self._store.due_schedules(1, None)).now

    def _fired(self, runs: Sequence[NewRun]) -> list[RunHandle[Any]]:
        for run in runs:
            self._hooks.emit("run_triggered", run_id=run.id, workflow=run.workflow)
        if runs:
            self._poke()
            self._store.announce(Hint.WORK | Hint.REQUEST)
        return [self._handle(self._workflows.get((run.workflow, run.version)), run.id, True) for run in runs]

    def _changed_schedules(self) -> None:
        self._store.announce(Hint.SCHEDULE)
        self._due_anew()

    def _due_anew(self) -> None:
        """Schedules have changed: the engine tells its own scheduler."""


def _not_found(name: str) -> ScheduleNotFound:
    return ScheduleNotFound(f"there is no schedule {name!r}")
