"""What travels between the workflow, its steps and the service: orders, and the receipts for what was done.

Amounts are whole cents. Nothing here knows how anything is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PositiveInt

ORDERS_FILE = Path(__file__).with_name("orders.jsonl")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Line(_Value):
    """So many of one article."""

    sku: str
    quantity: PositiveInt
    unit_price: PositiveInt  # cents


class Order(_Value):
    """An order as the shop's web site hands it over."""

    id: str
    placed_at: AwareDatetime
    country: str = Field(pattern="^[A-Z]{2}$")
    currency: str = Field(pattern="^[A-Z]{3}$")
    amount: PositiveInt  # cents
    lines: tuple[Line, ...]

    @property
    def units(self) -> int:
        return sum(line.quantity for line in self.lines)


class Hold(_Value):
    """Goods that are set aside for an order."""

    reservation: str
    order_id: str
    units: int


class Charge(_Value):
    """Money that was taken."""

    charge: str
    order_id: str
    amount: int
    currency: str


class Shipment(_Value):
    """A parcel that is on its way."""

    shipment: str
    order_id: str
    carrier: str


class Receipt(_Value):
    """What the customer gets in the end."""

    order_id: str
    charge: str
    shipment: str
    carrier: str
    amount: int
    currency: str


def read_orders(path: Path = ORDERS_FILE, limit: int | None = None) -> Sequence[Order]:
    """The first ``limit`` orders of a JSON Lines file; all by default."""
    lines = path.read_text(encoding="utf-8").splitlines()[:limit]
    return [Order.model_validate_json(line) for line in lines]
