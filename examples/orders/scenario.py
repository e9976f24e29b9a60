"""What happens in the demo: orders come in, workers work, one is killed, the other takes over, all orders end.

It uses the engine as a web application would: as a client that triggers runs, waits for results, and lists.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from durable import (
    Engine,
    RunCancelled,
    RunCompensated,
    RunDeadLettered,
    RunFailed,
    RunHandle,
    RunSummary,
    State,
    StoreUnavailable,
)
from examples.orders.accounting import COMPENSATED, COMPLETED
from examples.orders.board import Board, Figures, WorkerLine
from examples.orders.crew import Child, Crew
from examples.orders.models import Order, Receipt
from examples.orders.report import Kill
from examples.orders.workflow import process_order

PACE = 36.0
"""Orders that come in per second."""

_TWICE = 25  # every so many orders one is delivered twice, as webhooks are
_LOOK_EVERY = 0.1  # seconds
_HOLDS_ENOUGH = 3  # runs a worker must hold to be worth killing


class Unusable(Exception):
    """The database cannot be used for the demo."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How it went."""

    ends: dict[str, str]  # order id → the state its run ended in, or has after the time limit
    twice: int
    kill: Kill | None
    seconds: float


class Scenario:
    """One performance.

    Args:
        engine: Connected as a client.
        orders: Come in in this order.
        crew: Its service is running, its workers are not.
        board: Where to show what happens.
        figures: What the board shows.
    """

    def __init__(self, engine: Engine, orders: Sequence[Order], crew: Crew, board: Board, figures: Figures) -> None:
        self._engine = engine
        self._orders = orders
        self._crew = crew
        self._board = board
        self._figures = figures
        self._runs: dict[str, str] = {}  # order id → run id
        self._ends: dict[str, str] = {}
        self._twice = 0
        self._tasks = set[asyncio.Task[None]]()
        self._ids: dict[str, Child] = {}  # worker id → its process
        self._killed: _Killed | None = None
        self._database_answers = True

    async def play(self, patience: float) -> Ending:
        """From the first order to the last run's end, at most ``patience`` seconds."""
        try:
            async with asyncio.timeout(patience):
                self._start_worker()
                self._spawn(self._feed())
                self._spawn(self._ask_service())
                while len(self._ends) < len(self._orders):
                    await self._look_if_possible()
                    await asyncio.sleep(_LOOK_EVERY)
                await self._look_if_possible()
        except TimeoutError:
            self._board.event(f"giving up after {patience:g} s")
            await self._name_the_missing()
        finally:
            for task in self._tasks:
                task.cancel()
        kill = self._killed.report() if self._killed is not None else None
        return Ending(self._ends, self._twice, kill, self._figures.elapsed)

    # -- orders -----------------------------------------------------------------------------------

    async def _feed(self) -> None:
        started = time.monotonic()
        for index, order in enumerate(self._orders):
            await asyncio.sleep(started + index / PACE - time.monotonic())
            handle = await self._deliver(order)
            if not handle.created and index == 0:
                raise Unusable("the database has these orders already, from an earlier demo: give it another one")
            self._runs[order.id] = handle.run_id
            self._figures.delivered += 1
            self._spawn(self._until_end(order, handle))
            if index % _TWICE == _TWICE - 1:
                again = await self._deliver(order)
                self._twice += 1
                if again.created or again.run_id != handle.run_id:
                    self._ends[order.id] = "two runs, though it has one key"

    async def _deliver(self, order: Order) -> RunHandle[Receipt]:
        """Trigger the order's run; whether a lost answer meant success does not matter, the key makes it one run."""
        while True:
            try:
                return await self._engine.trigger(process_order, order, key=order.id, tags={"country": order.country})
            except StoreUnavailable:
                await asyncio.sleep(_LOOK_EVERY)

    async def _until_end(self, order: Order, handle: RunHandle[Receipt]) -> None:
        try:
            receipt = await handle.result()
            end = COMPLETED if receipt.order_id == order.id else "completed with another order's receipt"
        except RunCompensated:
            end = COMPENSATED
        except RunDeadLettered:
            end = State.DEAD_LETTER.value
        except RunFailed as error:
            end = State.FAILED.value
            self._board.event(f"{order.id}: {error}")
        except RunCancelled:
            end = State.CANCELLED.value
        self._ends.setdefault(order.id, end)

    async def _name_the_missing(self) -> None:
        for order in self._orders:
            if order.id not in self._ends:
                run_id = self._runs.get(order.id)
                state = (await self._engine.get_run(run_id)).state if run_id is not None else "not delivered"
                self._ends[order.id] = f"{state}, not ended"

    # -- looking ----------------------------------------------------------------------------------

    async def _look_if_possible(self) -> None:
        """Look; while the database is away there is nothing to see, and the workers wait for it as well."""
        for task in [task for task in self._tasks if task.done()]:
            self._tasks.discard(task)
            task.result()
        self._crew.check()
        try:
            await self._look()
        except StoreUnavailable:
            if self._database_answers:
                self._board.event("the database does not answer")
            self._database_answers = False
        else:
            if not self._database_answers:
                self._board.event("the database answers again")
            self._database_answers = True

    async def _look(self) -> None:
        """Bring the figures up to date, and act on them."""
        held = [*await self._list(State.RUNNING), *await self._list(State.COMPENSATING)]
        sleeping = await self._list(State.SLEEPING)
        self._count(held, sleeping)
        self._recognise(held)
        self._replace()
        if self._killed is None:
            await self._kill_when_due(held)
        else:
            await self._see_takeover(self._killed, held)
        self._board.refresh()

    async def _list(self, state: State) -> Sequence[RunSummary]:
        return (await self._engine.list_runs(workflow=process_order.name, state=state, limit=1000)).items

    def _count(self, held: Sequence[RunSummary], sleeping: Sequence[RunSummary]) -> None:
        states = Counter[str](self._ends.values())
        states.update(run.state.value for run in (*held, *sleeping))
        # The lists were read one after the other: a run that moved between them is missing, or there twice.
        states["pending"] = max(0, self._figures.delivered - states.total())
        self._figures.states = states
        holds = Counter(run.owner for run in held)
        pids = {child.pid: worker_id for worker_id, child in self._ids.items()}
        for line, child in zip(self._figures.workers, self._crew.workers, strict=True):
            line.holds = holds[pids.get(child.pid)] if child.pid in pids else 0
            line.requests = self._figures.service.get(f"worker {child.pid}", 0)
            if line.alive and not child.alive:
                line.alive, line.state = False, child.end
                if self._killed is None or self._killed.name != child.name:
                    self._board.event(f"{child.name} was ended from outside: {child.end}")

    def _recognise(self, held: Sequence[RunSummary]) -> None:
        """A worker id that was not seen before belongs to the worker that was started last.

        So the second worker is started when the first has been recognised.
        """
        for worker_id in {run.owner for run in held if run.owner is not None} - self._ids.keys():
            known = list(self._ids.values())
            for line, child in zip(self._figures.workers, self._crew.workers, strict=True):
                if child.alive and child not in known:
                    self._ids[worker_id] = child
                    line.state = "works"
                    break
        if len(self._ids) == 1 and len(self._crew.workers) == 1:
            self._start_worker()

    # -- workers ----------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        child = self._crew.start_worker()
        self._figures.workers.append(WorkerLine(child.name, child.pid, "starts"))
        self._board.event(f"{child.name} started, pid {child.pid}")

    def _replace(self) -> None:
        """Somebody outside has ended workers as well: before the kill there are two, after it at least one."""
        wanted = min(2, len(self._crew.workers)) if self._killed is None else 1
        if sum(child.alive for child in self._crew.workers) < wanted:
            self._start_worker()

    async def _kill_when_due(self, held: Sequence[RunSummary]) -> None:
        """Half of the orders have ended: kill the worker that has the most in its hands, near the end also few."""
        alive = Counter(run.owner for run in held if run.owner in self._ids and self._ids[run.owner].alive)
        workers = sum(child.alive for child in self._ids.values())
        ended = len(self._ends) / len(self._orders)
        if ended < 0.5 or workers < 2:
            return
        victim, holds = alive.most_common(1)[0] if alive else (None, 0)
        if victim is None or holds < (_HOLDS_ENOUGH if ended < 0.75 else 1):
            return
        child = self._ids[victim]
        await asyncio.to_thread(child.kill)
        at = time.monotonic()
        held = [*await self._list(State.RUNNING), *await self._list(State.COMPENSATING)]
        runs = {run.id for run in held if run.owner == victim}
        self._killed = _Killed(child.name, victim, at, runs, set(runs))
        self._board.event(f"SIGKILL: {child.name} is dead, with {len(runs)} runs in its hands")

    async def _see_takeover(self, killed: _Killed, held: Sequence[RunSummary]) -> None:
        """Which of the killed worker's runs are somebody else's by now?"""
        for run_id in killed.waiting - {run.id for run in held if run.owner == killed.worker_id}:
            killed.waiting.discard(run_id)
            timeline = await self._engine.timeline(run_id)
            if not any(entry.kind == "takeover" and entry.worker == killed.worker_id for entry in timeline):
                killed.held.discard(run_id)  # its last commit was on its way when the worker died
                continue
            killed.taken_over += 1
            killed.after = time.monotonic() - killed.at if killed.after is None else killed.after
            if not killed.waiting:
                who = " and ".join(child.name for child in self._ids.values() if child.alive)
                text = f"{who} took over all {killed.taken_over} runs of {killed.name}"
                self._board.event(f"{text}, {killed.after:.1f} s after the kill")

    # -- in the background ------------------------------------------------------------------------

    async def _ask_service(self) -> None:
        while True:
            self._figures.service = await asyncio.to_thread(_stats, self._crew.service_url)
            await asyncio.sleep(0.25)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(coroutine))


@dataclass(slots=True)
class _Killed:
    name: str
    worker_id: str
    at: float  # time.monotonic()
    held: set[str]  # run ids
    waiting: set[str]  # of these, the ones that are still the dead worker's
    taken_over: int = 0
    after: float | None = None  # seconds until the first was taken over

    def report(self) -> Kill:
        return Kill(self.name, len(self.held), self.taken_over, self.after)


def _stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/stats", timeout=5) as response:
        counts: dict[str, int] = json.load(response)
        return counts
