"""The books of the service: what was reserved, charged, refunded and shipped, in a SQLite file of its own.

A request with an idempotency key that was answered before gets the same answer and changes nothing. Apart from
that the ledger believes what it is told: two charges of one order with two keys are two charges. That is what
makes it a witness, see ``accounting``.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ValidationError

from examples.orders.models import Charge, Hold, Order, Shipment

_SCHEMA = """
CREATE TABLE reservations  (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT, units INTEGER);
CREATE TABLE releases      (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT, reservation TEXT);
CREATE TABLE charges       (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT,
                            amount INTEGER, currency TEXT);
CREATE TABLE refunds       (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT, charge TEXT,
                            amount INTEGER, currency TEXT);
CREATE TABLE shipments     (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT, carrier TEXT);
CREATE TABLE confirmations (id INTEGER PRIMARY KEY, idempotency_key TEXT UNIQUE, order_id TEXT, text TEXT);

-- what each idempotency key was answered
CREATE TABLE answers (idempotency_key TEXT PRIMARY KEY, request TEXT, body TEXT) WITHOUT ROWID;

-- every request that arrived, and what became of it; answered: 0 when the connection was dropped instead
CREATE TABLE requests (id INTEGER PRIMARY KEY, operation TEXT, order_id TEXT, idempotency_key TEXT,
                       attempt INTEGER, worker TEXT, outcome TEXT, answered INTEGER);
"""


class Outcome(StrEnum):
    """What became of a request."""

    APPLIED = "applied"
    DUPLICATE = "duplicate"  # its key was known: answered from the ledger
    REFUSED = "refused"  # for good
    FAILED = "failed"  # for this time, without an effect


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a step, as it arrives. ``attempt`` and ``worker`` are for the statistics only."""

    operation: str
    order_id: str
    key: str
    body: str  # JSON
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: str


class Refusal(Exception):
    """The request cannot be fulfilled, now or later."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Ledger:
    """The books, open for writing. Its methods may be called from any thread.

    Args:
        path: A file that does not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")  # an answer that was given survives a power failure
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def apply(self, request: Request, *, answered: bool = True) -> tuple[Answer, Outcome]:
        """Do what is asked for, or find what was answered before; note the request in the same transaction.

        Args:
            answered: Whether the caller will see the answer.
        """
        with self._lock, self._db:
            self._db.execute("BEGIN IMMEDIATE")
            answer, outcome = self._outcome(request)
            self._note(request, outcome, answered)
            return answer, outcome

    def note_failure(self, request: Request, *, answered: bool) -> None:
        """The request arrived and had no effect."""
        with self._lock, self._db:
            self._note(request, Outcome.FAILED, answered)

    def _outcome(self, request: Request) -> tuple[Answer, Outcome]:
        fingerprint = f"{request.operation} {request.body}"
        known = self._db.execute(
            "SELECT request, body FROM answers WHERE idempotency_key = ?", (request.key,)
        ).fetchone()
        if known is not None:
            if known[0] != fingerprint:
                return _refused(422, "this idempotency key was used for another request"), Outcome.REFUSED
            return Answer(200, known[1]), Outcome.DUPLICATE
        try:
            body = _OPERATIONS[request.operation](self._db, request).model_dump_json()
        except Refusal as refusal:
            return _refused(refusal.status, str(refusal)), Outcome.REFUSED
        except ValidationError as error:
            return _refused(400, str(error)), Outcome.REFUSED
        self._db.execute("INSERT INTO answers VALUES (?, ?, ?)", (request.key, fingerprint, body))
        return Answer(200, body), Outcome.APPLIED

    def _note(self, request: Request, outcome: Outcome, answered: bool) -> None:
        self._db.execute(
            "INSERT INTO requests (operation, order_id, idempotency_key, attempt, worker, outcome, answered)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                request.operation,
                request.order_id,
                request.key,
                request.attempt,
                request.worker,
                outcome,
                answered,
            ),
        )


def _refused(status: int, message: str) -> Answer:
    return Answer(status, json.dumps({"error": message}))


# -- the operations: one insert each --------------------------------------------------------------


class _Done(BaseModel):
    id: str


def _insert(db: sqlite3.Connection, table: str, request: Request, **columns: object) -> int:
    values = {"idempotency_key": request.key, "order_id": request.order_id, **columns}
    statement = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})"
    row = db.execute(statement, tuple(values.values())).lastrowid
    assert row is not None
    return row


def _reserve(db: sqlite3.Connection, request: Request) -> Hold:
    order = Order.model_validate_json(request.body)
    row = _insert(db, "reservations", request, units=order.units)
    return Hold(reservation=f"res-{row}", order_id=order.id, units=order.units)


def _release(db: sqlite3.Connection, request: Request) -> _Done:
    hold = Hold.model_validate_json(request.body)
    return _Done(id=f"rel-{_insert(db, 'releases', request, reservation=hold.reservation)}")


def _charge(db: sqlite3.Connection, request: Request) -> Charge:
    order = Order.model_validate_json(request.body)
    row = _insert(db, "charges", request, amount=order.amount, currency=order.currency)
    return Charge(charge=f"chg-{row}", order_id=order.id, amount=order.amount, currency=order.currency)


def _refund(db: sqlite3.Connection, request: Request) -> _Done:
    charge = Charge.model_validate_json(request.body)
    row = _insert(db, "refunds", request, charge=charge.charge, amount=charge.amount, currency=charge.currency)
    return _Done(id=f"rfd-{row}")


def _ship(db: sqlite3.Connection, request: Request) -> Shipment:
    order = Order.model_validate_json(request.body)
    name = carrier(order)
    row = _insert(db, "shipments", request, carrier=name)
    return Shipment(shipment=f"shp-{row}", order_id=order.id, carrier=name)


def _confirm(db: sqlite3.Connection, request: Request) -> _Done:
    shipment = Shipment.model_validate_json(request.body)
    text = f"Your order is on its way with {shipment.carrier}: {shipment.shipment}"
    return _Done(id=f"msg-{_insert(db, 'confirmations', request, text=text)}")


_OPERATIONS: dict[str, Callable[[sqlite3.Connection, Request], BaseModel]] = {
    "reserve": _reserve,
    "release": _release,
    "charge": _charge,
    "refund": _refund,
    "ship": _ship,
    "confirm": _confirm,
}
OPERATIONS = frozenset(_OPERATIONS)

_ROAD = frozenset({"DE", "FR", "NL", "AT", "ES", "IT", "IE", "GB", "CH"})
_AIR = frozenset({"US", "CA"})


def carrier(order: Order) -> str:
    """Who takes the parcel.

    Raises:
        Refusal: Nobody does.
    """
    if order.country in _ROAD:
        return "road"
    if order.country not in _AIR:
        raise Refusal(409, f"no carrier serves {order.country}")
    if any(line.sku.startswith("BAT-") for line in order.lines):
        raise Refusal(422, f"lithium batteries do not fly to {order.country}")
    return "air"
