"""Compares what the engine says has become of the orders with what the service's ledger says has happened.

It reads the ledger's file and believes nobody: a run that reports success without a charge is a problem, and so is
a charge nobody knows about.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from examples.orders.models import Order

COMPLETED, COMPENSATED = "completed", "compensated"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that does not add up, with the order it is about."""

    order_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.order_id}: {self.text}"


@dataclass(frozen=True, slots=True)
class Money:
    """Of one currency, in cents."""

    charged: int
    refunded: int
    expected: int  # the sum of the completed orders

    @property
    def kept(self) -> int:
        return self.charged - self.refunded


@dataclass(frozen=True, slots=True)
class Books:
    """The result of an audit."""

    orders: int
    ends: Mapping[str, int]  # state → orders that ended in it
    charges: int
    refunds: int
    held: int  # reservations that were not released
    shipments: int
    money: Mapping[str, Money]  # by currency
    requests: int
    failures: int  # requests that had no effect and were not refused
    lost_answers: int  # requests that had their effect, and whose answer did not arrive
    duplicates: int  # requests that were answered from the ledger
    repeated: int  # steps that were begun again because a worker had died in them
    repeated_effects: int  # of these, the ones whose effect had happened already
    problems: Sequence[Problem]

    @property
    def balanced(self) -> bool:
        return not self.problems


@dataclass(slots=True)
class _Account:
    """What the ledger has about one order."""

    reservations: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])  # id, units
    releases: list[str] = field(default_factory=list[str])  # reservation ids
    charges: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])  # id, cents, currency
    refunds: list[tuple[str, int, str]] = field(default_factory=list[tuple[str, int, str]])  # charge id, …
    shipments: int = 0
    confirmations: int = 0


def audit(ledger: Path, orders: Sequence[Order], ends: Mapping[str, str]) -> Books:
    """Go through the books.

    Args:
        ledger: The service's file. It is only read; the service may be running.
        orders: What was ordered.
        ends: By order id, the state its run ended in.
    """
    with closing(sqlite3.connect(f"{ledger.resolve().as_uri()}?mode=ro", uri=True)) as db:
        accounts = _accounts(db)
        unknown = sorted(accounts.keys() - {order.id for order in orders})
        problems = [p for order in orders for p in _check(order, ends.get(order.id), accounts[order.id])]
        problems += [Problem(order_id, "is in the ledger, but was never ordered") for order_id in unknown]
        return Books(
            orders=len(orders),
            ends=Counter(ends.values()),
            charges=_count(db, "charges"),
            refunds=_count(db, "refunds"),
            held=_count(db, "reservations") - _count(db, "releases"),
            shipments=_count(db, "shipments"),
            money=_money(accounts.values(), orders, ends),
            requests=_count(db, "requests"),
            failures=_count(db, "requests WHERE outcome = 'failed'"),
            lost_answers=_count(db, "requests WHERE outcome IN ('applied', 'duplicate') AND NOT answered"),
            duplicates=_count(db, "requests WHERE outcome = 'duplicate'"),
            repeated=_count(db, f"({_REPEATED})"),
            repeated_effects=_count(db, f"({_REPEATED}) WHERE had_effect"),
            problems=problems,
        )


# A crash consumes no attempt: the step is begun again under the same number. That tells a repetition after a crash
# from a retry after an error, which counts up.
_REPEATED = """
    SELECT idempotency_key, max(rank > 1 AND outcome = 'duplicate') AS had_effect
    FROM (SELECT *, row_number() OVER (PARTITION BY idempotency_key, attempt ORDER BY id) AS rank FROM requests)
    GROUP BY idempotency_key
    HAVING max(rank) > 1
"""


def _count(db: sqlite3.Connection, what: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {what}").fetchone()[0])


def _accounts(db: sqlite3.Connection) -> defaultdict[str, _Account]:
    accounts = defaultdict[str, _Account](_Account)
    for order_id, reservation, units in db.execute("SELECT order_id, 'res-' || id, units FROM reservations"):
        accounts[order_id].reservations.append((reservation, units))
    for order_id, reservation in db.execute("SELECT order_id, reservation FROM releases"):
        accounts[order_id].releases.append(reservation)
    for order_id, *charge in db.execute("SELECT order_id, 'chg-' || id, amount, currency FROM charges"):
        accounts[order_id].charges.append((charge[0], charge[1], charge[2]))
    for order_id, *refund in db.execute("SELECT order_id, charge, amount, currency FROM refunds"):
        accounts[order_id].refunds.append((refund[0], refund[1], refund[2]))
    for (order_id,) in db.execute("SELECT order_id FROM shipments"):
        accounts[order_id].shipments += 1
    for (order_id,) in db.execute("SELECT order_id FROM confirmations"):
        accounts[order_id].confirmations += 1
    return accounts


def _check(order: Order, end: str | None, account: _Account) -> list[Problem]:
    """Everything that is wrong with one order."""
    if end not in {COMPLETED, COMPENSATED}:
        return [Problem(order.id, f"its run is {end or 'unknown to the engine'}")]
    done = end == COMPLETED
    price = _money_text(order.amount, order.currency)
    charges = [_money_text(amount, currency) for _, amount, currency in account.charges]
    refunds = [f"{charge} {_money_text(amount, currency)}" for charge, amount, currency in account.refunds]
    to_refund = [f"{charge} {_money_text(amount, currency)}" for charge, amount, currency in account.charges]
    reserved = [str(units) for _, units in account.reservations]
    checks = (
        ("charged", charges, [price]),
        ("refunded", refunds, [] if done else to_refund),
        ("units reserved", reserved, [str(order.units)]),
        ("reservations released", account.releases, [] if done else [name for name, _ in account.reservations]),
        ("shipments", [str(account.shipments)], [str(int(done))]),
        ("confirmations", [str(account.confirmations)], [str(int(done))]),
    )
    return [
        Problem(order.id, f"{end}, but {what}: {_list(found)}; expected: {_list(expected)}")
        for what, found, expected in checks
        if found != expected
    ]


def _list(items: Sequence[str]) -> str:
    return " + ".join(items) or "nothing"


def _money_text(cents: int, currency: str) -> str:
    return f"{cents / 100:.2f} {currency}"


def _money(accounts: Iterable[_Account], orders: Sequence[Order], ends: Mapping[str, str]) -> dict[str, Money]:
    charged, refunded, expected = Counter[str](), Counter[str](), Counter[str]()
    for account in accounts:
        for _, amount, currency in account.charges:
            charged[currency] += amount
        for _, amount, currency in account.refunds:
            refunded[currency] += amount
    for order in orders:
        expected[order.currency] += order.amount if ends.get(order.id) == COMPLETED else 0
    currencies = sorted({*charged, *refunded, *expected})
    return {name: Money(charged[name], refunded[name], expected[name]) for name in currencies}
