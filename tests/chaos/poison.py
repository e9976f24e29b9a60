"""Values and names that databases refuse, change or take for statements, and workflows that meet them (P50, P51)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from typing import Any

from durable import Context, Workflow, workflow


class _Shouting(str):
    """A str that is none exactly."""

    __slots__ = ()


class _Colour(Enum):
    RED = "red\x00"


class _Unspeakable:
    """Nothing can be said about it."""

    def __repr__(self) -> str:
        raise RuntimeError("no words")


def _nested(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = [value]
    return value


def _nested_keys(levels: int) -> Any:
    value: Any = "core"
    for _ in range(levels):
        value = {"k": value}
    return value


def _cycle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


VALUES: Mapping[str, Callable[[], Any]] = {
    "NUL": lambda: "\x00",
    "NUL within": lambda: "before\x00after",
    "NUL key": lambda: {"a\x00b": 1},
    "escaped NUL": lambda: "\\u0000",
    "high surrogate": lambda: "\ud800",
    "low surrogate": lambda: "\udfff",
    "surrogate key": lambda: {"\udc80": 1},
    "surrogate pair as two": lambda: "\ud83d\ude00",
    "NaN": lambda: float("nan"),
    "NaN within": lambda: [1.5, {"x": float("nan")}],
    "infinity": lambda: float("inf"),
    "minus infinity": lambda: float("-inf"),
    "1e400": lambda: float("1e400"),
    "1e308": lambda: 1e308,
    "5e-324": lambda: 5e-324,
    "minus zero": lambda: -0.0,
    "0.1": lambda: 0.1 + 0.2,
    "whole float": lambda: 1e22,
    "2**53 + 1": lambda: 2**53 + 1,
    "2**63": lambda: 2**63,
    "minus 2**63 - 1": lambda: -(2**63) - 1,
    "2**64": lambda: 2**64,
    "4,300 digits": lambda: 10**4299,
    "4,301 digits": lambda: 10**4300,
    "5,000 digits": lambda: 10**4999,
    "-5,000 digits": lambda: -(10**4999),
    "nested 100": lambda: _nested(100),
    "nested 1,000": lambda: _nested(1_000),
    "nested 50,000": lambda: _nested(50_000),
    "keys nested 50,000": lambda: _nested_keys(50_000),
    "a cycle": _cycle,
    "duplicate keys": lambda: {1: "int", "1": "str"},
    "a key that is no text": lambda: {None: 1},
    "true as a key": lambda: {True: 1, "true": 2},
    "an empty key": lambda: {"": {"": ""}},
    "4 MiB": lambda: "x" * (4 * 1024 * 1024 - 2),
    "4 MiB and a byte": lambda: "x" * (4 * 1024 * 1024 - 1),
    "100 MB": lambda: "x" * 100_000_000,
    "record separator": lambda: "a\x1eb\x1f\x1d",
    "NULL": lambda: "NULL",
    "backslash N": lambda: "\\N",
    "an array literal": lambda: '{"a","b",NULL}',
    "quotes": lambda: "'\"`$$\\'",
    "line separators": lambda: "\u2028\u2029\u0085\r\n",
    "a BOM": lambda: "\ufeffx\ufffe\uffff",
    "combining": lambda: "e\u0301\u202e\u200d",
    "beyond the BMP": lambda: "😀\U0010ffff",
    "JSON in a text": lambda: '{"a": 1, "a": 2}',
    "None": lambda: None,
    "false": lambda: False,
    "bytes": lambda: b"\xff\x00",
    "a set": lambda: {1, 2},
    "a tuple": lambda: (1, 2),
    "a naive time": lambda: datetime(2026, 1, 1),  # noqa: DTZ001 - that is the poison
    "Decimal NaN": lambda: Decimal("NaN"),
    "complex": lambda: 1j,
    "a fraction": lambda: Fraction(1, 3),
    "another str": lambda: _Shouting("loud\x00"),
    "an enum": lambda: _Colour.RED,
    "no words": _Unspeakable,
    "a function": lambda: print,
}
"""By name, since a worker has to make its own."""


def fingerprint(value: Any) -> str:
    """Equal for values that are equal to the last bit and type; without recursion."""
    digest, todo = hashlib.sha256(), [value]
    for _ in range(1_000_000):
        if not todo:
            return digest.hexdigest()
        one = todo.pop()
        if isinstance(one, list):
            items: list[Any] = one  # pyright: ignore[reportUnknownVariableType]
            digest.update(b"[%d" % len(items))
            todo += items
        elif isinstance(one, dict):
            pairs: dict[Any, Any] = one  # pyright: ignore[reportUnknownVariableType]
            digest.update(b"{%d" % len(pairs))
            for pair in pairs.items():
                todo += pair
        else:
            digest.update(_scalar(one))
    return "endless"


def _scalar(value: Any) -> bytes:
    if type(value) is str:
        return b"s" + value.encode("utf-8", "surrogatepass")
    if type(value) is int:
        return b"i" + hex(value).encode()
    if type(value) is float:
        return b"f" + value.hex().encode()
    return f"{type(value)} {value if value is None or isinstance(value, bool) else id(value)}".encode()


def text_of(value: Any) -> str:
    """What of a value goes into an error's text."""
    if isinstance(value, str):
        return value
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return repr(value)
    except (RecursionError, RuntimeError):
        return f"\x00\ud800 {type(value)}"
    finally:
        sys.set_int_max_str_digits(before)


@workflow
async def takes(ctx: Context, value: Any) -> str:
    """The value as an input."""
    return fingerprint(value)


@workflow
async def gives(ctx: Context, name: str) -> str:
    """As the result of a step, read back: a worker that lingers for no time replays it after the sleep."""
    made = await ctx.step("make", _made, name, returns=Any)
    await ctx.sleep("apart", 0.1)
    return fingerprint(made)


async def _made(name: str) -> Any:
    return VALUES[name]()


@workflow
async def ends(ctx: Context, name: str) -> Any:
    """As the result of a run."""
    return VALUES[name]()


@workflow
async def raises(ctx: Context, name: str) -> None:
    """As the text of an error."""
    await ctx.step("fail", _failed, name)


async def _failed(name: str) -> None:
    raise ValueError(text_of(VALUES[name]()))


@workflow
async def hears(ctx: Context) -> str:
    """As a signal."""
    return fingerprint(await ctx.wait_for("poison", Any))


@workflow
async def emits(ctx: Context, name: str) -> str:
    """As an entry of the log."""
    await ctx.emit("poison", VALUES[name]())
    return "emitted"


@workflow
async def named(ctx: Context, name: str) -> str:
    """A name that data has made, of a step."""
    return await ctx.step(name, _nothing)


async def _nothing() -> str:
    return "done"


ALL: tuple[Workflow[Any, Any], ...] = (takes, gives, ends, raises, hears, emits, named)

_STATEMENTS = (
    "DROP TABLE canary",
    "DELETE FROM canary",
    "UPDATE canary SET words = 'dead'",
    "TRUNCATE canary",
    "DROP SCHEMA durable CASCADE",
    "INSERT INTO canary VALUES ('cuckoo')",
    "ALTER TABLE canary RENAME TO cat",
    "SELECT pg_sleep(3)",
)
_FRAMES = (
    "'; {}; --",
    '"; {}; --',
    "x'); {}; --",
    "$$; {}; $$",
    "\\'; {}; --",
    "x; {}",
)

HOSTILE: tuple[str, ...] = (
    *(frame.format(statement) for frame in _FRAMES for statement in _STATEMENTS),
    *("' OR '1'='1", "1' OR 1=1 --", "' UNION SELECT words FROM canary --", "%s", "%(name)s", "{0}", "$1", ":name"),
    *("NULL", "null", "\\N", "{a,b}", '{"a"}', "pg_catalog", "public", "information_schema", "DURABLE", "durable; "),
    *("select", "user", "order", "a.b", "a.b.c", '"quoted"', "`back`", "[a]", "a#2", "a/b", "../../etc/passwd"),
    *(
        "\x00",
        "a\x00b",
        "\ud800",
        "\x1e",
        "\n",
        "\r\n; x",
        "\u202e",
        "é",
        "日本",
        "😀",
        " ",
        "",
        "a" * 201,
        "b" * 100_000,
    ),
)
"""Names from somebody who knows what a database is."""
