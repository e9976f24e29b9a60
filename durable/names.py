"""What may be a name, a key or a tag: checked at the call, so that no store ever has to refuse one.

The limits are the storage's: a B-tree entry ends at about 2,700 bytes. ``#``, ``[``, ``]`` and ``/`` build
record keys from names. What is not printable (control characters, lone surrogates, the 0x1e that separates
payloads in a flush) cannot be told apart by an operator, or is refused by a database. Pure; it knows neither
what the names are for nor where they are stored.
"""

from __future__ import annotations

from collections.abc import Mapping

from durable.errors import InvalidArgument

MAX_NAME = 200
"""Bytes of UTF-8 in a name."""

MAX_KEY = 512
"""Bytes of UTF-8 in a key, an id or a tag's value."""

MAX_TAGS = 64

_RESERVED = frozenset("#[]/")

_KEEP = 8192
_names: dict[object, str] = {}
"""Names that have passed. A step's name is checked at every call: 0.1 µs from here, 1 µs by the rules."""


def check_name(value: object, what: str) -> str:
    """The name itself, as an exact ``str``.

    Args:
        value: 1 to 200 bytes of printable characters without ``#``, ``[``, ``]`` and ``/``.
        what: What it names, for the message: ``"step name"``.

    Raises:
        InvalidArgument: It is not such a name.
    """
    try:
        return _names[value]
    except (KeyError, TypeError):  # TypeError: unhashable, so certainly no name
        pass
    name = _text(value, what, MAX_NAME)
    found = sorted(_RESERVED.intersection(name))
    if found:
        raise InvalidArgument(f"{what} {_shown(name)} contains {' '.join(found)}: # [ ] / are reserved for record keys")
    if len(_names) >= _KEEP:  # names made from data must not fill the memory
        _names.clear()
    _names[name] = name
    return name


def check_key(value: object, what: str) -> str:
    """The key or id itself, as an exact ``str``: 1 to 512 bytes of printable characters.

    Raises:
        InvalidArgument: It is not such a text.
    """
    return _text(value, what, MAX_KEY)


def check_note(value: object, what: str) -> str:
    """A remark of an operator: at most 512 bytes of printable text, also none.

    Raises:
        InvalidArgument: It is not such a text.
    """
    return _text(value, what, MAX_KEY, least=0)


def check_tags(tags: Mapping[str, str] | None) -> dict[str, str]:
    """A copy of ``tags``: at most 64, keys are names, values printable text of at most 512 bytes, also empty.

    Raises:
        InvalidArgument: Which tag is wrong, and why.
    """
    if tags is None:
        return {}
    _check_mapping(tags)
    if len(tags) > MAX_TAGS:
        raise InvalidArgument(f"{len(tags):,} tags; a run has at most {MAX_TAGS}")
    checked: dict[str, str] = {}
    for key, value in tags.items():
        name = check_name(key, "tag")
        checked[name] = _text(value, f"the value of tag {name!r}", MAX_KEY, least=0)
    return checked


def _check_mapping(tags: object) -> None:
    if not isinstance(tags, Mapping):
        raise InvalidArgument(f"tags must be a mapping of names to texts, not {_type_name(tags)}")


def _text(value: object, what: str, limit: int, least: int = 1) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{what} must be a str, not {_type_name(value)}")
    text = str.__str__(value)  # a member of a StrEnum, or another subclass, becomes plain
    if len(text) < least:
        raise InvalidArgument(f"{what} is empty")
    # Characters first: encoding a text of 100 MB to learn that it is too long would take its time.
    if len(text) > limit or (not text.isascii() and len(text.encode("utf-8", "surrogatepass")) > limit):
        raise InvalidArgument(f"{what} {_shown(text)} is longer than {limit} bytes of UTF-8")
    if not text.isprintable():
        bad = next(char for char in text if not char.isprintable())
        raise InvalidArgument(f"{what} {_shown(text)} contains the unprintable character U+{ord(bad):04X}")
    return text


def _shown(text: str) -> str:
    start = text[:40]
    shown = repr(start) if start.isprintable() else ascii(start)
    return shown if len(text) <= 40 and len(shown) <= 80 else shown[:80] + "…"


def _type_name(value: object) -> str:
    return type(value).__qualname__[:100]
