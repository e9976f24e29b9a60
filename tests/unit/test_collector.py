"""The garbage collector of a worker's main."""

from __future__ import annotations

import gc

from durable.collector import sparing_collector


def test_it_is_spared_while_the_worker_works_and_as_before_afterwards() -> None:
    before = gc.get_threshold()
    with sparing_collector():
        assert gc.get_freeze_count() > 0
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
