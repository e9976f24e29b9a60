"""The books check of the orders example, on real ledger files: it must see whatever the engine could get wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from examples.orders.accounting import Books, audit
from examples.orders.ledger import Answer, Ledger, Outcome, Refusal, Request, carrier
from examples.orders.models import Charge, Hold, Order, Shipment, read_orders
from examples.orders.report import show

ORDERS = read_orders(limit=8)
ENDS = {"completed": 7, "compensated": 1}


def _call(ledger: Ledger, operation: str, order: Order, body: str, attempt: int = 1, key: str | None = None) -> Answer:
    request = Request(operation, order.id, key or f"run-{order.id}/{operation}", body, attempt, "1")
    return ledger.apply(request)[0]


def _process(ledger: Ledger, order: Order) -> str:
    """What the workflow does, without the engine."""
    hold = Hold.model_validate_json(_call(ledger, "reserve", order, order.model_dump_json()).body)
    charge = Charge.model_validate_json(_call(ledger, "charge", order, order.model_dump_json()).body)
    shipped = _call(ledger, "ship", order, order.model_dump_json())
    if shipped.status != 200:
        _call(ledger, "refund", order, charge.model_dump_json())
        _call(ledger, "release", order, hold.model_dump_json())
        return "compensated"
    shipment = Shipment.model_validate_json(shipped.body)
    _call(ledger, "confirm", order, shipment.model_dump_json())
    return "completed"


@pytest.fixture
def books(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A ledger in which everything is right, and how the orders ended."""
    ledger = Ledger(tmp_path / "ledger.db")
    ends = {order.id: _process(ledger, order) for order in ORDERS}
    ledger.close()
    return tmp_path / "ledger.db", ends


def _tampered(path: Path, statement: str) -> None:
    with sqlite3.connect(path) as db:
        assert db.execute(statement).rowcount > 0, "the tampering changed nothing"
    db.close()


def _one(ends: dict[str, str], end: str) -> str:
    return next(order_id for order_id, found in ends.items() if found == end)


def test_books_that_are_right_balance(books: tuple[Path, dict[str, str]]) -> None:
    path, ends = books
    found = audit(path, ORDERS, ends)
    assert found.problems == []
    assert found.ends == ENDS
    assert (found.charges, found.refunds, found.held, found.shipments) == (8, 1, 7, 7)
    expected = sum(order.amount for order in ORDERS if ends[order.id] == "completed")
    assert sum(money.kept for money in found.money.values()) == expected
    assert all(money.kept == money.expected for money in found.money.values())


TAMPERINGS: dict[str, tuple[str, str, str]] = {
    "charged twice": (
        "completed",
        (
            "INSERT INTO charges (idempotency_key, order_id, amount, currency)"
            " SELECT 'another key', order_id, amount, currency FROM charges WHERE order_id = '{}'"
        ),
        "charged: ",
    ),
    "a charge is lost": ("completed", "DELETE FROM charges WHERE order_id = '{}'", "charged: nothing; expected: "),
    "a cent too much": ("completed", "UPDATE charges SET amount = amount + 1 WHERE order_id = '{}'", "charged: "),
    "another currency": ("completed", "UPDATE charges SET currency = 'XXX' WHERE order_id = '{}'", "XXX; expected: "),
    "a refund is lost": ("compensated", "DELETE FROM refunds WHERE order_id = '{}'", "refunded: nothing; expected: "),
    "refunded twice": (
        "compensated",
        (
            "INSERT INTO refunds (idempotency_key, order_id, charge, amount, currency)"
            " SELECT 'another key', order_id, charge, amount, currency FROM refunds WHERE order_id = '{}'"
        ),
        "refunded: ",
    ),
    "goods stay reserved": (
        "compensated",
        "DELETE FROM releases WHERE order_id = '{}'",
        "reservations released: nothing",
    ),
    "nothing was reserved": ("completed", "DELETE FROM reservations WHERE order_id = '{}'", "units reserved: nothing"),
    "nothing was shipped": ("completed", "DELETE FROM shipments WHERE order_id = '{}'", "shipments: 0; expected: 1"),
    "shipped twice": (
        "completed",
        "INSERT INTO shipments (idempotency_key, order_id, carrier) VALUES ('another key', '{}', 'road')",
        "shipments: 2; expected: 1",
    ),
    "never confirmed": (
        "completed",
        "DELETE FROM confirmations WHERE order_id = '{}'",
        "confirmations: 0; expected: 1",
    ),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_ledger_does_not_balance_and_names_the_order(books: tuple[Path, dict[str, str]], name: str) -> None:
    path, ends = books
    end, statement, complaint = TAMPERINGS[name]
    order_id = _one(ends, end)
    _tampered(path, statement.format(order_id))
    found = audit(path, ORDERS, ends)
    assert not found.balanced
    assert {problem.order_id for problem in found.problems} == {order_id}
    assert any(complaint in str(problem) for problem in found.problems), found.problems


def _with(ends: dict[str, str], order_id: str, end: str | None) -> dict[str, str]:
    changed = {**ends, order_id: end or ""}
    return changed if end is not None else {key: value for key, value in ends.items() if key != order_id}


@pytest.mark.parametrize("end", ["failed", "dead_letter", "compensated", None])
def test_an_end_that_the_ledger_contradicts_is_a_problem(books: tuple[Path, dict[str, str]], end: str | None) -> None:
    path, ends = books
    order_id = _one(ends, "completed")
    found = audit(path, ORDERS, _with(ends, order_id, end))
    assert {problem.order_id for problem in found.problems} == {order_id}


def test_an_order_that_nobody_placed_is_a_problem(books: tuple[Path, dict[str, str]]) -> None:
    path, ends = books
    found = audit(path, ORDERS[:-1], {order.id: ends[order.id] for order in ORDERS[:-1]})
    assert [problem.order_id for problem in found.problems] == [ORDERS[-1].id]


def test_the_report_says_that_the_books_do_not_balance(books: tuple[Path, dict[str, str]]) -> None:
    path, ends = books
    order_id = _one(ends, "completed")
    _tampered(path, f"DELETE FROM charges WHERE order_id = '{order_id}'")
    text = _report(audit(path, ORDERS, ends))
    assert "The books do not balance: 1 problems" in text
    assert f"{order_id}: completed, but charged: nothing; expected: " in text
    assert "expected 8, one for each order" in text


def _report(books: Books) -> str:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        show(console, books, twice=0, kill=None, seconds=1.0)
    return capture.get()


def test_a_repetition_after_a_crash_is_told_from_a_retry(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    order = ORDERS[0]
    _call(ledger, "reserve", order, order.model_dump_json(), attempt=1)
    _call(ledger, "reserve", order, order.model_dump_json(), attempt=2)  # the answer was lost
    _call(ledger, "charge", order, order.model_dump_json(), attempt=1)
    _call(ledger, "charge", order, order.model_dump_json(), attempt=1)  # the worker was lost
    ledger.note_failure(Request("ship", order.id, "run/ship", "", 1, "1"), answered=False)
    _call(ledger, "ship", order, order.model_dump_json(), attempt=1, key="run/ship")  # both
    ledger.close()
    found = audit(tmp_path / "ledger.db", [order], {})
    assert (found.duplicates, found.repeated, found.repeated_effects) == (2, 2, 1)


def _answer(ledger: Ledger, order: Order, body: str, key: str) -> tuple[int, Outcome]:
    answer, outcome = ledger.apply(Request("charge", order.id, key, body, 1, "1"))
    return answer.status, outcome


def test_a_known_key_gets_the_same_answer_and_another_request_under_it_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    first, second = ORDERS[:2]
    assert _answer(ledger, first, first.model_dump_json(), "k") == (200, Outcome.APPLIED)
    assert _answer(ledger, first, first.model_dump_json(), "k") == (200, Outcome.DUPLICATE)
    assert _answer(ledger, first, second.model_dump_json(), "k") == (422, Outcome.REFUSED)
    assert _answer(ledger, first, "{", "other") == (400, Outcome.REFUSED)
    ledger.close()


def _refused(orders: Sequence[Order], may: Callable[[Order], object]) -> int:
    refused = 0
    for order in orders:
        try:
            may(order)
        except Refusal:
            refused += 1
    return refused


def test_the_orders_are_at_least_500_of_which_some_cannot_be_shipped() -> None:
    orders = read_orders()
    assert len(orders) >= 500
    assert len({order.id for order in orders}) == len(orders)
    assert all(order.amount == sum(line.quantity * line.unit_price for line in order.lines) for order in orders)
    assert 20 <= _refused(orders, carrier) <= 60


def test_the_generator_makes_the_committed_file() -> None:
    from examples.orders.generate_orders import as_text, orders
    from examples.orders.models import ORDERS_FILE

    assert as_text(orders()) == ORDERS_FILE.read_text(encoding="utf-8")
