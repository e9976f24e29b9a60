"""What travels as a literal arrives as it was: against the server, which does the parsing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from durable.errors import PayloadError
from durable.stores.postgres import literals

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXTS = st.lists(
    st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.sampled_from("\x1e\x1d")),
    min_size=2,
)
TIMES = st.integers(-(10**15), 9 * 10**15).map(lambda us: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us))


class FloatsDumper(literals.IdsDumper):
    oid = literals.Floats.oid


@pytest.fixture(scope="module")
def server(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres_url, autocommit=True, cursor_factory=psycopg.RawCursor) as connection:
        connection.adapters.register_dumper(literals.Ids, literals.IdsDumper)
        connection.adapters.register_dumper(literals.Floats, FloatsDumper)
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def column(server: psycopg.Connection[Any], expression: str, *parameters: literals.Parameter) -> list[Any]:
    query = f"SELECT x FROM unnest({expression}) WITH ORDINALITY AS u (x, place) ORDER BY place"
    return [row[0] for row in server.execute(query.encode(), parameters)]


@QUICK
@given(TEXTS)
@example(["", None, ""])
@example(["a\x1eb", "\x1d", None])
def test_any_texts(server: psycopg.Connection[Any], values: list[str | None]) -> None:
    separator, null, joined = literals.columns(values)
    assert column(server, "string_to_array($3, $1, $2)", separator, null, joined) == values


@QUICK
@given(st.lists(st.one_of(st.none(), TIMES)))
@example([datetime(2107, 1, 1, 0, 0, 0, 7, UTC)])  # which seconds in float8 get wrong
def test_times_are_exact_to_the_microsecond(server: psycopg.Connection[Any], values: list[datetime | None]) -> None:
    query = b"""SELECT timestamptz 'epoch' + x * interval '1 us'
                FROM unnest($1::bigint[]) WITH ORDINALITY AS u (x, place) ORDER BY place"""
    assert [row[0] for row in server.execute(query, [literals.times(values)])] == values


@QUICK
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.booleans())))
def test_numbers(server: psycopg.Connection[Any], values: list[float | bool | None]) -> None:
    floats = [value if value is None or isinstance(value, float) else float(value) for value in values]
    assert column(server, "$1::float8[]", literals.scalars(floats)) == floats
    flags = [None if value is None else bool(value) for value in values]
    assert column(server, "$1::boolean[]", literals.scalars(flags)) == flags


def test_ids(server: psycopg.Connection[Any]) -> None:
    ids = [str(uuid4()) for _ in range(100)]
    assert [str(value) for value in column(server, "$1::uuid[]", literals.ids(ids))] == ids
    assert column(server, "$1::uuid[]", literals.ids([])) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x",
        "}{",
        "0" * 31,
        "0" * 33,
        "ü" * 32,
        "9d213320-83ad-4484-a0cb-bec1f241e7f0,063b9835-3866-4568-bf04-ea522a28a464",
        "a2a45c25-63d0-46b0-8eee-ace82485ea3c00",
    ],
)
def test_what_is_no_id_is_refused_before_it_is_sent(wrong: str) -> None:
    with pytest.raises(PayloadError):
        literals.ids([str(uuid4()), wrong])


def test_a_column_that_no_server_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(literals, "MAX_TEXT", 1000)
    literals.columns(["x" * 900])
    with pytest.raises(PayloadError, match="too many"):
        literals.columns(["x" * 500, "x" * 500])


@QUICK
@given(st.lists(st.floats(allow_nan=False)))
@example([0.1 + 0.2, -0.0, 5e-324])
def test_floats_are_exact(server: psycopg.Connection[Any], values: list[float]) -> None:
    assert column(server, "$1::float8[]", literals.floats(values)) == values
