"""Evict mode: a run is given back after every record of it and begins again from the top, wherever it stands.

``EVICT=1`` in the environment has the whole engine suite run so (``make evict``). What an execution leaves when one of
its operations is recorded, any worker claims at once: nothing that a run needs may be in memory alone (P19).
"""

from __future__ import annotations

from typing import Any

import pytest

from durable import WorkerOptions
from durable.errors import DurableError
from durable.execution import Execution
from durable.model import Outcome, RunWrite

NOT_SO = {
    "test_a_result_that_cannot_be_stored_is_undone_with_its_own_retry": "the step has no record yet, and runs again",
    "test_branches_of_one_name_are_told_apart_and_nest": "notes what each pass saw, in a list of the test",
    "test_a_run_that_lingers_goes_on_without_a_replay": "its subject is the linger",
    "test_the_oldest_of_too_many_that_linger_is_replayed": "its subject is the linger",
    "test_P19_a_linger_that_ends_while_the_run_is_claimed_again_repeats_nothing": "its subject is the linger",
    "test_P04_a_lease_that_is_lost_while_the_history_is_read_starts_no_step": "its subject is the linger",
    "test_a_logged_line_appears_once_whatever_the_number_of_passes": "a line is written again that no record followed",
    "test_P14_no_operation_in_a_finally_runs_while_parking": "counts the passes of a finally",
}
"""Tests that count passes, or need a run to stay in memory; all others run so."""


def evict_after_every_record(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Turn it on; returns the list that gets the id of a run whenever it is given back."""
    settled, options, given_back = Execution._settled, WorkerOptions.__init__, list[str]()

    def settle(self: Execution, write: RunWrite, outcome: Outcome | DurableError) -> None:
        settled(self, write, outcome)
        if outcome is Outcome.APPLIED and write.records and (write.change is None or write.change.keep):
            given_back.append(self.run.id)
            self.drain()

    def init(self: WorkerOptions, **values: Any) -> None:
        options(self, **values)
        self.linger = 0.0

    monkeypatch.setattr(Execution, "_settled", settle)
    monkeypatch.setattr(WorkerOptions, "__init__", init)
    return given_back
