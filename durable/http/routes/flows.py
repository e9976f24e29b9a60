"""The registered workflows over HTTP, with the JSON schemas of what they take and give."""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from durable.http.schemas import Flows, FlowView
from durable.http.security import Here, Reader, guarded_router
from durable.workflow import Workflow

router = guarded_router("workflows")


@router.get("/flows")
async def flows(here: Here, _: Reader) -> Flows:
    """The workflows that are registered with the engine here."""
    return Flows(items=[_view(workflow) for workflow in here.engine.workflows])


@lru_cache(maxsize=1000)  # the schemas of one workflow take 0.5 ms to make, and never change
def _view(workflow: Workflow[Any, Any]) -> FlowView:
    return FlowView(
        name=workflow.name,
        version=workflow.version,
        description=inspect.cleandoc(workflow.__doc__ or ""),
        queue=workflow.queue,
        timeout=workflow.timeout,
        takes_input=workflow.takes_input,
        input=workflow.input_codec.schema(),
        output=workflow.result_codec.schema(written=True),
        signals={name: codec.schema() for name, codec in workflow.signals.items()},
    )
