"""Concurrency keys and debounced triggers: what a trigger, an end and a request send besides the usual.

The statements say why nobody is forgotten. It knows no limits of queues.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from durable.model import Debounce, NewRun, Policy, Run, RunWrite
from durable.states import TERMINAL
from durable.stores.postgres import literals, rows
from durable.stores.postgres.literals import Parameter
from durable.stores.postgres.sessions import Sessions
from durable.stores.postgres.wire import Call, Row

SWEEP = 1.0
"""Seconds between two looks of a claiming process at turns that nobody could pass on: a trigger held their key."""

_POLICIES = {Policy.REJECT: 0, Policy.EXISTING: 0, Policy.QUEUE: 1, Policy.REPLACE: 2}


class Sweeps:
    """When this process looks for such turns."""

    def __init__(self) -> None:
        self._next = 0.0

    def soon(self) -> None:
        """With the next claim: something is known to be left, or may be."""
        self._next = 0.0

    async def sweep(self, sessions: Sessions, shard: str) -> None:
        """Pass on what is left, if it is time to."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + SWEEP
            *_, answer = await sessions.write("pass turns", *passing(sessions, shard))
            self.passed(answer)

    def passed(self, answer: list[Row]) -> bool:
        """Whether a run became ready, by the last answer to ``passing``."""
        [(ready, some_left)] = answer
        if some_left:
            self.soon()
        return bool(ready)


# -- leaving --------------------------------------------------------------------------------------


def passing(sessions: Sessions, shard: str) -> list[Call]:
    """The last one's answer is for ``Sweeps.passed``."""
    return [sessions.call("stir_turns", shard), sessions.call("pass_turns", shard)]


def leaving(sessions: Sessions, shard: str, writes: Sequence[RunWrite]) -> list[Call]:
    """What follows a flush in which runs that concern others leave their worker: mostly nothing."""
    left = [write for write in writes if write.ref.linked and write.change is not None and not write.change.keep]
    if not left:
        return []
    shards, ids = literals.scalars([write.ref.shard for write in left]), literals.ids([write.ref.id for write in left])
    ended = any(write.change is not None and write.change.state in TERMINAL for write in left)
    return [sessions.call("leave_queues", shards, ids, "false"), *(passing(sessions, shard) if ended else [])]


def left_by_the_dead(sessions: Sessions, shard: str) -> list[Call]:
    """What follows ``release_orphans``."""
    return [
        sessions.call("leave_queues", literals.scalars([]), literals.ids([]), "true"),
        *passing(sessions, shard),
    ]


def ended(sessions: Sessions, shard: str, run_id: str) -> list[Call]:
    """What follows a request that ends a run which nobody holds."""
    return [
        sessions.call("leave_queues", literals.scalars([int(shard)]), literals.ids([run_id]), "false"),
        *passing(sessions, shard),
    ]


def before_it_is_ready(sessions: Sessions, run: Run) -> list[Call]:
    """What precedes a request that makes a run ready: then ``keep_turn`` knows who else has a turn."""
    if run.concurrency_key is None:
        return []
    names = literals.columns([run.workflow], [run.concurrency_key], [])
    return [sessions.call("hold_turns", literals.scalars([run.shard]), *names, literals.ids([]), "{}")]


# -- triggers -------------------------------------------------------------------------------------


def entering(sessions: Sessions, runs: Sequence[NewRun]) -> list[Call]:
    """What precedes ``add_runs`` for those that have a concurrency key. The last one answers which are refused."""
    keyed = [run for run in runs if run.concurrency_key is not None]
    if not keyed:
        return []
    shards, ids = literals.scalars([run.shard for run in keyed]), literals.ids([run.id for run in keyed])
    workflows, turns = [run.workflow for run in keyed], [run.concurrency_key for run in keyed]
    schedules, ticks = [run.schedule for run in keyed], literals.times([run.tick for run in keyed])
    return [
        sessions.call("hold_turns", shards, *literals.columns(workflows, turns, schedules), ids, ticks),
        sessions.call(
            "take_turns",
            shards,
            ids,
            literals.scalars([_POLICIES[run.policy] for run in keyed]),
            literals.times([ready_at(run) for run in keyed]),
            literals.scalars([delay(run) for run in keyed]),
            *literals.columns(
                workflows,
                turns,
                [run.key for run in keyed],
                [debounce_key(run) for run in keyed],
                schedules,
            ),
            ticks,
        ),
    ]


def merging(sessions: Sessions, run: NewRun, debounce: Debounce) -> list[Call]:
    """What precedes them all for a debounced trigger. The last one answers which run stands."""
    which: list[Parameter] = [str(run.shard), run.id, run.workflow, debounce.key]
    longest = None if debounce.max_delay is None else str(debounce.max_delay)
    return [
        sessions.call("hold_debounce", *which),
        sessions.call(
            "merge_trigger",
            *(*which, str(debounce.delay), longest, run.key),
            *(run.version, run.input, run.input_hash, rows.tags_text(run.tags)),
        ),
    ]


def ready_at(run: NewRun) -> datetime | None:
    """When a new run starts; None: after ``delay``."""
    return run.ready_at if run.debounce is None else None


def delay(run: NewRun) -> float:
    """Seconds after the store's now at which a new run starts."""
    if run.debounce is None:
        return run.delay
    longest = run.debounce.max_delay
    return run.debounce.delay if longest is None else min(run.debounce.delay, longest)


def debounce_key(run: NewRun) -> str | None:
    return None if run.debounce is None else run.debounce.key


async def before(sessions: Sessions, shard: str, run_ids: Sequence[str]) -> dict[str, tuple[list[str], bool]]:
    """Of those that have such: the runs under their concurrency key that come before them and have not ended.

    And whether to ask these to cancel.
    """
    found: dict[str, tuple[list[str], bool]] = {}
    for run_id, other, replaces in await sessions.read("turns_before", shard, literals.ids(run_ids)):
        found.setdefault(run_id, ([], replaces))[0].append(other)
    return found


async def have_replaced(sessions: Sessions, shard: str, run_ids: Sequence[str]) -> None:
    await sessions.write("replace", sessions.call("have_replaced", shard, literals.ids(run_ids)))
