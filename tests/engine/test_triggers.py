"""Triggering, finding and listing runs: keys, ids, times, names, tags, pages."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    Context,
    DurableError,
    Engine,
    InvalidArgument,
    KeyConflict,
    PayloadError,
    RunHandle,
    RunNotFound,
    RunSummary,
    State,
    UnknownWorkflow,
    Workflow,
    workflow,
)
from durable.ids import new_id
from durable.store import Store
from tests.engine.backends import Backend


@workflow
async def echo(ctx: Context, n: int) -> int:
    return n


@workflow(name="echo", version="2")
async def echo_2(ctx: Context, n: int) -> int:
    return -n


@workflow
async def greets(ctx: Context, name: str = "world") -> str:
    return f"hello {name}"


def client(store: Store, *workflows: Workflow[Any, Any]) -> Engine:
    return Engine(store, workflows=workflows)


async def test_P36_200_concurrent_callers_with_one_key_make_one_run(backend: Backend) -> None:
    async with client(backend.store(), echo).client() as one, client(backend.store(), echo).client() as two:
        handles = await asyncio.gather(
            *(engine.trigger(echo, 1, key="ord_1") for _ in range(100) for engine in (one, two))
        )
        assert len({handle.run_id for handle in handles}) == 1
        assert sum(handle.created for handle in handles) == 1
        assert len((await one.list_runs()).items) == 1


async def test_P36_the_same_key_with_another_input_is_an_error_that_names_the_run(backend: Backend) -> None:
    async with client(backend.store(), echo, greets).client() as engine:
        first = await engine.trigger(echo, 1, key="ord_1")
        with pytest.raises(KeyConflict, match=r"ord_1.*another input") as raised:
            await engine.trigger(echo, 2, key="ord_1")
        assert raised.value.run_id == first.run_id
        assert (await engine.trigger(greets, "x", key="ord_1")).created  # another workflow's key is another key


async def test_a_run_id_of_the_users_own_is_idempotent(backend: Backend) -> None:
    run_id = new_id(datetime.now(UTC))
    async with client(backend.store(), echo).client() as engine:
        first = await engine.trigger(echo, 1, run_id=run_id)
        again = await engine.trigger(echo, 1, run_id=run_id.upper())
        assert (first.run_id, first.created) == (run_id, True)
        assert (again.run_id, again.created) == (run_id, False)
        with pytest.raises(KeyConflict):
            await engine.trigger(echo, 2, run_id=run_id)
        with pytest.raises(InvalidArgument, match=r"UUIDv7.*key="):
            await engine.trigger(echo, 1, run_id="order-1")


async def test_trigger_many_keeps_the_order_of_the_inputs(backend: Backend) -> None:
    async with backend.engine(echo) as engine:
        handles = await engine.trigger_many(echo, [3, 1, 2], keys=["a", "b", "c"])
        await backend.idle(engine)
        assert [await handle.result(timeout=20) for handle in handles] == [3, 1, 2]
        again = await engine.trigger_many(echo, [3, 1], keys=["a", "b"])
        assert [(handle.run_id, handle.created) for handle in again] == [(h.run_id, False) for h in handles[:2]]
        with pytest.raises(InvalidArgument, match="2 inputs and 1 keys"):
            await engine.trigger_many(echo, [1, 2], keys=["x"])
        with pytest.raises(KeyConflict):
            await engine.trigger_many(echo, [9], keys=["a"])
        assert await engine.trigger_many(echo, []) == []


async def test_trigger_many_checks_all_inputs_before_the_first_run(backend: Backend) -> None:
    wrong: list[Any] = [1, 2, "three"]
    async with client(backend.store(), echo).client() as engine:
        with pytest.raises(PayloadError):
            await engine.trigger_many(echo, wrong)
        assert (await engine.list_runs()).items == []


async def test_an_input_of_another_type_is_refused_at_the_trigger(backend: Backend) -> None:
    wrong: Any = "one"
    async with client(backend.store(), echo).client() as engine:
        with pytest.raises(PayloadError, match="input of workflow 'echo'"):
            await engine.trigger(echo, wrong)
        with pytest.raises(InvalidArgument, match="needs an input"):
            await engine.trigger(echo)


async def test_P41_a_workflow_that_is_not_registered_is_refused(backend: Backend) -> None:
    async with client(backend.store(), echo).client() as engine:
        with pytest.raises(UnknownWorkflow, match="greets"):
            await engine.trigger(greets)
        with pytest.raises(UnknownWorkflow, match=r"no workflow 'ehco'.*it knows 'echo'"):
            await engine.trigger("ehco", 1)
        with pytest.raises(UnknownWorkflow, match="not registered"):
            await engine.trigger(echo_2, 1)
        assert (await engine.list_runs()).items == []


async def test_P41_a_client_without_workflows_triggers_by_name(backend: Backend) -> None:
    async with backend.engine(echo) as worker, client(backend.store()).client() as engine:
        handle: RunHandle[Any] = await engine.trigger("echo", 4)
        assert await backend.result(worker, handle) == 4
        found: Any = await engine.handle("echo", run_id=handle.run_id)
        assert await found.result(timeout=20) == 4


async def test_a_workflow_is_triggered_by_its_name_and_version(backend: Backend) -> None:
    async with backend.engine(echo, echo_2) as engine:
        with pytest.raises(InvalidArgument, match="'echo' has 2 versions here: say which"):
            await engine.trigger("echo", 4)
        handle: RunHandle[Any] = await engine.trigger("echo", 4, version="2")
        assert await backend.result(engine, handle) == -4
        assert await backend.result(engine, await engine.trigger(echo, 4)) == 4
        by_name: Any = await engine.handle("echo", run_id=handle.run_id)  # the run says which version it is
        assert await by_name.result(timeout=20) == -4
        with pytest.raises(InvalidArgument, match="version goes with a workflow's name"):
            await engine.trigger(echo, 4, version="2")


async def test_a_delayed_run_starts_no_earlier_by_the_stores_clock(backend: Backend) -> None:
    async with backend.engine(echo) as engine:
        now = backend.now()
        delayed = await engine.trigger(echo, 1, delay=timedelta(milliseconds=150))
        timed = await engine.trigger(echo, 2, at=now + timedelta(milliseconds=150))
        assert await delayed.status() == State.PENDING
        for handle in (delayed, timed):
            await backend.result(engine, handle)
            run = await engine.get_run(handle.run_id)
            assert run.started_at is not None
            assert run.started_at >= now + timedelta(milliseconds=150)


async def test_a_time_that_is_past_means_now(backend: Backend) -> None:
    async with backend.engine(echo) as engine:
        handle = await engine.trigger(echo, 1, at=backend.now() - timedelta(days=1))
        assert await backend.result(engine, handle) == 1


async def test_times_have_a_zone_and_there_is_one_of_them(backend: Backend) -> None:
    naive = datetime(2030, 1, 1)  # noqa: DTZ001
    async with client(backend.store(), echo).client() as engine:
        with pytest.raises(InvalidArgument, match="at has no time zone"):
            await engine.trigger(echo, 1, at=naive)
        with pytest.raises(InvalidArgument, match="at or delay"):
            await engine.trigger(echo, 1, at=backend.now(), delay=1)
        with pytest.raises(InvalidArgument, match="delay"):
            await engine.trigger(echo, 1, delay=-1)
        with pytest.raises(InvalidArgument, match="created_after has no time zone"):
            await engine.list_runs(created_after=naive)
        assert (await engine.list_runs()).items == []


async def test_a_handle_is_found_by_key_or_id(backend: Backend) -> None:
    async with backend.engine(echo, greets) as engine:
        made = await engine.trigger(echo, 5, key="ord_5")
        by_key = await engine.handle(echo, key="ord_5")
        by_id = await engine.handle(echo, run_id=made.run_id)
        await backend.idle(engine)
        assert by_key.run_id == by_id.run_id == made.run_id
        assert (by_key.created, by_id.created) == (False, False)
        assert await by_key.result(timeout=20) == 5
        with pytest.raises(RunNotFound, match="'echo' has the key 'ord_6'"):
            await engine.handle(echo, key="ord_6")
        with pytest.raises(RunNotFound):
            await engine.handle(greets, key="ord_5")
        with pytest.raises(RunNotFound):
            await engine.handle(echo, run_id=new_id(datetime.now(UTC)))
        with pytest.raises(InvalidArgument, match="run_id or key"):
            await engine.handle(echo)


async def test_a_run_of_another_workflow_is_not_this_workflows_run(backend: Backend) -> None:
    async with client(backend.store(), echo, greets).client() as engine:
        made = await engine.trigger(echo, 5)
        with pytest.raises(RunNotFound, match="greets"):
            await engine.handle(greets, run_id=made.run_id)


async def test_a_run_that_does_not_exist_is_not_found(backend: Backend) -> None:
    async with client(backend.store(), echo).client() as engine:
        missing = new_id(datetime.now(UTC))
        for call in (engine.get_run, engine.timeline, engine.resume):
            with pytest.raises(RunNotFound, match=missing):
                await call(missing)
        with pytest.raises(DurableError):
            await engine.get_run("not an id")


async def test_P49_lists_are_paged_and_bounded_and_carry_no_payloads(backend: Backend) -> None:
    async with client(backend.store(), echo).client() as engine:
        handles = await engine.trigger_many(echo, list(range(25)))
        newest_first = sorted((handle.run_id for handle in handles), reverse=True)
        seen: list[str] = []
        cursor: str | None = None
        sizes: list[int] = []
        while True:
            page = await engine.list_runs(limit=10, cursor=cursor)
            sizes.append(len(page.items))
            seen += [run.id for run in page.items]
            cursor = page.next_cursor
            if cursor is None:
                break
        assert sizes == [10, 10, 5]
        assert seen == newest_first
        assert (await engine.list_runs(limit=25)).next_cursor is None
        assert {type(run) for run in page.items} == {RunSummary}
        assert {"input", "result", "error"}.isdisjoint(field.name for field in dataclasses.fields(RunSummary))
        for limit in (0, 1001):
            with pytest.raises(InvalidArgument, match="limit"):
                await engine.list_runs(limit=limit)
        with pytest.raises(InvalidArgument):
            await engine.list_runs(cursor="page two")


async def test_lists_are_filtered_by_everything_at_once(backend: Backend) -> None:
    async with backend.engine(echo, echo_2, greets) as engine:
        before = backend.now()
        acme = await engine.trigger(echo, 1, tags={"tenant": "acme", "tier": "gold"})
        other = await engine.trigger(echo, 2, tags={"tenant": "umbrella"})
        second = await engine.trigger(echo_2, 3, tags={"tenant": "acme"})
        later = await engine.trigger(greets, delay=3600, tags={"tenant": "acme"})
        for handle in (acme, other, second):
            await handle.result(timeout=20)

        async def listed(**where: Any) -> set[str]:
            return {run.id for run in (await engine.list_runs(**where)).items}

        everything = {acme.run_id, other.run_id, second.run_id, later.run_id}
        assert await listed() == everything
        assert await listed(workflow="echo") == {acme.run_id, other.run_id, second.run_id}
        assert await listed(workflow="echo", version="2") == {second.run_id}
        assert await listed(tags={"tenant": "acme"}) == {acme.run_id, second.run_id, later.run_id}
        assert await listed(tags={"tenant": "acme", "tier": "gold"}) == {acme.run_id}
        assert await listed(state="pending") == await listed(state=State.PENDING) == {later.run_id}
        assert await listed(state="completed", tags={"tenant": "acme"}) == {acme.run_id, second.run_id}
        assert await listed(created_after=before - timedelta(seconds=1)) == everything
        assert await listed(created_before=before - timedelta(seconds=1)) == set()
        with pytest.raises(InvalidArgument, match="no state 'done'; there are pending, "):
            await engine.list_runs(state="done")


async def test_hostile_keys_tags_and_names_are_refused_at_the_call(backend: Backend) -> None:
    async with client(backend.store(), echo).client() as engine:
        hostile: tuple[dict[str, Any], ...] = (
            {"key": ""},
            {"key": "x" * 513},
            {"key": "nul\0"},
            {"tags": {"a/b": "x"}},
            {"tags": {"tenant": "\ud800"}},
            {"tags": {"tenant": 5}},
            {"tags": ["tenant"]},
        )
        for arguments in hostile:
            with pytest.raises(InvalidArgument):
                await engine.trigger(echo, 1, **arguments)
        assert (await engine.list_runs()).items == []
