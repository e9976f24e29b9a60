"""The documents of the HTTP runtime: what it accepts and what it answers, with examples. No behaviour.

A document with a member that it does not know is refused, so that nothing is accepted and ignored.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from durable.http.fields import (
    AT,
    EXAMPLE_ID,
    Accepted,
    Key,
    Name,
    Note,
    Priority,
    Seconds,
    Tags,
    When,
    example,
)
from durable.model import Policy, State
from durable.names import MAX_TAGS

# -- triggering -----------------------------------------------------------------------------------


class DebounceBody(Accepted):
    """Several triggers become one run, which starts when they have ceased."""

    key: Key
    delay: Seconds = Field(description="Seconds after the latest trigger.")
    max_delay: Seconds | None = Field(default=None, description="Seconds after the first trigger; null: no bound.")


class _HowTriggered(Accepted):
    version: Name | None = Field(default=None, description="Default: the one that is registered.")
    tags: Tags | None = None
    queue: Name | None = None
    priority: Priority | None = None
    limit_key: Key | None = Field(default=None, description="Whose share of its queue's limits it uses.")


class TriggerBody(_HowTriggered):
    """A run to create."""

    model_config = example(workflow="order-flow", version="1.0.0", input={"orderId": "ORD-123"}, key="ORD-123")

    workflow: Name
    input: Any = Field(default=None, description="Left out: none.")
    run_id: str | None = Field(default=None, description="A UUIDv7 of your own.")
    key: Key | None = Field(default=None, description="One (workflow, key) is one run. `Idempotency-Key` is the same.")
    at: When | None = Field(default=None, description="Not before this time.")
    delay: Seconds | None = Field(default=None, description="Not before this many seconds from now.")
    concurrency_key: Key | None = Field(default=None, description="At most one active run of the workflow has it.")
    concurrency_policy: Policy | None = Field(
        default=None, description="What becomes of a further one; default `reject`."
    )
    debounce: DebounceBody | None = None


class StartBody(Accepted):
    """A run to create, in the words of an earlier engine."""

    model_config = example(flowId="order-flow", version="1.0.0", input={"orderId": "ORD-123"})

    flowId: Name = Field(description="The workflow's name.")  # noqa: N815
    version: Name | None = None
    tenantId: Key | None = Field(default=None, description="Becomes the tag `tenant`.")  # noqa: N815
    input: Any = Field(default=None, description="Left out: none.")


class Started(BaseModel):
    """The run that stands."""

    model_config = example(runId=EXAMPLE_ID, status="pending")

    runId: str  # noqa: N815
    status: State


class Triggered(BaseModel):
    """The run that stands, and whether this request has created it."""

    model_config = example(id=EXAMPLE_ID, state="pending", created=True)

    id: str
    state: State
    created: bool


class BatchBody(_HowTriggered):
    """Runs of one workflow to create."""

    model_config = example(workflow="order-flow", inputs=[{"orderId": "ORD-1"}, {"orderId": "ORD-2"}])

    workflow: Name
    inputs: list[Any] = Field(min_length=1, max_length=1000)
    keys: list[Key] | None = Field(default=None, description="One for each input.", max_length=1000)


class TriggeredMany(BaseModel):
    """The runs, in the order of the inputs."""

    model_config = example(items=[{"id": EXAMPLE_ID, "created": True}])

    items: list[Created]


class Created(BaseModel):
    """One of many runs."""

    id: str
    created: bool


# -- runs -----------------------------------------------------------------------------------------


class RequestView(BaseModel):
    """What was asked of a run and not carried out yet."""

    model_config = ConfigDict(from_attributes=True)

    verb: str
    reason: str
    by: str


class RunItem(BaseModel):
    """A run as lists show it: without payloads."""

    model_config = ConfigDict(
        from_attributes=True,
        json_schema_extra={
            "examples": [
                {
                    "id": EXAMPLE_ID,
                    "workflow": "order-flow",
                    "version": "1.0.0",
                    "state": "waiting",
                    "created_at": AT,
                    "started_at": AT,
                    "tags": {"tenant": "acme"},
                    "queue": "default",
                    "priority": 5,
                    "takeovers": 0,
                }
            ]
        },
    )

    id: str
    workflow: str
    version: str
    state: State
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    ready_at: datetime | None = Field(
        default=None, description="When it may be claimed; null: held, or not by time alone."
    )
    key: str | None = None
    tags: dict[str, str] = {}
    queue: str = "default"
    priority: int = 5
    limit_key: str | None = None
    concurrency_key: str | None = None
    parent: str | None = Field(default=None, description="The run that called it.")
    schedule: str | None = Field(default=None, description="Whose tick it is for.")
    tick: datetime | None = None
    reason: str | None = Field(default=None, description="Why it is paused.")
    requested: RequestView | None = None
    owner: str | None = Field(default=None, description="The worker that holds it.")
    takeovers: int = Field(default=0, description="Expired leases since its last progress.")


class RunView(RunItem):
    """A run with its payloads, where the token has the scope `read:payload`; else these are null."""

    payloads: Literal["shown", "hidden"]
    input: Any = None
    result: Any = None
    error: Any = Field(default=None, description="Without `read:payload` only its `error_type`.")


class RunPage(BaseModel):
    """One page of a listing."""

    items: list[RunItem]
    next_cursor: str | None = Field(description="Null on the last page.")


class RunQuery(Accepted):
    """Which runs a listing shows. All given conditions hold; a member that is not known is refused."""

    workflow: Name | None = None
    version: Name | None = None
    state: State | None = None
    tag: list[str] = Field(default=[], max_length=MAX_TAGS, description="`name=value`; may be repeated.")
    created_after: When | None = None
    created_before: When | None = None
    queue: Name | None = None
    parent: str | None = Field(default=None, description="The run that called them.")
    schedule: Name | None = None
    limit: int = Field(default=100, ge=1, le=500)
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before.")


class TimelineItem(BaseModel):
    """One line of a timeline. `data` is null without `read:payload`, where it is or may hold a payload."""

    model_config = example(seq=1, at=AT, kind="completed", name="charge", attempt=1, worker="w1", duration=0.4)

    seq: int
    at: datetime
    kind: str
    name: str
    attempt: int | None = None
    worker: str | None = None
    duration: float | None = Field(default=None, description="Seconds.")
    data: Any = None


class TimelinePage(BaseModel):
    """One page of a timeline."""

    items: list[TimelineItem]
    next_cursor: int | None = Field(description="Null on the last page.")


class ResultView(BaseModel):
    """How a run ended; with status 202 it has not."""

    model_config = example(id=EXAMPLE_ID, state="completed", payloads="shown", result={"receipt": "r-1"}, error=None)

    id: str
    state: State
    payloads: Literal["shown", "hidden"]
    result: Any = None
    error: Any = None


class SignalBody(Accepted):
    """A signal to send."""

    model_config = example(name="approval", payload={"approved": True})

    name: Name
    payload: Any = None
    signal_id: Key | None = Field(default=None, description="Two with one id are one. `Idempotency-Key` is the same.")


class Answered(BaseModel):
    """The wait that was answered."""

    model_config = example(id=EXAMPLE_ID, signal="approval")

    id: str
    signal: str


class WaitView(BaseModel):
    """Something that a run waits for."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    kind: str
    since: datetime
    deadline: datetime | None = None


class ReasonBody(Accepted):
    """Why."""

    model_config = example(reason="customer called")

    reason: Note = ""


class RetryBody(ReasonBody):
    """What is repeated."""

    model_config = example(reason="the bank is back", from_step="charge")

    from_step: Key | None = Field(default=None, description="This step and all after it run again too.")
    compensation: bool = Field(default=False, description="Instead make the failed compensations again.")


class Changed(BaseModel):
    """What has become of the run."""

    model_config = example(id=EXAMPLE_ID, state="cancelled", changed=True)

    id: str
    state: State
    changed: bool = Field(
        default=True, description="False: there was nothing to do, such as cancelling a run that has ended."
    )


# -- bulk -----------------------------------------------------------------------------------------


class BulkWhere(Accepted):
    """Which runs. All given conditions hold; at least one is needed."""

    workflow: Name | None = None
    version: Name | None = None
    state: State | None = None
    tags: Tags | None = None
    created_after: When | None = None
    created_before: When | None = None
    queue: Name | None = None
    parent: str | None = None
    schedule: Name | None = None


class BulkBody(Accepted):
    """One operation for many runs."""

    model_config = example(action="retry", where={"workflow": "order-flow", "state": "dead_letter"}, dry_run=True)

    action: Literal["cancel", "pause", "resume", "retry"]
    where: BulkWhere | None = Field(default=None, description="Either this or `ids`.")
    ids: list[str] | None = Field(default=None, min_length=1, max_length=500)
    reason: Note = ""
    dry_run: bool = Field(default=False, description="Only say which.")
    limit: int = Field(default=100, ge=1, le=500, description="Runs that one request looks at.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the answer before.")


class BulkAnswer(BaseModel):
    """What has become of them."""

    model_config = example(changed=[EXAMPLE_ID], unchanged=[], next_cursor=None)

    changed: list[str] = Field(description="With `dry_run`: those that would be asked.")
    unchanged: list[Unchanged]
    next_cursor: str | None = Field(description="Ask again with it; null: these were all.")


class Unchanged(BaseModel):
    """A run to which the operation does not apply."""

    id: str
    why: str


# -- workflows and workers ------------------------------------------------------------------------


class FlowView(BaseModel):
    """A registered workflow. Its schemas are JSON Schema; `{}` means: any JSON value."""

    model_config = example(
        name="order-flow",
        version="1.0.0",
        description="",
        queue="default",
        timeout=None,
        takes_input=True,
        input={"type": "object", "properties": {"orderId": {"type": "string"}}, "required": ["orderId"]},
        output={},
        signals={"approval": {"type": "boolean"}},
    )

    name: str
    version: str
    description: str
    queue: str
    timeout: float | None = Field(description="Seconds for a whole run.")
    takes_input: bool
    input: dict[str, Any]
    output: dict[str, Any]
    signals: dict[str, dict[str, Any]]


class Flows(BaseModel):
    """The registered workflows, by name and version."""

    items: list[FlowView]


class WorkerView(BaseModel):
    """A worker as the store knows it."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    host: str
    pid: int
    started_at: datetime
    lease_until: datetime
    alive: bool = Field(description="Its lease has not expired.")
    running: int = Field(description="Runs that it holds.")


class Workers(BaseModel):
    """The registered workers, the oldest first."""

    items: list[WorkerView]


class Depth(BaseModel):
    """What stands ready in a queue."""

    ready: int
    age: float = Field(description="Seconds since the oldest of them became ready.")


class Count(BaseModel):
    """Runs of a workflow in a state."""

    workflow: str
    state: State
    count: int


class CensusView(BaseModel):
    """The runs that have not ended, counted, and what stands ready."""

    at: datetime
    runs: list[Count]
    queues: dict[str, Depth]


TriggeredMany.model_rebuild()
BulkAnswer.model_rebuild()
