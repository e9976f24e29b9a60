"""What a trigger or a parent makes of a workflow and an input: a run to create. It knows no store."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from durable.codec import MISSING, Codec, canonical_hash
from durable.durations import seconds
from durable.errors import InvalidArgument
from durable.ids import check_run_id, new_id
from durable.model import Debounce, NewRun, Policy
from durable.names import check_key, check_name, check_tags

if TYPE_CHECKING:
    from durable.workflow import Workflow

DEFAULT_QUEUE = "default"
DEFAULT_PRIORITY = 5

_PLAIN = Codec(hint="give plain data, such as model_dump(mode='json') or dataclasses.asdict(), or the workflow itself")


class ChildOptions(TypedDict, total=False):
    """How a child is made; see ``TriggerOptions``."""

    version: str | None
    queue: str | None
    priority: int | None
    limit_key: str | None
    tags: Mapping[str, str] | None


class TriggerOptions(ChildOptions, total=False):
    """How a run is triggered.

    Args:
        run_id: The run's id, a UUIDv7, made by you; triggering again with it returns the same run.
        key: One ``(workflow, key)`` is one run: a second trigger returns the first run's handle.
        at: Not before this time; aware.
        delay: Not before this many seconds (or timedelta) from now, by the store's clock.
        tags: For lists and filters, such as ``{"tenant": "acme"}``.
        version: With a workflow's name only; default: the one that is registered, else "1".
        queue: Default: the workflow's own, else ``default``. A worker that subscribes to it executes the run.
        priority: 0 (first) to 9 (last) within the queue; default 5.
        limit_key: Whose share of its queue's limits it uses, such as a tenant.
        concurrency_key: At most one run of the workflow with this key is active: triggered and not ended.
        concurrency_policy: What becomes of a further one: ``reject`` (default) raises ``ConcurrencyConflict``;
            ``existing`` returns the active run's handle; ``queue`` starts it when those before it have ended;
            ``replace`` asks those to cancel, and queues it. Only with a ``concurrency_key``.
        debounce: Triggers of the workflow with the same ``Debounce.key`` become one run, which starts ``delay`` seconds
            after the latest of them, with its input, and at most ``max_delay`` seconds after the first.
    """

    run_id: str | None
    key: str | None
    at: datetime | None
    delay: float | timedelta | None
    concurrency_key: str | None
    concurrency_policy: Policy | str
    debounce: Debounce | None


def only(options: Mapping[str, object], accepted: Any, what: str) -> None:
    """Refuse options that ``accepted``, a TypedDict, does not have: nothing is accepted and ignored.

    Raises:
        TypeError: Which; as Python has it for a keyword argument that a function does not take.
    """
    known = accepted.__annotations__
    if unknown := sorted(options.keys() - known.keys()):
        raise TypeError(f"{what} takes no {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def new_run(
    now: datetime, workflow: Workflow[Any, Any] | str, value: Any = MISSING, **options: Unpack[TriggerOptions]
) -> NewRun:
    """A run of ``workflow`` with the input ``value`` (``MISSING``: none), its arguments checked.

    Args:
        now: The time that its id begins with.
        options: See ``TriggerOptions``.

    Raises:
        InvalidArgument: An argument is out of its range.
        PayloadError: The input does not fit the workflow's declared type.
    """
    only(options, TriggerOptions, "a run")
    known = None if isinstance(workflow, str) else workflow
    version, queue = options.get("version"), options.get("queue")
    run_id, key, limit_key = options.get("run_id"), options.get("key"), options.get("limit_key")
    concurrency_key, tags = options.get("concurrency_key"), options.get("tags")
    if concurrency_key is None and "concurrency_policy" in options:
        raise InvalidArgument(
            "concurrency_policy goes with concurrency_key: without one no run stands in another's way"
        )
    ready_at, delay = _start(options.get("at"), options.get("delay"))
    debounce = options.get("debounce")
    if debounce is not None and (ready_at is not None or delay or key is not None or run_id is not None):
        raise InvalidArgument("debounce does not go with at, delay, key or run_id")
    text = encoded(known, value)
    return NewRun(
        id=new_id(now) if run_id is None else check_run_id(run_id),
        workflow=check_name(workflow if known is None else known.name, "workflow name"),
        version=check_name(version or "1", "workflow version") if known is None else known.version,
        input=text,
        input_hash=canonical_hash(text),
        seed=secrets.token_hex(16),
        key=None if key is None else check_key(key, "key"),
        tags=check_tags(tags) if tags else {},
        ready_at=ready_at,
        delay=delay,
        request=None if run_id is None else new_id(now),
        queue=check_name(queue, "queue") if queue is not None else DEFAULT_QUEUE if known is None else known.queue,
        priority=_priority(options.get("priority")),
        limit_key=None if limit_key is None else check_key(limit_key, "limit_key"),
        concurrency_key=None if concurrency_key is None else check_key(concurrency_key, "concurrency_key"),
        policy=_policy(options.get("concurrency_policy", Policy.REJECT)),
        debounce=None if debounce is None else _debounce(debounce),
    )


def _start(at: datetime | None, delay: float | timedelta | None) -> tuple[datetime | None, float]:
    if at is not None and delay is not None:
        raise InvalidArgument("give at or delay, not both")
    if at is not None and at.tzinfo is None:
        raise InvalidArgument("at has no time zone")
    return None if at is None else at.astimezone(UTC), 0.0 if delay is None else seconds(delay, "delay")


def _priority(priority: int | None) -> int:
    if priority is None:
        return DEFAULT_PRIORITY
    if type(priority) is not int or not 0 <= priority <= 9:
        raise InvalidArgument(f"priority must be a whole number from 0 (first) to 9 (last), not {priority!r}")
    return priority


def _policy(policy: Policy | str) -> Policy:
    try:
        return Policy(policy)
    except ValueError:
        raise InvalidArgument(f"no concurrency_policy {policy!r}; there are {', '.join(Policy)}") from None


def _debounce(debounce: Debounce) -> Debounce:
    if not isinstance(debounce, Debounce):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(
            f"debounce must be a Debounce, such as Debounce('key', delay=5.0), not {type(debounce).__name__}"
        )
    most = debounce.max_delay
    return Debounce(
        check_key(debounce.key, "debounce key"),
        seconds(debounce.delay, "debounce delay"),
        None if most is None else seconds(most, "debounce max_delay"),
    )


def encoded(workflow: Workflow[Any, Any] | None, value: Any) -> str | None:
    """The input ``value`` (``MISSING``: none) as stored JSON; without a workflow it can be any JSON value."""
    if workflow is None:
        return None if value is MISSING else _PLAIN.round_trip(value, "the input")[0]
    if value is not MISSING and (workflow.takes_input or value is not None):
        if not workflow.takes_input:
            raise InvalidArgument(f"{workflow!r} takes no input")
        return workflow.encode_input(value)
    if workflow.takes_input and not workflow.input_has_default:
        raise InvalidArgument(f"{workflow!r} needs an input")
    return None
