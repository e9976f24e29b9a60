"""The timeline: one ``started`` for each attempt that ended, written with the state, at no cost of its own."""

from __future__ import annotations

from durable import Context, Retry, workflow
from tests.engine.backends import Backend
from tests.engine.test_replay import EVICT


async def test_P47_the_timeline_tells_everything_in_order(backend: Backend) -> None:
    calls: list[int] = []

    async def flaky() -> str:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("gone")
        return "done"

    @workflow
    async def told(ctx: Context) -> str:
        found = await ctx.step("flaky", flaky, retry=Retry(3, "fixed", initial_delay=0.01))
        await ctx.sleep("nap", EVICT)
        return found

    async with backend.engine(told, linger=0) as engine:
        handle = await engine.trigger(told)
        await backend.result(engine, handle)
        entries = await engine.timeline(handle.run_id)
    assert [(entry.kind, entry.name, entry.attempt) for entry in entries] == [
        ("triggered", "told", None),
        ("running", "told", None),
        ("started", "flaky", 1),
        ("retrying", "flaky", 1),
        ("started", "flaky", 2),
        ("retrying", "flaky", 2),
        ("started", "flaky", 3),
        ("completed", "flaky", 3),
        ("sleeping", "nap", None),
        ("woke", "nap", None),
        ("completed", "told", None),
    ]
    assert [entry.seq for entry in entries] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 5]
    assert len({entry.worker for entry in entries if entry.worker is not None}) == 1
    assert "ConnectionError" in str(entries[3].data)
    assert entries[7].data == '"done"'
    ends = [entry.at for entry in entries if entry.kind != "started"]
    assert ends == sorted(ends)


async def test_P47_each_attempt_starts_after_the_one_before_has_ended(backend: Backend) -> None:
    async def fails() -> None:
        raise ConnectionError("gone")

    @workflow
    async def told(ctx: Context) -> None:
        await ctx.step("fails", fails, retry=Retry(3, "fixed", initial_delay=0.01))

    async with backend.engine(told) as engine:
        handle = await engine.trigger(told)
        await backend.ended(engine, handle)
        attempts = [entry for entry in await engine.timeline(handle.run_id) if entry.attempt is not None]
    times = [entry.at for entry in attempts]
    assert times == sorted(times)
    assert [entry.kind for entry in attempts] == ["started", "retrying", "started", "retrying", "started", "failed"]
