"""What a function declares: the type of its result, and of a workflow function's input.

Evaluates annotations and answers with a type, or with the reason why there is none. It never imports anything
by name and knows nothing about JSON. Pure.
"""

from __future__ import annotations

import collections.abc
import functools
import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from durable.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Unknown:
    """No usable type; ``why`` is empty when nothing is declared, or the declared type says nothing."""

    why: str = ""


UNKNOWN = Unknown()


def underlying(fn: Callable[..., Any]) -> Any:
    """The function, class or callable object whose annotations tell about ``fn``: no partials, no bound methods."""
    found: Any = fn
    while True:
        if isinstance(found, functools.partial):
            found = found.func
        elif isinstance(found, types.MethodType):
            found = found.__func__
        elif _annotated(found) or isinstance(found, type):
            return found
        else:  # an object that is called through its class
            call: Any = getattr(cast("object", found).__class__, _CALL, None)
            if not _annotated(call):
                return found
            found = call


_CALL = "__call__"


def _annotated(found: Any) -> bool:
    return isinstance(found, types.FunctionType) or hasattr(found, "__wrapped__")


def declares_result(function: Any) -> bool:
    """Whether a look at ``result_type(function)`` can bring anything; much cheaper than that."""
    if not isinstance(function, types.FunctionType):
        return True
    try:
        return "return" in _raw(function)
    except NameError:  # Python 3.14 evaluates annotations here; result_type says which name it was
        return True


def result_type(function: Any) -> Any:
    """What calling ``function``, an ``underlying`` one, gives in the end, or ``Unknown``.

    A class gives instances of itself. A plain function's ``Awaitable[T]`` gives ``T``, since what it returns is
    awaited.
    """
    if isinstance(function, type):
        return function
    annotation = _resolved(function, "return")
    if inspect.iscoroutinefunction(inspect.unwrap(function)):
        return annotation
    return _awaited(annotation)


def input_type(fn: Callable[..., Any]) -> tuple[bool, bool, Any]:
    """Whether a workflow function takes an input, whether that has a default, and its type or ``Unknown``.

    Raises:
        InvalidArgument: It takes something else than ``(ctx)``, ``(ctx, input)`` or ``(ctx, input=default)``.
    """
    name = getattr(fn, "__qualname__", None) or repr(fn)
    allowed = "a workflow function takes (ctx), (ctx, input) or (ctx, input=default)"
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"{name} has no signature to read ({error}): {allowed}") from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    strange = [str(p).partition(":")[0].partition("=")[0] for p in parameters if p.kind not in positional]
    if strange or not 1 <= len(parameters) <= 2:
        given = ", ".join(p.name if p.kind in positional else str(p).partition(":")[0] for p in parameters)
        raise InvalidArgument(f"{name}({given}) cannot be a workflow: {allowed}")
    if parameters[0].default is not inspect.Parameter.empty:
        raise InvalidArgument(f"{name}: ctx cannot have a default: {allowed}")
    if len(parameters) == 1:
        return False, False, UNKNOWN
    wanted = parameters[1]
    return True, wanted.default is not inspect.Parameter.empty, _resolved(underlying(fn), wanted.name)


def described(annotation: Any) -> str:
    """A type as messages name it."""
    name = annotation.__qualname__ if isinstance(annotation, type) else repr(annotation).replace("typing.", "")
    return name[:120]


def _raw(function: Any) -> dict[str, Any]:
    return typing.cast("dict[str, Any]", getattr(function, "__annotations__", None) or {})


def _resolved(function: Any, name: str) -> Any:
    """One evaluated annotation. The others may be broken: names imported under TYPE_CHECKING are common."""
    try:
        raw = _raw(function)  # evaluates all of them where annotations are lazy
        if name not in raw:
            return UNKNOWN
        holder = types.SimpleNamespace(__annotations__={name: raw[name]})
        names, closure = _scope(function)
        return typing.get_type_hints(holder, names, closure, include_extras=True)[name]
    except Exception as error:  # evaluating an annotation runs user code
        shown = _spelled(function, name)
        return Unknown(f"the annotation{shown} cannot be evaluated here ({type(error).__name__}: {error})"[:300])


def _spelled(function: Any, name: str) -> str:
    try:
        annotation = _raw(function)[name]
    except Exception:  # the lazy evaluation that has just failed
        return ""
    return f" {annotation!r}"


def _scope(function: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    plain = inspect.unwrap(function)
    closure: dict[str, Any] = {}
    for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
        try:
            closure[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return plain.__globals__, closure


def _awaited(annotation: Any) -> Any:
    origin = typing.get_origin(annotation)
    bare = origin or annotation
    if not (isinstance(bare, type) and issubclass(bare, collections.abc.Awaitable)):
        return annotation
    arguments = typing.get_args(annotation)
    if arguments and (len(arguments) == 1 or issubclass(bare, collections.abc.Coroutine)):
        return arguments[-1]
    return Unknown(f"{described(annotation)} does not say what awaiting it gives")
