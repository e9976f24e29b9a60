"""How long it takes one worker to fire thousands of schedules that are due in the same minute.

    python benchmarks/schedules.py [--schedules 10000] [--store postgres|sqlite|memory] [--overlap skip|allow]

It prints when the last of them was fired, counted from the tick, and when the last run had ended; and how many calls
for schedules an idle engine makes in ten seconds, with as many schedules that are far off and with none. Figures of one
run on one machine are for orientation.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import count

from durable import Context, Engine, Schedule, WorkerOptions, workflow
from durable.schedules import Due, ScheduleWrite
from durable.store import Store
from durable.stores import store_for
from durable.testing.postgres import own_postgres

_PAGE = 500


@workflow
async def nothing(ctx: Context) -> None:
    """What is measured is the firing."""


class Fired:
    """Knows when the last schedule was fired, and how often it was asked for what is due."""

    def __init__(self, store: Store, expected: int) -> None:
        self.looks = 0
        self.left = expected
        self.all = asyncio.Event()
        self._write, self._due = store.write_schedules, store.due_schedules
        store.write_schedules = self._written  # type: ignore[method-assign]
        store.due_schedules = self._looked  # type: ignore[method-assign]

    async def _written(self, writes: Sequence[ScheduleWrite]) -> list[bool]:
        applied = await self._write(writes)
        self.left -= sum(len(write.runs) for write, answer in zip(writes, applied, strict=True) if answer)
        if self.left <= 0:
            self.all.set()
        return applied

    async def _looked(self, limit: int, after: tuple[datetime, str] | None) -> Due:
        self.looks += 1
        return await self._due(limit, after)


async def declare(engine: Engine, store: Store, number: int, due: datetime, overlap: str) -> None:
    """``number`` daily schedules, all due at the same time."""
    model = await engine.schedule(nothing, name="model", every=86_400, overlap=overlap)
    await engine.delete_schedule("model")
    made: list[Schedule] = [
        replace(model, spec=replace(model.spec, name=f"s{at}"), next_at=due, due_at=due) for at in range(number)
    ]
    for start in range(0, number, _PAGE):
        await store.write_schedules([ScheduleWrite(one) for one in made[start : start + _PAGE]])


async def same_minute(store: Store, number: int, overlap: str) -> None:
    fired = Fired(store, number)
    async with Engine(store, workflows=[nothing], worker=WorkerOptions(concurrency=500)) as engine:
        now = (await store.due_schedules(1, None)).now
        due = now + timedelta(seconds=30)
        await declare(engine, store, number, due, overlap)
        await engine.schedule(nothing, name="told", every=86_400)  # the scheduler hears of the others
        left = (due - store.clock.now()).total_seconds()
        assert left > 0, "declaring them took longer than half a minute"
        await asyncio.sleep(left)
        started = time.perf_counter()
        await fired.all.wait()
        print(
            f"{number} schedules of one minute: the last was fired after {time.perf_counter() - started:.1f} s", end=""
        )
        while await open_runs(engine):  # asking more would cost what is measured
            await asyncio.sleep(0.1)
        print(f", the last run had ended after {time.perf_counter() - started:.1f} s")


async def open_runs(engine: Engine) -> int:
    pages = [await engine.list_runs(state=state, limit=1) for state in ("pending", "running")]
    return sum(len(page.items) for page in pages)


async def idle(store: Store, number: int) -> None:
    fired = Fired(store, 1)
    async with Engine(store, workflows=[nothing]) as engine:
        now = (await store.due_schedules(1, None)).now
        await declare(engine, store, number, now + timedelta(days=300), "skip")
        await engine.run_until_idle()
        await asyncio.sleep(1)  # what was announced is heard
        fired.looks = 0
        await asyncio.sleep(10)
        print(f"{number} schedules that are far off: {fired.looks} calls for schedules in 10 s")


@contextlib.contextmanager
def stores(kind: str) -> Generator[Callable[[], Store]]:
    """Makes a new, empty store each time it is called."""
    numbers = count(1)
    if kind == "postgres":
        with own_postgres() as server:
            yield lambda: store_for(server.database(f"bench_{next(numbers)}"), "durable")
    elif kind == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield lambda: store_for(f"sqlite:///{folder}/{next(numbers)}.db", "durable")
    else:
        yield lambda: store_for("memory://", "durable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--store", choices=["postgres", "sqlite", "memory"], default="postgres")
    parser.add_argument("--overlap", choices=["skip", "queue", "cancel_previous", "allow"], default="skip")
    options = parser.parse_args()
    with stores(options.store) as make:
        print(f"{options.store}, overlap={options.overlap}")
        asyncio.run(same_minute(make(), options.schedules, options.overlap))
        asyncio.run(idle(make(), 0))
        asyncio.run(idle(make(), options.schedules))


if __name__ == "__main__":
    main()
