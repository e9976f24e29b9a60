"""What clients and the machine do in a simulation: one method for each operation of a scenario."""

from __future__ import annotations

from collections.abc import Awaitable
from functools import partial
from typing import TYPE_CHECKING, Any

from durable.model import NewSignal, Published, Request, State, Verb
from durable.states import TERMINAL
from tests.simulation.invariants import open_waits
from tests.simulation.scenario import NAMES, Operation

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World


class Clients:
    """Carries operations out in the process that they name; one that does not live at that moment does nothing."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._runs: dict[int, str] = {}  # number of the trigger → its run, once that is known
        self._fed = 0

    def do(self, op: Operation) -> None:
        process = self._world.process_of(op["slot"]) if "slot" in op else None
        if "slot" in op and process is None:
            return
        act: Any = getattr(self, f"_{op['op']}")
        if process is None:
            act(op)
        else:
            act(op, process)

    # -- what users do ----------------------------------------------------------------------------

    def _trigger(self, op: Operation, process: Process) -> None:
        number = op["number"]
        self._world.monitor.triggers.sent(number, op.get("key"))

        async def trigger() -> None:
            handle = await process.engine.trigger(
                self._world.flows.workflow,
                op["plan"],
                key=op.get("key"),
                delay=op["delay"],
                queue=op["queue"],
                tags={"trigger": str(number)},
            )
            self._runs[number] = handle.run_id
            self._world.monitor.triggers.acknowledged(number, op.get("key"), handle.run_id, handle.created)

        process.spawn(trigger(), "trigger")

    def _signal(self, op: Operation, process: Process) -> None:
        def send(run_id: str) -> Awaitable[None]:
            return self._signalled(process, run_id, op)

        self._about(op, process, send)

    async def _signalled(self, process: Process, run_id: str, op: Operation) -> None:
        await process.engine.signal(run_id, op["name"], f"sig:{op['id']}:", signal_id=op["id"])
        self._world.monitor.inboxes.acknowledged(run_id, op["id"])

    def _cancel(self, op: Operation, process: Process) -> None:
        self._about(op, process, partial(process.engine.cancel, by=op["by"]))

    def _pause(self, op: Operation, process: Process) -> None:
        self._about(op, process, partial(process.engine.pause, by=op["by"]))

    def _resume(self, op: Operation, process: Process) -> None:
        self._about(op, process, partial(process.engine.resume, by=op["by"]))

    def _retry(self, op: Operation, process: Process) -> None:
        self._about(op, process, partial(process.engine.retry, by=op["by"], from_step=op.get("step")))

    def _about(self, op: Operation, process: Process, ask: Any) -> None:
        if (run_id := self._runs.get(op["target"])) is not None:
            process.spawn(ask(run_id), op["op"])

    def _prune(self, op: Operation, process: Process) -> None:
        process.spawn(process.engine.prune(op["age"]), "prune")

    def _publish(self, op: Operation, process: Process) -> None:
        process.spawn(process.engine.publish(op["topic"], f"evt:{op['id']}:", retention=5.0), "publish")

    def _schedule(self, op: Operation, process: Process) -> None:
        process.spawn(
            process.engine.schedule(
                self._world.flows.workflow,
                name=op["name"],
                every=op["every"],
                input=op["plan"],
                overlap=op["overlap"],
                catch_up="all",
            ),
            "schedule",
        )

    # -- what befalls processes -------------------------------------------------------------------

    def _crash(self, op: Operation, process: Process) -> None:
        self._world.faults += 1
        self._world.kill(process, op["callbacks"])

    def _stop(self, op: Operation, process: Process) -> None:
        process.spawn(process.stop(), "stop")

    def _freeze(self, op: Operation, process: Process) -> None:
        self._world.faults += 1
        process.stopped_until = self._world.now + op["seconds"]

    def _block(self, op: Operation, process: Process) -> None:
        self._world.faults += 1
        process.blocked_until = self._world.now + op["seconds"]

    def _cut(self, op: Operation, process: Process) -> None:
        self._world.faults += 1
        process.cut_off_until = self._world.now + op["seconds"]

    def _fate(self, op: Operation, process: Process) -> None:
        process.fates.setdefault(op["verb"], []).append((op["fate"], op["seconds"]))

    def _step_clock(self, op: Operation) -> None:
        self._world.faults += 1
        self._world.clock.offset += op["seconds"]

    # -- the end ----------------------------------------------------------------------------------

    def feed(self) -> bool:
        """Give every run that waits what it waits for, and let go on what is paused; False when all have ended."""
        store, fed = self._world.store, False
        for row in list(store._rows.values()):
            if row.state in TERMINAL:
                continue
            fed = True
            self._fed += 1
            run_id = row.new.id
            if row.state is State.PAUSED:
                request = Request(Verb.RESUME, by="the end", id=f"end {self._fed}")
                self._direct("request", run_id, request)
                continue
            for name in open_waits(row):
                if name in NAMES:
                    signal = NewSignal(run_id, f"end{self._fed}", name, f'"sig:end{self._fed}:"')
                    self._direct("send_signals", [signal])
                elif name.startswith("event/"):
                    event = Published(f"end{self._fed}", name.split("/")[1], "", f'"evt:end{self._fed}:"', 0.0)
                    self._direct("publish", [event])
        return fed

    def _direct(self, verb: str, *args: Any) -> None:
        """Into the store, without faults."""
        process = next(iter(self._world.processes.values()))
        self._world.send(process, verb, args, _unheard)
        self._world.now += 0.1


def _unheard(_value: Any, _error: Exception | None) -> None:
    """Nobody waits for the answer."""
