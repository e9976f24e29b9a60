"""The life of a store: opening, migrating, its clock, and the hints between processes."""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from durable.errors import SchemaTooNew
from durable.store import Hint
from durable.testing.conformance.harness import StoreHarness, Worker, claimed, create, read, until


class LifeConformance:
    async def test_P42_migrating_again_changes_nothing(self, harness: StoreHarness) -> None:
        store = await harness.bare()
        assert (await store.schema_version() == 0) is harness.has_schema
        for _ in range(2):
            await store.migrate()
            assert await store.schema_version() == store.latest_version
        (run_id,) = await create(store)
        await store.migrate()
        assert (await read(store, run_id)).id == run_id

    async def test_P42_eight_migrate_at_once(self, harness: StoreHarness) -> None:
        store = await harness.bare()
        stores = [store, *[await harness.another() for _ in range(7)]]
        await asyncio.gather(*(one.migrate() for one in stores))
        for one in stores:
            assert await one.schema_version() == one.latest_version
            await create(one)

    async def test_P42_a_schema_that_is_newer_than_the_code_is_refused(self, harness: StoreHarness) -> None:
        store = await harness.bare()
        await store.migrate()
        if not harness.has_schema:
            assert await store.schema_version() == store.latest_version
            return
        await harness.advance_schema()
        assert await store.schema_version() == store.latest_version + 1
        with pytest.raises(SchemaTooNew, match=str(store.latest_version + 1)):
            await store.migrate()

    async def test_opening_is_counted(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        await store.open()
        (run_id,) = await create(store)
        await store.close()
        assert (await read(store, run_id)).id == run_id

    async def test_two_stores_on_the_same_data_see_the_same_runs(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        worker, one = await claimed(other)
        assert await read(store, one.run.id) == one.run
        assert await store.owned(worker.id) == [one.ref]

    async def test_the_clock_is_aware_and_calls_back_when_asked(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        now = store.clock.now()
        assert now.utcoffset() == timedelta(0)
        called: list[str] = []
        soon = now + timedelta(milliseconds=20)
        cancel = store.clock.call_at(soon, lambda: called.append("cancelled"))
        store.clock.call_at(soon, lambda: called.append("called"))
        cancel()
        await until(store, soon + timedelta(milliseconds=20))
        assert called == ["called"]
        assert store.clock.now() >= soon

    @pytest.mark.parametrize("hint", Hint)
    async def test_P44_a_hint_reaches_the_other_processes(self, harness: StoreHarness, hint: Hint) -> None:
        """A hint can be lost, so it is given again until it is heard, each time with something to hear of."""
        store = await harness.fresh()
        other = await harness.another()
        heard = asyncio.Event()
        unsubscribe = store.subscribe(lambda given: heard.set() if hint in given else None)
        async with asyncio.timeout(20):
            while not heard.is_set():
                await create(other)
                other.announce(hint)
                await _wait_briefly(heard)
        unsubscribe()

    async def test_a_subscription_that_was_ended_hears_nothing(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        other = await harness.another()
        ended, live = asyncio.Event(), asyncio.Event()
        store.subscribe(lambda _: ended.set())()
        unsubscribe = store.subscribe(lambda _: live.set())
        async with asyncio.timeout(20):
            while not live.is_set():
                await create(other)
                other.announce(Hint.WORK | Hint.ENDED)
                await _wait_briefly(live)
        unsubscribe()
        assert not ended.is_set()

    async def test_announcing_is_safe_without_a_listener(self, harness: StoreHarness) -> None:
        store = await harness.fresh()
        for hint in (*Hint, Hint.WORK | Hint.ENDED):
            store.announce(hint)
        await create(store)
        await (await Worker.start(store)).take()


async def _wait_briefly(event: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(event.wait(), 0.5)
    except TimeoutError:
        return  # the hint was lost; the caller gives it again
