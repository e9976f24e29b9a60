"""The error tree, and what the caller of each branch should do.

    DurableError
    ├── ConfigurationError        fix the settings, the database or the deployment, then start again
    │   ├── StoreUnavailable      the database cannot be reached (at start), or stopped answering
    │   ├── SchemaOutdated        migrate first: the message names the command
    │   └── SchemaTooNew          this code is older than the schema: deploy a newer version
    ├── InvalidArgument           fix the call (also a ValueError)
    ├── UnknownWorkflow           register the workflow, or correct its name
    ├── RunNotFound               no run has this id or key
    ├── ScheduleNotFound          no schedule has this name
    ├── KeyConflict               the key (or run id) belongs to a run with another input
    ├── ConcurrencyConflict       another run is active under the concurrency key
    ├── RunFinished               the run has ended, or is not in a state that allows the operation
    ├── PayloadError              a value does not fit: change the value or its declared type
    │   ├── NotSerializable
    │   ├── ResultTypeUnknown     declare the type: a return annotation, or ``returns=``
    │   └── PayloadTooLarge
    ├── WorkflowError             raised inside a workflow function
    │   ├── StepFailed            the step's last attempt failed
    │   ├── WaitTimeout           no signal or event came in time (also a TimeoutError)
    │   ├── ChildFailed           a child run failed, was compensated, cancelled or given up
    │   ├── AmbiguousName         two live tasks use one name: put the item into the name
    │   ├── RunTimeout            the error of a run that did not end within its workflow's timeout
    │   └── NondeterminismError   the code no longer fits the history; it pauses the run
    ├── RunFailed                 raised by ``handle.result()``
    │   ├── RunCompensated        failed, and everything was undone
    │   └── RunDeadLettered       given up after repeated crashes
    ├── RunCancelled              raised by ``handle.result()``
    └── raised by user code inside a step
        ├── NonRetryable          stop retrying now
        └── RetryAfter            retry, but not before this delay

Control flow (parking, unwinding) is not in this tree: it is cancellation, see ``execution``. Driver
exceptions do not escape a store.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from durable.model import Failure


class DurableError(Exception):
    """Root of everything this library raises on purpose."""


# -- settings, database, deployment ---------------------------------------------------------------


class ConfigurationError(DurableError):
    """The engine cannot run as it is set up."""


class StoreUnavailable(ConfigurationError):
    """The store does not answer. While running the engine retries; at start it gives up."""


class SchemaOutdated(ConfigurationError):
    """The database schema is older than this code and ``auto_migrate`` is off."""


class SchemaTooNew(ConfigurationError):
    """The database schema is newer than this code."""


# -- calls ----------------------------------------------------------------------------------------


class InvalidArgument(DurableError, ValueError):
    """An argument is out of its documented range."""


class UnknownWorkflow(DurableError):
    """No workflow of this name and version is registered with the engine."""


class RunNotFound(DurableError):
    """No run has this id or key."""


class ScheduleNotFound(DurableError):
    """No schedule has this name."""


class KeyConflict(DurableError):
    """The key or run id exists already, with another workflow or another input.

    Attributes:
        run_id: The run that holds it.
    """

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class ConcurrencyConflict(DurableError):
    """Another run of the workflow is active under the same concurrency key, and the policy is to reject.

    Attributes:
        run_id: The run that is active.
    """

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class RunFinished(DurableError):
    """The operation needs a run in another state."""


class PayloadError(DurableError):
    """A value cannot be stored, or stored data cannot be read as the declared type."""


class NotSerializable(PayloadError):
    """The value has no exact JSON form under its declared type."""


class ResultTypeUnknown(PayloadError):
    """The value is not plain JSON and no usable type was declared for it."""


class PayloadTooLarge(PayloadError):
    """The encoded value exceeds the limit."""


# -- inside workflows -----------------------------------------------------------------------------


class WorkflowError(DurableError):
    """Raised by ``ctx`` operations inside a workflow function."""


class StepFailed(WorkflowError):
    """A step's last attempt failed. Equal on the first pass and on replay; ``__cause__`` is None.

    Attributes:
        step: The step's record key, such as ``charge`` or ``charge#2``.
        attempts: How many attempts were made.
        error_type: Qualified name of the last exception's class.
        message: Text of the last exception.
        traceback: Its traceback as text, without local variables.
    """

    def __init__(self, step: str, attempts: int, failure: Failure) -> None:
        tries = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        super().__init__(f"step {step!r} failed after {tries}: {failure.summary}")
        self.step = step
        self.attempts = attempts
        self.failure = failure
        self.error_type = failure.error_type
        self.message = failure.message
        self.traceback = failure.traceback

    def is_a(self, error: type[BaseException]) -> bool:
        """Whether the recorded exception was an instance of ``error``, by its recorded class names."""
        return f"{error.__module__}.{error.__qualname__}" in self.failure.classes


class WaitTimeout(WorkflowError, TimeoutError):
    """Nothing came before the wait's deadline. What comes later is for the next wait.

    Attributes:
        wait: The wait's record key.
    """

    def __init__(self, wait: str) -> None:
        super().__init__(f"nothing came for {wait!r} before its deadline")
        self.wait = wait


class ChildFailed(WorkflowError):
    """A child run ended without a result. Equal on the first pass and on replay; ``__cause__`` is None.

    Attributes:
        call: The record key of the call, such as ``kyc``.
        run_id: The child.
        state: How it ended: ``failed``, ``compensated``, ``cancelled`` or ``dead_letter``.
        failure: Its recorded error: type, message, traceback.
    """

    def __init__(self, call: str, run_id: str, state: str, failure: Failure) -> None:
        super().__init__(f"child {call!r} (run {run_id}) ended {state}: {failure.summary}")
        self.call = call
        self.run_id = run_id
        self.state = state
        self.failure = failure

    def is_a(self, error: type[BaseException]) -> bool:
        """Whether the recorded exception was an instance of ``error``, by its recorded class names."""
        return f"{error.__module__}.{error.__qualname__}" in self.failure.classes


class AmbiguousName(WorkflowError):
    """Two live tasks of one run use the same operation name, so a replay could swap their results."""


class RunTimeout(WorkflowError):
    """The run did not end within its workflow's timeout. It is the error of the run, not raised in its code."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} did not end within its timeout")


class NondeterminismError(WorkflowError):
    """A recorded operation was asked for as another kind."""


# -- outcomes of a run ----------------------------------------------------------------------------


class RunFailed(DurableError):
    """The run ended without a result.

    Attributes:
        run_id: The run.
        failure: What was recorded: type, message, traceback.
    """

    def __init__(self, run_id: str, failure: Failure) -> None:
        super().__init__(f"run {run_id} {self._verb}: {failure.summary}")
        self.run_id = run_id
        self.failure = failure

    _verb = "failed"


class RunCompensated(RunFailed):
    """The run failed, and every compensation succeeded."""

    _verb = "failed and was compensated"


class RunDeadLettered(RunFailed):
    """The run was given up after its workers died repeatedly without progress."""

    _verb = "was dead-lettered"


class RunCancelled(DurableError):
    """The run was cancelled."""

    def __init__(self, run_id: str, reason: str = "") -> None:
        super().__init__(f"run {run_id} was cancelled{': ' if reason else ''}{reason}")
        self.run_id = run_id
        self.reason = reason


# -- raised by user code --------------------------------------------------------------------------


class NonRetryable(DurableError):
    """Raise it (or a subclass) in a step to end its retries."""


class RetryAfter(DurableError):
    """Raise it in a step to have the next attempt wait.

    Args:
        delay: Seconds, or a timedelta. It replaces the policy's delay; the number of attempts still counts.
    """

    def __init__(self, delay: float | timedelta, message: str = "") -> None:
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
        super().__init__(message or f"retry after {seconds:g} s")
        self.delay = seconds


# Bounded, and without the scheme: looking for that took 4 s on an error text with a 40 kB word in it.
_URL_PASSWORD = re.compile(r"(?P<head>://[^\s:/@]{0,256}:)[^\s]{0,1024}(?=@)")
_DSN_PASSWORD = re.compile(r"(?P<head>\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&]+)", re.IGNORECASE)


def without_password(text: str) -> str:
    """``text`` with the password of every database URL or DSN in it replaced by ``***``."""
    return _DSN_PASSWORD.sub(r"\g<head>***", _URL_PASSWORD.sub(r"\g<head>***", text))
