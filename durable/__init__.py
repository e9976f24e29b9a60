"""Durable workflows for Python on the database you already have."""

from durable.children import ChildHandle
from durable.client import Page
from durable.context import Context
from durable.declarations import ScheduleOptions
from durable.engine import Engine
from durable.errors import (
    AmbiguousName,
    ChildFailed,
    ConcurrencyConflict,
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
    ScheduleNotFound,
    SchemaOutdated,
    SchemaTooNew,
    StepFailed,
    StoreUnavailable,
    UnknownWorkflow,
    WaitTimeout,
    WorkflowError,
)
from durable.handle import RunHandle
from durable.hooks import HookEvent
from durable.messenger import EmittedEvent
from durable.meter import Meter
from durable.model import Debounce, Failure, Policy, Queue, Rate, Request, Run, RunSummary, State, TimelineEntry
from durable.newruns import TriggerOptions
from durable.options import WorkerOptions
from durable.reports import Census, Depth, Finding, NewToken, OpenWait, Scope, Token, WorkerInfo
from durable.retry import Retry
from durable.schedules import CatchUp, Overlap, Schedule, ScheduleSpec, Skip, Tick
from durable.steps import CurrentStep, current_step
from durable.store import Store
from durable.sync import SyncClient, SyncRunHandle
from durable.workflow import Workflow, workflow

__all__ = [
    "AmbiguousName",
    "CatchUp",
    "Census",
    "ChildFailed",
    "ChildHandle",
    "ConcurrencyConflict",
    "ConfigurationError",
    "Context",
    "CurrentStep",
    "Debounce",
    "Depth",
    "DurableError",
    "EmittedEvent",
    "Engine",
    "Failure",
    "Finding",
    "HookEvent",
    "InvalidArgument",
    "KeyConflict",
    "Meter",
    "NewToken",
    "NonRetryable",
    "NondeterminismError",
    "NotSerializable",
    "OpenWait",
    "Overlap",
    "Page",
    "PayloadError",
    "PayloadTooLarge",
    "Policy",
    "Queue",
    "Rate",
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
    "Schedule",
    "ScheduleNotFound",
    "ScheduleOptions",
    "ScheduleSpec",
    "SchemaOutdated",
    "SchemaTooNew",
    "Scope",
    "Skip",
    "State",
    "StepFailed",
    "Store",
    "StoreUnavailable",
    "SyncClient",
    "SyncRunHandle",
    "Tick",
    "TimelineEntry",
    "Token",
    "TriggerOptions",
    "UnknownWorkflow",
    "WaitTimeout",
    "WorkerInfo",
    "WorkerOptions",
    "Workflow",
    "WorkflowError",
    "current_step",
    "workflow",
]
