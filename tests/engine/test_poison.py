"""Values that databases refuse or change, and names that are meant to be read as SQL, through the whole engine."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from durable import Context, DurableError, Engine, Retry, RunFailed, RunHandle, State, workflow
from durable.errors import InvalidArgument
from durable.stores.postgres import PostgresStore
from durable.testing.conformance.hostile import HOSTILE
from tests.engine.backends import SOON, Backend, PostgresBackend


def _nested(levels: int, around: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = around(value)
    return value


def _endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


_VALUES: list[Any] = [
    "", " ", "\0", "a\0b", "\ud800", "a\udfffb", "\udc80", "\ud83d\ude00", "\x1e", "\x1d", "a\x1eb\x1dc", "\x7f",
    "\u2028", "\ufeff", "\U0010ffff", "\u202e", "e\u0301", "\\u0000", "\\x00", "null", "NaN", "1e400", "'", '"',
    "%s", "$1", "{}", "'; DROP TABLE runs; --", "\r\n", "x" * 100_000,
    float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, -0.0, 2**63, -(2**63) - 1, 2**64, 10**400, 10**4998,
    True, False, None, 0, b"\xff", {1, 2}, object(), Ellipsis, 1j, Decimal("NaN"), Decimal("1.10"), range(3),
    datetime(2026, 1, 1),  # noqa: DTZ001 - the subject
    {"a\0b": 1}, {"\ud800": 1}, {1: "a", "1": "b"}, {None: 1}, ["\0"], [["\ud800"]], [float("nan")], {"": {"": []}},
]  # fmt: skip


def _just(value: Any) -> Callable[[], Any]:
    return lambda: value


def _wrap(value: Any) -> Any:
    return [value]


def _name(value: Any) -> Any:
    return {"a": value}


POISON: list[Callable[[], Any]] = [
    *map(_just, _VALUES),
    lambda: _nested(100, _wrap),
    lambda: _nested(50_000, _wrap),
    lambda: _nested(50_000, _name),
    _endless,
    lambda: "x" * 5_000_000,
]
"""What is not refused has to come back as it was, of its type."""


def _same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


class Poisoned:
    """The workflows, and what became of their runs."""

    def __init__(self) -> None:
        self.made = 0

    async def make(self, number: int) -> Any:
        self.made += 1
        return POISON[number]()

    def flows(self) -> list[Any]:
        @workflow
        async def echo(ctx: Context, value: Any) -> Any:
            return value

        @workflow
        async def output(ctx: Context, number: int) -> bool:
            return _same(await ctx.step("make", self.make, number, retry=Retry(5, initial_delay=0.0)), POISON[number]())

        @workflow
        async def breaks(ctx: Context, number: int) -> None:
            raise ValueError(POISON[number]())

        @workflow
        async def waits(ctx: Context, number: int) -> bool:
            return _same(await ctx.wait_for("poison"), POISON[number]())

        return [echo, output, breaks, waits]


async def test_P50_poison_comes_back_as_it_was_or_is_refused_with_a_typed_error(
    real_time: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned, refused, kept = Poisoned(), 0, 0
    echo, output, breaks, waits = flows = poisoned.flows()
    # No store sees 100 MB, which the codec refuses at four: once is enough.
    if real_time.name == "memory":
        monkeypatch.setattr(f"{__name__}.POISON", [*POISON, lambda: "x" * 100_000_000])
    async with real_time.engine(*flows) as engine:
        for number, make in enumerate(POISON):
            handles: list[RunHandle[Any]] = []
            try:
                back = await (await engine.trigger(echo, make())).result(timeout=SOON)
            except DurableError:
                refused += 1
            else:
                assert _same(back, make()), number
                kept += 1
            for tags, key in (({"tag": make()}, None), ({}, make())):
                with suppress(DurableError):
                    handles.append(await engine.trigger(echo, 1, tags=tags, key=key))
            poisoned.made = 0
            made = await engine.trigger(output, number)
            try:
                assert await made.result(timeout=SOON), number
                kept += 1
            except RunFailed:
                refused += 1
            assert (await engine.get_run(made.run_id)).state in (State.COMPLETED, State.FAILED)
            assert poisoned.made == 1, "what cannot be stored is refused on attempt 1"
            broken, waiting = await engine.trigger(breaks, number), await engine.trigger(waits, number)
            with pytest.raises(RunFailed):
                await broken.result(timeout=SOON)
            try:
                await engine.signal(waiting.run_id, "poison", make())
            except DurableError:
                await engine.cancel(waiting.run_id)
                refused += 1
            else:
                assert await waiting.result(timeout=SOON), number
                kept += 1
            for handle in handles:
                assert await handle.result(timeout=SOON) == 1
        assert await (await engine.trigger(echo, "alive")).result(timeout=SOON) == "alive"
        unfinished = [run for run in (await engine.list_runs(limit=1000)).items if run.ended_at is None]
        cancelled = [run for run in unfinished if run.requested is not None]
        assert unfinished == cancelled
    assert len(POISON) * 6 >= 200
    assert refused > 30 < kept


# -- names ----------------------------------------------------------------------------------------


def _names() -> list[str]:
    """At least 500, each different."""
    around = [
        "{}",
        "x{}",
        "{}'); DROP TABLE canary; --",
        '{}"; DROP TABLE canary; --',
        "{}' OR '1'='1",
        "${}$",
        "{}::text",
    ]
    names = dict.fromkeys(form.replace("{}", name) for form in around for name in HOSTILE)
    return list(names)


@pytest.fixture
def canary(real_time: Backend, tmp_path: Path) -> Iterator[Callable[[], object]]:
    """Says what the tables are and what is in the canary, where there are tables."""
    if isinstance(real_time, PostgresBackend):
        owner = real_time._owner
        owner.execute("CREATE TABLE engine_tests.canary AS SELECT 'sings' AS song")
        tables = "SELECT schemaname, tablename FROM pg_tables WHERE schemaname !~ '^pg_' ORDER BY 1, 2"
        yield lambda: (
            owner.execute(tables).fetchall(),
            owner.execute("SELECT song FROM engine_tests.canary").fetchall(),
        )
        owner.execute("DROP TABLE engine_tests.canary")
    elif real_time.name == "sqlite":
        file = sqlite3.connect(tmp_path / "durable.db", isolation_level=None)
        file.execute("CREATE TABLE canary AS SELECT 'sings' AS song")
        yield lambda: (
            list(file.execute("SELECT name FROM sqlite_master WHERE name LIKE '%canary%'")),
            file.execute("SELECT song FROM canary").fetchall(),
        )
        file.close()
    else:
        yield lambda: None


async def test_P51_hostile_names_are_refused_or_stored_as_they_are(
    real_time: Backend, canary: Callable[[], object]
) -> None:
    names = _names()
    assert len(names) >= 500

    @workflow
    async def flow(ctx: Context) -> int:
        """All of them are names of steps of one run."""
        return sum(await asyncio.gather(*(_step(ctx, name) for name in names)))

    async with real_time.engine(flow) as engine:
        before = canary()
        steps = await (await engine.trigger(flow)).result(timeout=3 * SOON)
        assert steps >= 200
        async with real_time.engine().client() as client:
            stored: list[list[str]] = []
            for at in range(0, len(names), 25):
                stored += await asyncio.gather(*(_stored(client, name) for name in names[at : at + 25]))
        assert sum(map(len, stored)) >= 1000
        assert canary() == before
        assert await (await engine.trigger(flow)).result(timeout=3 * SOON) == steps


async def _step(ctx: Context, name: str) -> int:
    try:
        return await ctx.step(name, _one)
    except InvalidArgument:
        return 0


async def _one() -> int:
    return 1


async def _stored(client: Engine, name: str) -> list[str]:
    """As what the name is taken; what is taken is found under it."""
    taken: list[str] = []
    options: dict[str, dict[str, Any]] = {
        "queue": {"queue": name},
        "tag": {"tags": {name: name}},
        "key": {"key": name},
        "limit": {"limit_key": name, "concurrency_key": name},
    }
    for what, chosen in options.items():
        with suppress(DurableError):
            handle = await client.trigger("flow of others", **chosen)
            run = await client.get_run(handle.run_id)
            found = {"queue": run.queue, "tag": run.tags.get(name), "key": run.key, "limit": run.limit_key}
            assert found[what] == name
            taken.append(what)
    with suppress(InvalidArgument):
        await client.trigger(name)
        assert [run.workflow for run in (await client.list_runs(workflow=name)).items] == [name]
        taken.append("workflow")
    return taken


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in ("i", "a", "x")])
def test_P51_a_hostile_schema_is_refused(name: str) -> None:
    try:
        store = PostgresStore("postgresql://localhost/nowhere", schema=name)
    except InvalidArgument:
        return
    assert name.isidentifier(), store
    assert name == name.lower()
    assert name.isascii()
