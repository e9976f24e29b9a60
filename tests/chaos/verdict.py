"""What really happened, held against what was promised: the invariants, from the database and the ledger alone.

It asks the engine nothing. Each violation begins with the invariant's name.

* I1 Every acknowledged trigger is exactly one run.
* I2 Every run has ended, in the state that its order ends in, and has not left it.
* I3 Every record is there once and says what its attempt returned; nothing has changed it since.
* I4 Nothing was written by a worker that had lost its lease.
* I5 Compensations are recorded once each, in reverse order, none without its step.
* I6 Every signal was consumed once; every tick of the schedule is one run, and none is missing.
* I7 An effect in the record's transaction happened once. Any other at least once; and one that is not the recorded one
  only where a takeover from the process that had it stands in the run's timeline.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

from tests.chaos import flows
from tests.chaos.arena import Arena
from tests.chaos.ledger import Effect, read
from tests.chaos.load import EVERY, PULSE, Load


class Entry(NamedTuple):
    """A record, as far as the invariants are about it."""

    seq: int
    key: str
    kind: str
    data: str | None
    failed: bool
    worker: str | None


@dataclass
class Verdict:
    """What was found.

    Attributes:
        violations: Of invariants.
        runs, records, effects: How many were looked at.
        repeated: Effects that happened again after a crash or a lost lease, as at-least-once allows.
        takeovers: Seconds from the death of a worker to the next effect of a run that it had, elsewhere.
    """

    violations: list[str] = field(default_factory=list[str])
    runs: int = 0
    records: int = 0
    effects: int = 0
    repeated: int = 0
    takeovers: list[float] = field(default_factory=list[float])

    def longest_takeover(self, share: float = 0.99) -> float:
        """That percentile of the takeovers, seconds."""
        ordered = sorted(self.takeovers)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


Histories = Mapping[str, list[Entry]]


async def judge(arena: Arena, load: Load, deaths: Mapping[int, float] | None = None) -> Verdict:
    """All invariants on the orders of a load.

    Args:
        deaths: When which process was killed, for the takeovers.
    """
    found = Verdict()
    book = read(arena.ledger)
    runs = await arena.ask(
        "SELECT run.id::text, route.workflow, state, input, result FROM durable.runs AS run "
        "JOIN durable.routes AS route ON route.id = run.route"
    )
    histories: defaultdict[str, list[Entry]] = defaultdict(list)
    query = "SELECT run_id::text, seq, key, kind, data, failed, worker::text FROM durable.history ORDER BY run_id, seq"
    for run_id, *entry in await arena.ask(query):
        histories[run_id].append(Entry(*entry))
    books: defaultdict[str, list[str]] = defaultdict(list)
    effects: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in book.effects:
        effects[effect.run_id].append(effect)
    found.runs, found.effects = len(runs), len(book.effects)
    found.records = sum(map(len, histories.values()))

    for run_id, nonce in await arena.ask("SELECT run_id, nonce FROM books"):
        books[run_id].append(nonce)
    say = found.violations.extend
    say(f"caller: {error}" for error in load.errors)
    say(what for (what,) in await arena.ask("SELECT what FROM audit"))
    say(_triggers([(run_id, json.loads(item)) for run_id, name, _, item, _ in runs if name == "order"], load))
    for run_id, name, state, item, result in runs:
        if name == "order":
            say(_ended(run_id, json.loads(item), state, result, histories[run_id], load.results.get(run_id)))
        elif state != "completed":
            say([f"I2: {name} {run_id} is {state}"])
        say(_compensations(run_id, histories[run_id]))
        say(_written_by_the_dead(run_id, histories[run_id]))
        repeated = list(_effects(run_id, histories[run_id], effects[run_id], books.get(run_id, []), book.pids))
        say(text for text in repeated if text)
        found.repeated += repeated.count("")
        if deaths:
            found.takeovers += _takeovers(histories[run_id], effects[run_id], book.pids, deaths)
    say(await _signals(arena, load))
    say(await _ticks(arena))
    shared = {
        run_id
        for run_id, name, state, item, _ in runs
        if name == "order" and state == "completed" and json.loads(item) % 10 in flows.SHARES
    }
    say(_books(books, shared))
    return found


def _triggers(orders: list[tuple[str, int]], load: Load) -> Iterator[str]:
    runs = Counter(item for _, item in orders)
    yield from (f"I1: order {item} has {number} runs" for item, number in runs.items() if number > 1)
    existing = {run_id for run_id, _ in orders}
    for item, run_id in load.acknowledged.items():
        if run_id not in existing:
            yield f"I1: order {item} was acknowledged as {run_id}, which does not exist"


def _ended(
    run_id: str, item: int, state: str, result: str | None, history: list[Entry], heard: list[str] | None
) -> Iterator[str]:
    expected = "compensated" if item % 10 == flows.FAILS else "completed"
    if state != expected:
        yield f"I2: run {run_id} of order {item} is {state}"
        return
    recorded = [entry for entry in history if entry.kind == "step" and not entry.failed]
    steps = [key for key in flows.STEPS if key != "mail" or expected == "completed"]
    if [entry.key for entry in recorded] != steps:
        yield f"I3: run {run_id} of order {item} has the records {[entry.key for entry in recorded]}"
    if expected == "completed":
        nonces = [json.loads(entry.data or "null") for entry in recorded]
        returned = [text for text in json.loads(result or "[]") if not text.startswith(("paid", "parcel"))]
        if returned != nonces:
            yield f"I3: run {run_id} of order {item} returned {returned}, its records say {nonces}"
        if heard is not None and heard != json.loads(result or "[]"):
            yield f"I3: the caller of order {item} got {heard}, the run's result is {result}"
    if item % 10 == flows.SIGNALLED and f"paid {item}" not in json.loads(result or "[]"):
        yield f"I6: order {item} has ended without what its signal brought"


def _compensations(run_id: str, history: list[Entry]) -> Iterator[str]:
    undone = [entry.key.removesuffix("/undo") for entry in history if entry.kind == "undo"]
    if undone:
        to_undo = [entry.key for entry in history if entry.kind == "step" and not entry.failed and entry.key != "book"]
        if undone != to_undo[::-1]:
            yield f"I5: run {run_id} undid {undone} after {to_undo}"


def _written_by_the_dead(run_id: str, history: list[Entry]) -> Iterator[str]:
    dead: set[str | None] = set()
    for entry in history:
        if entry.kind == "takeover":
            dead.add(entry.worker)
        elif entry.worker in dead and entry.worker is not None:
            yield f"I4: {run_id}/{entry.key} was written by {entry.worker} after the takeover from it"


def _effects(
    run_id: str, history: list[Entry], effects: Iterable[Effect], books: list[str], pids: Mapping[str, int]
) -> Iterator[str]:
    """A text for each violation, and an empty one for each repetition that has its reason."""
    lost = Counter(pids.get(entry.worker or "") for entry in history if entry.kind == "takeover")
    happened: defaultdict[str, list[Effect]] = defaultdict(list)
    for effect in effects:
        happened[effect.key].append(effect)
    recorded: dict[str, str | None] = {}
    for entry in history:
        if entry.kind == "step":
            recorded[entry.key] = json.loads(entry.data or "null") if not entry.failed else None
        elif entry.kind == "undo":  # its result is not recorded: it is about the latest one of who has recorded it
            mine = [effect.nonce for effect in happened[entry.key] if effect.pid == pids.get(entry.worker or "")]
            recorded[entry.key] = mine[-1] if mine else f"nothing of {entry.worker}"
    for key, nonce in recorded.items():
        if nonce is not None and nonce not in {*books, *(effect.nonce for effect in happened[key])}:
            yield f"I7: {run_id}/{key} says {nonce}, which neither ledger nor books know"
    for key, attempts in happened.items():
        others = Counter(attempt.pid for attempt in attempts if attempt.nonce != recorded.get(key))
        for pid, number in others.items():
            if number > lost[pid]:
                yield f"I7: process {pid} did {run_id}/{key} {number} times beside the record, and lost it {lost[pid]}"
            else:
                yield from [""] * number


def _takeovers(
    history: list[Entry], effects: Iterable[Effect], pids: Mapping[str, int], deaths: Mapping[int, float]
) -> Iterator[float]:
    killed = {pids.get(entry.worker or "", 0) for entry in history if entry.kind == "takeover"}
    died = sorted(deaths[pid] for pid in killed if pid in deaths)
    effects = sorted(effects)
    for at, following in zip(died, [*died[1:], float("inf")], strict=False):
        later = next((effect for effect in effects if effect.at > at), None)
        if later is not None and later.at < following:  # else its next worker died before it could begin
            yield later.at - at


async def _signals(arena: Arena, load: Load) -> list[str]:
    query = (
        "SELECT run_id::text, count(*), count(*) FILTER (WHERE consumed) FROM durable.signals "
        "WHERE name = 'paid' GROUP BY 1"
    )
    counts = {run_id: (number, consumed) for run_id, number, consumed in await arena.ask(query)}
    return [
        f"I6: of the signal to {run_id} there are {counts.get(run_id, (0, 0))} (kept, consumed)"
        for run_id in load.signalled
        if counts.get(run_id) != (1, 1)
    ]


async def _ticks(arena: Arena) -> list[str]:
    runs = await arena.ask("SELECT tick FROM durable.runs WHERE schedule = %s ORDER BY tick", PULSE)
    ticks = [tick for (tick,) in runs]
    every = timedelta(seconds=EVERY)
    wrong = [f"I6: tick {a} is two runs" for a, b in pairwise(ticks) if a == b]
    wrong += [f"I6: between the ticks {a} and {b} some are missing" for a, b in pairwise(ticks) if b - a > every]
    [[fired, last]] = await arena.ask("SELECT fired, last_at FROM durable.schedules WHERE name = %s", PULSE)
    if (fired, last) != (len(ticks), ticks[-1] if ticks else None):
        wrong.append(
            f"I6: {fired} ticks were fired, the last {last}; there are {len(ticks)} runs, the last {ticks[-1:]}"
        )
    return wrong


def _books(books: Mapping[str, list[str]], expected: set[str]) -> list[str]:
    return [
        f"I7: what {run_id} wrote in its record's transaction is there {len(books.get(run_id, []))} times"
        for run_id in sorted(expected | books.keys())
        if len(books.get(run_id, [])) != 1
    ]
