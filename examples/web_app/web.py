"""The web process of the shop: ``python -m uvicorn examples.web_app.web:app``. It executes no workflow.

Its own routes know orders. For operators the whole HTTP runtime is there too, below ``/workflows``: while there is no
token, only this machine may use it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from durable import RunFinished, RunNotFound, State
from durable.http import create_app
from examples.web_app.flows import Approval, Order, make_engine, shop_order

engine = make_engine()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with engine.client():  # connected, without a worker
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/workflows", create_app(engine))


@app.post("/orders", status_code=202)
async def take(order: Order) -> dict[str, str]:
    """Answered when the run is committed: from here on it is done, whoever crashes."""
    run = await engine.trigger(shop_order, order, key=order.id)
    return {"order": order.id, "run": run.run_id}


@app.get("/orders/{order_id}")
async def look(order_id: str) -> dict[str, str | None]:
    try:
        run = await engine.handle(shop_order, key=order_id)
    except RunNotFound:
        raise HTTPException(404, f"there is no order {order_id}") from None
    state = await run.status()
    return {"order": order_id, "state": state, "result": await run.result() if state is State.COMPLETED else None}


@app.post("/orders/{order_id}/approval", status_code=202)
async def decide(order_id: str, approval: Approval) -> None:
    try:
        run = await engine.handle(shop_order, key=order_id)
        await engine.signal(run.run_id, "approval", approval, signal_id="approval")  # a second click is the same one
    except RunNotFound:
        raise HTTPException(404, f"there is no order {order_id}") from None
    except RunFinished:
        raise HTTPException(409, f"order {order_id} is settled") from None
