"""What is asked of runs from outside in the memory store: requests, pruning, deletion."""

from __future__ import annotations

from datetime import datetime

from durable import failures, requests
from durable.model import Kind, Record, Request, State
from durable.states import TERMINAL
from durable.stores.memory.rows import Row, refuse_unstorable
from durable.stores.memory.shared import Shared


class Requesting(Shared):
    """Requests about one run, and the end of old ones."""

    async def request(self, run_id: str, request: Request) -> State | None:
        return self._request(run_id, request)

    async def retry_from(self, run_id: str, step: str, request: Request) -> State | None:
        return self._request(run_id, request, step)

    def _request(self, run_id: str, request: Request, step: str | None = None) -> State | None:
        refuse_unstorable((request.reason, request.by))
        with self._lock:
            row = self._row(run_id)
            run = row.run()
            plan = requests.decide(run, request, row.history(), step)
            if plan is not None:
                self._carry_out(row, request, plan)
            elif not requests.asked_again(run, request, row.latest(Kind.REQUEST)):
                return None
            return row.state

    def _carry_out(self, row: Row, request: Request, plan: requests.Plan) -> None:
        now = self._clock.now()
        row.state, row.requested, row.reason, row.error = plan.state, plan.requested, plan.reason, plan.error
        row.ended_at = now if plan.ended else None
        row.wakes += 1
        if plan.forgive:
            row.takeovers = 0
        row.set_aside(plan.aside)
        if plan.record:
            seq = row.next_seq()
            data = failures.request_to_json(request)
            row.records[f"/request/{seq}"] = Record(seq, f"/request/{seq}", Kind.REQUEST, now, data)
            row.claim += 1
        if plan.ready:
            self._free(row, now)
        elif plan.ended or plan.state is State.PAUSED:
            row.ready_at = None
            self._withdrawn(row, now)
        if plan.ended:
            self._ended(row, now)

    async def prune(self, before: datetime, limit: int) -> int:
        with self._lock:
            ended = (row for row in self._rows.values() if row.state in TERMINAL)
            old = [row for row in ended if row.ended_at is not None and row.ended_at < before][:limit]
            for row in old:
                self._forget(row)
            return len(old)

    async def delete(self, run_id: str) -> bool:
        with self._lock:
            row = self._row(run_id)
            if row.state not in TERMINAL:
                return False
            self._forget(row)
            return True
