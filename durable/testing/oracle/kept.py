"""What the oracle keeps of a run, and which of its records a retry sets aside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from durable.model import Kind, NewRun, Record, Request, State, Verb

TERMINAL = (State.COMPLETED, State.FAILED, State.COMPENSATED, State.CANCELLED, State.DEAD_LETTER)
GIVEN_UP = '"given up"'
"""The error of a dead letter: each store words it in its own way."""
CANCELLED = '"cancelled"'


class Letter(NamedTuple):
    """A signal in an inbox."""

    id: str
    name: str
    data: str
    at: datetime  # when it came: all that one call brings come together


@dataclass
class Kept:
    """One run."""

    new: NewRun
    created_at: datetime
    state: State = State.PENDING
    ready: datetime | None = None  # when time alone lets it be claimed; places, tokens and lines are asked elsewhere
    started: bool = False
    ended: bool = False
    result: str | None = None
    error: str | None = None
    reason: str | None = None
    requested: Request | None = None
    owner: str | None = None
    claim: int = 0
    takeovers: int = 0
    stirred: int = 0  # how often something has come that wakes it
    records: list[Record] = field(default_factory=list[Record])
    inbox: list[Letter] = field(default_factory=list[Letter])
    consumed: set[str] = field(default_factory=set[str])
    untold: bool = False  # it got signals that its holder has not asked for
    linked: bool = False
    linked_perhaps: bool = False  # it asked for a shared effect: a store may link it before it knows who makes that
    placed: bool = False  # it holds a place in its queue now
    kept_back_perhaps: bool = False  # by a limit of its key that is gone: a store looks at it anew with the next claim

    @property
    def over(self) -> bool:
        return self.state in TERMINAL

    @property
    def route(self) -> tuple[str, str, str]:
        return self.new.workflow, self.new.version, self.new.queue

    @property
    def unread(self) -> list[Letter]:
        return [letter for letter in self.inbox if letter.id not in self.consumed]

    @property
    def following(self) -> int:
        """The next position in the history."""
        return 1 + max((record.seq for record in self.records), default=0)

    def key(self, key: str) -> Record | None:
        return next((record for record in self.records if record.key == key), None)

    def requests(self) -> list[Request]:
        """The requests that were carried out."""
        return [asked(record) for record in self.records if record.kind is Kind.REQUEST]

    def asked_last(self) -> Request | None:
        """The request that was carried out last."""
        return next(reversed(self.requests()), None)

    def set_aside(self, keys: set[str]) -> None:
        """Keep these records, and those that extend them, under keys of their own."""
        for at, record in enumerate(self.records):
            if not record.key.startswith("/") and any(is_part(record.key, key) for key in keys):
                self.records[at] = record._replace(key=f"/{self.claim}/{record.key}")


def is_part(key: str, of: str) -> bool:
    return key == of or key.startswith(of + "/")


def asked(record: Record) -> Request:
    """The request that a record tells of."""
    found = json.loads(record.data or "{}")
    return Request(Verb(found["verb"]), found.get("reason", ""), found.get("by", ""), found.get("id", ""))


def unsuccessful(records: Sequence[Record]) -> set[str]:
    """Steps that failed, or have only failed attempts; children that ended without a result; their fan-outs."""
    here = {record.key: record for record in records if not record.key.startswith("/")}
    keys: set[str] = set()
    for key, record in here.items():
        if record.kind is Kind.STEP and record.failed:
            keys.add(key)
        if record.kind is Kind.CALL and (woke := here.get(f"{key}/woke")) is not None and woke.failed:
            keys.add(key)
        if record.kind is Kind.ATTEMPT:
            step = key.rpartition("/attempt/")[0]
            if not step.endswith("/undo") and (step not in here or here[step].failed):
                keys.add(step)
    return with_maps(keys)


def retried(records: Sequence[Record], step: str | None) -> set[str] | None:
    """What a retry sets aside, without what extends it; None: no record has the key ``step``."""
    here = [record for record in records if not record.key.startswith("/")]
    keys = unsuccessful(records)
    for record in here:
        if record.kind is Kind.UNDO:
            keys.add(record.key if record.failed else record.key.removesuffix("/undo"))
        if record.kind is Kind.ATTEMPT and "/undo/attempt/" in record.key:
            keys.add(record.key.rpartition("/attempt/")[0])
    if step is not None:
        first = next((record.seq for record in here if record.key == step), None)
        if first is None:
            return None
        keys |= {record.key for record in here if record.seq >= first}
        ends = {key.removesuffix("/woke") for key in keys if key.endswith("/woke")}
        keys |= {record.key for record in here if record.kind is Kind.WAIT and record.key in ends}
    return with_maps(keys)


def with_maps(keys: set[str]) -> set[str]:
    return keys | {key.rpartition("[")[0] for key in keys if key.endswith("]")}
