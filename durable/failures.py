"""Exceptions made into ``Failure`` values, and those into JSON text and back.

Text only, bounded, storable in every database, and without local variables: a traceback must not carry a
customer's data into a history. Pure; it knows neither records nor runs.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic_core import from_json as parse_json
from pydantic_core import to_json as write_json

from durable.errors import ChildFailed, PayloadError, RunCancelled, StepFailed, without_password
from durable.model import Failure, Request, State, Verb

# Sizes are bytes of JSON, escapes included; together a Failure stays below 64 kB.
MAX_MESSAGE = 12_000
MAX_TRACEBACK = 40_000
MAX_CLASSES = 32
MAX_CLASS_NAME = 300

_LONGEST_SECRET = 2_000  # characters; more than what without_password recognises

_OURS = str(Path(__file__).parent) + "/"
_LIBRARY = str(Path(traceback.__file__).parent) + "/"
_CARRIERS = tuple(
    _LIBRARY + name for name in ("asyncio/", "concurrent/", "contextlib.py", "functools.py", "threading.py")
)


def capture(error: BaseException) -> Failure:
    """What is recorded of ``error``.

    The traceback starts at the user's code and shows causes, notes and groups as Python prints them; a
    ``StepFailed`` also brings the traceback that was recorded for its step. It and ``ChildFailed`` bring the class
    names of what was raised there, so that ``is_a`` sees through them.
    """
    kind = type(error)
    step = _failed_step(error)
    inner = step if isinstance(error, StepFailed) else error if isinstance(error, ChildFailed) else None
    own = (_name(one) for one in kind.__mro__ if one is not object)
    classes = [*own, *(() if inner is None else inner.failure.classes)]  # what the step or the child has raised
    text = _traceback(error)
    if isinstance(error, StepFailed) and error.traceback:
        text = f"{text}\nIn the step:\n{error.traceback}"
    return Failure(
        error_type=_name(kind).removeprefix("builtins."),
        message=_clipped(_message(error), MAX_MESSAGE, tail=0.0),
        traceback=_clipped(text, MAX_TRACEBACK, tail=0.7),
        classes=tuple(dict.fromkeys(classes))[:MAX_CLASSES],
        step=None if step is None else step.step,
    )


def redacted(failure: Failure, redact: Callable[[str], str]) -> Failure:
    """``failure`` with its texts as ``redact`` gives them back, bounded and storable again.

    Raises:
        TypeError: ``redact`` gave something else than a text.
    """
    texts = [redact(failure.message), redact(failure.traceback)]
    if not all(isinstance(text, str) for text in texts):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the redaction hook must return a str, not {', '.join(type(text).__name__ for text in texts)}")
    message, trace = (str.__str__(text) for text in texts)
    return replace(
        failure,
        message=_clipped(message, MAX_MESSAGE, tail=0.0),
        traceback=_clipped(trace, MAX_TRACEBACK, tail=0.7),
    )


def with_compensations(failure: Failure, undone: Sequence[str], not_undone: Sequence[str]) -> Failure:
    """``failure`` with the keys of the steps that were compensated, and of those that were not."""
    return replace(failure, undone=tuple(undone), not_undone=tuple(not_undone))


def to_json(failure: Failure) -> str:
    """The failure as JSON text; what is empty is left out."""
    fields: dict[str, Any] = {"error_type": failure.error_type, "message": failure.message}
    for name in ("traceback", "classes", "step", "undone", "not_undone"):
        value = getattr(failure, name)
        if value:
            fields[name] = value
    return write_json(fields).decode()


def request_to_json(request: Request) -> str:
    """The request as JSON text; what is empty is left out."""
    fields = ("verb", "reason", "by", "id")
    return write_json({name: value for name in fields if (value := getattr(request, name))}).decode()


def cancelled(run_id: str, reason: str) -> str:
    """The error of a run that was cancelled, as JSON text."""
    return to_json(capture(RunCancelled(run_id, reason)))


def request_from_json(text: str) -> Request:
    """The request that ``request_to_json`` wrote."""
    found: dict[str, str] = parse_json(text)
    return Request(Verb(found["verb"]), found.get("reason", ""), found.get("by", ""), found.get("id", ""))


def readable(text: str | None) -> Failure:
    """The failure that is stored as ``text``; one that cannot be read is a failure itself, and keeps nobody waiting."""
    try:
        return from_json(text)
    except PayloadError as error:
        return capture(error)


def end_to_json(state: State, result: str | None, error: str | None) -> str:
    """How a run has ended, as its parent is told: ``result`` and ``error`` are JSON already."""
    return f'{{"state": "{state}", "result": {result or "null"}, "error": {error or "null"}}}'


def from_json(text: str | None) -> Failure:
    """The failure that ``to_json`` wrote. Fields of a later version are left out.

    Raises:
        PayloadError: The text is not such a failure.
    """
    try:
        found: object = parse_json(text or "", allow_inf_nan=False)
    except ValueError:
        raise PayloadError("the stored failure is not JSON") from None
    if not isinstance(found, dict):
        raise PayloadError(f"the stored failure is a JSON {type(found).__name__}, not an object")
    fields = cast("dict[str, object]", found)
    step = fields.get("step")
    if step is not None and not isinstance(step, str):
        raise PayloadError("the stored failure's 'step' is not a text")
    return Failure(
        error_type=_text_of(fields, "error_type"),
        message=_text_of(fields, "message"),
        traceback=_text_of(fields, "traceback", ""),
        classes=_texts_of(fields, "classes"),
        step=step,
        undone=_texts_of(fields, "undone"),
        not_undone=_texts_of(fields, "not_undone"),
    )


def _text_of(fields: dict[str, object], name: str, default: str | None = None) -> str:
    value = fields.get(name, default)
    if not isinstance(value, str):
        raise PayloadError(f"the stored failure's {name!r} is not a text")
    return value


def _texts_of(fields: dict[str, object], name: str) -> tuple[str, ...]:
    values = fields.get(name, [])
    if not isinstance(values, list):
        raise PayloadError(f"the stored failure's {name!r} is not a list of texts")
    texts = tuple(value for value in cast("list[object]", values) if isinstance(value, str))
    if len(texts) != len(cast("list[object]", values)):
        raise PayloadError(f"the stored failure's {name!r} is not a list of texts")
    return texts


def _name(kind: type[BaseException]) -> str:
    """As ``StepFailed.is_a`` spells it."""
    return _clipped(f"{kind.__module__}.{kind.__qualname__}", MAX_CLASS_NAME, tail=0.0)


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as broken:  # the user's __str__
        return f"<no message: its __str__ raised {type(broken).__name__}>"


def _failed_step(error: BaseException) -> StepFailed | None:
    """The first ``StepFailed`` among the error, its explicit causes, and the members of groups."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, StepFailed):
            return one
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        if isinstance(one, BaseExceptionGroup):
            waiting.extend(reversed(cast("BaseExceptionGroup[BaseException]", one).exceptions))
    return None


# -- traceback ------------------------------------------------------------------------------------


def _traceback(error: BaseException) -> str:
    try:
        report = traceback.TracebackException.from_exception(error, capture_locals=False)
        for one in _chain(report):
            _trim(one.stack)
        return "".join(report.format())
    except Exception as broken:  # a __cause__, __notes__ or __module__ that is not what Python expects
        return f"<no traceback: formatting it raised {type(broken).__name__}>"


def _chain(report: traceback.TracebackException) -> Iterator[traceback.TracebackException]:
    waiting = [report]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(other for other in (one.__cause__, one.__context__) if other is not None)
        waiting.extend(getattr(one, "exceptions", None) or ())


def _trim(stack: traceback.StackSummary) -> None:
    """Drop the frames above the user's: the engine's, and those that carried the call into a task or a thread."""
    theirs = (n for n, frame in enumerate(stack) if not frame.filename.startswith((_OURS, *_CARRIERS)))
    del stack[: next(theirs, len(stack))]


# -- size and characters --------------------------------------------------------------------------


def _clipped(text: str, limit: int, *, tail: float) -> str:
    """Storable text whose JSON form has at most ``limit`` bytes; ``tail`` is the share kept from its end."""
    room = limit + _LONGEST_SECRET
    gone = max(0, len(text) - 2 * room)
    if gone:
        text = text[:room] + text[-room:]  # what is kept in the end comes from well inside these halves
    text = without_password(_storable(text))  # before the cut, which could leave half a password without its @
    size = limit
    kept = _cut(text, size, tail, gone)
    while len(write_json(kept)) - 2 > limit:  # escapes, and characters of several bytes
        size = size * 3 // 4
        kept = _cut(text, size, tail, gone)
    return kept


def _cut(text: str, size: int, tail: float, gone: int) -> str:
    if len(text) <= size:
        return text
    mark = f"… [{len(text) - size + gone:,} characters left out] …"
    size = max(0, size - len(mark.encode()))
    end = int(size * tail)
    return text[: size - end] + mark + (text[-end:] if end else "")


def _storable(text: str) -> str:
    """Lone surrogates and NUL as the escapes that Python shows: some database refuses each of them."""
    if "\0" in text:
        text = text.replace("\0", "\\x00")
    return text.encode("utf-8", "backslashreplace").decode()
