"""The words of oversight as immutable values: what operators, monitors and other programs learn about the system.

No behaviour beyond construction; it knows neither a store nor who asks. Times are aware UTC datetimes on the store's
clock, durations seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Literal, NamedTuple

from durable.model import State


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker as the store knows it: from its registration until it signs off, or is found dead."""

    id: str
    host: str  # empty when it was not said
    pid: int  # 0 when it was not said
    started_at: datetime
    lease_until: datetime
    alive: bool  # its lease has not expired
    running: int  # runs that it holds


@dataclass(frozen=True, slots=True)
class OpenWait:
    """Something that a run waits for."""

    name: str  # the signal, the event as topic or topic/key, the child's or the sleep's key
    kind: Literal["signal", "event", "child", "sleep"]
    since: datetime
    deadline: datetime | None = None  # when it ends by itself; None: never
    key: str = ""  # of its record in the history


class Depth(NamedTuple):
    """What stands ready in a queue, whatever its limits."""

    ready: int  # runs that may be claimed now
    age: float  # seconds since the oldest of them became ready; 0.0 when there are none


@dataclass(frozen=True, slots=True)
class Census:
    """The runs that have not ended, counted. Those that have are not: their number only grows."""

    at: datetime
    runs: Mapping[tuple[str, State], int] = field(default_factory=dict[tuple[str, State], int])  # by workflow and state
    queues: Mapping[str, Depth] = field(default_factory=dict[str, Depth])  # of each queue with runs that have not ended


PREFIX = 16
"""Characters of a digest by which a token is looked up."""


class Scope(StrEnum):
    """What the holder of a token may do."""

    READ = "read"  # runs, timelines and schedules, without payloads
    READ_PAYLOAD = "read:payload"  # the payloads too
    TRIGGER = "trigger"  # trigger and signal
    OPERATE = "operate"  # cancel, pause, resume, retry, tick; schedules
    ADMIN = "admin"  # all of these


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is stored: not even its owner learns the secret from it."""

    name: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made. The secret is shown here and never again."""

    name: str
    secret: str = field(repr=False)
    scopes: frozenset[Scope]
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A token with what its secret is compared with."""

    token: Token
    digest: str  # SHA-256 of the secret, hexadecimal

    @property
    def prefix(self) -> str:
        """What it is looked up by: enough to find it, and not what decides."""
        return self.digest[:PREFIX]


Severity = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check of ``diagnose`` has found."""

    check: str  # connectivity, schema, role, clock, indexes, waiting, leases, transactions, durability
    severity: Severity
    message: str
    remedy: str = ""  # what to do about it; empty when nothing is to be done
    repairable: bool = False  # ``repair`` does it
    count: int = 0  # of what was found
