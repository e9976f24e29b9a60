"""A schedule as user code declares it, made into what is stored, and the run of one of its ticks. No store is known."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypedDict

from durable.codec import MISSING, canonical_hash
from durable.ids import new_id
from durable.model import NewRun, Policy
from durable.newruns import DEFAULT_PRIORITY, DEFAULT_QUEUE, encoded
from durable.schedules import CatchUp, Overlap, ScheduleSpec
from durable.scheduling import schedule_spec

if TYPE_CHECKING:
    from durable.workflow import Workflow


class DateOptions(TypedDict, total=False):
    """When a schedule fires; see ``ScheduleOptions``."""

    cron: str | None
    every: float | timedelta | None
    timezone: str
    start_at: datetime | None
    end_at: datetime | None


class ScheduleOptions(DateOptions, total=False):
    """What a schedule is, for ``engine.schedule`` and ``@workflow(schedule=…)``.

    Args:
        name: Its identity: declaring it again changes it. Default: the workflow's name.
        cron: When: five fields, or six with the second last, or ``@daily`` and its siblings. Either this or ``every``.
        every: Seconds or timedelta, at least 1 s, of elapsed time; counted from ``start_at``, or from 1970 without one.
        timezone: IANA name of the zone of ``cron``, such as ``"Europe/Paris"``. Default UTC. A time that the clocks
            skip fires right after the gap, one that they show twice fires once.
        input: For every run. May be left out when the workflow takes none or has a default.
        overlap: What a tick does while an earlier run has not ended. ``skip`` (default): nothing. ``queue``: its run
            waits, up to ``max_queued`` of them. ``cancel_previous``: earlier runs are cancelled, and its run waits for
            their end. ``allow``: its run starts beside them.
        max_queued: Default 10, 1 to 10,000.
        catch_up: What becomes of ticks that were missed while no worker was there. ``one`` (default): the newest is
            fired, for all of them. ``all``: each. ``none``: none.
        catch_up_window: Seconds or timedelta; ticks that were due longer ago are not caught up. Default: no limit.
        jitter: Seconds or timedelta, at most a day, by which each tick is spread. Default 0.
        start_at: Aware; no tick before it.
        end_at: Aware; no tick at it or after it.
        enabled: Whether it fires at all. Default True.
        tags: For every run.
        version: With a workflow's name only. Default "1".
        queue: Of every run. Default: the workflow's own, else ``default``.
        priority: Of every run, 0 (first) to 9 (last). Default 5.
        limit_key: Of every run: whose share of its queue's limits it uses.
    """

    name: str
    input: Any
    overlap: Overlap | str
    max_queued: int
    catch_up: CatchUp | str
    catch_up_window: float | timedelta | None
    jitter: float | timedelta
    enabled: bool
    tags: Mapping[str, str] | None
    version: str | None
    queue: str | None
    priority: int | None
    limit_key: str | None


def declaration(workflow: Workflow[Any, Any] | str, options: ScheduleOptions) -> ScheduleSpec:
    """What the options say, checked.

    Raises:
        InvalidArgument: An argument is out of its range, or the rule can never fire.
        PayloadError: The input does not fit the workflow's declared type.
    """
    known = None if isinstance(workflow, str) else workflow
    name = workflow if isinstance(workflow, str) else workflow.name
    rest: dict[str, Any] = dict(options)
    value, version = rest.pop("input", MISSING), rest.pop("version", None)
    queue, priority = rest.pop("queue", None), rest.pop("priority", None)
    return schedule_spec(
        name=rest.pop("name", name),
        workflow=name,
        version=(version or "1") if known is None else known.version,
        input=encoded(known, value),
        queue=queue if queue is not None else DEFAULT_QUEUE if known is None else known.queue,
        priority=DEFAULT_PRIORITY if priority is None else priority,
        **rest,
    )


def run_of(spec: ScheduleSpec, tick: datetime, now: datetime) -> NewRun:
    """The run for one tick.

    With every policy but ``allow`` the runs of a schedule stand in one line, whether this one has to wait or not: the
    next one has to wait for it, and so has one that an operator retries.
    """
    key, policy = f"schedule:{spec.name}", Policy.QUEUE
    if spec.overlap is Overlap.CANCEL_PREVIOUS:
        policy = Policy.REPLACE
    return NewRun(
        id=new_id(now),
        workflow=spec.workflow,
        version=spec.version,
        input=spec.input,
        input_hash=canonical_hash(spec.input),
        seed=secrets.token_hex(16),
        tags=spec.tags,
        queue=spec.queue,
        priority=spec.priority,
        limit_key=spec.limit_key,
        concurrency_key=None if spec.overlap is Overlap.ALLOW else key,
        policy=policy,
        schedule=spec.name,
        tick=tick,
    )
