"""The suite finds a store that breaks a rule of the protocol: for each rule, one store without it, one red test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import uuid4

import pytest

from durable import states
from durable.model import (
    Also,
    Awaited,
    Change,
    Claimed,
    Created,
    DeadLetter,
    Effect,
    NewRun,
    NewSignal,
    Outcome,
    Published,
    Reaped,
    Record,
    Request,
    Run,
    RunFilter,
    RunRef,
    RunSummary,
    RunWrite,
    Sent,
    Signal,
    Start,
    State,
    Verb,
)
from durable.requests import Plan
from durable.states import TERMINAL
from durable.store import Route
from durable.stores.memory import MemoryStore
from durable.stores.memory.rows import Ready, Row
from durable.testing.conformance import StoreConformance, StoreHarness
from durable.testing.conformance.harness import LONG_AGO
from durable.testing.conformance.writes import WRITES
from tests.conformance.test_memory import MemoryHarness

_Arguments = tuple[Sequence[Route], int, str, Mapping[str, int]]
_CANCEL = Request(Verb.CANCEL)
_EARLIER_CLAIM = "test_P04_a_write_of_an_earlier_claim_of_the_same_worker_is_not_applied"
_ORDERS = "test_P31_P32_P34_whatever_the_order_nothing_is_lost_or_doubled"
_CHILD_ENDS = "test_P34_a_child_that_ends_wakes_its_parent_before_and_after_the_park"


class _NoFence(MemoryStore):
    """Nobody asks whether the worker's row is there; only another owner would stop it."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if worker not in self._workers:
            await self.register(worker, 60.0)
            for write in writes:
                row = self._rows[write.ref.id]
                row.owner = row.owner or worker
        return await super().commit(worker, writes)


class _FenceWithoutJoin(MemoryStore):
    """The change is refused, the records are written."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await super().commit(worker, writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            if outcome is Outcome.LEASE_LOST and write.ref.id in self._rows:
                self._rows[write.ref.id].records.update((one.key, one) for one in write.records)
        return outcomes


class _NoClaimNumber(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        refs = [RunRef(w.ref.shard, w.ref.id, self._rows[w.ref.id].claim) for w in writes]
        return await super().commit(worker, [replace(w, ref=ref) for w, ref in zip(writes, refs, strict=True)])


class _NoOwner(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        if worker not in self._workers:
            return await super().commit(worker, writes)
        owners = [self._rows[write.ref.id].owner or worker for write in writes]
        return [(await super(_NoOwner, self).commit(o, [w]))[0] for o, w in zip(owners, writes, strict=True)]


class _NoWakeCounter(MemoryStore):
    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        return await super().commit(
            worker, [replace(w, change=w.change and w.change._replace(wakes=None)) for w in writes]
        )


class _HalfAWrite(MemoryStore):
    """Records in one transaction, the change in another one that is lost."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        return await super().commit(worker, [replace(w, change=None) if w.records else w for w in writes])


class _Claims(MemoryStore):
    """A claim that differs from the right one in its arguments."""

    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, batch, warm

    async def claim(
        self,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batch: str,
        warm: Mapping[str, int],
        done: Sequence[str] = (),
        *,
        unasked: bool = False,
    ) -> Claimed:
        return await super().claim(worker, *self.arguments(routes, limit, batch, warm), done, unasked=unasked)


class _NoBatch(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, str(uuid4()), warm


class _NoVersions(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return list(self._ready), limit, batch, warm


class _WarmForEver(_Claims):
    def arguments(self, routes: Sequence[Route], limit: int, batch: str, warm: Mapping[str, int]) -> _Arguments:
        return routes, limit, batch, {run_id: self._rows[run_id].claim for run_id in warm if run_id in self._rows}


class _Early(MemoryStore):
    """Runs are claimed ten seconds before they are due."""

    def _claim_batch(
        self, worker: str, indexes: list[Ready], limit: int, batch: str, now: datetime, done: Sequence[str]
    ) -> list[RunRef]:
        return super()._claim_batch(worker, indexes, limit, batch, now + timedelta(seconds=10), done)


class _NoKeys(MemoryStore):
    async def create_runs(self, runs: Sequence[NewRun], start: Start | None = None) -> list[Created]:
        return await super().create_runs([replace(run, key=None) for run in runs], start)


class _NoTakeoverCount(MemoryStore):
    async def reap(self, limit: int = 5) -> Reaped:
        reaped = await super().reap(1000)
        for row in self._rows.values():
            row.takeovers = min(row.takeovers, 1)
        return reaped


class _NamesWhatLives(MemoryStore):
    """Whatever was taken over counts as given up."""

    async def reap(self, limit: int = 5) -> Reaped:
        rows = [row for row in self._rows.values() if row.owner is not None]
        answer = await super().reap(limit)
        lost = [DeadLetter(row.new.id, row.new.workflow) for row in rows if row.owner is None]
        return replace(answer, dead_letters=tuple(sorted(lost)))


class _NamesThemAgain(MemoryStore):
    """Each reaping names every dead letter there is."""

    async def reap(self, limit: int = 5) -> Reaped:
        answer = await super().reap(limit)
        dead = [DeadLetter(row.new.id, row.new.workflow) for row in self._rows.values() if row.state == "dead_letter"]
        return replace(answer, dead_letters=tuple(sorted(dead)))


class _SuspectsTogether(MemoryStore):
    """Nobody is suspected of anything."""

    def _claim_batch(
        self, worker: str, indexes: list[Ready], limit: int, batch: str, now: datetime, done: Sequence[str]
    ) -> list[RunRef]:
        takeovers = {run_id: row.takeovers for run_id, row in self._rows.items()}
        for row in self._rows.values():
            row.takeovers = 0
        try:
            return super()._claim_batch(worker, indexes, limit, batch, now, done)
        finally:
            for run_id, row in self._rows.items():
                row.takeovers = takeovers[run_id]


class _LeavingIsDying(MemoryStore):
    async def unregister(self, worker: str) -> None:
        self.expire(worker)
        await self.reap()


class _Payloads(MemoryStore):
    async def list_runs(self, where: RunFilter, limit: int, before: str | None) -> list[RunSummary]:
        runs: Sequence[Run] = await self.get_runs([one.id for one in await super().list_runs(where, limit, before)])
        return list(runs)


class _HistoryByKey(MemoryStore):
    async def history(self, run_id: str) -> list[Record]:
        return sorted(await super().history(run_id), key=lambda one: one.key)


# -- requests ---------------------------------------------------------------------------------


class _Plans(MemoryStore):
    """What a request makes of a run differs from the right one."""

    def changed(self, plan: Plan) -> Plan:
        return plan

    def _carry_out(self, row: Row, request: Request, plan: Plan) -> None:
        super()._carry_out(row, request, self.changed(plan))


class _CancelWaits(_Plans):
    """A sleeping run that is cancelled sleeps on."""

    def changed(self, plan: Plan) -> Plan:
        return replace(plan, ready=plan.ready and plan.requested is None)


class _NoRecord(_Plans):
    def changed(self, plan: Plan) -> Plan:
        return replace(plan, record=False)


class _NothingAside(_Plans):
    def changed(self, plan: Plan) -> Plan:
        return replace(plan, aside=())


class _TakeoversStay(_Plans):
    def changed(self, plan: Plan) -> Plan:
        return replace(plan, forgive=False)


class _AsideByPrefix(MemoryStore):
    """``LIKE 'charge%'`` also finds ``charger``."""

    def _carry_out(self, row: Row, request: Request, plan: Plan) -> None:
        aside = [key for key in row.records if any(key.startswith(gone.partition("#")[0]) for gone in plan.aside)]
        super()._carry_out(row, request, replace(plan, aside=aside))


class _ClaimStays(MemoryStore):
    """Records are added and set aside under the same claim number."""

    def _carry_out(self, row: Row, request: Request, plan: Plan) -> None:
        claim = row.claim
        super()._carry_out(row, request, plan)
        row.claim = claim


class _NoWake(MemoryStore):
    def _carry_out(self, row: Row, request: Request, plan: Plan) -> None:
        super()._carry_out(row, request, plan)
        row.wakes -= 1


class _LastOneCounts(MemoryStore):
    """Asking again replaces who asked first."""

    async def request(self, run_id: str, request: Request) -> State | None:
        answer = await super().request(run_id, request)
        if (row := self._rows.get(run_id)) is not None and row.requested is not None:
            row.requested = request
        return answer


class _AgainIsNone(MemoryStore):
    """A request that was carried out is not recognised when it is sent again."""

    async def request(self, run_id: str, request: Request) -> State | None:
        before = replace(self._rows[run_id]) if run_id in self._rows else None
        answer = await super().request(run_id, request)
        return None if self._rows[run_id] == before else answer


class _TellsOnce(MemoryStore):
    def _asked(self, worker: str) -> list[tuple[str, Request]]:
        told = self.__dict__.setdefault("told", set())
        new = [entry for entry in super()._asked(worker) if entry not in told]
        told.update(new)
        return new


class _TellsEverybody(MemoryStore):
    def _asked(self, worker: str) -> list[tuple[str, Request]]:
        return [(run_id, row.requested) for run_id, row in self._rows.items() if row.requested is not None]


class _DiesWithItsWorker(MemoryStore):
    """A request is kept with the lease."""

    def _remove_worker(self, worker: str) -> list[Row]:
        rows = super()._remove_worker(worker)
        for row in rows:
            row.requested = None
        return rows


class _RequestOutlivesTheRun(MemoryStore):
    def _change(self, row: Row, change: Change, now: datetime) -> None:
        requested = row.requested
        super()._change(row, change, now)
        row.requested = requested


class _StandsStill(MemoryStore):
    """A pause that was asked for is carried out, whatever is asked by now."""

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        super()._change(row, change._replace(asked=False), now)


class _ParksOverARequest(MemoryStore):
    """Only the wake counter makes a run ready at once."""

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        requested, row.requested = row.requested, None
        super()._change(row, change, now)
        row.requested = requested


class _FailuresStay(MemoryStore):
    def _change(self, row: Row, change: Change, now: datetime) -> None:
        super()._change(row, change._replace(drop_failed=False), now)


class _FailuresAreDeleted(MemoryStore):
    """What another run attempt drops is gone, and is not found when the write is sent again."""

    def _change(self, row: Row, change: Change, now: datetime) -> None:
        super()._change(row, change, now)
        for key in [key for key in row.records if key.startswith(f"/{row.claim}/")]:
            del row.records[key]


class _PrunesTheYoung(MemoryStore):
    async def prune(self, before: datetime, limit: int) -> int:
        return await super().prune(before + timedelta(days=1), limit)


class _PrunesWithoutBound(MemoryStore):
    async def prune(self, before: datetime, limit: int) -> int:
        return await super().prune(before, limit + 1)


class _KeysStay(MemoryStore):
    def _forget(self, row: Row) -> None:
        super()._forget(row)
        if row.new.key is not None:
            self._keys[row.new.workflow, row.new.key] = row.new.id


class _RecordsStay(MemoryStore):
    """The history of a run that is gone comes back with the next run of that id."""

    async def history(self, run_id: str) -> list[Record]:
        left = self.__dict__.setdefault("left", {})
        return await super().history(run_id) or left.get(run_id, [])

    def _forget(self, row: Row) -> None:
        self.__dict__.setdefault("left", {})[row.new.id] = row.history()
        super()._forget(row)


class _DeletesLiveRuns(MemoryStore):
    async def delete(self, run_id: str) -> bool:
        if run_id in self._rows:
            self._rows[run_id].state = State.COMPLETED
        return await super().delete(run_id)


# -- signals, children, events, effects ---------------------------------------------------------


class _ConsumedIsForgotten(MemoryStore):
    """What was consumed is deleted, and its id with it."""

    def _do_also(self, row: Row, also: Also, keys: Sequence[str], now: datetime) -> None:
        super()._do_also(row, also, keys, now)
        for signal_id in also.consumed:
            row.inbox.pop(signal_id, None)
            row.consumed.discard(signal_id)


class _AlsoUnfenced(MemoryStore):
    """Whatever comes with a write is done, even if the write is refused, or was there before."""

    async def commit(self, worker: str, writes: Sequence[RunWrite]) -> list[Outcome]:
        outcomes = await super().commit(worker, [replace(write, also=None) for write in writes])
        for write in writes:
            if write.also is not None and (row := self._rows.get(write.ref.id)) is not None:
                keys = [one.key for one in write.records if one.key in row.records]
                self._do_also(row, write.also, keys, self.clock.now())
        return outcomes


class _NobodyWakes(MemoryStore):
    """A signal is stored, and that is all."""

    def _wake(self, row: Row, now: datetime) -> None:
        return


class _WakesWhoWaits(MemoryStore):
    """A run that waits gets up; the counter stands still for one that is about to wait."""

    def _wake(self, row: Row, now: datetime) -> None:
        super()._wake(row, now)
        row.wakes -= 1


class _WakesEverybody(MemoryStore):
    """A signal also ends a sleep, a delay, a pause."""

    def _wake(self, row: Row, now: datetime) -> None:
        super()._wake(row, now)
        if row.owner is None and row.state not in TERMINAL:
            row.state = State.PENDING
            self._free(row, now)


class _TellsOfASignalOnce(MemoryStore):
    def _signalled(self, worker: str, given: set[str]) -> list[str]:
        told = super()._signalled(worker, given)
        for run_id in told:
            self._rows[run_id].signalled = False
        return told


class _NoOrder(MemoryStore):
    """Signals are read in the order of their ids."""

    def _deliver(self, row: Row, signal: Signal, now: datetime) -> None:
        super()._deliver(row, signal, now)
        row.inbox = {signal_id: row.inbox[signal_id] for signal_id in sorted(row.inbox)}


class _ToWhomIsGone(MemoryStore):
    """A run that has ended takes signals."""

    def _send(self, new: NewSignal, now: datetime) -> Sent:
        row = self._rows.get(new.run_id)
        if row is None:
            return Sent.NOT_FOUND
        self._deliver(row, Signal(new.id, new.name, new.data, now), now)
        return Sent.ACCEPTED


class _OrphanedBy(MemoryStore):
    """An end of a certain kind is nobody's business."""

    silent: frozenset[State] = frozenset()

    def _ended(self, row: Row, now: datetime) -> None:
        if row.state not in self.silent:
            super()._ended(row, now)


class _OrphanedByDeath(_OrphanedBy):
    silent = frozenset({State.DEAD_LETTER})


class _OrphanedByCancel(_OrphanedBy):
    silent = frozenset({State.CANCELLED})


class _OnlyToWhoWaits(MemoryStore):
    """A child's end is told to a parent that is parked, and lost on any other."""

    def _deliver(self, row: Row, signal: Signal, now: datetime) -> None:
        if not signal.name.startswith("child/") or row.state is State.WAITING:
            super()._deliver(row, signal, now)


class _NothingRetained(MemoryStore):
    """An event is for those who wait already."""

    def _await(self, row: Row, awaited: Awaited, now: datetime) -> None:
        self._events.clear()
        super()._await(row, awaited, now)


class _SinceEver(MemoryStore):
    def _await(self, row: Row, awaited: Awaited, now: datetime) -> None:
        super()._await(row, awaited._replace(since=LONG_AGO), now)


class _OneWaitPerTopic(MemoryStore):
    """An event ends every wait of a run for it."""

    def _publish(self, new: Published, now: datetime) -> None:
        topic = (new.topic, new.key)
        self._awaiting[topic] = list(dict.fromkeys(self._awaiting.get(topic, [])))
        super()._publish(new, now)


class _EverybodyMakes(MemoryStore):
    async def take_effect(self, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
        return await super().take_effect(worker, ref, f"{ref.id}{key}", step)


class _MadeByTheDead(MemoryStore):
    """An effect stays with a run that has ended without making it."""

    def _ended(self, row: Row, now: datetime) -> None:
        row.makes = False
        super()._ended(row, now)


class _MadeForEver(MemoryStore):
    def _forget(self, row: Row) -> None:
        effects = dict(self._effects)
        super()._forget(row)
        self._effects = effects


class _Harness(MemoryHarness):
    def __init__(self, store: MemoryStore) -> None:
        super().__init__()
        self._store = store


@pytest.mark.parametrize(
    ("broken", "test", "arguments"),
    [
        (_NoFence, "test_P04_a_reaped_worker_writes_nothing", [*WRITES]),
        (_FenceWithoutJoin, "test_P04_a_reaped_worker_writes_nothing", ["step", "attempt", "sleep", "woke"]),
        (_FenceWithoutJoin, _EARLIER_CLAIM, ["step", "record and complete", "undo"]),
        (_NoClaimNumber, _EARLIER_CLAIM, [*WRITES]),
        (_NoClaimNumber, "test_P11_a_park_sent_again_after_the_next_claim_is_not_applied_twice", []),
        (_NoOwner, "test_P04_a_live_worker_does_not_write_about_a_run_of_another", [*WRITES]),
        (_NoWakeCounter, "test_a_park_that_missed_a_wake_is_ready_at_once", [None]),
        (_NoWakeCounter, "test_a_resume_is_a_wake_that_a_park_can_miss", []),
        (_HalfAWrite, "test_five_hundred_runs_in_one_commit", []),
        (_NoBatch, "test_P11_a_claim_sent_again_gives_the_same_runs_and_no_more", []),
        (_NoVersions, "test_P07_a_worker_gets_only_what_it_can_execute", []),
        (_WarmForEver, "test_a_run_that_was_elsewhere_meanwhile_comes_with_its_history", []),
        (_Early, "test_P26_a_delayed_run_is_never_claimed_early", []),
        (_NoKeys, "test_P36_200_concurrent_triggers_with_one_key_are_one_run", []),
        (_NoTakeoverCount, "test_P06_the_fifth_takeover_without_progress_is_the_last", []),
        (_NamesWhatLives, "test_P06_a_reaping_names_the_runs_that_it_gives_up", []),
        (_NamesThemAgain, "test_P06_of_reapers_at_once_one_is_told_of_each_dead_letter", []),
        (_SuspectsTogether, "test_P06_a_run_that_kills_at_once_takes_no_neighbour_with_it", []),
        (_SuspectsTogether, "test_P06_suspects_are_given_out_one_at_a_time_and_others_beside_them", []),
        (_LeavingIsDying, "test_P03_a_worker_that_leaves_frees_its_runs_without_a_takeover", []),
        (_Payloads, "test_P49_a_summary_has_every_field_but_the_payloads", []),
        (_HistoryByKey, "test_history_is_in_the_order_of_seq", []),
        (_CancelWaits, "test_P29_a_started_run_that_nobody_holds_is_ready_at_once", ["sleeping", "waiting"]),
        (_NoRecord, "test_P29_a_run_that_never_started_is_cancelled_at_once", ["pending"]),
        (_NothingAside, "test_a_retry_keeps_what_succeeded_and_sets_aside_what_failed", []),
        (_NothingAside, "test_P28_the_remaining_compensations_are_retried", []),
        (_TakeoversStay, "test_P29_a_retried_run_starts_anew_with_what_stands", ["dead letter"]),
        (_AsideByPrefix, "test_P13_attempts_of_a_step_that_succeeded_in_the_end_stay_with_it", []),
        (_ClaimStays, "test_P04_an_execution_of_before_the_retry_writes_nothing", [states.release(State.RUNNING)]),
        (_ClaimStays, "test_P20_a_history_in_memory_is_not_current_after_a_pause", []),
        (_NoWake, "test_a_request_is_a_wake_that_a_park_can_miss", [Request(Verb.RESUME)]),
        (_LastOneCounts, "test_P29_the_first_of_several_who_cancel_is_named", []),
        (_AgainIsNone, "test_P29_many_who_cancel_at_once_cancel_once", []),
        (_TellsOnce, "test_P30_the_holder_is_told_with_every_claim", [("running", _CANCEL), ("compensating", _CANCEL)]),
        (_TellsEverybody, "test_P30_requests_about_many_runs_are_told_together", []),
        (_DiesWithItsWorker, "test_P29_a_request_outlives_the_worker_that_was_told", [_CANCEL]),
        (_RequestOutlivesTheRun, "test_P29_cancel_against_completion", []),
        (
            _RequestOutlivesTheRun,
            "test_P29_whatever_ends_a_run_ends_the_request",
            [("fail", _CANCEL), ("compensated", _CANCEL)],
        ),
        (_StandsStill, "test_P29_cancel_against_a_pause", []),
        (
            _ParksOverARequest,
            "test_a_run_that_leaves_its_worker_with_a_request_open_is_ready_at_once",
            [("try again", _CANCEL), ("sleep, knowing the counter", _CANCEL)],
        ),
        (_FailuresStay, "test_P25_another_run_attempt_sets_failed_steps_aside", [True, False]),
        (_FailuresAreDeleted, "test_P25_another_run_attempt_sets_failed_steps_aside", [True, False]),
        (_PrunesTheYoung, "test_P52_prune_takes_what_ended_before_and_nothing_else", []),
        (_PrunesWithoutBound, "test_P52_prune_goes_in_batches", []),
        (_KeysStay, "test_P52_a_deleted_run_frees_its_key", []),
        (_RecordsStay, "test_P52_everything_that_belongs_to_a_run_goes_with_it", []),
        (_ConsumedIsForgotten, "test_P33_the_same_id_twice_is_one_signal", []),
        (_AlsoUnfenced, "test_P04_a_zombie_consumes_nothing", []),
        (_AlsoUnfenced, "test_P04_a_zombie_makes_no_child", []),
        (_AlsoUnfenced, "test_P04_a_zombie_awaits_nothing", []),
        (_AlsoUnfenced, "test_P11_a_wait_sent_again_is_one_wait", []),
        (_AlsoUnfenced, "test_P35_a_call_sent_again_makes_one_child", []),
        (_AlsoUnfenced, "test_P48_what_a_run_emits_is_in_the_log_once", []),
        (_NobodyWakes, "test_P32_a_run_that_waits_is_ready_with_the_next_claim", [True, False]),
        (_NobodyWakes, "test_P31_every_run_that_waits_gets_the_event_and_goes_on", []),
        (_WakesWhoWaits, "test_P31_a_signal_between_claim_and_park_is_not_missed", []),
        (_WakesWhoWaits, "test_P31_a_park_to_sleep_compares_too", []),
        (
            _WakesEverybody,
            "test_P26_a_signal_does_not_end_any_other_rest",
            ["delayed", "sleeping", "backing off", "compensating", "paused"],
        ),
        (_TellsOfASignalOnce, "test_P31_a_holder_is_told_with_every_claim_until_it_asks", []),
        (_NoOrder, "test_P31_signals_are_read_in_the_order_in_which_they_came", []),
        (_ToWhomIsGone, "test_P33_a_run_that_has_ended_takes_no_signal", ["completed", "failed", "dead letter"]),
        (_OrphanedByDeath, _CHILD_ENDS, [("given up", True), ("given up", False)]),
        (_OrphanedByCancel, _CHILD_ENDS, [("never started", True), ("cancelled", False)]),
        (_OnlyToWhoWaits, _CHILD_ENDS, [("completed", False)]),
        (
            _OnlyToWhoWaits,
            "test_P35_a_parent_that_failed_before_its_child_ended_hears_of_it_when_it_is_retried",
            [],
        ),
        (_NothingRetained, "test_P31_a_run_that_begins_to_wait_gets_the_oldest_that_is_retained", []),
        (_NothingRetained, "test_P31_an_event_and_a_wait_at_the_same_time_do_not_miss_each_other", []),
        (_SinceEver, "test_P31_an_event_from_before_since_is_not_given", []),
        (_OneWaitPerTopic, "test_P33_one_event_ends_one_wait", []),
        (_EverybodyMakes, "test_P11_many_who_ask_at_once_are_told_of_one", []),
        (
            _MadeByTheDead,
            "test_P11_a_run_that_ends_lets_go_of_what_it_was_making",
            ["completed", "failed", "given up", "cancelled"],
        ),
        (_MadeForEver, "test_P52_what_a_run_has_made_is_known_until_it_is_pruned", [True, False]),
        (_WakesWhoWaits, _ORDERS, ["signals", "timeout", "child", "takeover", "pause", "event"]),
        (_NobodyWakes, _ORDERS, ["signals", "timeout", "child", "takeover", "pause", "event"]),
        (_AlsoUnfenced, _ORDERS, ["takeover"]),
        (_OnlyToWhoWaits, _ORDERS, ["child"]),
        (_NothingRetained, _ORDERS, ["event"]),
        (_DeletesLiveRuns, "test_P52_a_run_that_is_not_terminal_is_not_deleted", ["running", "paused"]),
    ],
)
async def test_a_broken_rule_turns_its_test_red(broken: type[MemoryStore], test: str, arguments: list[object]) -> None:
    run = getattr(StoreConformance(), test)
    for argument in arguments or [()]:
        harness: StoreHarness = _Harness(broken())
        with pytest.raises(AssertionError):
            # A named tuple is one argument.
            await (run(harness, *argument) if type(argument) is tuple else run(harness, argument))
