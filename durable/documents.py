"""JSON that comes from outside (a request's body, a command's argument) made into values of the declared types.

``trigger`` and ``signal`` take values: a model where a model is declared. Whoever has only JSON comes here first.
"""

from __future__ import annotations

from typing import Any

from durable.client import Client
from durable.codec import MISSING, Codec
from durable.workflow import Workflow


def input_value(client: Client, workflow: str, version: str | None, text: str | None) -> Any:
    """The input for ``client.trigger(workflow, …)`` that is written as the JSON ``text``; None: none is given.

    A workflow that is not registered with the client has no declared type: any JSON value will do.

    Raises:
        PayloadError: It does not fit the workflow's declared type.
    """
    if text is None:
        return MISSING
    known = [one for one in client.workflows if one.name == workflow and version in (None, one.version)]
    codec = known[0].input_codec if len(known) == 1 and known[0].takes_input else _ANY
    return codec.decode(text, f"the input of workflow {workflow!r}")


async def signal_value(client: Client, run_id: str, name: str, text: str) -> Any:
    """The payload for ``client.signal(run_id, name, …)`` that is written as the JSON ``text``.

    Raises:
        RunNotFound: There is no such run; found out where a workflow here declares a type for this name.
        PayloadError: It does not fit the type that the run's workflow declares for this signal.
    """
    declaring = {(one.name, one.version): one for one in client.workflows if name in one.signals}
    declared: Workflow[Any, Any] | None = None
    if declaring:
        run = await client.get_run(run_id)
        declared = declaring.get((run.workflow, run.version))
    codec = _ANY if declared is None else declared.signals[name]
    return codec.decode(text, f"the payload of signal {name!r}")


_ANY = Codec()
