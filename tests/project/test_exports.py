"""What is public is a decision: this list, ``durable.__all__``, and the design say the same."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import durable
import durable.testing
from durable import errors
from durable.oversight import Oversight
from durable.store import Clock
from durable.timetable import Timetable

PUBLIC = {
    # defining and running
    *("workflow", "Workflow", "Context", "Engine", "Retry", "WorkerOptions", "Store"),
    # triggering and reading
    *("RunHandle", "Run", "RunSummary", "RunTimeout", "Page", "State", "TimelineEntry", "Failure"),
    *(
        "TriggerOptions",
        "Debounce",
        "Policy",
        "Queue",
        "Rate",
        "EmittedEvent",
        "ChildHandle",
        "SyncClient",
        "SyncRunHandle",
    ),
    # schedules
    *("Schedule", "ScheduleSpec", "ScheduleOptions", "Overlap", "CatchUp", "Skip", "Tick", "ScheduleNotFound"),
    # looking after the system
    *("Census", "Depth", "Finding", "Meter", "NewToken", "OpenWait", "Scope", "Token", "WorkerInfo"),
    # inside a step
    *("current_step", "CurrentStep"),
    # errors
    *(
        "DurableError",
        "ConfigurationError",
        "StoreUnavailable",
        "SchemaOutdated",
        "SchemaTooNew",
        "HookEvent",
        "InvalidArgument",
    ),
    *("ChildFailed", "WaitTimeout", "ConcurrencyConflict"),
    *("UnknownWorkflow", "RunNotFound", "KeyConflict", "RunFinished", "PayloadError", "NotSerializable"),
    *(
        "Request",
        "ResultTypeUnknown",
        "PayloadTooLarge",
        "WorkflowError",
        "StepFailed",
        "AmbiguousName",
        "NondeterminismError",
    ),
    *("RunFailed", "RunCompensated", "RunDeadLettered", "RunCancelled", "NonRetryable", "RetryAfter"),
}
PUBLIC_FOR_TESTS = {"MemoryStore", "VirtualClock"}
SEAM = {*vars(durable.Store), *vars(Timetable), *vars(Oversight), *vars(Clock)}


def test_all_is_exactly_what_is_public() -> None:
    assert set(durable.__all__) == PUBLIC
    assert len(durable.__all__) == len(PUBLIC), "a name stands twice"
    assert set(durable.testing.__all__) == PUBLIC_FOR_TESTS


def test_nothing_else_is_to_be_had_by_accident() -> None:
    for module in (durable, durable.testing):
        names = {name for name in vars(module) if not name.startswith("_")}
        modules = {name for name, value in vars(module).items() if isinstance(value, ModuleType)}
        assert names - modules == set(module.__all__)


def test_every_error_that_the_library_raises_can_be_caught_by_its_public_name() -> None:
    tree = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.DurableError) and value.__module__ == errors.__name__
    }
    assert tree <= set(durable.__all__)


def public_objects() -> Iterator[tuple[str, Any]]:
    for module in (durable, durable.testing):
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value) and value.__module__.startswith("durable"):
                for attribute, member in vars(value).items():
                    if attribute.startswith("_") or (value is not durable.Store and attribute in SEAM):
                        continue  # the seam says what the methods of a store and its clock are for
                    if inspect.isfunction(member) or isinstance(member, property):
                        yield f"{module.__name__}.{name}.{attribute}", member


def test_every_public_object_says_what_it_is_for() -> None:
    silent = [name for name, value in public_objects() if not inspect.getdoc(value)]
    assert silent == []


def test_the_finder_costs_the_package_nothing() -> None:
    """Drivers, Docker and pytest are imported when they are used: an import of the package costs every command."""
    program = "import sys, durable, durable.testing.postgres; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {"psycopg", "sqlite3", "docker", "testcontainers", "pytest", "durable.testing.conformance"} & {
        *modules
    } == set()
