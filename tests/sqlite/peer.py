"""Another process on the same file: reads one JSON command a line, answers one JSON line. Run as a script."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Any
from uuid import uuid4

from durable.declarations import run_of
from durable.model import Kind, NewRun, NewSignal, Outcome, Published, Record, Request, RunRef, RunWrite, Verb
from durable.schedules import ScheduleWrite
from durable.scheduling import decide, fired
from durable.store import Route
from durable.stores.sqlite import SQLiteStore

ROUTE = Route("order", "1")


def new_runs(count: int) -> list[NewRun]:
    return [NewRun(str(uuid4()), *ROUTE[:2], input='{"sku":"tea"}', input_hash="h", seed="5eed") for _ in range(count)]


def step(ref: RunRef, seq: int, at: Any) -> RunWrite:
    return RunWrite(ref, [Record(seq, f"s{seq}", Kind.STEP, at, '"done"')])


def request_words(request: Request) -> tuple[str, str, str]:
    return request.verb, request.reason, request.by


class Commands:
    def __init__(self, path: str) -> None:
        self.path = path
        self.store = SQLiteStore(path)
        self.refs: list[RunRef] = []
        self.seq = 0
        self.holder: sqlite3.Connection | None = None

    async def open(self) -> int:
        await self.store.open()
        await self.store.migrate()
        return await self.store.schema_version()

    async def create(self, count: int) -> int:
        return len(await self.store.create_runs(new_runs(count)))

    async def take(self, worker: str, limit: int) -> list[str]:
        """Register, and claim once."""
        await self.store.register(worker, 60)
        claimed = await self.store.claim(worker, [ROUTE], limit, str(uuid4()), {})
        self.refs = [run.ref for run in claimed.runs]
        return [ref.id for ref in self.refs]

    async def take_all(self, worker: str, limit: int) -> list[str]:
        """Claim until nothing is left."""
        taken: list[str] = []
        while ids := await self.take(worker, limit):
            taken += ids
        return taken

    async def flush(self, worker: str, times: int, callers: int = 1) -> dict[str, float]:
        """So many flushes of one record a run by each of ``callers``, without a pause; the longest, in seconds."""
        parts = [self.refs[n::callers] for n in range(callers)]
        longest = await asyncio.gather(*(self.flush_part(worker, part, times) for part in parts))
        self.seq += times
        return {"longest": max(longest)}

    async def flush_part(self, worker: str, refs: list[RunRef], times: int) -> float:
        longest = 0.0
        for seq in range(self.seq + 1, self.seq + 1 + times):
            sent = time.monotonic()
            outcomes = await self.store.commit(worker, [step(ref, seq, self.store.clock.now()) for ref in refs])
            longest = max(longest, time.monotonic() - sent)
            assert set(outcomes) == {Outcome.APPLIED}
        return longest

    async def flush_for_ever(self, worker: str) -> None:
        """One line after each acknowledged flush."""
        while True:
            await self.flush(worker, 1)
            print(self.seq, flush=True)

    async def transact(self, worker: str, work: Callable[[sqlite3.Connection], Any]) -> None:
        """Have ``work`` and the next record of the run commit together."""
        self.seq += 1

        async def write(_: Any) -> RunWrite:
            return step(self.refs[0], self.seq, self.store.clock.now())

        assert await self.store.transact(worker, work, False, write) is Outcome.APPLIED

    async def transact_for_ever(self, worker: str) -> None:
        """One line after each acknowledged transaction."""
        while True:
            await self.transact(worker, lambda connection: connection.execute("INSERT INTO ledger VALUES (NULL)"))
            print(self.seq, flush=True)

    async def transact_and_hang(self, worker: str) -> None:
        def work(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO ledger VALUES (NULL)")
            print(json.dumps("inside"), flush=True)
            threading.Event().wait()

        await self.transact(worker, work)

    async def signal(self, ids: list[str], signal_ids: list[str]) -> list[str]:
        """Each of these signals to each of these runs, one call for each signal."""
        answers = [
            await self.store.send_signals([NewSignal(run_id, signal_id, "go", "1") for run_id in ids])
            for signal_id in signal_ids
        ]
        return sorted({str(sent) for sent in chain(*answers)})

    async def publish(self, topic: str, event_ids: list[str]) -> int:
        for event_id in event_ids:
            await self.store.publish([Published(event_id, topic, "", "1", 60)])
        return len(event_ids)

    async def take_effect(self, worker: str, key: str) -> bool:
        effect = await self.store.take_effect(worker, self.refs[0], key, "charge")
        assert effect is not None
        return effect.mine

    async def listen(self, worker: str, count: int) -> None:
        """Claim at every hint, without a free slot; tell what is asked at first, and each of ``count`` changes."""
        hint, told = asyncio.Event(), None
        end = self.store.subscribe(lambda _: hint.set())
        for _ in range(count + 1):
            while (asked := await self.asked(worker)) == told:
                await hint.wait()
                hint.clear()
            told = asked
            print(json.dumps(asked), flush=True)
        end()

    async def asked(self, worker: str) -> list[list[str]]:
        answer = await self.store.claim(worker, [ROUTE], 0, str(uuid4()), {})
        return [[run_id, *request_words(request)] for run_id, request in answer.requests]

    async def ask(self, run_id: str, verb: str, by: str) -> str | None:
        return await self.store.request(run_id, Request(Verb(verb), "why", by))

    async def fire(self, limit: int) -> int:
        """Fire what is due in steps of ``limit`` ticks, until nothing is; how many ticks it was that fired them."""
        count = 0
        while found := (await self.store.due_schedules(10, None)).found:
            now, writes = self.store.clock.now(), list[ScheduleWrite]()
            for stored, previous in found:
                plan = decide(stored, now, previous, limit=limit)
                runs = [run_of(stored.spec, one.tick, now) for one in plan.fire]
                writes.append(fired(stored, runs, plan.skipped, now, (plan.next_at, plan.due_at)))
            answers = await self.store.write_schedules(writes)
            count += sum(len(write.runs) for write, answer in zip(writes, answers, strict=True) if answer)
        return count

    async def prune(self, limit: int) -> int:
        """Until nothing is left."""
        total = 0
        while pruned := await self.store.prune(self.store.clock.now(), limit):
            total += pruned
        return total

    async def hold(self) -> None:
        """Take the write lock and keep it."""
        self.holder = sqlite3.connect(self.path, isolation_level=None)
        self.holder.execute("BEGIN IMMEDIATE")
        self.holder.execute("INSERT INTO durable_workers (id, expires_at) VALUES ('half-written', 0)")

    async def let_go(self) -> None:
        assert self.holder is not None
        self.holder.execute("ROLLBACK")


async def main() -> None:
    commands = Commands(sys.argv[1])
    loop = asyncio.get_running_loop()
    print(json.dumps("here"), flush=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        verb, *arguments = json.loads(line)
        command: Callable[..., Awaitable[Any]] = getattr(commands, verb)
        print(json.dumps(await command(*arguments)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
