"""Stores that lose answers, go down or miss renewals; databases that are not there; what each thing costs."""

from __future__ import annotations

import asyncio
import logging
import os
import stat
import traceback
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durable import ConfigurationError, Context, Engine, Retry, State, StoreUnavailable, workflow
from tests.engine.backends import SOON, Backend, memory
from tests.engine.test_replay import EVICT
from tests.engine.wrapped import BadRenewals, Between, Call, GoesDown, LosesAnswers

SECRET = "s3cr3t-pa55"


def files(directory: Path) -> dict[str, int]:
    """Names and permissions."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}


async def add(n: int) -> int:
    return n + 1


@workflow
async def three_steps(ctx: Context, n: int) -> int:
    for number in range(3):
        n = await ctx.step(f"add {number}", add, n)
    await ctx.sleep("nap", EVICT)
    return n


async def test_P05_one_failed_renewal_aborts_nothing(real_time: Backend) -> None:
    calls: list[str] = []
    release = asyncio.Event()
    store = BadRenewals(real_time.store(), misses=1)

    async def slow() -> str:
        calls.append("slow")
        await release.wait()
        return "slow"

    @workflow
    async def flow(ctx: Context) -> str:
        return await ctx.step("slow", slow)

    async with real_time.engine(flow, store=store.store, lease=1.0) as engine:
        handle = await engine.trigger(flow)
        async with asyncio.timeout(SOON):
            for _ in range(3):  # one that fails, one that succeeds, and that one has ended
                await store.begun.acquire()
        release.set()
        assert await handle.result(timeout=SOON) == "slow"
        kinds = {entry.kind for entry in await engine.timeline(handle.run_id)}
    assert store.left == 0
    assert calls == ["slow"]
    assert "takeover" not in kinds


async def test_P05_a_renewal_that_takes_long_is_not_blamed_on_the_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    store = BadRenewals(memory().store(), seconds=1.1)  # a loop is reported after one
    async with memory().engine(three_steps, store=store.store, lease=3.0):
        async with asyncio.timeout(SOON):
            for _ in range(2):
                await store.begun.acquire()
    assert "blocked" not in caplog.text


async def test_a_run_that_leaves_while_the_worker_looks_for_what_it_holds_is_no_stray(real_time: Backend) -> None:
    """After a claim without an answer the worker asks what it holds. By the answer a run has parked by itself."""
    go_on, asked = asyncio.Event(), 0

    class Slow(Between):
        async def around(self, name: str, call: Call) -> Any:
            nonlocal asked
            answer = await call()
            if name == "claim" and answer.runs and not asked:
                asked = 1
            elif name == "claim" and asked == 1:
                asked = 2
                raise StoreUnavailable("no answer")
            elif name == "owned" and asked == 2:
                asked = 3
                assert [ref.id for ref in answer] == [handle.run_id]
                go_on.set()
                await real_time.until(client, handle.run_id, State.SLEEPING)
            return answer

    @workflow
    async def flow(ctx: Context) -> str:
        await ctx.step("until it is read", go_on.wait)
        await ctx.sleep("nap", 0.5)
        return "done"

    store = Slow(real_time.store()).store
    client = real_time.engine(flow)
    async with client.client():
        handle = await client.trigger(flow)
        async with real_time.engine(flow, store=store, poll_interval=0.05):
            assert await handle.result(timeout=SOON) == "done"
    assert asked == 3


@pytest.mark.parametrize("verb", ["commit", "claim", "create_runs"])
async def test_P11_a_lost_acknowledgement_loses_nothing_and_applies_nothing_twice(
    real_time: Backend, verb: str
) -> None:
    calls: list[tuple[str, str]] = []
    store = LosesAnswers(real_time.store(), verb)

    @workflow
    async def counted(ctx: Context, name: str) -> str:
        for step in ("a", "b"):
            await ctx.step(step, partial(calls.append, (name, step)))
            await ctx.sleep(f"after {step}", EVICT)
        return name

    names = [f"run {n}" for n in range(5)]
    async with real_time.engine(counted, store=store.store, linger=0, poll_interval=0.05) as engine:
        handles = await engine.trigger_many(counted, names)
        assert [handle.created for handle in handles] == [True] * 5
        assert [await handle.result(timeout=SOON) for handle in handles] == names
        assert len((await engine.list_runs()).items) == 5
        for handle in handles:
            entries = await engine.timeline(handle.run_id)
            assert [entry.name for entry in entries if entry.kind == "completed"] == ["a", "b", "counted"]
    assert store.lost >= 1
    assert sorted(calls) == sorted((name, step) for name in names for step in ("a", "b"))


async def test_P17_a_store_that_is_down_during_a_run_compensates_nothing(real_time: Backend) -> None:
    calls: list[str] = []
    store = GoesDown(real_time.store())
    heard = asyncio.Event()

    def charge() -> str:
        calls.append("charge")
        store.down = True
        return "charged"

    def refund(_: str) -> None:
        calls.append("refund")

    @workflow
    async def flow(ctx: Context) -> str:
        found = await ctx.step("charge", charge, compensate=refund)
        heard.set()
        await ctx.step("ship", lambda: calls.append("ship"))
        return found

    async with real_time.engine(flow, store=store.store) as engine:
        handle = await engine.trigger(flow)
        await heard.wait()
        failed = len(store.made("commit"))
        async with asyncio.timeout(SOON):
            while len(store.made("commit")) < failed + 2:  # noqa: ASYNC110 - it is tried again, in vain
                await asyncio.sleep(0.01)
        assert calls == ["charge"]  # nothing with an effect starts before the commit of what came before it
        store.down = False
        assert await handle.result(timeout=SOON) == "charged"
    assert calls == ["charge", "ship"]


async def test_P20_resuming_is_one_claim_and_a_step_is_one_record(backend: Backend) -> None:
    store = Between(backend.store())
    async with backend.engine(three_steps, store=store.store, linger=0) as engine:
        handle = await engine.trigger(three_steps, 0)
        assert await backend.result(engine, handle) == 3
    assert store.made("history") == []
    assert store.made("get_runs") == []
    records = [record.key for writes in store.made("commit") for write in writes[1] for record in write.records]
    assert records == ["add 0", "add 1", "add 2", "nap", "nap/woke"]


async def test_P20_a_retry_costs_one_record_and_a_success_none_more(backend: Backend) -> None:
    store = Between(backend.store())
    attempts: list[int] = []

    async def flaky() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("gone")

    @workflow
    async def retried(ctx: Context) -> None:
        await ctx.step("flaky", flaky, retry=Retry(3, "fixed", initial_delay=0.01))

    async with backend.engine(retried, store=store.store) as engine:
        await backend.result(engine, await engine.trigger(retried))
    records = [record.key for writes in store.made("commit") for write in writes[1] for record in write.records]
    assert records == ["flaky/attempt/1", "flaky/attempt/2", "flaky"]


@pytest.mark.parametrize(
    "url", [f"postgresql://app:{SECRET}@127.0.0.1:1/app", f"postgresql://app:{SECRET}@/app?host=/nowhere"]
)
async def test_P43_P55_a_database_that_is_down_fails_the_start_and_no_text_shows_its_password(
    url: str, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.DEBUG)
    engine = Engine(url, workflows=[three_steps])
    with pytest.raises(StoreUnavailable) as raised:
        await engine.start()
    shown = [str(raised.value), repr(raised.value), repr(engine), caplog.text]
    shown += traceback.format_exception(raised.value)
    assert all(SECRET not in text for text in shown)
    assert files(tmp_path) == {}  # no fallback to one
    with pytest.raises(StoreUnavailable):
        async with engine.client():
            pass


async def test_P43_a_file_that_cannot_be_opened_fails_the_start(tmp_path: Path) -> None:
    engine = Engine(f"sqlite:///{tmp_path}/missing/durable.db", workflows=[three_steps])
    with pytest.raises(StoreUnavailable, match="missing"):
        await engine.start()
    (tmp_path / "text.db").write_text("this is no database, and it is long enough to be looked at as one" * 100)
    with pytest.raises(ConfigurationError, match=r"text\.db is not a SQLite database"):
        await Engine(f"sqlite:///{tmp_path}/text.db").start()


async def test_P55_a_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with Engine(f"sqlite:///{tmp_path}/durable.db", workflows=[three_steps]) as engine:
            await (await engine.trigger(three_steps, 1)).result(timeout=SOON)
            modes = files(tmp_path)
    finally:
        os.umask(before)
    assert "durable.db" in modes
    assert set(modes.values()) == {0o600}


async def test_P55_a_url_in_an_error_is_stored_without_its_password(backend: Backend) -> None:
    @workflow
    async def tells(ctx: Context) -> None:
        raise ConnectionError(f"cannot reach postgresql://app:{SECRET}@db/app")

    async with backend.engine(tells) as engine:
        handle = await engine.trigger(tells)
        run = await backend.ended(engine, handle)
        entries = await engine.timeline(handle.run_id)
    assert run.state is State.FAILED
    assert "postgresql://app:***@db/app" in (run.error or "")
    assert SECRET not in (run.error or "") + repr(entries)


async def test_the_default_store_is_a_file_and_one_warning_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DURABLE_DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://app:{SECRET}@db/app")
    async with Engine(workflows=[three_steps]) as engine:
        assert await (await engine.trigger(three_steps, 0)).result(timeout=SOON) == 3
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(tmp_path / "durable.db") in warning
    assert "DATABASE_URL is set" in warning
    assert SECRET not in caplog.text
