"""Writes ``orders.jsonl``: 500 orders of one day in a small electronics shop. Equal seeds give equal files.

    python -m examples.orders.generate_orders

Some orders cannot be shipped, for reasons the service finds out only when it tries (see ``carrier``): they go to
places no carrier serves, or they send lithium batteries overseas.
"""

from __future__ import annotations

import argparse
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

from examples.orders.models import ORDERS_FILE, Line, Order

SEED = 4
COUNT = 500
OPENS = datetime(2026, 11, 2, 6, 0, tzinfo=UTC)

# SKU: price in cents of EUR, and how often it is bought
CATALOGUE: dict[str, tuple[int, int]] = {
    "CBL-USBC-1M": (990, 14),
    "CBL-USBC-2M": (1290, 11),
    "CBL-HDMI-3M": (1490, 8),
    "ADP-USBC-HUB7": (4990, 7),
    "ADP-TRAVEL-65W": (3490, 8),
    "KEY-TKL-ISO-DE": (8990, 4),
    "KEY-TKL-ISO-UK": (8990, 3),
    "KEY-TKL-ANSI-US": (8990, 4),
    "MOU-ERGO-L": (5990, 4),
    "MOU-ERGO-M": (5990, 6),
    "HDP-OVER-ANC": (17900, 5),
    "HDP-INEAR-W": (7900, 8),
    "CAM-1080P-30": (6490, 4),
    "CAM-4K-60": (14900, 2),
    "MON-27-QHD": (27900, 2),
    "MON-ARM-SINGLE": (7490, 3),
    "SSD-NVME-1TB": (8490, 6),
    "SSD-NVME-2TB": (15490, 4),
    "MEM-SODIMM-16": (5290, 4),
    "BAT-PACK-10AH": (2990, 6),
    "BAT-PACK-26AH": (6990, 4),
    "BAT-LAPTOP-56WH": (7990, 2),
    "STD-LAPTOP-ALU": (3990, 5),
    "MAT-DESK-90X40": (2490, 6),
}

# country: currency, price of one EUR in it, and how many orders come from it
COUNTRIES: dict[str, tuple[str, float, int]] = {
    "DE": ("EUR", 1.0, 24),
    "FR": ("EUR", 1.0, 15),
    "NL": ("EUR", 1.0, 9),
    "AT": ("EUR", 1.0, 7),
    "ES": ("EUR", 1.0, 8),
    "IT": ("EUR", 1.0, 8),
    "IE": ("EUR", 1.0, 3),
    "GB": ("GBP", 0.86, 12),
    "CH": ("CHF", 0.94, 6),
    "US": ("USD", 1.1, 12),
    "CA": ("USD", 1.1, 4),
    "SH": ("GBP", 0.86, 2),
    "PN": ("USD", 1.1, 2),
    "TK": ("USD", 1.1, 2),
}


def order(number: int, placed_at: datetime, rng: random.Random) -> Order:
    """One order, drawn from the catalogue."""
    country = rng.choices(list(COUNTRIES), [weight for _, _, weight in COUNTRIES.values()])[0]
    currency, rate, _ = COUNTRIES[country]
    articles = rng.choices([1, 2, 3, 4], [55, 27, 12, 6])[0]
    weights = [weight for _, weight in CATALOGUE.values()]
    skus = dict.fromkeys(rng.choices(list(CATALOGUE), weights, k=articles))  # an article stands in one line
    lines = tuple(
        Line(
            sku=sku,
            quantity=rng.choices([1, 2, 3, 5, 10], [70, 17, 7, 4, 2])[0],
            unit_price=round(CATALOGUE[sku][0] * rate),
        )
        for sku in skus
    )
    amount = sum(line.quantity * line.unit_price for line in lines)
    return Order(
        id=f"ord-{number}", placed_at=placed_at, country=country, currency=currency, amount=amount, lines=lines
    )


def orders(count: int = COUNT, seed: int = SEED) -> list[Order]:
    """``count`` orders in the sequence in which they were placed."""
    rng = random.Random(seed)
    placed_at, made = OPENS, list[Order]()
    for index in range(count):
        placed_at += timedelta(seconds=round(rng.expovariate(1 / 110)) + 1)
        made.append(order(260_001 + index, placed_at, rng))
    return made


def as_text(made: list[Order]) -> str:
    return "".join(order.model_dump_json() + "\n" for order in made)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the orders of the example.")
    parser.add_argument("--count", type=int, default=COUNT, help="orders to write (default %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="equal seeds give equal files (default %(default)s)")
    parser.add_argument("--output", type=Path, default=ORDERS_FILE, help="the file (default %(default)s)")
    args = parser.parse_args()
    args.output.write_text(as_text(orders(args.count, args.seed)), encoding="utf-8")


if __name__ == "__main__":
    main()
