"""Finds the SQL: named statements and migrations of one dialect, from the files under ``sql/``.

A statement begins with a line ``-- name: the_name`` and ends before the next one; comment lines between the
name and the first SQL line stay with it. On Postgres the files say ``durable.runs`` so that they can be pasted
into psql; a store with another schema gets that name in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from durable.errors import ConfigurationError, InvalidArgument

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_SCHEMA = re.compile(r"\bdurable\.(?=\w)")
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")


class Migration(NamedTuple):
    version: int
    name: str
    sql: str


@cache
def statements(dialect: str, schema: str = "durable") -> Mapping[str, str]:
    """All named statements of ``sql/<dialect>/queries/*.sql``."""
    found: dict[str, str] = {}
    for path in sorted((_root() / dialect / "queries").glob("*.sql")):
        _, *parts = _NAME.split(path.read_text("utf-8"))
        for name, text in zip(parts[::2], parts[1::2], strict=True):
            if name in found:
                raise ConfigurationError(f"statement {name!r} stands twice in sql/{dialect}/queries")
            found[name] = _in_schema(text.strip().rstrip(";"), schema)
    return found


@cache
def migrations(dialect: str, schema: str = "durable") -> tuple[Migration, ...]:
    """The migrations of ``dialect`` in order: ``0001_name.sql``, ``0002_…``."""
    paths = sorted((_root() / dialect / "migrations").glob("*.sql"))
    found = tuple(Migration(int(p.stem[:4]), p.stem, _in_schema(p.read_text("utf-8"), schema)) for p in paths)
    if [m.version for m in found] != list(range(1, len(found) + 1)):
        raise ConfigurationError(f"the migrations in sql/{dialect} are not numbered 1, 2, 3, …")
    return found


def check_schema(schema: str) -> str:
    """``schema`` if it is a plain lower-case identifier, so that no statement has to quote it.

    Raises:
        InvalidArgument: It is not.
    """
    if not _IDENTIFIER.fullmatch(schema):
        raise InvalidArgument(f"schema {schema!r}: use lower-case letters, digits and _, at most 63")
    return schema


def _in_schema(text: str, schema: str) -> str:
    return text if schema == "durable" else _SCHEMA.sub(f'"{schema}".', text)


def _root() -> Path:
    """``durable/_sql/`` in an installed wheel (this module has the shorter name), ``sql/`` in a checkout."""
    package = Path(__file__).parent
    for root in (package / "_sql", package.parent / "sql"):
        if root.is_dir():
            return root
    raise ConfigurationError(f"the SQL files of durable are missing: neither {package / '_sql'} nor ../sql exists")
