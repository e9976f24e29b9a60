"""Random streams of calls on the seam: every store answers what the oracle answers, and shows what it shows.

One stream is a list of numbers; each is the seed of one call, which is made up from what the oracle says by then. So a
list without some of its numbers is a stream too, and a failing one can be shortened. What the seam leaves open is not
asked: the order among runs that are due at the same instant, and calls that no engine makes. Time stands still: what is
due was due long ago, and what is not will not be.
"""

# ruff: noqa: N802 - tests are named after the promise that they keep

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from durable.testing.conformance.calls import Calls
from durable.testing.conformance.harness import StoreHarness
from durable.testing.conformance.subjects import Subject

LENGTH = 60
"""Calls of one stream: long enough for runs to be given up, retried and pruned; short enough to be read."""


class StreamConformance:
    @pytest.mark.parametrize("seed", range(12))
    async def test_P11_a_stream_of_calls_gives_what_the_oracle_gives(self, harness: StoreHarness, seed: int) -> None:
        rng = random.Random(seed)
        await play([Subject("store", await harness.fresh(), harness)], [rng.getrandbits(32) for _ in range(LENGTH)])


async def play(subjects: Sequence[Subject], seeds: Sequence[int]) -> int:
    """Make one call for each number that is not 0, on all subjects, which are empty; how many were made.

    Raises:
        AssertionError: One of them differs from the oracle. The message has the calls so far.
    """
    stream = Calls(subjects)
    await stream.start()
    for seed in filter(None, seeds):
        await stream.call(random.Random(seed))
    await stream.finish()
    return len(stream.log)
