"""Effects that runs share: who makes one, and what a flush says came of it.

The protocol is explained beside the statements, in ``sql/postgres/queries/effects.sql``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from durable.errors import StoreUnavailable
from durable.model import Effect, RunRef, RunWrite
from durable.states import TERMINAL
from durable.store import EFFECT_RETENTION, EFFECT_TOPIC
from durable.stores.postgres import literals, signals
from durable.stores.postgres.requesting import PAUSE, TRIES
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call

_TOLD = (EFFECT_TOPIC, str(EFFECT_RETENTION))


async def take(sessions: Sessions, worker: str, ref: RunRef, key: str, step: str) -> Effect | None:
    """Have the step make the effect unless another has it; None when the lease is lost.

    Raises:
        PayloadError: The key cannot be stored.
        StoreUnavailable: Another transaction holds the run, or the effect.
    """
    taking = sessions.call("take_effect", worker, str(ref.shard), ref.id, str(ref.claim), key, step)
    taken = sessions.call("effect_taken", str(ref.shard), key)
    for _ in range(TRIES):
        [[locked, mine]], found = await sessions.write("take_effect", taking, taken)
        if locked:
            run_id, maker, done, data = found[0]
            made_here = run_id == ref.id and maker == step
            return Effect(True, run_id) if made_here else Effect(False, run_id, done, data)
        if not mine:
            return None
        await asyncio.sleep(PAUSE)
    raise StoreUnavailable(f"take_effect: another transaction holds run {ref.id}")


def ended(sessions: Sessions, worker: str, writes: Sequence[RunWrite]) -> list[Call]:
    """Says what became of effects that the writes' runs make; of two ends of one, the later one."""
    named = {
        (write.ref.id, end.key, end.step): (write, end) for write in writes if write.also for end in write.also.effects
    }
    if not named:
        return []
    owners, ends = [write for write, _ in named.values()], [end for _, end in named.values()]
    marks_and_texts = literals.columns(
        signals.first_records(owners), [end.key for end in ends], [end.step for end in ends]
    )
    kept = literals.scalars([end.kept for end in ends])
    parameters = [*signals.written(worker, owners), *marks_and_texts[:3], kept, *marks_and_texts[3:], *_TOLD]
    return [sessions.call("end_effects", *parameters)]


def freed(sessions: Sessions, writes: Sequence[RunWrite]) -> list[Call]:
    """Lets go of what linked runs were making that the writes end."""
    ended = [w.ref for w in writes if w.ref.linked and w.change is not None and w.change.state in TERMINAL]
    if not ended:
        return []
    shards, ids = literals.scalars([ref.shard for ref in ended]), literals.ids([ref.id for ref in ended])
    return [sessions.call("free_effects", shards, ids, "false", *_TOLD)]


def freed_by_deaths(sessions: Sessions) -> Call:
    """The same for runs that are given up because their workers died."""
    return sessions.call("free_effects", "{}", literals.ids([]), "true", *_TOLD)
