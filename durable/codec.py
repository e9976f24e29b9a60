"""Python values into JSON text and back: exactly, or a typed error before anything is written.

A value is encoded and decoded by its declared type, and the workflow is given what was decoded, on the first pass
as well as on replay. What does not come back equal is refused. JSON only: no pickle, no import by a stored name.
Pure; it knows neither steps nor runs, and callers say what a value is, for the message. Messages name types and
places, never values.
"""

from __future__ import annotations

import hashlib
import json
import re
import types
import typing
import weakref
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NewType, NoReturn

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from durable.annotations import UNKNOWN, Unknown, declares_result, described, input_type, result_type, underlying
from durable.errors import InvalidArgument, NotSerializable, PayloadError, PayloadTooLarge, ResultTypeUnknown
from durable.exactness import difference, exact_form, misfit

DEFAULT_LIMIT = 4 * 1024 * 1024
"""Bytes of UTF-8 in one payload."""


class Missing:
    """The type of ``MISSING``: no ``returns=`` was given. None will not do, it is a type."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = Missing()

_SCALARS = frozenset({str, int, float, bool, type(None)})
_class_of: Callable[[Any], type[Any]] = type
_new_type: Any = NewType  # for a type that is known at run time only
_RESULT_HINT = "annotate what the function returns, or pass returns="
_INPUT_HINT = "annotate the workflow function's input with its type"


class Codec:
    """Encodes and decodes plain JSON values: what is used when no type is known.

    Obtained through ``codec_for``, ``result_codec`` and ``input_codec``, which keep one per type.
    """

    __slots__ = ("_direct", "_hint", "unknown")

    def __init__(self, unknown: Unknown = UNKNOWN, hint: str = _RESULT_HINT) -> None:
        self.unknown: Unknown | None = unknown
        """Why there is no type; None when there is one."""
        self._hint = hint
        self._direct = _SCALARS  # exact types that come back as they are: nothing to decode or to compare

    def encode(self, value: object, what: object) -> str:
        """The JSON text of ``value``, which is known to decode to an equal value.

        Args:
            value: The value.
            what: What it is, for the message: ``"the result of step 'charge'"``, or what has that as its ``str``.

        Raises:
            NotSerializable: It would not come back as it is.
            ResultTypeUnknown: It is not plain JSON, and no type is known.
            PayloadTooLarge: The text exceeds 4 MiB.
        """
        return self.round_trip(value, what)[0]

    def round_trip(self, value: Any, what: object) -> tuple[str, Any]:
        """The JSON text of ``value``, and what ``decode`` makes of it; raises as ``encode`` does."""
        kind = _class_of(value)
        if kind in self._direct:
            if value is None:
                return "null", None
            if kind is bool:
                return ("true" if value else "false"), value
            if kind is int and -0x8000_0000_0000_0000 <= value <= 0x7FFF_FFFF_FFFF_FFFF:
                return int.__repr__(value), value
            if kind is float and value - value == 0.0:  # neither NaN nor infinite
                return float.__repr__(value), value
            if kind is str and len(value) < 1024:
                try:
                    return to_json(value).decode(), value
                except PydanticSerializationError:  # a lone surrogate
                    self._refuse(value, what)
        return self._checked(value, what)

    def decode(self, text: str | None, what: str) -> Any:
        """The value that was encoded as ``text``; None for None.

        Raises:
            PayloadError: What is stored does not fit the type as it is now.
        """
        if text is None:
            return None
        try:
            return from_json(text, allow_inf_nan=False)
        except (ValueError, RecursionError):
            raise PayloadError(f"{what} is stored as something that is not JSON") from None

    def schema(self, *, written: bool = False) -> dict[str, Any]:  # noqa: ARG002  (known types differ in it)
        """The JSON schema of what is accepted, or of what is ``written``; without a known type: of anything."""
        return {}

    def _checked(self, value: object, what: object) -> tuple[str, Any]:
        form = exact_form(value)
        if form is None:  # not built of exact built-in types; no user code has been called yet
            self._refuse(value, what)
        try:
            raw = to_json(value, bytes_mode="base64")
            _check_size(raw, what)
            decoded = from_json(raw, allow_inf_nan=False)
        except (ValueError, RecursionError):
            self._refuse(value, what)
        if exact_form(decoded) != form:
            self._refuse(value, what)
        return raw.decode(), decoded

    def _refuse(self, value: object, what: object) -> NoReturn:
        found = misfit(value, plain=True)
        place = "found " + _place(found.where, found.reason) if found else "it does not come back as it is"
        if found is None or not found.foreign:
            raise NotSerializable(f"{what} has no exact JSON form: {place}") from None
        why = f" ({self.unknown.why})" if self.unknown is not None and self.unknown.why else ""
        raise ResultTypeUnknown(
            f"{what} is not made of plain JSON values (dict with str keys, list, str, int, float, bool, None) and its "
            f"type is not known{why}: {self._hint}; {place}"
        ) from None


class _TypedCodec(Codec):
    """Encodes and decodes by a declared type, with pydantic."""

    __slots__ = ("_dump", "_load", "_name", "_schema")

    def __init__(self, annotation: Any) -> None:
        super().__init__()
        self.unknown = None
        # A NewType carries the configuration to dataclasses and TypedDicts too, which refuse it directly; models
        # keep their own. Without base64 bytes that are no text cannot be stored.
        config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
        adapter: TypeAdapter[Any] = TypeAdapter(_new_type("Value", annotation), config=config)
        if not adapter.pydantic_complete:
            raise NameError("it refers to a name that is not defined yet")
        self._name = described(annotation)
        self._direct = _direct_types(annotation)
        # By field name: aliases for reading and writing can differ. round_trip leaves computed fields out, which
        # a model that forbids extra fields would refuse.
        self._dump = partial(adapter.serializer.to_json, by_alias=False, round_trip=True, warnings=False)
        self._load = partial(adapter.validator.validate_json, by_alias=True, by_name=True)
        self._schema = adapter.json_schema

    def decode(self, text: str | None, what: str) -> Any:
        if text is None:
            return None
        try:
            return self._load(text)
        except ValidationError as error:
            raise PayloadError(f"{what} does not fit {self._name}: {_errors(error)}") from None
        except Exception as error:  # the user's validators and __post_init__ may raise anything
            raise PayloadError(f"{what} cannot be made into {self._name}: {type(error).__name__}") from error

    def schema(self, *, written: bool = False) -> dict[str, Any]:
        try:
            return self._schema(by_alias=not written, mode="serialization" if written else "validation")
        except PydanticUserError:  # the type has values in JSON, and no schema: a validator of the user's own
            return {}

    def _checked(self, value: object, what: object) -> tuple[str, Any]:
        try:
            raw = self._dump(value)
        except Exception as error:  # the user's serializers may raise anything
            self._refuse(value, what, f"encoding it raised {type(error).__name__}")
        _check_size(raw, what)
        try:
            # One byte is found in 0.03 µs, a word in 0.2. The word can be in a text, or a number that is not JSON.
            if (b"N" in raw and b"NaN" in raw) or (b"I" in raw and b"Infinity" in raw):
                from_json(raw, allow_inf_nan=False)
            decoded = self._load(raw)
        except ValidationError as error:
            self._refuse(value, what, f"it cannot be decoded again, {_errors(error)}")
        except Exception as error:  # the user's validators and __post_init__ may raise anything
            self._refuse(value, what, f"decoding it raised {type(error).__name__}")
        try:
            found = difference(value, decoded)
        except Exception as error:  # the user's __eq__ may raise anything
            found = f": comparing raised {type(error).__name__}"
        if found is not None:
            where, _, reason = found.partition(": ")
            self._refuse(value, what, f"it comes back changed, {_place(where, reason)}")
        return raw.decode(), decoded

    def _refuse(self, value: object, what: object, why: str = "") -> NoReturn:
        found = misfit(value, plain=False)
        if found is not None:
            why = "found " + _place(found.where, found.reason)
        raise NotSerializable(f"{what} has no exact JSON form as {self._name}: {why}") from None


class _LateCodec(Codec):
    """For an annotation that cannot be evaluated yet: it is looked at again at the first use.

    A workflow is decorated while its module is being imported; the class of its input may stand further down.
    """

    __slots__ = ("_find", "_found")

    def __init__(self, find: Callable[[], Codec]) -> None:
        super().__init__()
        self._find = find
        self._found: Codec | None = None

    def round_trip(self, value: Any, what: object) -> tuple[str, Any]:
        return self._resolved().round_trip(value, what)

    def decode(self, text: str | None, what: str) -> Any:
        return self._resolved().decode(text, what)

    def schema(self, *, written: bool = False) -> dict[str, Any]:
        return self._resolved().schema(written=written)

    def _resolved(self) -> Codec:
        if self._found is None:
            self._found = self._find()
        return self._found


PLAIN = Codec()


# -- which codec ----------------------------------------------------------------------------------


def codec_for(annotation: Any) -> Codec:
    """The codec of a type, the same for every call. ``Any``, ``object`` and ``MISSING`` mean plain JSON.

    A type that pydantic cannot handle gives a codec for plain JSON whose ``unknown`` says why.
    """
    if annotation is Any or annotation is object or annotation is MISSING:
        return PLAIN
    try:
        if isinstance(annotation, type):
            return _codec(annotation)
        # `int | str` equals `str | int`, but the order can decide what a text is decoded to.
        spelled = repr(annotation)
        try:
            return _codec(annotation, spelled)
        except TypeError:  # unhashable, such as Annotated[int, {...}]
            return _codec_of_unhashable(annotation, spelled)
    except _UnusableError as error:
        return Codec(Unknown(str(error)))


def result_codec(fn: Callable[..., Any], returns: Any = MISSING) -> Codec:
    """The codec of what ``fn`` gives: by ``returns``, else by its return annotation, else plain JSON.

    Args:
        fn: Any callable; partials, bound methods and callable objects are looked through.
        returns: The type, where the annotation does not say it.

    Raises:
        InvalidArgument: ``returns`` is not a type that values can be decoded to.
    """
    if returns is not MISSING:
        return _returned(returns)
    found: Any = fn
    while type(found) is partial:  # made anew for each call: what they hold is remembered
        found = found.func
    if type(found) is types.MethodType:
        found = found.__func__
    try:
        return _by_function[found]
    except (KeyError, TypeError):  # TypeError: unhashable, or cannot be referred to weakly
        return _result_codec(found)


def input_codec(fn: Callable[..., Any]) -> tuple[bool, bool, Codec]:
    """Whether a workflow function takes an input, whether that has a default, and the input's codec.

    Raises:
        InvalidArgument: The function takes something else than ``(ctx)``, ``(ctx, input)`` or
            ``(ctx, input=default)``.
    """
    takes, has_default, declared = input_type(fn)
    codec = _codec_of(declared, _INPUT_HINT)
    if codec.unknown is not None and codec.unknown.why:
        codec = _LateCodec(lambda: _codec_of(input_type(fn)[2], _INPUT_HINT))
    return takes, has_default, codec


_by_function: weakref.WeakKeyDictionary[Any, Codec] = weakref.WeakKeyDictionary()


def _result_codec(fn: Callable[..., Any]) -> Codec:
    function = underlying(fn)
    if not declares_result(function):
        return PLAIN  # not remembered: lambdas are made anew for each call
    codec = _codec_of(result_type(function), _RESULT_HINT)
    try:
        if codec.unknown is not None and codec.unknown.why:
            codec = _LateCodec(partial(_late_result, weakref.ref(function), codec))
        _by_function[fn] = codec
    except TypeError:  # it cannot be referred to weakly, and is looked at each time
        return codec
    return codec


def _late_result(function: weakref.ref[Any], unknown: Codec) -> Codec:
    """``_by_function`` would keep a function alive for ever to which its own codec refers."""
    found = function()
    return unknown if found is None else _codec_of(result_type(found), _RESULT_HINT)


def _codec_of(declared: Any, hint: str) -> Codec:
    codec = Codec(declared, hint) if isinstance(declared, Unknown) else codec_for(declared)
    return codec if codec.unknown is None else Codec(codec.unknown, hint)


def _returned(returns: Any) -> Codec:
    codec = codec_for(returns)
    if codec.unknown is not None and codec.unknown.why:
        raise InvalidArgument(f"returns={described(returns)} cannot be used: {codec.unknown.why}")
    return codec


@lru_cache(maxsize=1024)
def _codec(annotation: Any, spelled: str = "") -> Codec:  # noqa: ARG001
    """``spelled`` makes two orders of one union two keys. What is raised is not remembered: it may pass."""
    if isinstance(annotation, typing.TypeVar):
        raise _UnusableError(f"the type variable {annotation} says nothing about the value")
    try:
        return _TypedCodec(annotation)
    except Exception as error:  # pydantic's, and whatever a type's own schema hook raises
        reason = str(error).partition("\n")[0][:200]
        raise _UnusableError(f"{described(annotation)} cannot be decoded from JSON: {reason}") from None


class _UnusableError(Exception):
    """An annotation is not a type that values can be decoded to."""


_unhashable: dict[str, tuple[Any, Codec]] = {}


def _codec_of_unhashable(annotation: Any, spelled: str) -> Codec:
    known = _unhashable.get(spelled)
    if known is not None and known[0] == annotation:
        return known[1]
    codec = _codec.__wrapped__(annotation, spelled)
    if len(_unhashable) >= 1024:  # annotations made from data must not fill the memory
        _unhashable.clear()
    _unhashable[spelled] = (annotation, codec)
    return codec


def _direct_types(annotation: Any) -> frozenset[Any]:
    """The exact types that an annotation made of JSON's scalars alone gives back as they are."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    named = frozenset(type(None) if one is None else one for one in members or (annotation,) if _is_scalar(one))
    return named if len(named) == len(members or (annotation,)) else frozenset()


def _is_scalar(annotation: Any) -> bool:
    return annotation is None or (isinstance(annotation, type) and annotation in _SCALARS)


# -- hash -----------------------------------------------------------------------------------------


def canonical_hash(text: str | None) -> str:
    """A hash of what a payload says: key order, white space, escapes and number spelling do not count.

    Numbers are compared as RFC 8785 does, as doubles, except that integers keep all their digits.

    Raises:
        PayloadError: The text is not JSON.
    """
    if text is None:
        canonical = ""
    elif _is_canonical(text):
        canonical = text
    else:
        try:
            canonical = _canonical(_parse(text))
        except (ValueError, RecursionError):
            raise PayloadError("a payload to be compared is not JSON that Python can read") from None
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).hexdigest()


def _number(spelled: str) -> float | int:
    value = float(spelled)
    return int(value) if value.is_integer() else value  # 1.0, 1e0 and 1 are one number


# A number, a word or a text that has one spelling: ids are common inputs, and parsing one takes 10 µs.
_is_canonical = re.compile(r'(?:0|-?[1-9][0-9]{0,17}|"[ !#-\[\]-~]*"|true|false|null)\Z').match
_parse = json.JSONDecoder(parse_float=_number).decode
_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


# -- messages -------------------------------------------------------------------------------------


def _check_size(raw: bytes, what: object) -> None:
    if len(raw) > DEFAULT_LIMIT:
        raise PayloadTooLarge(
            f"{what} takes {len(raw):,} bytes as JSON, above the limit of {DEFAULT_LIMIT:,}: store it elsewhere and "
            "return where it is"
        )


def _place(where: str, reason: str) -> str:
    """``a datetime at .lines[2]``; the value itself has an empty place."""
    if len(where) > 80:
        where = f"{where[:40]}…{where[-40:]}"
    return f"{reason} at {where}" if where else reason


def _errors(error: ValidationError) -> str:
    """Places and kinds only: messages can repeat the input."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(f'{part!s:.40}' for part in one['loc']) or 'the value'} ({one['type']})" for one in details[:5]
    ]
    return ", ".join(shown) + (f" and {len(details) - 5} more" if len(details) > 5 else "")
