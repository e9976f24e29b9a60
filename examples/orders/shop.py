"""The client of the service: the functions that the workflow's steps call.

Plain synchronous code on ``http.client``: the engine runs it in threads. What may be tried again is an ordinary
exception; what may not is ``Refused``.
"""

from __future__ import annotations

import http.client
import json
import os
from typing import TypeVar
from urllib.parse import quote, urlsplit

from pydantic import BaseModel

from durable import NonRetryable, current_step
from examples.orders.models import Charge, Hold, Order, Shipment

T = TypeVar("T", bound=BaseModel)

TIMEOUT = 5.0
"""Seconds a request may take. The service's slowest answers take one."""


class ServiceError(Exception):
    """The service could not do it this time: another attempt may succeed."""


class Refused(NonRetryable):
    """The service will not do it, however often it is asked."""


class Done(BaseModel):
    """An answer of which nothing but its number is of interest."""

    id: str


class Shop:
    """Payment, inventory and shipping.

    Args:
        url: Where the service listens, such as ``http://127.0.0.1:8080``.
    """

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc

    def reserve(self, order: Order) -> Hold:
        return self._post("reserve", order.id, order, Hold)

    def release(self, hold: Hold) -> Done:
        return self._post("release", hold.order_id, hold, Done)

    def charge(self, order: Order) -> Charge:
        return self._post("charge", order.id, order, Charge)

    def refund(self, charge: Charge) -> Done:
        return self._post("refund", charge.order_id, charge, Done)

    def ship(self, order: Order) -> Shipment:
        return self._post("ship", order.id, order, Shipment)

    def confirm(self, shipment: Shipment) -> Done:
        return self._post("confirm", shipment.order_id, shipment, Done)

    def _post(self, operation: str, order_id: str, body: BaseModel, answer: type[T]) -> T:
        step = current_step()
        headers = {
            "Content-Type": "application/json",
            # The same for every attempt of this step, in whatever process: this is what makes a repetition harmless.
            "Idempotency-Key": step.idempotency_key,
            "X-Attempt": str(step.attempt),
            "X-Worker": str(os.getpid()),
        }
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT)
        try:
            connection.request("POST", f"/{operation}/{quote(order_id)}", body.model_dump_json(), headers)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status >= 500:
            raise ServiceError(f"{operation}: {_message(text)} ({response.status})")
        if response.status >= 400:
            raise Refused(f"{operation}: {_message(text)} ({response.status})")
        return answer.model_validate_json(text)


def _message(text: str) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
