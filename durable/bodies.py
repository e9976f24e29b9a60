"""How the worker calls a workflow function: with its decoded input, and so that nothing of it ends the process."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from durable.context import Context
from durable.errors import DurableError, PayloadError
from durable.execution import Execution
from durable.workflow import Workflow


async def called(execution: Execution, workflow: Workflow[Any, Any], ctx: Context) -> Any:
    """The workflow function; what would end the event loop, with every other run in it, fails this run alone."""
    try:
        return await _with_input(execution, workflow, ctx)
    except (SystemExit, KeyboardInterrupt) as error:
        raise DurableError(f"the workflow function raised {type(error).__name__}") from error


def _with_input(execution: Execution, workflow: Workflow[Any, Any], ctx: Context) -> Awaitable[Any]:
    """The workflow function's call with its decoded input; an input that does not decode pauses the run."""
    if not workflow.takes_input or (execution.run.input is None and workflow.input_has_default):
        return workflow.fn(ctx)
    if execution.run.input is None:  # triggered by name, by a client that could not know
        execution.refuse(PayloadError(f"workflow {workflow.name!r} needs an input, and the run has none"))
    try:
        value = workflow.input_codec.decode(execution.run.input, f"the input of workflow {workflow.name!r}")
    except PayloadError as error:
        execution.refuse(error)
    return workflow.fn(ctx, value)
