"""The service of the orders example over real HTTP: what its callers meet, and what its ledger then says."""

from __future__ import annotations

import http.client
import json
import sqlite3
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path

import pytest

from examples.orders.ledger import Ledger
from examples.orders.models import Charge, Order, read_orders
from examples.orders.service import Fate, Moods, Service, Trouble

ORDER = read_orders(limit=1)[0]


class Scripted(Moods):
    """Gives the fates that a test wants, one after the other, then good ones."""

    def __init__(self, *troubles: Trouble) -> None:
        super().__init__(seed=0)
        self._script = list(troubles)

    def fate(self, operation: str, order_id: str) -> Fate:
        return Fate(self._script.pop(0)) if self._script else Fate()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def service(ledger: Path, request: pytest.FixtureRequest) -> Generator[Service]:
    service = Service(Ledger(ledger), Scripted(*getattr(request, "param", ())))
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield service
    service.shutdown()
    thread.join()
    service.server_close()
    service.ledger.close()


def _post(service: Service, path: str, order: Order, key: str | None = "key") -> tuple[int, str]:
    headers = {} if key is None else {"Idempotency-Key": key}
    connection = http.client.HTTPConnection("127.0.0.1", service.server_port, timeout=10)
    with closing(connection):
        connection.request("POST", path, order.model_dump_json(), headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


def _rows(ledger: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(ledger)) as db:
        return db.execute(statement).fetchall()


@pytest.mark.parametrize("service", [[Trouble.DROP_AFTER]], indirect=True)
def test_a_connection_lost_after_the_effect_is_answered_from_the_ledger(service: Service, ledger: Path) -> None:
    with pytest.raises(ConnectionError):
        _post(service, f"/charge/{ORDER.id}", ORDER)
    assert _rows(ledger, "SELECT amount FROM charges") == [(ORDER.amount,)]
    status, body = _post(service, f"/charge/{ORDER.id}", ORDER)
    assert status == 200
    assert Charge.model_validate_json(body).charge == "chg-1"
    assert _rows(ledger, "SELECT amount FROM charges") == [(ORDER.amount,)]
    assert _rows(ledger, "SELECT outcome, answered FROM requests") == [("applied", 0), ("duplicate", 1)]
    assert service.stats()["duplicate"] == 1


@pytest.mark.parametrize("service", [[Trouble.ERROR, Trouble.DROP_BEFORE]], indirect=True)
def test_an_error_and_a_connection_lost_before_the_effect_have_none(service: Service, ledger: Path) -> None:
    assert _post(service, f"/charge/{ORDER.id}", ORDER)[0] == 500
    with pytest.raises(ConnectionError):
        _post(service, f"/charge/{ORDER.id}", ORDER)
    assert _rows(ledger, "SELECT * FROM charges") == []
    assert _rows(ledger, "SELECT outcome, answered FROM requests") == [("failed", 1), ("failed", 0)]


def test_what_makes_no_sense_is_refused(service: Service, ledger: Path) -> None:
    assert _post(service, f"/charge/{ORDER.id}", ORDER, key=None)[0] == 400
    assert _post(service, f"/steal/{ORDER.id}", ORDER)[0] == 404
    assert _post(service, "/charge/", ORDER)[0] == 404
    assert _rows(ledger, "SELECT * FROM requests") == []


def test_an_order_that_cannot_be_shipped_is_refused_with_the_reason(service: Service) -> None:
    overseas = ORDER.model_copy(update={"country": "PN"})
    status, body = _post(service, f"/ship/{overseas.id}", overseas)
    assert (status, json.loads(body)) == (409, {"error": "no carrier serves PN"})


def test_the_moods_come_from_the_seed_and_the_fifth_request_goes_well() -> None:
    def fates(seed: int) -> list[Fate]:
        moods = Moods(seed)
        return [moods.fate("charge", order.id) for order in read_orders() for _ in range(Moods.GOOD_FROM)]

    first = fates(7)
    assert first == fates(7)
    assert first != fates(8)
    assert {fate.trouble for fate in first[Moods.GOOD_FROM - 1 :: Moods.GOOD_FROM]} == {Trouble.NONE}
    assert all(count > 20 for count in Counter(fate.trouble for fate in first).values())
    assert set(Counter(fate.trouble for fate in first)) == set(Trouble)
