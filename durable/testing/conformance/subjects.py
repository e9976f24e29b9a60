"""What a stream of calls is made on: stores beside each other and the oracle, compared after every call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar, cast
from uuid import uuid4

from durable.errors import DurableError
from durable.model import Claimed, ClaimedRun, Outcome, RunWrite
from durable.store import Route, Store
from durable.testing.conformance.harness import StoreHarness, Worker
from durable.testing.oracle import Oracle, shown

T = TypeVar("T")


@dataclass
class Subject:
    """A store under test.

    Args:
        name: What to call it when it differs.
        store: Open, migrated, empty.
        harness: What it can do beyond the seam.
    """

    name: str
    store: Store
    harness: StoreHarness
    told: dict[str, int] = field(default_factory=dict[str, int])  # run → the wake counter, as its holder was told


class Divergence(AssertionError):
    """A store and the oracle differ."""


class Compared:
    """The stores and the oracle."""

    def __init__(self, subjects: Sequence[Subject]) -> None:
        self.subjects = subjects
        self.clock = subjects[0].store.clock
        self.oracle = Oracle(self.clock.now())
        self.log: list[str] = []
        self._observer = str(uuid4())

    async def start(self) -> None:
        for subject in self.subjects:
            await subject.store.register(self._observer, 86_400.0)

    def same(self, subject: Subject, what: str, found: object, expected: object) -> None:
        if found != expected:
            calls = "\n".join(f"{number:4}  {call}" for number, call in enumerate(self.log, 1))
            raise Divergence(f"{calls}\n\n{subject.name} differs in {what}:\n{_differ(found, expected)}")

    async def all(
        self, what: str, call: Callable[[Store], Awaitable[T]], view: Callable[[T], object], expected: object
    ) -> None:
        """The same call on each store, whose answer has to be this one."""
        for subject in self.subjects:
            try:
                found: object = view(await call(subject.store))
            except DurableError as error:
                found = type(error)
            self.same(subject, what, found, expected)

    async def commit(self, worker: str, writes: Sequence[RunWrite], expected: Sequence[Outcome]) -> None:
        """The same writes; each park names the counter that its store has told."""
        for subject in self.subjects:
            mine: list[RunWrite] = []
            for write in writes:
                change = write.change
                if change is not None and change.wakes is not None:
                    stale = change.wakes != self.told.get(write.ref.id)
                    change = change._replace(wakes=subject.told.get(write.ref.id, 0) - stale)
                mine.append(RunWrite(write.ref, write.records, change, write.also))
            self.same(subject, "outcomes", await Worker(subject.store, worker).commit(*mine), list(expected))

    @property
    def told(self) -> dict[str, int]:
        raise NotImplementedError

    async def claim(
        self,
        subject: Subject,
        worker: str,
        routes: Sequence[Route],
        limit: int,
        batches: list[str],
        warm: Mapping[str, int],
    ) -> list[ClaimedRun]:
        """A claim; when the store has stopped looking, another one, for what is left."""
        runs: list[ClaimedRun] = []
        for _ in range(20):
            batch = str(uuid4())
            unasked = len(warm) % 2 == 0  # either kind of claim finds the same
            claim = Worker(subject.store, worker).claim
            answer = await claim(limit - len(runs), routes, batch=batch, warm=warm, unasked=unasked)
            runs += answer.runs
            batches.append(batch)
            next_ready_at = answer.next_ready_at
            if len(runs) == limit or next_ready_at is None or next_ready_at > subject.store.clock.now():
                self._told_beside(subject, worker, answer, {one.run.id for one in runs})
                return runs
        raise Divergence(f"{subject.name} says 'look again' without end")

    def _told_beside(self, subject: Subject, worker: str, answer: Claimed, given: set[str]) -> None:
        held = self.oracle.held(worker)
        requests = {run.new.id: run.requested for run in held if run.requested is not None}
        self.same(subject, "requests of a claim", dict(answer.requests), requests)
        untold = sorted(run.new.id for run in held if run.untold and run.new.id not in given)
        self.same(subject, "signalled of a claim", sorted(answer.signalled), untold)

    def claimed(self, subject: Subject, one: ClaimedRun, warm: Mapping[str, int]) -> None:
        """Compare what a claim brought."""
        kept = self.oracle.runs[one.run.id]
        records = None if warm.get(one.run.id) == kept.claim - 1 else shown.records(kept.records)
        found = None if one.records is None else shown.records(one.records)
        self.same(subject, f"records of {one.run.id}", found, records)
        self.same(
            subject, f"signals of {one.run.id}", shown.letters(one.signals, kept), shown.letters(kept.unread, kept)
        )
        brought = (
            shown.ref(one.ref, self.oracle),
            one.run.state,
            one.run.input,
            one.run.seed,
            one.run.requested,
            one.run.suspect,
        )
        expected = (
            shown.ref(self.oracle.ref(kept), self.oracle),
            kept.state,
            kept.new.input,
            kept.new.seed,
            kept.requested,
        )
        self.same(subject, f"claim of {one.run.id}", brought, (*expected, kept.takeovers >= 2))
        subject.told[one.run.id] = one.wakes

    async def compare(self, histories: Sequence[str]) -> None:
        """Everything that is cheap to see, and these histories."""
        ids = list(self.oracle.runs)
        expected = {run_id: shown.expected_run(kept, self.oracle) for run_id, kept in self.oracle.runs.items()}
        for subject in self.subjects:
            await shown.drained(subject.store, self._observer, str(uuid4()))
            runs = {one.id: shown.run(one, self.oracle) for one in await subject.store.get_runs(ids)}
            for run_id in ids:
                self.same(subject, f"run {run_id}", runs.get(run_id), expected[run_id])
            for run_id in histories:
                records = shown.records(self.oracle.runs[run_id].records) if run_id in self.oracle.runs else []
                self.same(subject, f"history of {run_id}", shown.records(await subject.store.history(run_id)), records)
            for worker in self.oracle.workers:
                refs = sorted(shown.ref(self.oracle.ref(run), self.oracle) for run in self.oracle.held(worker))
                owned = [shown.ref(one, self.oracle) for one in await subject.store.owned(worker)]
                self.same(subject, f"runs of {worker}", sorted(owned), refs)


def _differ(found: object, expected: object) -> str:
    """Only what differs, of answers that are long."""
    if isinstance(found, dict) and isinstance(expected, dict):
        mine, theirs = cast("dict[str, object]", found), cast("dict[str, object]", expected)
        keys = [key for key in (mine | theirs) if mine.get(key) != theirs.get(key)]
        return "\n".join(f"  {key}: {mine.get(key)!r}, expected {theirs.get(key)!r}" for key in keys)
    return f"  {found!r}\n  expected {expected!r}"
