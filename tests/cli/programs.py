"""Programs as users have them: a module with an engine, and what a terminal shows of the command that runs it."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pexpect

APP = """
    import asyncio
    from durable import Context, Engine, WorkerOptions, workflow

    async def hello(name: str) -> str:
        return f"hello {{name}}"

    async def forever() -> None:
        print("the step runs", flush=True)
        await asyncio.Event().wait()

    @workflow
    async def greet(ctx: Context, name: str) -> str:
        return await ctx.step("hello", hello, name)

    @workflow
    async def stay(ctx: Context) -> None:
        await ctx.step("forever", forever)

    class Told(Engine):
        async def stop(self) -> None:
            print("the engine stops", flush=True)
            await super().stop()

    engine = Told("{url}", workflows=[greet, stay], worker=WorkerOptions(lease=60, drain_timeout={drain}))
"""
UP = re.compile(r"worker [0-9a-f-]{36}, pid (\d+), executes")


def write_app(directory: Path, url: str, drain: float = 30.0) -> None:
    """``app.py`` with an ``engine``."""
    write(directory / "app.py", APP.format(url=url, drain=drain))


def write(path: Path, text: str) -> None:
    path.write_text(dedent(text))


def worker_pid(terminal: pexpect.spawn[str]) -> int:
    """Of the next worker that comes up."""
    return int(found(terminal, UP)[1])


def found(terminal: pexpect.spawn[str], pattern: re.Pattern[str]) -> re.Match[str]:
    """What the terminal shows next of this pattern."""
    terminal.expect(pattern)
    match = terminal.match
    assert isinstance(match, re.Match)
    return match
