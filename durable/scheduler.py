"""Fires what is due, in a task of its own beside a worker's other work: no claim waits for it.

It sleeps until the next tick of any schedule, or until it hears that one was changed; there is no leader. Every worker
has one, and when several fire the same tick, the store's compare lets one of them write. What becomes of a tick is
decided in ``scheduling``; this module reads, asks, writes, and knows neither runs nor leases.

**What it costs.** One read at each moment at which something is due, whatever the number of schedules that are not;
two for each page of what is; and one read a minute in case a hint was lost. Ten thousand schedules that are far off
cost what none costs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from durable.cancelling import cancelled
from durable.declarations import run_of
from durable.errors import InvalidArgument, PayloadError, StoreUnavailable
from durable.hooks import Hooks
from durable.schedules import Found, ScheduleWrite
from durable.scheduling import decide, fired
from durable.store import Hint, Store

_log = logging.getLogger("durable.scheduler")

_PAGE = 200
"""Schedules that are read, decided and written at once."""

_BREATH = 10
"""Schedules that are decided before other tasks of the event loop have their turn: a few milliseconds."""

_LONGEST = 60.0
"""Seconds between two looks when nothing is due and nothing is heard: hints can be lost."""

_RETRY = 1.0
"""Seconds before a look that failed is repeated."""

_AGAIN = 0.02
"""Seconds before what somebody else is writing is read again."""

_SOONEST = timedelta(milliseconds=5)
"""The database may be behind its clock as it is known here: then what was due a moment ago is due in a moment."""


class Scheduler:
    """The schedules' part of one worker, on the running event loop.

    Args:
        store: Open and migrated.
        hooks: Told of each run that is triggered, and of a failure that must not happen.
        announce: Called after runs were created, so that workers claim.
    """

    def __init__(self, store: Store, hooks: Hooks, announce: Callable[[Hint], None]) -> None:
        self._store = store
        self._hooks = hooks
        self._announce = announce
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()  # nothing is due, and nothing was heard
        self._task: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._unreadable: set[tuple[str, int]] = set()  # names and revisions of what was complained about

    def start(self) -> None:
        """Look now, and from then on whenever something is due."""
        self._unsubscribe = self._store.subscribe(self._on_hint)
        self._task = asyncio.get_running_loop().create_task(self._look_for_ever(), name="durable scheduler")

    def stop(self) -> None:
        """Fire nothing more. A write that is under way is written whole or not at all, and nobody waits for it."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._task is not None:
            self._task.cancel()

    async def stopped(self, within: float) -> None:
        """Return when nothing is under way any more, or after ``within`` seconds: a server may not answer."""
        await cancelled(self._task, within=within)

    def poke(self) -> None:
        """Something may be due, or due earlier than before."""
        self._idle.clear()
        self._wake.set()

    async def until_idle(self) -> None:
        """Return when a look has found nothing due."""
        self.poke()
        await self._idle.wait()

    def _on_hint(self, hint: Hint) -> None:
        if hint & Hint.SCHEDULE:
            self.poke()

    async def _look_for_ever(self) -> None:
        while True:
            self._wake.clear()
            pause, next_due_at = _RETRY, None
            try:
                next_due_at = await self._fire_due()
                pause = _LONGEST
            except StoreUnavailable as error:
                _log.warning("cannot look for due schedules, and will try again in %g s: %s", pause, error)
            except Exception:
                _log.exception("firing schedules failed in a way that it must not")
                self._hooks.emit("error", detail="firing schedules failed")
            await self._sleep(next_due_at, pause)

    async def _sleep(self, until: datetime | None, longest: float) -> None:
        """Until that time, or a poke, or ``longest`` seconds."""
        clock = self._store.clock
        disarm = None
        if until is not None:
            now = clock.now()
            disarm = clock.call_at(until if until > now else now + _SOONEST, self.poke, recurring=True)
        if not self._wake.is_set():
            self._idle.set()
        timer = asyncio.get_running_loop().call_later(longest, self.poke)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
            if disarm is not None:
                disarm()

    async def _fire_due(self) -> datetime | None:
        """Fire all that is due; when the next one is."""
        while True:
            after, again = None, False
            times = list[datetime]()  # at which what is fired here is due anew
            while True:
                due = await self._store.due_schedules(_PAGE, after)
                again |= await self._fire(due.found, due.now, times)
                if len(due.found) < _PAGE:
                    break
                last = due.found[-1].schedule
                assert last.due_at is not None
                after = last.due_at, last.spec.name
            if not again:
                return min((when for when in (*times, due.next_due_at) if when is not None), default=None)

    async def _fire(self, found: Sequence[Found], now: datetime, times: list[datetime]) -> bool:
        """Fire what one page has; whether some of it has to be read again."""
        more, writes = False, list[ScheduleWrite]()
        for number, (schedule, previous) in enumerate(found, 1):
            if not number % _BREATH:
                await asyncio.sleep(0)
            spec = schedule.spec
            try:
                plan = decide(schedule, now, previous)
            except InvalidArgument as error:
                self._complain(spec.name, schedule.revision, error)
                continue
            more |= plan.more
            if plan.due_at is not None:
                times.append(plan.due_at)
            runs = [run_of(spec, firing.tick, now) for firing in plan.fire]
            writes.append(fired(schedule, runs, plan.skipped, now, (plan.next_at, plan.due_at)))
        applied = await self._write(writes)
        if not all(applied):
            await asyncio.sleep(_AGAIN)
        return more or not all(applied)

    async def _write(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        if not writes:
            return []
        try:
            applied = list(await self._store.write_schedules(writes))
        except PayloadError as error:
            if len(writes) > 1:
                return [answer for write in writes for answer in await self._write([write])]
            name = writes[0].schedule.spec.name
            self._complain(name, writes[0].schedule.revision, error)
            return [True]  # reading it again would not help
        done = [run for write, answer in zip(writes, applied, strict=True) if answer for run in write.runs]
        for run in done:
            self._hooks.emit("run_triggered", run_id=run.id, workflow=run.workflow)
        if done:
            self._announce(Hint.WORK | Hint.REQUEST)
        return applied

    def _complain(self, name: str, revision: int, error: Exception) -> None:
        """Say once what stands in this schedule's way here; other hosts may fire it, and the others go on."""
        if (name, revision) not in self._unreadable:
            self._unreadable.add((name, revision))
            _log.error("schedule %r cannot be fired by this worker: %s", name, error)
