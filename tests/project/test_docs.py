"""The tables in the documentation that say what the code says are held against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from durable.hooks import EventName
from durable.model import State
from durable.schedules import Overlap, Skip
from durable.states import TERMINAL, TRANSITIONS, Event

PAGES = Path(__file__).parents[2] / "docs"
PAGE = PAGES / "when-things-go-wrong.md"


def transition_table() -> str:
    """Event × state → state; a dash where the event does not apply or cannot happen."""
    states = [state for state in State if any(before is state for before, _ in TRANSITIONS)]
    lines = [
        "| event | " + " | ".join(states) + " |",
        "|---" * (len(states) + 1) + "|",
    ]
    for event in Event:
        cells = [TRANSITIONS.get((state, event)) for state in states]
        lines.append(f"| {event} | " + " | ".join("–" if cell is None else cell for cell in cells) + " |")
    return "\n".join(lines)


def block(name: str, page: Path = PAGE) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", page.read_text("utf-8"), re.DOTALL)
    assert found is not None, f"{page.name} has no block {name!r}"
    return found.group(1)


def test_the_documented_transitions_are_those_of_the_table() -> None:
    assert block("transitions") == transition_table()


def test_the_documented_final_states_leave_only_by_an_operators_retry() -> None:
    leaving = {event for (state, event) in TRANSITIONS if state in TERMINAL}
    assert leaving == {Event.RETRY, Event.RETRY_UNDO}
    assert {state for (state, _) in TRANSITIONS if state in TERMINAL} == {State.FAILED, State.DEAD_LETTER}


def test_every_event_that_a_callback_can_get_is_documented() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", block("events"), re.MULTILINE)) == set(get_args(EventName))


def test_every_reason_and_policy_of_schedules_is_documented() -> None:
    page = PAGES / "schedules.md"
    first_cells = re.compile(r"^\| `(\w+)`", re.MULTILINE)
    assert first_cells.findall(block("skips", page)) == list(Skip)
    assert first_cells.findall(block("overlap", page)) == ["overlap", *Overlap]
