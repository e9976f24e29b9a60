"""``engine.sync``: what views and scripts call, from threads without an event loop."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from pathlib import Path
from typing import Any

import pytest

from durable import (
    ConfigurationError,
    Context,
    Engine,
    KeyConflict,
    RunFailed,
    RunFinished,
    RunNotFound,
    State,
    StoreUnavailable,
    workflow,
)
from tests.engine.backends import SOON, Backend


@workflow
async def doubled(ctx: Context, number: int) -> int:
    if number < 0:
        raise ValueError("negative")
    return await ctx.step("double", int, 2 * number)


@workflow
async def asks(ctx: Context) -> str:
    return await ctx.wait_for("answer", str)


def test_a_script_triggers_signals_reads_and_cancels(real_time: Backend) -> None:
    """The worker runs on a loop in another thread, as in another process."""
    worker, stop, ready = real_time.engine(doubled, asks), threading.Event(), threading.Event()

    async def work() -> None:
        async with worker:
            ready.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=asyncio.run, args=(work(),))
    thread.start()
    try:
        assert ready.wait(SOON)
        engine = real_time.engine(doubled, asks)
        handle = engine.sync.trigger(doubled, 4, key="four")
        assert handle.result(SOON) == 8
        again = engine.sync.trigger(doubled, 4, key="four")
        assert (again.run_id, again.created, again.status()) == (handle.run_id, False, State.COMPLETED)
        with pytest.raises(KeyConflict):
            engine.sync.trigger(doubled, 5, key="four")
        assert [one.result(SOON) for one in engine.sync.trigger_many(doubled, [1, 2])] == [2, 4]
        with pytest.raises(RunFailed, match="negative"):
            engine.sync.trigger(doubled, -1).result(SOON)
        waits = engine.sync.trigger(asks)
        with pytest.raises(TimeoutError):
            waits.result(0.01)
        engine.sync.signal(waits.run_id, "answer", "yes")
        assert engine.sync.handle(asks, run_id=waits.run_id).result(SOON) == "yes"
        with pytest.raises(RunFinished):
            engine.sync.signal(waits.run_id, "answer", "yes")
        cancelled = engine.sync.trigger(asks, delay=3600)
        assert cancelled.cancel(reason="no")
        assert engine.sync.get_run(cancelled.run_id).state is State.CANCELLED
        assert len(engine.sync.list_runs(workflow="asks", limit=1).items) == 1
        with pytest.raises(RunNotFound):
            engine.sync.handle("asks", key="none")
        engine.sync.close()
        assert engine.sync.get_run(handle.run_id).state is State.COMPLETED
        engine.sync.close()
    finally:
        stop.set()
        thread.join()
    assert not [one for one in threading.enumerate() if one.name == "durable sync"]


def test_many_threads_share_it(real_time: Backend) -> None:
    engine = real_time.engine(doubled)
    found: list[str] = []

    def view() -> None:
        found.append(engine.sync.trigger(doubled, 1, key="one").run_id)

    threads = [threading.Thread(target=view) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.sync.close()
    assert len(found) == 20
    assert len(set(found)) == 1


async def test_it_refuses_to_block_an_event_loop(backend: Backend) -> None:
    with pytest.raises(ConfigurationError, match="event loop"):
        backend.engine(doubled).sync.trigger(doubled, 1)


def test_P43_a_store_that_cannot_be_reached_is_told_to_each_caller(tmp_path: Path) -> None:
    engine = Engine("postgresql://nobody@127.0.0.1:1/none", workflows=[doubled])
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            engine.sync.trigger(doubled, 1)


def _in_a_fork(engine: Engine, answer: Any) -> None:
    answer.send(engine.sync.trigger(doubled, 1, key="one").run_id)


def test_a_forked_process_connects_anew(tmp_path: Path) -> None:
    engine = Engine(f"sqlite:///{tmp_path}/durable.db", workflows=[doubled])
    here = engine.sync.trigger(doubled, 1, key="one").run_id
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_in_a_fork, args=(engine, theirs))
    process.start()
    assert ours.poll(SOON)
    assert ours.recv() == here
    process.join(SOON)
    assert process.exitcode == 0
    engine.sync.close()
