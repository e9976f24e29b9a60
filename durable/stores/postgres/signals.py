"""Signals: sent, drained into the counters of their runs, read and consumed; and children, whose ends are signals.

The protocol is explained beside the statements, in ``sql/postgres/queries/signals.sql``. What a flush does beside its
records and changes is appended to it as statements of their own, and only when some write asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from durable.errors import StoreUnavailable
from durable.model import Created, NewRun, NewSignal, RunWrite, Sent, Signal, Unread
from durable.states import TERMINAL
from durable.store import Route
from durable.stores.postgres import creating, literals, rows
from durable.stores.postgres.connections import REPEATS
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call, Row

# -- sending --------------------------------------------------------------------------------------


async def send(sessions: Sessions, signals: Sequence[NewSignal]) -> list[Sent]:
    """What became of each of ``signals``, in order.

    Raises:
        StoreUnavailable: Time and again a run ended, and was retried, while a signal was sent to it.
    """
    addressed = {place: known for place, signal in enumerate(signals) if (known := _addressed(signal)) is not None}
    answers = dict.fromkeys(set(range(len(signals))) - set(addressed), Sent.NOT_FOUND)
    for _ in range(REPEATS):
        left = [place for place in addressed if place not in answers]
        if not left:
            return [answers[place] for place in range(len(signals))]
        found = await _send(sessions, [addressed[place] for place in left])
        answers.update((place, answer) for place, answer in zip(left, found, strict=True) if answer is not None)
    raise StoreUnavailable("send_signals: a run ends and is retried all the time")


def _addressed(signal: NewSignal) -> NewSignal | None:
    """With the run's id in its canonical form; None when it is none."""
    try:
        return replace(signal, run_id=str(UUID(signal.run_id)))
    except ValueError:
        return None


async def _send(sessions: Sessions, signals: Sequence[NewSignal]) -> Sequence[Sent | None]:
    """One transaction for all, and a look at the inboxes when some were not inserted."""
    shards, run_ids = _addresses(signals)
    ids = [signal.id for signal in signals]
    texts = literals.columns(ids, [signal.name for signal in signals], [signal.data for signal in signals])
    [[[inserted]]] = await sessions.create.transaction(sessions.call("add_signals", shards, run_ids, *texts))
    if inserted == len(signals):
        return [Sent.ACCEPTED] * len(signals)
    found = await sessions.read("sent", shards, run_ids, *literals.columns(ids))
    return [_answer(known, ended) for known, ended in found]


def _addresses(signals: Sequence[NewSignal]) -> tuple[Parameter, Parameter]:
    return literals.scalars([signal.shard for signal in signals]), literals.ids([signal.run_id for signal in signals])


def _answer(known: bool, ended: bool | None) -> Sent | None:
    if known:
        return Sent.ACCEPTED
    if ended is None:
        return Sent.NOT_FOUND
    return Sent.FINISHED if ended else None  # it had ended a moment ago, and goes on


async def create_with(
    sessions: Sessions, run: NewRun, signal: NewSignal, routes: Mapping[Route, int]
) -> tuple[Created, Sent]:
    """Create the run with its first signal in one transaction; or send the signal to the one that stands.

    Raises:
        StoreUnavailable: Time and again the run that stood was deleted.
    """
    first = sessions.call("add_first_signal", str(run.shard), run.id, signal.id, signal.name, signal.data)
    for _ in range(REPEATS):
        [created] = await creating.create(sessions, [run], routes, first)
        if created.conflict is not None or created.busy:
            return created, Sent.NOT_FOUND
        # Also to a run that was made just now: its first signal is there, and is accepted again.
        [sent] = await send(sessions, [replace(signal, run_id=created.run_id, shard=run.shard)])
        if sent is not Sent.NOT_FOUND:
            return created, sent
    raise StoreUnavailable("create_with_signal: a run that was in the way is gone")


# -- draining and reading -------------------------------------------------------------------------

AGAIN = timedelta(milliseconds=20)
"""After which a claim that left something behind is to be made again: what was in its way is held for a transaction."""


class Drained(NamedTuple):
    """The answer of ``drain_wakes``."""

    left: bool  # some rows stayed, for somebody held them or their runs
    gone: Sequence[str]  # runs that do not exist any more, and have got signals


async def forget(sessions: Sessions, shard: str, run_ids: Sequence[str]) -> None:
    """Delete what was sent to runs while they were deleted."""
    if run_ids:
        await sessions.write("forget_signals", sessions.call("forget_signals", shard, literals.ids(run_ids)))


async def unread(sessions: Sessions, shard: str, worker: str, run_ids: Sequence[str]) -> Mapping[str, Unread]:
    """The counters, and in a later statement the signals, of those of the runs that the worker holds.

    What was sent and not drained is drained first: a signal that is read here, and counted later, would wake the run
    from the park that follows, for nothing.
    """
    ids = literals.ids(run_ids)
    _, held, found = await sessions.write(
        "unread",
        sessions.call("drain_wakes", shard),
        sessions.call("unread_runs", shard, worker, ids),
        sessions.call("unread_signals", shard, ids),
    )
    inboxes = by_run(found)
    return {run_id: Unread(wakes, inboxes.get(run_id, [])) for run_id, wakes in held}


def by_run(found: Iterable[Row]) -> dict[str, list[Signal]]:
    """From ``claim_signals`` and ``unread_signals``."""
    inboxes: dict[str, list[Signal]] = {}
    for run_id, id_, name, data, at in found:
        inboxes.setdefault(run_id, []).append(Signal(id_, name, data, at))
    return inboxes


# -- beside a flush -------------------------------------------------------------------------------


def written(worker: str, writes: Sequence[RunWrite]) -> list[Parameter]:
    """$1 to $5 of the statements that follow ``commit_writes``: the write of each of their items."""
    return [
        worker,
        literals.scalars([write.ref.shard for write in writes]),
        literals.ids([write.ref.id for write in writes]),
        literals.scalars([write.ref.claim for write in writes]),
        literals.scalars([write.change is not None for write in writes]),
    ]


def first_records(writes: Sequence[RunWrite]) -> list[str | None]:
    """By which a statement that follows ``commit_writes`` sees that each write was applied."""
    return [write.records[0].key if write.records else None for write in writes]


def consumed(sessions: Sessions, worker: str, writes: Sequence[RunWrite]) -> list[Call]:
    """Marks the signals that the writes consume."""
    named = [(write, id_) for write in writes if write.also for id_ in dict.fromkeys(write.also.consumed)]
    if not named:
        return []
    owners = [write for write, _ in named]
    texts = literals.columns(first_records(owners), [id_ for _, id_ in named])
    return [sessions.call("consume_signals", *written(worker, owners), *texts)]


def children(sessions: Sessions, worker: str, writes: Sequence[RunWrite], routes: Mapping[Route, int]) -> list[Call]:
    """Creates the children of the writes."""
    named = [(write, child) for write in writes if write.also for child in write.also.children]
    if not named:
        return []
    parents, runs = [write for write, _ in named], [child for _, child in named]
    marks_and_texts = literals.columns(
        first_records(parents),
        [run.seed for run in runs],
        [run.input_hash for run in runs],
        [run.request for run in runs],
        [rows.tags_text(run.tags) for run in runs],
        [run.input for run in runs],
        [run.limit_key for run in runs],
        [run.parent for run in runs],
        [run.parent_key for run in runs],
    )
    return [
        sessions.call(
            "add_children",
            *written(worker, parents),
            *marks_and_texts[:3],
            literals.ids([run.id for run in runs]),
            literals.scalars([routes[Route(run.workflow, run.version, run.queue)] for run in runs]),
            literals.times([run.ready_at for run in runs]),
            literals.scalars([run.delay for run in runs]),
            literals.scalars([run.priority for run in runs]),
            *marks_and_texts[3:],
        )
    ]


def ends(sessions: Sessions, writes: Sequence[RunWrite]) -> list[Call]:
    """Tells the parents of linked runs that the writes end."""
    ended = [
        write.ref
        for write in writes
        if write.ref.linked and write.change is not None and write.change.state in TERMINAL
    ]
    if not ended:
        return []
    shards, ids = literals.scalars([ref.shard for ref in ended]), literals.ids([ref.id for ref in ended])
    return [sessions.call("tell_parents", shards, ids, "false")]


def lost(sessions: Sessions, worker: str, writes: Sequence[RunWrite]) -> list[Call]:
    """Asks about writes with neither records nor a change, of which ``commit_writes`` says nothing."""
    refs = [write.ref for write in writes if write.also and not write.records and write.change is None]
    if not refs:
        return []
    shards, claims = literals.scalars([ref.shard for ref in refs]), literals.scalars([ref.claim for ref in refs])
    return [sessions.call("lost_runs", worker, shards, literals.ids([ref.id for ref in refs]), claims)]
