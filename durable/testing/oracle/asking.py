"""Requests, pruning, deletion and schedules, as the oracle has them."""

from __future__ import annotations

import json
from datetime import datetime

from durable.errors import RunNotFound
from durable.model import Kind, Record, Request, State, Verb
from durable.schedules import Overlap, Previous, Schedule, ScheduleWrite
from durable.testing.oracle.creating import Creating
from durable.testing.oracle.kept import CANCELLED, Kept, retried


class Asking(Creating):
    """What operators ask."""

    def __init__(self, now: datetime) -> None:
        super().__init__(now)
        self.schedules: dict[str, Schedule] = {}
        self.ticks: dict[str, dict[datetime, str]] = {}

    def request(self, run_id: str, request: Request, step: str | None = None) -> State | None:
        if run_id not in self.runs:
            raise RunNotFound(run_id)
        return self.ask(self.runs[run_id], request, step)

    def ask(self, run: Kept, request: Request, step: str | None = None) -> State | None:
        """What becomes of the run, and the answer."""
        if self._changed(run, request, step):
            run.stirred += 1
            return run.state
        is_open = run.requested is not None and run.requested.verb is request.verb
        return run.state if is_open or run.asked_last() == request else None

    def _changed(self, run: Kept, request: Request, step: str | None) -> bool:
        match request.verb:
            case Verb.CANCEL:
                return self._cancel(run, request)
            case Verb.PAUSE:
                return self._pause(run, request)
            case Verb.RESUME:
                return self._resume(run, request)
            case Verb.RETRY:
                return run.asked_last() != request and self._retry(run, request, step)
            case Verb.RETRY_UNDO:
                return run.asked_last() != request and self._retry_undo(run, request)

    def _carried_out(self, run: Kept, request: Request) -> None:
        """Write the record."""
        fields = {"verb": request.verb, "reason": request.reason, "by": request.by, "id": request.id}
        data = json.dumps({name: str(value) for name, value in fields.items() if value})
        run.records.append(Record(run.following, f"/request/{run.following}", Kind.REQUEST, self.now, data))
        run.claim += 1

    def _cancel(self, run: Kept, request: Request) -> bool:
        if run.over:
            return False
        if not run.started:
            run.state, run.error, run.reason = State.CANCELLED, CANCELLED, None
            self._carried_out(run, request)
            self.end(run)
            return True
        if run.state is State.PAUSED:
            run.state = State.PENDING if run.error is None else State.COMPENSATING
        elif run.requested is not None and run.requested.verb is Verb.CANCEL:
            return False
        run.requested, run.reason = request, None
        if run.owner is None:
            run.ready = self.now
        return True

    def _pause(self, run: Kept, request: Request) -> bool:
        if run.over or run.state is State.PAUSED:
            return False
        if run.requested is not None and (run.owner is not None or run.requested.verb is Verb.CANCEL):
            return False  # it is asked already; or cancelled, which comes first
        if run.owner is not None:
            run.requested = request
            return True
        if run.state is State.COMPENSATING:
            return False
        run.state, run.reason, run.ready, run.requested = State.PAUSED, request.reason, None, None
        self._carried_out(run, request)
        return True

    def _resume(self, run: Kept, request: Request) -> bool:
        if run.state is State.PAUSED:
            run.state = State.PENDING if run.error is None else State.COMPENSATING
            run.reason, run.ready = None, self.now
            self._carried_out(run, request)
            return True
        if run.requested is not None and run.requested.verb is Verb.PAUSE:
            run.requested = None
            return True
        return False

    def _retry(self, run: Kept, request: Request, step: str | None) -> bool:
        if run.state not in (State.FAILED, State.DEAD_LETTER):
            return False
        aside = retried(run.records, step)
        if aside is None:
            raise RunNotFound(step or "")
        run.set_aside(aside)
        run.error = None
        self._go_on(run, request, State.PENDING)
        return True

    def _retry_undo(self, run: Kept, request: Request) -> bool:
        if run.state is not State.FAILED:
            return False
        here = {record.key: record for record in run.records if not record.key.startswith("/")}
        steps_failed = {key for key, record in here.items() if record.kind is Kind.STEP and record.failed}
        failed = {key for key, record in here.items() if record.kind is Kind.UNDO and record.failed}
        failed = {key for key in failed if key.removesuffix("/undo") not in steps_failed}
        if not failed:
            return False
        run.set_aside(failed)
        asked = [one for one in run.requests() if one.verb in (Verb.CANCEL, Verb.RETRY)]
        self._go_on(run, request, State.COMPENSATING)
        run.requested = asked[-1] if asked and asked[-1].verb is Verb.CANCEL else None
        return True

    def _go_on(self, run: Kept, request: Request, state: State) -> None:
        """A run that has ended goes on."""
        run.state, run.ended, run.takeovers, run.reason = state, False, 0, None
        self._carried_out(run, request)
        self.join(run)
        run.ready = self.now

    # -- the end of old ones ----------------------------------------------------------------------

    def delete(self, run_id: str) -> bool:
        if run_id not in self.runs:
            raise RunNotFound(run_id)
        if not self.runs[run_id].over:
            return False
        self.forget(self.runs[run_id])
        return True

    def prune(self) -> int:
        """Delete all that have ended."""
        over = [run for run in self.runs.values() if run.over]
        for run in over:
            self.forget(run)
        return len(over)

    def forget(self, run: Kept) -> None:
        super().forget(run)
        if run.new.schedule is not None and run.new.tick is not None:
            self.ticks.get(run.new.schedule, {}).pop(run.new.tick, None)

    # -- schedules --------------------------------------------------------------------------------

    def write_schedule(self, write: ScheduleWrite) -> bool:
        name, before = write.schedule.spec.name, write.before
        ticks = self.ticks.setdefault(name, {})
        if any(run.tick is not None and ticks.get(run.tick) == run.id for run in write.runs):
            return True
        there = self.schedules.get(name)
        if _version(there) != _version(before):
            return False
        self.schedules[name] = write.schedule
        for run in write.runs:
            if run.tick is not None and run.tick not in ticks:
                ticks[run.tick] = run.id
                self.create(run)
        return True

    def previous(self, schedule: Schedule) -> Previous:
        if schedule.spec.overlap is Overlap.ALLOW:
            return Previous()
        open_ = [run for run in self.runs.values() if run.new.schedule == schedule.spec.name and not run.over]
        open_.sort(key=lambda run: run.new.id)
        return Previous(
            tuple(run.new.id for run in open_ if not self.queued(run)),
            tuple(run.new.id for run in open_ if self.queued(run)),
        )


def _version(schedule: Schedule | None) -> object:
    return None if schedule is None else (schedule.created_at, schedule.revision, schedule.next_at)
