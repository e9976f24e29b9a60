"""What a trigger or a parent makes of a workflow and an input: a run to create. It knows no store."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from durable.codec import MISSING, canonical_hash, codec_for
from durable.errors import InvalidArgument
from durable.ids import new_id
from durable.model import NewRun
from durable.names import check_key, check_name, check_tags

if TYPE_CHECKING:
    from durable.workflow import Workflow

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5


def new_run(
    now: datetime,
    workflow: Workflow[Any, Any] | str,
    value: Any,
    *,
    version: str | None = None,
    queue: str | None = None,
    priority: int | None = None,
    limit_key: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> NewRun:
    """A run of ``workflow`` with the input ``value`` (``MISSING``: none), its arguments checked.

    Args:
        now: The time that its id begins with.
        version: For a workflow that is known by its name only; default "1".
        queue: Default: the workflow's own, else ``default``.
        priority: 0 (first) to 9 (last); default 5.
        limit_key: Whose share of its queue's limits it uses.

    Raises:
        InvalidArgument: An argument is out of its range.
        PayloadError: The input does not fit the workflow's declared type.
    """
    known = None if isinstance(workflow, str) else workflow
    text = _encoded(known, value)
    if priority is not None and (type(priority) is not int or not 0 <= priority <= 9):
        raise InvalidArgument(f"priority must be a whole number from 0 (first) to 9 (last), not {priority!r}")
    return NewRun(
        id=new_id(now),
        workflow=check_name(workflow if known is None else known.name, "workflow name"),
        version=check_name(version or "1", "workflow version") if known is None else known.version,
        input=text,
        input_hash=canonical_hash(text),
        seed=secrets.token_hex(16),
        tags=check_tags(tags) if tags else {},
        queue=check_name(queue, "queue") if queue is not None else DEFAULT_QUEUE if known is None else known.queue,
        priority=DEFAULT_PRIORITY if priority is None else priority,
        limit_key=None if limit_key is None else check_key(limit_key, "limit_key"),
    )


def _encoded(workflow: Workflow[Any, Any] | None, value: Any) -> str | None:
    if workflow is None:
        return None if value is MISSING else codec_for(Any).round_trip(value, "the input")[0]
    if value is not MISSING and (workflow.takes_input or value is not None):
        if not workflow.takes_input:
            raise InvalidArgument(f"{workflow!r} takes no input")
        return workflow.encode_input(value)
    if workflow.takes_input and not workflow.input_has_default:
        raise InvalidArgument(f"{workflow!r} needs an input")
    return None
