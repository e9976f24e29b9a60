"""An AI agent that plans, uses tools, waits for a person, and goes on. Every model call is recorded.

    python -m examples.agent

A model call costs money and never answers twice the same: a crash in turn seven must not repeat the six before. The
model here is a fake with a script; a real one is a client in ``ctx.services``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

from durable import Context, Engine, Retry, workflow
from durable.testing import MemoryStore

MOST_TURNS = 20
MODEL = Retry(max_attempts=5, initial_delay=0.5, max_delay=20.0, jitter=0.3)


@dataclass
class ToolCall:
    tool: str
    argument: str


@dataclass
class Turn:
    """What the model says: tools to use, a question to a person, or the answer."""

    tools: list[ToolCall] = field(default_factory=list[ToolCall])
    question: str = ""
    answer: str = ""


@dataclass
class Reply:
    text: str


class Model(Protocol):
    async def next_turn(self, conversation: Sequence[str]) -> Turn: ...


async def search(argument: str) -> str:
    return f"three flights to {argument}"


async def weather(argument: str) -> str:
    return f"rain in {argument}"


TOOLS = {"search": search, "weather": weather}


@workflow(name="agent", signals={"reply": Reply}, timeout=timedelta(days=30))
async def agent(ctx: Context, task: str) -> str:
    """Turn after turn, until there is an answer."""
    model: Model = ctx.services["model"]
    conversation = [f"task: {task}"]
    for number in range(MOST_TURNS):
        turn = await ctx.step("think", model.next_turn, conversation, retry=MODEL, timeout=120)
        if turn.answer:
            return turn.answer
        if turn.question:
            await ctx.emit("question", turn.question)  # the chat page reads engine.events
            reply = await ctx.wait_for("reply", Reply)  # for a minute or a week, and without a process
            conversation.append(f"person: {reply.text}")
        results = await asyncio.gather(
            *(ctx.branch(f"turn {number} call {i}").step(call.tool, TOOLS[call.tool], call.argument)
              for i, call in enumerate(turn.tools))
        )  # fmt: skip
        conversation += results
    return "I did not find an answer."


class ScriptedModel:
    """Says what its script says, and counts what that would cost."""

    def __init__(self) -> None:
        self.calls = 0

    async def next_turn(self, conversation: Sequence[str]) -> Turn:
        self.calls += 1
        if len(conversation) == 1:
            return Turn(tools=[ToolCall("search", "Oslo"), ToolCall("weather", "Oslo")])
        if not any(line.startswith("person:") for line in conversation):
            return Turn(question="It rains. Still go?")
        return Turn(answer=f"Booked, after {len(conversation)} lines of talk.")


async def main() -> None:
    services: Mapping[str, Model] = {"model": ScriptedModel()}
    async with Engine(MemoryStore(), workflows=[agent], services=services) as engine:
        run = await engine.trigger(agent, "a weekend in Oslo")
        cursor, question = None, None
        while question is None:
            page = await engine.events(after=cursor)
            cursor, question = page.next_cursor, next((entry.data for entry in page.items), None)
            await asyncio.sleep(0.01)
        print(question)
        await engine.signal(run.run_id, "reply", Reply("yes"))
        print(await run.result(timeout=10))


if __name__ == "__main__":
    asyncio.run(main())
