"""What a contestant's process can be told to do. Each says what it measured, and the lab ends the process.

Times begin with the first step that is executed, or with the first trigger, and end when the database says that every
run has ended.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from benchmarks.contestants.base import Contestant, Counts
from benchmarks.work import STEPS, executed, outcome

Say = Callable[[dict[str, Any]], None]
BATCH = 1000


async def install(contestant: Contestant, say: Say) -> None:
    await contestant.install()
    say({})


async def trigger(contestant: Contestant, say: Say, work: str, runs: int) -> None:
    """Nobody executes them yet."""
    async with contestant.client():
        started = time.monotonic()
        for first in range(0, runs, BATCH):
            await contestant.trigger_many(work, range(first, min(first + BATCH, runs)))
        say({"seconds": time.monotonic() - started})


async def drain(contestant: Contestant, say: Say, work: str, runs: int, limit: float) -> None:
    """Execute what was triggered before."""
    async with contestant.worker():
        counts = await ended(contestant, work, runs, time.monotonic() + limit)
        assert executed.first is not None, "no step was executed"
        say(told(counts, time.monotonic() - executed.first))


async def together(contestant: Contestant, say: Say, work: str, runs: int, limit: float) -> None:
    """Trigger while a worker of the same process executes; a quarter of the runs in flight with each call."""
    async with contestant.worker():
        started = time.monotonic()
        for first in range(0, runs, BATCH):
            await contestant.trigger_many(work, range(first, min(first + BATCH, runs)))
        counts = await ended(contestant, work, runs, started + limit)
        say(told(counts, time.monotonic() - started))


async def serve(contestant: Contestant, say: Say) -> None:
    """A worker process, until it is told to say what it did."""
    async with contestant.worker():
        say({"serving": True})
        await asyncio.to_thread(input)
        say({"first": executed.first, "executed": executed.steps})


async def latency(contestant: Contestant, say: Say, work: str, samples: int, worker: bool) -> None:
    """One run at a time on an idle system, from the call to its result."""
    seconds: list[float] = []
    async with contestant.worker() if worker else contestant.client():
        for n in range(samples + 10):
            await asyncio.sleep(0.005)  # everything about the last one is over
            started = time.monotonic()
            result = await contestant.result(await contestant.trigger(work, n))
            seconds.append(time.monotonic() - started)
            assert int(result) == outcome(work, n), result
        say({"seconds": seconds[10:], "executed": executed.steps})


async def fan_out(contestant: Contestant, say: Say, work: str, samples: int) -> None:
    """One parent at a time, each with a hundred of something, from the call to its result."""
    seconds: list[float] = []
    async with contestant.worker():
        for _ in range(samples + 2):
            started = time.monotonic()
            result = await contestant.result(await contestant.trigger(work, 100))
            seconds.append(time.monotonic() - started)
            assert result == sum(range(100)), result
        assert executed.steps == 100 * (samples + 2), executed.steps
        say({"seconds": statistics.median(seconds[2:])})


async def settle(contestant: Contestant, say: Say, steps: int) -> None:
    """One run with many records, which waits. The lab kills this process."""
    async with contestant.worker():
        run = await contestant.settle(steps)
        assert executed.steps == steps, executed.steps
        say({"run": run})
        await asyncio.Event().wait()


async def resume(contestant: Contestant, say: Say, run: str, steps: int) -> None:
    """From the start of a worker to the result of a run that waited; none of its steps is executed again."""
    started = time.monotonic()
    async with contestant.worker():
        result = await contestant.resume(run)
        seconds = time.monotonic() - started
        assert result == sum(range(steps)), result
        assert executed.steps == 0, executed.steps
        say({"seconds": seconds})


async def sustain(contestant: Contestant, say: Say, intervals: int, interval: float) -> None:
    """Trigger and execute without a pause; what each interval carried is said at its end."""
    triggered = 0
    async with contestant.worker():
        started = time.monotonic()
        for number in range(intervals):
            before, over = executed.steps, started + (number + 1) * interval
            while time.monotonic() < over:
                if triggered - executed.steps < 2 * BATCH:
                    await contestant.trigger_many("one", range(triggered, triggered + BATCH // 2))
                    triggered += BATCH // 2
                else:
                    await asyncio.sleep(0.001)
            say({"executed": executed.steps - before})
        counts = await ended(contestant, "one", triggered, time.monotonic() + 60)
        assert counts.runs == triggered, f"{counts.runs} of {triggered} runs have ended"
        say({"runs": counts.runs})


async def triggers(contestant: Contestant, say: Say, callers: int, seconds: float) -> None:
    """Calls of ``callers`` tasks, each of which makes the next one when the last is committed."""
    numbers = count()
    async with contestant.client():
        started = time.monotonic()

        async def call() -> None:
            while time.monotonic() < started + seconds:
                await contestant.trigger("one", next(numbers))

        await asyncio.gather(*(call() for _ in range(callers)))
        say({"runs": next(numbers), "seconds": time.monotonic() - started})


async def ended(contestant: Contestant, work: str, runs: int, deadline: float) -> Counts:
    """Wait until the database says so, or the time is over. It is asked when the steps were executed, not before."""
    while executed.steps < runs * STEPS[work] and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
    counts = await asyncio.to_thread(contestant.counts)
    while counts.runs < runs and time.monotonic() < deadline:
        await asyncio.sleep(0.002)
        counts = await asyncio.to_thread(contestant.counts)
    return counts


def told(counts: Counts, seconds: float) -> dict[str, Any]:
    return {"runs": counts.runs, "steps": counts.steps, "executed": executed.steps, "seconds": seconds}
