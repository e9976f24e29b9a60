"""The codec and the hash on values that nobody thought of."""

from __future__ import annotations

import datetime as dt
import functools
import json
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from durable.codec import (
    PLAIN,
    Codec,
    canonical_hash,
    codec_for,
)
from durable.errors import NotSerializable, PayloadError
from tests.unit.values import Color, Line, Order

WHAT = "the result of step 'x'"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":[true,null]}', ' { "b" : [ true , null ], "a" : 1.0 } '),
        ("100", "1e2"),
        ("0.1", "1.0e-1"),
        ('"\\u00e9\\n"', '"é\\u000a"'),
        ("[-0.0]", "[0]"),
    ],
)
def test_the_canonical_hash_does_not_depend_on_the_spelling(one: str, other: str) -> None:
    assert canonical_hash(one) == canonical_hash(other)


@given(st.one_of(st.integers(), st.text(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False)))
@example("\x7f")
@example('"\\/')
@example(-(10**17))
def test_the_canonical_hash_of_a_scalar_does_not_depend_on_white_space(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False)):
        assert canonical_hash(text) == canonical_hash(f" {text}")


def test_the_canonical_hash_tells_values_apart() -> None:
    texts = [None, "null", '""', "0", "false", "[]", "{}", '"1"', "1", "1.5", "[1,2]", "[2,1]", '{"a":1}', '{"a":"1"}']
    texts += ["9007199254740993", "9007199254740992", '[["a"]]', '["a"]']
    assert len({canonical_hash(text) for text in texts}) == len(texts)


@pytest.mark.parametrize("text", ["", "{", "1" * 5000, "[" * 100_000])
def test_P50_a_text_that_python_cannot_read_has_no_hash(text: str) -> None:
    with pytest.raises(PayloadError):
        canonical_hash(text)


# -- properties -----------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner, max_size=5)
    ),
    max_leaves=20,
)


def assert_exact_or_refused(codec: Codec, value: Any) -> None:
    try:
        text, seen = codec.round_trip(value, WHAT)
    except PayloadError:
        return
    again = codec.decode(text, WHAT)
    assert repr(seen) == repr(again)
    assert seen == value
    assert type(seen) is type(value)
    assert text.encode()
    json.loads(text, parse_constant=pytest.fail)
    assert "\x1e" not in text
    assert "\0" not in text


@given(json_values)
def test_P50_any_json_value_is_exact_or_refused(value: Any) -> None:
    assert_exact_or_refused(PLAIN, value)
    assert_exact_or_refused(codec_for(dict[str, Any] | list[Any] | str | int | float | bool | None), value)


@given(json_values)
def test_P50_what_python_json_can_hold_is_accepted(value: Any) -> None:
    try:
        sound = json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode()) == value
    except (ValueError, UnicodeEncodeError):
        sound = False
    if sound:
        assert PLAIN.round_trip(value, WHAT)[1] == value
    else:
        with pytest.raises(NotSerializable):
            PLAIN.encode(value, WHAT)


@dataclass
class Everything:
    text: str
    number: float | None
    whole: int
    flag: bool
    when: dt.datetime
    day: dt.date
    hour: dt.time
    span: dt.timedelta
    raw: bytes
    amount: Decimal
    color: Color
    ids: frozenset[UUID]
    pair: tuple[int, str]
    table: dict[str, list[dt.date]]


@given(st.builds(Everything))
@settings(max_examples=60)
def test_P16_any_dataclass_is_exact_or_refused(value: Everything) -> None:
    try:
        text, seen = codec_for(Everything).round_trip(value, WHAT)
    except PayloadError:
        return
    assert repr(codec_for(Everything).decode(text, WHAT)) == repr(seen)
    assert seen == value or value.hour.fold or value.when.fold


models = st.builds(
    Order,
    id=st.uuids(),
    lines=st.lists(
        st.builds(Line, sku=st.text(), price=st.decimals(allow_nan=False, allow_infinity=False)), max_size=3
    ),
    placed=st.datetimes(timezones=st.none() | st.timezones()),
    note=st.none() | st.text(st.characters(exclude_categories=())),
)


@given(models)
@settings(max_examples=60)
def test_P16_any_model_is_exact_or_refused(value: Order) -> None:
    try:
        text, seen = codec_for(Order).round_trip(value, WHAT)
    except PayloadError:
        assert value.note is not None or value.placed.tzinfo is not None or len(str(value.lines)) > 1
        return
    assert repr(codec_for(Order).decode(text, WHAT)) == repr(seen)
    assert seen.placed.utcoffset() == value.placed.utcoffset()
    assert seen.model_copy(update={"placed": value.placed}) == value


scalar_types: list[Any] = [str, int, float, bool, None]


@given(
    st.lists(st.sampled_from(scalar_types), min_size=1, max_size=4, unique=True),
    st.text() | st.integers() | st.floats() | st.booleans() | st.none(),
)
@settings(max_examples=300)
def test_the_short_way_for_scalars_gives_what_decoding_gives(members: list[Any], value: Any) -> None:
    codec = codec_for(functools.reduce(lambda a, b: a | b, members) if len(members) > 1 else members[0])
    try:
        text, seen = codec.round_trip(value, WHAT)
    except PayloadError:
        return
    again = codec.decode(text, WHAT)
    assert (repr(seen), type(seen)) == (repr(again), type(again))
    assert seen == value


@given(json_values, st.randoms(use_true_random=False))
def test_the_canonical_hash_of_any_value_ignores_key_order(value: Any, random: Any) -> None:
    def shuffled(part: Any) -> Any:
        if type(part) is dict:
            items = [(key, shuffled(item)) for key, item in cast("dict[str, Any]", part).items()]
            random.shuffle(items)
            return dict(items)
        if type(part) is list:
            return [shuffled(item) for item in cast("list[object]", part)]
        return part

    try:
        text = PLAIN.encode(value, WHAT)
    except PayloadError:
        return
    assert canonical_hash(text) == canonical_hash(json.dumps(shuffled(value), indent=1))
