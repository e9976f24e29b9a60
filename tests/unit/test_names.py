"""Names, keys and tags: what passes, and what is said about what does not."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable import names
from durable.errors import InvalidArgument
from durable.names import MAX_KEY, MAX_NAME, MAX_TAGS, check_key, check_name, check_tags

anything = st.text(st.characters(exclude_categories=()))


class Step(enum.StrEnum):
    CHARGE = "charge"


@pytest.mark.parametrize("name", ["a", "charge-payment", "Größe 5", "支払い", "x" * MAX_NAME, "ü" * 100, "a.b:c'\";--"])
def test_P51_names_pass(name: str) -> None:
    assert check_name(name, "step name") == name
    assert check_name(name, "step name") == name  # remembered


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is empty"),
        ("x" * (MAX_NAME + 1), "longer than 200 bytes"),
        ("ü" * 101, "longer than 200 bytes"),
        ("x" * 100_000_000, "longer than 200 bytes"),
        ("a/b", "contains /"),
        ("a#2[3]", r"contains # \[ \]"),
        ("a\nb", r"U\+000A"),
        ("a\x1eb", r"U\+001E"),
        ("\0", r"U\+0000"),
        ("\ud800", r"U\+D800"),
        ("\ud800" * 150, "longer than 200 bytes"),
        ("\u200b", r"U\+200B"),
        ("\u2028", r"U\+2028"),
        (None, "must be a str, not NoneType"),
        (5, "must be a str, not int"),
        (b"a", "must be a str, not bytes"),
        (["a"], "must be a str, not list"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_P50_other_names_are_refused_with_the_reason(name: Any, message: str) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument, match=f"^step name .*{message}") as caught:
            check_name(name, "step name")
        assert len(str(caught.value)) < 200
        str(caught.value).encode()


def test_a_member_of_an_enum_becomes_a_plain_str() -> None:
    names._names.clear()  # pyright: ignore[reportPrivateUsage]
    for _ in range(2):
        assert type(check_name(Step.CHARGE, "step name")) is str
        assert type(check_name("charge", "step name")) is str


def test_names_made_from_data_do_not_fill_the_memory() -> None:
    for n in range(3 * names._KEEP):  # pyright: ignore[reportPrivateUsage]
        check_name(f"step-{n}", "step name")
    assert len(names._names) <= names._KEEP  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("key", ["ord_123", "a/b#c[1]", "ü" * 256, "x" * MAX_KEY])
def test_keys_pass(key: str) -> None:
    assert check_key(key, "key") == key


@pytest.mark.parametrize("key", ["", "ü" * 257, "x" * (MAX_KEY + 1), "a\tb", "\x1e", "\ud800", None, 5])
def test_P50_other_keys_are_refused(key: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^key "):
        check_key(key, "key")


def test_tags_are_copied() -> None:
    given_tags = {"tenant": "acme", "empty": "", "long": "x" * MAX_KEY}
    checked = check_tags(given_tags)
    assert checked == given_tags
    assert checked is not given_tags
    assert check_tags(None) == {}
    assert check_tags(MappingProxyType({"a": "b"})) == {"a": "b"}
    assert check_tags({Step.CHARGE: Step.CHARGE}) == {"charge": "charge"}


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([("a", "b")], "must be a mapping"),
        ("ab", "must be a mapping"),
        ({"a/b": "c"}, "^tag 'a/b' contains /"),
        ({5: "c"}, "^tag must be a str, not int"),
        ({"a": 5}, "^the value of tag 'a' must be a str, not int"),
        ({"a": None}, "^the value of tag 'a' must be a str, not NoneType"),
        ({"a": "x" * (MAX_KEY + 1)}, "^the value of tag 'a' .* longer than 512 bytes"),
        ({"a": "\0"}, r"^the value of tag 'a' .* U\+0000"),
        ({str(n): "" for n in range(MAX_TAGS + 1)}, "65 tags; a run has at most 64"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_P50_other_tags_are_refused(tags: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_tags(tags)


@pytest.mark.parametrize("check", [check_name, check_key])
@given(text=anything)
def test_P50_what_passes_every_database_takes(check: Callable[[str, str], str], text: str) -> None:
    try:
        passed = check(text, "name")
    except InvalidArgument:
        return
    assert passed == text
    assert 1 <= len(passed.encode()) <= 512
    assert json.loads(json.dumps(passed)) == passed
    assert not any(ord(char) < 32 or ord(char) == 127 for char in passed)
    if check is check_name:
        assert not set(passed) & set("#[]/")
