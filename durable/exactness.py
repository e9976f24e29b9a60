"""Whether a decoded value is the value that was encoded, and what about a value has no JSON form.

JSON keeps less than Python has, and decoders repair in silence: NaN becomes null, a child instance its parent, a
tuple a list. Each difference found here becomes a typed error before anything is written, instead of another
value after a crash. Pure; it neither encodes nor decodes.
"""

from __future__ import annotations

import dataclasses
import enum
import marshal
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, cast
from uuid import UUID

from pydantic import BaseModel

MAX_DEPTH = 200
"""Levels of nesting that the JSON parser reads."""

MAX_DIGITS = 4300
"""Digits of an integer that Python reads."""

_class_of: Callable[[Any], type[Any]] = type
_SCALARS = (str, int, float, bytes)
_REDUCED = (str, int, float, bytes, datetime, list, tuple, dict, set, frozenset)
"""Types to which an equal instance of a subclass may be reduced: a Counter declared as a dict, an IntEnum as an int."""

_ATOMS = frozenset({str, int, float, bool, bytes, Decimal, UUID, date, timedelta})
"""Types whose equality says everything."""


def exact_form(value: Any) -> bytes | None:
    """Bytes that are equal for two values only when these are equal in value and exact type, all the way down.

    None when the value holds anything but built-in types. It is marshal's form, which takes exact types only and
    writes each value's type: 0.5 µs for a small dict, where a walk in Python takes 3. Version 2, since later ones
    depend on reference counts.
    """
    try:
        return marshal.dumps(value, 2)
    except ValueError:
        return None


def _identical(value: Any, decoded: Any) -> bool:
    form = exact_form(decoded)
    return form is not None and exact_form(value) == form


def difference(value: Any, decoded: Any) -> str | None:
    """Where and how ``decoded`` differs from ``value``, such as ``.lines[2]: tuple became list``; None: nowhere.

    Models and dataclasses are compared field by field, whatever their ``__eq__`` says. An instance of a subclass
    of a built-in type is taken for the declared built-in when they are equal, an int for a declared float.
    """
    if value is decoded:
        return None
    kind = _class_of(decoded)
    if _class_of(value) is not kind:
        if kind is float and isinstance(value, int):
            return None if value == decoded else ": the number changed"
        if kind not in _REDUCED or not isinstance(value, kind):
            return f": {_type_name(value)} became {_type_name(decoded)}"
    elif kind in _ATOMS:
        return None if value == decoded else f": the {kind.__name__} changed"
    # Models first: asking their metaclass for what they lack takes a microsecond, isinstance half of one.
    if hasattr(kind, "__pydantic_root_model__"):
        return _in_model(value, decoded, kind)
    if hasattr(kind, "__dataclass_fields__"):
        return _in_dataclass(value, decoded, kind)
    if isinstance(decoded, (datetime, time)):
        return None if _same_time(cast("Any", value), decoded) else ": the time changed"
    if isinstance(decoded, (list, tuple, dict, set, frozenset)):
        return None if _identical(value, decoded) else _in_container(value, decoded)
    return _in_object(value, decoded)


def _in_container(value: Any, decoded: Any) -> str | None:
    if isinstance(decoded, dict):
        return _in_dict(value, cast("Any", decoded))
    if isinstance(decoded, (set, frozenset)):
        return _in_set(value, cast("Any", decoded))
    return _in_sequence(value, decoded)


def _in_parts(parts: Iterable[tuple[str, Any, Any]]) -> str | None:
    for where, value, decoded in parts:
        found = difference(value, decoded)
        if found is not None:
            return where + found
    return None


def _in_sequence(value: list[Any], decoded: list[Any]) -> str | None:
    if len(value) != len(decoded):
        return f": {len(value)} items became {len(decoded)}"
    return _in_parts((f"[{n}]", a, b) for n, (a, b) in enumerate(zip(value, decoded, strict=True)))


def _in_dict(value: dict[Any, Any], decoded: dict[Any, Any]) -> str | None:
    if len(value) != len(decoded):
        return f": {len(value)} keys became {len(decoded)}"
    kinds: dict[Any, type[Any]] = {key: type(key) for key in decoded}
    for key in value:
        if key not in kinds:
            return f": a key of type {_type_name(key)} changed"
        if not isinstance(key, kinds[key]):
            return f": a key of type {_type_name(key)} became {kinds[key].__qualname__}"
    return _in_parts((f"[{key!r:.40}]", value[key], decoded[key]) for key in value)


def _in_set(value: set[Any], decoded: set[Any]) -> str | None:
    kinds: dict[Any, type[Any]] = {item: type(item) for item in decoded}
    if len(value) != len(decoded) or any(not isinstance(item, kinds.get(item, ())) for item in value):
        return ": an item changed"
    return None


def _in_dataclass(value: Any, decoded: Any, kind: type[Any]) -> str | None:
    ours, theirs = getattr(value, "__dict__", None), getattr(decoded, "__dict__", None)
    if theirs and _identical(ours, theirs):  # it may have slots as well, or a cached property
        names = [name for name in kind.__dataclass_fields__ if name not in theirs]
    else:
        names = list(kind.__dataclass_fields__)
    return _in_parts((f".{name}", getattr(value, name), getattr(decoded, name)) for name in names)


def _in_model(value: Any, decoded: Any, kind: type[Any]) -> str | None:
    ours, theirs = value.__dict__, decoded.__dict__
    if not _identical(ours, theirs):
        found = _in_parts((f".{name}", ours.get(name), theirs.get(name)) for name in kind.__pydantic_fields__)
        if found is not None:
            return found
    found = difference(value.__pydantic_extra__, decoded.__pydantic_extra__)
    if found is None and value.__pydantic_private__ != decoded.__pydantic_private__:
        return ": a private attribute is lost"
    return found


def _in_object(value: Any, decoded: Any) -> str | None:
    if isinstance(decoded, enum.Enum):
        return ": the member changed"
    if (
        getattr(cast("object", decoded).__class__, "__eq__", None) is object.__eq__
    ):  # compared by identity: what it holds decides
        return difference(value.__getstate__(), decoded.__getstate__())
    return None if bool(value == decoded) else f": the {_type_name(value)} changed"


def _same_time(value: datetime | time, decoded: datetime | time) -> bool:
    """Same wall time and same offset; ``==`` is False for the hour that the clock repeats in autumn.

    The zone itself is not in the text: what comes back has the offset.
    """
    a, b = value.replace(tzinfo=None, fold=0), decoded.replace(tzinfo=None, fold=0)
    return a == b and value.utcoffset() == decoded.utcoffset()


# -- what has no JSON form ------------------------------------------------------------------------


class Misfit(NamedTuple):
    """A part of a value that has no JSON form."""

    where: str  # such as .lines[2]; empty for the value itself
    reason: str
    foreign: bool  # the part's type is not JSON's; a declared type may know what to do with it


def misfit(value: Any, *, plain: bool) -> Misfit | None:
    """The first part of ``value`` that JSON cannot hold; None when none is found.

    Args:
        value: Anything.
        plain: Whether types that are not JSON's own count. If so nothing is called on instances of them, else
            models, dataclasses and collections are looked into.
    """
    try:
        return _misfit(value, "", plain, 0)
    except Exception:  # an attribute or iterator of the user's; the refusal for which this looks has its own reason
        return None


def _misfit(value: Any, where: str, plain: bool, depth: int) -> Misfit | None:
    if depth > MAX_DEPTH:
        return Misfit(where, f"nested more than {MAX_DEPTH} levels deep", foreign=False)
    if plain and type(value) not in _PLAIN:
        return Misfit(where, _type_name(value), foreign=True)
    reason = _scalar_misfit(value) if isinstance(value, _SCALARS) else None
    if reason is not None:
        return Misfit(where, reason, foreign=False)
    if plain and isinstance(value, dict):
        odd = next((key for key in cast("dict[object, object]", value) if type(key) is not str), _FINE)
        if odd is not _FINE:
            return Misfit(where, f"a key of type {_type_name(odd)}", foreign=True)
    parts = (_misfit(part, where + place, plain, depth + 1) for place, part in _parts(value))
    return next((found for found in parts if found is not None), None)


_FINE = object()
_PLAIN = frozenset({str, int, float, bool, type(None), list, dict})


def _scalar_misfit(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else "a float that is not finite"
    if isinstance(value, int):
        return f"an integer of more than {MAX_DIGITS:,} digits" if abs(value) >= _TOO_LARGE else None
    try:
        if isinstance(value, str):
            value.encode()
        else:
            value.decode()
    except UnicodeEncodeError:
        return "text with a lone surrogate"
    except UnicodeDecodeError:
        return "bytes that are not UTF-8 (a model needs ser_json_bytes and val_json_bytes set to base64)"
    return None


_TOO_LARGE = 10**MAX_DIGITS


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            yield "", key
            yield f"[{key!r:.40}]", item
    elif isinstance(value, (list, tuple, set, frozenset)):
        for n, item in enumerate(cast("list[Any]", value)):
            yield f"[{n}]", item
    elif isinstance(value, BaseModel):
        for name, item in value.__dict__.items():
            yield f".{name}", item
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)


def _type_name(value: object) -> str:
    return type(value).__qualname__[:100]
