"""The suite finds a store that breaks a rule of queues, limits, concurrency keys or debouncing."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from durable.model import Created, Debounce, NewRun, Queue, Rate
from durable.store import Route
from durable.stores.memory import MemoryStore
from durable.stores.memory.queues import Share
from durable.stores.memory.rows import Row
from durable.testing.conformance import StoreConformance, StoreHarness
from tests.conformance.test_memory import MemoryHarness


class _NoPriorities(MemoryStore):
    """The oldest due first, whatever its priority."""

    def _create(self, new: NewRun, now: datetime) -> Created:
        return super()._create(replace(new, priority=5), now)


class _PlacesStay(MemoryStore):
    """Whoever leaves keeps its place."""

    def _left(self, row: Row, now: datetime) -> None:
        del row, now


class _PlacesForAll(MemoryStore):
    def _is_open(self, queue: str, now: datetime) -> bool:
        return True


class _SharesForAll(MemoryStore):
    def _has_share(self, share: Share, limits: Queue, now: datetime) -> bool:
        return True


class _CountsTwice(MemoryStore):
    """A place is a number that is lowered, by whoever says that it has left."""

    def _left(self, row: Row, now: datetime) -> None:
        super()._left(row, now)
        places = self._places.get(row.new.queue)
        if places:
            places.pop()


class _BlockedStandInTheWay(MemoryStore):
    """What cannot be taken ends the claim."""

    def _is_open(self, queue: str, now: datetime) -> bool:
        held_up = any(group.waiting for groups in self._groups.values() for group in groups.values())
        return not held_up and super()._is_open(queue, now)


class _NobodyGoesOn(MemoryStore):
    def _go_on(self, share: Share, now: datetime, *routes: Route) -> None:
        """What is blocked stays so."""


class _OneForAllRoutes(MemoryStore):
    """Of a key the very first goes on, also when nobody executes it."""

    def _go_on(self, share: Share, now: datetime, *routes: Route) -> None:
        groups = self._groups.get(share, {})
        if not any(group.let_go for group in groups.values()):
            waiting = [(*min(g.order), route) for route, g in groups.items() if g.waiting and g.order]
            super()._go_on(share, now, *[entry[-1] for entry in sorted(waiting)[:1]] or routes)


class _ChanceIsLost(MemoryStore):
    """Who is cancelled or paused before it is claimed takes its chance along."""

    def _withdrawn(self, row: Row, now: datetime) -> None:
        self._unblock(row)
        row.turn = None


class _TokensForAll(MemoryStore):
    def _take_token(self, bucket: tuple[str, str | None], rate: Rate | None, now: datetime) -> None:
        """Nothing is used up."""


class _NeverAgain(MemoryStore):
    """Nobody is told when the next token of a queue is due."""

    def _opens_at(self, queue: str, now: datetime) -> datetime | None:
        del queue, now
        return None


class _FullAtOnce(MemoryStore):
    """The bucket is full again as soon as it has one token."""

    def _take_token(self, bucket: tuple[str, str | None], rate: Rate | None, now: datetime) -> None:
        spent = self._spent.get(bucket, now)
        super()._take_token(bucket, rate, now)
        if rate is not None and spent > now:
            self._spent[bucket] = now + timedelta(microseconds=rate.interval)


class _NoLines(MemoryStore):
    def _refused(self, new: NewRun) -> Created | None:
        return None


class _AllAtOnce(MemoryStore):
    """What is queued is ready."""

    def _free(self, row: Row, ready_at: datetime) -> None:
        super()._free(row, ready_at)
        if row.queued:
            row.queued = False
            super()._free(row, ready_at)


class _TheLineStands(MemoryStore):
    """The key is not passed on."""

    def _ended(self, row: Row, now: datetime) -> None:
        key = (row.new.workflow, row.new.concurrency_key or "")
        rest = {run_id: None for run_id in self._lines.get(key, {}) if run_id != row.new.id}
        self._lines[key] = {row.new.id: None}
        super()._ended(row, now)
        if rest:
            self._lines[key] = rest


class _AsksAgain(MemoryStore):
    """A replacement that is sent again finds others to ask."""

    def _create(self, new: NewRun, now: datetime) -> Created:
        created = super()._create(new, now)
        for run_id in set(self._lines.get((new.workflow, new.concurrency_key or ""), ())) - {new.id}:
            if created.replaced:
                self._ask_to_cancel(run_id, new)
        return created


class _AbsorbsAgain(MemoryStore):
    """A debounced trigger that is sent again is another one."""

    def _debounce(self, new: NewRun, debounce: Debounce, now: datetime) -> Created | None:
        self._absorbed.pop(new.id, None)
        return super()._debounce(new, debounce, now)


class _WithoutBound(MemoryStore):
    def _debounce(self, new: NewRun, debounce: Debounce, now: datetime) -> Created | None:
        return super()._debounce(new, replace(debounce, max_delay=None), now)


class _AbsorbsWhatRuns(MemoryStore):
    """A run that has been claimed gets the input of a later trigger, which nobody will see."""

    def _debounce(self, new: NewRun, debounce: Debounce, now: datetime) -> Created | None:
        absorbed = super()._debounce(new, debounce, now)
        row = self._rows.get(self._debounced.get((new.workflow, debounce.key), ""))
        return absorbed if absorbed is not None or row is None else Created(row.new.id, False)


class _Harness(MemoryHarness):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (_NoPriorities, "test_priority_first_then_due_time_over_all_routes", []),
        (_PlacesStay, "test_who_leaves_its_worker_gives_its_place_back_once", ["completed", "asleep", "given back"]),
        (_PlacesStay, "test_P34_with_one_place_a_run_that_waits_lets_another_one_go_on", []),
        (_PlacesForAll, "test_no_more_runs_are_held_than_the_queue_allows", []),
        (_PlacesForAll, "test_eight_workers_never_hold_more_than_the_limits", []),
        (_PlacesForAll, "test_a_rate_is_a_bucket_of_tokens", []),
        (_SharesForAll, "test_each_key_has_its_own_places", []),
        (_BlockedStandInTheWay, "test_a_thousand_blocked_runs_stand_in_nobodys_way", []),
        (_NobodyGoesOn, "test_who_leaves_lets_the_next_one_of_its_key_go_on", ["completed", "dead letter"]),
        (_OneForAllRoutes, "test_a_version_that_nobody_executes_does_not_hold_its_key_up", []),
        (_ChanceIsLost, "test_who_goes_before_it_used_its_chance_leaves_it_to_the_next", ["cancelled", "paused"]),
        (_ChanceIsLost, "test_who_goes_before_its_token_is_due_leaves_it_to_the_next", ["cancelled", "paused"]),
        (_TokensForAll, "test_every_claim_takes_a_token_and_one_sent_again_takes_none", []),
        (_NeverAgain, "test_a_rate_is_a_bucket_of_tokens", []),
        (_FullAtOnce, "test_a_rate_is_a_bucket_of_tokens", []),
        (_NoLines, "test_P37_200_concurrent_triggers_with_one_concurrency_key_are_one_run", []),
        (_AllAtOnce, "test_a_line_of_many_is_worked_off_one_at_a_time_by_several_workers", []),
        (_AllAtOnce, "test_a_pause_in_the_line_does_not_let_it_pass", []),
        (_TheLineStands, "test_queued_runs_follow_one_after_the_other_however_each_ends", ["completed", "dead letter"]),
        (_AsksAgain, "test_P11_replace_sent_again_asks_nobody", []),
        (_AbsorbsAgain, "test_P11_a_trigger_sent_again_changes_nothing", []),
        (_WithoutBound, "test_max_delay_bounds_the_start", []),
        (_AbsorbsWhatRuns, "test_once_it_was_claimed_the_next_trigger_is_a_new_run", []),
    ],
)
async def test_a_broken_rule_turns_its_test_red(broken: type[MemoryStore], test: str, arguments: list[object]) -> None:
    run = getattr(StoreConformance(), test)
    for argument in arguments or [None]:
        harness: StoreHarness = _Harness(broken())
        with pytest.raises((AssertionError, ValueError)):
            await (run(harness) if argument is None else run(harness, argument))


@pytest.mark.parametrize("broken", [_PlacesForAll, _SharesForAll, _CountsTwice, _NobodyGoesOn])
async def test_some_crowd_meets_a_broken_rule(broken: type[MemoryStore]) -> None:
    """Who is claimed when is decided by the clock too, so that no one crowd meets it for sure."""
    crowd = StoreConformance().test_nobody_is_left_behind_and_no_limit_is_exceeded
    for seed in range(30):
        try:
            await crowd(_Harness(broken()), seed)
        except AssertionError:
            return
    pytest.fail("thirty crowds have passed")
