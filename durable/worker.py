"""A worker: claims runs, executes them in its slots, keeps its lease, takes over what others left behind.

How one run goes on is ``execution``'s; which workflows exist is the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from durable.asking import Asking
from durable.batches import Batches
from durable.bodies import called
from durable.committer import Committer
from durable.context import Context
from durable.errors import StoreUnavailable
from durable.execution import Execution
from durable.heartbeat import Heartbeat
from durable.hooks import Hooks
from durable.ids import new_id
from durable.meter import Meter
from durable.model import (
    Change,
    ClaimedRun,
    Created,
    Failure,
    NewRun,
    Renewal,
    Request,
    RunWrite,
)
from durable.newruns import DEFAULT_QUEUE
from durable.options import WorkerOptions
from durable.pruning import Pruning
from durable.results import End
from durable.starting import Starting
from durable.states import TERMINAL, release
from durable.steps import StillRunning
from durable.store import Hint, Route, Store
from durable.threads import ThreadPool
from durable.warm import Warm
from durable.workflow import Workflow

T = TypeVar("T")

_log = logging.getLogger("durable.worker")

_CLAIM_MOST = 500
"""Runs a claim takes at most: its answer holds their inputs and histories."""

_CLAIM_WHOLE = 128
"""Slots up to which one claim may fill all of them; of more a third. Short runs that are claimed together end together:
a third is being claimed then while another executes and one is being committed, and neither the worker nor the server
waits for the other. One-step runs in 500 slots: 1.15 times the runs."""

_LAST_WORDS = 0.4
"""Seconds, each, that a stopping worker grants after the drain timeout: to steps that are being cancelled, and
to the store for what is still to be written. Together with the rest they stay within one second (P03)."""

_RETRY_PAUSE = 0.25
"""Seconds before a claim or a registration that the store did not answer is tried again."""


class Worker(Asking):
    """One worker of one engine, on the running event loop.

    Args:
        store: Open and migrated.
        workflows: What it can execute, by name and version.
        services: Handed to the workflows as ``ctx.services``.
        options: See ``WorkerOptions``.
        step_timeout: Default timeout of step attempts, in seconds.
        hooks: The observers.
        capture: Makes what is recorded of an exception, redacted.
        on_ended: Called with each run id whose end this worker has committed, and with what the end is, if it knows.
        meter: Who measures; None: nobody.
        only: The route and id of the one run that it executes; None: all that it can.
    """

    def __init__(
        self,
        store: Store,
        workflows: Mapping[tuple[str, str], Workflow[Any, Any]],
        services: Mapping[str, Any],
        options: WorkerOptions,
        step_timeout: float | None,
        hooks: Hooks,
        capture: Callable[[BaseException], Failure],
        on_ended: Callable[[str, End | None], None],
        meter: Meter | None = None,
        only: tuple[Route, str] | None = None,
    ) -> None:
        super().__init__(store)
        self._workflows = workflows
        queues = options.queues or {DEFAULT_QUEUE, *(workflow.queue for workflow in workflows.values())}
        routes = () if only is not None else (Route(*known, queue) for known in workflows for queue in queues)
        self._routes: Sequence[Route] = sorted(routes)
        self._only = only
        self._services = services
        self._options = options
        self._step_timeout = step_timeout
        self._on_ended = on_ended
        self.hooks = hooks
        self.meter = meter
        self.capture = capture
        self._pool = ThreadPool(options.threads)
        self.threads = StillRunning(self._pool)
        self._pruning = Pruning(store, options.prune_after, hooks)
        self.clock = store.clock
        self.linger = options.linger
        self._active: dict[str, Execution] = {}  # run id → what holds a slot
        self._warm = Warm(options.linger)
        self._batches = Batches()
        self._starting = Starting(store, self, self._routes)
        self._claim_most = min(_CLAIM_MOST, max(_CLAIM_WHOLE, options.concurrency // 3))
        self._claiming = 0  # slots that a claim which is under way may fill
        self._unheard: set[str] = set()  # runs that were asked something while they parked
        self._signal = asyncio.Event()  # a reason to claim
        self._idle = asyncio.Event()  # the last claim found nothing, and nothing moves
        self._more = True  # the last claim was full; before the first one nobody knows
        self._stopping = False
        self._signed_off = False
        self._idle_wanted = False
        self._reconcile_at = 0.0  # time.monotonic()
        self._claims: asyncio.Task[None] | None = None
        self._wake_time = self.clock.now()
        self._cancel_ready: Callable[[], None] | None = None
        self._next_expiry: datetime | None = None
        self._renewals: list[asyncio.Future[None]] = []
        self._unsubscribe: Callable[[], None] | None = None

    # -- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register, then begin to renew and to claim."""
        await self._register()
        self._unsubscribe = self._store.subscribe(self._on_hint)
        self._claims = asyncio.get_running_loop().create_task(self._claim_loop(), name="durable claims")
        self._pruning.start()

    async def stop(self) -> None:
        """Claim nothing more, let steps end within the drain timeout, give the rest back, disappear."""
        deadline = time.monotonic() + self._options.drain_timeout
        self._stopping = True
        if self._unsubscribe is not None:
            self._unsubscribe()
        self._signal.set()
        self._pruning.stop()
        if self._claims is not None:
            await asyncio.wait([self._claims])
        self._cancel_ready_timer()
        for execution in list(self._active.values()):
            execution.drain()
        await self._until_empty(deadline)
        stopping = (execution.stop(_LAST_WORDS) for execution in list(self._active.values()))
        await asyncio.gather(self._pruning.stopped(_LAST_WORDS), *stopping)
        await self._warm.evicted(_LAST_WORDS)
        await self._heartbeat.stop()
        self._pool.close()
        try:
            async with asyncio.timeout(_LAST_WORDS):
                await self.committer.drained()
                self._signed_off = True
                if self.id:
                    await self._store.unregister(self.id)
        except (StoreUnavailable, TimeoutError) as error:
            self._given_up = self._signed_off = True
            _log.warning("the worker could not sign off (%r): its lease will expire", error)

    async def _until_empty(self, deadline: float) -> None:
        while self._active and (left := deadline - time.monotonic()) > 0:
            self._idle.clear()
            self._signal.clear()
            try:
                async with asyncio.timeout(left):
                    await self._signal.wait()
            except TimeoutError:
                return

    async def _register(self) -> None:
        """A new id each time: after a lost lease nothing of the old one may count as ours."""
        worker, sent = new_id(self.clock.now()), time.monotonic()
        await self._store.register(worker, self._options.lease, socket.gethostname(), os.getpid())
        self.id = worker
        names = ", ".join(f"{workflow} {version}" for workflow, version in sorted(self._workflows))
        _log.info("worker %s, pid %d, executes %s", worker, os.getpid(), names or "no workflow")
        lease, renewed = self._options.lease, None if self.meter is None else self.meter.renewed
        self._heartbeat = Heartbeat(self._store, worker, lease, sent, partial(self._on_renewal, worker), renewed)
        closed = lambda: worker != self.id or self._given_up  # noqa: E731
        self.committer = Committer(self._store, worker, closed, None if self.meter is None else self.meter.committed)
        self._reconcile_at = time.monotonic() + self._options.lease
        self._next_expiry = self.clock.now()  # look at once for what others left behind

    @property
    def deadline(self) -> float:
        """``time.monotonic()`` after which no step may start."""
        return self._heartbeat.deadline

    async def renewed(self) -> None:
        """Return after the next successful renewal."""
        future = asyncio.get_running_loop().create_future()
        self._renewals.append(future)
        await future

    def _on_renewal(self, worker: str, renewal: Renewal) -> None:
        if worker != self.id:
            return
        if not renewal.alive:
            self._lease_lost()
            return
        waiting, self._renewals = self._renewals, []
        for future in waiting:
            if not future.done():
                future.set_result(None)
        self._next_expiry = renewal.next_expiry
        if renewal.next_expiry is not None:
            self._wake_at(renewal.next_expiry)

    def _lease_lost(self) -> None:
        """Others own our runs now. Drop all of them, then start anew under another id."""
        if self._stopping:
            return
        _log.error("worker %s has lost its lease: %d runs are dropped here", self.id, len(self._active))
        self.hooks.emit("lease_lost", detail=f"{len(self._active)} runs")
        self.id = ""
        for execution in list(self._active.values()):
            execution.lose()
        self._warm.lose()  # at once: a claim under the new id must not resume what is being unwound
        self._batches.clear()
        self._unheard.clear()
        self._signal.set()

    # -- claiming ---------------------------------------------------------------------------------

    def holds(self, run_id: str) -> bool:
        """Whether the run is executed here."""
        return run_id in self._active

    def poke(self) -> None:
        """There may be something to claim."""
        self._idle.clear()
        self._signal.set()

    async def until_idle(self) -> None:
        """Return when a claim has found nothing and every run here waits for time or for the outside."""
        self._idle_wanted = True
        self.poke()
        await self._idle.wait()
        self._idle_wanted = False

    def _on_hint(self, hint: Hint) -> None:
        if hint & (Hint.WORK | Hint.REQUEST):
            self.poke()

    async def _claim_loop(self) -> None:
        asked = True
        while not self._stopping:
            self._signal.clear()
            try:
                if not self.id:
                    await self._heartbeat.stop()
                    await self._register()  # under a new id
                await self._reap_if_due()
                await self._reconcile_if_due()
                await self._claim(self._wanted(), unasked=not asked)
            except StoreUnavailable as error:
                _log.warning("cannot claim: %s", error)
                self._reconcile_at, asked = 0.0, True
                await self._wait(_RETRY_PAUSE)
                continue
            except Exception:
                _log.exception("a claim failed in a way that it must not")
                self.hooks.emit("error", detail="a claim failed")
                await self._wait(_RETRY_PAUSE)
                continue
            asked = True
            if not (self._more and len(self._active) < self._options.concurrency):
                self._check_idle()
                asked = await self._wait(self._options.poll_interval)

    def _wanted(self) -> int:
        """How many runs to claim; 0, to hear what is asked, when no slot is free."""
        free = self._free_slots()
        if not self._more:  # probably nothing is ready: runs that are triggered meanwhile find a slot
            free -= free // 4
        return max(0, min(free, self._claim_most))

    def _free_slots(self) -> int:
        return self._options.concurrency - len(self._active) - len(self._starting.under_way) - self._claiming

    async def _wait(self, timeout: float) -> bool:
        """Until there is a reason to claim; False: there was none for ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._signal.wait()
        except TimeoutError:
            return False

    async def _claim(self, limit: int, *, unasked: bool) -> None:
        worker, batch = self.id, new_id(self.clock.now())
        if not worker:  # the lease was lost while this turn reaped: the next one registers
            return
        done = self._batches.take_done()
        warm = self._warm.claims()
        self._claiming = limit
        try:
            asked = time.monotonic()
            if self._only is not None and limit:
                answer = await self._store.claim_run(worker, *self._only, batch, warm)
            else:
                answer = await self._store.claim(worker, self._routes, limit, batch, warm, done, unasked=unasked)
        except StoreUnavailable:
            self._batches.put_back(done)
            raise
        finally:
            self._claiming = 0
        if self.meter is not None:
            self.meter.claimed(time.monotonic() - asked, len(answer.runs))
        if worker != self.id:
            return  # the lease was lost meanwhile; whoever released our runs has these too
        # Behind a suspect there can be more: the next claim passes over what this one would not take with it.
        # Without a free slot nothing was looked for, and there can be more too: a slot that is free asks again.
        self._more = len(answer.runs) >= limit or any(claimed.run.suspect for claimed in answer.runs)
        if answer.next_ready_at is not None:
            self._wake_at(answer.next_ready_at)
        if answer.runs:
            self._batches.add(batch, [claimed.run.id for claimed in answer.runs])
        for claimed in answer.runs:
            if claimed.records is None and claimed.run.id not in self._warm:
                # Its linger ended while the claim was under way. Nobody else writes to a run that is ours.
                history = await self._store.history(claimed.run.id)
                if worker != self.id:
                    return  # the lease was lost meanwhile, and this run with it: none of its steps may start here
                self._execute(replace(claimed, records=history))
            else:
                self._execute(claimed)
        self._hear(dict(answer.requests))
        await self._read(answer.signalled)

    def _hear(self, requests: Mapping[str, Request]) -> None:
        """Tell the executions what is asked of their runs."""
        for run_id, request in requests.items():
            if (execution := self._active.get(run_id)) is None:
                continue
            if execution.parked:  # on its way out: whoever claims it next is told
                self._unheard.add(run_id)
            else:
                execution.ask(request)
        for run_id, execution in self._active.items():
            if execution.pausing and run_id not in requests and not self._stopping:
                execution.unask()

    async def _read(self, run_ids: Sequence[str]) -> None:
        """Signals have come for runs that are held here."""
        worker, held = self.id, [run_id for run_id in run_ids if run_id in self._active]
        if not held or not worker:
            return
        unread = await self._store.unread(worker, held)
        for run_id in held if worker == self.id else ():
            execution = self._active.get(run_id)
            # A parked one is on its way out, and its park has seen an older counter: its next claim reads them.
            if execution is not None and not execution.parked and run_id in unread:
                execution.signalled(unread[run_id])

    def _execute(self, claimed: ClaimedRun) -> None:
        run_id = claimed.run.id
        execution = self._warm.take(run_id)
        if execution is not None:
            if claimed.records is None:
                self._active[run_id] = execution
                execution.resume(claimed)
                return
            execution.lose()  # others have executed the run since: this coroutine is out of date
        execution = self._active[run_id] = Execution(claimed, self)
        workflow = self._workflows[claimed.run.workflow, claimed.run.version]
        ctx = Context(execution, self._services, self._step_timeout)
        body = called(execution, workflow, ctx)
        execution.start(body, workflow.encode_result, workflow.retry, workflow.timeout)
        if self.hooks.active and claimed.run.claim == 1:
            self.hooks.emit("run_started", run_id=run_id, workflow=workflow.name)
        if self._stopping:  # its claim was under way when the drain began: none of its steps may start
            execution.drain()

    async def _reap_if_due(self) -> None:
        if self._next_expiry is not None and self._next_expiry <= self.clock.now():
            self._next_expiry = None
            reaped = await self._store.reap()
            if reaped.released:
                _log.warning("took over %d runs of workers whose lease had expired", reaped.released)
                self._store.announce(Hint.WORK)
                self.hooks.emit("took_over", detail=f"{reaped.released} runs")
            for run_id, workflow in reaped.dead_letters:
                _log.error("run %s of workflow %r is a dead letter: it lost one worker after another", run_id, workflow)
                self._on_ended(run_id, None)
                self.hooks.emit("run_dead_lettered", run_id=run_id, workflow=workflow)

    async def _reconcile_if_due(self) -> None:
        """After a claim whose answer was lost: give back what the store says is ours and is not here."""
        if time.monotonic() < self._reconcile_at or self._stopping or not self.id:
            return
        owned = await self._store.owned(self.id)
        # Those whose trigger was answered while this was asked are active by now.
        known = self._active.keys() | self._starting.under_way
        strays = {ref.id: ref for ref in owned if ref.id not in known}
        if strays:
            runs = await self._store.get_runs(list(strays))  # some have left by themselves since they were read
            writes = [RunWrite(strays[run.id], change=release(run.state)) for run in runs if run.owner == self.id]
            await self._store.commit(self.id, writes)
            self.poke()
        waiting = [run_id for run_id, execution in self._active.items() if execution.waiting]
        await self._read(waiting)  # a lost answer may have told of their signals
        self._reconcile_at = time.monotonic() + self._options.lease

    def _wake_at(self, when: datetime) -> None:
        """Claim again at ``when``, the earliest of what was asked for."""
        if self._cancel_ready is not None:
            if self._wake_time <= when:
                return
            self._cancel_ready()
        self._wake_time = when
        self._cancel_ready = self.clock.call_at(when, self._on_ready_time)

    def _on_ready_time(self) -> None:
        self._cancel_ready = None
        self.poke()

    def _cancel_ready_timer(self) -> None:
        if self._cancel_ready is not None:
            self._cancel_ready()
            self._cancel_ready = None

    def _check_idle(self) -> None:
        if not self._signal.is_set() and all(execution.resting for execution in self._active.values()):
            self._idle.set()

    # -- triggers of this process -----------------------------------------------------------------

    async def create(self, runs: Sequence[NewRun], told: Callable[[Sequence[Created]], None]) -> list[Created]:
        """Create runs; those for which a slot is free, and nobody waits, begin at once: see ``starting``."""
        asked = time.monotonic()
        created = await self._starting.create(runs, told)
        if self.meter is not None and (claimed := sum(answer.claimed is not None for answer in created)):
            self.meter.claimed(time.monotonic() - asked, claimed)
        return created

    def room(self) -> int:
        """Slots for runs that are being triggered: none while others may be ready, whose turn it is."""
        idle = not self._more and not self._stopping and time.monotonic() < self.deadline
        return self._free_slots() if idle else 0

    def begin(self, batch: str, runs: Sequence[ClaimedRun]) -> None:
        """These runs were created claimed."""
        if self._signed_off:
            return  # what it was still given was released with the rest
        self._batches.add(batch, [claimed.run.id for claimed in runs])
        for claimed in runs:
            self._execute(claimed)

    def reconcile(self) -> None:
        """Compare what is held with the store, now."""
        self._reconcile_at = 0.0
        self.poke()

    # -- what executions tell ---------------------------------------------------------------------

    def left(self, execution: Execution, change: Change) -> None:
        """A run was ended, parked or given back; that is committed."""
        run_id = execution.run.id
        here = self._active.get(run_id) is execution  # else it was claimed anew before the answer to its park came
        self._free(run_id, execution)
        if execution.parked:
            if self.linger and here:
                self._warm.keep(run_id, execution)
            else:
                self._warm.evict(run_id, execution)
        elif change.state in TERMINAL:
            self._on_ended(run_id, End(change.state, change.result, change.error))
        if change.ready_at is not None:
            self._wake_at(change.ready_at)
        if execution.pausing or run_id in self._unheard:  # it left with its request open: it is ready at once
            self._unheard.discard(run_id)
            self.poke()
        if execution.ref.linked:  # its parent, who waits for its key, or for its place
            self.stirred()

    def stirred(self) -> None:
        """Something was committed that may make other runs ready, here or elsewhere."""
        self.poke()
        self._store.announce(Hint.WORK)

    def rested(self) -> None:
        """A run waits for time in its slot."""
        if self._idle_wanted:
            self._signal.set()

    def gone(self, execution: Execution) -> None:
        """Nothing of the execution is left in this process."""
        run_id = execution.run.id
        self._warm.forget(run_id, execution)
        self._free(run_id, execution)

    def _free(self, run_id: str, execution: Execution) -> None:
        if self._active.get(run_id) is not execution:
            return
        del self._active[run_id]
        self._batches.left(run_id)
        if self._more or self._stopping or self._idle_wanted or not self._active or execution.run.suspect:
            self._signal.set()
