"""Times, durations, JSON and tags as people write them; and texts that cannot command a terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
import typer

from durable.cli.options import parse_duration, parse_json, parse_moment, parse_tags
from durable.cli.output import ago, lasted, one_line, visible


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("0.5", 0.5),
        ("90s", 90),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("1w", 604_800),
        ("250ms", 0.25),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "soon", "-1s", "1y", "1h x", "1 h", "1e3", "9" * 15 + "w", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_duration(text)


@pytest.mark.parametrize("text", ["2026-11-30T08:00+01:00", "2026-11-30T07:00Z", "20261130T070000Z"])
def test_times_are_read_with_their_zone(text: str) -> None:
    assert parse_moment(text) == datetime(2026, 11, 30, 7, tzinfo=UTC)


def test_a_time_without_a_zone_is_of_here_and_a_duration_is_ago() -> None:
    assert parse_moment("2026-11-30").astimezone().strftime("%Y-%m-%d %H:%M") == "2026-11-30 00:00"
    assert parse_moment("1h") - parse_moment("2h") > timedelta(minutes=59)


@pytest.mark.parametrize("text", ["yesterday", "", "2026-13-01", "999999w", "0000-01-01"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=f"'{text}' is no time"):
        parse_moment(text)


@pytest.mark.parametrize(
    "text", ["null", "false", "0", '""', "[1, 2]", '{"é": "\\u0000"}', "1" * 4000], ids=lambda text: text[:10]
)
def test_json_is_taken_as_it_is_written(text: str) -> None:
    assert parse_json(text) == text


@pytest.mark.parametrize("text", ["", "Ann", "NaN", "Infinity", "{'a': 1}", "[1,]", "@", "\ud800"], ids=ascii)
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_json(text)


def test_tags_are_read() -> None:
    assert parse_tags(None) == {}
    assert parse_tags(["a=b", "c=d=e", "f="]) == {"a": "b", "c": "d=e", "f": ""}
    for wrong in ("a", "=b", ""):
        with pytest.raises(typer.BadParameter):
            parse_tags([wrong])


def test_control_characters_are_shown_and_nothing_else_is_changed() -> None:
    assert visible("\x1b[31m\x07\x9b\x7f\u202e\ud800\r") == r"\x1b[31m\x07\x9b\x7f\u202e\ud800\r"
    assert visible("né 日本 👍 [b]x[/b]\n\tend") == "né 日本 👍 [b]x[/b]\n\tend"
    assert one_line("a\nb\tc  d") == "a b c d"
    assert one_line("x" * 300, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0 ms"), (0.0123, "12.3 ms"), (0.25, "250 ms"), (12.04, "12.0 s"), (60, "1m"), (200, "3m 20s")),
        *((3600, "1h"), (5400, "1h 30m"), (90_000, "1d 1h")),
    ],
)
def test_durations_are_told(seconds: float, text: str) -> None:
    assert lasted(seconds) == text


def test_it_is_told_how_long_ago_and_in_how_long() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert (ago(now - timedelta(minutes=2), now), ago(now + timedelta(hours=1), now)) == ("2m ago", "in 1h")
