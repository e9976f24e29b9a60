"""What recurs: a settlement each Monday at six, and a look at the shop every minute.

    python -m examples.rhythm

The settlement asks its tick for which week it is, so it is right when it runs late, again, or years later. Weeks in
which no worker was there are settled one after the other when one is back. Nobody minds a look that was missed.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from durable import Context, Engine, workflow
from durable.store import Store
from durable.testing import MemoryStore, VirtualClock

BERLIN = ZoneInfo("Europe/Berlin")
SALES = {"Kreuzberg": 410, "Mitte": 250, "Wedding": 180}


class Shop:
    """The web shop as its monitoring sees it."""

    def __init__(self) -> None:
        self.up = True
        self.alarms: list[str] = []


async def settle_shop(name: str) -> int:
    return SALES[name]


@workflow(
    schedule={
        "name": "weekly settlement",
        "cron": "0 6 * * mon",
        "timezone": "Europe/Berlin",
        "catch_up": "all",  # each week, also when nobody was there on Monday
        "overlap": "queue",  # but one after the other
    }
)
async def settle(ctx: Context) -> str:
    """Settle the week that ends with the Monday of the tick."""
    assert ctx.schedule is not None
    monday = ctx.schedule.at.astimezone(BERLIN).date()
    amounts = await ctx.map("shop", settle_shop, sorted(SALES))
    return f"week {monday - timedelta(days=7)} to {monday}: {len(amounts)} shops, {sum(amounts)} EUR"


@workflow(schedule={"name": "health", "every": 60, "overlap": "skip", "catch_up": "none"})
async def check(ctx: Context) -> None:
    """Look once a minute. While the shop is down this run stays, and the ticks meanwhile are skipped: one alarm."""
    shop: Shop = ctx.services["shop"]
    assert ctx.schedule is not None
    since = ctx.schedule.at

    async def look() -> bool:
        return shop.up

    async def alarm() -> None:
        shop.alarms.append(f"the shop is down since {since:%H:%M:%S}")

    if await ctx.step("look", look):
        return
    await ctx.sleep("a moment", 20)
    if await ctx.step("look again", look):
        return
    await ctx.step("alarm", alarm)
    while not await ctx.step("still down", look):
        await ctx.sleep("wait", 20)


def engine(store: Store, shop: Shop | None = None) -> Engine:
    return Engine(store, workflows=[settle, check], services={"shop": shop or Shop()})


async def main() -> None:
    """Five minutes around the settlement, in no time."""
    clock = VirtualClock(datetime(2026, 3, 30, 3, 58, tzinfo=UTC))  # on a Monday, shortly before six in Berlin
    async with engine(MemoryStore(clock)) as running:
        await running.run_until_idle(skip_time=True, until=clock.now() + timedelta(minutes=5))
        schedules = await running.schedules()
        print(", ".join(f"{one.spec.name}: {one.fired}" for one in schedules))
        (week,) = (await running.list_runs(schedule="weekly settlement")).items
        print(await (await running.handle(settle, run_id=week.id)).result())


if __name__ == "__main__":
    asyncio.run(main())
