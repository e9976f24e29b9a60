"""Durable workflows for Python on the database you already have."""

from durable.client import Page
from durable.context import Context
from durable.engine import Engine
from durable.errors import (
    AmbiguousName,
    ConfigurationError,
    DurableError,
    InvalidArgument,
    KeyConflict,
    NondeterminismError,
    NonRetryable,
    NotSerializable,
    PayloadError,
    PayloadTooLarge,
    ResultTypeUnknown,
    RetryAfter,
    RunCancelled,
    RunCompensated,
    RunDeadLettered,
    RunFailed,
    RunFinished,
    RunNotFound,
    RunTimeout,
    SchemaOutdated,
    SchemaTooNew,
    StepFailed,
    StoreUnavailable,
    UnknownWorkflow,
    WorkflowError,
)
from durable.handle import RunHandle
from durable.hooks import HookEvent
from durable.model import Failure, Request, Run, RunSummary, State, TimelineEntry
from durable.options import WorkerOptions
from durable.retry import Retry
from durable.steps import CurrentStep, current_step
from durable.store import Store
from durable.workflow import Workflow, workflow

__all__ = [
    "AmbiguousName",
    "ConfigurationError",
    "Context",
    "CurrentStep",
    "DurableError",
    "Engine",
    "Failure",
    "HookEvent",
    "InvalidArgument",
    "KeyConflict",
    "NonRetryable",
    "NondeterminismError",
    "NotSerializable",
    "Page",
    "PayloadError",
    "PayloadTooLarge",
    "Request",
    "ResultTypeUnknown",
    "Retry",
    "RetryAfter",
    "Run",
    "RunCancelled",
    "RunCompensated",
    "RunDeadLettered",
    "RunFailed",
    "RunFinished",
    "RunHandle",
    "RunNotFound",
    "RunSummary",
    "RunTimeout",
    "SchemaOutdated",
    "SchemaTooNew",
    "State",
    "StepFailed",
    "Store",
    "StoreUnavailable",
    "TimelineEntry",
    "UnknownWorkflow",
    "WorkerOptions",
    "Workflow",
    "WorkflowError",
    "current_step",
    "workflow",
]
