"""The workflow: what happens to an order, from top to bottom, as if nothing could go wrong.

Whatever does go wrong is the engine's business: steps are tried again, a killed worker's orders go on in another
process after the last step that was recorded, and an order that cannot be shipped is undone.
"""

from __future__ import annotations

from datetime import timedelta

from durable import Context, Retry, workflow
from examples.orders.models import Order, Receipt
from examples.orders.shop import Shop

PATIENT = Retry(max_attempts=8, backoff="exponential", initial_delay=0.1, max_delay=1.0, jitter=0.2)
COOLING_OFF = timedelta(seconds=2)


@workflow(name="process-order", version="1")
async def process_order(ctx: Context, order: Order) -> Receipt:
    """Reserve, charge, wait, ship, confirm. When a later step fails for good, the earlier ones are undone."""
    shop: Shop = ctx.services["shop"]
    await ctx.step("reserve", shop.reserve, order, compensate=shop.release, retry=PATIENT, compensate_retry=PATIENT)
    charge = await ctx.step(
        "charge", shop.charge, order, compensate=shop.refund, retry=PATIENT, compensate_retry=PATIENT
    )
    await ctx.sleep("cooling-off", COOLING_OFF)
    shipment = await ctx.step("ship", shop.ship, order, retry=PATIENT)
    await ctx.step("confirm", shop.confirm, shipment, retry=PATIENT)
    return Receipt(
        order_id=order.id,
        charge=charge.charge,
        shipment=shipment.shipment,
        carrier=shipment.carrier,
        amount=charge.amount,
        currency=charge.currency,
    )
