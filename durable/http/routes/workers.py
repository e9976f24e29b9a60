"""The workers over HTTP, and how much stands before them."""

from __future__ import annotations

from durable.http.schemas import CensusView, Count, Depth, Workers, WorkerView
from durable.http.security import Here, Reader, guarded_router

router = guarded_router("workers")


@router.get("/workers")
async def workers(here: Here, _: Reader) -> Workers:
    """The workers that are registered, and how many runs each holds."""
    return Workers(items=[WorkerView.model_validate(worker) for worker in await here.engine.workers()])


@router.get("/census")
async def census(here: Here, _: Reader) -> CensusView:
    """The runs that have not ended, by workflow and state; and by queue what is ready, and for how long."""
    counted = await here.engine.census()
    return CensusView(
        at=counted.at,
        runs=[Count(workflow=name, state=state, count=count) for (name, state), count in counted.runs.items()],
        queues={name: Depth(ready=depth.ready, age=depth.age) for name, depth in counted.queues.items()},
    )
