"""All orders of what happens to a run on the memory store; the suite takes a sample of them to every store."""

from __future__ import annotations

import pytest

from durable.testing.conformance.orders import SCENES, in_order, orders
from tests.conformance.test_memory import MemoryHarness


@pytest.mark.parametrize("name", SCENES)
async def test_P31_P32_P34_no_order_loses_or_doubles_anything(name: str) -> None:
    """220 orders of three steps among nine calls: more calls than any executor makes undisturbed."""
    every = orders(3, 9)
    assert len(every) == 220
    for order in every:
        harness = MemoryHarness()
        await in_order(harness, await harness.fresh(), name, order)
