"""Evict mode in short; ``make evict`` runs all tests of the engine so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from durable import State
from tests.engine.backends import Backend
from tests.engine.evicting import NOT_SO, evict_after_every_record
from tests.engine.test_linger import Effects


@pytest.mark.parametrize("number", range(3))
async def test_P19_a_run_that_is_evicted_after_every_record_does_the_same(
    backend: Backend, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[Any, ...]] = []
    given_back: list[str] = []
    for evicting in (False, True):
        if evicting:
            given_back = evict_after_every_record(monkeypatch)
        effects = Effects()
        flow = effects.flows()[number]
        async with backend.engine(flow) as engine:
            run = await backend.ended(engine, await engine.trigger(flow))
        found.append((run.state, run.result, sorted(effects.made)))
    stayed, evicted = found
    assert stayed == evicted
    assert evicted[0] is (State.COMPENSATED if number == 2 else State.COMPLETED)
    # Records that one flush brings give back once, and the last comes with the end of the run.
    assert len(given_back) > len(evicted[2]) / 2, "hardly anything was evicted"


def test_what_evict_mode_leaves_out_exists() -> None:
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in NOT_SO if f"def {name}(" not in texts] == []
