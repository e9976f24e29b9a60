"""What a store shows, and what the oracle says that it shows, in one form. What may differ is left out, with why."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any

from durable.model import Created, Kind, Record, Run, RunRef, RunSummary, Signal
from durable.store import Store
from durable.testing.oracle.executing import Oracle
from durable.testing.oracle.kept import CANCELLED, GIVEN_UP, Kept, Letter

_WORDED = {"durable.errors.RunCancelled": CANCELLED, "durable.errors.RunDeadLettered": GIVEN_UP}
_NO_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class When:
    """A time that a store took from its own clock, or was given: an hour more or less is the same.

    What a stream asks for lies days apart, and the clocks of two databases differ by some milliseconds.
    """

    at: datetime

    def __eq__(self, other: object) -> bool:
        return isinstance(other, When) and abs(self.at - other.at) < timedelta(hours=1)

    def __hash__(self) -> int:
        return 0


def error(text: str | None) -> str | None:
    """The error without its wording, where the store has written it itself."""
    if text is None or not text.startswith("{"):
        return text
    return _WORDED.get(json.loads(text).get("error_type"), text)


def run(of: Run, oracle: Oracle) -> dict[str, Any]:
    kept = oracle.runs.get(of.id)
    return {
        **summary(of, oracle),
        # A run that a limit key keeps back loses its time when a claim has met it: which ones a claim meets is open.
        "ready": None if kept is None or oracle.by_key(kept) or of.ready_at is None else When(of.ready_at),
        "payloads": (of.input, of.result, error(of.error), of.seed),
    }


def expected_run(kept: Kept, oracle: Oracle) -> dict[str, Any]:
    ready = None if oracle.by_key(kept) or oracle.queued(kept) else kept.ready
    return {
        **expected_summary(kept, oracle),
        "ready": None if ready is None else When(ready),
        "payloads": (kept.new.input, kept.result, error(kept.error), kept.new.seed),
    }


def summary(of: RunSummary, oracle: Oracle) -> dict[str, Any]:
    return {
        "id": of.id,
        "route": (of.workflow, of.version, of.queue, of.priority),
        "state": of.state,
        "keys": (of.key, of.limit_key, of.concurrency_key),
        "tags": dict(of.tags),
        "times": (of.started_at is not None, of.ended_at is not None),
        "reason": of.reason,
        "requested": of.requested,
        "held": (of.owner, of.takeovers),
        "ref": ref(RunRef(of.shard, of.id, of.claim, of.linked), oracle),
        "from": (of.parent, of.schedule, of.tick),
    }


def ref(of: RunRef, oracle: Oracle) -> RunRef:
    """As it is; linked for sure where that may be."""
    kept = oracle.runs.get(of.id)
    return of._replace(linked=of.linked or (kept is not None and kept.linked_perhaps))


def expected_summary(kept: Kept, oracle: Oracle) -> dict[str, Any]:
    new = kept.new
    return {
        "id": new.id,
        "route": (new.workflow, new.version, new.queue, new.priority),
        "state": kept.state,
        "keys": (new.key, new.limit_key, new.concurrency_key),
        "tags": dict(new.tags),
        "times": (kept.started, kept.ended),
        "reason": kept.reason,
        "requested": kept.requested,
        "held": (kept.owner, kept.takeovers),
        "ref": ref(oracle.ref(kept), oracle),
        "from": (new.parent, new.schedule, new.tick),
    }


def records(of: Sequence[Record]) -> list[tuple[object, ...]]:
    """A history. The time and the spelling of what stores write themselves are theirs."""
    return [(*one._replace(data=None, at=_NO_TIME), _data(one), When(one.at)) for one in of]


def _data(of: Record) -> object:
    return json.loads(of.data) if of.kind is Kind.REQUEST and of.data is not None else of.data


def letters(of: Iterable[Signal | Letter], kept: Kept) -> list[object]:
    """Signals in the order of their arrival.

    In which order the ends of children that one commit has ended arrive is open. The end of a child is told in JSON,
    in whatever spelling. What tells of a shared effect is made by the store, and so is its id: those come last here.
    """
    came = {letter.id: letter.at for letter in kept.inbox}
    own = [(one.id, one.name, _end(one.data) if one.name.startswith("child/") else one.data) for one in of]
    named = [one for one in own if not one[1].startswith("event//effect/")]
    groups = [sorted(group, key=str) for _, group in groupby(named, lambda one: came.get(one[0]))]
    told = sorted(name for _, name, _ in own if name.startswith("event//effect/"))
    return [*groups, *told]


def _end(data: str) -> object:
    found: dict[str, Any] = json.loads(data)
    return found.get("state"), found.get("result"), error(json.dumps(found.get("error")))


def created(of: Created) -> tuple[object, ...]:
    """The answer to a trigger; how a refusal is worded is the store's."""
    return of.run_id, of.created, of.conflict is not None, of.busy, tuple(of.replaced)


async def drained(store: Store, worker: str, batch: str) -> None:
    """Have the store do what it may put off until the next claim: signals, events and ends of children."""
    await store.claim(worker, [], 0, batch, {})
