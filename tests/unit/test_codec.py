"""Exact round trips, or a typed error that says what and where."""

from __future__ import annotations

import collections
import datetime as dt
import json
import math
import traceback
import typing
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
)
from pydantic_core import core_schema

from durable.codec import (
    DEFAULT_LIMIT,
    MISSING,
    PLAIN,
    codec_for,
)
from durable.errors import NotSerializable, PayloadError, PayloadTooLarge, ResultTypeUnknown
from tests.unit.values import (
    Aliased,
    AliasedDog,
    AliasedPet,
    BareRatio,
    Base64Model,
    Box,
    BytesModel,
    Careless,
    Cat,
    Checked,
    ChildReceipt,
    Color,
    Dog,
    Level,
    Line,
    Lossy,
    Numbers,
    Open,
    Options,
    Order,
    Pet,
    Photo,
    Point,
    Private,
    Ratio,
    Receipt,
    Rounded,
    RushOrder,
    Shortened,
    Silent,
    Slotted,
    SpelledRatio,
    Swapped,
    Upper,
    WithInitVar,
    Word,
)

WHAT = "the result of step 'x'"


PARIS = ZoneInfo("Europe/Paris")

EXACT: list[tuple[Any, Any]] = [
    (
        Order,
        Order(id=uuid4(), lines=[Line(sku="a", price=Decimal("1.10"))], placed=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    ),
    (Order | None, None),
    (Receipt, Receipt("o", 1.5, False, (1, 2))),
    (list[Receipt], [Receipt("o", 1.0), Receipt("p", -0.0)]),
    (Slotted, Slotted("a", dt.date(2026, 2, 28))),
    (Photo, Photo(b"\xff\x00")),
    (dict[str, Photo], {"p": Photo(b"\x89PNG")}),
    (Checked, Checked(5)),
    (Color, Color.TWO),
    (Level, Level.LOW),
    (Word, Word.YES),
    (dict[Color, int], {Color.RED: 1}),
    (Point, Point(1, "a")),
    (Options, {"a": 1}),
    (Options, {"a": 1, "b": ["x"]}),
    (Pet, Dog(name="rex")),
    (list[Pet], [Cat(), Dog()]),
    (AliasedPet, AliasedDog()),
    (Aliased, Aliased(**{"in": 3})),
    (Open, Open.model_validate({"a": 1, "more": [1, "x"]})),
    (Private, Private(a=1)),
    (Box[int], Box[int](content=1)),
    (Box[Receipt], Box[Receipt](content=Receipt("o", 1.0))),
    (Numbers, Numbers([1, 2])),
    (SpelledRatio, SpelledRatio(value=math.inf)),
    (Base64Model, Base64Model(data=b"\xff")),
    (BytesModel, BytesModel(data=b"text")),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[()], ()),
    (set[str], {"a", "b"}),
    (frozenset[int], frozenset({1, 2})),
    (set[dt.date], {dt.date(2026, 1, 1)}),
    (dict[int, str], {1: "a"}),
    (dict[UUID, Decimal], {uuid4(): Decimal("1E+3")}),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("123456789012345678901234567890.123")),
    (UUID, uuid4()),
    (Path, Path("/a/b")),
    (bytes, bytes(range(256))),
    (dt.datetime, dt.datetime.fromisoformat("2026-01-01T12:30:01.000007")),
    (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=-9, minutes=-30)))),
    (dt.date, dt.date(2024, 2, 29)),
    (dt.date | dt.datetime, dt.date(2024, 2, 29)),
    (dt.time, dt.time(23, 59, 59, 999999)),
    (dt.timedelta, dt.timedelta(days=-3, microseconds=7)),
    (dt.timedelta, dt.timedelta(microseconds=1)),
    (int | str, "5"),
    (int | str, 5),
    (int | float, 1.0),
    (bool | int, 1),
    (float, 5e-324),
    (float, 1e16),
    (int, 2**64),
    (int, -(10**4000)),
    (str, "\0\x1e\x7f\u2028\U0001f600 NaN Infinity"),
    (Literal["a", 1], 1),
    (None, None),
    (Any, None),
    (Any, {"a": [1, -2.5, True, None, "x", {"": []}], "\0": "NaN"}),
    (Any, 10**4000),
    (MISSING, [[]]),
    (object, {"a": 1}),
    (Annotated[int, {"unhashable": True}], 3),
    (typing.Optional[int], None),  # noqa: UP045
    (collections.deque[int], collections.deque([1, 2])),
    (collections.OrderedDict[str, int], collections.OrderedDict(b=1, a=2)),
]


@pytest.mark.parametrize(("annotation", "value"), EXACT)
def test_P16_first_pass_and_replay_give_equal_values_of_equal_type(annotation: Any, value: Any) -> None:
    codec = codec_for(annotation)
    text, seen = codec.round_trip(value, WHAT)
    again = codec.decode(text, WHAT)
    assert seen == again == value
    assert type(seen) is type(again) is type(value)
    assert repr(seen) == repr(again)
    assert codec.decode(codec.encode(again, WHAT), WHAT) == value
    json.loads(text, parse_constant=pytest.fail)  # JSON, without NaN
    assert not any(char in text for char in "\0\x1e\n")


def test_P16_the_workflow_never_shares_an_object_with_the_step() -> None:
    value = {"a": [1]}
    _, seen = PLAIN.round_trip(value, WHAT)
    value["a"].append(2)
    assert seen == {"a": [1]}


def test_a_dataclass_that_is_compared_by_identity_is_compared_by_its_fields() -> None:
    value = Silent(dt.datetime(2026, 1, 1, tzinfo=dt.UTC), Receipt("o", 1.0))
    text, seen = codec_for(Silent).round_trip(value, WHAT)
    assert (seen.at, seen.inner) == (value.at, value.inner)
    assert codec_for(Silent).encode(seen, WHAT) == text
    with pytest.raises(NotSerializable, match=r"the int changed at \.count"):
        codec_for(Lossy).encode(Lossy(1), WHAT)


def test_an_object_that_is_compared_by_identity_is_compared_by_what_it_holds() -> None:
    class Handle:
        def __init__(self, n: int) -> None:
            self.n = n

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
            return core_schema.no_info_after_validator_function(
                lambda n: cls(abs(n)),
                core_schema.int_schema(),
                serialization=core_schema.plain_serializer_function_ser_schema(lambda h: h.n),
            )

    assert codec_for(Handle).round_trip(Handle(3), WHAT)[1].n == 3
    with pytest.raises(NotSerializable):
        codec_for(Handle).encode(Handle(-3), WHAT)


@pytest.mark.parametrize("fold", [0, 1])
def test_P16_the_hour_that_the_clock_repeats_keeps_its_instant(fold: int) -> None:
    """Python's == is False between zones in that hour: it would have refused every datetime of that night."""
    value = dt.datetime(2026, 10, 25, 2, 30, tzinfo=PARIS, fold=fold)
    _, seen = codec_for(dt.datetime).round_trip(value, WHAT)
    assert seen.utcoffset() == value.utcoffset()
    assert seen.timestamp() == value.timestamp()


REDUCED: list[tuple[Any, Any, Any]] = [
    (float, 1, 1.0),
    (int, True, 1),
    (str, Word.YES, "yes"),
    (int, Level.LOW, 1),
    (dict[str, int], collections.Counter("aab"), {"a": 2, "b": 1}),
    (tuple[int, str], Point(1, "a"), (1, "a")),
    (list[float], [1, 2.5], [1.0, 2.5]),
    (Receipt, Receipt("o", 3), Receipt("o", 3.0)),
]


@pytest.mark.parametrize(("annotation", "value", "declared"), REDUCED)
def test_an_equal_instance_of_a_builtin_subclass_becomes_the_declared_builtin(
    annotation: Any, value: Any, declared: Any
) -> None:
    text, seen = codec_for(annotation).round_trip(value, WHAT)
    assert seen == declared
    assert repr(seen) == repr(declared) == repr(codec_for(annotation).decode(text, WHAT))


def nested(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


def circular() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


POISON: list[tuple[Any, Any, str]] = [
    (Any, math.nan, "not finite"),
    (Any, {"a": [0, math.inf]}, r"not finite at \['a'\]\[1\]"),
    (Any, -math.inf, "not finite"),
    (float, math.nan, "not finite"),
    (float, math.inf, "not finite"),
    (float | None, math.nan, "not finite"),
    (list[float], [1.0, -math.inf], r"not finite at \[1\]"),
    (Ratio, Ratio(value=math.inf), r"not finite at \.value"),
    (BareRatio, BareRatio(value=math.inf), r"not finite at \.value"),
    (Receipt, Receipt("o", math.nan), r"not finite at \.total"),
    (Decimal, Decimal("NaN"), "as Decimal"),
    (Any, "\ud800", "lone surrogate"),
    (Any, {"\udfff": 1}, "lone surrogate"),
    (str, "a\ud800", "lone surrogate"),
    (str, "\ud800" * 2000, "lone surrogate"),
    (dict[str, Any], {"a": "\ud800"}, r"lone surrogate at \['a'\]"),
    (Line, Line.model_construct(sku="\ud800", price=Decimal(1)), r"lone surrogate at \.sku"),
    (Path, Path("/a\udcff"), "as Path"),
    (Any, 10**5000, "4,300 digits"),
    (int, 10**5000, "4,300 digits"),
    (list[int], [-(10**5000)], "4,300 digits"),
    (Any, nested(50_000), "nested more than 200"),
    (Any, nested(201), "nested more than 200"),
    (list[Any], nested(50_000), "nested more than 200"),
    (list[Any], nested(220), "nested more than 200"),
    (Any, circular(), "nested more than 200"),
    (list[Any], circular(), "nested more than 200"),
    (BytesModel, BytesModel(data=b"\xff"), r"not UTF-8 .*ser_json_bytes.* at \.data"),
    (Order, RushOrder(id=uuid4(), lines=[], placed=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)), "RushOrder became Order"),
    (
        list[Order],
        [RushOrder(id=uuid4(), lines=[], placed=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))],
        r"RushOrder became Order at \[0\]",
    ),
    (Receipt, ChildReceipt("o", 1.0), "ChildReceipt became Receipt"),
    (Private, None, "model_type"),
    (list[int], (1, 2), "tuple became list"),
    (Shortened, Shortened([1, 2, 3]), r"3 items became 2 at \.root"),
    (set[Slotted | Rounded], {Rounded(1.5)}, "an item changed"),
    (dict[Word | Level, int], {"maybe": 1}, "cannot be decoded again"),
    (Swapped, Swapped.BLACK, "the member changed"),
    (Upper, {"a": 1}, "a key of type str changed"),
    (tuple[int, ...], [1, 2], "list became tuple"),
    (set[int], frozenset({1}), "frozenset became set"),
    (dict[str, Any], {"when": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}, r"datetime became str at \['when'\]"),
    (Box[Any], Box[Any](content=(1,)), r"tuple became list at \.content"),
    (dict[str, str], {1: "a", "1": "b"}, "2 keys became 1"),
    (dict[str, str], {1: "a"}, "key of type int"),
    (dict[int, str], {1.0: "a"}, "a key of type float became int"),
    (str | dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "datetime became str"),
    (dt.datetime, dt.datetime(1890, 1, 1, tzinfo=PARIS), "time changed"),
    (int, "5", "str became int"),
    (int, 5.0, "float became int"),
    (bool, 1, "int became bool"),
    (str, 5, "cannot be decoded again, the value .string_type."),
    (None, 5, "none_required"),
    (Color, "r", "str became Color"),
    (Receipt, {"order": "o", "total": 1.0}, "dict became Receipt"),
    (SecretStr, SecretStr("hunter2"), "as SecretStr"),
    (typing.Iterable[int], [1], "became"),
    (Line, Line.model_construct(sku=5, price=Decimal(1)), r"sku .string_type."),
    (WithInitVar, WithInitVar(1, 2), "as WithInitVar"),
]


@pytest.mark.parametrize(("annotation", "value", "message"), POISON, ids=lambda value: f"{type(value).__name__}")
def test_P50_what_has_no_exact_form_is_refused_with_its_place(annotation: Any, value: Any, message: str) -> None:
    with pytest.raises(NotSerializable, match=message) as caught:
        codec_for(annotation).encode(value, WHAT)
    assert WHAT in str(caught.value)
    assert len(str(caught.value)) < 500


def test_P50_a_private_attribute_that_would_be_lost_is_refused() -> None:
    value = Private(a=1)
    value._cache = 5
    with pytest.raises(NotSerializable, match="private attribute"):
        codec_for(Private).encode(value, WHAT)


def test_a_field_left_out_of_equality_still_counts() -> None:
    class Forgetful(BaseModel):
        a: int
        b: int = Field(default=0, exclude=True)

    assert codec_for(Careless).round_trip(Careless(1, 7), WHAT)[1].b == 7
    with pytest.raises(NotSerializable, match=r"int changed at \.b"):
        codec_for(Forgetful).encode(Forgetful(a=1, b=7), WHAT)


UNKNOWN: list[tuple[Any, str]] = [
    ((1, 2), "found tuple"),
    ({1: "a"}, "found a key of type int"),
    ({True: "a"}, "found a key of type bool"),
    ({1, 2}, "found set"),
    (b"x", "found bytes"),
    (bytearray(b"x"), "found bytearray"),
    (Decimal(1), "found Decimal"),
    (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), "found datetime"),
    ({"a": [{"b": dt.date(2026, 1, 1)}]}, r"found date at \['a'\]\[0\]\['b'\]"),
    (Word.YES, "found Word"),
    (Level.LOW, "found Level"),
    ([Color.RED], r"found Color at \[0\]"),
    (Receipt("o", 1.0), "found Receipt"),
    (Line(sku="a", price=Decimal(1)), "found Line"),
    (Point(1, "a"), "found Point"),
    (collections.OrderedDict(a=1), "found OrderedDict"),
    ({"a": collections.defaultdict(int)}, "found defaultdict"),
    (1j, "found complex"),
    (object(), "found object"),
    (print, "found builtin_function_or_method"),
    (..., "found ellipsis"),
]


@pytest.mark.parametrize(("value", "message"), UNKNOWN)
def test_P17_without_a_type_only_plain_json_is_accepted(value: Any, message: str) -> None:
    with pytest.raises(ResultTypeUnknown, match=message) as caught:
        PLAIN.round_trip(value, WHAT)
    assert WHAT in str(caught.value)
    assert "returns=" in str(caught.value)


def test_plain_values_never_run_user_code() -> None:
    class Trap(dict[str, Any]):
        def items(self) -> Any:
            raise AssertionError("called")

        def __iter__(self) -> Iterator[str]:
            raise AssertionError("called")

    class Nosy:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    for value in (Trap(a=1), Nosy(), [Nosy()]):
        with pytest.raises(ResultTypeUnknown):
            PLAIN.encode(value, WHAT)


def test_P50_the_size_limit_names_size_and_limit() -> None:
    fits = "x" * (DEFAULT_LIMIT - 2)
    assert PLAIN.round_trip(fits, WHAT)[1] == fits
    for annotation, value in ((Any, fits + "x"), (str, "é" * (DEFAULT_LIMIT // 2)), (bytes, bytes(DEFAULT_LIMIT))):
        with pytest.raises(
            PayloadTooLarge, match=r"'x' takes 4,194,305|'x' takes 4,194,306|'x' takes 5,592,410"
        ) as caught:
            codec_for(annotation).encode(value, WHAT)
        assert "4,194,304" in str(caught.value)
    with pytest.raises(PayloadTooLarge):
        PLAIN.encode(["x" * 100_000_000], WHAT)


def test_a_stored_null_and_no_payload_are_none() -> None:
    for codec in (PLAIN, codec_for(int | None)):
        assert codec.decode(None, WHAT) is None
        assert codec.decode("null", WHAT) is None
    assert codec_for(int).decode(None, WHAT) is None


STORED: list[tuple[Any, str]] = [
    (Any, ""),
    (Any, "{"),
    (Any, "NaN"),
    (Any, '["\\ud800"]'),
    (Any, "1" * 5000),
    (Any, "[" * 50_000),
    (int, '"SECRET"'),
    (int, ""),
    (Line, '{"sku": "SECRET", "price": "SECRET"}'),
    (list[Line], "[1, 2, 3, 4, 5, 6, 7, 8]"),
    (Pet, '{"kind": "SECRET"}'),
    (Receipt, "[" * 50_000),
]


@pytest.mark.parametrize(("annotation", "text"), STORED, ids=lambda value: str(value)[:20])
def test_P54_stored_data_that_does_not_fit_is_a_payload_error_without_the_data(annotation: Any, text: str) -> None:
    with pytest.raises(PayloadError) as caught:
        codec_for(annotation).decode(text, "the recorded result of step 'x'")
    shown = "".join(traceback.format_exception(caught.value))
    assert "SECRET" not in shown
    assert "'x'" in shown
    assert len(str(caught.value)) < 500


def test_messages_name_types_and_places_but_no_values() -> None:
    class Strict(BaseModel):
        token: str

        @field_validator("token")
        @classmethod
        def check(cls, token: str) -> str:
            if token.startswith("SECRET"):
                raise ValueError(f"bad {token}")
            return token

    for annotation, value in (
        (Strict, Strict.model_construct(token="SECRET")),
        (int, "SECRET"),
        (SecretStr, SecretStr("SECRET")),
        (dict[str, int], {"a": "SECRET"}),
        (Any, {"a": Decimal(5), "b": "SECRET"}),
    ):
        with pytest.raises(PayloadError) as caught:
            codec_for(annotation).encode(value, WHAT)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))


class Broken(dict[str, int]):
    """Cannot be walked through."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("iter")

    def items(self) -> Any:
        raise RuntimeError("items")


def test_whatever_user_code_raises_is_a_payload_error() -> None:
    class Evil(BaseModel):
        a: int

        @field_validator("a")
        @classmethod
        def check(cls, a: int) -> int:
            if a > 1:
                raise KeyError("validator")
            return a

    class EvilOut(BaseModel):
        a: int

        @field_serializer("a")
        def write(self, a: int) -> int:
            raise RuntimeError("serializer")

    class EvilEq:
        def __init__(self, n: int) -> None:
            self.n = n

        def __eq__(self, other: object) -> bool:
            raise TypeError("eq")

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
            return core_schema.no_info_after_validator_function(
                cls,
                core_schema.int_schema(),
                serialization=core_schema.plain_serializer_function_ser_schema(lambda h: h.n),
            )

    with pytest.raises(PayloadError, match="KeyError"):
        codec_for(Evil).decode('{"a": 2}', WHAT)
    with pytest.raises(NotSerializable, match="decoding it raised KeyError"):
        codec_for(Evil).encode(Evil.model_construct(a=2), WHAT)
    with pytest.raises(NotSerializable, match="encoding it raised"):
        codec_for(EvilOut).encode(EvilOut(a=1), WHAT)
    with pytest.raises(NotSerializable, match="comparing raised RuntimeError"):
        codec_for(dict[str, int]).encode(Broken(a=1), WHAT)
    with pytest.raises(NotSerializable, match="comparing raised TypeError"):
        codec_for(EvilEq).encode(EvilEq(1), WHAT)
