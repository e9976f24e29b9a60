"""The workflow of the simulations, which follows a random plan, and the ledger of what its functions really did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from durable import ChildFailed, Context, Retry, StepFailed, WaitTimeout, current_step, workflow
from tests.simulation.threads import Takes

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

Plan = dict[str, Any]
"""One operation of a plan."""


class Effect(NamedTuple):
    """One time that a step's function, or a compensation, was called."""

    number: int
    run_id: str
    key: str  # of its record
    attempt: int
    worker: str
    claim: int  # 0: nobody's


class Flows:
    """The workflow and its ledger.

    Args:
        world: Told of every effect.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.effects: list[Effect] = []
        self.shared: dict[str, str] = {}
        """Results of effects that runs share → their key."""

        @workflow(name="flow", signals={})
        async def flow(ctx: Context, plan: Any) -> int:
            process = cast("Process", ctx.services["process"])
            await self._follow(ctx, process, "", plan)
            return len(plan)

        self.workflow = flow

    async def _follow(self, ctx: Context, process: Process, prefix: str, plan: list[Plan]) -> None:
        before: list[str] = []  # keys of the steps of this branch that have ended
        for op in plan:
            await self._operate(ctx, process, prefix, op, tuple(before))
            if op["op"] == "step":
                before.append(f"{prefix}{op['name']}")

    async def _operate(self, ctx: Context, process: Process, prefix: str, op: Plan, before: tuple[str, ...]) -> None:
        name: str = op["name"]
        match op["op"]:
            case "step":
                key = f"{prefix}{name}"
                made = self._in_thread if op.get("thread") else self._effect
                effect = ctx.step(
                    name,
                    partial(made, process, key, before),
                    op,
                    timeout=op.get("timeout"),
                    retry=Retry(op["attempts"], "fixed", initial_delay=op["backoff"]),
                    compensate=partial(self._undo, process, key) if op["undo"] else None,
                    idempotency_key=op.get("shared"),
                    returns=str,
                )
                try:
                    value = await effect
                except StepFailed:
                    if op["fatal"]:
                        raise
                else:
                    assert process.engine._worker is not None
                    self._world.monitor.saw(process.engine._worker, ctx.run_id, key, value)
            case "sleep":
                await ctx.sleep(name, op["seconds"])
            case "wait":
                await _or_not(ctx.branch(name).wait_for(op["signal"], timeout=op["timeout"]))
            case "any":
                await _or_not(ctx.wait_for_any(name, dict.fromkeys(op["signals"], Any), timeout=op["timeout"]))
            case "event":
                await _or_not(ctx.branch(name).wait_for_event(op["topic"], timeout=op["timeout"]))
            case "emit":
                await ctx.emit(name, name)
            case "call":
                await _or_not(ctx.call(name, self.workflow, op["plan"]))
            case "map":
                item = partial(self._item, process, f"{prefix}{name}")
                takes: list[float] = op["takes"]
                await ctx.map(name, item, list(enumerate(takes)), concurrency=2, returns=str)
            case "gather":
                sides: Iterable[Any] = (
                    self._follow(ctx.branch(f"{name} {side}"), process, f"{prefix}{name} {side}/", plan)
                    for side, plan in enumerate(op["plans"])
                )
                await asyncio.gather(*sides)
            case _:
                raise ValueError("the plan says so")

    async def _item(self, process: Process, key: str, item: tuple[int, float]) -> str:
        index, takes = item
        return await self._effect(process, f"{key}[{index}]", (), {"takes": takes, "fails": 0})

    def _in_thread(self, process: Process, key: str, before: tuple[str, ...], op: Plan) -> Any:
        """The synchronous form; the world's threads know what to do with its answer."""
        step = current_step()
        effect = self._begin(process, step.run_id, key, step.attempt, before)
        self._world.monitor.stands(process, step.idempotency_key, op["takes"])
        if step.attempt <= op["fails"]:
            return Takes(op["takes"], error=ConnectionError("the plan says so"))
        return Takes(op["takes"], f"eff:{effect.number}:")

    async def _effect(self, process: Process, key: str, before: tuple[str, ...], op: Plan) -> str:
        step = current_step()
        effect = self._begin(process, step.run_id, key, step.attempt, before)
        if "shared" in op:
            self.shared[f"eff:{effect.number}:"] = op["shared"]
        await asyncio.sleep(op["takes"])
        if step.attempt <= op["fails"]:
            raise ConnectionError("the plan says so")
        return f"eff:{effect.number}:"

    async def _undo(self, process: Process, key: str, value: str) -> None:
        step = current_step()
        self._begin(process, step.run_id, f"{key}/undo", step.attempt, ())
        self._world.monitor.undoes(step.run_id, key, value)
        await asyncio.sleep(0.1)

    def _begin(self, process: Process, run_id: str, key: str, attempt: int, before: tuple[str, ...]) -> Effect:
        worker = process.engine._worker
        assert worker is not None
        execution = worker._active.get(run_id)
        claim = 0 if execution is None else execution.ref.claim
        effect = Effect(len(self.effects) + 1, run_id, key, attempt, worker.id, claim)
        self.effects.append(effect)
        self._world.say(process.name, f"effect {effect.number}: {self._world.name(run_id, 'r')} {key} #{attempt}")
        self._world.monitor.begins(process, worker, effect, before)
        return effect


async def _or_not(wait: Any) -> None:
    """What does not come in time, and a child that fails, are part of life."""
    try:
        await wait
    except (WaitTimeout, ChildFailed):
        return
